"""Experiments as settings: runs, sweeps, and the widget that turns their knobs."""

from fedlab.workbench.beside import beside, lead
from fedlab.workbench.best import Best, fit_best
from fedlab.workbench.classroom import Classroom, Ratings
from fedlab.workbench.experiment import Choices, Experiment, better, stream, usual_knobs
from fedlab.workbench.export import Recommender, export, load_model
from fedlab.workbench.guide import CARDS, CHALLENGES, PRESETS, Card, Challenge
from fedlab.workbench.over_nodes import over_nodes
from fedlab.workbench.processes import WorkerDied, over_seeds
from fedlab.workbench.runner import Job, Runner, follow, side_by_side
from fedlab.workbench.runs import Run, Runs, metrics, record, shown
from fedlab.workbench.sliders import sliders
from fedlab.workbench.sweeps import Sweep, Trials, values
from fedlab.workbench.view import table
from fedlab.workbench.widget import Workbench

__all__ = [
    "CARDS",
    "CHALLENGES",
    "PRESETS",
    "Best",
    "Card",
    "Challenge",
    "Choices",
    "Classroom",
    "Experiment",
    "Job",
    "Ratings",
    "Recommender",
    "Run",
    "Runner",
    "Runs",
    "Sweep",
    "Trials",
    "Workbench",
    "WorkerDied",
    "beside",
    "better",
    "export",
    "fit_best",
    "follow",
    "lead",
    "load_model",
    "metrics",
    "over_nodes",
    "over_seeds",
    "record",
    "shown",
    "side_by_side",
    "sliders",
    "stream",
    "table",
    "usual_knobs",
    "values",
]
