"""The gradient of a step: by hand where the model knows it, else by autograd.

Of a whole batch, or part after part.

Letters: A clients active in the step, B examples each.
"""

import torch
from torch import Tensor

from fedlab.core import Tree
from fedlab.models import Model, Product


def gradients(model: Model, leaves: Tree, constants: Tree, columns: Tree,
              share: Tensor) -> tuple[Tensor, list[Tensor | Product]]:
    """(loss of each example (A, B), gradient of the sum of `share` times loss by each leaf).

    By hand where known.
    """
    if model.pullback is not None:
        prediction, pull = model.pullback(leaves | constants, columns)
        loss, slope = model.loss(prediction.float(), columns["target"]), model.slope(prediction,
                                                                                     columns[
            "target"])
        by_name = pull(slope * share)
        return loss, [by_name[name] for name in leaves]
    ready = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    prediction = model.predict(ready | constants, columns)
    loss = model.loss(prediction.float(), columns["target"])
    return loss.detach(), list(torch.autograd.grad(loss, list(ready.values()), share))


def accumulated(model: Model, leaves: Tree, constants: Tree, columns: Tree, share: Tensor,
                each: frozenset[str], micro: int) -> tuple[Tensor, list[Tensor | Product]]:
    """The same as `gradients`, `micro` examples of each client at a time.

    What is kept for the backward pass is theirs.

    each: names of the leaves that have a row for each example, (A, B, ...); gradients of the others
    add up. micro: 0 takes all at once.
    """
    if not 0 < micro < share.shape[1]:
        return gradients(model, leaves, constants, columns, share)
    losses, found = [], list[list[Tensor]]()
    for first in range(0, share.shape[1], micro):
        cut = slice(first, first + micro)
        mine = {name: leaf.detach()[:, cut] if name in each else leaf.detach() for name,
                leaf in leaves.items()}
        here = {name: column[:, cut] for name, column in columns.items()}
        loss, grads = gradients(model, mine, constants, here, share[:, cut])
        losses.append(loss)
        every = [torch.bmm(*grad) if isinstance(grad, Product) else grad for grad in grads]
        found = [[*old, new] if name in each or not old else [old[0] + new] for name, old,
                 new in zip(leaves, found or [[] for _ in every], every, strict=True)]
    return torch.cat(losses, 1), [torch.cat(parts, 1) for parts in found]
