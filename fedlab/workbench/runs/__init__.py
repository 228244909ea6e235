"""Runs: one as plain data, its folder on disk, and all of them in a folder of folders."""

from fedlab.workbench.runs.run import PLAIN, Record, Run, end, metrics, record, shown, usual
from fedlab.workbench.runs.store import Runs
from fedlab.workbench.runs.verdict import advice, compared, size

__all__ = [
    "PLAIN",
    "Record",
    "Run",
    "Runs",
    "advice",
    "compared",
    "end",
    "metrics",
    "record",
    "shown",
    "size",
    "usual",
]
