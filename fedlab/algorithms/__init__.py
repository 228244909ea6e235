"""The loop, who takes part in it and when, and the methods that run in it."""

from fedlab.algorithms.asynchronous import Buffered, idle
from fedlab.algorithms.ease import Ease, ItemItem, item_item
from fedlab.algorithms.implicit import Implicit
from fedlab.algorithms.loop import federate, gated, in_order, one_round, pipeline
from fedlab.algorithms.meta import METHODS, Meta, with_rates
from fedlab.algorithms.participation import Membership, Participation, Synchronous, sample
from fedlab.algorithms.personalisation import alone, alone_ranks, fine_tuned, newcomers
from fedlab.algorithms.scaffold import Control, Scaffold

__all__ = [
    "METHODS",
    "Buffered",
    "Control",
    "Ease",
    "Implicit",
    "ItemItem",
    "Membership",
    "Meta",
    "Participation",
    "Scaffold",
    "Synchronous",
    "alone",
    "alone_ranks",
    "federate",
    "fine_tuned",
    "gated",
    "idle",
    "in_order",
    "item_item",
    "newcomers",
    "one_round",
    "pipeline",
    "sample",
    "with_rates",
]
