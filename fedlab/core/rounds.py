"""What a round leaves behind, and functions from a stream of Rounds to another, or to one of them.

Letters: C clients in the cohort.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core.knobs import require
from fedlab.core.settings import Settings
from fedlab.core.tree import Tree, one_thread

STOPPING = "stop early"  # where a Round's state has the best value so far, and how long ago it was


@dataclass(frozen=True, eq=False)
class Round:
    """What a round left behind; only a simulation sees losses, norms and private rows.

    number: from 1; 0 is the start. settings: the knobs as they were. params: server parameters and,
    beside them, everybody's private rows. cohort, losses, norms (C,): for the clients that were
    aggregated, their numbers, mean local losses, and the L2 norms of what each one sent.
    bytes_down, bytes_up: of all clients that sent. seconds: training, without evaluation. rejected:
    client -> why it does not count. skipped: why the model did not change, or ''. clock: simulated
    seconds since the start. state: what the server keeps beside the parameters, to go on from.
    engine: how local steps ran, and why where not as asked. warning: of settings that
    cannot learn, or ''. ended: why `stop_early` ended the run with this Round, or ''.
    """

    number: int
    settings: Settings
    params: Tree
    cohort: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    norms: Tensor = field(default_factory=lambda: torch.empty(0))
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    rejected: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""
    clock: float = 0.0
    state: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    warning: str = ""
    ended: str = ""

    @property
    def loss(self) -> float:
        """Mean local loss of the cohort, each client alike; not a number for a skipped round."""
        return float(self.losses.mean()) if len(self.losses) else math.nan

    def light(self) -> "Round":
        """The Round without parameters and state, so that many can be kept."""
        return replace(self, params={}, state={})


def measured(
    rounds: Iterable[Round], measure: Callable[[Round], dict[str, float]], every: int = 1
) -> Iterator[Round]:
    """Add metrics to a stream: `measure` sees every `every`-th Round, the others pass untouched."""
    require(every >= 1, "every", every, "choose 1 or more")
    for done in rounds:
        if not done.number % every:
            with one_thread():  # the others are for a browser that looks on
                found = measure(done)
            done = replace(done, metrics=done.metrics | found)  # noqa: PLW2901 - the same Round
        yield done


def stop_early(
    rounds: Iterable[Round],
    metric: str,
    mode: str,
    patience: int = 5,
    *,
    target: float | None = None,
    start: Round | None = None,
) -> Iterator[Round]:
    """Pass Rounds on until `metric` reaches `target`, or has not improved for `patience` of them.

    Whichever comes first ends the stream, and the last Round says so in `ended`. Only Rounds that
    measure the metric count. mode: whether 'min' or 'max' is better. patience: 1 or more; beside a
    target also 0, for as long as it takes. start: the Round that these Rounds go on from, whose
    count is taken up. Raises `ParameterError` for other values, and for a start that had ended.

    >>> scores = iter([0.1, 0.3, 0.5, 0.6])
    >>> every = (Round(n, Settings(), {}, metrics={"ndcg": next(scores)}) for n in range(1, 5))
    >>> *_, last = stop_early(every, "ndcg", "max", target=0.5)
    >>> last.number, last.ended
    (3, 'ndcg has reached 0.5')
    """
    sign = _sign(mode)
    fix = "choose 1 or more; 0, for as long as it takes, goes with a target"
    require(patience >= (target is None), "patience", patience, fix)
    require(target is None or math.isfinite(target), "target", target, "choose a finite number")
    goal = math.inf if target is None else sign * target
    seen = dict(start.state.get(STOPPING, {})) if start else {}
    best, since = seen.get(metric, (-math.inf, 0))

    def why() -> str:
        if best >= goal:
            return f"{metric} has reached {target:g}"
        tired = 0 < patience <= since
        return f"{metric} has not improved for {since} measured rounds" * tired

    fix = f"the run had ended: {why()}; ask for more, or begin another run"
    require(not why(), "start", f"Round {start.number if start else 0}", fix)
    for done in rounds:
        if metric in done.metrics:
            value = sign * done.metrics[metric]
            best, since = (value, 0) if value > best else (best, since + 1)
            seen = {metric: (best, since)}
        yield replace(done, state={**done.state, STOPPING: seen}, ended=why())
        if why():
            return


def best_round(rounds: Iterable[Round], metric: str, mode: str) -> Round:
    """The Round whose `metric` is best, the earliest one on a tie; choose on validation.

    mode: whether 'min' or 'max' is better.
    """
    scored = [done for done in rounds if metric in done.metrics]
    require(bool(scored), "metric", metric, "no Round has it; measure it with measured(...)")
    return max(scored, key=lambda done: _sign(mode) * done.metrics[metric])


def _sign(mode: str) -> int:
    require(
        mode in ("min", "max"),
        "mode",
        mode,
        "write 'min' if lower is better, as for errors, or 'max'",
    )
    return -1 if mode == "min" else 1
