"""The search: settings are proposed, trained side by side and measured on validation, no more.

Settings are proposed `GENERATION` at a time, however many cores there are and whichever run ends
first: a seed gives the same trials on every machine. Federated trials are runs in a folder, pooled
ones lines of a file beside them. What lies there already is not trained again, so that a search
that is asked for once more goes on where it was.

Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", section 4 (TPE), by
optuna.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedlab.core import DataError, ParameterError, Round, Score, Settings, one_thread, require
from fedlab.evaluation import candidates, unmet
from fedlab.workbench.best.memory import free_memory
from fedlab.workbench.best.methods import Knobs, Method, pooled_score, settings_of
from fedlab.workbench.experiment import Experiment, stream
from fedlab.workbench.processes import Worker, abreast, hired, width
from fedlab.workbench.runner import Job
from fedlab.workbench.runs import Run, Runs
from fedlab.workbench.runs.folder import CHECKPOINT, kept
from fedlab.workbench.sweeps import Begin, Trials

GENERATION = 4  # trials that are proposed together, each without knowing of the others
METRICS = {"sampled": "ndcg@10", "full": "full ndcg@10"}  # what an objective compares
SEEDS = 1 << 32  # that optuna takes
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
FIX = "choose a number of trials, 1 or more, such as 24, or a time such as '90 s' or '10 min'"


@dataclass(frozen=True)
class Budget:
    """How long to search: a number of federated trials, or seconds; the other one is infinite."""

    trials: float = math.inf
    seconds: float = math.inf

    @classmethod
    def of(cls, given: int | str) -> "Budget":
        """What somebody asks for; raises `ParameterError` for none and for what is no budget.

        >>> Budget.of("24"), Budget.of("1.5 min")
        (Budget(trials=24, seconds=inf), Budget(trials=inf, seconds=90.0))
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)?", str(given).strip())
        number = float(found[1]) if found else 0.0
        timed = bool(found and found[2])
        require(number > 0 and (timed or number.is_integer()), "budget", given, FIX)
        if found and timed:
            return cls(seconds=number * UNITS[found[2]])
        return cls(trials=int(number))


@dataclass(frozen=True)
class Point:
    """A proposal. settings: of a federated run, or what a pooled baseline shares with these."""

    number: int
    method: Method
    knobs: Knobs
    settings: Settings

    def __str__(self) -> str:
        return self.method.words(self.knobs)

    @property
    def key(self) -> str:
        """What tells it from others among the results of pooled baselines."""
        same = {name: self.settings[name] for name in ("seed", "against")}
        return json.dumps([self.method.name, same, dict(self.knobs)], sort_keys=True)

    def turned(self, **knobs: Any) -> "Point":
        """The same with knobs of the method, or settings that all methods read, turned."""
        own = dict(self.knobs) | {name: v for name, v in knobs.items() if name in self.knobs}
        shared = knobs if self.method.settings else {n: v for n, v in knobs.items() if n not in own}
        return replace(self, knobs=own, settings=self.settings.replace(**shared))


@dataclass(frozen=True)
class Trial:
    """A proposal and the validation metrics that it reached."""

    point: Point
    metrics: dict[str, float]
    run: str = ""  # the id of its run, where it is one


@dataclass
class Search:
    """What the trials of a search have in common, and what they have reached.

    base: settings of all runs. begin: makes a new run of settings and a name. label: what begins
    their names, by which they are found again. metric: what to compare. processes: as
    `fedlab.workbench.processes.width` takes them. say: told what happens. tried: the trials that
    are done, of so many `planned`. crew: the processes, once there are any.
    """

    base: Settings
    runs: Runs
    begin: Begin
    label: str
    metric: str
    processes: int
    say: Callable[[str], None]
    tried: list[Trial] = field(default_factory=list)
    crew: list[Worker] = field(default_factory=list)
    planned: float = math.inf
    alone: bool = False  # whether no processes could be had
    needed: float = 0.0

    def best(self, name: str = "") -> Trial | None:
        """The best trial of a method, or of all federated ones; the earlier one on a tie."""
        mine = [
            each
            for each in self.tried
            if (each.point.method.name == name if name else each.point.method.settings)
        ]
        return max(
            mine, key=lambda each: (each.metrics[self.metric], -each.point.number), default=None
        )

    def tune(
        self, methods: Sequence[Method], trials: float, until: float, seed: int, first: Knobs
    ) -> Job:
        """A job: tries settings of these methods; at least one generation, or `trials` if fewer.

        until: when to propose no more, in monotonic seconds. first: to be tried before all else.
        """
        import optuna  # noqa: PLC0415 - takes a fifth of a second

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed % SEEDS, n_startup_trials=GENERATION)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for guess in _guesses(methods, first):
            study.enqueue_trial(guess)
        number = 0
        while number < trials and (number == 0 or time.monotonic() < until):
            asked = [study.ask() for _ in range(int(min(GENERATION, trials - number)))]
            points = [self._point(number + at, each, methods) for at, each in enumerate(asked)]
            yield from self._trained(points, trials)
            for each, point in zip(asked, points, strict=True):
                found = self._found(point)
                if found:
                    study.tell(each, found.metrics[self.metric])
                else:
                    study.tell(each, state=optuna.trial.TrialState.FAIL)
            number += len(points)

    def _point(self, number: int, trial: Any, methods: Sequence[Method]) -> Point:
        names = [method.name for method in methods]
        name = trial.suggest_categorical("method", names) if len(names) > 1 else names[0]
        method = methods[names.index(name)]
        knobs = {n: each.ask(trial, f"{name}: {n}") for n, each in method.ranges.items()}
        return Point(number, method, knobs, settings_of(self.base, method, knobs))

    def _trained(self, points: list[Point], trials: float) -> Job:
        """A job that trains what is not trained yet, and says what each has reached."""
        new = list({point.key: point for point in points if not self._found(point)}.values())
        runs = [point for point in new if point.method.settings]
        jobs = self.train([(f"{self.label} {p.number + 1}: {p}", p.settings) for p in runs])
        pooled = [point for point in new if not point.method.settings]
        fit = [(p.settings, p.method.name, p.knobs) for p in pooled]
        open_ = list(points)
        try:
            for job in (jobs, self.each(validated, fit, lambda at, v: self._keep(pooled[at], v))):
                for _ in job:
                    self._say(open_, trials)
                    yield
        finally:
            self._say(open_, trials)
        for point in new:
            if not self._found(point):
                self.say(f"{point}: failed; {self._why(point)}")

    def _say(self, open_: list[Point], trials: float) -> None:
        """Take the trials that are done out of those that are open, and say a line of each."""
        for point in list(open_):
            found = self._found(point)
            if not found:
                continue
            open_.remove(point)
            self.tried.append(found)
            best = self.best("" if point.method.settings else point.method.name)
            reached = ", ".join(f"{n} {v:.4f}" for n, v in found.metrics.items() if "ndcg" in n)
            of = f" of {trials:.0f}" if math.isfinite(trials) else ""
            top = f"; best so far {best.metrics[self.metric]:.4f}" if best else ""
            self.say(f"trial {point.number + 1}{of}: {point}: {reached}{top}")

    def _found(self, point: Point) -> Trial | None:
        """The trial of a proposal, if it is done."""
        if not point.method.settings:
            metrics = self._kept().get(point.key)
            return Trial(point, metrics) if metrics else None
        run = self.run(point.settings)
        if run is None:
            return None
        reached = {n: v for n, v in run.records[-1].items() if n.endswith(("hr@10", "ndcg@10"))}
        return Trial(point, reached, run.id)

    def run(self, settings: Settings) -> Run | None:
        """The run of this search that has these settings and is done."""
        every = self.runs.listed()
        mine = (run for run in every if run.state == "done" and run.name.startswith(self.label))
        return next((run for run in mine if run.settings == dict(settings)), None)

    def last(self, run: Run) -> Round:
        """The last Round of a run, from its folder."""
        found = kept(run.home, CHECKPOINT)[0] if run.home else None
        if found is None:
            raise ParameterError(f"folder={str(self.runs.folder)!r}: {self.runs.trouble}")
        return found

    def _why(self, point: Point) -> str:
        """Why it could not be trained."""
        runs = [run for run in self.runs.listed() if run.settings == dict(point.settings)]
        return runs[-1].error if runs and point.method.settings else "see above"

    @property
    def _file(self) -> Path:
        """Where the results of pooled baselines lie."""
        assert self.runs.folder is not None
        return self.runs.folder / f"{self.label.replace(' ', '-')}-baselines.json"

    def _kept(self) -> dict[str, dict[str, float]]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _keep(self, point: Point, metrics: dict[str, float]) -> None:
        half = self._file.with_suffix(".new")
        half.write_text(json.dumps(self._kept() | {point.key: metrics}, indent=1))
        half.replace(self._file)

    def hire(self) -> None:
        """Start the processes, where there are to be several."""
        if self.crew or self.alone:
            return
        count = self._width()
        if count < 2:
            self.alone = True
            return
        named = [("", self.base), ("", self.base.replace(local="ease", model="item-item"))]
        trials = Trials(stream, named, self.runs, self.begin, self.say)
        self.crew, why = hired(count, stream, trials.parts())
        if why:
            self.alone = True
            self.say(f"trials take turns in one process: {why}")

    def _width(self) -> int:
        """How many processes to start: no more than memory has room for."""
        count, free = width(self.processes, GENERATION), free_memory()
        fit = max(1, int(min(count, free / self.needed)) if self.needed else count)
        if fit < count:
            side = "trials take turns in one process" if fit == 1 else f"{fit} trials side by side"
            self.say(
                f"{side}, not {count}: one takes up to {self.needed / 1e9:.2g} GB of memory, and "
                f"{free / 1e9:.2g} GB are free"
            )
        return fit

    def train(self, named: Sequence[tuple[str, Settings]]) -> Job:
        """A job that trains runs of these names and settings."""
        self.hire()
        trials = Trials(stream, named, self.runs, self.begin, self.say)
        return trials.on(self.crew) if self.crew else trials.in_turns(1)

    def trained(self, named: Sequence[tuple[str, Settings]]) -> list[Run | None]:
        """The runs of these names and settings, trained now where they are not there yet."""
        for _ in self.train([(name, wanted) for name, wanted in named if not self.run(wanted)]):
            pass
        return [self.run(wanted) for _, wanted in named]

    def each(
        self,
        function: Callable[..., Iterator[Any]],
        calls: Sequence[tuple[Any, ...]],
        done: Callable[[int, Any], None],
    ) -> Job:
        """A job: the first of what `function(*call)` yields, for each call; done: is told of it."""
        self.hire()
        if not self.crew:
            for at, call in enumerate(calls):
                done(at, next(function(*call)))
                yield
            return

        def job(at: int, worker: Worker) -> Job:
            try:
                worker.begin(str(calls[at][1]), function, *calls[at])
                yield
                done(at, worker.take()[1])
            except (ParameterError, DataError, RuntimeError) as error:
                self.say(f"{calls[at][1]}: {error}")

        yield from abreast([partial(job, at) for at in range(len(calls))], self.crew)


def _guesses(methods: Sequence[Method], first: Knobs) -> Iterator[dict[str, Any]]:
    """What is tried first, the methods in turn, under the names that optuna has for it."""
    several = len(methods) > 1
    begun = [dict(first)] if first else []
    columns = [
        [*begun, *(dict(g) for g in method.first if dict(g) not in begun)] for method in methods
    ]
    for place in range(max(map(len, columns))):
        for method, guesses in zip(methods, columns, strict=True):
            if place < len(guesses):
                own = {f"{method.name}: {n}": v for n, v in guesses[place].items()}
                yield own | ({"method": method.name} if several else {})


def validated(settings: Settings, name: str, knobs: Knobs) -> Iterator[dict[str, float]]:
    """Yield what a pooled baseline reaches on validation."""
    with one_thread():
        experiment = Experiment(settings)
        yield experiment.measured(pooled_score(experiment, name, knobs))


def tested(settings: Settings, name: str, knobs: Knobs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test ranks of a pooled baseline: see `test_ranks`."""
    with one_thread():
        experiment = Experiment(settings)
        yield test_ranks(experiment, pooled_score(experiment, name, knobs))


def test_ranks(experiment: Experiment, score: Score) -> tuple[Tensor, Tensor]:
    """Ranks (U,) of the held-out test clicks, among sampled items and among all not met before."""
    split, seed = experiment.split, experiment.settings.seed
    drawn = candidates(split, "test", experiment.choices.against, seed=seed)
    with one_thread():
        return drawn.ranks(score), unmet(split, "test").ranks(score)
