"""The loop, who takes part in it and when, and the methods that run in it."""

from fedlab.algorithms.asynchronous import Buffered, idle
from fedlab.algorithms.gate import payload
from fedlab.algorithms.implicit import Implicit
from fedlab.algorithms.loop import Run, federate, one_round
from fedlab.algorithms.meta import METHODS, Meta, with_rates
from fedlab.algorithms.participation import Membership, Participation, Synchronous, sample
from fedlab.algorithms.personalisation import alone, alone_ranks, fine_tuned, newcomers
from fedlab.algorithms.scaffold import Control, Scaffold

__all__ = ["METHODS", "Buffered", "Control", "Implicit", "Membership", "Meta", "Participation",
           "Run", "Scaffold", "Synchronous", "alone", "alone_ranks", "federate", "fine_tuned",
           "idle", "newcomers", "one_round", "payload", "sample", "with_rates"]
