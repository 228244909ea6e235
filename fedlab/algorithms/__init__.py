"""The loop, who takes part in it and when, and the methods that run in it."""

from fedlab.algorithms.asynchronous import Asynchronous, federate_async, idle, staleness_weight
from fedlab.algorithms.implicit import Implicit
from fedlab.algorithms.loop import ClientUpdate, Sent, federate, one_round, payload
from fedlab.algorithms.meta import METHODS, Meta, with_rates
from fedlab.algorithms.participation import Membership, World, sample
from fedlab.algorithms.personalisation import alone, alone_ranks, fine_tuned, newcomers
from fedlab.algorithms.private import Private, federate_privately
from fedlab.algorithms.scaffold import Control

__all__ = ["METHODS", "Asynchronous", "ClientUpdate", "Control", "Implicit", "Membership", "Meta",
           "Private", "Sent", "World", "alone", "alone_ranks", "federate", "federate_async",
           "federate_privately", "fine_tuned", "idle", "newcomers", "one_round", "payload",
           "sample", "staleness_weight", "with_rates"]
