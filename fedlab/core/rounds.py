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
    cannot learn, or ''.
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
    rounds: Iterable[Round], metric: str, mode: str, patience: int = 5
) -> Iterator[Round]:
    """Pass Rounds on until `metric` has not improved for `patience` measured rounds.

    mode: whether 'min' or 'max' is better.
    """
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
