"""The gradient of a step: by hand where the model knows it, else by autograd.

Of a whole batch, or part after part.

A client's gradient has the same bits whoever stands beside it. A product of matrices of a single
client would not: for a batch of one BLAS takes another routine where a side is 1. So a client alone
is worked out beside itself. Nor would torch's sigmoid, for which see `fedlab.models.model`.

Letters: A clients active in the step, B examples each.
"""

import torch
from torch import Tensor

from fedlab.core import Tree
from fedlab.models import Model, Product


def gradients(model: Model, leaves: Tree, constants: Tree, columns: Tree,
              share: Tensor) -> tuple[Tensor, list[Tensor | Product]]:
    """(prediction of each example (A, B), gradient of the sum of `share` times loss by each leaf).

    By hand where known.
    """
    if len(share) == 1 and (model.pullback is None or "one" in model.rows.values()):
        two = [{name: torch.cat([value, value]) for name, value in tree.items()}
               for tree in (leaves, columns)]
        found, grads = _gradients(model, two[0], constants, two[1], torch.cat([share, share]))
        return found[:1], [Product(g.left[:1], g.right[:1]) if isinstance(g, Product) else g[:1]
                          for g in grads]
    return _gradients(model, leaves, constants, columns, share)


def _gradients(model: Model, leaves: Tree, constants: Tree, columns: Tree,
               share: Tensor) -> tuple[Tensor, list[Tensor | Product]]:
    target = columns["target"]
    if model.pullback is not None:
        prediction, pull = model.pullback(leaves | constants, columns)
        by_name = pull(model.slope(prediction, target) * share)
        return prediction.float(), [by_name[name] for name in leaves]
    ready = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    prediction = model.predict(ready | constants, columns)
    found = prediction.detach().float()
    slope = model.slope(found, target)
    slope = slope * share.view(*share.shape, *[1] * (slope.dim() - 2))
    grads = torch.autograd.grad(prediction, list(ready.values()), slope.to(prediction.dtype))
    return found, list(grads)


def multiplied(grad: Tensor | Product) -> Tensor:
    """A gradient as one tensor, (A, F, H)."""
    if not isinstance(grad, Product):
        return grad
    if len(grad.left) == 1:
        return torch.bmm(*(torch.cat([side, side]) for side in grad))[:1]
    return torch.bmm(*grad)


def accumulated(model: Model, leaves: Tree, constants: Tree, columns: Tree, share: Tensor,
                each: frozenset[str], micro: int) -> tuple[Tensor, list[Tensor | Product]]:
    """The same as `gradients`, `micro` examples of each client at a time.

    What is kept for the backward pass is theirs.

    each: names of the leaves that have a row for each example, (A, B, ...); gradients of the others
    add up. micro: 0 takes all at once.
    """
    if not 0 < micro < share.shape[1]:
        return gradients(model, leaves, constants, columns, share)
    predictions, found = [], list[list[Tensor]]()
    for first in range(0, share.shape[1], micro):
        cut = slice(first, first + micro)
        mine = {name: leaf.detach()[:, cut] if name in each else leaf.detach() for name,
                leaf in leaves.items()}
        here = {name: column[:, cut] for name, column in columns.items()}
        prediction, grads = gradients(model, mine, constants, here, share[:, cut])
        predictions.append(prediction)
        every = [multiplied(grad) for grad in grads]
        found = [[*old, new] if name in each or not old else [old[0] + new] for name, old,
                 new in zip(leaves, found or [[] for _ in every], every, strict=True)]
    return torch.cat(predictions, 1), [torch.cat(parts, 1) for parts in found]
