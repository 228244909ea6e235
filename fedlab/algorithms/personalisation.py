"""Each client by itself: a client's own model, and the baseline in which nobody talks to a server.

Letters: N clients, C in a group, R rows held by a group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedlab.aggregation import joined_updates
from fedlab.algorithms.meta import Meta
from fedlab.core import Config, Rows, Score, Tree, Update, one_thread
from fedlab.data import Federation
from fedlab.engine import updates
from fedlab.evaluation import Candidates, pair_scorer
from fedlab.models import Model


def own_score(model: Model, params: Tree, deltas: dict[str, Rows], cohort: Tensor,
              owner: Tensor) -> Score:
    """Predictions of each user's own client: server rows plus what that client learned.

    deltas: of `cohort` (C,), as `client.train` gives them. owner (U,): client of each user. The
    function returned is for users whose client is in the cohort.
    """
    position = torch.full((int(owner.max()) + 1,), -1)
    position[cohort] = torch.arange(len(cohort))
    keys = {name: d.client * len(params[name]) + d.ids for name, d in deltas.items()}   # sorted

    def look_up(name: str, rows: Tensor, client: Tensor) -> Tensor:
        key = position[client] * len(params[name]) + rows
        if not len(keys[name]):                              # nobody learned anything
            return params[name][rows]
        at = torch.searchsorted(keys[name], key).clamp(max=len(keys[name]) - 1)
        learned = deltas[name].values[at]
        held = (keys[name][at] == key).view(key.shape + (1,) * (learned.dim() - key.dim()))
        return params[name][rows] + learned.where(held, 0.0)
    return pair_scorer(model, look_up, owner, each=True)


def fine_tuned(model: Model, data: Federation, params: Tree, config: Config,
               number: int = 1) -> Score:
    """Predictions of each user's own client after one more local training from `params`.

    Which it keeps to itself.

    number: the round that it is, for the draws.
    """
    order = data.counts.argsort(descending=True, stable=True)
    with one_thread():
        sent = joined_updates(updates(model, data, params, order, config, number=number))
    return own_score(model, params, sent.deltas, order, data.owner)


def newcomers(meta: Meta, model: Model, params: Tree, given: Tree, config: Config, users: int,
              steps: int | None = None) -> Score:
    """Predictions of new users 0..users - 1, each after it adapted to its own ratings.

    As `Meta.adapt` has it.
    """
    learned, everyone = meta.adapt(model, params, given, config, steps), torch.arange(users)
    return own_score(model, params, learned, everyone, everyone)


def alone(model: Model, data: Federation, config: Config) -> Iterator[tuple[Tensor, Score]]:
    """Train every client for `local_epochs` on its own data alone.

    As many at a time as the memory budget holds.

    Yields (users (n,), their clients' scores). The same start, local steps and kind of examples as
    a first round.
    """
    params = model.init(config.seed)
    order = data.counts.argsort(descending=True, stable=True)
    trained = updates(model, data, params, order, config, purpose="alone ")
    while (update := _next(trained)) is not None:
        users = torch.isin(data.owner, update.cohort).nonzero()[:, 0]
        yield users, own_score(model, params, update.deltas, update.cohort, data.owner)


def _next(trained: Iterator[Update]) -> Update | None:
    with one_thread():  # not while the caller works on what was yielded
        return next(trained, None)


def alone_ranks(model: Model, data: Federation, config: Config, against: Candidates) -> Tensor:
    """(U,) rank of each user's held-out item under its own client's model.

    In the order of `against`.
    """
    ranks = torch.zeros(len(against.users), dtype=torch.int64)
    for users, score in alone(model, data, config):
        here = torch.isin(against.users, users)
        ranks[here] = Candidates(against.users[here], against.positives[here],
                                 against.negatives[here]).ranks(score)
    return ranks
