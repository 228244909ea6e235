"""Low-rank adapters: a large frozen layer, and a small product beside it that is trained and sent.

    y = W x + b + (alpha / r) B A x,    A (r, in) drawn, B (out, r) zero: starts as W x + b

Through `fedlab.models.from_module` each client has adapters of its own over one base that all
share, so stacked clients cost their adapters and not their models.

The mean of products is not the product of means: averaging A and B by themselves, as FedAvg does
with all weights, is biased as soon as clients differ. There are two ways out: freeze A, so that the
mean of B is exact; or let the server average the products and take the best A and B of that mean,
by a singular value decomposition.

Letters: r rank, C clients. Sources: Hu et al. 2022, "LoRA: low-rank adaptation of large language
models", eq. 3; Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning" (A
frozen); Bai et al. 2024, "Federated fine-tuning of large language models under heterogeneous tasks
and client resources" (the mean of products, decomposed).
"""

from collections.abc import Iterable
from dataclasses import field

import torch
from torch import Tensor

from fedlab.aggregation.mean import WeightedMean
from fedlab.core import Aggregation, Tree, Update, register, require


@register
class MeanOfProducts(Aggregation):
    """Fits the adapters to the weighted mean of clients' products B A, as closely as rank r allows.

    Closest means the least sum of squares over all entries. With several clients the mean has a
    rank of up to C r, so something may be lost; nothing is lost where the clients agree on A. then:
    what aggregates everything else, by default `WeightedMean()`.
    """

    then: Aggregation = field(default_factory=WeightedMean)

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name."""
        kept = list(updates)
        delta = dict(self.then(kept, server))
        pairs = [n for n in delta if n.endswith(".a") and f"{n[:-1]}b" in delta]
        require(
            bool(pairs),
            self.name,
            sorted(delta),
            "the model has no adapters that train both A and B; see fedlab.models.adapted",
        )
        for name in pairs:
            other = f"{name[:-1]}b"
            mean = _mean_product(kept, server, name, other)
            rank = server[name].shape[1]
            left, size, right = torch.linalg.svd(mean, full_matrices=False)
            root = size[:rank].sqrt()
            delta[name] = (root[:, None] * right[:rank])[None] - server[name]
            delta[other] = (left[:, :rank] * root)[None] - server[other]
        return delta


def product_error(updates: Iterable[Update], server: Tree, delta: Tree, constants: Tree) -> float:
    """How far the server's products B A end from the mean of its clients', relative to its change.

    The distance is divided by how far that mean moved; 0 is exact. delta: what a rule made of the
    updates. constants: those of the model, for an A that is frozen.
    """
    kept, error, change = list(updates), 0.0, 0.0
    whole = {n: value[None] for n, value in constants.items() if n.endswith(".a")} | server

    def product(tree: Tree, a: str, b: str) -> Tensor:
        left, right = (whole[n] + tree[n] if n in tree else whole[n] for n in (b, a))
        return left[0] @ right[0]

    for b in (n for n in server if n.endswith(".b")):
        a = f"{b[:-1]}a"
        mean = _mean_product(kept, whole, a, b)
        error += float((product(delta, a, b) - mean).square().sum())
        change += float((mean - product({}, a, b)).square().sum())
    return (error / change) ** 0.5


def _mean_product(updates: list[Update], server: Tree, a: str, b: str) -> Tensor:
    """The weighted mean (out, in) of the clients' products B A after the round."""
    total, found = torch.cat([update.weights for update in updates]).sum(), torch.zeros(())
    for update in updates:
        left, right = (
            server[n] + update.deltas[n].values if n in update.deltas else server[n] for n in (b, a)
        )
        found = found + torch.einsum(
            "c,cor,cri->oi", update.weights / total, left, right.expand(len(left), -1, -1)
        )
    return found
