"""Federated recommendation, small enough to read in one sitting. This list is the whole public surface."""

from fedlab.aggregation import mean_of_holders, weighted_mean
from fedlab.core import Config, ParameterError
from fedlab.data import Ratings, Split, leave_one_out, load, read, split_by_time, standardise
from fedlab.evaluation import Candidates, candidates, full_ranks, popularity, ranking
from fedlab.federation import Federation, by_activity, by_genre, equal, one_per_user
from fedlab.models import Model, interaction, item_features, linear, matrix_factorisation, perceptron, user_features
from fedlab.modules import from_module
from fedlab.personal import alone, alone_ranks
from fedlab.readers import DataError
from fedlab.rounds import Round, best_round, measured, stop_early
from fedlab.scoring import scorer
from fedlab.server import federate
from fedlab.sources import Columns, Stored, synthesise

__all__ = [
    "Candidates", "Columns", "Config", "DataError", "Federation", "Model", "ParameterError", "Ratings", "Round",
    "Split", "Stored", "alone", "alone_ranks", "best_round", "by_activity", "by_genre", "candidates", "equal",
    "federate", "from_module", "full_ranks", "interaction", "item_features", "leave_one_out", "linear", "load",
    "matrix_factorisation", "mean_of_holders", "measured", "one_per_user", "perceptron", "popularity", "ranking",
    "read", "scorer", "split_by_time", "standardise", "stop_early", "synthesise", "user_features", "weighted_mean",
]
