"""The runs of a sweep, side by side: on processes, one a core, or in turns where that cannot be.

A process trains and measures; this one notes what comes, in the run's own folder. Rounds come
without their parameters, and those at the pace at which checkpoints are saved. A run has the same
bits wherever it trains: no draw hangs on who is beside it, and no sum on how many threads there
are.

What private runs release is booked by each process in the one ledger of the folder, under its lock
and before the round. All that is booked counts whatever the order; but an epsilon on the way, and
which run ends where there is a budget, hang on who was first. So runs with a budget take turns
here, in the same order each time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedlab.core import Round, Settings
from fedlab.privacy import Ledger
from fedlab.workbench.experiment import Experiment, stream
from fedlab.workbench.processes import Known, Worker, abreast, dismissed, hired, known, width
from fedlab.workbench.runner import Job, Live, follow, noted, side_by_side, takes
from fedlab.workbench.runs import Run, Runs

TURNS = 4  # runs that take turns where they share a process
PACE = 1.0  # seconds between two Rounds that come as a whole, to be saved

Begin = Callable[[Settings, str], Run]


@dataclass(frozen=True)
class Trials:
    """The runs of a sweep, and what they have in common.

    live: their stream. named: name and settings of each. runs: where they are kept. begin: makes a
    new run in there of settings and a name. said: told why runs do not train on processes. files:
    Python files that register parts, which other processes read as well.
    """

    live: Live
    named: Sequence[tuple[str, Settings]]
    runs: Runs
    begin: Begin
    said: Callable[[str], None]
    files: Sequence[str] = ()

    def job(self, processes: int = 0) -> Job:
        """A job that trains all of them; processes: how many, 0 for one on each core."""
        count = width(processes, len(self.named))
        why = self._together() if count > 1 else ""
        if count > 1 and not why:
            crew, why = hired(count, self.live, self.parts(), self.files)
            if crew:
                try:
                    yield from self.on(crew)
                finally:
                    dismissed(crew)
                return
        if why:
            self.said(f"runs take turns in one process: {why}")
        yield from self.in_turns()

    def on(self, crew: list[Worker]) -> Job:
        """A job that trains them on these workers, who are there for others afterwards."""
        yield from abreast([partial(self._there, *each) for each in self.named], crew)

    def in_turns(self, width: int = TURNS) -> Job:
        """A job that trains them in this process; width: how many of them take turns."""
        yield from side_by_side([partial(self._here, *each) for each in self.named], width)

    def _together(self) -> str:
        """Why the runs must stay together, whatever processes there are; ''."""
        limited = any(trial.budget and trial.teaching_seed < 0 for _, trial in self.named)
        shared = limited and self.runs.folder is not None
        return "they share one budget, and who is first would decide which of them it ends" * shared

    def parts(self) -> set[Known]:
        """The parts that a process must have; only for experiments can this be told."""
        if self.live is not stream:
            return set()
        return {known(*part) for _, trial in self.named for part in Experiment(trial).named}

    def _here(self, name: str, trial: Settings) -> Job:
        run = self.begin(trial, name)
        yield from follow(self.live, lambda: trial, run, self.runs)

    def _there(self, name: str, trial: Settings, worker: Worker) -> Job:
        """A job: one run, each step of which takes a Round from a worker."""
        run, runs = self.begin(trial, name), self.runs
        with noted(run, runs):
            ledger = runs.ledger if takes(self.live, "ledger") else None
            path = ledger.path if ledger else None
            worker.begin(f"the run {name!r}", rounds_of, self.live, trial, path)
            best, due, stopped = False, time.monotonic() + PACE, False
            try:
                while not stopped:
                    try:
                        yield
                    except GeneratorExit:  # what is under way is taken, too
                        stopped = True
                    more, done = worker.take()
                    if not more:
                        return
                    best = runs.add(run, done, trial)
                    if runs.saves(run) and time.monotonic() >= due:
                        runs.keep(run, *worker.fetch(keep=best))
                        best, due = False, time.monotonic() + PACE
                    if not stopped:
                        worker.ask(keep=best)
                        best = False
                raise GeneratorExit
            finally:
                if worker.alive and run.rounds:
                    runs.keep(run, *worker.fetch(keep=best))


def rounds_of(live: Live, trial: Settings, ledger: Path | None) -> Iterator[Round]:
    """The Rounds of a run in a process that has one core: on one thread, if the run leaves it open.

    ledger: the file in which it books. Threads change no bit, so the settings say nothing of them.
    """
    more = {"ledger": Ledger(ledger)} if ledger else {}
    open_ = live is stream and not trial.workers and "workers" not in Experiment(trial).unread()
    asked = trial.replace(workers=1) if open_ else trial
    for done in live(lambda: asked, **more):
        yield replace(done, settings=done.settings.without(["workers"])) if open_ else done
