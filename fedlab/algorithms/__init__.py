"""The loop, who takes part in it and when, and the methods that run in it."""

from fedlab.algorithms.asynchronous import Buffered, idle
from fedlab.algorithms.ease import Ease, ItemItem, item_item
from fedlab.algorithms.implicit import Implicit
from fedlab.algorithms.loop import ahead, federate, gated, in_order, one_round, pipeline
from fedlab.algorithms.meta import METHODS, Meta, with_rates
from fedlab.algorithms.participation import Membership, Participation, Synchronous, sample
from fedlab.algorithms.personalisation import alone, alone_ranks, fine_tuned, newcomers
from fedlab.algorithms.published import (
    DPALS,
    AdditiveItems,
    FedRAP,
    GPFedRec,
    PersonalPerceptron,
    PersonalScores,
    PFedRec,
    additive_items,
    personal_perceptron,
    personal_scores,
)
from fedlab.algorithms.scaffold import Control, Scaffold

__all__ = [
    "DPALS",
    "METHODS",
    "AdditiveItems",
    "Buffered",
    "Control",
    "Ease",
    "FedRAP",
    "GPFedRec",
    "Implicit",
    "ItemItem",
    "Membership",
    "Meta",
    "PFedRec",
    "Participation",
    "PersonalPerceptron",
    "PersonalScores",
    "Scaffold",
    "Synchronous",
    "additive_items",
    "ahead",
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
    "personal_perceptron",
    "personal_scores",
    "pipeline",
    "sample",
    "with_rates",
]
