"""Baselines that see all data in one place: what a federation is measured against.

None of them makes a table of users by items: clicks stay sparse, and scores are worked out for a
few users at a time. EASE needs a table of items by items, and says so where it would not fit.

Letters: U users, I items, T items of a table, D dimensions, n clicks, X (U, I) their matrix.

Sources: Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms",
section 3.1.1 (cosine) and 3.2.1 (weighted sum); Deshpande, Karypis 2004, "Item-based top-N
recommendation algorithms", section 4 (the sum over clicks, for the k nearest alone); Steck 2019,
"Embarrassingly shallow autoencoders for sparse data", eq. 8 (EASE); Hu, Koren, Volinsky 2008,
"Collaborative filtering for implicit feedback datasets", eq. 4 and 5, and Rendle et al. 2022,
"Revisiting the performance of iALS on item recommendation benchmarks", with nu = 1 (iALS).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fedlab.core import compiled_loops, require, stream
from fedlab.data import Interactions, own_rows, recent
from fedlab.engine.fused import Clicks, Strength
from fedlab.models import ByUser, Factored, factored

BLOCK = 1024  # items whose pairs with all others are counted at a time
PADDED = 1 << 23  # numbers of vectors that are looked up at a time
POOLED_BYTES = 20  # of a pair of items while EASE inverts, at most


def clicked(train: Interactions) -> Tensor:
    """X (U, I): 1 where the user rated the item in train, else 0.

    >>> from fedlab.data import load
    >>> int(clicked(load()).sum())
    100004
    """
    table = torch.zeros(train.user_count, train.item_count)
    table[train.users, train.items] = 1
    return table


def item_knn(
    train: Interactions, neighbours: int = 100, shrinkage: float = 10.0, recency: float = 0.0
) -> ByUser:
    """Item kNN: the score of an item is the sum of its likeness to those that the user clicked.

    s_ij = n_ij / (sqrt(n_i n_j) + shrinkage), where n_ij users clicked both: the cosine of two
    columns of X, less where few have met the items. neighbours: how many items an item is compared
    with, those most alike to it, 1 or more; of equal ones the first. shrinkage: 0 or more. recency:
    a click weighs as `fedlab.data.recent` says; 0 weighs all alike. Memory goes with the pairs that
    somebody clicked both of. Raises `ParameterError` for values out of range.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=150)
    >>> score = item_knn(few, neighbours=20)
    >>> score(torch.tensor([0, 0]), torch.tensor([1, 2])).shape
    torch.Size([2])
    """
    whole = isinstance(neighbours, int) and neighbours >= 1
    require(whole, "neighbours", neighbours, "choose a whole number of 1 or more, say 100")
    require(shrinkage >= 0, "shrinkage", shrinkage, "choose 0 or more, say 10")
    from scipy.sparse import vstack  # noqa: PLC0415 - takes a tenth of a second

    table = _sparse(train)
    root = train.item_counts().double().sqrt().numpy()
    blocks = [_nearest(found, first, root, neighbours, shrinkage) for first, found in _pairs(table)]
    likeness = vstack(blocks).T.tocsr()  # (from a clicked item, to the one that is scored)
    history = _sparse(train, recent(train, recency))

    def rows(users: Tensor) -> Tensor:
        return torch.from_numpy((history[users.numpy()] @ likeness).toarray())

    return ByUser(rows, train.item_count)


def _sparse(train: Interactions, weights: Tensor | None = None) -> Any:
    """X (U, I) as a scipy matrix by rows, of ones or of weights (n,)."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - takes a tenth of a second

    ones = torch.ones(len(train)) if weights is None else weights
    where = train.users.numpy(), train.items.numpy()
    return csr_array((ones.numpy(), where), shape=(train.user_count, train.item_count))


def _pairs(table: Any) -> Iterator[tuple[int, Any]]:
    """Yield (number of the first, rows of X'X) for block after block of the items."""
    turned = table.T.tocsr()
    for first in range(0, table.shape[1], BLOCK):
        yield first, turned[first : first + BLOCK] @ table


def _nearest(pairs: Any, first: int, root: Any, neighbours: int, shrinkage: float) -> Any:
    """The likeness of each item of a block to its nearest, from its rows (b, I) of X'X.

    first: the number of the block's first item. root (I,): square roots of the items' clicks.
    """
    from scipy.sparse import csr_array  # noqa: PLC0415 - takes a tenth of a second

    found = pairs.tocoo()
    other = found.col != found.row + first
    row, column, together = found.row[other], found.col[other], found.data[other]
    alike = together / (root[row + first] * root[column] + shrinkage)
    order = np.lexsort([column, -alike, row])
    sizes = np.bincount(row, minlength=pairs.shape[0])
    place = np.arange(len(row)) - np.repeat(sizes.cumsum() - sizes, sizes)
    best = order[place < neighbours]
    return csr_array((alike[best].astype(np.float32), (row[best], column[best])), pairs.shape)


def ease(
    train: Interactions,
    strength: float = 300.0,
    recency: float = 0.0,
    *,
    least_clicks: int = 0,
    memory_gb: float = 8.0,
) -> ByUser:
    """EASE: predict each item from all others by ridge regression, and score users by X B.

    B = I - P / diag(P) with P = (X'X + strength I)^-1. strength: above 0, else `ParameterError`.
    recency: in the X of the scores, a click weighs as `fedlab.data.recent` says; 0 weighs all
    alike. least_clicks: items with fewer stay out of the table and score 0, which is near what
    EASE gives items of so few clicks. memory_gb: what the inversion may take, 20 bytes for each
    pair of items; above it `ParameterError`.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=150)
    >>> score = ease(few)
    >>> score(torch.tensor([0, 0]), torch.tensor([1, 2])).shape
    torch.Size([2])
    """
    require(strength > 0, "strength", strength, "choose a positive number, say 300")
    kept = frequent(train.item_counts(), least_clicks, POOLED_BYTES, memory_gb)
    gram = torch.empty(len(kept), len(kept), dtype=torch.float64)
    for first, pairs in _pairs(_sparse(train)[:, kept.numpy()]):
        gram[first : first + BLOCK] = torch.from_numpy(pairs.toarray())
    return by_history(train, ease_weights(gram, strength), recency, kept)


def frequent(counts: Tensor, least_clicks: int, bytes_each: int, memory_gb: float) -> Tensor:
    """The items (T,), growing, that have so many clicks, where a table of their pairs fits.

    counts (I,): clicks of each item. bytes_each: of a pair. Raises `ParameterError` where nothing
    is left, and for a table above memory_gb, with the number of clicks that would make it fit.
    """
    whole = isinstance(least_clicks, int) and least_clicks >= 0
    require(whole, "least_clicks", least_clicks, "choose a whole number, 0 to take every item")
    require(memory_gb > 0, "memory_gb", memory_gb, "choose a positive number, say 8")
    kept = (counts >= least_clicks).nonzero()[:, 0]
    most = int(counts.max()) if len(counts) else 0
    require(
        len(kept) > 0,
        "least_clicks",
        least_clicks,
        f"no item has so many; the most popular one has {most}",
    )
    fit = int((memory_gb * 1e9 / bytes_each) ** 0.5)
    bound = int(counts.sort(descending=True).values[min(fit, len(counts) - 1)]) + 1
    some = f", or keep {int((counts >= bound).sum()):,} items by least_clicks={bound}"
    require(
        len(kept) <= fit,
        "memory_gb",
        memory_gb,
        f"the pairs of {len(kept):,} items take {len(kept) ** 2 * bytes_each / 1e9:.3g} GB; allow "
        f"so much{some * (bound <= most)}",
    )
    return kept


def ease_weights(gram: Tensor, strength: float) -> Tensor:
    """B (T, T), float32, of EASE; its row j is what a click on item j adds to every item.

    gram (T, T): X'X in float64, which is used up. strength: of the ridge, above 0. What noise or a
    code has made of a sum of products may be none any more: its negative eigenvalues then count as
    0.

    >>> ease_weights(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), 1.0)
    tensor([[0.0000, 0.3333],
            [0.3333, 0.0000]])
    """
    gram.diagonal().add_(strength)
    root, fault = torch.linalg.cholesky_ex(gram)
    if int(fault):
        values, vectors = torch.linalg.eigh(gram)
        inverse = (vectors / values.clamp(min=strength)) @ vectors.T
    else:
        inverse = torch.cholesky_inverse(root, out=root)
    weights = inverse.div_(-inverse.diagonal()).fill_diagonal_(0)
    return weights.to(torch.float32, memory_format=torch.contiguous_format)


def by_history(
    train: Interactions, table: Tensor, recency: float = 0.0, kept: Tensor | None = None
) -> ByUser:
    """The Score X B: what each user's clicks add up to.

    table (T, T): B, whose row j is what a click on item j adds to every item. recency: a click
    weighs as `fedlab.data.recent` says. kept (T,): the items of the table, by default all; the
    others count for nothing and score 0. Raises `ParameterError` for a table of other items.

    >>> from fedlab.data import load
    >>> train = load()
    >>> likeness = torch.zeros(train.item_count, train.item_count)
    >>> likeness[train.items[0], 0] = 2.0
    >>> by_history(train, likeness)(train.users[:1], torch.tensor([0]))
    tensor([2.])
    """
    kept = torch.arange(train.item_count) if kept is None else kept
    fits = table.shape == (len(kept), len(kept)) and int(kept.max()) < train.item_count
    fix = f"give a square with a row for each of {len(kept)} items, all among {train.item_count:,}"
    require(fits, "table", tuple(table.shape), fix)
    place = torch.full((train.item_count,), -1)
    place[kept] = torch.arange(len(kept))
    order = train.pairs().argsort()
    order = order[place[train.items[order]] >= 0]
    items, weights = place[train.items[order]], recent(train, recency)[order]
    counts = torch.bincount(train.users[order], minlength=train.user_count)
    starts = counts.cumsum(0) - counts

    def rows(users: Tensor) -> Tensor:
        _, own = own_rows(users, starts, counts)
        first = counts[users].cumsum(0) - counts[users]
        mine = weights[own]
        found = embedding_bag(items[own], table, first, mode="sum", per_sample_weights=mine)
        if len(kept) == train.item_count:
            return found
        return found.new_zeros(len(users), train.item_count).index_copy_(1, kept, found)

    return ByUser(rows, train.item_count)


def ials(
    train: Interactions,
    dim: int = 32,
    *,
    unseen: float = 10.0,
    regularisation: float = 1.0,
    epochs: int = 20,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Vectors (U, D) of users and (I, D) of items by alternating least squares (iALS).

    The loss is that of `fedlab.algorithms.Implicit`. unseen: weight of all pairs together, in
    multiples of the clicks, above 0. regularisation: pull to zero, in sqrt(n) clicks, above 0.
    Raises `ParameterError` for values out of range.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=150)
    >>> users, items = ials(few, dim=2, epochs=1)
    >>> users.shape == (few.user_count, 2), items.shape == (few.item_count, 2)
    (True, True)
    """
    require(unseen > 0, "unseen", unseen, "choose a positive weight, say 10")
    require(regularisation > 0, "regularisation", regularisation, "choose more than 0, say 1")
    generator, mean = stream(seed, "init"), len(train) / train.user_count
    w0, reg = Strength.of(mean, train.item_count, unseen, regularisation)
    users = torch.randn(train.user_count, dim, generator=generator) * 0.1
    items = torch.randn(train.item_count, dim, generator=generator) * 0.1
    by_user, by_item = (train.users, train.items), (train.items, train.users)
    solved = padded if compiled_loops() is None else compiled
    for _ in range(epochs):
        users = solved(by_user, len(users), items, w0, reg)
        items = solved(by_item, len(items), users, w0, reg)
    return solved(by_user, len(users), items, w0, reg), items


def compiled(
    clicks: tuple[Tensor, Tensor], count: int, fixed: Tensor, w0: float, reg: float
) -> Tensor:
    """What `padded` gives, by conjugate gradients, row by row in the cache."""
    from fedlab.engine.fused.least_squares import Compiled  # noqa: PLC0415 - loads numba

    own, other = torch.bincount(clicks[0], minlength=count), clicks[1]
    order = np.lexsort([other.numpy(), clicks[0].numpy()])
    starts, items = own.cumsum(0) - own, other.numpy()[order].astype(np.int32)
    rows = Clicks(starts.numpy(), own.numpy(), items, np.empty(0, np.float32))
    return Compiled(fixed, Strength(w0, reg)).vectors(rows)


def padded(
    clicks: tuple[Tensor, Tensor], count: int, fixed: Tensor, w0: float, reg: float
) -> Tensor:
    """Solve for the vectors (count, D) of one side while the other side is fixed.

    clicks: (n,) the row of this side, and (n,) of the fixed one. Rows of like numbers of clicks are
    solved together, each filled up by vectors of 0.
    """
    own, order = torch.bincount(clicks[0], minlength=count), clicks[0].argsort(stable=True)
    starts, by_count, other = own.cumsum(0) - own, own.argsort(descending=True), clicks[1][order]
    eye, gram = torch.eye(fixed.shape[1]), fixed.T @ fixed
    vectors, filled = fixed.new_zeros(count, fixed.shape[1]), torch.cat([fixed, fixed[:1] * 0])
    dim, done = fixed.shape[1], 0
    while done < count and (longest := int(own[by_count[done]])):
        here = by_count[done : done + max(1, PADDED // (max(longest, dim) * dim))]
        place = torch.arange(longest)
        at = (starts[here, None] + place).clamp(max=len(other) - 1)
        rows = filled[other[at].where(place < own[here, None], len(fixed))]  # (b, longest, D)
        strength = reg * (own[here] + w0 * len(fixed))
        left = rows.mT @ rows + w0 * gram + strength[:, None, None] * eye
        vectors[here] = torch.linalg.solve(left, rows.sum(1))
        done += len(here)
    return vectors


def dot(users: Tensor, items: Tensor) -> Factored:
    """Score pairs by the inner product of their vectors: users (U, D), items (I, D).

    >>> import torch
    >>> score = dot(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    >>> score(torch.tensor([0]), torch.tensor([0]))
    tensor([11.])
    """
    return factored(users, items)
