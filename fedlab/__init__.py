"""Federated recommendation, small enough to read in one sitting. This list is the whole public surface."""

from fedlab.accounting import Release, epsilon, noise_for
from fedlab.aggregation import given, hierarchical, mean_of_holders, weighted_mean
from fedlab.asynchronous import Asynchronous, federate_async
from fedlab.compress import Compressed
from fedlab.core import Config, ParameterError
from fedlab.data import Ratings, Split, leave_one_out, load, read, split_by_time, standardise
from fedlab.ensemble import distil, distilled, ensemble
from fedlab.evaluation import Candidates, candidates, full_ranks, popularity, ranking
from fedlab.features import content, genre_profile, item_features, linear, taste, user_features
from fedlab.federation import Federation, by_activity, by_genre, equal, one_per_user
from fedlab.implicit import Implicit
from fedlab.leaky import leaky
from fedlab.mechanisms import SecureSum
from fedlab.meta import Meta
from fedlab.models import Model, interaction, matrix_factorisation, perceptron
from fedlab.modules import from_module
from fedlab.personal import alone, alone_ranks, fine_tuned, newcomers
from fedlab.poison import Poisoned
from fedlab.privacy import Private, federate_privately
from fedlab.readers import DataError
from fedlab.robust import coordinate_median, krum, norm_bound, row_bound, trimmed_mean
from fedlab.rounds import Round, best_round, measured, stop_early
from fedlab.scoring import scorer
from fedlab.selection import HeldOut, as_update, by_quality, judge, select
from fedlab.server import federate
from fedlab.sources import Columns, Stored, synthesise
from fedlab.tasks import Curves, NewUsers, Tasks, new_users
from fedlab.world import Membership, World

__all__ = [
    "Asynchronous", "Candidates", "Columns", "Compressed", "Config", "Curves", "DataError", "Federation", "HeldOut",
    "Implicit", "Membership", "Meta", "Model", "NewUsers", "ParameterError", "Poisoned", "Private", "Ratings",
    "Release", "Round", "SecureSum", "Split", "Stored", "Tasks", "World", "alone", "alone_ranks", "as_update",
    "best_round", "by_activity", "by_genre", "by_quality", "candidates", "content", "coordinate_median", "distil",
    "distilled", "ensemble", "epsilon", "equal", "federate", "federate_async", "federate_privately", "fine_tuned",
    "from_module", "full_ranks", "genre_profile", "given", "hierarchical", "interaction", "item_features", "judge",
    "krum", "leaky", "leave_one_out", "linear", "load", "matrix_factorisation", "mean_of_holders", "measured",
    "new_users", "newcomers", "noise_for", "norm_bound", "one_per_user", "perceptron", "popularity", "ranking", "read",
    "row_bound", "scorer", "select", "split_by_time", "standardise", "stop_early", "synthesise", "taste",
    "trimmed_mean", "user_features", "weighted_mean",
]
