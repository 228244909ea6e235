"""What a curious server reads from uploads: which items a client's users rated.

A client's delta has a row for each item that it met in training, as a click or as a drawn negative.
Training moves the biases of clicked items up and those of negatives down, so the sign separates
them. Under masks every number is random, and every row is sent.

Letters: C clients, I items.

Sources: Gao et al. 2020, "Privacy threats against federated matrix factorization"; Yuan et al.
2023, "Interaction-level membership inference attack against federated recommender systems".
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.core import Update, require
from fedlab.data import Federation
from fedlab.evaluation import auc


def sign_scores(update: Update, items: int, name: str = "bias") -> Tensor:
    """How far (C, I) each client moved each item's bias; a positive number means it was clicked.

    It is 0 where the client sent no row. items: I. name: the parameter to read; one that was not
    sent raises `ParameterError`.
    """
    require(name in update.deltas, "name", name, f"the clients sent {', '.join(update.deltas)}")
    rows = update.deltas[name]
    scores = torch.zeros(len(update.cohort), items)
    scores[rows.client, rows.ids] = rows.values.reshape(len(rows.ids), -1).sum(1).cpu()
    return scores


def row_scores(update: Update, items: int, name: str = "bias") -> Tensor:
    """Scores (C, I): 1 where a client sent a row at all, else 0.

    Whoever serves single rows sees this much without looking into them. Arguments as in
    `sign_scores`.
    """
    require(name in update.deltas, "name", name, f"the clients sent {', '.join(update.deltas)}")
    rows = update.deltas[name]
    return torch.zeros(len(update.cohort), items).index_put_(
        (rows.client, rows.ids), torch.ones(len(rows.ids))
    )


def masked_scores(vectors: NDArray[np.uint32]) -> Tensor:
    """Masked words (C, I), read as the numbers that they would be without a mask.

    >>> masked_scores(np.array([[1, 2**32 - 1]], dtype=np.uint32))
    tensor([[ 1., -1.]])
    """
    return torch.from_numpy(vectors.astype(np.int32).astype(np.float32))


def rated_items(data: Federation, cohort: Tensor) -> Tensor:
    """The truth (C, I): whether the users of each client in the cohort rated the item in train.

    >>> from fedlab.data import load, one_per_user
    >>> train = load()
    >>> truth = rated_items(Federation(train, one_per_user(train)), torch.tensor([0, 1]))
    >>> truth.sum(1).tolist() == torch.bincount(train.users)[:2].tolist()
    True
    """
    table = torch.zeros(len(data), data.train.item_count, dtype=torch.bool)
    table[data.owner[data.train.users], data.train.items] = True
    return table[cohort]


def reading_metrics(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Precision and recall of guessing 'rated' where a score is above 0, and the AUC of the scores.

    scores (C, I), truth (C, I). All three are means over the clients that rated some items and not
    all; a client without a score above 0 has precision 0. Raises `ParameterError` when there is no
    such client and for shapes that differ.

    >>> truth = torch.tensor([[True, False, False]])
    >>> reading_metrics(torch.tensor([[1.0, 1.0, -1.0]]), truth)
    {'precision': 0.5, 'recall': 1.0, 'auc': 0.75}
    """
    require(
        scores.shape == truth.shape, "scores", tuple(scores.shape), f"give {tuple(truth.shape)}"
    )
    some = truth.any(1) & ~truth.all(1)
    require(bool(some.any()), "truth", tuple(truth.shape), "no client rated some items and not all")
    scores, truth = scores[some], truth[some]
    guessed = scores > 0
    right = (guessed & truth).sum(1).float()
    areas = [auc(row, mine.float()) for row, mine in zip(scores, truth, strict=True)]
    return {
        "precision": float((right / guessed.sum(1).clamp(min=1)).mean()),
        "recall": float((right / truth.sum(1)).mean()),
        "auc": sum(areas) / len(areas),
    }
