"""Steps of clients as arrows over the loss, in the plane that shows most of them.

What clients send is a point each in the space of all shared parameters. The plane goes through the
server's parameters; its first direction is the mean step, its second the one in which clients
differ most from the mean. The loss is that of the cohort's own examples, with what is private to
each client as it was at the start.

Letters: C clients, P numbers that somebody sends, E examples, G points of the grid, D dimensions.
Sources: Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4 (contours in a
plane of two directions); Karimireddy et al. 2020, "SCAFFOLD", figure 2 (client drift).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import contourpy
import torch
from torch import Tensor

from fedlab.core import Delta, Key, Rows, Tree, Update, add_rows, whole
from fedlab.models import Model

NUMBERS = 20_000_000  # C x P that are looked at; of more clients, the first ones are shown
EXAMPLES, GRID, LEVELS = 1024, 13, 9
MOST, SHOWN = 0.9, 1.25  # the picture goes as far beyond the share of steps that are shortest


@dataclass(frozen=True)
class Plane:
    """Two directions, and where the steps of clients end in them.

    steps (C, 2): of each client. mean (2,): their weighted mean. lengths (C,): of the steps in the
    whole space. agreement: length of the mean step over the mean length: 1 where all go one way.
    held: the share of the clients' squared lengths that lies in the plane. directions: name ->
    Rows whose `client` is 0 or 1, both of length 1. cohort (C,): the clients' numbers. of: how many
    there were, of whom these are the first.
    """

    steps: Tensor
    mean: Tensor
    lengths: Tensor
    agreement: float
    held: float
    directions: dict[str, Rows]
    cohort: Tensor
    of: int


def plane(update: Update, sent: Mapping[str, Tensor], weights: Tensor) -> Plane | None:
    """The plane of what a cohort learned; None where nothing moved.

    sent: name -> the server's parameter, of those that the steps are of; others that clients send,
    such as control variates, are no step. weights (C,): of each client in the mean.

    >>> from fedlab.core import Rows
    >>> rows = Rows(torch.tensor([[3.0, 1.0], [3.0, -1.0]]), torch.tensor([0, 0]), torch.arange(2))
    >>> one, two = torch.ones(2), torch.arange(2)
    >>> update = Update({"w": rows}, one, one, two, one)
    >>> found = plane(update, {"w": torch.zeros(1, 2)}, one)
    >>> found.steps.abs().tolist(), round(found.agreement, 3)
    ([[3.0, 1.0], [3.0, 1.0]], 0.949)
    """
    some = {name: rows for name, rows in update.deltas.items() if name in sent and len(rows.ids)}
    count = len(update.cohort)
    touched = {name: rows.ids.unique() for name, rows in some.items()}
    numbers = sum(len(touched[name]) * sent[name][:1].numel() for name in some)
    if not numbers:
        return None
    if (fit := max(2, NUMBERS // numbers)) < count:
        kept = torch.arange(count) < fit
        found = plane(update.only(kept), sent, weights[kept])
        return found and replace(found, of=count)
    every = [_products(rows, touched[name], count) for name, rows in some.items()]
    products = torch.stack(every).sum(0)
    fine = products.diagonal().isfinite()
    products = products.where(fine[:, None] & fine, 0.0)
    share = weights.double() * fine
    share = share / share.sum().clamp(min=1e-300)
    lengths, long = products.diagonal().sqrt(), float(share @ products @ share) ** 0.5
    if not long > 0:
        return None
    first = share / long
    along = products @ first
    values, vectors = torch.linalg.eigh(products - along.outer(along))
    second = (vectors[:, -1] - (vectors[:, -1] @ along) * first) / values[-1].clamp(
        min=1e-300
    ).sqrt()
    steps = torch.stack([along, products @ second], 1)
    if float(steps[:, 1].pow(3).sum()) < 0:  # two looks at the same round agree on the sign
        second, steps = -second, steps * steps.new_tensor([1.0, -1.0])
    return Plane(
        steps.float(),
        (share @ steps).float(),
        lengths.float(),
        long / float(share @ lengths),
        float(steps.square().sum() / lengths.square().sum()),
        {n: _mixed(rows, torch.stack([first, second])) for n, rows in some.items()},
        update.cohort,
        count,
    )


def _products(rows: Rows, touched: Tensor, clients: int) -> Tensor:
    """The inner products (C, C), float64, of what each client sends of a parameter.

    touched: the ids of all its rows, in order. By way of a dense table they take a sixth of the
    time that torch's product of sparse tables takes.
    """
    flat = rows.values.reshape(len(rows.ids), -1).float().cpu()
    table = flat.new_zeros(clients, len(touched), flat.shape[1])
    table[rows.client.cpu(), torch.searchsorted(touched, rows.ids).cpu()] = flat
    table = table.flatten(1)
    return (table @ table.T).double()


def _mixed(rows: Rows, shares: Tensor) -> Rows:
    """Sums of what clients send, by their shares (2, C), as rows of which `client` is 0 or 1."""
    ids, place = rows.ids.unique(return_inverse=True)
    values = rows.values.cpu().float().nan_to_num(0.0, 0.0, 0.0)
    found = []
    for share in shares.float():
        factor = share[rows.client.cpu()].view(-1, *[1] * (values.dim() - 1))
        found.append(
            add_rows(values.new_zeros(len(ids), *values.shape[1:]), place, values * factor)
        )
    client = torch.arange(2).repeat_interleave(len(ids))
    return Rows(torch.cat(found), ids.repeat(2), client)


def projected(delta: Delta, like: Mapping[str, Tensor], found: Plane) -> Tensor:
    """Where in the plane (2,) a delta ends, such as one that an aggregation makes of the steps.

    like: name -> the server's parameter.
    """
    at = torch.zeros(2)
    for name, both in found.directions.items():
        values = whole(delta[name], like[name])[both.ids].float().cpu()
        add_rows(at, both.client, (values * both.values).reshape(len(both.ids), -1).sum(1))
    return at


def landscape(
    model: Model, params: Tree, examples: Tree, found: Plane, reach: float
) -> list[list[list[float]]]:
    """Lines of equal loss in a plane: of each, its points (x, y), from the lowest loss up.

    params: of the server and of all users, at the point (0, 0). examples: columns (E,) of the
    cohort, as its source draws them, `client` by number, with a column `weight`. reach: how far the
    grid goes from there on all four sides. Empty where the loss is flat or not finite.
    """
    grid = torch.linspace(-reach, reach, GRID)
    z = losses(model, params, examples, found.directions, grid)
    low, high = float(z.min()), float(z.max())
    if not (bool(z.isfinite().all()) and high > low):
        return []
    levels = torch.linspace(low, high, LEVELS + 2)[1:-1].tolist()
    lines = contourpy.contour_generator(grid.numpy(), grid.numpy(), z.numpy())
    return [_flat(each) for level in levels for each in lines.lines(level)]


def losses(
    model: Model, params: Tree, examples: Tree, directions: Mapping[str, Rows], grid: Tensor
) -> Tensor:
    """The loss (G, G) at all points of the plane: rows go by the second direction."""
    weight = examples["weight"] / examples["weight"].sum()
    batch = {n: c[None] for n, c in examples.items() if n not in ("weight", "client")}
    batch |= model.pairs(params, batch)
    each = "client" in model.rows.values()
    if each:  # such parameters have one row for a whole batch: each example is a batch of its own
        batch = {name: column[0, :, None] for name, column in batch.items()}
    one = torch.zeros(len(weight) if each else 1, dtype=torch.int64)
    index = batch | {"client": examples["client"], "one": one}
    leaves: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = {}
    for name, kind in model.rows.items():
        ways = (
            [_looked_up(directions[name], index[kind], params[name], w) for w in (0, 1)]
            if name in directions
            else [None, None]
        )
        leaves[name] = params[name][index[kind]], ways[0], ways[1]
    found = torch.empty(len(grid), len(grid))
    with torch.no_grad():
        for row, b in enumerate(grid.tolist()):
            for column, a in enumerate(grid.tolist()):
                at = {
                    name: value if x is None or y is None else value + a * x + b * y
                    for name, (value, x, y) in leaves.items()
                }
                prediction = model.predict(at | model.constants, batch)
                each_loss = model.loss(prediction, batch["target"]).reshape(len(weight), -1)
                found[row, column] = each_loss.mean(1) @ weight
    return found


def _looked_up(both: Rows, index: Tensor, like: Tensor, way: int) -> Tensor:
    """The rows of one direction for each example: 0 where the direction has none."""
    mine = both.client == way
    ids, values = both.ids[mine], both.values[mine]
    at = torch.searchsorted(ids, index).clamp(max=len(ids) - 1)
    held = (ids[at] == index).view(index.shape + (1,) * (like.dim() - 1))
    return values[at] * held


def sampled(examples: Tree, cohort: Tensor, weights: Tensor, key: Key) -> Tree:
    """At most so many of the examples of a cohort, each with its weight in the cohort's loss.

    examples: columns as a source draws them, `client` by position in the cohort (C,). weights (C,):
    of each client. Every client's loss is the mean over its examples.
    """
    client = examples["client"]
    count = len(client)
    if count > EXAMPLES:
        luck = key.words(torch.zeros(count, dtype=torch.int64), torch.arange(count))
        kept = luck.argsort()[:EXAMPLES].sort().values
        examples = {name: column[kept] for name, column in examples.items()}
        client = examples["client"]
    mine = torch.bincount(client, minlength=len(cohort)).clamp(min=1)
    own = {name: column for name, column in examples.items() if name != "epoch"}
    return own | {"weight": (weights / mine)[client].float(), "client": cohort[client]}


def _flat(line: Any) -> list[list[float]]:
    return [[float(f"{x:.4g}"), float(f"{y:.4g}")] for x, y in line.tolist()]
