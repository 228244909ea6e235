"""What each rank of a federation ends with: run it with torchrun, or alone. It prints a line a run.

A line is the run, the rank, and a digest of the parameters; or the error.
"""

import hashlib
import os
import sys

import torch

from fedlab.aggregation import CoordinateMedian
from fedlab.algorithms import Scaffold, federate
from fedlab.communication import ErrorFeedback
from fedlab.core import ParameterError, Settings, register, stream
from fedlab.data import Columns, Federation, leave_one_out, load, one_per_user
from fedlab.engine import SGD, joined
from fedlab.models import matrix_factorisation, perceptron
from fedlab.privacy import Clip, GaussianNoise


class Broken(Columns):
    """Columns whose last client cannot be read."""

    def draw(self, cohort, epochs, negatives, key):
        """The examples; raises for one client."""
        if 0 in cohort:
            raise ParameterError("client 0 cannot be read")
        return super().draw(cohort, epochs, negatives, key)


@register
class Dying(SGD):
    """In its second round, rank 1 is killed."""

    def train(self, context, cohort):
        """The updates."""
        if context.number == 2 and os.environ.get("RANK") == "1":
            os._exit(9)
        return super().train(context, cohort)


def table(kind=Columns):
    """300 clients with a few rows each."""
    g = stream(0, "ranks")
    owner = torch.arange(300).repeat_interleave(torch.arange(300, 0, -1) % 7 + 1)
    x = torch.randn(len(owner), 5, generator=g)
    return kind({"x": x, "target": (x[:, 0] > 0).float()}, owner)


def films():
    """Users of MovieLens."""
    train = leave_one_out(load()).train
    data = Federation(train, one_per_user(train))
    return matrix_factorisation(train.user_count, train.item_count, 4), data


def runs():
    """Name -> the arguments of `federate`."""
    perceptrons, few = (perceptron(5, 8), table()), Settings(rounds=3, cohort=200)
    noisy = [Clip(), GaussianNoise()]
    every = Settings(rounds=2, cohort=671, local_lr=1.0, server_lr=50.0)
    return {
        "films": ((*films(), every), {}),
        "sums": ((*perceptrons, few), {}),
        "median": ((*perceptrons, few), {"aggregate": CoordinateMedian()}),
        "codes": ((*perceptrons, few), {"uplink": [ErrorFeedback()]}),
        "scaffold": ((*perceptrons, few), {"local": Scaffold()}),
        "eager": ((*perceptrons, few.replace(engine="eager")), {}),
        "noise": ((*perceptrons, few.replace(clip=0.5, noise=1.0, delta=1e-3)), {"uplink": noisy}),
        "broken": ((perceptron(5, 8), table(Broken), few.replace(cohort=300)), {}),
        "dying": ((*perceptrons, few), {"local": Dying()}),
    }


def digest(params):
    """The bits of parameters."""
    found = hashlib.sha256()
    for name in sorted(params):
        value = params[name]
        whole = (
            value
            if isinstance(value, torch.Tensor)
            else value.index_select(0, torch.arange(len(value)))
        )
        found.update(whole.contiguous().numpy().tobytes())
    return found.hexdigest()


def one(name):
    """A digest after the last round, or the error."""
    given, more = runs()[name]
    try:
        *_, last = federate(*given, **more)
    except (ParameterError, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"
    return digest(last.params)


if __name__ == "__main__":
    with joined() as rank:
        for each in sys.argv[1:]:
            print(f"{each}\t{rank}\t{one(each)}\n", end="", flush=True)
