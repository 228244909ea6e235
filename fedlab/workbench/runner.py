"""The one thread of the package, which takes a job's steps until it is told to pause or stop.

A job is an iterator that does a round's work each time it is asked. Training runs here and never in
a cell, so that clicks and sliders get through; one job is active in a kernel, and starting another
stops it.
"""

import ctypes
import inspect
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from fedlab.core import Round, Settings, require
from fedlab.workbench.runs import Run, Runs

SWITCH = 0.0001  # seconds after which a thread that computes hands over, while a run is under way
Job = Generator[None, None, None]
Live = Callable[..., Iterator[Round]]  # given a function that gives settings; start= to go on from
_active: "Runner | None" = None
_lock = threading.Lock()


class Runner:
    """Drives a job in a thread. state: ready, running, paused, stopping, stopped, done or failed.

    error: the message of what ended a failed job; it stays until the next start.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """changed: called after each round and each change of state, mostly from the thread."""
        self.changed = changed
        self.state, self.error = "ready", ""
        self._turn = threading.Condition()
        self._allowed = math.inf  # rounds that may still begin
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is under way, paused ones too."""
        return self.state in ("running", "paused", "stopping")

    def start(self, job: Job, rounds: float = math.inf) -> None:
        """Begin a job and stop whatever else runs in this kernel; pause after `rounds` rounds."""
        claim(self)
        self.error, self._allowed, self._stopping = "", rounds, False
        self._thread = threading.Thread(target=self._run, args=(job,), name="fedlab", daemon=True)
        self._enter("running")
        self._thread.start()

    def go(self, rounds: float = math.inf) -> None:
        """Go on after a pause, for `rounds` rounds."""
        with self._turn:
            if self.state != "paused":
                return
            self._allowed = rounds
            self.state = "running"
            self._turn.notify_all()
        self.changed()

    def pause(self) -> None:
        """Pause after the round under way."""
        with self._turn:
            if self.state != "running":
                return
            self._allowed = 0
            self.state = "paused"
        self.changed()

    def stop(self, *, wait: bool = True) -> None:
        """End after the round under way and keep what is done; wait: return when it has ended."""
        with self._turn:
            self._stopping = True
            if self.busy:
                self.state = "stopping"
            self._turn.notify_all()
        self.changed()
        if wait and self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def reset(self) -> None:
        """Stop, and be as if nothing had run."""
        self.stop()
        self.error = ""
        self._enter("ready")

    def _enter(self, state: str) -> None:
        with self._turn:
            self.state = state
        self.changed()

    def _run(self, job: Job) -> None:
        _keep_freed_memory()
        state = "failed"
        try:
            with _at_hand(), closing(job):
                for _ in job:
                    if not self._may_go_on():
                        break
            state = "stopped" if self._stopping else "done"
        except Exception as error:  # noqa: BLE001 - for the status line
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._enter(state)

    def _may_go_on(self) -> bool:
        """Count the round that ended, show it, and wait while there is a pause."""
        with self._turn:
            self._allowed -= 1
            if self._allowed <= 0 and self.state == "running" and not self._stopping:
                self.state = "paused"
        self.changed()
        with self._turn:
            self._turn.wait_for(lambda: self._allowed > 0 or self._stopping)
            return not self._stopping


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a round frees for the next one.

    A thread's rounds are then as fast as a cell's. Off the main thread glibc hands memory back at
    once, and every round asked for it again: 373 page faults, a tenth of a round of 64 users
    (medians of 20 runs taken in turn). The two numbers are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 32 << 20)
        mallopt(-1, 256 << 20)


@contextmanager
def _at_hand() -> Iterator[None]:
    """Have Python change threads sooner, so that a run goes on beside a cell that computes.

    A round asks for the interpreter's lock some thousand times, and a cell of pure Python gives it
    up once an interval only. Beside one that counts, a first round came more than 5 s after the
    click with Python's own 5 ms, 1.0 s with 0.5 ms, and 0.5 s with this (medians of 25).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def claim(runner: Runner | None) -> None:
    """Make `runner` the one that is active in this kernel, and stop the one before."""
    global _active  # noqa: PLW0603 - the one registry of the one active run
    with _lock:
        if _active:
            _active.stop()
        _active = runner


@contextmanager
def noted(run: Run, runs: Runs) -> Iterator[None]:
    """Note how a run ended, whichever way that was."""
    state, reason = "stopped", ""
    try:
        yield
        state = "done"
    except Exception as error:
        state, reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        runs.end(run, state, reason)


def takes(live: Live, name: str) -> bool:
    """Whether a stream takes `start`, to go on from, or `ledger`, to book in."""
    return name in inspect.signature(live).parameters


def follow(
    live: Live, ask: Callable[[], Settings], run: Run, runs: Runs, start: Round | None = None
) -> Job:
    """A job: note each Round of `live(ask)` in `run`, and how it ended.

    start: a Round to go on from. A stream that takes `ledger` gets that of the folder of runs.
    """
    asked = Settings()

    def remembered() -> Settings:
        nonlocal asked
        asked = ask()
        return asked

    with noted(run, runs):
        more: dict[str, Any] = {} if start is None else {"start": start}
        if takes(live, "ledger"):
            more["ledger"] = runs.ledger
        for done in live(remembered, **more):
            runs.add(run, done, asked)
            yield


def side_by_side(jobs: Iterable[Callable[[], Job]], width: int) -> Job:
    """A job: `width` jobs at a time take turns, a round each; one that fails ends alone.

    jobs: functions that start one, called when there is room. Each keeps its own note of how it
    ended.
    """
    require(width >= 1, "width", width, "choose 1 or more runs at a time")
    waiting, open_jobs = iter(jobs), deque[Job]()
    try:
        while True:
            while len(open_jobs) < width and (begin := next(waiting, None)):
                open_jobs.append(begin())
            if not open_jobs:
                return
            job = open_jobs.popleft()
            try:
                next(job)
                open_jobs.append(job)
            except StopIteration:
                continue
            except Exception:  # noqa: BLE001 - noted in its own run by `follow`; the others go on
                continue
            yield
    finally:
        for job in open_jobs:
            job.close()
