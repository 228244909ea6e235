"""Each client by itself: a client's own model, and the baseline in which nobody talks to a server.

Letters: N clients, C in a group, R rows held by a group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedlab.aggregation import joined_updates
from fedlab.algorithms.meta import Meta
from fedlab.algorithms.participation import longest_first
from fedlab.algorithms.scaffold import Scaffold
from fedlab.core import Score, Tree, Update, one_thread, require
from fedlab.data import Federation
from fedlab.engine import LocalSettings, updates
from fedlab.evaluation import Candidates, own_score
from fedlab.models import Model


def fine_tuned(
    model: Model,
    data: Federation,
    params: Tree,
    local: LocalSettings,
    *,
    seed: int = 0,
    number: int = 1,
) -> Score:
    """Predictions of each user's client after one more local training, which it keeps to itself.

    local: how it trains, from `params`. number: the number of the round, for the draws.
    """
    _check(local)
    order = longest_first(data, torch.arange(len(data)))
    with one_thread():
        sent = joined_updates(updates(model, data, params, order, local, seed=seed, number=number))
    return own_score(model, params, sent.deltas, order, data.owner)


def newcomers(
    meta: Meta, model: Model, params: Tree, given: Tree, users: int, steps: int | None = None
) -> Score:
    """Predictions of new users 0..users - 1, each after adapting to its own ratings."""
    learned, everyone = meta.adapt(model, params, given, steps), torch.arange(users)
    return own_score(model, params, learned, everyone, everyone)


def alone(
    model: Model, data: Federation, local: LocalSettings, *, seed: int = 0
) -> Iterator[tuple[Tensor, Score]]:
    """Train every client on its own data alone, as many at a time as the memory budget holds.

    Yields (users (n,), their clients' scores). Start, local steps and kind of examples are those of
    a first round.
    """
    _check(local)
    params, order = model.init(seed), longest_first(data, torch.arange(len(data)))
    trained = updates(model, data, params, order, local, seed=seed, purpose="alone ")
    while (update := _next(trained)) is not None:
        users = torch.isin(data.owner, update.cohort).nonzero()[:, 0]
        yield users, own_score(model, params, update.deltas, update.cohort, data.owner)


def _check(local: LocalSettings) -> None:
    """Raise `ParameterError` for a method that is nothing without a server."""
    require(
        not isinstance(local, Scaffold),
        "local",
        "scaffold",
        "a client that is alone, or tunes for itself, has no control variates; give SGD(...)",
    )


def _next(trained: Iterator[Update]) -> Update | None:
    with one_thread():  # not while the caller works on what was yielded
        return next(trained, None)


def alone_ranks(
    model: Model, data: Federation, local: LocalSettings, against: Candidates, *, seed: int = 0
) -> Tensor:
    """The rank (U,) of each user's held-out item under its own client's model.

    The users are in the order of `against`.
    """
    ranks = torch.zeros(len(against.users), dtype=torch.int64)
    for users, score in alone(model, data, local, seed=seed):
        here = torch.isin(against.users, users)
        ranks[here] = Candidates(
            against.users[here], against.positives[here], against.negatives[here]
        ).ranks(score)
    return ranks
