"""Every trick for speed, and nothing else: chunks, batches, steps, gradients, backends."""

from fedlab.engine.backends import padded
from fedlab.engine.cohort import (
    BLOCK,
    SGD,
    Batches,
    Correction,
    RowIndex,
    arrange,
    chunks,
    client_bytes,
    holdings,
    how,
    train,
    train_cohort,
    updates,
)
from fedlab.engine.fused.warm import compiling, warm
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.ranks import agreed, follows, joined, several
from fedlab.engine.step import gradients, hyper, sgd

__all__ = [
    "BLOCK",
    "SGD",
    "Batches",
    "Correction",
    "LocalSettings",
    "RowIndex",
    "agreed",
    "arrange",
    "chunks",
    "client_bytes",
    "compiling",
    "follows",
    "gradients",
    "holdings",
    "how",
    "hyper",
    "joined",
    "padded",
    "several",
    "sgd",
    "train",
    "train_cohort",
    "updates",
    "warm",
]
