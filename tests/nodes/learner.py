"""A learner as a process, and made-up films: for the tests of a class.

python learner.py INVITATION NAME SLICE: joins, and says so; when its standard input ends, it says
what it was recommended before the class and after it.
"""

import json
import sys
from contextlib import contextmanager
from functools import cache

import torch

from fedlab.data import from_arrays
from fedlab.nodes import join
from fedlab.nodes.classroom import Entrance, welcome


@cache
def few():
    """Forty people and thirty films, made up: two tastes."""
    generator = torch.Generator().manual_seed(0)
    luck = torch.rand(40, 30, generator=generator)
    luck += (torch.arange(40)[:, None] % 4 < 2) == (torch.arange(30) % 2 == 0)
    films = luck.topk(8).indices.sort().values.flatten().tolist()
    people = torch.arange(40).repeat_interleave(8).tolist()
    return from_arrays([f"{u:02}" for u in people], [f"film {i:02}" for i in films])


@contextmanager
def opened(start):
    """A class on this machine, of the tables `start`; `said`: what its teacher reads."""
    said = []
    with Entrance("127.0.0.1:0", say=said.append) as room:
        room.said = said
        room.open(welcome(start, few().catalogue))
        yield room


def comes(room, **how):
    """One of them in the class of an entrance."""
    return join(str(room.invitation), data=few(), **how)


if __name__ == "__main__":
    _, invitation, name, part = sys.argv
    with join(invitation, name=name, slice=part, data=few()) as me:
        print("here", flush=True)
        sys.stdin.read()
    print(json.dumps([me.top(5, before=True), me.top(5)]))
