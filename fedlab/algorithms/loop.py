"""A federation is a stream of Rounds, and `federate` is its generator.

Notebooks, plots, widgets and tests read the same stream; what acts on it (measuring, stopping,
keeping the best) is a function from stream to stream or to a Round, see `fedlab.rounds`.

Letters: N clients, C in a cohort. Source: McMahan et al. 2017, algorithm 1. How the server follows
the aggregated delta is in `fedlab.optim`; local_epochs=1 and batch_size=0 make one local step of
it: FedSGD.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fedlab.aggregation import Aggregate, NoDeltaError, moved, server_step, weighted_mean
from fedlab.algorithms.gate import misfits
from fedlab.algorithms.participation import World
from fedlab.algorithms.scaffold import Control, check_correction
from fedlab.core import (
    Config,
    ParameterError,
    Round,
    Rows,
    Tree,
    Update,
    norms,
    one_thread,
    require,
    to,
)
from fedlab.data import Source
from fedlab.engine import check_engine, updates
from fedlab.models import Model


class ClientUpdate(Protocol):
    """What the clients of a cohort do.

    `fedlab.cohort.updates`, or another with the same arguments.
    """

    def __call__(self, model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
                 number: int, control: Control | None) -> Iterator[Update]:
        """Train a cohort and hand over its updates, chunk by chunk, in its order."""


def federate(model: Model, data: Source, config: Config | Callable[[], Config] | None = None, *,
             aggregate: Aggregate = weighted_mean, update: ClientUpdate = updates,
             world: World | None = None, start: Round | None = None,
             device: str | torch.device = "cpu") -> Iterator[Round]:
    """Yield one Round at a time, for as many rounds as the config says.

    config: a Config, or a function that gives one; it is asked once before each round, so a knob
    turned in between counts from the next round. aggregate, update: what the server and the clients
    do. world: who is there and how long it takes, without one everybody at once. start: a Round to
    go on from; the continued run equals an uninterrupted one. Same seed, same machine: same bits.
    Raises `ParameterError` on a bad setting.
    """
    def step(model: Model, config: Config, before: Round) -> Round:
        return one_round(model, data, config, before, aggregate, update, world)
    return steps(step, model, data, config, start, device)


def steps(step: Callable[[Model, Config, Round], Round], model: Model, data: Source,
          config: Config | Callable[[], Config] | None, start: Round | None,
          device: str | torch.device) -> Iterator[Round]:
    """Round after Round, each by `step(model, config, the Round before)`.

    The rest as `federate` has it.
    """
    check_device(device)
    require(model.task == data.task, "task", model.task,
            f"model and federation differ; the federation has {data.task}")
    ask = config if callable(config) else partial(replace, config or Config())
    model, now = replace(model, constants=to(model.constants, device)), ask()
    done = start or Round(0, now, model.init(now.seed))
    done = replace(done, params=to(done.params, device))
    while done.number < now.rounds:
        with one_thread():
            done = step(model, now, done)
        yield done
        now = ask()


def one_round(model: Model, data: Source, config: Config, before: Round,
              aggregate: Aggregate = weighted_mean, update: ClientUpdate = updates,
              world: World | None = None) -> Round:
    """Sample a cohort, train it from the parameters of the Round before, aggregate.

    Step the server.

    A client that drops out, is late or sends what is no delta is rejected with a reason. When no
    update is left, the round is skipped: nothing changes. Raises `NoDeltaError` when the whole
    cohort was there and cannot be aggregated.
    """
    began, world, number = time.perf_counter(), world or World(), before.number + 1
    check_engine(config, next(iter(before.params.values())).device)
    check_correction(config)
    params, there = world.welcome(model, data, before.params, number), world.attend(data, config,
                                                                                    number)
    control = Control.of(before.state, model, params) if config.correction == "scaffold" else None
    sent = Sent(model, params, dict(there.rejected), keep=control is not None)
    now = warmed(config, number)
    trained = update(model, data, params, there.cohort, now, number=number, control=control)
    done = replace(conclude(before, now, sent, trained, aggregate), config=config)
    if control is not None and not done.skipped:
        total = float(data.counts.sum()) if config.weighting == "examples" else float(len(data))
        done = replace(done, state={**done.state, "control": control.after(sent.kept, config,
                                                                           total)})
    return replace(done, clock=before.clock + there.seconds, seconds=time.perf_counter() - began)


def conclude(before: Round, config: Config, sent: "Sent", trained: Iterator[Update],
             aggregate: Aggregate) -> Round:
    """The Round after these updates: screened, aggregated, followed by the server."""
    params, state, skipped = sent.params, dict(before.state), ""
    try:
        delta = aggregate(sent.noted(trained), params)
    except NoDeltaError as reason:
        if any(len(update.cohort) for update in sent.kept) and not sent.rejected:
            raise
        skipped = str(reason)
    else:
        shared, moments = server_step(params, delta, state, config)
        params, state = params | shared | sent.private(), state | moments
    return Round(before.number + 1, config, params, **sent.columns(), skipped=skipped, state=state)


def warmed(config: Config, number: int) -> Config:
    """The settings of a round: until `warm_up` is over, a step of number / warm_up of its size.

    Where the server adapts to the size of deltas, shorter local steps would change nothing: there
    its own are shorter.
    """
    if number >= config.warm_up:
        return config
    name = "local_lr" if config.server_optimizer in ("sgd", "momentum") else "server_lr"
    return replace(config, **{name: getattr(config, name) * number / config.warm_up})


class Sent:
    """What leaves the clients of a round, noted in passing."""

    def __init__(self, model: Model, params: Tree, rejected: dict[int, str], *, keep: bool) -> None:
        """rejected: client -> why, of those that are not there to train. keep.

        All deltas, not private rows alone.
        """
        self.model, self.params, self.rejected, self.keep = model, params, rejected, keep
        self.kept: list[Update] = []
        self.norms: list[Tensor] = []
        self.bytes: list[tuple[int, int]] = []

    def noted(self, trained: Iterator[Update]) -> Iterator[Update]:
        """The updates as the server sees them: screened, without private rows."""
        for every in trained:
            shared, mine = self._apart(every)
            down, up = payload(self.model, shared)
            self.bytes.append((down, up if every.bytes_up is None else int(every.bytes_up.sum())))
            clients = len(every.cohort)
            length, doubt = norms(shared, clients), norms(mine, clients) + every.losses.cpu()
            rejected = misfits(every, self.params, (length + doubt).isfinite())
            if rejected:
                self.rejected |= rejected
                fine = ~torch.isin(every.cohort, torch.tensor(list(rejected)))
                every, length = every.only(fine), length[fine]  # noqa: PLW2901 - the same update, without bad clients
                shared, mine = self._apart(every)
            self.norms.append(length)
            self.kept.append(every if self.keep else replace(every, deltas=mine))
            if len(every.cohort):
                yield replace(every, deltas=shared)

    def _apart(self, update: Update) -> tuple[dict[str, Rows], dict[str, Rows]]:
        """(deltas that are sent, deltas that stay)."""
        private = self.model.private
        return ({name: d for name, d in update.deltas.items() if name not in private},
                {name: d for name, d in update.deltas.items() if name in private})

    def private(self) -> Tree:
        """Everybody's private rows after what their clients learned."""
        return {name: moved(self.params[name], Rows.joined([u.deltas[name] for u in self.kept]),
                            1.0) for name in self.model.private if self.kept}

    def columns(self) -> dict[str, Any]:
        """What the Round says of the clients."""
        down, up = (sum(part) for part in zip((0, 0), *self.bytes, strict=True))
        none = torch.empty(0)
        return {"cohort": torch.cat([none.long(), *(u.cohort for u in self.kept)]),
                "bytes_down": down, "bytes_up": up,
                "losses": torch.cat([none, *(u.losses.cpu() for u in self.kept)]),
                "norms": torch.cat([none, *self.norms]), "rejected": self.rejected}


def payload(model: Model, shared: dict[str, Rows]) -> tuple[int, int]:
    """(bytes down, bytes up) of a cohort.

    4 for each float, and up 4 more for each row number of a table.
    """
    floats = sum(4 * delta.values.numel() for delta in shared.values())
    tables = {kind: len(shared[name].ids) for name, kind in model.rows.items() if name in shared
              and kind != "one"}
    return floats, floats + 4 * sum(tables.values())


def check_device(device: str | torch.device) -> None:
    """Raise `ParameterError` for a device that this machine or this torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(
            f"device={str(device)!r}: cannot be used here ({reason}); choose 'cpu'") from error
