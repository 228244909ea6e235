"""Matched averaging: unit 7 of one network need not be unit 7 of another.

The hidden units of a layer may stand in any order: y = w2 . relu(W1 x + b1) is the same function
after the columns of W1 and the numbers of b1 and w2 are put into another order together. Networks
that trained from different first weights learn like units in different places, so the mean of their
weights, place by place, is like none of them. Here the server first finds which units belong
together, by the least sum of squared distances,

    min over orders pi_k  sum_k n_k sum_i |v_k,pi_k(i) - theta_i|^2,   theta_i the weighted mean

one client at a time with the others held fixed, each time by the Hungarian algorithm, and then
takes the mean. A unit v is what comes into it and its bias; where the layer behind it has no order
of its own to find, what goes out of it as well. Several layers are matched one after another.

Left out of the papers: a global layer that grows, with the prior (BBP-MAP) that sets the price of a
new unit, as the server's layer keeps its width here; and FedMA's training of the upper layers anew
after each layer was matched. A unit that is a multiple of another, undone in the next layer, counts
as a different one.

Letters: C clients, H hidden units, E numbers of a unit, F numbers that come in, G that go out.

Sources: Wang et al. 2020, "Federated learning with matched averaging" (FedMA), section 2, eq. 2;
Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks", section 3.1
(a unit as the vector of its weights in both directions).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab.aggregation.mean import Sums, Weighted, joined_updates, some_weight
from fedlab.core import Delta, RoundContext, Rows, Tree, Update, add_rows, register, require

PASSES = 20  # over all clients at most; two or three are usual, as each makes the sum smaller
FIX = (
    "it needs a layer whose hidden units can be matched: w1 (1, F, H), b1 (1, H) and w2 (1, H) or "
    "(1, H, G), all of them sent, as of the perceptron and the content model; take the weighted "
    "mean"
)


@register
class Matched(Weighted):
    """FedMA: the weighted mean of clients' networks after their hidden units were matched.

    Everything that belongs to no hidden unit is the weighted mean as it is. The units of the result
    stand in the order that lies closest to the server's, so that where no order is better than the
    one that clients share, the result is that of `WeightedMean`, bit for bit. Raises
    `ParameterError` for a model without a layer that can be matched, see `hidden_layers`.

    >>> from fedlab import as_update, perceptron
    >>> one = perceptron(3, 4).init(0)
    >>> other = {n: v if n == "b2" else v.flip(-1) for n, v in one.items()}  # the same function
    >>> delta = Matched()([as_update([one, other], one)], one)
    >>> max(float(d.abs().max()) for d in delta.values()) < 1e-6  # as the first one is
    True
    """

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` where nothing can be matched, or not all that would have to be."""
        sent = {name: value for name, (value, _) in context.asked.items()}
        require(bool(hidden_layers(sent)), "model", context.model.name, f"{self.name}: {FIX}")
        more = sorted(sent.keys() - context.model.rows.keys())
        require(
            not more,
            "local",
            getattr(context.local, "name", "none"),
            f"{self.name}: clients send {', '.join(more)} beside the model, which would stay in "
            "the old order; take sgd, or the weighted mean",
        )

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""
        every = joined_updates(updates)
        some_weight(float(every.weights.sum()))
        layers = hidden_layers({name: server[name] for name in every.deltas})
        require(bool(layers), self.name, sorted(every.deltas), FIX)
        found = Networks.of(every, server, {name for layer in layers for name in layer})
        for number, layer in enumerate(layers, 1):
            units, own = found.units(layer, last=number == len(layers))
            found = found.ordered(layer, matching(units, every.weights, own))
        sums = Sums(server)
        sums.add(replace(every, deltas=every.deltas | found.deltas()))
        return sums.mean()


def hidden_layers(tree: Tree) -> list[tuple[str, str, str]]:
    """The names of weights, biases and next weights of each layer whose units may be reordered.

    tree: name -> tensor of all that clients send. Layers are numbered from 1: w1 (1, F, H), b1
    (1, H), w2 (1, H) or (1, H, G), and so on. Empty where there is none.

    >>> from fedlab import perceptron
    >>> hidden_layers(perceptron(3, 4).init(0))
    [('w1', 'b1', 'w2')]
    """
    found: list[tuple[str, str, str]] = []
    while True:
        number = len(found) + 1
        layer = f"w{number}", f"b{number}", f"w{number + 1}"
        if not tree.keys() >= set(layer) or tree[layer[0]].dim() != 3:
            return found
        into, bias, out = (tuple(tree[name].shape) for name in layer)
        if into[0] != 1 or not (1, into[2]) == bias == out[:2] or len(out) > 3:
            return found
        found.append(layer)


@dataclass(frozen=True)
class Networks:
    """The layers of all clients as they stand in some order.

    moved: name -> (C, ...) what each client learned. base: name -> (C, ...) the server's values,
    which the client started from. server: the same as they are, (1, ...).
    """

    moved: Tree
    base: Tree
    server: Tree

    @classmethod
    def of(cls, update: Update, server: Tree, names: Iterable[str]) -> "Networks":
        """The networks of a cohort in the order in which clients sent them."""
        moved, base, clients = dict[str, Tensor](), dict[str, Tensor](), len(update.cohort)
        for name in sorted(names):
            rows = update.deltas[name]
            base[name] = server[name].expand(clients, *server[name].shape[1:])
            moved[name] = add_rows(torch.zeros_like(base[name]), rows.client, rows.values)
            finite = bool(moved[name].isfinite().all())
            require(finite, name, "not finite", "an update has to be finite to be matched")
        return cls(moved, base, server)

    def units(self, layer: tuple[str, str, str], *, last: bool) -> tuple[Tensor, Tensor]:
        """The units (C, H, E) of the clients, and those (H, E) of the server, in float64.

        last: whether the next layer keeps its order, so that what goes out counts.
        """

        def stacked(tree: Tree) -> Tensor:
            into, bias, out = (tree[name].double() for name in layer)
            parts = [into.transpose(1, 2), bias.unsqueeze(2)]
            return torch.cat(parts + ([out.view(*bias.shape, -1)] if last else []), 2)

        clients = {name: self.base[name] + self.moved[name] for name in layer}
        return stacked(clients), stacked(self.server)[0]

    def ordered(self, layer: tuple[str, str, str], order: Tensor) -> "Networks":
        """The same functions with the units of a layer in another order (C, H), client by client.

        order[k, i]: the unit of client k that comes to place i.
        """
        into, bias, out = layer

        def taken(tree: Tree) -> Tree:
            next_ = order if tree[out].dim() == 2 else order.unsqueeze(2)
            return tree | {
                into: tree[into].take_along_dim(order.unsqueeze(1), 2),
                bias: tree[bias].take_along_dim(order, 1),
                out: tree[out].take_along_dim(next_, 1),
            }

        return replace(self, moved=taken(self.moved), base=taken(self.base))

    def deltas(self) -> dict[str, Rows]:
        """What each client would have sent with its units in this order."""
        found = {}
        for name, value in self.moved.items():
            place = torch.arange(len(value), device=value.device)
            shifted = value + (self.base[name] - self.server[name])
            found[name] = Rows(shifted, torch.zeros_like(place), place)
        return found


def matching(units: Tensor, weights: Tensor, server: Tensor) -> Tensor:
    """The order (C, H) of each client's units in which like units of all clients stand together.

    units (C, H, E), server (H, E): float64. weights (C,): of the clients, 0 or more. The heaviest
    client comes first, and each next one is laid upon the mean of those before it; then each is
    laid upon the mean of all others, until nobody gains. At last all turn together to where their
    mean lies closest to the server's units. What is no better than the order as it is changes
    nothing.

    >>> import torch
    >>> one = torch.tensor([[0.0], [5.0]], dtype=torch.float64)
    >>> matching(torch.stack([one, one.flip(0)]), torch.ones(2), one).tolist()
    [[0, 1], [1, 0]]
    """
    share = (weights.double() / weights.double().sum()).cpu()
    units, server = units.cpu(), server.cpu()
    order = torch.arange(units.shape[1]).repeat(len(units), 1)
    total, known = torch.zeros_like(server), 0.0
    for k in share.argsort(descending=True, stable=True).tolist():
        if known:
            order[k] = _laid(units[k], total / known, order[k])
        total, known = total + share[k] * units[k, order[k]], known + float(share[k])
    for _ in range(PASSES):
        before = order.clone()
        for k in range(len(units)):
            rest = total - share[k] * units[k, order[k]]
            if share[k] < 1:
                order[k] = _laid(units[k], rest / (1 - share[k]), order[k])
            total = rest + share[k] * units[k, order[k]]
        if torch.equal(before, order):
            break
    turned = _laid(total, server, torch.arange(len(server)))
    return order[:, turned].to(weights.device)


def _laid(units: Tensor, centre: Tensor, now: Tensor) -> Tensor:
    """The order (H,) of units (H, E) closest to `centre` (H, E), or `now` if that is as close."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes a tenth of a second

    cost = torch.cdist(centre, units, compute_mode="donot_use_mm_for_euclid_dist").square()
    best = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
    here = torch.arange(len(cost))
    return best if cost[here, best].sum() < cost[here, now].sum() else now
