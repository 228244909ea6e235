"""One local step of all active clients, as a function of tensors.

Clients' parameters are disjoint, so the gradient of the *sum* of their losses is every client's own
gradient: one backward pass serves all. A step looks up the rows of its batch, predicts, and adds
each example's gradient to its row. A model may know its gradient by hand, which halves the time of
small steps; others use autograd. `fedlab.engine` runs a step as it is, compiled, or as a CUDA
graph.

SGD puts off what each step does to all rows that a client holds. Where all rows take v <- k v + s
and some rows also take -lr g, after t steps v = k^t z + (1 + k + ... + k^(t-1)) s, and only g
changes z. So a step works out v for the rows of its batch alone, and `settle` does so for the
others once, at the end: FedProx adds a quarter to the time of a round, not four fifths.

Letters: A clients active in the step, B examples each, R rows held by them, M batches and S steps
in all. Sources: McMahan et al. 2017, algorithm 1, ClientUpdate; Loshchilov, Hutter 2019, algorithm
2 (AdamW); Li et al. 2020, "Federated optimization in heterogeneous networks", eq. 2 (FedProx).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from fedlab.core import Tree, add_rows, as_tensor, pieces, require
from fedlab.engine.local_settings import LocalSettings
from fedlab.models import Model, Product
from fedlab.models.losses import losses_of_lists

Numbers = tuple[float, ...] | Tensor  # of one step: a row of `hyper`
Moments = tuple[Tensor, Tensor] | None  # first and second, (R, ...) each
Step = Callable[
    [Mapping[str, Tree], Mapping[str, Tensor | None], Tree, Tree, Tensor, Numbers], Tensor
]
BETAS, EPS = (0.9, 0.999), 1e-8
SINGLE = ("one", "client")  # kinds of parameters of which a client holds a single row


@dataclass(frozen=True)
class Work:
    """All local steps of a group of clients: tensors, and where each step finds its own.

    rows: trees of name -> (R, ...), some of them empty. values: trained in place; means, squares:
    AdamW's moments; fixed: what moves the values in each step besides the examples, which SGD adds
    and to which FedProx pulls AdamW; later: the same for SGD, put off as told above. index: kind ->
    (M, B) row of each example, or None where a client holds a single row. columns: (M, B, ...).
    weight (M, B). active: A of each step. live: name -> R of each step, a prefix.
    """

    rows: Mapping[str, Tree]
    index: Mapping[str, Tensor | None]
    columns: Tree
    weight: Tensor
    active: list[int]
    live: Mapping[str, list[int]]


def sgd(
    values: Tensor,
    moments: Moments,
    index: Tensor | None,
    grad: Tensor | Product,
    numbers: Numbers,
    fixed: Tensor | None,
) -> None:
    """A step of SGD: `w <- (1 - lr lambda) w - lr g`.

    The step scales the loss by -lr, so that `grad` is -lr g already.
    """
    keep = numbers[0] if fixed is None else numbers[2]
    if isinstance(keep, Tensor) or keep != 1:
        values.mul_(keep)
    if fixed is not None:
        values.add_(fixed)
    if isinstance(grad, Product):
        _add_product(values, grad)
    else:
        _scatter(values, index, grad)


def adamw(
    values: Tensor,
    moments: Moments,
    index: Tensor | None,
    grad: Tensor | Product,
    numbers: Numbers,
    fixed: Tensor | None,
) -> None:
    """A step of AdamW on all rows that a client holds, since moments fade in each step.

    The moments are fresh in each round.
    """
    assert moments is not None
    (b1, b2), (keep, rate, root, pull), (m, v) = BETAS, numbers, moments
    g = (
        multiplied(grad)
        if isinstance(grad, Product)
        else _scatter(torch.zeros_like(values), index, grad)
    )
    if fixed is not None:
        g = g + (values - fixed) * pull
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    values.mul_(keep).sub_(m / (v.sqrt() / root + EPS) * rate)


RULES = {"sgd": sgd, "adamw": adamw}


def hyper(local: LocalSettings, steps: int) -> list[tuple[float, ...]]:
    """The numbers of each step.

    For AdamW: what weight decay keeps, the rate, the root of the second bias correction, and
    FedProx' pull; the first bias correction is in the rate. For SGD: what weight decay keeps, the
    rate, and k, which is kept of rows that FedProx pulls, too; then k^t and 1 + ... + k^(t-1) for
    `later` rows before the step, and 1 / k^(t+1).
    """
    keep = 1 - local.local_lr * local.weight_decay
    if local.optimizer == "sgd":
        k = kept(local)
        if not puts_off(local, steps):  # no row is `later`, and k^t may leave the range of floats
            return [(keep, local.local_lr, k, 1.0, 0.0, 1.0)] * steps
        return [(keep, local.local_lr, k, k**t, _series(k, t), k ** -(t + 1)) for t in range(steps)]
    (b1, b2), count = BETAS, range(1, steps + 1)
    return [(keep, local.local_lr / (1 - b1**t), (1 - b2**t) ** 0.5, local.proximal) for t in count]


def kept(local: LocalSettings) -> float:
    """The share k of a shared row that a step of SGD keeps where FedProx pulls to the start."""
    return 1 - local.local_lr * (local.weight_decay + local.proximal)


def puts_off(local: LocalSettings, steps: int) -> bool:
    """Whether SGD may put off what moves all rows.

    z grows as k^-t and has to stay in the range of float32.
    """
    k = kept(local)
    return local.optimizer == "sgd" and k > 0 and steps * math.log10(k) > -25


def _series(k: float, steps: int) -> float:
    """1 + k + ... + k^(steps - 1)."""
    return float(steps) if k == 1 else (1 - k**steps) / (1 - k)


def settle(work: Work, local: LocalSettings) -> None:
    """Work out, in place, the values of `later` rows after the last step of each client."""
    k = kept(local)
    for name, later in work.rows["later"].items():
        values = work.rows["values"][name]
        for steps, (rows, rest) in enumerate(pairwise([*work.live[name], 0]), 1):
            if rows > rest:  # of the clients that end with this step
                values[rest:rows].mul_(k**steps).add_(later[rest:rows], alpha=_series(k, steps))


def _add_product(values: Tensor, grad: Product) -> None:
    """Add a product to values (A, F, H), in place.

    A client that is alone is computed twice, side by side, as in `gradients`.
    """
    if len(values) == 1:
        two = [torch.cat([side, side]) for side in (values, *grad)]
        values.copy_(torch.baddbmm(*two)[:1])
    else:
        values.baddbmm_(*grad)  # a quarter less time here than to multiply, then add


def _scatter(values: Tensor, index: Tensor | None, grad: Tensor) -> Tensor:
    """Add each example's gradient to its row, in place.

    On a CPU scatter_add_ is 3 times faster here than index_add_.
    """
    if index is None:
        return values.add_(grad.reshape(values.shape))
    flat = grad.reshape(-1, *values.shape[1:])
    if not values.is_cpu:
        return add_rows(values, index, flat)
    return values.scatter_add_(0, index.view(-1, *[1] * (flat.dim() - 1)).expand_as(flat), flat)


def _times(x: Tensor, factor: float | Tensor) -> Tensor:
    return x if isinstance(factor, float) and factor == 1 else x.mul_(factor)


def _plus(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    return x + y * factor if isinstance(factor, Tensor) else x.add_(y, alpha=factor)


def check_rows(kind: str, column: Tensor, size: int) -> None:
    """Raise `ParameterError` for row numbers that a table of this size has not.

    They would be taken for rows of the client beside.
    """
    for bad in map(int, column.aminmax()):
        fix = (
            f"the model has {size} rows of {kind}s, counted from 0; correct the column, or make it"
        )
        require(0 <= bad < size, kind, bad, f"{fix} with more")


def build(
    model: Model,
    optimizer: str,
    precision: str,
    micro: int = 0,
    multiply: bool = False,
    turn: Mapping[str, float] | None = None,
) -> Step:
    """Build the step of a model, which trains `values` in place and returns its predictions (A, B).

    The predictions are those before the step. precision: 'bf16' runs the prediction's matrix
    products in bfloat16; losses, weights and deltas stay fp32. micro: examples whose gradient is
    worked out at a time, 0 for all. multiply: whether to multiply a `Product` before it is added,
    for torch.compile, which would copy the weights otherwise. turn: the names that step, with what
    their gradients are multiplied by; None for all of them as they are.
    """
    rule, kinds = RULES[optimizer], dict(model.rows)

    half = precision == "bf16"

    def step(
        held: Mapping[str, Tree],
        index: Mapping[str, Tensor | None],
        columns: Tree,
        constants: Tree,
        weight: Tensor,
        numbers: Numbers,
    ) -> Tensor:
        flat = {kind: None if rows is None else rows.flatten() for kind, rows in index.items()}
        leaves = {}
        for name, kind in kinds.items():
            rows, value = flat[kind], held["values"][name]
            if rows is not None:  # one row for each example
                leaf = value.index_select(0, rows)
                if name in held["later"]:
                    leaf = _plus(
                        _times(leaf, numbers[3]),
                        held["later"][name].index_select(0, rows),
                        numbers[4],
                    )
                leaf = leaf.view(*cast(Tensor, index[kind]).shape, *value.shape[1:])
            else:
                leaf = unlooked(value.detach(), kind, len(weight), columns)
            leaves[name] = leaf
        # the gradient is that of the sum of all clients' means, as clients are disjoint; SGD's rate
        # is put in here, where it costs least
        share = weight * -numbers[1] if optimizer == "sgd" else weight
        with (
            torch.autocast(weight.device.type, torch.bfloat16, cache_enabled=False)
            if half
            else nullcontext()
        ):
            each = frozenset(name for name, kind in kinds.items() if flat[kind] is not None)
            prediction, grads = accumulated(model, leaves, constants, columns, share, each, micro)
            if half or multiply:
                grads = [multiplied(g) for g in grads]
        for name, grad in of_turn(dict(zip(kinds, grads, strict=True)), turn).items():
            kind, value, moments = kinds[name], held["values"][name], None
            if optimizer == "adamw":
                moments = held["means"][name], held["squares"][name]
            if name in held["later"]:
                # looked-up rows: no Product
                _scatter(value, flat[kind], _times(cast(Tensor, grad), numbers[5]))
            else:
                rule(value, moments, flat[kind], grad, numbers, held["fixed"].get(name))
        return prediction

    return step


def unlooked(value: Tensor, kind: str, clients: int, columns: Tree) -> Tensor:
    """What the clients A hold (R, ...) of a kind that their examples need not look up.

    A single row (A, 1, ..., D) is broadcast over the examples; of what no column picks, a client
    holds all rows (A, R / A, D).
    """
    if kind in columns:
        return value.view(len(value), *[1] * (columns[kind].dim() - 1), *value.shape[1:])
    return value if kind in SINGLE else value.view(clients, -1, *value.shape[1:])


def stepwise(model: Model, local: LocalSettings) -> str:
    """Why steps are taken as they stand, whatever the engine; '' where it may take them."""
    plain = list(local.turns(model.rows)) == [dict.fromkeys(model.rows, 1.0)]
    if model.list_loss:
        return f"{model.list_loss} is a loss of lists"
    own = "parameters step in turns, at rates of their own or by a penalty"
    return "" if plain and model.penalty is None else own


def of_turn(
    grads: dict[str, Tensor | Product], turn: Mapping[str, float] | None
) -> dict[str, Tensor | Product]:
    """The gradients of the names that step in a turn, at their rates; all of them for None."""
    if turn is None:
        return grads
    return {n: grads[n] if rate == 1 else multiplied(grads[n]) * rate for n, rate in turn.items()}


def in_turns(turns: Sequence[Step]) -> Step:
    """One step that is several, one after another; its predictions are those of the first."""

    def step(*given: Any) -> Tensor:
        first, *_ = [turn(*given) for turn in turns]
        return first

    return step


def loop(
    step: Step, tiny: Step, work: Work, constants: Tree, numbers: list[tuple[float, ...]] | Tensor
) -> Tensor:
    """Take one step after another and return the predictions (M, B).

    `tiny` serves the steps where a size is 1, which torch.compile would treat apart.
    """
    found = []
    index = {
        kind: rows if rows is None else rows.split(work.active) for kind, rows in work.index.items()
    }
    columns = {name: pieces(column, work.active) for name, column in work.columns.items()}
    for number, weight in enumerate(work.weight.split(work.active)):
        live = {name: rows[number] for name, rows in work.live.items()}
        held = {
            what: {name: rows[: live[name]] for name, rows in tree.items()}
            for what, tree in work.rows.items()
        }
        found.append(
            (tiny if 1 in (*weight.shape, *live.values()) else step)(
                held,
                {kind: rows if rows is None else rows[number] for kind, rows in index.items()},
                {name: as_tensor(column[number]) for name, column in columns.items()},
                constants,
                weight,
                numbers[number],
            )
        )
    return torch.cat(found)


def gradients(
    model: Model, leaves: Tree, constants: Tree, columns: Tree, share: Tensor
) -> tuple[Tensor, list[Tensor | Product]]:
    """The predictions (A, B), and the gradients of the sum of `share` times loss by each leaf.

    For a loss of lists it gives the losses (A, B), as predictions of lists are many. Gradients are
    worked out by hand where the model knows how. A client that is alone may be computed twice, side
    by side, so that its bits are those that it has in a group.
    """
    by_hand = model.pullback is not None and model.penalty is None and not model.list_loss
    if len(share) == 1 and (not by_hand or "one" in model.rows.values()):
        two = [
            {name: torch.cat([value, value]) for name, value in tree.items()}
            for tree in (leaves, columns)
        ]
        found, grads = _gradients(model, two[0], constants, two[1], torch.cat([share, share]))
        return found[:1], [
            Product(g.left[:1], g.right[:1]) if isinstance(g, Product) else g[:1] for g in grads
        ]
    return _gradients(model, leaves, constants, columns, share)


def _gradients(
    model: Model, leaves: Tree, constants: Tree, columns: Tree, share: Tensor
) -> tuple[Tensor, list[Tensor | Product]]:
    target = columns["target"]
    if model.list_loss:
        return _list_gradients(model, leaves, constants, columns, share)
    if model.pullback is not None and model.penalty is None:
        prediction, pull = model.pullback(leaves | constants, columns)
        by_name = pull(model.slope(prediction, target) * share)
        return prediction.float(), [by_name[name] for name in leaves]
    ready = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    prediction = model.predict(ready | constants, columns)
    found = prediction.detach().float()
    slope = model.slope(found, target)
    slope = slope * share.view(*share.shape, *[1] * (slope.dim() - 2))
    ends, slopes = [prediction], [slope.to(prediction.dtype)]
    if model.penalty is not None:
        ends.append(model.penalty(ready))
        slopes.append(share.expand_as(ends[1]))
    return found, list(torch.autograd.grad(ends, list(ready.values()), slopes))


def _list_gradients(
    model: Model, leaves: Tree, constants: Tree, columns: Tree, share: Tensor
) -> tuple[Tensor, list[Tensor | Product]]:
    assert model.over is not None
    ready = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    scores = model.over(ready | constants, columns).float()
    losses = losses_of_lists(model.list_loss, scores, columns["target"])
    whole = losses if model.penalty is None else losses + model.penalty(ready).mean(-1)
    return losses.detach(), list(torch.autograd.grad(whole, list(ready.values()), share))


def multiplied(grad: Tensor | Product) -> Tensor:
    """A gradient as one tensor (A, F, H)."""
    if not isinstance(grad, Product):
        return grad
    if len(grad.left) == 1:
        return torch.bmm(*(torch.cat([side, side]) for side in grad))[:1]
    return torch.bmm(*grad)


def accumulated(
    model: Model,
    leaves: Tree,
    constants: Tree,
    columns: Tree,
    share: Tensor,
    each: frozenset[str],
    micro: int,
) -> tuple[Tensor, list[Tensor | Product]]:
    """The same as `gradients`, for `micro` examples of each client at a time.

    Only what these need is kept for the backward pass. each: names of the leaves that have a row
    for each example, (A, B, ...); gradients of the others add up. micro: 0 takes all at once.
    """
    if not 0 < micro < share.shape[1]:
        return gradients(model, leaves, constants, columns, share)
    predictions, found = [], list[list[Tensor]]()
    for first in range(0, share.shape[1], micro):
        cut = slice(first, first + micro)
        mine = {
            name: leaf.detach()[:, cut] if name in each else leaf.detach()
            for name, leaf in leaves.items()
        }
        here = {name: column[:, cut] for name, column in columns.items()}
        prediction, grads = gradients(model, mine, constants, here, share[:, cut])
        predictions.append(prediction)
        every = [multiplied(grad) for grad in grads]
        found = [
            [*old, new] if name in each or not old else [old[0] + new]
            for name, old, new in zip(leaves, found or [[] for _ in every], every, strict=True)
        ]
    return torch.cat(predictions, 1), [torch.cat(parts, 1) for parts in found]


def run(model: Model, work: Work, local: LocalSettings) -> Tensor:
    """Take all steps of `work` in place, by the engine that `local` names; return the losses.

    They are (M, B), those of the predictions before each step.
    """
    turns = [
        build(model, local.optimizer, local.precision, local.micro_batch, turn=turn)
        for turn in local.turns(model.rows)
    ]
    eager = turns[0] if len(turns) == 1 else in_turns(turns)
    if local.engine in ("eager", "fused"):  # what no compiled client trains
        found = loop(eager, eager, work, model.constants, hyper(local, len(work.active)))
    else:
        why = stepwise(model, local)
        require(not why, "engine", local.engine, f"{why}; choose 'fused' or 'eager'")
        from fedlab.engine.backends import other_steps  # noqa: PLC0415 - needs this file

        found = other_steps(model, work, local, eager)
    settle(work, local)
    if model.list_loss:
        return found
    # once for all steps: in each of them it would take 4% of a small one
    return model.loss(found, as_tensor(work.columns["target"]))
