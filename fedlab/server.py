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
from fedlab.client import arrange, train
from fedlab.core import Config, ParameterError, Rows, Tree, norms, require, stream
from fedlab.evaluation import Score
from fedlab.federation import Federation
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


def federate(model: Model, data: Federation, config: Config | Callable[[], Config] | None = None, *,
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


def one_round(model: Model, data: Federation, config: Config, params: Tree, number: int,
              aggregate: Aggregate = weighted_mean) -> Round:
    """Sample a cohort, train it from `params`, aggregate, step the server."""
    began, device = time.perf_counter(), next(iter(params.values())).device
    cohort = sample(data, config, number)
    examples = data.draw(cohort, config.local_epochs, config.negatives, stream(config.seed, "examples", number))
    examples |= model.noise(len(examples["item"]), stream(config.seed, "noise", number))
    deltas, losses = train_cohort(model, params, to(examples, device), cohort.to(device), config)
    shared = {name: delta for name, delta in deltas.items() if name not in model.private}
    weights = (data.counts[cohort].float() if config.weighting == "examples" else torch.ones(len(cohort))).to(device)
    step = aggregate(shared, weights, params)
    mine = {name: params[name].index_add(0, deltas[name].ids, deltas[name].values) for name in model.private}
    new = params | {name: params[name] + config.server_lr * step[name] for name in shared} | mine
    down, up = payload(model, shared)
    return Round(number, config, new, cohort, losses.cpu(), norms(shared, len(cohort)), down, up,
                 time.perf_counter() - began)


def sample(data: Federation, config: Config, number: int) -> Tensor:
    """(C,) the clients of a round, drawn without replacement; those with most ratings first."""
    count, clients = config.cohort, len(data)
    require(count <= clients, "cohort", count, f"the federation has {clients} clients; choose from 1 to {clients}")
    cohort = torch.randperm(clients, generator=stream(config.seed, "cohort", number))[:count]
    return cohort[data.counts[cohort].argsort(descending=True, stable=True)]


def train_cohort(model: Model, params: Tree, examples: Tree, cohort: Tensor,
                 config: Config) -> tuple[dict[str, Rows], Tensor]:
    """`client.train` in groups of clients whose batches are about equally wide, so that padding stays below half.

    examples: as `Federation.draw` gives them for `cohort`, which has the client with most examples first.
    """
    per_epoch = torch.bincount(examples["client"], minlength=len(cohort)) // config.local_epochs
    longest = config.batch_size or int(per_epoch[0])
    widths = (2 ** per_epoch.double().log2().ceil().long()).clamp(max=longest).tolist()
    deltas: list[dict[str, Rows]] = []
    losses, first, seen = [], 0, 0
    while first < len(widths):
        last = first + widths[first:].count(widths[first])
        count = int(per_epoch[first:last].sum()) * config.local_epochs
        group = {name: column[seen:seen + count] for name, column in examples.items()}
        group["client"] = group["client"] - first
        batches = arrange(group, config.local_epochs, widths[first])
        delta, loss = train(model, params, batches, cohort[first:last], config)
        deltas.append({name: Rows(d.values, d.ids, d.client + first) for name, d in delta.items()})
        losses.append(loss)
        first, seen = last, seen + count
    return {name: Rows.joined([d[name] for d in deltas]) for name in deltas[0]}, torch.cat(losses)


def payload(model: Model, shared: dict[str, Rows]) -> tuple[int, int]:
    """(bytes down, bytes up) of a cohort: 4 for each float, and up 4 more for each row number of a table."""
    floats = sum(4 * delta.values.numel() for delta in shared.values())
    tables = {kind: len(shared[name].ids) for name, kind in model.rows.items() if name in shared and kind != "one"}
    return floats, floats + 4 * sum(tables.values())


def to(tree: Tree, device: str | torch.device) -> Tree:
    """The same tree on another device."""
    return {name: value.to(device) for name, value in tree.items()}


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


def scorer(model: Model, params: Tree, owner: Tensor | None = None) -> Score:
    """Predictions of a model for any users and items: a function (users, items of one shape) -> scores on the CPU.

    owner (U,): the client of each user; needed when a parameter has its rows by client.
    """
    each = "client" in model.rows.values()
    require(not each or owner is not None, "owner", owner, "name the client of each user, say federation.owner")
    device = next(iter(params.values())).device
    return pair_scorer(model, lambda name, rows, _: params[name][rows], owner, each=each, device=device)


def pair_scorer(model: Model, look_up: Callable[[str, Tensor, Tensor], Tensor], owner: Tensor | None, *,
                each: bool, device: str | torch.device = "cpu") -> Score:
    """A `Score` from `look_up(name, rows, clients of the rows)`: the parameter's values at these rows.

    each: ask for every pair as a client with one example, not for all pairs as one long batch of one client.
    """
    constants, holder = to(model.constants, device), owner if owner is None else owner.to(device)

    def score(users: Tensor, items: Tensor) -> Tensor:
        shape = (-1, 1) if each else (1, -1)
        batch = {"user": users.reshape(shape).to(device), "item": items.reshape(shape).to(device)}
        client = torch.zeros_like(batch["user"]) if holder is None else holder[batch["user"]]
        rows = batch | {"client": client[:, 0], "one": torch.zeros_like(client[:, 0])}
        leaves = {name: look_up(name, rows[kind], client if kind in batch else client[:, 0])
                  for name, kind in model.rows.items()}
        with torch.no_grad():
            return model.predict(leaves | constants, batch).view(users.shape).cpu()
    return score


def measured(rounds: Iterable[Round], measure: Callable[[Round], dict[str, float]], every: int = 1) -> Iterator[Round]:
    """The same stream with metrics: `measure` sees every `every`-th Round and the others pass untouched."""
    require(every >= 1, "every", every, "choose 1 or more")
    for done in rounds:
        yield done if done.number % every else replace(done, metrics=done.metrics | measure(done))


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
