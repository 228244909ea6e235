"""One run as plain data: what it was set to, and a record of each round.

In the log of its folder (`fedlab.workbench.runs.log`) stand a header with its settings, then a line
for each round and each event: what it stands beside, by how much its best round leads, a new name,
the end, the round from which it was resumed, lines that were found missing. Rounds that were
trained again are there twice, and the later line counts:

    {"fedlab": 2, "run": "20260131-120000-000000-1f2e", "name": "run 1", "settings": {...}, ...}
    {"beside": {"chance": {"ndcg@10": 0.045, ...}, "popularity": {...}}}
    {"round": 1, "loss": 0.69, "clients": 64, "bytes_up": ..., "ndcg@10": 0.31, ...}
    {"round": 2, ..., "turned": {"cohort": 8}}
    {"resumed": 1}
    {"round": 2, ...}
    {"lead": {"round": 2, "over": "popularity", "by": "ndcg@10", "more": 0.1, "low": ..., ...}}
    {"end": "done", "error": ""}
"""

import math
import re
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlab.core import VERSION, Round, Settings, described, require
from fedlab.workbench.runs.verdict import UNITS, advice, compared

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


# What no name may hold: control characters, which a terminal may take for orders, line breaks,
# marks that turn the direction of writing, and halves of characters, which no file takes.
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def fit(text: object) -> bool:
    """Whether this is a text that can be printed on a line and written into any file."""
    return isinstance(text, str) and not UNFIT.search(text)


def shown(text: str) -> str:
    r"""A text as it can be printed on a line, whatever it holds.

    >>> shown("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def whole(text: str) -> str:
    r"""A text without halves of characters, which no file takes; it may have several lines.

    >>> whole("a\ud800")
    'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def new_id() -> str:
    """An id for a run: when it was made, and a few letters, so that two machines choose others."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"


@dataclass(eq=False)
class Run:
    """One run: what it was set to, and a plain record of each round.

    settings: the knobs that were turned at the start; a record's `turned` holds those that changed
    before its round. usual: those that it reads and that were not turned. rounds: the Rounds
    themselves while this kernel lives, the last one with its parameters. state: running; done,
    stopped or failed; interrupted, for a run on disk that has no end; running elsewhere, in another
    process; damaged. error: why. home: its folder, where all of it is kept. came: the round from
    which it was resumed, was: its state and error before that, until the first round after it.
    saved: whether a checkpoint must be there, as it ended after rounds, or went on after one.
    beside: what it is measured beside, name -> metrics; lead: by how much its best round is ahead
    of that, once it has ended; see `fedlab.workbench.beside`.
    """

    name: str
    settings: dict[str, Any]
    id: str = field(default_factory=new_id)
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    state: str = "running"
    error: str = ""
    pinned: bool = False
    records: list[Record] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    usual: dict[str, Any] = field(default_factory=dict)
    now: Settings | None = None  # of its last round
    home: Path | None = None
    came: int | None = None
    was: tuple[str, str] | None = None
    saved: bool = False
    judged: str = ""  # the metric by which its best round is told,
    top: float | None = None  # and the best value so far
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    lead: dict[str, Any] = field(default_factory=dict)
    # when the last rounds ended, in seconds
    clock: deque[float] = field(default_factory=lambda: deque(maxlen=11))

    def settings_by_round(self) -> list[dict[str, Any]]:
        """The settings of each round, with the knobs as they were turned on the way."""
        now, found = dict(self.settings), []
        for record in self.records:
            now = now | record.get("turned", {})
            found.append(now)
        return found

    @property
    def last_settings(self) -> dict[str, Any]:
        """The settings of the last round."""
        now = dict(self.settings)
        for each in self.records:
            now |= each.get("turned", {})
        return now

    def used(self) -> dict[str, list[Any]]:
        """The values that each setting took, in order: one, unless it was turned."""
        found = {name: [value] for name, value in self.settings.items()}
        for each in self.records:
            for name, value in each.get("turned", {}).items():
                found.setdefault(name, [usual(name)]).append(value)
        return found

    def go_back(self, number: int) -> None:
        """Forget the records of the rounds after this one."""
        while self.records and self.records[-1]["round"] > number:
            self.records.pop()

    def has_best(self, metrics: Mapping[str, str]) -> bool:
        """Whether the last round is the best so far, by the first of the metrics that it measures.

        Without any it is by the loss; a run on everything has nothing to measure on, and its last
        round is its best. metrics: name -> whether 'max' or 'min' is better.
        """
        if self.settings.get("train_on") == "everything":
            return True
        if self.judged in ("", "loss"):
            seen = self.records[-1:] if self.judged else self.records
            name = next((n for n in metrics if any(r.get(n) is not None for r in seen)), "loss")
            if name != self.judged:
                earlier = Run("", {}, records=self.records[:-1])
                best = earlier.best(name, metrics.get(name, "min"))
                self.judged, self.top = name, best[name] if best else None
        value = self.records[-1].get(self.judged)
        if value is None:
            return False
        lower = metrics.get(self.judged, "min") == "min"
        better = self.top is None or (value < self.top if lower else value > self.top)
        self.top = value if better else self.top
        return better

    @property
    def verdict(self) -> str:
        """Whether its best round beats what needs no learning; '' where that was not measured."""
        if not self.lead:
            return ""
        number = self.lead["round"]
        said = compared(self.name, self.lead, f"on validation, after round {number}")
        mine = sum(each["clients"] for each in self.records if each["round"] <= number)
        return said if self.lead["low"] > 0 else f"{said} {advice(mine / self.lead['clients'])}"

    @property
    def open(self) -> bool:
        """Whether it can be renamed, deleted and resumed here."""
        return self.state in ("done", "stopped", "failed", "interrupted")

    def best(self, metric: str, mode: str) -> Record | None:
        """The record with the best value, the earlier one on a tie; None without any."""
        measured = [r for r in self.records if r.get(metric) is not None]
        return (min if mode == "min" else max)(measured, key=lambda r: r[metric], default=None)

    def judge_all(self, metrics: Mapping[str, str]) -> None:
        """Let no round after these be the best one that is not better than all of them.

        metrics: as for `has_best`.
        """
        measured = (n for n in metrics if any(r.get(n) is not None for r in self.records))
        self.judged = next(measured, "loss")
        best = self.best(self.judged, metrics.get(self.judged, "min"))
        self.top = best[self.judged] if best else None

    def better(self, then: Record, metrics: Mapping[str, str]) -> str:
        """What to say where a round on record was better than this one; else ''.

        then: the record of a round, which may have been trained again since. metrics: as for
        `has_best`.
        """
        if self.settings.get("train_on") == "everything":
            return ""
        known = Run("", {}, records=[*self.records, then])
        known.judge_all(metrics)
        name, own = known.judged, then.get(known.judged)
        best = self.best(name, metrics.get(name, "min"))
        if best is None or own == known.top or best["round"] == then["round"]:
            return ""
        reached = "not measured" if own is None else f"{own:.4g}"
        return (
            f"{self.name} was best after round {best['round']} ({name} {best[name]:.4g}), whose "
            f"model is not kept; this is the one after round {then['round']} ({name} {reached})."
        )

    def header(self) -> Record:
        """The first line of its file."""
        return {
            "fedlab": VERSION,
            "run": self.id,
            "name": self.name,
            "started": self.started,
            "whole": True,  # of settings that are turned: so a header can be run again
            "settings": self.settings,
            "usual": self.usual,
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
        found["rejected"] = {str(client): whole(why) for client, why in done.rejected.items()}
    if done.skipped:
        found["skipped"] = whole(done.skipped)
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


def restored(id_: str, lines: list[Record], where: str) -> Run:
    """A run from the lines of its log; where: the log's name, for messages.

    `ParameterError` names a line that says something that no run says.
    """
    header: Record = {"usual": {}} | lines[0]
    for name in ("run", "name", "started"):
        _check(fit(header.get(name)), where, 1, name, header.get(name))
    for what in ("settings", "usual"):
        given = header.get(what)
        _check(isinstance(given, dict), where, 1, what, given)
        for name, value in header[what].items():
            _check(fit(name) and _plain(value), where, 1, name, value)
    version = header.get("fedlab")
    require(version == VERSION, f"{where}:1: fedlab", version, f"this reads version {VERSION}")
    same = header["run"] == id_
    require(same, f"{where}:1: run", header["run"], f"a run's folder has its id; this is {id_!r}")
    run = Run(header["name"], dict(header["settings"]), id_, header["started"], "interrupted")
    run.usual = dict(header["usual"])
    for number, line in enumerate(lines[1:], 2):
        _take(run, line, where, number)
    return run


def _take(run: Run, line: Record, where: str, number: int) -> None:
    """Add what a line of the log says to the run."""
    if "round" in line:
        for name, value in line.items():
            right = fit(name) and KINDS.get(name, _number)(value)
            _check(right, where, number, name, value)
        _check(line.keys() >= ALWAYS, where, number, "record", sorted(line))
        run.go_back(line["round"] - 1)
        run.records.append(line)
    elif "end" in line:
        right = line["end"] in ("done", "stopped", "failed")
        _check(right, where, number, "end", line["end"])
        _check(_message(line.get("error")), where, number, "error", line.get("error"))
        run.state, run.error = line["end"], line["error"]
        run.saved = run.saved or bool(run.records)
    elif "resumed" in line:
        _check(_count(line["resumed"]), where, number, "resumed", line["resumed"])
        run.lead = {}
        run.go_back(line["resumed"])
        run.saved = line["resumed"] > 0
        run.state, run.error = "interrupted", ""
    elif "beside" in line:
        _check(_tables(line["beside"]), where, number, "beside", line["beside"])
        run.beside = line["beside"]
    elif "lead" in line:
        _check(_leads(line["lead"]), where, number, "lead", line["lead"])
        run.lead = line["lead"]
    elif "lost" in line:
        _check(_message(line["lost"]), where, number, "lost", line["lost"])
        run.state, run.error = "interrupted", line["lost"]
    else:
        _check(fit(line.get("name")), where, number, "name", line.get("name"))
        run.name = line["name"]


def _check(right: bool, where: str, number: int, name: str, value: object) -> None:
    fix = "not what a run's log has there; remove the run's folder"
    require(right, f"{where}:{number}: {shown(name)}", value, fix)


def _number(value: object) -> bool:
    """A metric: a finite number, or None for one that was not."""
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (fine and abs(value) < MOST)  # type: ignore[arg-type]


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _plain(value: object) -> bool:
    return fit(value) or (value is not None and _number(value))


def _size(value: object) -> bool:
    return value is not None and _number(value)


def _message(value: object) -> bool:
    """A text of any number of lines."""
    return isinstance(value, str) and whole(value) == value


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(
        fit(name) and _message(each) for name, each in value.items()
    )


def _tables(value: object) -> bool:
    """Metrics by name, of what a run stands beside."""
    return isinstance(value, dict) and all(
        fit(name) and isinstance(row, dict) and all(fit(n) and _number(v) for n, v in row.items())
        for name, row in value.items()
    )


def _leads(value: object) -> bool:
    """What `fedlab.workbench.beside.lead` gives."""
    if not (isinstance(value, dict) and value.keys() == LEAD.keys()):
        return False
    return all(right(value[name]) for name, right in LEAD.items())


def _settings(value: object) -> bool:
    return isinstance(value, dict) and all(
        fit(name) and _plain(each) for name, each in value.items()
    )


MOST = 2**63
LEAD = {
    "round": _count,
    "over": fit,
    "by": lambda value: value in UNITS,
    "more": _size,
    "low": _size,
    "high": _size,
    "clients": lambda value: _count(value) and value > 0,
}
ALWAYS = {"round", "loss", "clients", "bytes_up", "bytes_down", "seconds"}
# what an entry of a record must be; the others are metrics
KINDS = {
    "round": _count,
    "clients": _count,
    "bytes_up": _count,
    "bytes_down": _count,
    "seconds": _size,
    "turned": _settings,
    "rejected": _texts,
    "skipped": _message,
}


def metrics(runs: list[Run]) -> list[str]:
    """Names of the metrics that these runs measured, loss first."""
    found = dict.fromkeys(name for run in runs for each in run.records for name in each)
    return ["loss", *(name for name in found if name not in PLAIN)]
