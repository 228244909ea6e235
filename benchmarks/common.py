"""What every benchmark shares: the settings of a lesson, and results as a table and as JSON."""

import ast
import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch

from fedlab.algorithms import in_order, one_round, pipeline
from fedlab.core import Round, Settings, Tree
from fedlab.data import Source, Split, fetch, within_an_hour
from fedlab.models import Model
from fedlab.workbench import over_seeds

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Found = TypeVar("Found")


def parameters(lesson: str) -> dict:
    """The values of a lesson's tagged parameters cell, so that a benchmark runs what it shows."""
    book = json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    cell = next(c for c in book["cells"] if "parameters" in c["metadata"].get("tags", []))
    return {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in ast.parse("".join(cell["source"])).body
    }


def ml100k() -> Path:
    """The folder of ML-100K: data/ml-100k if it is there, else that of RecBole's wheel.

    The data may not be passed on, so it stays in a cache of the user's own.
    """
    if (folder := ROOT / "data" / "ml-100k").is_dir():
        return folder
    return fetch("ml-100k")


def entry(
    value: float, unit: str, goal: float | None, *, higher: bool, seeds: int, note: str
) -> dict:
    """One measured figure in the format of the results files."""
    return {
        "value": round(float(value), 4),
        "unit": unit,
        "goal": goal,
        "higher_is_better": higher,
        "seeds": seeds,
        "note": note,
    }


def sessions(prefix: str, split: Split) -> dict[str, dict]:
    """How much of the test came within an hour of the last train row: what recency rests on."""
    note = "of the test, after the same user's last train row"
    share = entry(within_an_hour(split), "share", None, higher=True, seeds=1, note=note)
    return {f"{prefix}_within_an_hour": share}


def label(name: str) -> str:
    """A peer's name, as names of results have it."""
    return name.lower().replace("'", "").replace(" ", "_").replace("(", "_").replace(")", "")


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def record(name: str, measured: dict[str, dict], quick: bool, remark: str = "") -> None:
    """Print a table and write it to results, where only the names measured now are replaced.

    remark: a remark on the whole run.
    """
    for key, row in measured.items():
        goal = (
            ""
            if row["goal"] is None
            else f"goal {'>=' if row['higher_is_better'] else '<='} {row['goal']:g}"
        )
        print(f"{key:28} {row['value']:>10.4g} {row['unit']:<12} {goal:<16} {row['note']}")
    path = RESULTS / (f"{name}.quick.json" if quick else f"{name}.json")
    kept = json.loads(path.read_text())["measured"] if path.exists() else {}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    machine = {"cpu": processor(), "threads": 1, "system": platform.system()}
    path.parent.mkdir(exist_ok=True)
    whole = {
        "measured": kept | measured,
        "machine": machine,
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    } | ({"remark": remark} if remark else {})
    print(remark)
    path.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")


def from_params(
    model: Model, data: Source, settings: Settings, params: Tree, **parts: Any
) -> Callable[[int], Round]:
    """Number -> the round of this number from these parameters.

    parts: as `federate` takes them.
    """
    pipe = pipeline(in_order(**parts), settings, data)
    return lambda number: one_round(pipe, model, data, Round(number - 1, settings, params))


def by_seed(
    job: Callable[[int, bool], Found], report: Callable[[list[Found], bool], None], quick: bool
) -> None:
    """Run job(seed, quick) for 5 seeds, or one, side by side (`over_seeds`).

    All results so far are reported after each.
    """
    every: list[Found] = []
    for found in over_seeds(partial(_seeded, job, quick), range(1 if quick else 5)):
        every.append(found)
        report(every, quick)


def _seeded(job: Callable[[int, bool], Found], quick: bool, seed: int) -> Found:
    return job(seed, quick)


def is_quick() -> bool:
    """Whether --quick was asked for; any other argument is an error."""
    unknown = [a for a in sys.argv[1:] if a != "--quick"]
    if unknown:
        raise SystemExit(f"unknown argument {unknown[0]!r}; the only one is --quick")
    return "--quick" in sys.argv[1:]
