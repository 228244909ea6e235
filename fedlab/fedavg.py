"""Federated averaging as the paper has it: read this first.

In each round the server sends its parameters w to a cohort of clients. Each client trains them on
its own examples and sends back what came out. The server's next w is their mean, weighted by how
many examples each client has. No example ever leaves its client.

All else in this package is this page with one step done otherwise (`aggregation`, `privacy`,
`algorithms`, `communication`, `attacks`), or done fast (`engine`, which tests hold equal to it).

Letters: w the parameters by name, S a cohort, n_k examples of client k, eta the learning rate.
Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
data", algorithm 1 (FederatedAveraging).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Batch = Mapping[str, Tensor]
Loss = Callable[[Parameters, Batch], Tensor]


def client_update(w: Parameters, batches: Iterable[Batch], loss: Loss, eta: float) -> Parameters:
    """ClientUpdate(k, w): a gradient step on each of the client's batches, epoch after epoch."""
    for batch in batches:
        w = {name: value.detach().requires_grad_() for name, value in w.items()}
        gradients = torch.autograd.grad(loss(w, batch), list(w.values()))
        w = {
            name: value.detach() - eta * gradient
            for (name, value), gradient in zip(w.items(), gradients, strict=True)
        }
    return w


def federated_averaging(
    w: Parameters,
    cohorts: Iterable[Sequence[int]],
    n: Sequence[int],
    batches: Callable[[int, int], Iterable[Batch]],
    loss: Loss,
    eta: float,
) -> Iterator[Parameters]:
    """Yield the server's parameters after each round.

    cohorts: S for each round. n: examples of each client. batches(t, k): what client k trains on in
    round t. loss(w, batch) -> the mean loss of a batch.

    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])     # four clients, one example each: y = 2 x
    >>> def batches(t, k): return [{"x": x[k], "y": 2 * x[k]}]
    >>> def loss(w, batch): return (w["slope"] * batch["x"] - batch["y"]).square().mean()
    >>> start = {"slope": torch.zeros(1)}
    >>> *_, w = federated_averaging(start, [[0, 1, 2, 3]] * 20, [1, 1, 1, 1], batches, loss, 0.05)
    >>> round(float(w["slope"]), 3)
    2.0
    """
    for t, cohort in enumerate(cohorts, 1):
        total = sum(n[k] for k in cohort)
        trained = {k: client_update(w, batches(t, k), loss, eta) for k in cohort}
        w = {
            name: sum((n[k] / total * trained[k][name] for k in cohort), torch.zeros(()))
            for name in w
        }
        yield w
