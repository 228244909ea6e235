"""What a trial takes of memory at most, and what is free: how many of them go side by side.

Letters: I items, T of them in EASE's table, D dimensions, n clicks, n_u of a user.
"""

import os
from pathlib import Path

from fedlab.algorithms.ease import BYTES
from fedlab.data import Interactions
from fedlab.workbench.best.methods import Method, table_of

PROCESS = 0.6e9  # bytes of a process that has read torch, numba and polars, and no data
ROW = 150  # of a click, in three parts and as the layout of a federation
NAMED = 400  # of an item: its id and its title, and what is counted of each
COPIES = 14  # of the items' vectors in float32: parameters, momentum, gradients, turned in float64
NEIGHBOUR = 40  # of a pair of items that item kNN keeps, while it is turned
MEMORY = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # what a container may take


def needed(method: Method, train: Interactions) -> float:
    """Bytes that it takes at most to train and measure this method, in a process that runs already.

    >>> from fedlab.data import load
    >>> from fedlab.workbench.best.methods import federated
    >>> [round(needed(method, load()) / 1e9, 1) for method in federated(load())]
    [0.1, 1.5]
    """
    items = train.item_count
    found = float(ROW * len(train) + NAMED * items)
    if "dim" in method.ranges:
        return found + COPIES * 4 * items * method.ranges["dim"].high
    if "ridge" in method.ranges:
        return found + BYTES * table_of(method, train.item_counts()) ** 2
    pairs = float(train.user_counts().double().square().sum())  # of items, that somebody has met
    return found + NEIGHBOUR * min(pairs, items * method.ranges["neighbours"].high)


def free_memory() -> float:
    """Bytes that processes may still take; infinite where the system does not say.

    Linux says what is free, and what a container may take; elsewhere it is all that there is.
    """
    found = [float("inf")]
    if MEMORY.exists():
        found.append(1024 * _numbers(MEMORY)["MemAvailable:"])
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    limit = GROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        given_up = _numbers(GROUP / "memory.stat")["inactive_file"]  # of files, when it is wanted
        used = float((GROUP / "memory.current").read_text()) - given_up
        found.append(max(0.0, float(most) - used))
    return min(found)


def _numbers(path: Path) -> dict[str, float]:
    """The numbers of a file with a name and a number in each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: float(words[1]) for words in lines}
