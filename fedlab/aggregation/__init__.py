"""From the updates of a cohort to one delta, and the step that the server takes with it."""

from fedlab.aggregation.adapters import MeanOfProducts, product_error
from fedlab.aggregation.distillation import Distilled, distil, ensemble
from fedlab.aggregation.matching import Matched, hidden_layers
from fedlab.aggregation.mean import (
    Hierarchical,
    MeanOfHolders,
    NoDeltaError,
    OwnWeights,
    Sums,
    WeightedMean,
    as_aggregation,
    joined_updates,
)
from fedlab.aggregation.robust import (
    CoordinateMedian,
    Krum,
    NormBound,
    RowBound,
    TrimmedMean,
    krum_scores,
)
from fedlab.aggregation.selection import (
    BestModels,
    ByQuality,
    HeldOut,
    Judge,
    as_update,
    judge,
    local_models,
)
from fedlab.aggregation.server_step import RULES, ServerStep

__all__ = [
    "RULES",
    "BestModels",
    "ByQuality",
    "CoordinateMedian",
    "Distilled",
    "HeldOut",
    "Hierarchical",
    "Judge",
    "Krum",
    "Matched",
    "MeanOfHolders",
    "MeanOfProducts",
    "NoDeltaError",
    "NormBound",
    "OwnWeights",
    "RowBound",
    "ServerStep",
    "Sums",
    "TrimmedMean",
    "WeightedMean",
    "as_aggregation",
    "as_update",
    "distil",
    "ensemble",
    "hidden_layers",
    "joined_updates",
    "judge",
    "krum_scores",
    "local_models",
    "product_error",
]
