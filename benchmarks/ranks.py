"""One federation over ranks beside one process: the work of each, in processor time, and the bits.

    python benchmarks/ranks.py [--quick]

1,000 clients with 200 examples each train a perceptron of 64 hidden units; then one process, two
ranks and one process again do the same rounds. A rank's time is that of its process from its third
round on, without start-up and compiling; so is that of one process.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from statistics import median

import torch
from common import entry, is_quick, record

from fedlab.algorithms import federate
from fedlab.core import Settings, stream
from fedlab.data import Columns
from fedlab.engine import joined
from fedlab.models import perceptron

CLIENTS, EXAMPLES, WIDTH, WARM = 1000, 200, 64, 2
OWN = "FEDLAB_RANKS_ROUNDS"  # of the environment of a rank


def job(rounds):
    """The arguments of `federate`."""
    g = stream(0, "ranks")
    x = torch.randn(CLIENTS * EXAMPLES, WIDTH, generator=g)
    target = (x @ torch.randn(WIDTH, generator=g) > 0).float()
    owner = torch.arange(CLIENTS).repeat_interleave(EXAMPLES)
    settings = Settings(rounds=rounds, cohort=CLIENTS, local_lr=0.1, workers=1)
    return perceptron(WIDTH, WIDTH), Columns({"x": x, "target": target}, owner), settings


def one(rounds):
    """Print what this rank took: processor time and time of a round, and its parameters' digest."""
    with joined() as rank:
        for done in federate(*job(rounds)):
            if done.number == WARM:
                began, worked = time.perf_counter(), time.process_time()
        took = time.perf_counter() - began, time.process_time() - worked
        bits = hashlib.sha256()
        for name in sorted(done.params):
            bits.update(done.params[name].numpy().tobytes())
        each = [seconds / (rounds - WARM) for seconds in took]
        print(json.dumps([rank, *each, bits.hexdigest()]) + "\n", end="", flush=True)


def ran(ranks, rounds):
    """What each rank printed."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    own = os.environ | {"OMP_NUM_THREADS": "1", OWN: str(rounds)}
    text = subprocess.check_output([sys.executable, *start, __file__], text=True, env=own)
    return [json.loads(line) for line in text.splitlines()]


def main() -> None:
    """Measure and record."""
    if os.environ.get(OWN):
        one(int(os.environ[OWN]))
        return
    quick = is_quick()
    rounds, ratios, walls, digests = 6 if quick else 22, [], [], set()
    for _ in range(1 if quick else 3):
        ((_, wall, worked, bits),), both = ran(1, rounds), ran(2, rounds)
        ratios.append(worked / max(each[2] for each in both))
        walls.append(wall / max(each[1] for each in both))
        digests |= {bits, *(each[3] for each in both)}
        print(f"one process {wall:.3f} s a round, processor time {ratios[-1]:.2f} times a rank's")
    assert len(digests) == 1, "ranks have other bits than one process"
    note = (
        f"processor time of one process over that of the slower rank, {CLIENTS:,} clients of "
        f"{EXAMPLES} examples; the time of a round {median(walls):.2f} times; the same bits"
    )
    found = entry(median(ratios), "times", 1.7, higher=True, seeds=1, note=note)
    record("nodes", {"ranks_cpu_ratio_2": found}, quick)


if __name__ == "__main__":
    main()
