"""Runs as TensorBoard events: all of a run at once, or round by round while it trains.

Each run has a folder of its own, named by the run and its checked id. The only files that are ever
removed there are event files that were written here before.
"""

import importlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedlab.core import Round, require
from fedlab.workbench.runs import Record, Run, record

ID = re.compile(r"[0-9a-f-]{1,40}")
SUFFIX = ".fedlab"  # of the event files that are written here
TEXTS = ("turned", "skipped")  # entries of a record that are words


class Events:
    """Runs as event files under one folder; each call writes what came since the last one.

    A run that was written before by another kernel, or that went back some rounds since, is written
    again as a whole.
    """

    def __init__(self, folder: str | Path) -> None:
        """folder: for `tensorboard --logdir`."""
        self.folder = Path(folder)
        self._runs: dict[str, Run] = {}  # run id -> the run, to tell one that was read again
        self._open: dict[str, Any] = {}  # run id -> its writer
        self._done: dict[str, int] = {}  # run id -> records written
        self._own: dict[str, Path] = {}  # run id -> its folder, whatever it is called later

    def write(self, runs: Iterable[Run]) -> None:
        """Write the new rounds of these runs, to be seen at once.

        Raises `ParameterError` for an id that may not be part of a path, and OSError.
        """
        for run in runs:
            done = self._done.get(run.id, 0)
            first = self._runs.get(run.id) is not run or len(run.records) < done
            new = run.records[0 if first else done :]
            if first or new:
                out = self._begin(run) if first else self._open.get(run.id) or self._writer(run)
                for found in new:
                    _add(out, found)
                self._done[run.id] += len(new)
                out.flush()
            if run.state != "running" and run.id in self._open:
                self._open.pop(run.id).close()

    def close(self) -> None:
        """Close the files; a run that goes on after that is written no further."""
        while self._open:
            self._open.popitem()[1].close()

    def _begin(self, run: Run) -> Any:
        """A writer for a run of which nothing is written, whatever was before."""
        require(
            isinstance(run.id, str) and ID.fullmatch(run.id) is not None,
            "run",
            run.id,
            "an id has digits, letters a to f and dashes, 40 at most; this run's file was changed",
        )
        if run.id in self._open:
            self._open.pop(run.id).close()
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name[:80]).strip("-.")
        own = self._own.setdefault(run.id, self.folder / f"{words}-{run.id}")
        for old in own.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        writer = self._writer(run)
        writer.add_text("settings", json.dumps(run.settings, indent=1))
        self._runs[run.id], self._done[run.id] = run, 0
        return writer

    def _writer(self, run: Run) -> Any:
        """A new event file in the folder of a run."""
        with warnings.catch_warnings():
            # protobuf and tensorboard warn when they are imported
            warnings.simplefilter("ignore", DeprecationWarning)
            kind = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        writer = self._open[run.id] = kind(str(self._own[run.id]), filename_suffix=SUFFIX)
        return writer


def to_tensorboard(runs: Sequence[Run], folder: str | Path) -> Path:
    """Write runs as they stand, a folder for each; return the folder for `tensorboard --logdir`.

    Raises `ParameterError` for an id that may not be part of a path, and OSError.
    """
    require(len(runs) > 0, "runs", 0, "there is nothing to export yet; train a run first")
    events = Events(folder)
    try:
        events.write(runs)
    finally:
        events.close()
    return events.folder


def watched(rounds: Iterable[Round], folder: str | Path, name: str = "run") -> Iterator[Round]:
    """Pass Rounds on, and write each to TensorBoard as it comes.

    folder: for `tensorboard --logdir`. name: what the run is called there. Raises OSError.

        for done in watched(measured(federate(model, clients, settings), measure), "events"): ...
    """
    events, run = Events(folder), None
    try:
        for done in rounds:
            run = run or Run(name, dict(done.settings))
            before = run.now or done.settings
            run.now = done.settings
            run.records.append(record(done, before, done.settings))
            events.write([run])
            yield done
    finally:
        events.close()


def _add(writer: Any, found: Record) -> None:
    """Write a record: numbers as lines, how many clients were rejected, and words as text."""
    number = found["round"]
    for name in TEXTS:
        if name in found:
            writer.add_text(name, json.dumps(found[name]), number)
    numbers = {**found, "rejected": len(found.get("rejected", ()))}
    for name, value in numbers.items():
        if name not in ("round", *TEXTS) and isinstance(value, int | float):
            writer.add_scalar(name.replace("@", "_at_"), value, number)
