"""Loops that numba compiles: how, and those over rows that torch does several times slower.

numba compiles Python on the machine at hand, from a wheel and without a compiler, on Linux, macOS
and Windows. What is compiled is kept on disk, beside the source or in the user's cache folder, so
that a machine compiles once. Compiled loops do not hold the interpreter's lock.

This file needs numba; where that is missing, `Rows` and the engine take torch's way.

Letters: R rows, D numbers in each, C clients.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

# sums in any order, so that they compile to vectors; infinities and NaN stay what they are
ANY_ORDER = {"reassoc", "contract", "arcp", "nsz"}


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function at its first call; where no folder can keep it, at each start anew.

    What it calls becomes part of it. Else a process that compiles a callee would link its own code,
    one that reads from disk the caller's copy, and their sums would differ in the last bit.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        usual = {"nogil": True, "forceinline": True, **options}
        try:
            return njit(cache=True, **usual)(function)
        except RuntimeError:  # there is no folder that can be written
            return njit(**usual)(function)

    return wrap


def forget_stale(package: Path) -> None:
    """Delete compiled code that is older than a source beside it.

    numba compares it with the file of the function alone, and not with those that it calls.
    """
    kept = list(package.rglob("__pycache__/*.nbi"))
    sources = [
        path for folder in {index.parents[1] for index in kept} for path in folder.glob("*.py")
    ]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    for index in kept:
        with suppress(OSError):  # somebody else's, or gone by now
            if index.stat().st_mtime < newest:
                index.unlink()


forget_stale(Path(__file__).parents[2])


@compiled()
def add_rows(out: np.ndarray, ids: np.ndarray, values: np.ndarray) -> bool:
    """Add values (R, D) to the rows ids (R,) of out, in their order; False for a row it has not."""
    for r in range(len(ids)):
        if not 0 <= ids[r] < len(out):
            return False
        row = ids[r]
        for j in range(out.shape[1]):
            out[row, j] += values[r, j]
    return True


@compiled()
def add_weighted(
    out: np.ndarray, ids: np.ndarray, client: np.ndarray, weights: np.ndarray, values: np.ndarray
) -> bool:
    """Add values (R, D), each row times the weight of its client, weights (C,), in their order.

    False for a row or a client that is not there.
    """
    for r in range(len(ids)):
        if not (0 <= ids[r] < len(out) and 0 <= client[r] < len(weights)):
            return False
        row, weight = ids[r], weights[client[r]]
        for j in range(out.shape[1]):
            out[row, j] += values[r, j] * weight
    return True


@compiled(fastmath=ANY_ORDER)
def add_squares(out: np.ndarray, client: np.ndarray, values: np.ndarray) -> bool:
    """Add the squares of values (R, D) to the sums of their clients, out (C,) float64."""
    for r in range(len(client)):
        if not 0 <= client[r] < len(out):
            return False
        total = 0.0
        for j in range(values.shape[1]):
            number = np.float64(values[r, j])
            total += number * number
        out[client[r]] += total
    return True


@compiled()
def senders(client: np.ndarray, clients: int) -> int:
    """How many clients have rows, client (R,) growing from 0 to below `clients`; else -1."""
    found, before = 0, -1
    for now in client:
        if now != before:
            if not before < now < clients:
                return -1
            found, before = found + 1, now
    return found


@compiled()
def growing(ids: np.ndarray, client: np.ndarray, height: int) -> bool:
    """Whether the row numbers ids (R,) of each client grow, from 0 to below `height`."""
    for r in range(len(ids)):
        if not 0 <= ids[r] < height:
            return False
        if r and client[r] == client[r - 1] and ids[r] <= ids[r - 1]:
            return False
    return True


@compiled()
def merged(ids: np.ndarray, values: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The different row numbers, growing, and the sums of values (R, D) of each, in their order."""
    slot = np.full(height, -1, np.int64)
    for row in ids:
        if not 0 <= row < height:
            raise IndexError("a row does not exist")
        slot[row] = 0
    found = 0
    for row in range(height):
        if slot[row] == 0:
            slot[row] = found
            found += 1
    rows, sums = np.empty(found, np.int64), np.zeros((found, values.shape[1]), values.dtype)
    for r in range(len(ids)):
        row = slot[ids[r]]
        rows[row] = ids[r]
        for j in range(values.shape[1]):
            sums[row, j] += values[r, j]
    return rows, sums


@compiled()
def step_rows(out: np.ndarray, ids: np.ndarray, values: np.ndarray, rate: float) -> bool:
    """Move the rows ids (R,), each once, by `rate` times values (R, D).

    False for a row that is not there; then nothing has moved.
    """
    for row in ids:
        if not 0 <= row < len(out):
            return False
    share = np.float32(rate)
    for r in range(len(ids)):
        row = ids[r]
        for j in range(out.shape[1]):
            out[row, j] += values[r, j] * share
    return True


@compiled()
def step_all(value: np.ndarray, delta: np.ndarray, rate: float, out: np.ndarray) -> None:
    """Write value (N,) plus `rate` times delta (N,) to out (N,)."""
    share = np.float32(rate)
    for k in range(len(value)):
        out[k] = value[k] + delta[k] * share
