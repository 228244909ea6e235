"""Fewer bytes: codecs, and the error feedback that makes up for what they leave out."""

from fedlab.communication.codecs import (
    REACH,
    Codec,
    LowRank,
    Plain,
    Quantised,
    RandomK,
    TopK,
    packed,
    unpacked,
)
from fedlab.communication.error_feedback import ErrorFeedback, row_bytes

__all__ = ["REACH", "Codec", "ErrorFeedback", "LowRank", "Plain", "Quantised", "RandomK", "TopK",
           "packed", "row_bytes", "unpacked"]
