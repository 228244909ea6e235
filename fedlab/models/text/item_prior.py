"""What the text of a film says of its vector.

Kernel ridge regression on the server, from public texts to learned rows.

Clients take no part: the server has the rows, and everybody has the texts. A film that nobody rated
gets the vector that films like it have. Added to learned rows, with half its weight say, it helps
those too.

Letters: I items, W warm ones (with ratings to learn from), D dimensions of a row, E of a text
vector. Sources: Rasmussen, Williams 2006, "Gaussian processes for machine learning", eq. 2.25 (the
mean) and 5.12 (the mean without the point itself).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.data import Catalogue


def text_kernel(vectors: Tensor, width: float = 0.7) -> Tensor:
    """(I, I) how alike texts are, 1 for the same.

    Exp(-|x - y|^2 / (4 width^2)) of centred unit vectors (I, E).

    All texts of one kind point one way, so the mean goes off first.
    """
    require(width > 0, "width", width, "choose a positive number, say 0.7")
    unit = torch.nn.functional.normalize(vectors)
    unit = torch.nn.functional.normalize(unit - unit.mean(0))
    return (unit @ unit.T).sub_(1).div_(2 * width**2).exp_()


def item_kernel(texts: Sequence[Tensor], catalogue: Catalogue, genres: float = 0.4,
                years: float = 0.2) -> Tensor:
    """(I, I) how alike items are.

    The mean over `texts`, each (I, E), and shares for alike genres and close years.

    genres, years: weights beside the texts' 1, where there are texts. Genres count by their cosine,
    years within about two.
    """
    require(min(genres, years) >= 0, "genres, years", (genres, years), "choose 0 or more")
    require(len(texts) > 0 or genres + years > 0, "texts", 0,
            "give text vectors, or a weight of genres or years")
    kernel = torch.zeros(len(catalogue.titles), len(catalogue.titles))
    for vectors in texts:
        kernel.add_(text_kernel(vectors), alpha=1 / len(texts))
    kernel.add_(genre_kernel(catalogue), alpha=genres)
    return kernel.add_(year_kernel(catalogue), alpha=years)


def genre_kernel(catalogue: Catalogue) -> Tensor:
    """(I, I) 1 for the same genres, exp(-2) for none in common."""
    named = torch.nn.functional.normalize(catalogue.genres.float())
    return (named @ named.T).sub_(1).mul_(2).exp_()


def year_kernel(catalogue: Catalogue) -> Tensor:
    """(I, I) 1 for the same year, about exp(-1/2) for two years.

    Unknown years as the oldest films.
    """
    year = catalogue.years.float().clamp(min=1920)
    return (year[:, None] - year).square_().div_(-8).exp_()


def kernel_ridge(kernel: Tensor, warm: Tensor, strength: float = 1.0) -> Tensor:
    """(I, W) M with which rows predict rows.

    M @ rows[warm] are all items' rows, a warm item's without its own.

    kernel (I, I); warm (I,): the W items whose rows may teach, say those with five ratings or more;
    strength: noise variance of a row, in units of the kernel. As it does not depend on the rows,
    one M serves all rounds. Raises `ParameterError` where fewer than two items are warm.
    """
    require(strength > 0, "strength", strength, "choose a positive number, say 1")
    at = warm.nonzero()[:, 0]
    require(len(at) > 1, "warm", len(at),
            "two items with ratings, or more, are needed to learn from")
    known = kernel[at][:, at]
    known.diagonal().add_(strength)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(known))
    found = kernel[:, at] @ inverse
    own = inverse.diagonal().clone()
    found[at] = (inverse / -own[:, None]).fill_diagonal_(0)  # each warm item from all the others
    return found
