"""Solutions of lesson 12. Try first: the checks in the notebook give hints."""

import torch

from fedlab.core import stream


def parted(cohort, clients):
    """A list for each node: its clients among the cohort, in the cohort's order."""
    found, first = [], 0
    for count in clients:
        found.append([client for client in cohort if first <= client < first + count])
        first += count
    return found


def drawn(seed, number, client):
    """Five numbers from a generator of this seed, round and client alone."""
    generator = stream(seed, f"exercise of client {client}", number)
    return torch.randint(1000, (5,), generator=generator).tolist()


answer = "b"  # the server's tables step once; so a client's vector may step once, or not at all
