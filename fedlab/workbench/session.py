"""What a workbench does, without its view: its settings, the runs that train, the sweeps.

See `runner` for the thread and `runs` for what is kept.
"""

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlab.core import (
    ParameterError,
    Round,
    Settings,
    described,
    differing,
    known,
    read_settings,
    require,
)
from fedlab.workbench.beside import beside, lead
from fedlab.workbench.best import Best
from fedlab.workbench.best.fit import Asked, Finding, common
from fedlab.workbench.experiment import Experiment, stream, usual_knobs
from fedlab.workbench.guide import Attempt, Challenge
from fedlab.workbench.inside import Look, Looker
from fedlab.workbench.runner import Job, Live, Runner, claim, follow
from fedlab.workbench.runs import Run, Runs
from fedlab.workbench.sweeps import Sweep, Trials

STEPS = 100  # of undo
SEEDS = 20  # runs of a sweep over seeds that stay in the charts together
SLIDE = 1.0  # seconds within which turns of one knob are one step, as a slider makes many
Swept = tuple[Sweep, list[Run], int]  # a sweep, its runs so far, and how many there will be


class Session:
    """Settings, runs and the one job over a stream of Rounds.

    live: a function from a settings-giving function to a stream of Rounds; one that takes `start`
    as well, a Round to go on from, can resume runs. settings: where the knobs start. metrics: name
    -> whether 'max' or 'min' is better; the loss is always there.
    folder: where runs are kept. presets: name -> settings. changed: called after each round and
    each change of state, from the thread. challenges: name -> what may be tried.
    """

    def __init__(
        self,
        live: Live,
        settings: Settings,
        metrics: Mapping[str, str],
        folder: str | Path | None,
        presets: Mapping[str, Settings],
        changed: Callable[[], None],
        challenges: Mapping[str, Challenge] | None = None,
    ) -> None:
        """Stop what ran in this kernel before, so that running a cell again starts afresh."""
        self.metrics = {"loss": "min"} | dict(metrics)
        for name, mode in self.metrics.items():
            require(
                mode in ("min", "max"),
                f"metrics[{name!r}]",
                mode,
                "write 'min' if lower is better, or 'max'",
            )
        self.presets, self.challenges = presets, challenges or {}
        self.attempt: Attempt | None = None  # at the challenge that is on
        self.reference = ""  # id of the run that others are compared with
        claim(None)
        self.live, self.runner = live, Runner(changed)
        told = (usual_knobs, beside, lead) if live is stream else ()
        self.runs = Runs(folder, metrics, *told)
        self.changed = changed
        self.members: list[Run] = []  # what the last start or sweep trains
        self.trying: Sweep | None = None
        self.mapped: Swept | None = None  # the last sweep, which other starts leave on show
        self.planned = 1  # runs of the sweep
        self.finding: Finding | None = None  # the search for the best, if that was last
        self.found: Best | None = None  # the last one that was found
        self.told = ""  # what the search has said last
        self.turns = ""  # why its runs take turns in this process
        self.began = 0.0  # when it was started, monotonic seconds
        self.in_use: Settings | None = None  # what the round under way, or the last one, was given
        self._first = self._settings = settings
        self.chosen = self._begun_with()
        self._past: list[Settings] = []  # settings that were left, the last one at the end
        self._turned: tuple[set[str], float] = set(), 0.0  # what was turned last, and when
        self._lock = threading.Lock()

    @property
    def settings(self) -> Settings:
        """The settings as the knobs stand, in one piece."""
        with self._lock:
            return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        with self._lock:
            turned = {*differing([dict(self._settings), dict(settings)])}
            if not turned:
                return
            (last, when), now = self._turned, time.monotonic()
            if not (turned == last and len(turned) == 1 and now - when < SLIDE):
                self._past = [*self._past, self._settings][-STEPS:]
            self._turned, self._settings = (turned, now), settings

    def undo(self) -> None:
        """Put the knobs back to where they stood before the last turn, preset or text."""
        with self._lock:
            require(len(self._past) > 0, "undo", "nothing", "no knob has been turned")
            self._settings, self._turned = self._past.pop(), (set(), 0.0)

    def unread(self, settings: Settings) -> dict[str, str]:
        """The knobs that nothing reads under these settings, by name -> why.

        Only for the stream of an experiment can this be told; for others it is empty.
        """
        return Experiment(settings).unread() if self.live is stream else {}

    def lacks(self, settings: Settings) -> list[str]:
        """The metrics that a run of these settings would not measure, as far as that is known."""
        if self.live is not stream:
            return []
        told = Experiment(settings).tells()
        return [name for name in self.metrics if name not in told]

    @property
    def read(self) -> Settings:
        """The settings without those that nothing reads."""
        settings = self.settings
        return settings.without(self.unread(settings))

    @property
    def progress(self) -> float:
        """The share of the rounds that are done, of all runs of a sweep; or of a search."""
        if self.finding:
            return self.finding.progress
        return min(
            sum(len(run.records) for run in self.members) / (self.settings.rounds * self.planned),
            1.0,
        )

    def shown(self) -> list[Run]:
        """What belongs in a chart: the runs that train, or the last one, and those pinned.

        All of a sweep over a few seeds do, as their mean is drawn.
        """
        current = [run for run in self.members if run.state == "running"] or self.members[-1:]
        if self.trying and {*self.trying.over} == {"seed"} and self.planned <= SEEDS:
            current = self.members
        return [run for run in self.runs.listed() if run.pinned or run in current]

    def start(self, rounds: float = float("inf")) -> None:
        """Go on after a pause, or begin a new run; pause after `rounds` rounds."""
        if self.runner.state == "paused":
            return self.runner.go(rounds)
        self._afresh([])
        settings = self.read
        return self.runner.start(self._job(settings, self._snapshots(settings)), rounds)

    def step(self) -> None:
        """Train for one round, then pause."""
        self.start(1)

    def stop(self) -> None:
        """Ask the job to end after the round under way, without waiting for it."""
        self.runner.stop(wait=False)

    def resume(self, id_: str) -> None:
        """Go on with a run that ended or was interrupted, with its own settings.

        A run that has done its rounds goes on to as many as the knob says.
        """
        require(
            "start" in inspect.signature(self.live).parameters,
            "live",
            "no start",
            "this stream cannot go on from a Round; give one that can, such as "
            "lambda settings, start=None: federate(model, data, settings, start=start)",
        )
        run, start = self.runs.resume(id_)
        try:
            settings = going_on(run, start, self.settings.rounds)
        except ParameterError:
            self.runs.end(run, "stopped")
            raise
        self.settings = settings
        self._afresh([run])
        self.runner.start(follow(self.live, self._snapshots(settings), run, self.runs, start))

    def reset(self) -> None:
        """Stop, forget what was shown except pinned runs, and put the knobs back to the start."""
        self.runner.reset()
        self.trying, self.members, self.in_use, self.settings = None, [], None, self._first
        self.chosen, self.attempt = self._begun_with(), None
        self.mapped = self.finding = self.found = None

    def sweep(self, what: Sweep, processes: int = 0) -> None:
        """Train every trial of a sweep, side by side; processes: how many, 0 for all cores."""
        require(
            what.metric in self.metrics,
            "metric",
            what.metric,
            f"choose one of {', '.join(self.metrics)}",
        )
        trials = what.trials(self.settings, self.unread)
        self._afresh([])
        self.in_use, self.turns = None, ""
        self.trying, self.planned = what, len(trials)
        self.mapped = what, self.members, len(trials)
        self.began = time.monotonic()
        named = [(what.name(trial), trial) for trial in trials]
        job = Trials(self.live, named, self.runs, self._begin, self._said).job(processes)
        self.runner.start(job)

    def find(self, objective: str, budget: str) -> None:
        """Search the best model for the data that the knobs name: see `fit_best`.

        Of the knobs it takes data, seed and uplink, and those of these. Stop keeps the best so far:
        it is measured, trained and `found`, as at the end. Raises `ParameterError` where runs are
        in memory alone.
        """
        fix = "this stream is none of an experiment; search with fedlab.workbench.fit_best"
        require(self.live is stream, "live", "a stream of your own", fix)
        fix = "a search keeps its trials on disk; name a folder under Runs, and keep runs there"
        require(self.runs.folder is not None, "folder", "none", fix)
        task = self.settings.task
        require(task == "clicks", "task", task, "a search ranks items; choose clicks")
        asked = Asked(objective, budget)
        self._afresh([])
        self.found, self.told = None, "reading the data"
        self.finding = Finding(
            common(self.settings), self.runs, asked, self._heard, self._took, self._begin
        )
        self.runner.start(self.finding.job())

    def _heard(self, line: str) -> None:
        self.told = line
        self.changed()

    def _took(self, best: Best) -> None:
        self.found, self.told = best, best.report.split("\n")[0]

    def _afresh(self, members: list[Run]) -> None:
        """Stop what runs, and begin something else; members: the runs that are there already."""
        claim(None)
        self.trying, self.finding, self.members, self.planned = None, None, members, 1

    def _said(self, why: str) -> None:
        self.turns = why
        self.changed()

    def pin(self, id_: str, on: bool) -> None:
        """Keep a run in the charts, or take it out."""
        self.runs.get(id_).pinned = bool(on)

    def compare(self, id_: str) -> None:
        """Compare others with this run; "" with none."""
        self.reference = self.runs.get(id_).id if id_ else ""

    @property
    def compared(self) -> Run | None:
        """The run that others are compared with, if it is still there."""
        return next((run for run in self.runs.listed() if run.id == self.reference), None)

    def preset(self, name: str) -> None:
        """Take the settings of this name."""
        known(list(self.presets), {name: name})
        self.settings, self.chosen = self.presets[name], name

    def take_up(self, name: str) -> None:
        """Begin a challenge, with its knobs; "" ends the one that is on."""
        if not name:
            self.attempt = None
            return
        known(list(self.challenges), {name: name})
        before = frozenset(run.id for run in self.runs.listed())
        self.attempt = Attempt(name, self.challenges[name], before)
        self.settings, self.chosen = self.attempt.start, ""

    def accuse(self, client: int) -> None:
        """Name a client that lies, where that is the challenge."""
        if self.attempt is None:
            raise ParameterError(f"client={client}: no challenge is on; choose 'find the liar'")
        self.attempt.accuse(client, self.members)

    def _begun_with(self) -> str:
        """The preset whose settings these began with; "" for none."""
        return next((n for n, preset in self.presets.items() if preset == self._first), "")

    @property
    def since(self) -> list[str]:
        """The knobs that stand elsewhere than in the preset that was chosen last."""
        if not self.chosen:
            return []
        return differing([dict(self.presets[self.chosen]), dict(self.settings)])

    def paste(self, text: str) -> None:
        """Take the settings of a JSON text; those that it leaves out are as this began."""
        self.settings = read_settings(text, self._first)

    def _snapshots(self, started: Settings) -> Callable[[], Settings]:
        """The knobs as each round takes them."""

        def ask() -> Settings:
            settings = self.taken(started)
            if settings != self.in_use:  # shown when a round takes it, not when that round ends
                self.in_use = settings
                self.changed()
            return settings

        return ask

    def taken(self, started: Mapping[str, Any]) -> Settings:
        """The knobs as the next round of a run takes them; those not live stay as it started."""
        live = {name for name, found in described().items() if found.knob.live}
        fixed = {name: value for name, value in started.items() if name not in live}
        turned = {name: value for name, value in self.settings.items() if name in live}
        settings = Settings(**turned | fixed)
        return settings.without(self.unread(settings))

    def next_look(self, user: str, item: str, at: int) -> Look:
        """What to look at: the round after one of the run on show, or the first round.

        at: the number of that one; -1 for the last. Raises `ParameterError` where what it takes is
        not in this kernel.
        """
        run = self.members[-1] if self.members else None
        if run is None or not run.rounds:
            settings = self.read
            return Look(settings, settings, user=user, item=item)
        started = Settings(**run.settings)
        before, again = self._back(run, at)
        return Look(started, self.taken(started), before, again, user, item)

    def _back(self, run: Run, at: int) -> tuple[Round | None, list[dict[str, Any]]]:
        """A Round of a run to begin at, and the settings of the rounds from there to round `at`."""
        last = run.rounds[-1]
        if at in (-1, last.number) and last.params:
            return last, []
        before = self.runs.frames.nearest(run.id, at) if at > 0 else None
        done = before.number if before else 0
        fix = f"{run.name} has done {last.number} rounds; choose one of them"
        require(0 <= at <= last.number, "round", at, fix)
        return before, run.settings_by_round()[done:at]

    def branch(self, at: int) -> None:
        """Begin a run that is the one on show until round `at`, and goes on with other knobs.

        Raises `ParameterError` where there is no such run or round.
        """
        if self.runner.busy and not self.members:
            return  # one that was asked for just now is being made ready
        run = self.members[-1] if self.members else None
        single = self.live is stream and not self.trying and not self.finding
        if run is None or not run.rounds or not single:
            raise ParameterError(
                f"round={at}: no run of an experiment is on show; press Start first"
            )
        require(at > 0, "round", at, "a run from round 0 is a new one; press Start")
        before, again = self._back(run, at)
        started = Settings(**run.settings)
        fix = "the run would have no round left; turn rounds up, or choose an earlier one"
        require(self.taken(started).rounds > at, "round", at, fix)
        self._afresh([])
        run.pinned = True
        self.runner.start(self._branched(run, before, again, started))

    def _branched(
        self, run: Run, before: Round | None, again: list[dict[str, Any]], started: Settings
    ) -> Job:
        """The job of a branch: first what lies between a Round that was kept and its beginning."""
        looker = Looker(started)
        start = looker.again(before or looker.begin(), again)
        new = self.runs.branch(run, start)
        self._forget_rounds()
        self.members.append(new)
        yield from follow(self.live, self._snapshots(started), new, self.runs, start)

    def _job(self, settings: Settings, ask: Callable[[], Settings]) -> Job:
        """The job of one run, which is not begun before its first round is asked for."""
        yield from follow(self.live, ask, self._begin(settings), self.runs)

    def _begin(self, settings: Settings, name: str = "") -> Run:
        """A new run."""
        self._forget_rounds()
        run = self.runs.begin(settings, name)
        self.members.append(run)
        return run

    def _forget_rounds(self) -> None:
        """Let ended runs lose their parameters, so that memory does not fill."""
        for old in self.runs.listed():
            if old.state != "running" and old.rounds and old.rounds[-1].params:
                old.rounds = [done.light() for done in old.rounds]


def going_on(run: Run, start: Round | None, rounds: int) -> Settings:
    """The settings of a run that is resumed from a Round.

    rounds: until when, if it has done all that it was to do. Raises `ParameterError` where that is
    no more than it has done, and for settings of a part that is not here.
    """
    settings = Settings(**run.last_settings)
    done = start.number if start else 0
    if done < settings.rounds:
        return settings
    require(rounds > done, "rounds", rounds, f"{run.name} has done {done} rounds; choose more")
    return settings.replace(rounds=rounds)
