"""What a workbench does, without its view.

Settings that are turned, runs that train, sweeps that fill.

See `fedlab.runner` for the thread and `fedlab.runs` for what is kept.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedlab.core import Config, Round, knobs, known, require, settings
from fedlab.workbench.run_store import Runs
from fedlab.workbench.runner import Job, Runner, claim, follow, side_by_side
from fedlab.workbench.runs import Run
from fedlab.workbench.sweep import Sweep

Live = Callable[[Callable[[], Any]], Iterator[Round]]
WIDTH = 4                # runs of a sweep that train side by side


class Session:
    """Settings, runs and the one job over a stream of Rounds.

    live: a function from a settings-giving function to a stream of Rounds. config: where the knobs
    start. metrics: name -> 'max' or 'min', what is better; the loss is always there. folder: where
    runs are kept. presets: name -> settings. changed: called after each round and each change of
    state, from the thread.
    """

    def __init__(self, live: Live, config: Config, metrics: Mapping[str, str], folder: str | Path | None,
                 presets: Mapping[str, Config], changed: Callable[[], None]) -> None:
        """Stop what ran in this kernel before, so that running a cell again starts afresh."""
        self.metrics = {"loss": "min"} | dict(metrics)
        for name, mode in self.metrics.items():
            require(mode in ("min", "max"), f"metrics[{name!r}]", mode,
                    "write 'min' if lower is better, or 'max'")
        self.presets = presets
        claim(None)
        self.live, self.runs, self.runner, self.changed = live, Runs(folder), Runner(
            changed), changed
        self.members: list[Run] = []         # what the last start or sweep trains
        self.trying: Sweep | None = None
        self.planned = 1                     # runs of the sweep
        self.began = 0.0                     # when it was started, monotonic seconds
        self.in_use: Config | None = None    # what the round under way, or the last one, was given
        self._first = self._config = config
        self._lock = threading.Lock()

    @property
    def config(self) -> Config:
        """The settings as the knobs stand, in one piece."""
        with self._lock:
            return self._config

    @config.setter
    def config(self, config: Config) -> None:
        with self._lock:
            self._config = config

    @property
    def progress(self) -> float:
        """Share of the rounds that are done, of all runs of a sweep."""
        return min(sum(len(run.records) for run in self.members) / (self.config.rounds
                                                                    * self.planned), 1.0)

    def shown(self) -> list[Run]:
        """What belongs into a chart: the runs that train, or the last one, and those pinned."""
        current = [run for run in self.members if run.state == "running"] or self.members[-1:]
        return [run for run in self.runs.listed() if run.pinned or run in current]

    def start(self, rounds: float = float("inf")) -> None:
        """Go on after a pause, or begin a new run; pause after so many rounds."""
        if self.runner.state == "paused":
            return self.runner.go(rounds)
        claim(None)
        self.trying, self.members, self.planned = None, [], 1
        return self.runner.start(self._job(self.config, self._snapshots(self.config)), rounds)

    def step(self) -> None:
        """One round, then pause."""
        self.start(1)

    def stop(self) -> None:
        """Ask the job to end after the round under way; does not wait."""
        self.runner.stop(wait=False)

    def reset(self) -> None:
        """Stop, forget what was shown but for pinned runs.

        And put the knobs back to where they began.
        """
        self.runner.reset()
        self.trying, self.members, self.in_use, self.config = None, [], None, self._first

    def sweep(self, what: Sweep) -> None:
        """Train every trial of a sweep, some side by side."""
        require(what.metric in self.metrics, "metric", what.metric,
                f"choose one of {', '.join(self.metrics)}")
        trials = what.trials(self.config)
        claim(None)
        self.in_use = None
        self.trying, self.members, self.planned, self.began = what, [], len(
            trials), time.monotonic()
        jobs = [partial(self._job, trial, partial(_same, trial),
                        what.name(trial)) for trial in trials]
        self.runner.start(side_by_side(jobs, WIDTH))

    def pin(self, id_: str, on: bool) -> None:
        """Keep a run in the charts, or take it out."""
        self.runs.get(id_).pinned = bool(on)

    def preset(self, name: str) -> None:
        """Take the settings of this name."""
        known(list(self.presets), {name: name})
        self.config = self.presets[name]

    def paste(self, text: str) -> None:
        """Take the settings of a JSON, see `fedlab.settings`."""
        self.config = settings.read(text, self.config)

    def _snapshots(self, started: Config) -> Callable[[], Config]:
        """The knobs as each round takes them; those that are not live stay as the run started."""
        fixed = {name: getattr(started, name) for name,
                 knob in knobs(type(started)).items() if not knob.live}

        def ask() -> Config:
            config = replace(self.config, **fixed)
            if config != self.in_use:  # shown when a round takes it, not when that round ends
                self.in_use = config
                self.changed()
            return config
        return ask

    def _job(self, config: Config, ask: Callable[[], Config], name: str = "") -> Job:
        """One run; it is not there before its first round is asked for."""
        # ended ones lose their parameters, so that memory does not fill
        for old in self.runs.listed():
            if old.state != "running" and old.rounds and old.rounds[-1].params:
                old.rounds = [done.light() for done in old.rounds]
        run = self.runs.begin(config, name)
        self.members.append(run)
        yield from follow(partial(self.live, ask), run, self.runs)


def _same(config: Config) -> Config:
    return config
