"""What an attacker sends, and what an attacker reads."""

from fedlab.attacks.audit import (
    Audit,
    Canaries,
    CanaryExamples,
    audited,
    drift_bound,
    lower_bound,
    p_value,
    usual_guesses,
)
from fedlab.attacks.inversion import layer_inputs, recover_inputs, recover_tokens, row_space
from fedlab.attacks.membership import (
    auc_standard_error,
    clopper_pearson,
    membership_metrics,
    membership_scores,
    tpr_bound,
)
from fedlab.attacks.poisoning import Poison, aimed, exposure, noisy, scaled, with_clicks
from fedlab.attacks.upload_reading import (
    masked_scores,
    rated_items,
    reading_metrics,
    row_scores,
    sign_scores,
)

__all__ = [
    "Audit",
    "Canaries",
    "CanaryExamples",
    "Poison",
    "aimed",
    "auc_standard_error",
    "audited",
    "clopper_pearson",
    "drift_bound",
    "exposure",
    "layer_inputs",
    "lower_bound",
    "masked_scores",
    "membership_metrics",
    "membership_scores",
    "noisy",
    "p_value",
    "rated_items",
    "reading_metrics",
    "recover_inputs",
    "recover_tokens",
    "row_scores",
    "row_space",
    "scaled",
    "sign_scores",
    "tpr_bound",
    "usual_guesses",
    "with_clicks",
]
