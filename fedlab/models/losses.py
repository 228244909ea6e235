"""Losses of lists: a click against other items of its user, and not each item by itself.

    bpr              the mean over drawn j of  -log s(y_i - y_j)
    sampled softmax  -log of  exp y_i / sum over i and the drawn j of exp y_j
    softmax          the same over all items

i is the click, j an unseen item of the same user, y their predictions and s the sigmoid. What a
list has in common cancels: a bias of the user or of the client learns nothing. Items are drawn
evenly, so sampled softmax needs no correction for how likely each of them was.

What a client touches it sends: the rows of its clicks and of the drawn items, as with cross-entropy
on single items; softmax touches the row of every item, so an update is as long as the table.

Letters: A clients, B examples, K items of a list, I all items, D dimensions.

Sources: Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback", section
4.1; Jean et al. 2015, "On using very large target vocabulary for neural machine translation", eq. 8
(sampled softmax); Wu et al. 2024, "On the effectiveness of sampled softmax loss for item
recommendation", eq. 2 (the same for clicks).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from fedlab.core import ParameterError, Tree, require
from fedlab.models.model import Model

LOSSES = ("bpr", "sampled softmax", "softmax")
WHOLE = "softmax"  # the one whose lists are all items


def listwise(model: Model, loss: str) -> Model:
    """The model, learning by a loss of lists; its examples come from `fedlab.Lists`.

    Raises `ParameterError` for an unknown loss, for a model of ratings, and for softmax with a
    model that cannot score all items at once.

    >>> from fedlab import listwise, matrix_factorisation
    >>> listwise(matrix_factorisation(3, 4), "bpr").list_loss
    'bpr'
    """
    require(loss in LOSSES, "loss", loss, f"choose one of {', '.join(LOSSES)}")
    fix = "a list of items says which of them was clicked, not how many stars it has; choose clicks"
    require(model.task == "clicks", "task", model.task, f"{loss}: {fix}")
    fix = "the model learns by this loss already; give the one that it was made from"
    require(not model.list_loss, "model", model.list_loss, fix)
    over = model.over or (_all_items(model) if loss == WHOLE else _one_by_one(model))
    return replace(model, list_loss=loss, over=over)


def losses_of_lists(loss: str, scores: Tensor, target: Tensor) -> Tensor:
    """The loss (A, B) of each example from the predictions (A, B, K) of its items.

    target (A, B): the place of the click among them, which is 0 in a drawn list. For softmax the
    predictions may be (A, 1, K), the same for all examples of a client.

    >>> losses_of_lists("bpr", torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.int64))
    tensor([[0.6931]])
    """
    if loss == "bpr":  # -log s(y_i - y_j) is cross-entropy over the two of them
        pairs = torch.stack(torch.broadcast_tensors(scores[..., :1], scores[..., 1:]), -1)
        return -pairs.log_softmax(-1)[..., 0].mean(-1)
    chances = scores.log_softmax(-1)
    if chances.shape[1] == 1:
        return -chances[:, 0].gather(-1, target)
    return -chances.gather(-1, target[..., None])[..., 0]


def _one_by_one(model: Model) -> Callable[[Tree, Tree], Tensor]:
    """Predictions (A, B, K) of lists, by `predict` of a batch of B K single items."""

    def over(p: Tree, batch: Tree) -> Tensor:
        lists = batch["item"].shape  # (A, B, K)

        def flat(x: Tensor) -> Tensor:  # (A, B or 1, K or 1, ...) -> (A, B K, ...)
            return x.expand(*lists, *x.shape[3:]).flatten(1, 2)

        looked_up = {name for name, kind in model.rows.items() if kind in batch}
        own = {name: flat(value) if name in looked_up else value for name, value in p.items()}
        by_list = ("user", "item", "pair")
        columns = {n: flat(c if n in by_list else c.unsqueeze(2)) for n, c in batch.items()}
        return model.predict(own, columns).view(lists)

    return over


def _all_items(model: Model) -> Callable[[Tree, Tree], Tensor]:
    """Predictions (A, B, I) of all items by the model's factors: (A, 1, I) of a client's one user.

    What is drawn for single examples, such as dropout, plays no part.
    """
    factors = model.factors
    if factors is None or "pair" in model.rows.values():
        raise ParameterError(
            f"loss='{WHOLE}': {model.name} does not score all items at once; choose bpr or sampled "
            "softmax, which draw some"
        )

    def one(own: Tree, fixed: Tree) -> Tensor:  # of one client
        rows = {name: value[None] for name, value in own.items()}  # a single row, as (1, ...)
        for name, kind in model.rows.items():
            if kind in ("user", "item"):  # (B or 1, 1, ...) or (I, ...)
                rows[name] = own[name].flatten(0, 1) if kind == "user" else own[name]
        users, items, bias = factors(rows | fixed)
        return users @ items.T + bias

    def over(p: Tree, batch: Tree) -> Tensor:
        own = {name: p[name] for name in model.rows}
        scores: Tensor = vmap(one, (0, None))(own, {name: p[name] for name in model.constants})
        return scores

    return over
