"""Fewer bytes: codecs, and the error feedback that makes up for what they leave out."""

from fedlab.communication.codecs import (
    REACH,
    LowRank,
    Plain,
    Quantised,
    RandomK,
    TopK,
    packed,
    unpacked,
)
from fedlab.communication.error_feedback import CODECS, ErrorFeedback, row_bytes

__all__ = [
    "CODECS",
    "REACH",
    "ErrorFeedback",
    "LowRank",
    "Plain",
    "Quantised",
    "RandomK",
    "TopK",
    "packed",
    "row_bytes",
    "unpacked",
]
