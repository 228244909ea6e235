"""How good a model is: candidates, ranks, metrics, baselines, newcomers, figures."""

from fedlab.evaluation.baselines import clicked, dot, ease, ials
from fedlab.evaluation.leakage import leaky
from fedlab.evaluation.metrics import accuracy, at_k, auc, hit_rate, mae, mse, ndcg, rank, rmse
from fedlab.evaluation.newcomers import NewUsers, item_means, new_users
from fedlab.evaluation.ranking import (
    Candidates,
    candidates,
    cold_ranking,
    full_ranks,
    hide_items,
    popularity,
    ranking,
    seen,
)
from fedlab.evaluation.scoring import pair_scorer, scorer

__all__ = ["Candidates", "NewUsers", "accuracy", "at_k", "auc", "candidates", "clicked",
           "cold_ranking", "dot", "ease", "full_ranks", "hide_items", "hit_rate", "ials",
           "item_means", "leaky", "mae", "mse", "ndcg", "new_users", "pair_scorer", "popularity",
           "rank", "ranking", "rmse", "scorer", "seen"]
