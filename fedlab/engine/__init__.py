"""Every trick for speed, and nothing else: chunks, batches, steps, gradients, backends."""

from fedlab.engine.backends import check_engine, padded
from fedlab.engine.batches import Batches, Correction, RowIndex, arrange, holdings, train
from fedlab.engine.chunking import BLOCK, chunks, client_bytes, train_cohort, updates
from fedlab.engine.gradient import gradients
from fedlab.engine.step import hyper, sgd

__all__ = ["BLOCK", "Batches", "Correction", "RowIndex", "arrange", "check_engine", "chunks",
           "client_bytes", "gradients", "holdings", "hyper", "padded", "sgd", "train",
           "train_cohort", "updates"]
