"""Runs as files for other tools: CSV, JSON, PNG, TensorBoard."""

import csv
import importlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from fedlab.core import VERSION, require
from fedlab.evaluation import figures
from fedlab.workbench.runs import PLAIN, Run, metrics, usual

KINDS = ("csv", "json", "png")


def to_csv(runs: Sequence[Run]) -> bytes:
    """A line for each run and round: its numbers, and the settings that the round used."""
    found = metrics(list(runs))
    numbers = [*(name for name in PLAIN if name not in ("turned", "loss")), *found]
    settings = {name: usual(name) for run in runs for name in run.used()}
    text = io.StringIO()
    out = csv.DictWriter(text, ["run", *numbers, *settings], restval="", extrasaction="ignore")
    out.writeheader()
    for run in runs:
        for record, used in zip(run.records, run.settings_by_round(), strict=True):
            rejected = len(record.get("rejected", ()))
            out.writerow({"run": run.name} | settings | used | record | {"rejected": rejected})
    return text.getvalue().encode()


def to_json(runs: Sequence[Run]) -> bytes:
    """Everything that is kept of the runs."""
    whole = [
        run.header() | {"state": run.state, "error": run.error, "records": run.records}
        for run in runs
    ]
    return json.dumps({"fedlab": VERSION, "runs": whole}, indent=1).encode()


def to_png(runs: Sequence[Run]) -> bytes:
    """The loss and every metric against rounds, with a line for each run."""
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
    picture = io.BytesIO()
    figures.overlay(series).savefig(picture, format="png", dpi=160)
    return picture.getvalue()


def export(runs: Sequence[Run], kind: str) -> bytes:
    """The runs as a file of this kind: csv, json or png."""
    require(kind in KINDS, "kind", kind, f"choose one of {', '.join(KINDS)}")
    require(len(runs) > 0, "runs", 0, "there is nothing to export yet; train a run first")
    return {"csv": to_csv, "json": to_json, "png": to_png}[kind](runs)


def to_tensorboard(runs: Sequence[Run], folder: str | Path) -> Path:
    """Write event files, a folder for each run; return the folder for `tensorboard --logdir`.

    Raises OSError.
    """
    require(len(runs) > 0, "runs", 0, "there is nothing to export yet; train a run first")
    with warnings.catch_warnings():
        # protobuf and tensorboard warn when they are imported
        warnings.simplefilter("ignore", DeprecationWarning)
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    for run in runs:
        own = Path(folder, f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name).strip('-.')}-{run.id}")
        shutil.rmtree(own, ignore_errors=True)  # written again as a whole
        with writer(str(own)) as out:
            out.add_text("settings", json.dumps(run.settings, indent=1))
            for record in run.records:
                for name in [
                    n for n in record if n not in ("round", "turned") and record[n] is not None
                ]:
                    out.add_scalar(name.replace("@", "_at_"), record[name], record["round"])
    return Path(folder)
