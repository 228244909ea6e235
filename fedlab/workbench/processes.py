"""Work side by side on processes of its own, one for each core: the runs of a sweep, seeds.

A process takes the steps of one iterator at a time, and each only when it is asked to, so that a
pause or a stop leaves nothing behind. It is started anew and not forked, as every system can, and
trains on one thread: processes share the cores better than threads do. What it has read, such as a
data set, it keeps for what it is given next.
"""

import os
import pickle
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedlab.core import REGISTRY, Round, require
from fedlab.engine import compiling
from fedlab.engine.fused.pool import cores
from fedlab.workbench.runner import Job

Found = TypeVar("Found")
Known = tuple[str, str, str, str]  # kind and name of a part, module and name of its class
MOST = 256  # processes
PATIENCE = 10.0  # seconds in which a process that is told to end does so


class WorkerDied(RuntimeError):  # noqa: N818 - as people say it
    """A process ended in the middle of its work."""


class Worker:
    """A process that works for this one, and the end of the pipe to it.

    files: Python files that it runs first, such as those that register parts. tells: whether it
    says on stderr that it compiles.
    """

    def __init__(self, files: Sequence[str] = (), *, tells: bool = False) -> None:
        """Start it; that takes seconds, which nobody waits for before its first answer."""
        context = get_context("spawn")
        self.files, self._work = files, "nothing"
        self.pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, files, tells), name="fedlab worker", daemon=True
        )
        self._process.start()
        other.close()
        self.alive = True

    def lacks(self, function: Callable[..., Any], parts: Iterable[Known] = ()) -> str:
        """Why it cannot call this function, or has not one of these parts; '' where it can."""
        try:
            self._send("lacks", function, list(parts))
            return str(self._answer()[1])
        except WorkerDied:
            return (
                "processes do not start here; keep what a script does under __name__ == '__main__'"
            )
        except Exception as error:  # noqa: BLE001 - whatever pickle says
            return f"it cannot be sent to another process: {error}"

    def begin(self, work: str, function: Callable[..., Iterator[Any]], *given: Any) -> None:
        """Ask for the first of what `function(*given)` yields; work: what it is, for messages."""
        self._work = work
        self._send("begin", function, given)

    def ask(self, *, keep: bool = False) -> None:
        """Ask for the next; keep: the last one is to be kept until `fetch`."""
        self._send("step", keep)

    def take(self) -> tuple[bool, Any]:
        """Whether there was another one, and what it is: a Round without its parameters.

        Raises what the function raised, and `WorkerDied`.
        """
        return self._answer()

    def fetch(self, *, keep: bool = False) -> tuple[Any, Any]:
        """The last one as a whole, and the last one that was to be kept since `fetch`; or None."""
        self._send("fetch", keep)
        return self._answer()[1]

    def end(self) -> None:
        """End the process; it notices, whatever happens here, that its pipe is closed."""
        self.alive = False
        self.pipe.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self, what: str, *given: Any) -> None:
        text = pickle.dumps((what, given))
        with suppress(OSError):  # of one that died; the answer says so
            self.pipe.send_bytes(text)

    def _answer(self) -> tuple[bool, Any]:
        try:
            text = self.pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._died() from None
        except BaseException:  # interrupted within an answer, whose rest nobody could tell
            self._process.kill()
            self.end()
            raise
        kind, value = pickle.loads(text)
        if kind == "error":
            raise value
        return kind == "value", value

    def _died(self) -> WorkerDied:
        self.end()
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return WorkerDied(
            f"{self._work}: its process {how}; systems do that when memory runs out. What is done "
            "is kept; go on with it, or choose fewer processes"
        )


class _Served:
    """What a worker holds: the iterator, its last value, and the one to be kept."""

    def __init__(self) -> None:
        self._steps: Iterator[Any] = iter(())
        self._last: Any = None
        self._kept: Any = None

    def answer(self, text: bytes) -> bytes:
        """The answer to what was asked."""
        try:
            what, given = pickle.loads(text)
            return pickle.dumps(("value", getattr(self, what)(*given)))
        except StopIteration:
            return pickle.dumps(("end", None))
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            return pickle.dumps(("error", _told(error)))

    def lacks(self, _: Callable[..., Any], parts: list[Known]) -> str:
        """See `Worker`."""
        missing = [part for part in parts if part != known(*part[:2])]
        where = "stands in a cell, or in a file that other processes do not read"
        return f"{missing[0][1]!r} {where}" if missing else ""

    def begin(self, function: Callable[..., Iterator[Any]], given: tuple[Any, ...]) -> Any:
        """See `Worker`."""
        self._last = self._kept = None
        self._steps = function(*given)
        return self.step(False)

    def step(self, keep: bool) -> Any:
        """See `Worker.ask`."""
        self._kept = self._last if keep else self._kept
        self._last = next(self._steps)
        return self._last.light() if isinstance(self._last, Round) else self._last

    def fetch(self, keep: bool) -> tuple[Any, Any]:
        """See `Worker`."""
        kept, self._kept = self._last if keep else self._kept, None
        return self._last, kept


def _told(error: Exception) -> Exception:
    """The error as it can be sent, with where it was raised as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - classes of errors may do anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _serve(pipe: Connection, files: Sequence[str], tells: bool) -> None:
    """Answer until the pipe is closed, which it also is when the other process dies."""
    if hasattr(os, "setsid"):
        os.setsid()  # processes of one session share one share of the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks for work decides when to stop
    torch.set_num_threads(1)
    for path in files:
        runpy.run_path(path, run_name=Path(path).stem)
    served = _Served()
    telling = compiling(partial(print, file=sys.stderr, flush=True)) if tells else nullcontext()
    with telling, suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(served.answer(pipe.recv_bytes()))
    os._exit(0)  # nothing is left to tidy up, which would take a second


def known(kind: str, name: str) -> Known:
    """What tells a part from others of its name in another process."""
    part = REGISTRY.get(kind, {}).get(name)
    module = getattr(part, "__module__", "").replace("__mp_main__", "__main__")
    return kind, name, module, getattr(part, "__qualname__", "")


def width(processes: int, jobs: int) -> int:
    """How many processes to use for so many jobs; processes: 0 for one on each core."""
    fix = f"choose 1 to {MOST}, or 0 for one on each core"
    require(0 <= processes <= MOST, "processes", processes, fix)
    return max(1, min(processes or cores(), jobs))


def abreast(jobs: Iterable[Callable[[Worker], Job]], crew: list[Worker]) -> Job:
    """A job: each worker of the crew takes a job, and the next when it ends; a failed one is alone.

    jobs: functions that begin one, given a worker; at each step it takes one answer. A worker that
    died is replaced in the crew.
    """
    waiting, open_jobs = iter(jobs), dict[int, Job]()
    try:
        while True:
            free = [place for place in range(len(crew)) if place not in open_jobs]
            while free and (begin := next(waiting, None)):
                if not crew[free[0]].alive:
                    crew[free[0]] = Worker(crew[free[0]].files)
                job = begin(crew[free[0]])
                if _stepped(job):
                    open_jobs[free.pop(0)] = job
            if not open_jobs:
                return
            ready = wait([crew[place].pipe for place in open_jobs])
            for place in [place for place in open_jobs if crew[place].pipe in ready]:
                if _stepped(open_jobs[place]):
                    yield
                else:
                    del open_jobs[place]
    finally:
        for job in open_jobs.values():
            with suppress(Exception):  # noted in its own run
                job.close()


def _stepped(job: Job) -> bool:
    try:
        next(job)
    except StopIteration:
        return False
    except Exception:  # noqa: BLE001 - noted by the job itself; the others go on
        return False
    return True


def hired(
    count: int, function: Callable[..., Any], parts: Iterable[Known] = (), files: Sequence[str] = ()
) -> tuple[list[Worker], str]:
    """So many workers that can call this function, and ''; or none, and why not."""
    try:
        pickle.dumps(function)
    except Exception as error:  # noqa: BLE001 - whatever pickle says
        return [], f"it cannot be sent to another process: {error}"
    crew = [Worker(files, tells=not place) for place in range(count)]
    why = ""
    try:
        why = next(filter(None, (worker.lacks(function, parts) for worker in crew)), "")
    except BaseException:
        dismissed(crew)
        raise
    if why:
        dismissed(crew)
    return ([] if why else crew), why


def dismissed(crew: Sequence[Worker]) -> None:
    """End all workers."""
    for worker in crew:
        worker.pipe.close()
    for worker in crew:
        worker.end()


def over_seeds(
    job: Callable[[int], Found], seeds: Iterable[int], processes: int = 0
) -> Iterator[Found]:
    """Yield job(seed) for each seed, in their order, worked out side by side.

    job: a function of a module or script, so that another process can import it; one of a
    notebook's cell is called for one seed after another here, with a warning. processes: 0 for one
    on each core. Raises what `job` raises, and `WorkerDied`.

    >>> list(over_seeds(abs, [0, -1, -2], processes=1))
    [0, 1, 2]
    """
    every, why = list(seeds), ""
    count = width(processes, len(every))
    if count > 1:
        crew, why = hired(count, job)
        if crew:
            try:
                yield from _in_order(job, every, crew)
            finally:
                dismissed(crew)
            return
    if why:
        warnings.warn(f"seeds run one by one: {why}", stacklevel=2)
    yield from map(job, every)


def _in_order(job: Callable[[int], Found], seeds: list[int], crew: list[Worker]) -> Iterator[Found]:
    found = dict[int, Any]()

    def one(place: int, worker: Worker) -> Job:
        try:
            worker.begin(f"seed {seeds[place]}", map, job, seeds[place : place + 1])
            yield
            found[place] = worker.take()
            worker.ask()
            yield
            worker.take()
        except Exception as error:  # noqa: BLE001 - raised when it is the turn of this seed
            found.setdefault(place, (False, error))

    steps = abreast([partial(one, place) for place in range(len(seeds))], crew)
    try:
        for given in range(len(seeds)):
            while given not in found:
                next(steps, None)
            fine, value = found[given]
            if not fine:
                raise value
            yield value
    finally:
        steps.close()
