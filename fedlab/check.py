"""Automatic checks for the exercises: each says 'Right.' or gives a hint, and never stops the notebook.

Every check works out the answer itself on numbers drawn afresh from a fixed seed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedlab.core import stream


def _say(right: bool, hint: str) -> None:
    print("Right." if right else f"Not yet. Hint: {hint}")


def _equal(answer: object, expected: Tensor) -> bool:
    """Whether an answer is a tensor (or number) of the expected values; `...` and None are simply not yet."""
    if not isinstance(answer, Tensor | int | float) or isinstance(answer, bool):
        return False
    given = torch.as_tensor(answer, dtype=expected.dtype)
    return given.shape == expected.shape and bool(torch.allclose(given, expected, atol=1e-5))


def factor_step(step: Callable[[Tensor, Tensor, float, float], Any]) -> None:
    """Lesson 1: `step(p, q, y, lr)` is p after one SGD step on (p . q - y) ** 2."""
    draw = stream(0, "exercise")
    p, q, y, lr = torch.randn(4, generator=draw), torch.randn(4, generator=draw), 1.5, 0.1
    leaf = p.clone().requires_grad_()
    ((leaf @ q - y) ** 2).backward()
    _say(_equal(step(p, q, y, lr), (leaf - lr * torch.as_tensor(leaf.grad)).detach()),
         "the derivative of (p . q - y)^2 by p is 2 (p . q - y) q; step against it, times lr")


def parameters(answer: object, features: int, clients: int) -> None:
    """Lesson 1: how many numbers all clients hold together when each keeps its own theta."""
    _say(answer == features * clients, "each client has one number for each feature; count the features of x first")


def fedavg(average: Callable[[Tensor, Tensor], Any]) -> None:
    """Lesson 2: `average(deltas, counts)` is the mean of deltas (C, D) weighted by examples (C,)."""
    draw = stream(0, "exercise")
    deltas, counts = torch.randn(5, 3, generator=draw), torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    expected = (counts / counts.sum()) @ deltas
    answer = average(deltas, counts)
    plain = _equal(answer, deltas.mean(0))
    _say(_equal(answer, expected), "that is the plain mean; a client with more examples must count more" if plain
         else "divide the counts by their sum, then add up share times delta over the clients")


def upload(answer: object, rows: int, dim: int) -> None:
    """Lesson 2: bytes a client sends up for `rows` items: a vector of `dim` floats, a bias, the row number."""
    _say(answer == rows * (4 * (dim + 1) + 4), "4 bytes a float, dim + 1 floats an item, and 4 bytes to say which item")
