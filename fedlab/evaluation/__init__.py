"""The one ruler: candidates, ranks, metrics, baselines, newcomers, figures."""

from fedlab.evaluation.baselines import clicked, dot, ease, ials
from fedlab.evaluation.leakage import Avoidance, LeakCheck, leak_check, leaky
from fedlab.evaluation.metrics import (
    Error,
    Ranking,
    accuracy,
    at_k,
    auc,
    hit_rate,
    mae,
    mse,
    ndcg,
    rank,
    rmse,
)
from fedlab.evaluation.newcomers import NewUsers, item_means, new_users
from fedlab.evaluation.ranking import (
    Candidates,
    Unmet,
    candidates,
    cold_ranking,
    full_ranks,
    hide_items,
    popularity,
    ranking,
    seen,
    unmet,
)
from fedlab.evaluation.scoring import own_score, scorer

__all__ = [
    "Avoidance",
    "Candidates",
    "Error",
    "LeakCheck",
    "NewUsers",
    "Ranking",
    "Unmet",
    "accuracy",
    "at_k",
    "auc",
    "candidates",
    "clicked",
    "cold_ranking",
    "dot",
    "ease",
    "full_ranks",
    "hide_items",
    "hit_rate",
    "ials",
    "item_means",
    "leak_check",
    "leaky",
    "mae",
    "mse",
    "ndcg",
    "new_users",
    "own_score",
    "popularity",
    "rank",
    "ranking",
    "rmse",
    "scorer",
    "seen",
    "unmet",
]
