"""Public texts cost no privacy: only what people do with films does, not what these are.

    count = sum_u x_u / |x_u| + noise           what is watched; smoothed over films of like texts
    pairs = sum_u h_u h_u' / |h_u|^2 + noise    what goes together, h_u = x_u' B in texts' basis B

A client clips what it sends to 1, so both are rounds of `federate` with a `Clip` and noise. All
else happens at a client, from its own history, which nobody sees: taste by likeness of texts, the
last films first, costs nothing at all.

Letters: U users, I items, D dimensions of the basis. x_u (I,) is 1 for the films of a user.
Sources: Rasmussen, Williams 2006, eq. 2.23 (smoothing); Dwork et al. 2014, "Analyze Gauss" (the
noisy second moments).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlab.core import (
    Key,
    Local,
    Recipe,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    register,
    require,
)
from fedlab.data import Interactions, Source, recent
from fedlab.evaluation import dot
from fedlab.models import Model


def item_counts(items: int) -> Model:
    """A model that is a number for each item, 0 at the start: what `ItemCounts` sums up."""
    return Model(
        "item counts",
        "clicks",
        lambda _: {"count": torch.zeros(items)},
        lambda p, batch: p["count"],
        {"count": "item"},
    )


def pair_counts(basis: Tensor) -> Model:
    """A model that is a matrix (1, D, D): what `PairCounts` sums up.

    It scores an item by its own length under this matrix.
    """
    dim = basis.shape[1]

    def predict(p: Tree, batch: Tree) -> Tensor:
        rows = p["basis"][batch["item"]]
        return torch.einsum("...bd,...de,...be->...b", rows, p["pairs"], rows)

    return Model(
        "pair counts",
        "clicks",
        lambda _: {"pairs": torch.zeros(1, dim, dim)},
        predict,
        {"pairs": "one"},
        constants={"basis": basis},
    )


@register
class ItemCounts(Local):
    """Each client sends 1 for each item that it clicked: for the model `item_counts`."""

    def adds(self) -> dict[str, Any]:
        """The fact that all clients count alike."""
        return {"equal": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for another model."""
        require(
            "count" in context.model.rows,
            "model",
            context.model.name,
            "item counts need their own model; see fedlab.privacy.item_counts",
        )

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield ones at the items of each client."""
        client, item = _clicked(context.data, cohort)
        ones = torch.ones(len(item), device=context.params["count"].device)
        yield _update({"count": Rows(ones, item, client)}, cohort)


@register
class PairCounts(Local):
    """Each client sends the products of its history's D coordinates, for `pair_counts`."""

    def adds(self) -> dict[str, Any]:
        """The fact that all clients count alike."""
        return {"equal": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for another model."""
        require(
            "pairs" in context.model.rows,
            "model",
            context.model.name,
            "pair counts need their own model; see fedlab.privacy.pair_counts",
        )

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield a matrix of norm 1 for each client."""
        basis = context.model.constants["basis"].cpu()
        client, item = _clicked(context.data, cohort)
        own = torch.zeros(len(cohort), basis.shape[1]).index_add_(0, client, basis[item])
        own = torch.nn.functional.normalize(own)
        ids = torch.zeros(len(cohort), dtype=torch.int64)
        matrices = (own[:, :, None] * own[:, None]).to(context.params["pairs"])
        yield _update({"pairs": Rows(matrices, ids, torch.arange(len(cohort)))}, cohort)


@register
class Popularity(Recipe):
    """A number for each item, the same for all users: the model of item counts."""

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return item_counts(train.item_count)


@register
class GenrePairs(Recipe):
    """How genres go together: the model of pair counts."""

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return pair_counts(torch.nn.functional.normalize(train.catalogue.categories.float()))

    def score(self, model: Model, data: Any, params: Tree) -> Score:
        """Predict by what goes together with a user's own items."""
        train, basis = data.train, model.constants["basis"]
        own = torch.zeros(train.user_count, basis.shape[1])
        own = own.index_add_(0, train.users, basis[train.items]) @ params["pairs"][0].cpu()
        return dot(own, basis)


def _clicked(data: Source, cohort: Tensor) -> tuple[Tensor, Tensor]:
    """(client (n,), item (n,)) of the cohort's clicks, client after client, items growing."""
    drawn = data.draw(cohort, 1, 0, Key(0, "order"))
    key = (drawn["client"] << 32 | drawn["item"]).unique()
    return key >> 32, key & 2**32 - 1


def _update(deltas: dict[str, Rows], cohort: Tensor) -> Update:
    nothing = torch.zeros(len(cohort))
    return Update(deltas, torch.ones(len(cohort)), nothing, cohort, nothing + 1)


def smoothed(
    count: Tensor, kernel: Tensor, noise: float, variance: float = 30.0, least: float = 0.2
) -> Tensor:
    """The counts (I,) without most of their noise, `least` or more.

    They are the mean of a Gaussian process over likeness (I, I). noise: standard deviation of the
    noise on `count` (I,). variance: that of a count before any data.
    """
    for name, value in (("noise", noise), ("variance", variance), ("least", least)):
        require(value > 0, name, value, "choose a positive number")
    wide = (variance * kernel).double()
    noisy = wide + noise**2 * torch.eye(len(kernel), dtype=torch.float64)
    return (wide @ torch.linalg.solve(noisy, count.double())).float().clamp(min=least)


def public_basis(kernel: Tensor, popularity: Tensor, dim: int = 64) -> Tensor:
    """The leading eigenvectors (I, D) of likeness (I, I), above all of popular items.

    Of the data it uses nothing but popularity (I,).
    """
    require(1 <= dim <= len(kernel), "dim", dim, f"choose from 1 to {len(kernel)}")
    size = popularity.sqrt().double()
    return torch.linalg.eigh(size[:, None] * kernel.double() * size).eigenvectors[:, -dim:].float()


def together(noisy: Tensor, basis: Tensor, popularity: Tensor, noise: float) -> Tensor:
    """The cosines (I, I) between items in the directions of `pairs` that stand out of its noise.

    noisy (D, D): `pairs` with its noise, of standard deviation `noise`.
    """
    values, directions = torch.linalg.eigh((noisy + noisy.T).double() / 2)
    kept = values > noise * (2 * len(noisy)) ** 0.5  # the largest eigenvalue of such noise alone
    kept[-1] = True
    rows = (
        basis
        @ (directions[:, kept] * values[kept].clamp(min=0).sqrt()).float()
        / popularity.sqrt()[:, None]
    )
    rows = torch.nn.functional.normalize(rows)
    return rows @ rows.T


def own_taste(
    train: Interactions, likeness: Sequence[tuple[float, Tensor]], recency: float = 1.0
) -> Tensor:
    """How alike (U, I) each item is to a user's own last ones.

    It is a weighted sum over kinds of likeness, each given as (weight, (I, I)). Each kind has mean
    0 and deviation 1 over a user's items.
    """
    own = torch.zeros(train.user_count, train.item_count)
    own[train.users, train.items] = recent(train, recency)
    own = own / own.sum(1, keepdim=True).clamp(min=1e-12)
    return sum((weight * standard(own @ kind) for weight, kind in likeness), torch.zeros_like(own))


def standard(scores: Tensor) -> Tensor:
    """The scores (U, I), with mean 0 and deviation 1 over each user's items."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-9)


def table_score(scores: Tensor) -> Score:
    """The scores (U, I) in the form that evaluation asks for."""
    return lambda users, items: scores[users, items]
