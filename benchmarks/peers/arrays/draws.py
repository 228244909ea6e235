"""What ways on whole arrays draw before a round, in numpy and without a loop over clients.

It runs in every peer's own environment, so it needs nothing but numpy. Letters: N clients, C of a
cohort, n examples of each, I items, m clicks of a cohort, B examples in a batch, T batches.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np


def orders(rng: np.random.Generator, clients: int, examples: int) -> np.ndarray:
    """(C, n) int32: a random order of each client's examples."""
    each = np.arange(examples, dtype=np.int32)
    return rng.permuted(np.broadcast_to(each, (clients, examples)), axis=1)


def slots(item: np.ndarray) -> np.ndarray:
    """(N, n) int32: the first of a client's own examples that has the same item, item (N, n)."""
    found = np.empty(item.shape, np.int32)
    for client, own in enumerate(item):  # once, before the first round
        _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
        found[client] = first[inverse]
    return found


class Batches(NamedTuple):
    """A cohort's examples in batches, client after client; of all arrays the first T rows count.

    item, slot (T, B) int32: the item, and the place of one of the client's examples that has the
    same item, counted through all batches. target, weight (T, B) float32: what to predict, and the
    example's share of its batch, 0 for padding. owner (T,) int32: the position of the batch's
    client in the cohort. first (C + 1,): where the batches of each client begin.
    """

    item: np.ndarray
    slot: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    owner: np.ndarray
    first: np.ndarray


class Clicks:
    """The clicks of all clients; it draws unseen items beside those of a cohort.

    No sort is as fast as this: all examples are shuffled, then grouped by client with a stable sort
    of 16-bit numbers, which numpy does by their digits. A row of a table as wide as the catalogue
    tells which of a client's examples share an item.
    """

    def __init__(self, job: SimpleNamespace) -> None:
        """Find where each client's clicks begin, what it has seen, and room for any cohort."""
        self.item, self.counts = job.columns["item"].astype(np.int32), job.counts
        self.starts = self.counts.cumsum() - self.counts
        self.each, self.batch = 1 + job.negatives, job.batch
        self.items = len(job.weights["item.weight"])
        self.seen = np.zeros((job.clients, self.items), bool)
        self.seen[np.repeat(np.arange(job.clients), self.counts), self.item] = True
        self.place = np.empty(job.cohort * self.items, np.int32)
        each = -(-self.counts * self.each // self.batch)
        self.most, self.longest = int(np.sort(each)[-job.cohort :].sum()), int(each.max())
        shape = (self.most, self.batch)
        self.code, self.slot = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.weight, self.own = np.zeros(shape, np.float32), np.arange(self.most * self.batch)
        self.owner, self.rng = np.zeros(self.most, np.int32), np.random.default_rng(0)

    def beside(self, client: np.ndarray) -> np.ndarray:
        """(m, negatives) int32: items that the client of each click, client (m,), has not seen."""
        found = self.rng.integers(self.items, size=(len(client), self.each - 1), dtype=np.int32)
        seen, row = self.seen.ravel(), client[:, None] * self.items
        again = seen.take(row + found).ravel().nonzero()[0]
        while len(again):
            drawn = self.rng.integers(self.items, size=len(again), dtype=np.int32)
            found.ravel()[again] = drawn
            again = again[seen.take(row[again // found.shape[1], 0] + drawn)]
        return found

    def draw(self, cohort: np.ndarray) -> Batches:
        """The batches of a cohort (C,), which next time overwrite these."""
        clicks = self.counts[cohort]
        sizes, client = clicks * self.each, np.repeat(cohort, clicks)
        own = np.repeat(self.starts[cohort] - clicks.cumsum() + clicks, clicks)
        own += np.arange(len(own))
        code = np.empty((len(own), self.each), np.int32)  # twice the item, and 1 for a click
        code[:, 0], code[:, 1:] = self.item[own] * 2 + 1, self.beside(client) * 2
        owner = np.repeat(np.arange(len(cohort), dtype=np.int16), sizes)
        order = self.rng.permutation(len(owner))
        order = order[owner[order].argsort(kind="stable")]
        first = np.concatenate([[0], (-(-sizes // self.batch)).cumsum()])
        at = np.repeat(first[:-1] * self.batch - sizes.cumsum() + sizes, sizes)
        at += np.arange(len(at))
        self._lay(code.ravel()[order], owner, at, first[-1])
        last = (sizes - (sizes - 1) // self.batch * self.batch)[:, None]
        self.weight[: first[-1]] = 1 / self.batch
        self.weight[first[1:] - 1] = (np.arange(self.batch) < last) / last
        self.owner[: first[-1]] = np.repeat(np.arange(len(cohort)), np.diff(first))
        target = (self.code & 1).astype(np.float32)
        return Batches(self.code >> 1, self.slot, target, self.weight, self.owner, first)

    def _lay(self, code: np.ndarray, owner: np.ndarray, at: np.ndarray, used: int) -> None:
        """Write shuffled examples to their places `at`; padding is item 0 of a place of its own."""
        codes, slot, used = self.code.ravel(), self.slot.ravel(), used * self.batch
        codes[:used], slot[:used] = 0, self.own[:used]
        codes[at] = code
        key = owner.astype(np.int32) * self.items + (code >> 1)
        self.place[key] = at
        slot[at] = self.place.take(key)
