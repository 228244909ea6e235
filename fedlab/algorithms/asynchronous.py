"""Asynchronous updates on a simulated clock.

Clients start when there is room, and the server never waits for all.

`cohort` clients train at any time; when one has sent its update, another starts from the parameters
as they are then. The server steps after every `buffer` updates (FedBuff) or after each (FedAsync).
An update that started s steps ago has staleness s. Clients that started between two steps had the
same parameters, so they train together, stacked; the clock decides when each arrives.

Letters: K updates in a buffer. Sources: Nguyen et al. 2022, "Federated learning with buffered
asynchronous aggregation", algorithm 1 (FedBuff); Xie et al. 2019, "Asynchronous federated
optimization", algorithm 1 and section 5.2 (FedAsync, staleness weights).
"""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedlab.aggregation import Aggregate, joined_updates, weighted_mean
from fedlab.algorithms.loop import Sent, conclude, steps
from fedlab.algorithms.participation import World, longest_first
from fedlab.core import (
    Config,
    ParameterError,
    Round,
    Rows,
    Tree,
    Update,
    knob,
    require,
    stream,
    strict,
)
from fedlab.data import Source
from fedlab.engine import check_engine, updates
from fedlab.models import Model


@strict
@dataclass(frozen=True, kw_only=True)
class Asynchronous(Config):
    """Config, and when the server steps; `cohort` is how many clients train at any time."""

    method: str = knob("fedbuff", 0, 0, "",
                       "step after a buffer of deltas, or mix in each client's model",
                       choices=("fedbuff", "fedasync"), live=False, group="asynchronous")
    buffer: int = knob(10, 1, 1_000_000, "updates",
                       "FedBuff: how many make a step of the server (K)", log=True, usual=(1, 100),
                       group="asynchronous")
    staleness: str = knob("polynomial", 0, 0, "",
                          "how the weight of an update falls with its staleness",
                          choices=("constant", "polynomial", "hinge"), group="asynchronous")
    staleness_a: float = knob(0.5, 0.0, 100.0, "", "exponent of polynomial, slope of hinge",
                              usual=(0.0, 2.0), group="asynchronous")
    staleness_b: float = knob(4.0, 0.0, 1e6, "steps", "hinge: staleness that costs nothing",
                              usual=(0.0, 20.0), group="asynchronous")


@dataclass(frozen=True)
class InFlight:
    """Who trains at the moment.

    begun: clients started so far. under_way: a heap of (arrival in simulated seconds, start,
    client, server step at the start). trained: server step -> what the clients of that step will
    send.
    """

    begun: int = 0
    under_way: tuple[tuple[float, int, int, int], ...] = ()
    trained: Mapping[int, Update] = field(default_factory=dict)


def federate_async(model: Model, data: Source, config: Asynchronous | Callable[[], Asynchronous], *,
                   world: World, aggregate: Aggregate = weighted_mean, start: Round | None = None,
                   device: str | torch.device = "cpu") -> Iterator[Round]:
    """Yield a Round for each step of the server, as `federate` does.

    `clock` says when, in simulated seconds.

    The metric `staleness` is the mean of the updates in the step. FedAsync's mixing rate is
    `server_lr`, at most 1.
    """
    require(world.members is None, "members", "...",
            "use drop_out here, or a synchronous federation")
    require(world.pace + world.delay > 0, "pace", world.pace,
            "nobody would ever be stale; give a pace or a delay")

    def step(model: Model, config: Config, before: Round) -> Round:
        if not isinstance(config, Asynchronous):
            raise ParameterError(f"config={type(config).__name__}: asynchronous runs need settings of `Asynchronous`")
        return one_step(model, data, config, before, world, aggregate)
    return steps(step, model, data, config, start, device)


def staleness_weight(config: Asynchronous, staleness: Tensor) -> Tensor:
    """The factor of an update: 1; (1 + s)^-a; or 1 up to b and 1 / (a (s - b) + 1) beyond.

    Xie et al. section 5.2.
    """
    if config.staleness == "constant":
        return torch.ones_like(staleness)
    if config.staleness == "polynomial":
        return (1 + staleness) ** -config.staleness_a
    return 1 / (config.staleness_a * (staleness - config.staleness_b).clamp(min=0) + 1)


def one_step(model: Model, data: Source, config: Asynchronous, before: Round, world: World,
             aggregate: Aggregate = weighted_mean) -> Round:
    """Let clients start and arrive until the server has what a step takes.

    Then train, aggregate, step.
    """
    began, number, params = time.perf_counter(), before.number, before.params
    check(data, config)
    check_engine(config, next(iter(params.values())).device)
    flight, arrived, rejected, clock = wait(data, config, world,
                                            before.state.get("flight") or InFlight(), before)
    fresh = [client for _, _, client, step in [*flight.under_way, *arrived] if step == number]
    cohort = longest_first(data, torch.tensor(fresh, dtype=torch.int64))
    trained = dict(flight.trained)
    if len(cohort):
        update = joined_updates(updates(model, data, params, cohort, config, number=number + 1))
        trained[number] = absolute(config, update, model, params)
    sent = Sent(model, params, rejected, keep=False)
    done = conclude(before, config, sent, arrivals(arrived, trained, model, params, config, number),
                    aggregate)
    left = {step for *_, step in flight.under_way}
    flight = replace(flight, trained={step: update for step,
                                      update in trained.items() if step in left})
    stale = torch.tensor([float(number - step) for *_, step in arrived])
    return replace(done, clock=clock, seconds=time.perf_counter() - began, state={**done.state,
                                                                                  "flight": flight},
                   metrics={"staleness": float(stale.mean())} if len(stale) else {})


Arrival = tuple[float, int, int, int]        # as in `InFlight.under_way`


def wait(data: Source, config: Asynchronous, world: World, flight: InFlight,
         before: Round) -> tuple[InFlight, list[Arrival], dict[int, str], float]:
    """(who still trains, whose updates arrived, client -> why its update never will.

    The time) of one step.
    """
    under_way, begun, clock = list(flight.under_way), flight.begun, before.clock
    arrived: list[Arrival] = []
    rejected: dict[int, str] = {}
    busy = {client for _, _, client, _ in under_way}
    needed = 1 if config.method == "fedasync" else config.buffer
    while len(arrived) < needed:
        while len(under_way) < config.cohort and len(busy) < len(data):
            client = idle(len(data), busy, config.seed, begun)
            one = torch.tensor([client])
            took = float(world.seconds(data, one, config, f"start {begun}"))
            heapq.heappush(under_way, (clock + took, begun, client, before.number))
            busy.add(client)  # until the next step, so that it trains once in this one
            begun += 1
        if not under_way:
            break
        clock, start, client, step = heapq.heappop(under_way)
        luck = float(torch.rand((), generator=stream(config.seed, "drop out", start)))
        if luck < config.drop_out:
            rejected[client] = "dropped out"
        else:
            arrived.append((clock, start, client, step))
    return replace(flight, begun=begun, under_way=tuple(under_way)), arrived, rejected, clock


def idle(count: int, busy: set[int], seed: int, begun: int) -> int:
    """A client that is not busy, all equally likely."""
    generator = stream(seed, "start", begun)
    while True:
        client = int(torch.randint(count, (), generator=generator))
        if client not in busy:
            return client


def absolute(config: Asynchronous, update: Update, model: Model, params: Tree) -> Update:
    """For FedAsync the clients' rows themselves instead of their deltas.

    As parameters move on until they arrive.
    """
    if config.method == "fedbuff":
        return update
    rows = {name: replace(d, values=d.values + params[name].index_select(0, d.ids))
            for name, d in update.deltas.items() if name not in model.private}
    return replace(update, deltas=update.deltas | rows)


def arrivals(arrived: list[Arrival], trained: Mapping[int, Update], model: Model, params: Tree,
             config: Asynchronous, number: int) -> Iterator[Update]:
    """The updates that arrived, oldest first.

    Deltas to the parameters of now, times the weight of their staleness.
    """
    for step in sorted({step for *_, step in arrived}):
        clients = torch.tensor([client for _, _, client, at in arrived if at == step])
        mine = trained[step].only(torch.isin(trained[step].cohort, clients))
        factor = staleness_weight(config, torch.full_like(mine.weights, number - step))
        deltas = dict(mine.deltas)
        for name in deltas.keys() - model.private:
            rows = deltas[name]
            if config.method == "fedasync":
                rows = Rows(rows.values - params[name].index_select(0, rows.ids), rows.ids,
                            rows.client)
            deltas[name] = rows.scaled(factor)
        yield replace(mine, deltas=deltas)


def check(data: Source, config: Asynchronous) -> None:
    """Raise `ParameterError` for settings without meaning here."""
    require(config.cohort <= len(data), "cohort", config.cohort,
            f"the federation has {len(data)} clients")
    require(config.deadline == 0, "deadline", config.deadline,
            "nobody is waited for; set deadline=0")
    require(config.correction == "none", "correction", config.correction,
            "control variates need rounds; set correction='none'")
    least = 1 if config.method == "fedasync" else config.buffer
    require(least <= len(data), "buffer", config.buffer, f"the federation has {len(data)} clients")
    mixing = config.method == "fedbuff" or config.server_lr <= 1
    require(mixing, "server_lr", config.server_lr, "FedAsync mixes models; choose 1 or less")
