"""From the updates of a cohort to one delta, and the step that the server takes with it."""

from fedlab.aggregation.adapters import mean_of_products, product_error
from fedlab.aggregation.distillation import distil, distilled, ensemble
from fedlab.aggregation.mean import (
    Aggregate,
    Delta,
    NoDeltaError,
    given,
    hierarchical,
    joined_updates,
    mean_of_holders,
    some_weight,
    weighted_mean,
)
from fedlab.aggregation.robust import (
    coordinate_median,
    krum,
    krum_scores,
    norm_bound,
    row_bound,
    trimmed_mean,
)
from fedlab.aggregation.selection import HeldOut, as_update, by_quality, judge, local_models, select
from fedlab.aggregation.server_step import RULES, moved, server_step, whole

__all__ = ["RULES", "Aggregate", "Delta", "HeldOut", "NoDeltaError", "as_update", "by_quality",
           "coordinate_median", "distil", "distilled", "ensemble", "given", "hierarchical",
           "joined_updates", "judge", "krum", "krum_scores", "local_models", "mean_of_holders",
           "mean_of_products", "moved", "norm_bound", "product_error", "row_bound", "select",
           "server_step", "some_weight", "trimmed_mean", "weighted_mean", "whole"]
