"""Asynchronous updates on a simulated clock: nobody waits for all.

`cohort` clients train at any time; when one has sent its update, another starts from the parameters
as they are then. An update that started s steps of the server ago has staleness s. Clients that
started between two steps had the same parameters, so they train together, stacked; the clock
decides when each arrives.

Letters: K updates in a buffer, N clients, s staleness.

Sources: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation", algorithm
1 (FedBuff); Xie et al. 2019, "Asynchronous federated optimization", algorithm 1 and section 5.2
(FedAsync, staleness weights).
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.algorithms.participation import Participation, longest_first
from fedlab.core import (
    Plan,
    RoundContext,
    Rows,
    Schedule,
    Sent,
    Tree,
    Update,
    knob,
    register,
    require,
    stored,
    stream,
)

GROUP = "asynchronous"
Arrival = tuple[float, int, int, int]  # simulated seconds, start, client, server step at the start


@stored
@dataclass(frozen=True)
class InFlight:
    """Who trains at the moment.

    begun: how many clients started so far. under_way: a heap of Arrivals. trained: step of the
    server -> what the clients that started in it will send. started: for FedAsync, step -> the
    parameters that they started from.
    """

    begun: int = 0
    under_way: tuple[Arrival, ...] = ()
    trained: Mapping[int, tuple[Sent, ...]] = field(default_factory=dict)
    started: Mapping[int, Tree] = field(default_factory=dict)


@register
class Buffered(Schedule):
    """FedBuff and FedAsync; the metric `staleness` is the mean staleness of the updates in a step.

    FedAsync's mixing rate is `server_lr`, at most 1.
    """

    refuses = ("members", "poisson", "own sampler")
    method: str = knob(
        "fedbuff",
        0,
        0,
        "",
        "step after a buffer of deltas, or mix in each model",
        choices=("fedbuff", "fedasync"),
        live=False,
        group=GROUP,
    )
    buffer: int = knob(
        10,
        1,
        1_000_000,
        "updates",
        "FedBuff: how many make a step of the server (K)",
        log=True,
        usual=(1, 100),
        group=GROUP,
    )
    staleness: str = knob(
        "polynomial",
        0,
        0,
        "",
        "how the weight of an update falls with its staleness",
        choices=("constant", "polynomial", "hinge"),
        group=GROUP,
    )
    staleness_a: float = knob(
        0.5, 0.0, 100.0, "", "exponent of polynomial, slope of hinge", usual=(0.0, 2.0), group=GROUP
    )
    staleness_b: float = knob(
        4.0,
        0.0,
        1e6,
        "steps",
        "hinge: staleness that costs nothing",
        usual=(0.0, 20.0),
        group=GROUP,
    )

    def adds(self) -> dict[str, Any]:
        """The fact that updates may belong to an earlier step."""
        return {"stale": True}

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The numbers that the staleness curve does not read, and for FedAsync the buffer."""
        unread = {"constant": ("staleness_a", "staleness_b"), "polynomial": ("staleness_b",)}
        alone = ("buffer",) if self.method == "fedasync" else ()
        return unread.get(self.staleness, ()) + alone

    def weight(self, staleness: Tensor) -> Tensor:
        """The factor of an update: 1; (1 + s)^-a; or 1 up to b and 1 / (a (s - b) + 1) beyond.

        >>> import torch
        >>> Buffered().weight(torch.tensor([0.0, 3.0]))
        tensor([1.0000, 0.5000])
        """
        if self.staleness == "constant":
            return torch.ones_like(staleness)
        if self.staleness == "polynomial":
            return (1 + staleness) ** -self.staleness_a
        return 1 / (self.staleness_a * (staleness - self.staleness_b).clamp(min=0) + 1)

    def plan(self, context: RoundContext, who: Participation) -> Plan:
        """Let clients start and arrive until the server has enough updates for a step."""
        self._check(context, who)
        memory = context.memory(self)
        flight, arrived, rejected, clock = self._wait(
            context, who, memory.get("flight", InFlight())
        )
        memory["flight"], now = flight, context.before.number
        fresh = [client for _, _, client, step in [*flight.under_way, *arrived] if step == now]
        if arrived:
            stale = [now - step for *_, step in arrived]
            context.metrics["staleness"] = sum(stale) / len(stale)
        return Plan(
            longest_first(context.data, torch.tensor(fresh, dtype=torch.int64)),
            {client: step for _, _, client, step in arrived},
            rejected,
            clock,
        )

    def land(self, sent: Iterator[Sent], context: RoundContext) -> Iterator[Sent]:
        """Yield the updates that arrived, oldest first, as they were sent."""
        memory, now, invited = context.memory(self), context.before.number, context.plan.invited
        flight: InFlight = memory["flight"]
        under_way = {step for *_, step in flight.under_way}
        trained, started = dict(flight.trained) | {now: tuple(sent)}, dict(flight.started)
        if self.method == "fedasync":
            started[now] = {name: context.params[name] for name in context.asked}
            context.notes["started"] = started
        memory["flight"] = replace(
            flight,
            trained={step: parts for step, parts in trained.items() if step in under_way},
            started={step: params for step, params in started.items() if step in under_way},
        )
        for step in sorted(set(invited.values())):
            here = torch.tensor([client for client, start in invited.items() if start == step])
            for each in trained[step]:
                chosen = torch.isin(each.update.cohort, here)
                if chosen.any():
                    yield each.only(chosen)

    def received(self, update: Update, context: RoundContext) -> Update:
        """The deltas times the weight of their staleness.

        For FedAsync they are first taken against the current parameters: the server has moved on.
        """
        step = context.plan.invited[int(update.cohort[0])]  # a chunk started in one step
        factor = float(self.weight(torch.tensor(float(context.before.number - step))))
        deltas = {}
        for name, rows in update.deltas.items():
            values = rows.values
            if self.method == "fedasync":
                then, now = context.notes["started"][step][name], context.params[name]
                values = values + (then.index_select(0, rows.ids) - now.index_select(0, rows.ids))
            deltas[name] = Rows(values * factor, rows.ids, rows.client)
        return replace(update, deltas=deltas)

    def _wait(
        self, context: RoundContext, who: Participation, flight: InFlight
    ) -> tuple[InFlight, list[Arrival], dict[int, str], float]:
        """Run the clock up to a step: (who still trains, who arrived, whose update is lost, time).

        Lost updates are given as client -> the reason.
        """
        under_way, begun, clock = list(flight.under_way), flight.begun, context.before.clock
        arrived: list[Arrival] = []
        rejected: dict[int, str] = {}
        clients, seed = len(context.data), context.seed
        busy = {client for _, _, client, _ in under_way}
        needed = 1 if self.method == "fedasync" else self.buffer
        while len(arrived) < needed:
            while len(under_way) < who.cohort and len(busy) < clients:
                client = idle(clients, busy, seed, begun)
                took = float(who.seconds(context, torch.tensor([client]), f"start {begun}"))
                heapq.heappush(under_way, (clock + took, begun, client, context.before.number))
                busy.add(client)  # until the next step, so that it trains once in this one
                begun += 1
            if not under_way:
                break
            clock, start, client, step = heapq.heappop(under_way)
            luck = float(torch.rand((), generator=stream(seed, "drop out", start)))
            if luck < who.drop_out:
                rejected[client] = "dropped out"
            else:
                arrived.append((clock, start, client, step))
        flight = replace(flight, begun=begun, under_way=tuple(under_way))
        return flight, arrived, rejected, clock

    def _check(self, context: RoundContext, who: Participation) -> None:
        """Raise `ParameterError` for settings that have no meaning here."""
        clients = len(context.data)
        for name, value in (("cohort", who.cohort), ("buffer", self.buffer)):
            idle_here = name == "buffer" and self.method == "fedasync"
            require(
                value <= clients or idle_here, name, value, f"the federation has {clients} clients"
            )
        require(
            who.pace + who.delay > 0,
            "pace",
            who.pace,
            "nobody would ever be stale; choose a pace or a delay above 0",
        )
        mixing = self.method == "fedbuff" or context.settings.server_lr <= 1
        require(
            mixing,
            "server_lr",
            context.settings.server_lr,
            "FedAsync mixes models; choose 1 or less",
        )


def idle(count: int, busy: set[int], seed: int, begun: int) -> int:
    """A client of `count` that is not busy, all equally likely."""
    generator = stream(seed, "start", begun)
    while True:
        client = int(torch.randint(count, (), generator=generator))
        if client not in busy:
            return client
