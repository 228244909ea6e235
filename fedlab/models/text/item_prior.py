"""Predict the learned vector of an item from its text, by kernel ridge regression on the server.

Clients take no part: the server already has the learned rows, and the texts are public. An item
that nobody has rated gets the rows of similar items. Adding the prediction with a smaller weight,
say one half, helps rated items too.

Letters: I items, W warm items (those with enough ratings to learn from), D dimensions of a learned
row, E dimensions of a text vector.

Source: Rasmussen, Williams 2006, "Gaussian processes for machine learning", eq. 2.25 (the
prediction) and eq. 5.12 (the prediction that leaves the item itself out).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.data import Catalogue


def text_kernel(vectors: Tensor, width: float = 0.7) -> Tensor:
    """Similarity (I, I) of texts: exp(-|x - y|^2 / (4 width^2)) of centred unit vectors.

    vectors (I, E): since all texts of one kind point in a common direction, the mean is removed
    first. width: how far similarity reaches, above 0, else `ParameterError`. The diagonal is 1.

    >>> import torch
    >>> kernel = text_kernel(torch.eye(3))
    >>> [round(float(value), 3) for value in kernel[0]]
    [1.0, 0.216, 0.216]
    """
    require(width > 0, "width", width, "choose a positive number, say 0.7")
    unit = torch.nn.functional.normalize(vectors)
    unit = torch.nn.functional.normalize(unit - unit.mean(0))
    return (unit @ unit.T).sub_(1).div_(2 * width**2).exp_()


def item_kernel(
    texts: Sequence[Tensor], catalogue: Catalogue, genres: float = 0.4, years: float = 0.2
) -> Tensor:
    """Similarity (I, I) of items: mean of the text kernels plus weighted genre and year kernels.

    texts: any number of text vectors (I, E). genres, years: weights of `genre_kernel` and
    `year_kernel`, 0 or more, beside a weight of 1 for the texts. Raises `ParameterError` for
    negative weights, or when nothing is left to compare items by.
    """
    require(min(genres, years) >= 0, "genres, years", (genres, years), "choose 0 or more")
    require(
        len(texts) > 0 or genres + years > 0,
        "texts",
        0,
        "give text vectors, or a weight of genres or years",
    )
    kernel = torch.zeros(len(catalogue.titles), len(catalogue.titles))
    for vectors in texts:
        kernel.add_(text_kernel(vectors), alpha=1 / len(texts))
    kernel.add_(genre_kernel(catalogue), alpha=genres)
    return kernel.add_(year_kernel(catalogue), alpha=years)


def genre_kernel(catalogue: Catalogue) -> Tensor:
    """Similarity (I, I) by the cosine of genres: 1 for the same, exp(-2) for none in common."""
    named = torch.nn.functional.normalize(catalogue.categories.float())
    return (named @ named.T).sub_(1).mul_(2).exp_()


def year_kernel(catalogue: Catalogue) -> Tensor:
    """Similarity (I, I) by year: 1 for the same year, exp(-1/2) at a difference of two years.

    Unknown years and years before 1920 count as 1920.
    """
    year = catalogue.years.float().clamp(min=1920)
    return (year[:, None] - year).square_().div_(-8).exp_()


def familiarity_kernel(found: Tensor, width: float = 1.0) -> Tensor:
    """Similarity (I, I) by how familiar a language model is: exp(-|x - y|^2 / (2 width^2)).

    found (I, F): numbers of each item, such as `familiarity` gives for its title; each column is
    brought to a mean of 0 and a standard deviation of 1. width: above 0, else `ParameterError`.

    >>> import torch
    >>> kernel = familiarity_kernel(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> [round(float(value), 3) for value in kernel[0]]
    [1.0, 0.607, 0.135]
    """
    require(width > 0, "width", width, "choose a positive number, say 1")
    even = (found - found.mean(0)) / found.std(0).clamp(min=1e-6)
    return torch.cdist(even, even).square_().div_(-2 * width**2).exp_()


def kernel_ridge(kernel: Tensor, warm: Tensor, strength: float = 1.0) -> Tensor:
    """The matrix M (I, W) that predicts the rows of all items: M @ rows[warm].

    The prediction for a warm item leaves out its own row. Since M does not depend on the rows, one
    M serves all rounds.

    kernel (I, I): similarity of items. warm (I,): true for the W items whose rows are learned from,
    say those with five ratings or more. strength: noise variance of a row in units of the kernel,
    above 0. Raises `ParameterError` for a strength out of range and for fewer than two warm items.

    >>> import torch
    >>> matrix = kernel_ridge(torch.ones(3, 3), torch.tensor([True, True, False]))
    >>> round(float(matrix[2] @ torch.tensor([1.0, 2.0])), 5)  # like both: sum / (2 + strength)
    1.0
    """
    require(strength > 0, "strength", strength, "choose a positive number, say 1")
    at = warm.nonzero()[:, 0]
    require(
        len(at) > 1, "warm", len(at), "two items with ratings, or more, are needed to learn from"
    )
    known = kernel[at][:, at]
    known.diagonal().add_(strength)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(known))
    found = kernel[:, at] @ inverse
    # each warm item from all the others
    found[at] = (inverse / -inverse.diagonal()[:, None]).fill_diagonal_(0)
    return found
