"""Every trick for speed, and nothing else: chunks, batches, steps, gradients, backends."""

from fedlab.engine.backends import padded
from fedlab.engine.batches import Batches, Correction, RowIndex, arrange, holdings, train
from fedlab.engine.chunking import BLOCK, chunks, client_bytes, train_cohort, updates
from fedlab.engine.gradient import gradients
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import hyper, sgd

__all__ = ["BLOCK", "Batches", "Correction", "LocalSettings", "RowIndex", "arrange", "chunks",
           "client_bytes", "gradients", "holdings", "hyper", "padded", "sgd", "train",
           "train_cohort", "updates"]
