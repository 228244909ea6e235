"""What a peer and the benchmark say to each other: a job, rounds on command, weights at the end.

It runs in every peer's own environment, so it needs nothing but numpy. A job is a .npz file:
`model` ('mlp', 'mf', 'private' or 'clicks'), `clients` (N), `examples` of each (n), `cohort` (C),
`batch`, `rate`, the examples' columns client by client (N, n, ...), and the first weights by name.
'private' is 'mf' with a user for each client, who stays there. 'clicks' has clients of unequal
length: `counts` (N,), a column `item` of all clicks, `negatives` to draw beside each, and
`server_rate`. Where all ways train the same clients there are `cohorts`, (rounds, C).
"""

import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import numpy as np


@lru_cache
def read_job(path: str | None = None) -> SimpleNamespace:
    """The job named on the command line, its columns and weights by name."""
    with np.load(path or sys.argv[1]) as file:
        held = {name: file[name] for name in file.files}
    part = {
        kind: {n.split("/")[1]: v for n, v in held.items() if n.startswith(f"{kind}/")}
        for kind in ("columns", "weights")
    }
    plain = {n: v if v.ndim else v.item() for n, v in held.items() if "/" not in n}
    return SimpleNamespace(**plain, **part)


class Commands:
    """The peer's side: wait for 'round' or 'end', answer with seconds."""

    def __init__(self) -> None:
        """Nothing has been asked so far."""
        self.began = 0.0
        self.out = sys.stdout
        sys.stdout = sys.stderr  # what a framework prints must not look like an answer

    def wait(self) -> bool:
        """Block until the next command; False when it is over."""
        asked = sys.stdin.readline().strip() == "round"
        self.began = time.perf_counter()
        return asked

    def done(self) -> None:
        """Answer that a round is over."""
        print(json.dumps(time.perf_counter() - self.began), file=self.out, flush=True)


def save(weights: dict[str, np.ndarray]) -> None:
    """Write the final weights where the command line says."""
    np.savez(sys.argv[2], **weights)


def serve(step: Callable[[], None], weights: Callable[[], dict[str, np.ndarray]]) -> None:
    """Run `step` on command, then save `weights`, and as 'first/...' those after one round."""
    commands, first = Commands(), {}
    while commands.wait():
        step()
        commands.done()
        first = first or {f"first/{name}": value.copy() for name, value in weights().items()}
    save(weights() | first)
