"""The folder of a run: its log, its checkpoints, its best model, and a lock while it is live.

    RUNS/20260131-120000-000000-1f2e/log.jsonl      settings, rounds, events; see `log`
                                     head           the chain of the log's last line
                                     checkpoint/    the last two, a folder for each
                                     best/          the best model so far
                                     lock           held by the process that trains it

The system drops the lock when the process dies, however it dies. Whoever holds it may write, and
nobody else. A path is made of the folder of runs, an id of one strict form and the names above,
never of what a file says; what is removed are files of these names and folders left empty.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fedlab.core import (
    ParameterError,
    Round,
    bring_checkpoint,
    checkpoints_in,
    load_noted,
    numbered,
    remove_checkpoint,
    require,
    save_round,
)
from fedlab.core.checkpoints import FILES, MANIFEST, bring_to_disk
from fedlab.workbench.runs.log import HEAD, LOG, START, Log, read_log
from fedlab.workbench.runs.run import Record, Run, restored
from fedlab.workbench.runs.saver import Offered, Saver

ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{4}", re.ASCII)
LOCK, CHECKPOINT, BEST = "lock", "checkpoint", "best"
KEPT = {CHECKPOINT: 2, BEST: 1}  # how many
LEFT_OVER = re.compile(r"\.[0-9]{8}\.[0-9a-f]{8}\.(new|old)", re.ASCII)
WAIT = 0.5  # seconds that a lock is waited for: others look for a moment whether it is held


def place(runs: Path, id_: str) -> Path:
    """The folder of the run that has this id."""
    ok = ID.fullmatch(id_) is not None
    require(ok, "run", id_, "not the id of a run, such as 20260131-120000-000000-1f2e")
    return runs / id_


def read(path: Path) -> Run:
    """The run in a folder; `ParameterError` says what is wrong with it."""
    plain = not path.is_symlink() and path.is_dir()
    require(plain, str(path), "no folder", "a run is a folder, and not a link to one")
    place(path.parent, path.name)
    found = read_log(path)
    run = restored(path.name, found.lines, str(path / LOG))
    run.home = path
    if found.cut:
        run.state, run.error = "interrupted", found.cut
    if _held_elsewhere(path):
        run.state, run.error = "running elsewhere", "another process trains it"
    return run


def _lock(path: Path) -> FileLock:
    # the thread that ends a run is not the one that began it
    return FileLock(path / LOCK, thread_local=False, fallback_to_soft=False)


def _held_elsewhere(path: Path) -> bool:
    try:
        with _lock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # where nothing can be written, nothing is trained
        return False


class RunFolder:
    """The folder of one run, held by this process until it is closed."""

    def __init__(self, path: Path, lock: FileLock, chain: str, size: int) -> None:
        """path: of a folder whose lock is held. chain, size: of its log."""
        self.path, self._held = path, lock
        self.log = Log(path, chain, size)
        self._saver: Saver | None = None
        self._last_line = self._best_line = ""  # chains of the lines of the last and best Round

    @classmethod
    def made(cls, path: Path) -> "RunFolder":
        """A new folder; raises OSError, FileExistsError where there is one."""
        path.mkdir()
        lock = _lock(path)
        lock.acquire(timeout=WAIT)
        bring_to_disk(path.parent)
        return cls(path, lock, START, 0)

    @classmethod
    def held(cls, path: Path) -> "tuple[RunFolder, Run]":
        """A folder that is there, with the run in it; `ParameterError` where that cannot be."""
        run, lock = path.name, _lock(path)
        require(path.is_dir() and not path.is_symlink(), "run", run, "its folder is gone")
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            fix = "another process trains it; wait until it has ended, or stop it there"
            raise ParameterError(f"run={run!r}: {fix}") from None
        try:
            found = read_log(path)
            again = restored(run, found.lines, str(path / LOG))
            if found.cut:
                again.state, again.error = "interrupted", found.cut
            again.home = path
            for shelf in KEPT:
                own = not (path / shelf).is_symlink()
                require(own, "run", run, f"{path / shelf} is a link, which is not followed")
                _tidy(path / shelf)
            folder = cls(path, lock, found.chains[-1], found.size)
            if found.cut:
                folder.log.add({"lost": found.cut})  # or the next line would hide it
            return folder, again
        except BaseException:
            lock.release()
            raise

    def save_rounds(self, failed: Callable[[Exception], None]) -> None:
        """Begin to save Rounds in the background; failed: told of what cannot be saved."""
        self._saver = Saver(self._save, self._settle, failed)

    def mark(self, *, best: bool) -> None:
        """Remember that the last line of the log is of a Round, which may be offered later."""
        self._last_line = self.log.chain
        self._best_line = self._last_line if best else self._best_line

    def offer(self, last: Round, best: Round | None = None) -> None:
        """Let the last Round that was marked, and the best, be saved in due time."""
        if self._saver and best and self._best_line:
            self._saver.offer((best, self._best_line), best=True)
        if self._saver and best is not last:
            self._saver.offer((last, self._last_line), best=False)

    def _save(self, last: Offered, best: Offered | None) -> None:
        """Write checkpoints: the best first, so that the last one is never ahead of it."""
        if best:
            done, chain = best
            state = {"ledger": done.state["ledger"]} if "ledger" in done.state else {}
            if run := done.state.get("run"):  # what an export checks
                state["run"] = {name: run[name] for name in ("model", "data") if name in run}
            self._put(BEST, replace(done, state=state), chain)
        self._put(CHECKPOINT, *last)

    def _put(self, shelf: str, done: Round, chain: str) -> None:
        (self.path / shelf).mkdir(exist_ok=True)  # fails where the run's folder is gone
        new = numbered(self.path / shelf, done.number)
        save_round(done, new, f"{shelf} {chain}", durable=False)
        for later in checkpoints_in(self.path / shelf):
            if later > new:  # of before the run was resumed
                remove_checkpoint(later)

    def _settle(self) -> None:
        """Bring the newest checkpoints to the disk; only then remove those before them."""
        self.log.to_disk()
        for name, count in KEPT.items():
            shelf = self.path / name
            for newest in checkpoints_in(shelf)[-1:]:
                bring_checkpoint(newest)
                every = checkpoints_in(shelf)
                stay = [*[p for p in every if p <= newest][-count:], every[-1]]
                for other in every:
                    if other not in stay:
                        remove_checkpoint(other)

    def finish(self) -> None:
        """Save the last Round that was offered, and wait for it."""
        if self._saver:
            self._saver.finish()

    def close(self) -> None:
        """Let go of the folder."""
        self.finish()
        try:
            self.log.to_disk()
        finally:
            self.log.close()
            self._held.release()


def kept(path: Path, shelf: str, device: str = "cpu") -> tuple[Round | None, str]:
    """The newest Round in a run's folder, None where there is none; and what is to be said of it.

    shelf: `CHECKPOINT` or `BEST`. A checkpoint that is damaged, or that the log has not, is passed
    over for the one before it. Raises `ParameterError` where no other is whole.
    """
    return _kept(path, shelf, device)[:2]


def best(path: Path) -> tuple[Round, Run] | None:
    """The best Round in a run's folder, and the run as it was when that round ended."""
    done, _, lines = _kept(path, BEST)
    if done is None:
        return None
    then = restored(path.name, lines, str(path / LOG))
    own = [each["round"] for each in then.records[-1:]] == [done.number]
    require(own, "best", f"round {done.number}", "its line in the log is of another round")
    return done, then


def _kept(path: Path, shelf: str, device: str = "cpu") -> tuple[Round | None, str, list[Record]]:
    """What `kept` gives, and the lines of the log up to that of the Round."""
    said, found = "", read_log(path)
    notes = [f"{shelf} {chain}" for chain in found.chains]
    for folder in reversed(checkpoints_in(path / shelf)):
        try:
            done, note = load_noted(folder, device)
            require(
                note in notes,
                str(folder),
                f"round {done.number}",
                "the log of this run does not have it; take the model with "
                f"load_round({str(folder)!r}), and begin another run from it",
            )
        except ParameterError as error:
            said = said or str(error)
            continue
        return done, said, found.lines[: notes.index(note) + 1]
    require(not said, shelf, said, "there is no other; begin another run")
    return None, "", []


def _tidy(shelf: Path) -> None:
    """Remove what a kill has left of a checkpoint; one that was to be replaced is put back."""
    if shelf.is_symlink() or not shelf.is_dir():
        return
    for path in sorted(p for p in shelf.iterdir() if LEFT_OVER.fullmatch(p.name)):
        own = shelf / path.name[1:9]
        if path.name.endswith(".old") and not own.exists() and not path.is_symlink():
            path.rename(own)
        remove_checkpoint(path)


def delete(path: Path) -> None:
    """Remove a run's folder: the files of a run by their names, and folders left empty.

    `ParameterError` where another process trains it, or where the folder holds anything else;
    nothing is removed then.
    """
    plain = path.is_dir() and not path.is_symlink()
    require(plain, "run", path.name, f"{path} is no folder of a run; remove it by hand")
    lock = _lock(path)
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise ParameterError(f"run={path.name!r}: another process trains it") from None
    try:
        other = [p for p in path.iterdir() if p.name not in (LOG, HEAD, LOCK, *KEPT)]
        for shelf in KEPT:
            _tidy(path / shelf)
            other += _strange(path / shelf)
        require(not other, "run", path.name, f"its folder holds {other[:3]}; move that away first")
        for shelf in KEPT:
            for each in checkpoints_in(path / shelf):
                remove_checkpoint(each)
            if (path / shelf).is_dir():
                (path / shelf).rmdir()
        for name in (HEAD, LOG, LOCK):
            (path / name).unlink(missing_ok=True)
        path.rmdir()
    finally:
        lock.release()


def _strange(shelf: Path) -> list[Path]:
    """What is in a folder of checkpoints, and is none; the folder itself, where it is a link."""
    if shelf.is_symlink() or not shelf.is_dir():
        return [shelf] if shelf.is_symlink() or shelf.exists() else []
    ours = checkpoints_in(shelf)
    inside = [p for each in ours if each.is_dir() for p in each.iterdir()]
    return [
        *(p for p in shelf.iterdir() if p not in ours),
        *(p for p in ours if p.is_symlink() or not p.is_dir()),
        *(p for p in inside if p.name not in (MANIFEST, *FILES) or p.is_dir()),
    ]


def copy(path: Path, runs: Path) -> Path:
    """Copy the files of a run, by their names, into another folder of runs; return the new folder.

    A folder that is there already stays as it is.
    """
    new = place(runs, path.name)
    if new.exists() or new.is_symlink():
        return new
    new.mkdir()
    for shelf in KEPT:
        for each in checkpoints_in(path / shelf):
            (new / shelf / each.name).mkdir(parents=True)
            for name in (*FILES, MANIFEST):
                if (each / name).is_file() and not (each / name).is_symlink():
                    _copy(each / name, new / shelf / each.name / name)
    for name in (HEAD, LOG):
        if (path / name).is_file() and not (path / name).is_symlink():
            _copy(path / name, new / name)
    return new


def _copy(path: Path, new: Path) -> None:
    with new.open("xb") as file:
        file.write(path.read_bytes())
    bring_to_disk(new)
