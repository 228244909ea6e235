"""Federated recommendation, small enough to read in one sitting.

This list is the whole public surface.
"""

from fedlab.aggregation import (
    HeldOut,
    as_update,
    by_quality,
    coordinate_median,
    distil,
    distilled,
    ensemble,
    given,
    hierarchical,
    judge,
    krum,
    mean_of_holders,
    norm_bound,
    row_bound,
    select,
    trimmed_mean,
    weighted_mean,
)
from fedlab.algorithms import (
    Asynchronous,
    Implicit,
    Membership,
    Meta,
    Private,
    World,
    alone,
    alone_ranks,
    federate,
    federate_async,
    federate_privately,
    fine_tuned,
    newcomers,
)
from fedlab.attacks import Poisoned
from fedlab.communication import ErrorFeedback
from fedlab.core import Config, ParameterError, Round, best_round, measured, stop_early
from fedlab.data import (
    Columns,
    Curves,
    DataError,
    Episodes,
    Federation,
    Ratings,
    Split,
    Stored,
    by_activity,
    by_genre,
    equal,
    leave_one_out,
    load,
    one_per_user,
    read,
    split_by_time,
    standardise,
    synthesise,
)
from fedlab.evaluation import (
    Candidates,
    NewUsers,
    candidates,
    full_ranks,
    leaky,
    new_users,
    popularity,
    ranking,
    scorer,
)
from fedlab.models import (
    Model,
    content,
    from_module,
    genre_profile,
    interaction,
    item_features,
    linear,
    matrix_factorisation,
    perceptron,
    user_factor_model,
    user_features,
)
from fedlab.privacy import Release, SecureSum, epsilon, noise_for

__all__ = ["Asynchronous", "Candidates", "Columns", "Config", "Curves", "DataError", "Episodes",
           "ErrorFeedback", "Federation", "HeldOut", "Implicit", "Membership", "Meta", "Model",
           "NewUsers", "ParameterError", "Poisoned", "Private", "Ratings", "Release", "Round",
           "SecureSum", "Split", "Stored", "World", "alone", "alone_ranks", "as_update",
           "best_round", "by_activity", "by_genre", "by_quality", "candidates", "content",
           "coordinate_median", "distil", "distilled", "ensemble", "epsilon", "equal", "federate",
           "federate_async", "federate_privately", "fine_tuned", "from_module", "full_ranks",
           "genre_profile", "given", "hierarchical", "interaction", "item_features", "judge",
           "krum", "leaky", "leave_one_out", "linear", "load", "matrix_factorisation",
           "mean_of_holders", "measured", "new_users", "newcomers", "noise_for", "norm_bound",
           "one_per_user", "perceptron", "popularity", "ranking", "read", "row_bound", "scorer",
           "select", "split_by_time", "standardise", "stop_early", "synthesise", "trimmed_mean",
           "user_factor_model", "user_features", "weighted_mean"]
