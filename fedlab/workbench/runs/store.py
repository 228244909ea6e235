"""The runs of a workbench: begun, resumed, renamed, deleted, and each kept in a folder of its own.

A folder of runs may be open in several processes: a run that one of them trains is listed in the
others as running elsewhere, and they leave it alone. A folder that is no run any more is listed as
damaged, with the reason, and the others open.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlab.algorithms.loop import check_device
from fedlab.core import DataError, ParameterError, Round, Settings, require
from fedlab.core.checkpoints import bring_to_disk
from fedlab.privacy import Ledger
from fedlab.workbench.runs.folder import (
    CHECKPOINT,
    ID,
    RunFolder,
    best,
    copy,
    delete,
    kept,
    place,
    read,
)
from fedlab.workbench.runs.keyframes import Keyframes
from fedlab.workbench.runs.log import LOG
from fedlab.workbench.runs.run import Record, Run, end, fit, new_id, record, shown, whole

LEDGER = "ledger"  # the file, beside the folders of the runs
COSTS = ("epsilon", "staleness")  # metrics that say nothing of how good a model is
GONE = (
    "its checkpoints are gone, so it cannot go on after the rounds that its log has; export its "
    "best model, or begin another run"
)
Beside = Callable[[Settings], dict[str, dict[str, float]]]
Lead = Callable[[Settings, Round], dict[str, Any]]
NO_CONTROL = "write it on one line, without control characters and halves of characters"


class Runs:
    """The runs of a workbench by id, oldest first; with a folder, each is kept there as it goes.

    trouble: why runs are not being saved, or what could not be read; the runs themselves go on in
    memory. unsaved: ids of the runs of which something could not be saved.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        metrics: Mapping[str, str] | None = None,
        usual: Callable[[Settings], Mapping[str, Any]] | None = None,
        beside: Beside | None = None,
        lead: Lead | None = None,
    ) -> None:
        """folder: where runs are kept; it is made if missing, and runs that lie there are read.

        metrics: name -> whether 'max' or 'min' is better. By the first of them that a run measures,
        else by the loss, its best model is kept beside the last. usual: what a run reads beside its
        settings, which is noted, too; see `fedlab.workbench.usual_knobs`. beside, lead: what a run
        stands beside, and by how much its best Round is ahead; see `fedlab.workbench.beside`.
        """
        self.usual, self.beside, self.lead = usual, beside, lead
        self.all: dict[str, Run] = {}
        self.folder: Path | None = None
        self.trouble = ""
        self.unsaved: set[str] = set()
        self.metrics = {n: mode for n, mode in (metrics or {}).items() if n not in COSTS}
        self.frames = Keyframes()
        self._ledger: Ledger | None = None
        self._live: dict[str, RunFolder] = {}  # of those that train here
        self._lock = threading.RLock()  # rounds come from the runner's thread, clicks from another
        if folder is not None:
            self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Keep runs in this folder from now on.

        Those that lie there are read, and those of before are written. What private runs released
        is booked in the new folder from then on, after all that was booked in the one before; where
        both have booked already, each counts apart, and `trouble` says so.
        """
        with self._lock:
            before, self.folder, self.trouble = self.folder, Path(folder), ""
            mine = list(self.all.values())
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in sorted(self.folder.iterdir()):
                    self._read(path)
                if before is not None:
                    self._bring_ledger(before, self.folder)
            except OSError as error:
                self._failed(error)
            self.all = {id_: self.all[id_] for id_ in sorted(self.all)}
            for run in mine:
                if run.state not in ("damaged", "running elsewhere"):
                    self._bring(run)

    @property
    def ledger(self) -> Ledger | None:
        """Where what private runs release is booked; None without a folder.

        Raises `ParameterError` for one that was edited.
        """
        if self.folder is None:
            return None
        path = self.folder / LEDGER
        if self._ledger is None or self._ledger.path != path:
            self._ledger = Ledger(path)
        return self._ledger

    def _bring_ledger(self, before: Path, folder: Path) -> None:
        """Copy the ledger of the folder before, unless there is another one."""
        old, new = before / LEDGER, folder / LEDGER
        if not old.exists() or before.resolve() == folder.resolve():
            return
        if new.exists():
            if not new.read_bytes().startswith(old.read_bytes()):  # else it has all of the other
                self.trouble = (
                    f"{old} and {new} count apart what was released of the same people: epsilon is "
                    "that of one folder alone. Keep private runs in one folder"
                )
            return
        head = f"{LEDGER}.head"
        for name in (head, LEDGER):  # a ledger without its head would be one that was cut
            if (before / name).exists():
                half = folder / f".{name}.new"
                shutil.copyfile(before / name, half)
                bring_to_disk(half)
                half.replace(folder / name)

    def _taken(self, id_: str) -> bool:
        return id_ in self.all or (self.folder is not None and place(self.folder, id_).exists())

    def _read(self, path: Path) -> None:
        """Read a run, or what is left of one; other files and folders are passed by."""
        if path.suffix == ".jsonl":
            self.trouble = (
                f"{path}: a run of an earlier edition, which kept a file for each; this one keeps "
                "a folder for each, and does not read it. Move it away"
            )
        ours = ID.fullmatch(path.name) or (path / LOG).exists()
        if path.name in self.all or not ours:
            return
        try:
            self.all[path.name] = read(path)
        except (ParameterError, OSError) as error:
            said = shown(str(error))
            bad = Run(shown(path.name), {}, path.name, "", "damaged", said, home=path)
            self.all[path.name], self.trouble = bad, said

    def begin(self, settings: Settings, name: str = "") -> Run:
        """Begin a new run, named 'run N' unless told otherwise.

        Raises `ParameterError` for texts that no line can hold.
        """
        for what, value in {"name": name, **settings}.items():
            require(not isinstance(value, str) or fit(value), what, value, NO_CONTROL)
        with self._lock:
            run = Run(name or f"run {len(self.all) + 1}", dict(settings))
            run.usual = dict(self.usual(settings)) if self.usual else {}
            while self._taken(run.id):  # a clock that was put back
                run.id = new_id()
            self.all[run.id] = run
            self._bring(run)
        return run

    def branch(self, run: Run, start: Round) -> Run:
        """A run that is another one until this Round of it, and will go on from there by itself."""
        past = [each for each in run.records if each["round"] <= start.number]
        name = re.sub(r" from round \d+$", "", run.name) + f" from round {start.number}"
        with self._lock:
            new = Run(name[:80], dict(run.settings), usual=dict(run.usual), beside=run.beside)
            while self._taken(new.id):
                new.id = new_id()
            seen = [done for done in run.rounds if done.number < start.number]
            new.records, new.rounds = past, [*seen, start]
            new.judged = run.judged  # its own best is that of the rounds to come
            self.all[new.id] = new
            self._bring(new)
        return new

    def resume(self, id_: str) -> tuple[Run, Round | None]:
        """Hold a run to go on with it: what is there of it now, and the Round to start from.

        That is None for a run that was killed before its first checkpoint, which begins anew.
        Raises `ParameterError` for a run that another process trains, that is damaged, or whose
        model is gone.
        """
        run = self._free(id_)
        with self._lock:
            if run.home is None:
                last = run.rounds[-1] if run.rounds else None
                fix = "its model is not kept; keep runs in a folder, or begin another"
                require(last is not None and bool(last.params), "run", run.name, fix)
                run.state, run.error = "running", ""
                return run, last
            device = str(run.settings.get("device", "cpu"))
            check_device(device)
            folder, again = RunFolder.held(run.home)
            try:
                start, said = kept(run.home, CHECKPOINT, device)
                require(start is not None or not again.saved, "run", run.name, GONE)
            except BaseException:
                folder.close()
                raise
            self.trouble = said or self.trouble
            self._live[id_], self.all[id_] = folder, again
            self._save_rounds(again, folder)
            if start:  # its best model stays, even where it is of a round that is trained again
                again.judge_all(self.metrics)
            again.came = start.number if start else 0
            again.was, again.pinned = (again.state, again.error), run.pinned
            again.state, again.error = "running", ""
            return again, start

    def best(self, id_: str) -> Round:
        """The best Round of a run, without the state to go on from.

        Raises `ParameterError` for a run without one, and for one that is not the run's own.
        """
        return self.at_best(id_)[0]

    def at_best(self, id_: str) -> tuple[Round, Run]:
        """The best Round of a run as `best` gives it, and the run as it was when that ended."""
        run = self.get(id_)
        require(run.home is not None, "run", run.name, "its best model is not kept in memory")
        found = best(run.home) if run.home else None
        if found is None:
            raise ParameterError(f"run={run.name!r}: it has no best model yet")
        return found

    def add(self, run: Run, done: Round, asked: Settings) -> bool:
        """Note a finished Round; whether it is the best so far.

        asked: the settings that it was given, of which it may read only some. The Round before it
        loses its parameters, so that memory does not fill. One that comes without them is kept by
        whoever trains it, until `keep`.
        """
        with self._lock:
            if run.came is not None and run.was is not None:
                self._save(run, {"resumed": run.came})
                run.go_back(run.came)
            run.was = None
        before = run.now or Settings(**run.last_settings)
        measured = any(name in done.metrics for name in self.metrics)
        if self.beside and measured and not run.beside:
            run.beside = self.beside(before)
            with self._lock:
                self._save(run, {"beside": run.beside})
        run.now = Settings(**dict(asked) | dict(done.settings))  # as its parts took them
        if run.rounds:
            run.rounds[-1] = run.rounds[-1].light()
        run.rounds.append(done)
        self.frames.offer(run.id, done)
        run.clock.append(time.monotonic())
        with self._lock:
            run.records.append(record(done, before, run.now))
            self._save(run, run.records[-1])
            is_best = run.has_best(self.metrics)
            if folder := self._live.get(run.id):
                folder.mark(best=is_best)
                if done.params:
                    folder.offer(done, done if is_best else None)
        return is_best

    def keep(self, run: Run, last: Round, best: Round | None) -> None:
        """Take the last Round of a run as a whole, and the best where it is a new one."""
        with self._lock:
            run.rounds[-1] = last
            if folder := self._live.get(run.id):
                folder.offer(last, best)

    def saves(self, run: Run) -> bool:
        """Whether checkpoints of this run are written on the way."""
        return run.id in self._live

    def end(self, run: Run, state: str, error: str = "") -> None:
        """Note how a run ended; one that was resumed and got no further is as it was."""
        with self._lock:
            folder = self._live.get(run.id)
        if folder:
            folder.finish()
        found: dict[str, Any] = {}
        try:
            if run.was is None and state == "done":  # who stops a run does not wait for it
                found = self._led(run)
        finally:
            with self._lock:
                if run.was is not None:
                    run.state, run.error = run.was
                else:
                    run.state, run.error, run.lead = state, whole(error), found
                    for line in [*([{"lead": found}] if found else []), end(run)]:
                        self._save(run, line)
                run.came = run.was = None
                self._let_go(run)

    def _led(self, run: Run) -> dict[str, Any]:
        """By how much the best Round of a run leads, or the last where it is in memory alone."""
        if self.lead is None or not run.beside:
            return {}
        try:
            if run.home:
                done, then = self.at_best(run.id)
            else:
                done, then = run.rounds[-1], run
            return self.lead(Settings(**then.last_settings), done) if done.params else {}
        except (ParameterError, DataError, OSError) as error:
            self.trouble = shown(f"{run.name} is compared with nothing: {error}")
            return {}

    def rename(self, id_: str, name: str) -> None:
        """Give a run another name."""
        named = isinstance(name, str) and 0 < len(name.strip()) <= 80
        require(named, "name", name, "write 1 to 80 characters")
        require(fit(name.strip()), "name", name, NO_CONTROL)
        run = self.get(id_)
        if run.state != "running":
            run = self._free(id_)
        with self._lock:
            line = {"name": name.strip()}
            if run.id in self._live or run.home is None:
                self._save(run, line)
            else:
                folder, _ = RunFolder.held(run.home)
                try:
                    folder.log.add(line)
                finally:
                    folder.close()
            run.name = name.strip()

    def delete(self, id_: str) -> None:
        """Forget a run, on disk as well; nothing else is removed with it."""
        run = self._free(id_, damaged=True)
        with self._lock:
            if run.home is not None:
                delete(place(run.home.parent, run.home.name))
            del self.all[id_]
            self.frames.forget(id_)

    def listed(self) -> list[Run]:
        """All runs, oldest first; safe to ask for while another thread adds one."""
        return list(self.all.copy().values())

    def get(self, id_: str) -> Run:
        """The run that has this id."""
        there = isinstance(id_, str) and id_ in self.all
        require(there, "run", id_, "there is no such run; it may have been deleted")
        return self.all[id_]

    def _free(self, id_: str, damaged: bool = False) -> Run:
        """The run, which nobody trains; looked up again where another process trained it."""
        run = self.get(id_)
        if run.state == "running elsewhere" and run.home:
            with self._lock:
                del self.all[id_]
                self._read(run.home)
                run = self.get(id_)
        require(run.state != "running", "run", run.name, "it is still running; stop it first")
        fix = "another process trains it; wait until it has ended, or stop it there"
        require(run.state != "running elsewhere", "run", run.name, fix)
        require(damaged or run.state != "damaged", "run", run.name, run.error)
        return run

    def _bring(self, run: Run) -> None:
        """Put a run into the folder: a copy of its files, or all that is known of it."""
        if self.folder is None:
            return
        try:
            if run.home and run.state != "running" and run.id not in self.unsaved:
                if run.home.parent != self.folder:
                    run.home = copy(run.home, self.folder)
                return
            self._let_go(run)
            self._write(run, place(self.folder, run.id))
        except (OSError, ParameterError) as error:
            self._lost(run, error)

    def _write(self, run: Run, home: Path) -> None:
        """Write all that is known of a run, behind what is there of it already."""
        if home.exists():
            folder = RunFolder.held(home)[0]
            lines: list[Record] = [{"resumed": 0}, {"name": run.name}]
        else:
            folder = RunFolder.made(home)
            lines = [run.header()]
        lines += [*([{"beside": run.beside}] if run.beside else []), *run.records]
        self._live[run.id], run.home = folder, home
        if run.lead:
            lines.append({"lead": run.lead})
        if run.state not in ("running", "interrupted"):
            lines.append(end(run))
        for line in lines:
            folder.log.add(line)
        self.unsaved.discard(run.id)
        self._save_rounds(run, folder)
        if run.rounds and run.rounds[-1].params:
            folder.mark(best=False)
            folder.offer(run.rounds[-1])
        if run.state != "running":
            self._let_go(run)

    def _save(self, run: Run, line: Record) -> None:
        """Add a line; a run that missed one stays in memory until there is another folder."""
        if folder := self._live.get(run.id):
            try:
                folder.log.add(line)
            except OSError as error:
                self._lost(run, error)

    def _save_rounds(self, run: Run, folder: RunFolder) -> None:
        folder.save_rounds(lambda error: self._failed(error, run))

    def _lost(self, run: Run, error: Exception) -> None:
        """Keep a run in memory alone from now on; what is on disk of it stays."""
        self._failed(error, run)
        self._let_go(run)
        run.home = None

    def _let_go(self, run: Run) -> None:
        if folder := self._live.pop(run.id, None):
            try:
                folder.close()
            except OSError as error:
                self._failed(error, run)

    def _failed(self, error: Exception, run: Run | None = None) -> None:
        why = getattr(error, "strerror", None) or str(error)
        self.trouble = shown(
            f"Not being saved: {why} ({self.folder}). Runs stay in memory: export them, "
            "or choose another folder."
        )
        if run is not None:
            self.unsaved.add(run.id)
