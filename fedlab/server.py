"""A federation is a stream of Rounds, and `federate` is its generator.

Notebooks, plots, widgets and tests read the same stream; what acts on it (measuring, stopping, keeping the
best) is a function from stream to stream or to a Round.

Letters: N clients, C in a cohort.
Source: McMahan et al. 2017, algorithm 1. The server learning rate scales the mean delta (Reddi et al. 2021,
algorithm 1, ServerOpt = SGD); local_epochs=1 and batch_size=0 make one local step of it: FedSGD.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from fedlab.aggregation import Aggregate, weighted_mean
from fedlab.cohort import updates
from fedlab.core import Config, ParameterError, Rows, Tree, Update, norms, require, stream, to
from fedlab.engine import check_engine
from fedlab.federation import Source
from fedlab.models import Model


@dataclass(frozen=True, eq=False)
class Round:
    """What a round left behind. Losses, norms and private rows are seen by a simulation only.

    number: from 1; 0 is the start. config: the knobs as they were. params: server parameters and, beside
    them, everybody's private rows. cohort, losses, norms (C,): client numbers, mean local loss, L2 norm of
    what each one sent. bytes_down, bytes_up: of the whole cohort. seconds: training, without evaluation.
    """

    number: int
    config: Config
    params: Tree
    cohort: Tensor
    losses: Tensor
    norms: Tensor
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean local loss of the cohort, each client alike."""
        return float(self.losses.mean())


def federate(model: Model, data: Source, config: Config | Callable[[], Config] | None = None, *,
             aggregate: Aggregate = weighted_mean, start: Round | None = None,
             device: str | torch.device = "cpu") -> Iterator[Round]:
    """Yield one Round at a time, for as many rounds as the config says.

    config: a Config, or a function that gives one; it is asked once before each round, so a knob turned in
    between counts from the next round. start: a Round to go on from; the continued run equals an
    uninterrupted one. Same seed, same machine: same bits. Raises `ParameterError` on a bad setting.
    """
    check_device(device)
    require(model.task == data.task, "task", model.task, f"model and federation differ; the federation has {data.task}")
    ask = config if callable(config) else partial(replace, config or Config())
    model, now = replace(model, constants=to(model.constants, device)), ask()
    params = to(start.params if start else model.init(stream(now.seed, "init")), device)
    number = start.number if start else 0
    while number < now.rounds:
        number += 1
        with one_thread():
            done = one_round(model, data, now, params, number, aggregate)
        params = done.params
        yield done
        now = ask()


def one_round(model: Model, data: Source, config: Config, params: Tree, number: int,
              aggregate: Aggregate = weighted_mean) -> Round:
    """Sample a cohort, train it from `params`, aggregate, step the server."""
    began, device = time.perf_counter(), next(iter(params.values())).device
    check_engine(config, device)
    cohort = sample(data, config, number)
    losses: list[Tensor] = []
    lengths: list[Tensor] = []
    traffic = [(0, 0)]
    kept: dict[str, list[Rows]] = {name: [] for name in model.private}

    def sent() -> Iterator[Update]:                          # what leaves the clients; the rest is noted in passing
        for update in updates(model, data, params, cohort, config, number=number):
            shared = {name: delta for name, delta in update.deltas.items() if name not in model.private}
            for name, rows in kept.items():
                rows.append(update.deltas[name])
            losses.append(update.losses.cpu())
            lengths.append(norms(shared, len(update.cohort)))
            traffic.append(payload(model, shared))
            yield replace(update, deltas=shared)
    step = aggregate(sent(), params)
    shared = {name: moved(params[name], delta, config.server_lr) for name, delta in step.items()}
    mine = {name: moved(params[name], Rows.joined(rows), 1.0) for name, rows in kept.items()}
    down, up = (sum(part) for part in zip(*traffic, strict=True))
    return Round(number, config, params | shared | mine, cohort, torch.cat(losses), torch.cat(lengths), down, up,
                 time.perf_counter() - began)


def moved(value: Tensor, delta: Tensor | Rows, rate: float) -> Tensor:
    """A parameter after a step of `rate` times `delta`; of `Rows`, only these change."""
    if isinstance(delta, Tensor):
        return value + rate * delta
    return value.index_add(0, delta.ids, delta.values * rate)


def sample(data: Source, config: Config, number: int) -> Tensor:
    """(C,) the clients of a round, drawn without replacement; those with most ratings first.

    From a large federation only about C numbers are drawn, so that a round's time does not follow N.
    """
    count, clients, generator = config.cohort, len(data), stream(config.seed, "cohort", number)
    require(count <= clients, "cohort", count, f"the federation has {clients} clients; choose from 1 to {clients}")
    if clients < 50 * count:
        cohort = torch.randperm(clients, generator=generator)[:count]
    else:
        drawn = torch.randint(clients, (2 * count + 10,), generator=generator).tolist()
        cohort = torch.tensor(list(dict.fromkeys(drawn))[:count])     # the first `count` different ones
    return cohort[data.counts[cohort].argsort(descending=True, stable=True)]


def payload(model: Model, shared: dict[str, Rows]) -> tuple[int, int]:
    """(bytes down, bytes up) of a cohort: 4 for each float, and up 4 more for each row number of a table."""
    floats = sum(4 * delta.values.numel() for delta in shared.values())
    tables = {kind: len(shared[name].ids) for name, kind in model.rows.items() if name in shared and kind != "one"}
    return floats, floats + 4 * sum(tables.values())


def check_device(device: str | torch.device) -> None:
    """Raise `ParameterError` for a device that this machine or this torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(f"device={str(device)!r}: cannot be used here ({reason}); choose 'cpu'") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for the small tensors of a round: with two on a busy machine a loop took 13x longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(rounds: Iterable[Round], measure: Callable[[Round], dict[str, float]], every: int = 1) -> Iterator[Round]:
    """The same stream with metrics: `measure` sees every `every`-th Round and the others pass untouched."""
    require(every >= 1, "every", every, "choose 1 or more")
    for done in rounds:
        if not done.number % every:
            with one_thread():                               # the others are for a browser that looks on
                found = measure(done)
            done = replace(done, metrics=done.metrics | found)  # noqa: PLW2901 - the same Round, with more in it
        yield done


def stop_early(rounds: Iterable[Round], metric: str, mode: str, patience: int = 5) -> Iterator[Round]:
    """Pass Rounds on until `metric` has not improved for `patience` measured rounds; mode: 'min' or 'max'."""
    require(patience >= 1, "patience", patience, "choose 1 or more")
    best, since = -math.inf, 0
    for done in rounds:
        yield done
        if metric in done.metrics:
            value = _sign(mode) * done.metrics[metric]
            best, since = (value, 0) if value > best else (best, since + 1)
        if since >= patience:
            return


def best_round(rounds: Iterable[Round], metric: str, mode: str) -> Round:
    """The Round whose `metric` is best, the earlier one on a tie; mode: 'min' or 'max'. Choose on validation."""
    scored = [done for done in rounds if metric in done.metrics]
    require(bool(scored), "metric", metric, "no Round has it; measure it with measured(...)")
    return max(scored, key=lambda done: _sign(mode) * done.metrics[metric])


def _sign(mode: str) -> int:
    require(mode in ("min", "max"), "mode", mode, "write 'min' if lower is better, as for errors, or 'max'")
    return -1 if mode == "min" else 1
