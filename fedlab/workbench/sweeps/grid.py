"""Sweeps: many runs over any two settings, and the map of what they reached.

Source: Bergstra and Bengio 2012, "Random search for hyper-parameter optimization", section 2: a
random search tries as many values of each setting as it has runs, a grid only a few.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedlab.core import Settings, described, known, parsed, require, stream
from fedlab.workbench.runs import Run

MOST = 200  # runs in a sweep
Unread = Callable[[Settings], Mapping[str, str]]


@dataclass(frozen=True)
class Sweep:
    """What to try and what to look at.

    over: setting -> the values of a grid, or the values a random search draws between (numbers) or
    from (choices). metric, mode: what to compare, and whether 'min' or 'max' is better. count: 0
    for the whole grid, else random runs.
    """

    over: Mapping[str, Sequence[Any]]
    metric: str
    mode: str
    count: int = 0

    def trials(self, base: Settings, unread: Unread = lambda _: {}) -> list[Settings]:
        """The settings of every run; raises `ParameterError` before anything is trained.

        unread: a function from settings to the knobs that nothing reads under them, by name -> why.
        A trial leaves those of `base` as usual, but a setting that is tried must be read.
        """
        known(list(described()), self.over)
        require(
            len(self.over) in (1, 2),
            "over",
            list(self.over),
            "choose one or two different settings",
        )
        for name, values in self.over.items():
            require(len(values) > 0, name, list(values), "give at least one value")
            for value in values:
                base.replace(**{name: value})  # refuses what the knob refuses
        points = self._drawn(base) if self.count else self._grid()
        require(
            len(points) <= MOST,
            "runs",
            len(points),
            f"a sweep has at most {MOST}; try fewer values",
        )
        return [self._read(base.replace(**point), unread) for point in points]

    def _read(self, trial: Settings, unread: Unread) -> Settings:
        why = unread(trial)
        for name in self.over:
            require(
                name not in why or name not in trial,
                name,
                trial[name],
                f"{why.get(name)}, in the run {self.name(trial)}",
            )
        return trial.without(why)

    def _grid(self) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = [{}]
        for name, values in self.over.items():
            points = [point | {name: value} for value in dict.fromkeys(values) for point in points]
        return points

    def _drawn(self, base: Settings) -> list[dict[str, Any]]:
        """Draw the runs independently of each other.

        A number is drawn by ratios where its slider moves by ratios; a choice is one of those
        given.
        """
        require(0 < self.count <= MOST, "count", self.count, f"choose from 1 to {MOST} runs")
        draw = stream(base.seed, "sweep")

        def one(name: str, values: Sequence[Any], luck: float) -> Any:
            knob = described()[name].knob
            if isinstance(values[0], str):
                return values[min(int(luck * len(values)), len(values) - 1)]
            low, high = min(values), max(values)
            if knob.log and low > 0:
                value = math.exp(math.log(low) + luck * (math.log(high) - math.log(low)))
            else:
                value = low + luck * (high - low)
            return (
                round(value) if all(isinstance(v, int) for v in values) else float(f"{value:.3g}")
            )

        luck = torch.rand(self.count, len(self.over), generator=draw).tolist()
        return [
            {
                name: one(name, values, share)
                for (name, values), share in zip(self.over.items(), row, strict=True)
            }
            for row in luck
        ]

    def name(self, settings: Settings) -> str:
        """What a run of the sweep is called."""
        return ", ".join(f"{name}={settings[name]}" for name in self.over)

    def cell(self, run: Run) -> dict[str, Any]:
        """What the map shows of a run: where it lies, what it has reached, and how far it is."""
        best = run.best(self.metric, self.mode)
        return {
            "run": run.id,
            "name": run.name,
            "at": [Settings(**run.settings)[name] for name in self.over],
            "value": None if best is None else best[self.metric],
            "state": run.state,
            "error": run.error,
            "round": len(run.records),
        }


def values(name: str, text: str) -> list[Any]:
    """The values in '0.1, 0.5, 1' for a setting: numbers, or names."""
    known(list(described()), {name: text})
    return [parsed(name, part.strip()) for part in text.split(",") if part.strip()]
