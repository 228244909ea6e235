"""Trees of parameters, keyed randomness, checked knobs: what every other file stands on.

A *Tree* maps names to tensors. Axis 0 of a parameter is its **rows**: one per item, one per user,
or a single one for an ordinary weight. A client works on the rows it touches, so what a cohort
sends back is a `Rows` for each name: all clients' rows in one tensor, with the row id and the
client beside each.

Letters: N clients in all, C in a cohort, S local steps, B examples a step, D dimensions, R rows
touched.
"""

import hashlib

import torch


def stream(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """One CPU generator per (seed, purpose, round), so a new draw never shifts an old one."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big", signed=True))
