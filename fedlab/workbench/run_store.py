"""The runs of a workbench: begun, renamed, deleted, and kept in a folder, a file for each."""

import json
import threading
import time
from pathlib import Path

from fedlab.core import ParameterError, Round, Settings, require
from fedlab.workbench.runs import Record, Run, end, read, record


class Runs:
    """The runs of a workbench by id, oldest first; with a folder, each is kept there as it goes.

    trouble: why runs are not being saved, or why one could not be read; the runs themselves go on
    in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """folder: where runs are kept; it is made if missing, and runs that lie there are read."""
        self.all: dict[str, Run] = {}
        self.folder: Path | None = None
        self.trouble = ""
        self._unsaved: set[str] = set()
        self._lock = threading.RLock()  # rounds come from the runner's thread, clicks from another
        if folder is not None:
            self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Keep runs in this folder from now on.

        Those that lie there are read, and those in memory are written.
        """
        with self._lock:
            self.folder, self.trouble = Path(folder), ""
            mine = list(self.all.values())
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in sorted(self.folder.glob("*.jsonl")):
                    self._read(path)
            except OSError as error:
                self._failed(error)
            self.all = {id_: self.all[id_] for id_ in sorted(self.all)}
            for run in mine:
                self._save_whole(run)

    def _read(self, path: Path) -> None:
        try:
            run = read(path)
        except ParameterError as error:
            self.trouble = str(error)
        else:
            self.all.setdefault(run.id, run)

    def begin(self, settings: Settings, name: str = "") -> Run:
        """Begin a new run, named 'run N' unless told otherwise."""
        run = Run(name or f"run {len(self.all) + 1}", dict(settings))
        with self._lock:
            self.all[run.id] = run
            self._save_whole(run)
        return run

    def add(self, run: Run, done: Round, asked: Settings) -> None:
        """Note a finished Round.

        asked: the settings that it was given, of which it may read only some. The Round before it
        loses its parameters, so that memory does not fill.
        """
        before = run.now or Settings(**run.settings)
        run.now = Settings(**dict(asked) | dict(done.settings))  # as its parts took them
        if run.rounds:
            run.rounds[-1] = run.rounds[-1].light()
        run.rounds.append(done)
        run.clock.append(time.monotonic())
        with self._lock:
            run.records.append(record(done, before, run.now))
            self._save(run, run.records[-1])

    def end(self, run: Run, state: str, error: str = "") -> None:
        """Note how a run ended."""
        with self._lock:
            run.state, run.error = state, error
            self._save(run, end(run))

    def rename(self, id_: str, name: str) -> None:
        """Give a run another name."""
        require(0 < len(name.strip()) <= 80, "name", name, "write 1 to 80 characters")
        run = self.get(id_)
        with self._lock:
            run.name = name.strip()
            self._save(run, {"name": run.name})

    def delete(self, id_: str) -> None:
        """Forget a run, on disk as well."""
        run = self.get(id_)
        require(run.state != "running", "run", run.name, "it is still running; stop it first")
        del self.all[id_]
        if self.folder:
            try:
                self._path(run).unlink(missing_ok=True)
            except OSError as error:
                self._failed(error)

    def listed(self) -> list[Run]:
        """All runs, oldest first; safe to ask for while another thread adds one."""
        return list(self.all.copy().values())

    def get(self, id_: str) -> Run:
        """The run that has this id."""
        require(id_ in self.all, "run", id_, "there is no such run; it may have been deleted")
        return self.all[id_]

    def _path(self, run: Run) -> Path:
        return Path(self.folder or "", f"{run.id}.jsonl")

    def _save(self, run: Run, *lines: Record, mode: str = "a") -> None:
        """Append lines; a run that missed one stays in memory until there is another folder."""
        if self.folder is None or run.id in self._unsaved:
            return
        try:
            if run.state == "interrupted" and mode == "a":
                _drop_cut_line(self._path(run))
            with self._path(run).open(mode, encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            self._unsaved.add(run.id)
            self._failed(error)

    def _save_whole(self, run: Run) -> None:
        self._unsaved.discard(run.id)
        ended = [] if run.state in ("running", "interrupted") else [end(run)]
        self._save(run, run.header(), *run.records, *ended, mode="w")

    def _failed(self, error: OSError) -> None:
        self.trouble = (
            f"Not being saved: {error.strerror} ({self.folder}). Runs stay in memory: export them, "
            "or choose another folder."
        )


def _drop_cut_line(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
