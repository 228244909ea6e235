"""Runs and models as files for other tools."""

from fedlab.workbench.export.adapter import peft_layout
from fedlab.workbench.export.card import BASELINES, card, data_fingerprint
from fedlab.workbench.export.events import Events, to_tensorboard, watched
from fedlab.workbench.export.model import export_model, free_place, model_files, zipped_model
from fedlab.workbench.export.recommender import Pick, Recommender, closed, load_model
from fedlab.workbench.export.tables import KINDS, export, harmless, to_csv, to_json, to_png
from fedlab.workbench.export.words import MEANINGS, in_words

__all__ = [
    "BASELINES",
    "KINDS",
    "MEANINGS",
    "Events",
    "Pick",
    "Recommender",
    "card",
    "closed",
    "data_fingerprint",
    "export",
    "export_model",
    "free_place",
    "harmless",
    "in_words",
    "load_model",
    "model_files",
    "peft_layout",
    "to_csv",
    "to_json",
    "to_png",
    "to_tensorboard",
    "watched",
    "zipped_model",
]
