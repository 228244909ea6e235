"""Runs are things: named, compared, kept on disk, exported.

A run on disk is one JSONL file: a header with its settings, then a line for each round and each event (a new name,
the end), only ever appended, so a kernel that dies loses at most the line it was writing:

    {"fedlab": 1, "run": "20260131-120000-000000-1f2e", "name": "run 1", "started": "...", "settings": {...}}
    {"round": 1, "loss": 0.69, "clients": 64, "bytes_up": ..., "bytes_down": ..., "seconds": ..., "ndcg@10": 0.31}
    {"round": 2, ..., "turned": {"cohort": 8}}
    {"end": "done", "error": ""}
"""

import json
import math
import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlab.core import Config, ParameterError, require
from fedlab.server import Round
from fedlab.settings import VERSION

Record = dict[str, Any]
PLAIN = ("round", "loss", "clients", "bytes_up", "bytes_down", "seconds", "turned")     # what is no metric


@dataclass(eq=False)
class Run:
    """One run: what it was set to, and a plain record of each round.

    settings: at the start; a record's `turned` holds the knobs that changed before its round. rounds: the Rounds
    themselves while this kernel lives, the last one with its parameters. state: running, done, stopped, failed,
    or interrupted, for a run on disk that has no end.
    """

    name: str
    settings: dict[str, Any]
    id: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}")
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    state: str = "running"
    error: str = ""
    pinned: bool = False
    records: list[Record] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    clock: deque[float] = field(default_factory=lambda: deque(maxlen=11))     # when the last rounds ended, s

    def settings_by_round(self) -> list[dict[str, Any]]:
        """The settings of each round, with the knobs as they were turned."""
        now, found = dict(self.settings), []
        for record in self.records:
            now = now | record.get("turned", {})
            found.append(now)
        return found

    def used(self) -> dict[str, list[Any]]:
        """The values that each setting took, in order: one, unless it was turned."""
        found = {name: [value] for name, value in self.settings.items()}
        for each in self.records:
            for name, value in each.get("turned", {}).items():
                found[name].append(value)
        return found

    def best(self, metric: str, mode: str) -> Record | None:
        """The record with the best value, the earlier one on a tie; None where it was never measured."""
        measured = [r for r in self.records if r.get(metric) is not None]
        return (min if mode == "min" else max)(measured, key=lambda r: r[metric], default=None)

    def header(self) -> Record:
        """The first line of its file."""
        return {"fedlab": VERSION, "run": self.id, "name": self.name, "started": self.started,
                "settings": self.settings}


def record(done: Round, before: Config) -> Record:
    """A Round as plain data, without the parameters; what is not a finite number is None, as JSON has no NaN."""
    now, old = asdict(done.config), asdict(before)
    turned = {name: value for name, value in now.items() if value != old.get(name)}
    found = {"round": done.number, "loss": _finite(done.loss), "clients": len(done.cohort), "bytes_up": done.bytes_up,
             "bytes_down": done.bytes_down, "seconds": round(done.seconds, 4)}
    return found | {n: _finite(v) for n, v in done.metrics.items()} | ({"turned": turned} if turned else {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Runs:
    """The runs of a workbench by id, oldest first; with a folder, each is kept there as it goes.

    trouble: why runs are not being saved, or why one could not be read; the runs themselves go on in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """folder: made when it is missing; runs that lie there are read."""
        self.all: dict[str, Run] = {}
        self.folder: Path | None = None
        self.trouble = ""
        self._unsaved: set[str] = set()
        if folder is not None:
            self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Keep runs in this folder from now on: read those that lie there, write those in memory."""
        self.folder, self.trouble = Path(folder), ""
        mine = [run.id for run in self.all.values()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.glob("*.jsonl")):
                self._read(path)
        except OSError as error:
            self._failed(error)
        self.all = {id_: self.all[id_] for id_ in sorted(self.all)}
        for id_ in mine:
            self._save_whole(self.all[id_])

    def _read(self, path: Path) -> None:
        try:
            run = read(path)
        except ParameterError as error:
            self.trouble = str(error)
        else:
            self.all.setdefault(run.id, run)

    def begin(self, config: Config, name: str = "") -> Run:
        """A new run, named 'run N' unless told."""
        run = Run(name or f"run {len(self.all) + 1}", asdict(config))
        self.all[run.id] = run
        self._save(run, run.header(), mode="w")
        return run

    def add(self, run: Run, done: Round) -> None:
        """Note a finished Round. Parameters are dropped from the one before, so that memory does not fill."""
        last = run.rounds[-1].config if run.rounds else replace(done.config, **run.settings)
        if run.rounds:
            run.rounds[-1] = replace(run.rounds[-1], params={})
        run.rounds.append(done)
        run.records.append(record(done, last))
        run.clock.append(time.monotonic())
        self._save(run, run.records[-1])

    def end(self, run: Run, state: str, error: str = "") -> None:
        """Note how it ended."""
        run.state, run.error = state, error
        self._save(run, {"end": state, "error": error})

    def rename(self, id_: str, name: str) -> None:
        """Call a run something else."""
        require(0 < len(name.strip()) <= 80, "name", name, "write 1 to 80 characters")
        run = self.get(id_)
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
        """The run of this id."""
        require(id_ in self.all, "run", id_, "there is no such run; it may have been deleted")
        return self.all[id_]

    def _path(self, run: Run) -> Path:
        return Path(self.folder or "", f"{run.id}.jsonl")

    def _save(self, run: Run, line: Record, mode: str = "a") -> None:
        """Append a line; a run that missed one stays in memory until there is another folder."""
        if self.folder is None or run.id in self._unsaved:
            return
        try:
            with self._path(run).open(mode, encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._unsaved.add(run.id)
            self._failed(error)

    def _save_whole(self, run: Run) -> None:
        self._unsaved.discard(run.id)
        self._save(run, run.header(), mode="w")
        for line in [*run.records, *([{"end": run.state, "error": run.error}] if run.state != "running" else [])]:
            self._save(run, line)

    def _failed(self, error: OSError) -> None:
        self.trouble = (f"Not being saved: {error.strerror} ({self.folder}). Runs stay in memory: export them, or "
                        "choose another folder.")


def read(path: str | Path) -> Run:
    """A run from its file. A last line cut short is left out; `ParameterError` names any other line that is wrong."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    run: Run | None = None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if run is None:
                require(line["fedlab"] == VERSION, "fedlab", line["fedlab"], f"{path}: this reads version {VERSION}")
                run = Run(line["name"], dict(line["settings"]), line["run"], line["started"], "interrupted")
            elif "end" in line:
                run.state, run.error = line["end"], line["error"]
            elif "round" in line:
                run.records.append(line)
            else:
                run.name = line["name"]
        except (json.JSONDecodeError, TypeError, KeyError):
            where = f"{path}:{number}"
            require(run is not None and number == len(lines), where, text[:40], "not a line of a run; remove the file")
    if run is None:
        raise ParameterError(f"{path}: an empty file; remove it")
    return run


def metrics(runs: list[Run]) -> list[str]:
    """Names of the metrics that these runs measured, loss first."""
    found = dict.fromkeys(name for run in runs for each in run.records for name in each)
    return ["loss", *(name for name in found if name not in PLAIN)]
