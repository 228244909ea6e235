"""PyTorch by hand: no module, no optimiser, and in the ways that one would try.

The job decides what is trained, a further argument how:

hand: a loop over clients with the gradient by hand, no autograd. vmap: all clients side by side,
`torch.func.vmap(grad)` for the gradients of a step; users of unequal length stand longest first,
so that a step is a block of those who still have a batch.

Letters: as in draws.py, and D dimensions.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from arrays.draws import Clicks, orders, slots
from protocol import read_job, serve
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

torch.set_num_threads(1)
job, way = read_job(), sys.argv[3]
rng = np.random.default_rng(0)
weights = {name: torch.from_numpy(value) for name, value in job.weights.items()}
columns = {name: torch.from_numpy(value) for name, value in job.columns.items()}


def batches(examples: int) -> list[slice]:
    """The batches of examples that lie in their order already."""
    return [slice(k, min(k + job.batch, examples)) for k in range(0, examples, job.batch)]


def perceptron_by_hand(cohort: Tensor) -> None:
    """Take a round of the perceptron, client after client."""
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for client in cohort.tolist():
        order = torch.randperm(job.examples)
        x, target = columns["x"][client][order], columns["target"][client][order]
        w1, b1, w2, b2 = (value.clone() for value in weights.values())
        for cut in batches(job.examples):
            own = x[cut]
            h = torch.addmm(b1, own, w1.T).relu_()
            y = torch.addmv(b2, h, w2[0])
            g = (y.sigmoid_() - target[cut]).mul_(-job.rate / len(own))
            back = torch.outer(g, w2[0]).mul_(h > 0)
            w2[0].addmv_(h.T, g)
            b2.add_(g.sum())
            w1.addmm_(back.T, own)
            b1.add_(back.sum(0))
        for end, name in zip((w1, b1, w2, b2), weights, strict=True):
            total[name].add_(end)
    for name, value in total.items():
        weights[name] = value / len(cohort)


def perceptron_by_vmap(cohort: Tensor) -> None:
    """Take a round of the perceptron, all clients side by side."""

    def loss(p: dict, x: Tensor, target: Tensor) -> Tensor:
        h = (x @ p["first.weight"].T + p["first.bias"]).relu()
        return cross_entropy(h @ p["second.weight"][0] + p["second.bias"], target)

    order = torch.from_numpy(orders(rng, job.clients, job.examples)).long()
    each = torch.arange(job.clients)[:, None]
    now = {name: value.expand(job.clients, *value.shape).clone() for name, value in weights.items()}
    for cut in batches(job.examples):
        own = (columns[name][each, order[:, cut]] for name in ("x", "target"))
        for name, slope in vmap(grad(loss))(now, *own).items():
            now[name].sub_(slope, alpha=job.rate)
    weights.update({name: value.mean(0) for name, value in now.items()})


def user_by_hand(rows: Tensor, bias: Tensor, user: Tensor, slot: Tensor, target: Tensor) -> None:
    """Train a user (D,) and its rows (n, D) and biases (n,) in place.

    slot, target (n,): of its examples in their order, where each finds its row.
    """
    for cut in batches(len(slot)):
        at = slot[cut]
        q = rows.index_select(0, at)
        y = torch.addmv(bias.index_select(0, at), q, user)
        g = (y.sigmoid_() - target[cut]).mul_(-job.rate / len(at))
        rows.index_add_(0, at, torch.outer(g, user))
        bias.index_add_(0, at, g)
        user.addmv_(q.T, g)


def looked_up(item: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the server's rows and biases of items (n,)."""
    table, bias = weights["item.weight"], weights["bias.weight"][:, 0]
    return table.index_select(0, item), bias.index_select(0, item)


def add_up(item: Tensor, ends: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]) -> None:
    """Add what was learned of items (n,), of which one may stand there twice, to the sums."""
    for total, end, start in zip(sums, ends, looked_up(item), strict=True):
        total.index_add_(0, item, end - start)


def empty_sums() -> tuple[Tensor, Tensor]:
    """Sums of rows and biases of all items, of nobody so far."""
    return torch.zeros_like(weights["item.weight"]), torch.zeros(len(weights["item.weight"]))


def move_items(sums: tuple[Tensor, Tensor], rate: float) -> None:
    """Move the server's items by the mean over the cohort, times a rate."""
    weights["item.weight"].add_(sums[0], alpha=rate / job.cohort)
    weights["bias.weight"][:, 0].add_(sums[1], alpha=rate / job.cohort)


def private_by_hand(cohort: Tensor) -> None:
    """Take a round of private users with rated items, user after user."""
    sums = empty_sums()
    for client in cohort.tolist():
        order, item = torch.randperm(job.examples), columns["item"][client]
        ends, user = looked_up(item), weights["user.weight"][client]
        target = columns["target"][client]
        user_by_hand(*ends, user, places[client][order], target[order])
        add_up(item, ends, sums)
    move_items(sums, 1.0)


def clicks_by_hand(cohort: Tensor) -> None:
    """Take a round of users with clicks and drawn items, user after user."""
    sums = empty_sums()
    place = torch.empty(len(weights["item.weight"]), dtype=torch.long)
    for client in cohort.tolist():
        own = clicked[client]
        free = seen[client]
        drawn = torch.randint(len(place), (len(own) * job.negatives,))
        while len(again := free[drawn].nonzero()[:, 0]):
            drawn[again] = torch.randint(len(place), (len(again),))
        order = torch.randperm(len(own) + len(drawn))
        item, target = torch.cat([own, drawn])[order], (order < len(own)).float()
        place[item] = torch.arange(len(item))
        ends = looked_up(item)
        user_by_hand(*ends, weights["user.weight"][client], place[item], target)
        add_up(item, ends, sums)
    move_items(sums, job.server_rate)


def factor_loss(q: Tensor, bias: Tensor, user: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """A batch's cross-entropy, of rows (B, D), biases (B,), a user (D,) and shares (B,)."""
    return (cross_entropy(q @ user + bias, target, reduction="none") * share).sum()


slopes = vmap(grad(factor_loss, argnums=(0, 1, 2)))


def stacked_step(
    ends: tuple[Tensor, Tensor], users: Tensor, slot: Tensor, target: Tensor, share: Tensor
) -> None:
    """Take a step of users (C, D) side by side in place; slot, target, share (C, B)."""
    rows, bias = ends
    at = slot.flatten()
    q = rows.index_select(0, at).view(*slot.shape, -1)
    dq, db, du = slopes(q, bias[slot], users, target, share)
    rows.index_add_(0, at, dq.flatten(0, 1), alpha=-job.rate)
    bias.index_add_(0, at, db.flatten(), alpha=-job.rate)
    users.sub_(du, alpha=job.rate)


def private_by_vmap(cohort: Tensor) -> None:
    """Take a round of private users with rated items, all side by side."""
    order = torch.from_numpy(orders(rng, job.clients, job.examples)).long()
    each = torch.arange(job.clients)[:, None]
    item = columns["item"].flatten()
    ends = looked_up(item)
    for cut in batches(job.examples):
        own = order[:, cut]
        slot, target = places[each, own] + each * job.examples, columns["target"][each, own]
        share = torch.full_like(target, 1 / own.shape[1])
        stacked_step(ends, weights["user.weight"], slot, target, share)
    sums = empty_sums()
    add_up(item, ends, sums)
    move_items(sums, 1.0)


def clicks_by_vmap(cohort: Tensor) -> None:
    """Take a round of users with clicks and drawn items: the longest first, side by side."""
    *drawn, first = (torch.from_numpy(each) for each in clicks.draw(cohort.numpy()))
    used, steps = int(first[-1]), first.diff()
    item, slot = (each[:used].long() for each in drawn[:2])
    target, share = drawn[2], drawn[3]
    ends, users = looked_up(item.flatten()), weights["user.weight"][cohort]
    for number in range(int(steps[0])):
        busy = int((steps > number).sum())
        at = first[:busy] + number
        stacked_step(ends, users[:busy], slot[at], target[at], share[at])
    weights["user.weight"][cohort] = users
    sums = empty_sums()
    add_up(item.flatten(), ends, sums)
    move_items(sums, job.server_rate)


if job.model == "private":
    places = torch.from_numpy(slots(job.columns["item"])).long()
if job.model == "clicks":
    clicked = columns["item"].split(job.counts.tolist())
    clicks = Clicks(job)
    seen = torch.from_numpy(clicks.seen)
ROUNDS: dict[tuple[str, str], Callable[[Tensor], None]] = {
    ("mlp", "hand"): perceptron_by_hand,
    ("mlp", "vmap"): perceptron_by_vmap,
    ("private", "hand"): private_by_hand,
    ("private", "vmap"): private_by_vmap,
    ("clicks", "hand"): clicks_by_hand,
    ("clicks", "vmap"): clicks_by_vmap,
}
take, cohorts = ROUNDS[job.model, way], iter(torch.from_numpy(job.cohorts))


def one_round() -> None:
    """Take one round; nothing here needs autograd's graph of its own."""
    with torch.no_grad():
        take(next(cohorts))


serve(one_round, lambda: {name: value.numpy() for name, value in weights.items()})
