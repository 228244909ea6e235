"""What an attacker sends, and what an attacker reads."""

from fedlab.attacks.inversion import entering, features, recover_tokens, span
from fedlab.attacks.membership import auc_deviation, most, shares, told_apart, traces
from fedlab.attacks.poisoning import Poison, aimed, exposure, noisy, scaled, with_clicks
from fedlab.attacks.upload_reading import leak, masked_scores, rated, row_scores, sign_scores

__all__ = ["Poison", "aimed", "auc_deviation", "entering", "exposure", "features", "leak",
           "masked_scores", "most", "noisy", "rated", "recover_tokens", "row_scores", "scaled",
           "shares", "sign_scores", "span", "told_apart", "traces", "with_clicks"]
