"""One local step of all active clients, as a function of tensors.

Clients' parameters are disjoint, so the gradient of the *sum* of their losses is every client's own gradient:
one backward pass serves all. A step looks up the rows of its batch, predicts, and adds each example's gradient
to its row. `fedlab.engine` runs it as it is, compiled, or as a CUDA graph.

Letters: A clients active in the step, B examples each, R rows held by them, M batches and S steps in all.
Sources: McMahan et al. 2017, algorithm 1, ClientUpdate; Loshchilov, Hutter 2019, algorithm 2 (AdamW).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Config, Tree
from fedlab.models import Model
from fedlab.tables import read

Numbers = tuple[float, ...] | Tensor                       # keep, rate, root of one step; a row of `hyper`
Moments = tuple[Tensor, Tensor] | None                     # first and second, (R, ...) each
Step = Callable[[Tree, Tree, Tree, Mapping[str, Tensor | None], Tree, Tree, Tensor, Numbers], Tensor]
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Work:
    """All local steps of a group of clients: tensors, and where each step finds its own.

    values: name -> (R, ...), trained in place. means, squares: name -> (R, ...) moments for AdamW, else empty.
    index: kind -> (M, B) row of each example, or None where a client holds a single row. columns: (M, B, ...).
    weight (M, B). active: A of each step; live: kind -> R of each step, a prefix of the rows.
    """

    values: Tree
    means: Tree
    squares: Tree
    index: Mapping[str, Tensor | None]
    columns: Tree
    weight: Tensor
    active: list[int]
    live: Mapping[str, list[int]]


def sgd(values: Tensor, moments: Moments, index: Tensor | None, grad: Tensor, numbers: Numbers) -> None:
    """`w <- (1 - lr lambda) w - lr g`."""
    keep, rate, _ = numbers
    if isinstance(keep, Tensor) or keep != 1:
        values.mul_(keep)
    if index is None and not isinstance(rate, Tensor):
        values.add_(grad.view_as(values), alpha=-rate)
    else:
        _scatter(values, index, grad * -rate)              # not in place: two leaves may share one gradient


def adamw(values: Tensor, moments: Moments, index: Tensor | None, grad: Tensor, numbers: Numbers) -> None:
    """AdamW on all rows a client holds, at each step, as moments fade; they are fresh each round."""
    assert moments is not None
    (b1, b2), (keep, rate, root), (m, v) = BETAS, numbers, moments
    g = _scatter(torch.zeros_like(values), index, grad)
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    values.mul_(keep).sub_(m / (v.sqrt() / root + EPS) * rate)


RULES = {"sgd": sgd, "adamw": adamw}


def hyper(config: Config, steps: int) -> list[tuple[float, ...]]:
    """For each step: what weight decay keeps, the rate, and the root of AdamW's second bias correction."""
    keep = 1 - config.local_lr * config.weight_decay
    if config.optimizer == "sgd":
        return [(keep, config.local_lr, 1.0)] * steps
    (b1, b2), count = BETAS, range(1, steps + 1)
    return [(keep, config.local_lr / (1 - b1**t), (1 - b2**t) ** 0.5) for t in count]


def _scatter(values: Tensor, index: Tensor | None, grad: Tensor) -> Tensor:
    """Add each example's gradient to its row, in place (scatter_add_ is 3x faster here than index_add_)."""
    if index is None:
        return values.add_(grad.view_as(values))
    flat = grad.flatten(0, 1)
    return values.scatter_add_(0, index if flat.dim() == 1 else index[:, None].expand_as(flat), flat)


def build(model: Model, optimizer: str, precision: str) -> Step:
    """The step of a model: trains `values` in place and returns the loss of each example, (A, B).

    precision 'bf16' runs the prediction's matrix products in bfloat16; losses, weights and deltas stay fp32.
    """
    rule, predict, loss_of, kinds = RULES[optimizer], model.predict, model.loss, dict(model.rows)

    def step(values: Tree, means: Tree, squares: Tree, index: Mapping[str, Tensor | None], columns: Tree,
             constants: Tree, weight: Tensor, numbers: Numbers) -> Tensor:
        flat = {kind: None if rows is None else rows.flatten() for kind, rows in index.items()}
        leaves = {}
        for name, kind in kinds.items():
            rows, held = flat[kind], values[name]
            if rows is not None:                            # one row for each example
                leaf = held.index_select(0, rows).view(*weight.shape, *held.shape[1:])
            else:                                           # a single row, broadcast over the examples
                leaf = held.detach().unsqueeze(1) if kind in columns else held.detach()
            leaves[name] = leaf.requires_grad_()
        with torch.autocast(weight.device.type, torch.bfloat16, precision == "bf16", cache_enabled=False):
            prediction = predict(leaves | constants, columns)
        loss = loss_of(prediction.float(), columns["target"])
        grads = torch.autograd.grad(loss, list(leaves.values()), weight)    # of the sum of all clients' means
        for (name, kind), grad in zip(kinds.items(), grads, strict=True):
            moments = (means[name], squares[name]) if means else None
            rule(values[name], moments, flat[kind], grad, numbers)
        return loss.detach()
    return step


def loop(step: Step, tiny: Step, work: Work, constants: Tree,
          numbers: list[tuple[float, ...]] | Tensor) -> Tensor:
    """Step after step; `tiny` serves those where a size is 1, which torch.compile would treat apart."""
    losses, first = [], 0
    for number, active in enumerate(work.active):
        here = slice(first, first + active)
        live, weight = {name: rows[number] for name, rows in work.live.items()}, work.weight[here]
        values, means, squares = ({name: rows[: live[name]] for name, rows in tree.items()}
                                  for tree in (work.values, work.means, work.squares))
        losses.append((tiny if 1 in (*weight.shape, *live.values()) else step)(
            values, means, squares,
            {kind: rows if rows is None else rows[here] for kind, rows in work.index.items()},
            {name: read(column[here]) for name, column in work.columns.items()}, constants, weight, numbers[number]))
        first += active
    return torch.cat(losses)
