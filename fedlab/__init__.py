"""Federated recommendation, small enough to read in one sitting.

This list is the short road; every folder has more. Read `fedlab/fedavg.py` first.
"""

from fedlab.aggregation import (
    BestModels,
    ByQuality,
    CoordinateMedian,
    Distilled,
    HeldOut,
    Hierarchical,
    Krum,
    MeanOfHolders,
    MeanOfProducts,
    NormBound,
    OwnWeights,
    RowBound,
    TrimmedMean,
    WeightedMean,
    as_update,
    distil,
    ensemble,
    judge,
)
from fedlab.algorithms import (
    SGD,
    Buffered,
    Implicit,
    Membership,
    Meta,
    Participation,
    Scaffold,
    Synchronous,
    alone,
    alone_ranks,
    federate,
    fine_tuned,
    newcomers,
)
from fedlab.attacks import Poison
from fedlab.communication import ErrorFeedback
from fedlab.core import (
    Aggregation,
    Local,
    ParameterError,
    Round,
    Schedule,
    Settings,
    Stage,
    best_round,
    knob,
    measured,
    register,
    stop_early,
)
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
from fedlab.privacy import (
    DPSGD,
    Clip,
    GaussianNoise,
    LocalNoise,
    Release,
    SecureSum,
    epsilon,
    noise_for,
)

__all__ = ["DPSGD", "SGD", "Aggregation", "BestModels", "Buffered", "ByQuality", "Candidates", "Clip", "Columns", "CoordinateMedian", "Curves", "DataError", "Distilled", "Episodes", "ErrorFeedback", "Federation", "GaussianNoise", "HeldOut", "Hierarchical", "Implicit", "Krum", "Local", "LocalNoise", "MeanOfHolders", "MeanOfProducts", "Membership", "Meta", "Model", "NewUsers", "NormBound", "OwnWeights", "ParameterError", "Participation", "Poison", "Ratings", "Release", "Round", "RowBound", "Scaffold", "Schedule", "SecureSum", "Settings", "Split", "Stage", "Stored", "Synchronous", "TrimmedMean", "WeightedMean", "alone", "alone_ranks", "as_update", "best_round", "by_activity", "by_genre", "candidates", "content", "distil", "ensemble", "epsilon", "equal", "federate", "fine_tuned", "from_module", "full_ranks", "genre_profile", "interaction", "item_features", "judge", "knob", "leaky", "leave_one_out", "linear", "load", "matrix_factorisation", "measured", "new_users", "newcomers", "noise_for", "one_per_user", "perceptron", "popularity", "ranking", "read", "register", "scorer", "split_by_time", "standardise", "stop_early", "synthesise", "user_factor_model", "user_features"]
