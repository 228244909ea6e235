"""One run as plain data, and its file.

A run on disk is one JSONL file: a header with its settings, then a line for each round and each
event (a new name, the end), appended as they come, so a kernel that dies loses at most the line it
was writing:

    {"fedlab": 2, "run": "20260131-120000-000000-1f2e", "name": "run 1", "settings": {...}, ...}
    {"round": 1, "loss": 0.69, "clients": 64, "bytes_up": ..., "ndcg@10": 0.31, ...}
    {"round": 2, ..., "turned": {"cohort": 8}}
    {"end": "done", "error": ""}
"""

import json
import math
import secrets
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlab.core import VERSION, ParameterError, Round, Settings, described, require

Record = dict[str, Any]
# the entries of a record that are not metrics
PLAIN = (
    "round",
    "loss",
    "clients",
    "bytes_up",
    "bytes_down",
    "seconds",
    "turned",
    "rejected",
    "skipped",
    "simulated s",
)


@dataclass(eq=False)
class Run:
    """One run: what it was set to, and a plain record of each round.

    settings: the knobs that were turned at the start; a record's `turned` holds those that changed
    before its round. rounds: the Rounds themselves while this kernel lives, the last one with its
    parameters. state: running, done, stopped, failed, or interrupted, for a run on disk that has no
    end.
    """

    name: str
    settings: dict[str, Any]
    id: str = field(
        default_factory=lambda: f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    )
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    state: str = "running"
    error: str = ""
    pinned: bool = False
    records: list[Record] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    now: Settings | None = None  # of its last round
    # when the last rounds ended, in seconds
    clock: deque[float] = field(default_factory=lambda: deque(maxlen=11))

    def settings_by_round(self) -> list[dict[str, Any]]:
        """The settings of each round, with the knobs as they were turned on the way."""
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
                found.setdefault(name, [usual(name)]).append(value)
        return found

    def best(self, metric: str, mode: str) -> Record | None:
        """The record with the best value, the earlier one on a tie; None without any."""
        measured = [r for r in self.records if r.get(metric) is not None]
        return (min if mode == "min" else max)(measured, key=lambda r: r[metric], default=None)

    def header(self) -> Record:
        """The first line of its file."""
        return {
            "fedlab": VERSION,
            "run": self.id,
            "name": self.name,
            "started": self.started,
            "settings": self.settings,
        }


def usual(name: str) -> Any:
    """The default of a setting; None where no registered part has it."""
    found = described().get(name)
    return found.default if found else None


def record(done: Round, before: Settings, now: Settings) -> Record:
    """A Round as plain data, without the parameters.

    A number that is not finite becomes None, as JSON has no NaN. before, now: the settings of the
    Round before it, or of the run, and its own.
    """
    turned = {
        name: now[name]
        for name in dict.fromkeys([*before, *now])
        if described()[name].knob.live and now[name] != before[name]
    }
    found: Record = {
        "round": done.number,
        "loss": _finite(done.loss),
        "clients": len(done.cohort),
        "bytes_up": done.bytes_up,
        "bytes_down": done.bytes_down,
        "seconds": round(done.seconds, 4),
    }
    if done.clock:
        found["simulated s"] = round(done.clock, 3)
    if done.rejected:
        found["rejected"] = {str(client): why for client, why in done.rejected.items()}
    if done.skipped:
        found["skipped"] = done.skipped
    return (
        found
        | {n: _finite(v) for n, v in done.metrics.items()}
        | ({"turned": turned} if turned else {})
    )


def end(run: Run) -> Record:
    """The last line of its file."""
    return {"end": run.state, "error": run.error}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read(path: str | Path) -> Run:
    """Read a run from its file, without a last line that was cut short.

    `ParameterError` names any other line that is wrong.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    run: Run | None = None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if run is None:
                require(
                    line["fedlab"] == VERSION,
                    "fedlab",
                    line["fedlab"],
                    f"{path}: this reads version {VERSION}",
                )
                run = Run(
                    line["name"],
                    dict(line["settings"]),
                    line["run"],
                    line["started"],
                    "interrupted",
                )
            elif "end" in line:
                run.state, run.error = line["end"], line["error"]
            elif "round" in line:
                run.records.append(line)
            else:
                run.name = line["name"]
        except (json.JSONDecodeError, TypeError, KeyError):
            where = f"{path}:{number}"
            require(
                run is not None and number == len(lines),
                where,
                text[:40],
                "not a line of a run; remove the file",
            )
    if run is None:
        raise ParameterError(f"{path}: an empty file; remove it")
    return run


def metrics(runs: list[Run]) -> list[str]:
    """Names of the metrics that these runs measured, loss first."""
    found = dict.fromkeys(name for run in runs for each in run.records for name in each)
    return ["loss", *(name for name in found if name not in PLAIN)]
