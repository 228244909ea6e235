"""Public texts spare privacy.

What a film is everybody may read, so only what people do with it costs epsilon.

    count = sum_u x_u / |x_u| + noise           what is watched; the server smooths it over films with like texts
    pairs = sum_u h_u h_u' / |h_u|^2 + noise    what goes together, with h_u = x_u' B in a basis B of public texts

A client clips to 1, so both are rounds of `federate_privately`. All else happens at a client, from
its own history, which nobody sees: taste by likeness of texts, the last films first, costs nothing
at all.

Letters: U users, I items, D dimensions of the basis. x_u (I,) is 1 for the films of a user.
Sources: Rasmussen, Williams 2006, eq. 2.23 (smoothing); Dwork et al. 2014, "Analyze Gauss" (the
noisy second moments).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedlab.core import Config, Key, Rows, Score, Tree, Update, require
from fedlab.data import Ratings, Source, recent
from fedlab.engine import Correction
from fedlab.models import Model


def counts(items: int) -> Model:
    """A model that is a number for each item, 0 at the start.

    The popularity that `seen` sums up.
    """
    return Model("counts", "clicks", lambda _: {"count": torch.zeros(items)}, lambda p,
                 batch: p["count"], {"count": "item"})


def pairs(basis: Tensor) -> Model:
    """A model that is a matrix (1, D, D): what `PairCounts` sums up.

    Its score of an item is the item's own length.
    """
    dim = basis.shape[1]

    def predict(p: Tree, batch: Tree) -> Tensor:
        rows = p["basis"][batch["item"]]
        return torch.einsum("...bd,...de,...be->...b", rows, p["pairs"], rows)
    return Model("pairs", "clicks", lambda _: {"pairs": torch.zeros(1, dim, dim)}, predict,
                 {"pairs": "one"}, constants={"basis": basis})


def seen(model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
         number: int = 1, control: Correction | None = None) -> Iterator[Update]:
    """Each client sends 1 for each film that it watched: a client update for `counts`."""
    if len(cohort):
        client, item = _watched(data, cohort, config, number)
        yield _update({"count": Rows(torch.ones(len(item), device=params["count"].device), item,
                                     client)}, cohort)


class PairCounts:
    """Each client sends the products of its history's D coordinates.

    A client update for `pairs`.
    """

    def __init__(self, basis: Tensor) -> None:
        """A basis (I, D) that everybody has."""
        self.basis = basis

    def update(self, model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
               number: int = 1, control: Correction | None = None) -> Iterator[Update]:
        """A matrix of norm 1 of each client."""
        if len(cohort):
            client, item = _watched(data, cohort, config, number)
            own = torch.zeros(len(cohort), self.basis.shape[1]).index_add_(0, client,
                                                                           self.basis[item])
            own = torch.nn.functional.normalize(own)
            ids = torch.zeros(len(cohort), dtype=torch.int64)
            matrices = (own[:, :, None] * own[:, None]).to(params["pairs"])
            yield _update({"pairs": Rows(matrices, ids, torch.arange(len(cohort)))}, cohort)


def _watched(data: Source, cohort: Tensor, config: Config, number: int) -> tuple[Tensor, Tensor]:
    """(client (n,), item (n,)) of the cohort's clicks, client after client."""
    drawn = data.draw(cohort, 1, 0, Key(config.seed, "examples", number))
    key = (drawn["client"] << 32 | drawn["item"]).unique()
    return key >> 32, key & 2**32 - 1


def _update(deltas: dict[str, Rows], cohort: Tensor) -> Update:
    nothing = torch.zeros(len(cohort))
    return Update(deltas, torch.ones(len(cohort)), nothing, cohort, nothing + 1)


def smoothed(count: Tensor, kernel: Tensor, noise: float, variance: float = 30.0,
             least: float = 0.2) -> Tensor:
    """(I,) counts without most of their noise.

    The mean of a Gaussian process over likeness (I, I), `least` or more.

    noise: standard deviation of the noise on `count` (I,). variance: of a count before any data.
    """
    for name, value in (("noise", noise), ("variance", variance), ("least", least)):
        require(value > 0, name, value, "choose a positive number")
    wide = (variance * kernel).double()
    noisy = wide + noise**2 * torch.eye(len(kernel), dtype=torch.float64)
    return (wide @ torch.linalg.solve(noisy, count.double())).float().clamp(min=least)


def public_basis(kernel: Tensor, popularity: Tensor, dim: int = 64) -> Tensor:
    """(I, D) the leading eigenvectors of likeness (I, I), of popular items (I,) above all.

    No data but popularity.
    """
    require(1 <= dim <= len(kernel), "dim", dim, f"choose from 1 to {len(kernel)}")
    size = popularity.sqrt().double()
    return torch.linalg.eigh(size[:, None] * kernel.double() * size).eigenvectors[:, -dim:].float()


def together(noisy: Tensor, basis: Tensor, popularity: Tensor, noise: float) -> Tensor:
    """(I, I) cosines between items in the directions of `pairs` (D.

    D) that stand out of its noise.
    """
    values, directions = torch.linalg.eigh((noisy + noisy.T).double() / 2)
    kept = values > noise * (2 * len(noisy)) ** 0.5  # the largest eigenvalue of such noise alone
    kept[-1] = True
    rows = basis @ (directions[:,
                               kept]
                    * values[kept].clamp(min=0).sqrt()).float() / popularity.sqrt()[:, None]
    rows = torch.nn.functional.normalize(rows)
    return rows @ rows.T


def own_taste(train: Ratings, likeness: Sequence[tuple[float, Tensor]],
              recency: float = 1.0) -> Tensor:
    """(U, I) how alike each item is to a user's own last ones.

    Weighted sum over kinds of (weight, (I, I)).

    Each kind has mean 0 and deviation 1 over a user's items.
    """
    own = torch.zeros(train.user_count, train.item_count)
    own[train.users, train.items] = recent(train, recency)
    own = own / own.sum(1, keepdim=True).clamp(min=1e-12)
    return sum((weight * standard(own @ kind) for weight, kind in likeness), torch.zeros_like(own))


def standard(scores: Tensor) -> Tensor:
    """(U, I) with mean 0 and deviation 1 over each user's items."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-9)


def table_score(scores: Tensor) -> Score:
    """Scores (U, I) as what evaluation asks for."""
    return lambda users, items: scores[users, items]
