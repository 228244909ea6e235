"""A coordinator as a process that may be killed: python coordinate.py SOCKET FOLDER NODES ROUNDS.

It saves each Round, and goes on from the last one that is there.
"""

import sys
import time
from pathlib import Path

import torch

from fedlab.algorithms import Scaffold
from fedlab.core import Settings, load_round, save_round
from fedlab.core.checkpoints import newest
from fedlab.models import MatrixFactorisation
from fedlab.nodes import Coordinator, Sockets, gathered

SETTINGS = Settings(cohort=12, local_lr=0.5, server_lr=2.0)
RECIPE = MatrixFactorisation(dim=4)


def main(where, folder, nodes, rounds):
    """Train, and repeat a round in which somebody was lost once all are there again."""
    torch.set_num_threads(1)
    last = Path(folder, "last")
    settings = SETTINGS.replace(rounds=int(rounds))
    with Sockets(where) as line:
        roster = gathered(line, 60, count=int(nodes))
        far = Coordinator(line, RECIPE, local=Scaffold(), roster=roster, quorum=1.0)
        while True:
            start = load_round(last) if newest(last).exists() else None
            if start and start.number == settings.rounds:
                far.measure(start)
                return
            for done in far.rounds(settings, start=start):
                if done.skipped:
                    print("again", done.number, done.skipped, flush=True)
                    while len([n for n, why in line.nodes().items() if not why]) < int(nodes):
                        time.sleep(0.02)
                    break
                save_round(done, last)
                print("round", done.number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
