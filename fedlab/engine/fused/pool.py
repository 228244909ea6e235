"""Pieces of work computed ahead by threads, and handed on in their order.

The pieces are compiled and hold no lock; what one computes depends on no other. So no bit depends
on how many threads there are, or on which of them did what.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Generic, TypeVar

import torch

from fedlab.engine import ranks

P = TypeVar("P")
R = TypeVar("R")


def cores() -> int:
    """How many cores this process may use, beside the ranks that share them."""
    known = hasattr(os, "sched_getaffinity")
    every = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, every // ranks.beside())


def _alone() -> None:
    torch.set_num_threads(1)  # torch counts threads for each thread anew


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, "fedlab", initializer=_alone)


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Piece(Generic[P, R]):
    """A piece on its way, computed by a helper or by the thread that asks."""

    def __init__(self, work: Callable[[P], R], piece: P, pool: ThreadPoolExecutor) -> None:
        self.work, self.piece = work, piece
        self.future: Future[R] = pool.submit(work, piece)

    def taken(self) -> bool:
        """Compute it here, unless a helper has begun."""
        if not self.future.cancel():
            return False
        self.future = Future()
        self.future.set_result(self.work(self.piece))
        return True


def in_order(work: Callable[[P], R], pieces: Sequence[P], workers: int) -> Iterator[R]:
    """Yield what `work` makes of each piece, on up to `workers` threads, the calling one included.

    And on all ranks, where there are several. Raises what `work` raises.
    """
    run = partial(_in_order, workers=workers)
    return ranks.shared(run, work, pieces) if ranks.several() else run(work, pieces)


def _in_order(work: Callable[[P], R], pieces: Sequence[P], workers: int) -> Iterator[R]:
    """Yield what `work` makes of each piece, on this rank.

    Helpers work ahead by a few pieces. The calling thread takes what nobody has begun until the
    piece is there that comes next, so on a busy machine it seldom waits for a helper that does not
    run.
    """
    if min(workers, len(pieces)) <= 1:
        yield from map(work, pieces)
        return
    pool, left, ahead = _pool(workers - 1), deque(pieces), deque[_Piece[P, R]]()
    try:
        while left or ahead:
            while left and len(ahead) < 2 * workers:
                ahead.append(_Piece(work, left.popleft(), pool))
            while not ahead[0].future.done() and any(piece.taken() for piece in ahead):
                pass
            yield ahead.popleft().future.result()
    finally:
        for piece in ahead:
            piece.future.cancel()
