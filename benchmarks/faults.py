"""Faulty clients on every road that an update can take: what crashes, what gets in, what is noted.

Tiny runs (20 users, 30 items, 3 rounds) in which three clients in ten send something else than they
should. A fault is put in where an update has left its client and has not entered the server. Each
run is looked at for a crash, a model that is not finite, a bad update that was taken, an honest one
that was refused, and books that do not say what happened: who, why, how many bytes.

A road is a way to combine parts: those that teach something, and every pair of stages. One fault
has the right form and is only long, -1000 times what an honest client sends. Where nothing is known
of lengths yet, the gate takes it, in the first round; it is counted on its own, and once more with
a bound.
"""

import argparse
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch
from common import entry, record
from torch import Tensor

from fedlab.aggregation import CoordinateMedian, Hierarchical, Krum, MeanOfHolders, NormBound
from fedlab.algorithms import Buffered, Implicit, Meta, Scaffold, Synchronous, federate, in_order
from fedlab.algorithms.gate import unreadable
from fedlab.communication import ErrorFeedback
from fedlab.core import (
    REGISTRY,
    ParameterError,
    Round,
    RoundContext,
    Rows,
    Schedule,
    Sent,
    Settings,
    knobs,
    unread,
    walk,
)
from fedlab.data import (
    Catalogue,
    Episodes,
    Federation,
    Interactions,
    leave_one_out,
    load,
    one_per_user,
)
from fedlab.models import Model, matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, LocalNoise, SecureSum

USERS, ITEMS, BAD = 20, 30, 6
# what a road does not read is left out
SMALL = {
    "rounds": 3,
    "cohort": 10,
    "local_lr": 0.1,
    "batch_size": 0,
    "negatives": 2,
    "noise": 0.5,
    "teaching_seed": 0,
    "delta": 0.01,
    "buffer": 5,
}
LONG = "-1000 times as long"
Fault = Callable[[Sent, RoundContext], Iterable[Sent]]


def changed(name: str, change: Callable[[Rows], Rows]) -> Fault:
    """A fault in the rows of one name, of what is sent or of what stays with the client."""

    def fault(sent: Sent, context: RoundContext) -> Iterator[Sent]:
        if name in sent.own:
            yield replace(sent, own=sent.own | {name: change(sent.own[name])})
        elif name in sent.update.deltas:
            deltas = sent.update.deltas | {name: change(sent.update.deltas[name])}
            yield replace(sent, update=replace(sent.update, deltas=deltas))

    return fault


def values(change: Callable[[Tensor], Tensor], name: str = "item") -> Fault:
    """A fault in the numbers."""
    return changed(name, lambda rows: replace(rows, values=change(rows.values)))


def ids(change: Callable[[Tensor], Tensor]) -> Fault:
    """A fault in the row numbers."""
    return changed("item", lambda rows: replace(rows, ids=change(rows.ids)))


def first(value: float) -> Callable[[Tensor], Tensor]:
    """Set the first number."""

    def change(every: Tensor) -> Tensor:
        every = every.clone()
        every.view(-1)[0] = value
        return every

    return change


def column(name: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """A fault in what is said of the client: its weight, loss, number or steps."""

    def fault(sent: Sent, context: RoundContext) -> Iterator[Sent]:
        said = {name: change(getattr(sent.update, name))}
        yield replace(sent, update=replace(sent.update, **said))

    return fault


def names(change: Callable[[dict[str, Rows]], dict[str, Rows]]) -> Fault:
    """A fault in which parameters are sent."""

    def fault(sent: Sent, context: RoundContext) -> Iterator[Sent]:
        yield replace(sent, update=replace(sent.update, deltas=change(sent.update.deltas)))

    return fault


def unlike(rows: Rows) -> Rows:
    """Rows of which one value is missing, which no constructor would make."""
    found = replace(rows)
    object.__setattr__(found, "values", rows.values[:-1])
    return found


def none(rows: Rows) -> Rows:
    """No rows at all."""
    return Rows(rows.values[:0], rows.ids[:0], rows.client[:0])


def stranger(sent: Sent, context: RoundContext) -> Iterator[Sent]:
    """In the name of a client that nobody invited."""
    others = sorted(set(range(USERS)) - context.plan.invited.keys())
    yield replace(sent, update=replace(sent.update, cohort=torch.tensor(others[:1])))


def times(count: int) -> Fault:
    """The same update again."""
    return lambda sent, context: [sent] * count


def foreign(sent: Sent, context: RoundContext) -> Iterator[Sent]:
    """Writes into the private row of another user."""
    if rows := sent.own.get("user"):
        other = replace(rows, ids=(rows.ids + 1) % USERS, values=rows.values + 5)
        yield replace(sent, own=sent.own | {"user": other})


FAULTS: dict[str, Fault] = {
    "NaN in a delta": values(first(float("nan"))),
    "infinity in a delta": values(first(float("inf"))),
    "all numbers 1e15": values(lambda v: torch.full_like(v, 1e15)),
    "all numbers 1e30": values(lambda v: torch.full_like(v, 1e30)),
    LONG: values(lambda v: -1000 * v),
    "NaN in a private row": values(first(float("nan")), "user"),
    "loss NaN": column("losses", lambda v: v * float("nan")),
    "loss 1e30": column("losses", lambda v: torch.full_like(v, 1e30)),
    "row number too large": ids(lambda v: v + 1000),
    "row number negative": ids(lambda v: v - 1000),
    "row numbers repeated": ids(lambda v: torch.full_like(v, int(v[0]))),
    "weight NaN": column("weights", lambda v: v * float("nan")),
    "weight infinite": column("weights", lambda v: v * float("inf")),
    "weight negative": column("weights", lambda v: -v),
    "weight a million times": column("weights", lambda v: v * 1e6),
    "weight 0": column("weights", lambda v: v * 0),
    "no rows": names(lambda d: {name: none(rows) for name, rows in d.items()}),
    "no names": names(lambda d: {}),
    "a name missing": names(lambda d: dict(list(d.items())[1:])),
    "a name nobody knows": names(lambda d: d | {"evil": d["item"]}),
    "rows twice as wide": values(lambda v: torch.cat([v, v], 1)),
    "rows without width": values(lambda v: v[:, 0]),
    "fewer values than row numbers": changed("item", unlike),
    "float64": values(lambda v: v.double()),
    "float16": values(lambda v: v.half()),
    "int64": values(lambda v: v.long()),
    "complex": values(lambda v: v.to(torch.complex64)),
    "row numbers as floats": ids(lambda v: v.float()),
    "sent twice": times(2),
    "sent fifty times": times(50),
    "nobody asked this client": stranger,
    "a client 9999": column("cohort", lambda v: torch.full_like(v, 9999)),
    "another user's private row": foreign,
    "none (control)": times(1),
}
AGAIN = ("sent twice", "sent fifty times")  # the first counts, the others do not
CONTROL = "none (control)"
CLIPPED = ("DP-FedAvg", "secure sum")  # there the clip is the bound, and what is within it is fine
PROTOCOLS = ("secure sum", "distributed gaussian")  # which tell their own bytes


@cache
def world(public: bool = False) -> tuple[Federation, Model]:
    """20 users with 6 of 30 items each, and a model; public: without private rows."""
    draw = torch.Generator().manual_seed(0)
    items = torch.cat([torch.randperm(ITEMS, generator=draw)[:6] for _ in range(USERS)])
    users = torch.arange(USERS).repeat_interleave(6)
    titles = tuple(f"Film {i}" for i in range(ITEMS))
    catalogue = Catalogue(
        tuple(map(str, range(USERS))), tuple(map(str, range(ITEMS))), {"titles": titles}
    )
    columns = {"values": torch.ones(len(users)), "times": torch.arange(len(users))}
    ratings = Interactions(users, items, catalogue, columns)
    model = matrix_factorisation(USERS, ITEMS, 4, private_users=not public)
    return Federation(ratings, one_per_user(ratings)), model


@dataclass(frozen=True)
class Road:
    """A way to combine parts, given how many clients there are.

    settings: beside the small ones. public: no private rows.
    """

    parts: Callable[[int], dict[str, Any]] = lambda clients: {}
    settings: tuple[tuple[str, Any], ...] = ()
    public: bool = False


ROADS: dict[str, Road] = {
    "FedAvg": Road(),
    "Adam, mean of holders": Road(
        lambda n: {"aggregate": MeanOfHolders()}, (("server_optimizer", "adam"),)
    ),
    "median": Road(lambda n: {"aggregate": CoordinateMedian()}),
    "Krum": Road(lambda n: {"aggregate": Krum()}),
    "norm bound": Road(lambda n: {"aggregate": NormBound()}),
    "hierarchical": Road(lambda n: {"aggregate": Hierarchical(torch.arange(n) % 3)}),
    "SCAFFOLD": Road(lambda n: {"local": Scaffold()}),
    "DP-FedAvg": Road(lambda n: {"uplink": [Clip(), GaussianNoise()]}),
    "secure sum": Road(lambda n: {"uplink": [Clip(), SecureSum()]}),
    "local noise": Road(lambda n: {"uplink": [Clip(), LocalNoise()]}),
    "4 bits": Road(lambda n: {"uplink": [ErrorFeedback()]}),
    "rank 1": Road(lambda n: {"uplink": [ErrorFeedback(codec="rank 1")]}),
    "FOMAML": Road(lambda n: {"local": Meta(adaptation="fomaml")}, public=True),
    "FedBuff": Road(lambda n: {"schedule": Buffered()}),
    "FedAsync": Road(lambda n: {"schedule": Buffered(method="fedasync")}, (("rounds", 9),)),
    "implicit ALS": Road(lambda n: {"local": Implicit()}),
}


@cache
def stage_roads() -> dict[str, Road]:
    """Every pair of registered stages that goes together, behind a clip where it needs one."""
    found = {}
    for pair in itertools.permutations(REGISTRY["stage"], 2):
        for names in (pair, ("clip", *pair)):
            if len(set(names)) < len(names):
                continue
            road = Road(
                lambda _, own=names: {"uplink": [REGISTRY["stage"][name]() for name in own]}
            )
            try:
                next(run(road, 0))
            except ParameterError:
                continue
            found[" + ".join(names)] = road
            break
    return found


def run(
    road: Road,
    seed: int,
    who: tuple[Federation, Model] | None = None,
    schedule: Callable[[Schedule], Schedule] | None = None,
    **more: Any,
) -> Iterator[Round]:
    """The Rounds of a road.

    who: by default the tiny world. schedule: from the usual one to the one in its place.
    """
    data, model = who or world(road.public)
    parts = road.parts(len(data))
    if schedule:
        parts["schedule"] = schedule(parts.get("schedule", Synchronous()))
    source = Episodes(data, (1, 2), 3) if isinstance(parts.get("local"), Meta) else data
    asked = SMALL | dict(road.settings) | {"seed": seed} | more
    every = in_order(**parts)
    left = unread(every, walk(every, {"negatives": True}), asked)
    settings = Settings(**{name: value for name, value in asked.items() if name not in left})
    return federate(model, source, settings, **parts)


class Delivery:
    """Puts a fault into what arrives from the bad clients, and notes what really came.

    came: round -> client -> 'honest', 'bad', or 'once' for an update of which the first counts.
    bytes: of each round.
    """

    def __init__(self, fault: str, seed: int) -> None:
        """fault: its name. seed: of who is bad."""
        draw = torch.Generator().manual_seed(1000 + seed)
        self.fault, self.bad = fault, set(torch.randperm(USERS, generator=draw)[:BAD].tolist())
        self.came: dict[int, dict[int, str]] = {}
        self.bytes: Counter[int] = Counter()

    def schedule(self, usual: Schedule) -> Schedule:
        """A schedule that delivers like the usual one, with faults."""
        delivery = self

        class Faulty(type(usual)):  # type: ignore[misc]
            """Delivers faults."""

            apart = usual.apart

            def land(self, sent: Iterator[Sent], context: RoundContext) -> Iterator[Sent]:
                for every in super().land(sent, context):
                    clients = torch.arange(len(every.update.cohort))
                    for place in clients:
                        yield from delivery.of(every.only(clients == place), context)

        return Faulty(**{name: getattr(usual, name) for name in knobs(type(usual))})

    def of(self, sent: Sent, context: RoundContext) -> Iterator[Sent]:
        """What arrives in place of an honest update."""
        client, now = int(sent.update.cohort), self.came.setdefault(context.number, {})
        bent = list(FAULTS[self.fault](sent, context)) if client in self.bad else []
        now[client] = "honest"
        if bent and self.fault != CONTROL:
            now[client] = "once" if self.fault in AGAIN else "bad"
            now.update((int(each.update.cohort), "bad") for each in bent if now[client] == "bad")
        for each in bent or [sent]:
            self.bytes[context.number] += size(each, context)
            yield each


def size(sent: Sent, context: RoundContext) -> int:
    """The bytes up of an update that can be read: 4 for each number and row number, or as told."""
    if unreadable(sent, context):
        return 0
    if sent.update.bytes_up is not None:
        return int(sent.update.bytes_up.sum())
    known = {n: rows for n, rows in sent.update.deltas.items() if n in context.asked}
    numbers = sum(rows.values.numel() for rows in known.values())
    tables = {context.asked[n][1]: len(rows.ids) for n, rows in known.items()}
    tables.pop("one", None)
    return 4 * (numbers + sum(tables.values()))


@cache
def usual_bound(name: str) -> float:
    """A bound that the owner of a road may set: twice what its honest clients send."""
    road = ROADS.get(name) or stage_roads()[name]
    return 2 * max(float(done.norms.max()) for done in run(road, 0))


def tried(task: tuple[str, str, int, bool]) -> Counter[str]:
    """One run: (road, fault, seed, whether lengths are bounded) -> what it came to."""
    name, fault, seed, bounded = task
    road = ROADS.get(name) or stage_roads()[name]
    delivery, found, done = Delivery(fault, seed), Counter(runs=1), list[Round]()
    try:
        more = {"longest": usual_bound(name)} if bounded else {}
        done.extend(run(road, seed, schedule=delivery.schedule, **more))
    except Exception as error:  # noqa: BLE001 - a crash is what is counted
        found["crashes"] += 1
        found[f"{name}, {fault}: {type(error).__name__}: {str(error)[:150]}"] += 1
    if done:
        every = [v if isinstance(v, Tensor) else v.values for v in done[-1].params.values()]
        fine = all(bool(value.isfinite().all()) for value in every)
        found["not finite"] += not fine
        found["above 1000"] += fine and max(float(value.abs().max()) for value in every) > 1000
    for each in done:
        look(each, delivery, found, told=any(protocol in name for protocol in PROTOCOLS))
    found["runs with a bad update"] += bool(found["bad"])
    if found["bad taken"] or found["honest refused"] or found["wrong books"]:
        found[
            f"{name}, {fault}: taken {found['bad taken']}, refused {found['honest refused']}, "
            f"books {found['wrong books']}"
        ] += 1
    return found


def look(done: Round, delivery: Delivery, found: Counter[str], *, told: bool) -> None:
    """Compare what a Round says with what came; told: its bytes are those of a protocol."""
    came = delivery.came.get(done.number, {})
    taken, refused = done.cohort.tolist(), done.rejected
    for client, what in came.items():
        found["bad"] += what == "bad"
        found["bad taken"] += what == "bad" and client in taken
        found["honest"] += what == "honest"
        found["honest refused"] += what == "honest" and client in refused
    right = {
        client: (client in taken and client in refused)
        if what == "once"
        else (client in taken) != (client in refused)
        for client, what in came.items()
    }
    numbers = (done.losses, done.norms)
    found["wrong books"] += not (
        all(right.values())
        and len(set(taken)) == len(taken)
        and set(taken) <= came.keys()
        and all(refused.values())
        and all(len(each) == len(taken) and bool(each.isfinite().all()) for each in numbers)
        and (told or done.bytes_up == delivery.bytes[done.number])
    )


PLAIN = (
    "runs",
    "runs with a bad update",
    "crashes",
    "not finite",
    "above 1000",
    "bad",
    "bad taken",
    "honest",
    "honest refused",
    "wrong books",
)


def matrix(
    roads: Sequence[str], faults: Sequence[str], seeds: Sequence[int], *, bounded: bool = False
) -> dict[str, Counter[str]]:
    """Fault -> what its runs came to, on all cores."""
    tasks = [(road, fault, seed, bounded) for road in roads for fault in faults for seed in seeds]
    found = {fault: Counter[str]() for fault in faults}
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for (_, fault, *_), one in zip(tasks, pool.map(tried, tasks, chunksize=32), strict=True):
            found[fault].update(one)
    return found


def everybody() -> tuple[int, int, str]:
    """All 671 MovieLens users, honest, on every road: updates that came, and those refused.

    Also what for. Secure sums are left out: of 671 clients one takes minutes.
    """
    train = leave_one_out(load()).train
    data = Federation(train, one_per_user(train))
    came, refused = 0, Counter[str]()
    for name, road in ROADS.items():
        if name == "secure sum":
            continue
        model = matrix_factorisation(
            train.user_count, train.item_count, 4, private_users=not road.public
        )
        for done in run(
            road, 0, (data, model), cohort=len(data), rounds=2, local_lr=1.0, delta=1e-3
        ):
            came += len(done.cohort) + len(done.rejected)
            refused.update(done.rejected.values())
    return came, sum(refused.values()), "; ".join(refused)


def total(found: dict[str, Counter[str]]) -> Counter[str]:
    """All faults together."""
    return sum(found.values(), Counter())


def main() -> None:
    """Run the matrix, print a line for each fault and record what all came to."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--quick", action="store_true")
    quick = words.parse_args().quick
    stages = list(stage_roads())
    form = [fault for fault in FAULTS if fault != LONG]
    found = matrix(list(ROADS), form, range(1 if quick else 50))
    pairs = matrix(stages[:: 8 if quick else 1], form, range(1 if quick else 5))
    free = matrix(list(ROADS), [LONG], range(1 if quick else 50))[LONG]
    unclipped = [name for name in ROADS if name not in CLIPPED]
    bound = matrix(unclipped, [LONG], range(1 if quick else 50), bounded=True)[LONG]
    whole = {fault: found[fault] + pairs[fault] for fault in form}
    whole |= {LONG: free, f"{LONG}, bounded": bound}
    print(f"{'fault':34}", *(f"{name:>10.10}" for name in PLAIN))
    for fault, row in whole.items():
        print(f"{fault:34}", *(f"{row[name]:>10}" for name in PLAIN))
    every = total({fault: row for fault, row in whole.items() if fault != LONG})
    for line in sorted(every.keys() - set(PLAIN)):
        print(line, every[line])
    note = f"{len(FAULTS)} faults on {len(ROADS)} roads and {len(stages)} pairs of stages"
    each = {
        f"fault: {fault}": entry(
            row["bad taken"],
            "updates",
            None if fault == LONG else 0,
            higher=False,
            seeds=50,
            note=f"{row['runs']} runs; {row['bad']} bad updates, {row['honest']} honest ones",
        )
        for fault, row in whole.items()
    }
    counted = {
        "fault_runs": ("runs", 22_440, True),
        "fault_crashes": ("crashes", 0, False),
        "fault_nonfinite": ("not finite", 0, False),
        "fault_accepted": ("bad taken", 0, False),
        "fault_honest_refused": ("honest refused", 0, False),
        "fault_wrong_books": ("wrong books", 0, False),
    }
    rows = {
        name: entry(every[what], "", goal, higher=more, seeds=50, note=note)
        for name, (what, goal, more) in counted.items()
    }
    rows["fault_long_accepted"] = entry(
        free["bad taken"] / max(free["bad"], 1),
        "of them",
        None,
        higher=False,
        seeds=50,
        note=f"of {free['bad']} updates {LONG}, in first rounds; {bound['bad taken']} of "
        f"{bound['bad']} where longest is twice the usual length",
    )
    came, refused, why = everybody()
    rows["fault_honest_refused_671"] = entry(
        refused,
        "updates",
        0,
        higher=False,
        seeds=1,
        note=f"of {came} updates of 671 honest MovieLens users; {why or 'none'}",
    )
    record("reliability", each | rows, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
