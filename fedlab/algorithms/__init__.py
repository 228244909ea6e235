"""The loop, who takes part in it and when, and the methods that run in it."""

from fedlab.algorithms.gate import payload
from fedlab.algorithms.implicit import Implicit
from fedlab.algorithms.local_sgd import SGD
from fedlab.algorithms.loop import Run, federate, one_round
from fedlab.algorithms.meta import METHODS, Meta, with_rates
from fedlab.algorithms.participation import Membership, Participation, sample
from fedlab.algorithms.personalisation import alone, alone_ranks, fine_tuned, newcomers
from fedlab.algorithms.scaffold import Control, Scaffold
from fedlab.algorithms.schedules import Buffered, Synchronous, idle

__all__ = ["METHODS", "SGD", "Buffered", "Control", "Implicit", "Membership", "Meta",
           "Participation", "Run", "Scaffold", "Synchronous", "alone", "alone_ranks", "federate",
           "fine_tuned", "idle", "newcomers", "one_round", "payload", "sample", "with_rates"]
