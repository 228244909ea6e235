"""What a curious server reads from uploads: which items a client's users rated.

A client's delta has a row for each item that it met in training, clicked or drawn as a negative.
Clicked items' biases go up, drawn ones' down: the sign tells them apart. Under masks a row is any
number, and each row is sent.

Letters: C clients, I items. Sources: Gao et al. 2020, "Privacy threats against federated matrix
factorization"; Yuan et al. 2023, "Interaction-level membership inference attack against federated
recommender systems".
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.core import Update, require
from fedlab.data import Federation
from fedlab.evaluation import auc


def sign_scores(update: Update, items: int, name: str = "bias") -> Tensor:
    """(C, I) how far each client moved each item's bias: above 0 it was clicked.

    0 where it sent no row.
    """
    require(name in update.deltas, "name", name, f"the clients sent {', '.join(update.deltas)}")
    rows = update.deltas[name]
    scores = torch.zeros(len(update.cohort), items)
    scores[rows.client, rows.ids] = rows.values.reshape(len(rows.ids), -1).sum(1).cpu()
    return scores


def row_scores(update: Update, items: int, name: str = "bias") -> Tensor:
    """(C, I) 1 where a client sent a row at all.

    What whoever serves single rows sees without looking into one.
    """
    require(name in update.deltas, "name", name, f"the clients sent {', '.join(update.deltas)}")
    rows = update.deltas[name]
    ones = torch.ones(len(rows.ids))
    return torch.zeros(len(update.cohort), items).index_put_((rows.client, rows.ids), ones)


def masked_scores(vectors: NDArray[np.uint32]) -> Tensor:
    """(C, I) the same reading of masked words (C, I).

    As the numbers they would be without a mask.
    """
    return torch.from_numpy(vectors.astype(np.int32).astype(np.float32))


def rated_items(data: Federation, cohort: Tensor) -> Tensor:
    """(C, I) the truth: whether a client's users rated an item in train."""
    table = torch.zeros(len(data), data.train.item_count, dtype=torch.bool)
    table[data.owner[data.train.users], data.train.items] = True
    return table[cohort]


def reading_metrics(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Precision and recall of 'above 0 was rated', and the AUC of the scores.

    The mean over clients who rated some.

    scores (C, I); truth (C, I). A client of whom nothing is above 0 has precision 0.
    """
    require(scores.shape == truth.shape, "scores", tuple(scores.shape),
            f"give {tuple(truth.shape)}")
    some = truth.any(1) & ~truth.all(1)
    require(bool(some.any()), "truth", tuple(truth.shape), "no client rated some items and not all")
    scores, truth = scores[some], truth[some]
    guessed = scores > 0
    right = (guessed & truth).sum(1).float()
    areas = [auc(row, mine.float()) for row, mine in zip(scores, truth, strict=True)]
    return {"precision": float((right / guessed.sum(1).clamp(min=1)).mean()),
            "recall": float((right / truth.sum(1)).mean()), "auc": sum(areas) / len(areas)}
