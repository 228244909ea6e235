"""Keyed randomness: every draw is named, so that a new one never shifts an old one."""

import hashlib

import torch


def stream(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """One CPU generator per (seed, purpose, round), so a new draw never shifts an old one."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big", signed=True))
