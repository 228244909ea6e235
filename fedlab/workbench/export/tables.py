"""Runs as files for other tools: CSV, JSON, PNG.

Source: OWASP, "CSV injection": a cell that begins with =, +, -, @, a tab or a line break is run as
a formula by spreadsheets, so such a text gets an apostrophe in front, as does one in which only
what nobody sees stands before these; numbers stay numbers.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence

from fedlab.core import VERSION, require
from fedlab.evaluation import figures
from fedlab.workbench.runs import PLAIN, Run, metrics, usual

KINDS = ("csv", "json", "png")
STARTS = re.compile(r"[=+\-@＝＋－＠]")  # noqa: RUF001 - the wide ones count as well
# letters, marks, numbers, punctuation, symbols: what is seen
VISIBLE = ("L", "N", "P", "S")
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that look like nothing


def to_csv(runs: Sequence[Run]) -> bytes:
    """A line for each run and round: its numbers, what is beside, and the settings of the round."""
    found = metrics(list(runs))
    numbers = [*(name for name in PLAIN if name not in ("turned", "loss")), *found]
    settings = {name: usual(name) for run in runs for name in run.used()}
    levels = dict.fromkeys(f"{label}: {n}" for run in runs for label, n, _ in besides(run))
    text, columns = io.StringIO(), ["run", *numbers, *levels, *settings]
    out = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    out.writerow({name: harmless(name) for name in columns})
    for run in runs:
        own = {f"{label}: {n}": value for label, n, value in besides(run)}
        for record, used in zip(run.records, run.settings_by_round(), strict=True):
            line = {"run": run.name} | settings | used | own | record
            line["rejected"] = len(record.get("rejected", ()))
            out.writerow({name: harmless(value) for name, value in line.items()})
    return text.getvalue().encode()


def besides(run: Run) -> list[tuple[str, str, float]]:
    """What a run is measured beside: (name, metric, value)."""
    return [(name, n, value) for name, row in run.beside.items() for n, value in row.items()]


def harmless(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula.

    >>> harmless("=1+1"), harmless("clip + gaussian noise"), harmless(-0.5)
    ("'=1+1", 'clip + gaussian noise', -0.5)
    """
    if cell is None or isinstance(cell, int | float):
        return cell
    text = str(cell)
    seen = (c for c in text if c not in BLANK and unicodedata.category(c)[0] in VISIBLE)
    risky = STARTS.match(next(seen, "")) or text.startswith(("\t", "\r", "\n"))
    return f"'{text}" if risky else text


def to_json(runs: Sequence[Run]) -> bytes:
    """Everything that is kept of the runs."""
    whole = [
        run.header()
        | {"state": run.state, "error": run.error, "beside": run.beside, "lead": run.lead}
        | {"records": run.records}
        for run in runs
    ]
    return json.dumps({"fedlab": VERSION, "runs": whole}, indent=1).encode()


def to_png(runs: Sequence[Run]) -> bytes:
    """The loss and every metric against rounds, with a line for each run and what is beside it."""
    names = [run.name for run in runs]
    own = {
        run.id: f" {run.name}" if names.count(run.name) == 1 else f" {run.name} ({run.id[-4:]})"
        for run in runs
    }
    series = {
        name: {
            own[run.id]: [(r["round"], r[name]) for r in run.records if r.get(name) is not None]
            for run in runs
        }
        for name in metrics(list(runs))
    }
    levels = {f"{n}: {name}": value for run in runs for name, n, value in besides(run)}
    picture = io.BytesIO()
    figures.overlay(series, levels).savefig(picture, format="png", dpi=160)
    return picture.getvalue()


def export(runs: Sequence[Run], kind: str) -> bytes:
    """The runs as a file of this kind: csv, json or png."""
    require(kind in KINDS, "kind", kind, f"choose one of {', '.join(KINDS)}")
    require(len(runs) > 0, "runs", 0, "there is nothing to export yet; train a run first")
    return {"csv": to_csv, "json": to_json, "png": to_png}[kind](runs)
