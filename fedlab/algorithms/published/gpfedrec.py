"""GPFedRec: clients whose items look alike are neighbours, and guide each other's items.

    y_ui = MLP_u([p_u ; q_ui])
    L_u  = mean over examples of  cross-entropy + lambda |Q_u - R_u|^2 / (I D)

Each client starts from the shared table Q, is pulled to R_u, and sends its whole table Q_u; p_u and
the layers never leave it. The server holds all Q_u as the rows of a matrix, joins clients by how
alike these are, and takes means along the graph:

    A_uv = 1 / (neighbours of u)  where cos(Q_u, Q_v) > threshold * mean of all cosines
    R_u  = sum_v A_uv Q_v          Q = mean_u R_u

So the server sees every client's own table, and from it what each has rated: no secure sum hides
it. A step takes q <- q - a (q - r) from every row, a = 2 lambda rate / (I D), so an untouched row
is r + (1 - a)^S (q - r) after S steps, and only touched ones are trained.

Letters: U users, N clients, I items, D dimensions, B examples, C clients of a round, c of a chunk,
S local steps.

Source: Zhang et al. 2024, "GPFedRec: Graph-guided personalization for federated recommendation",
algorithm 1. Where the paper is silent, its authors' code decides: all clients start from the same
numbers, layers step at `local_lr`, vectors of items at 80 I times and of users at 80 times that. In
one thing the code is not the paper: what it holds against the mean is the cosine *distance*, so it
joins those who are least alike. `neighbours` has both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedlab.aggregation import joined_updates
from fedlab.algorithms.participation import longest_first
from fedlab.algorithms.published.pfedrec import OwnRates
from fedlab.core import (
    Delta,
    Recipe,
    Round,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    knob,
    like,
    moved,
    one_thread,
    register,
    require,
    whole,
)
from fedlab.data import Federation, Interactions
from fedlab.engine import updates
from fedlab.models import MatrixFactorisation, Model, NeuralCollaborativeFiltering
from fedlab.models.model import check_sizes, drawn, uniform

VIEWS = "items of each client"
MOST = 1 << 30  # numbers in the tables of all clients, which the server holds several times


def personal_perceptron(
    users: int, items: int, dim: int = 32, depth: int = 3, *, task: str = "clicks"
) -> Model:
    """A perceptron of each user's own on its vector and an item's, `depth` layers that halve.

    All users start alike. Raises `ParameterError` where 2 `dim` cannot be halved so often.

    >>> model = personal_perceptron(3, 4, 2, 1)
    >>> {name: tuple(value.shape) for name, value in model.init(0).items() if name[0] == "w"}
    {'w1': (3, 4, 2)}
    """
    check_sizes(users=users, items=items, dim=dim, depth=depth)
    widths = [2 * dim // 2**k for k in range(depth + 1)]
    fix = f"{depth} layers halve {2 * dim} numbers to none; take fewer or a larger dim"
    require(widths[-1] > 0, "depth", depth, fix)
    private = frozenset({"user", "dense", "offset"}).union(
        f"{kind}{k}" for k in range(1, depth + 1) for kind in "wb"
    )

    def init(seed: int) -> Tree:
        last = widths[-1]
        own = {
            "user": drawn(seed, "user", 1, dim),
            "dense": uniform(seed, "dense", last, 1, last),
            "offset": uniform(seed, "offset", last, 1, 1)[0],
        }
        for k, (wide, narrow) in enumerate(pairwise(widths), 1):
            own[f"w{k}"] = uniform(seed, f"w{k}", wide, wide, narrow)[None]
            own[f"b{k}"] = uniform(seed, f"b{k}", wide, 1, narrow)
        alike = {name: value.repeat_interleave(users, 0) for name, value in own.items()}
        return {"item": drawn(seed, "item", items, dim), **alike}

    def predict(p: Tree, batch: Tree) -> Tensor:
        h = torch.cat(torch.broadcast_tensors(p["user"], p["item"]), -1)  # (A, B, 2 D)
        for k in range(1, depth + 1):
            h = (torch.einsum("...i,...io->...o", h, p[f"w{k}"]) + p[f"b{k}"]).relu()
        return (h * p["dense"]).sum(-1) + p["offset"]

    rows = {"item": "item", **dict.fromkeys(sorted(private), "user")}
    return Model("personal perceptron", task, init, predict, rows, private, activity=sum(widths))


@register
class PersonalPerceptron(Recipe):
    """A perceptron of each user's own on shared vectors of the items, as GPFedRec has it."""

    dim: int = like(MatrixFactorisation, "dim")
    depth: int = like(NeuralCollaborativeFiltering, "depth")

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return personal_perceptron(
            train.user_count, train.item_count, self.dim, self.depth, task=task
        )


def user_graph(tables: Tensor, threshold: float = 1.0, near: bool = True) -> Tensor:
    """(C, C) what each client takes of the others' tables (C, ...), in rows that add up to 1.

    Clients are joined whose cosine is above `threshold` times the mean of all, or with near=False
    those whose cosine distance is. Who has no neighbour takes its own table alone.

    >>> user_graph(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    unit = normalize(tables.flatten(1))
    apart = unit - unit.mean(0)  # alike to many digits: 1 - cos = |x - y|^2 / 2, and not 1 - x y
    half = apart.square().sum(1) / 2
    distance = (half[:, None] + half - apart @ apart.T).double()
    alike = 1 - distance if near else distance
    joined = (alike > threshold * alike.mean()).to(tables)
    lonely = joined.sum(1, keepdim=True) == 0
    joined = torch.where(lonely, torch.eye(len(tables)).to(tables), joined)
    return joined / joined.sum(1, keepdim=True)


@dataclass(frozen=True)
class Guide:
    """What turns a pull to the shared table into one to each client's own (`Correction`).

    items (I, D); views (N I, D): R_u, client after client; pull: of both.
    """

    items: Tensor
    views: Tensor
    pull: float

    def shift(self, name: str, ids: Tensor, client: Tensor, cohort: Tensor) -> Tensor:
        """The offsets (R, D) to the gradient of rows `ids` that clients (R,) of a cohort hold."""
        own = self.views.index_select(0, cohort[client] * len(self.items) + ids)
        return (self.items.index_select(0, ids) - own) * self.pull


@register
class GPFedRec(OwnRates):
    """A client's items are pulled to the mean of those of its neighbours in a graph of clients."""

    title = "gpfedrec"
    refuses = ("stale",)
    guidance: float = knob(
        1.0,
        0.0,
        1e3,
        "",
        "gpfedrec: pull of a client's items to those of its neighbours (lambda)",
        usual=(0.0, 2.0),
    )
    threshold: float = knob(
        1.0, 0.0, 100.0, "of the mean", "gpfedrec: above which two are neighbours", usual=(0.5, 2.0)
    )
    neighbours: str = knob(
        "near",
        0,
        0,
        "",
        "gpfedrec: whom the graph joins, those alike, or as its authors' code those unlike",
        choices=("near", "far"),
    )
    user_rate: float = knob(
        1.0,
        0.0,
        1e9,
        "times local_lr",
        "gpfedrec: step size on the users' vectors",
        log=True,
        usual=(0.1, 100.0),
    )

    def adds(self) -> dict[str, Any]:
        """The facts that clients weigh alike, and that each one's table is right only in a mean."""
        return {"equal": True, "second moments": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model without such parts, and for a pull that overshoots."""
        super().check(context)
        model, items = context.model, context.params.get("item")
        require(
            {"user", "item"} <= model.rows.keys() and model.rows.keys() - model.private == {"item"},
            "model",
            model.name,
            "gpfedrec shares vectors `item`, and all else stays private; take personal perceptron",
        )
        assert items is not None
        numbers = len(context.data) * items.numel()
        fix = f"the server would hold {numbers:.2g} numbers, one table for each client; take fewer"
        require(numbers <= MOST, "clients", len(context.data), fix)
        step = self.local_lr * self.pull(items)
        fix = "each local step would overshoot the neighbours' items; choose a smaller one"
        require(step < 2, "guidance", self.guidance, fix)

    def turns(self, rows: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
        """All at once, vectors at rates of their own."""
        return ({**dict.fromkeys(rows, 1.0), "item": self.item_rate, "user": self.user_rate},)

    def pull(self, items: Tensor) -> float:
        """How far a step of rate 1 moves a row of the items (I, D), of its way to R_u."""
        return 2 * self.guidance * self.item_rate / items.numel()

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """The whole table of each client, one below the other (N I, D)."""
        return {VIEWS: (self._views(context.params, context.data, context.state), "pair")}

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield how far each client's own table is from R_u, and what it keeps to itself."""
        context.notes["engine"] = "eager"
        (views, _), items = context.asked[VIEWS], context.params["item"]
        for update in self._trained(context, views, cohort, context.seed, context.number):
            own = {name: d for name, d in update.deltas.items() if name != "item"}
            rows = update.deltas["item"]
            ids = update.cohort[rows.client] * len(items) + rows.ids
            change = rows.values + items.index_select(0, rows.ids) - views.index_select(0, ids)
            own[VIEWS] = replace(rows, values=change, ids=ids)
            yield replace(update, deltas=own, weights=torch.ones_like(update.weights))

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """How far the shared table moves; the tables of those who took part go along the graph."""
        clients, items = len(context.data), context.params["item"]
        views = context.asked[VIEWS][0].view(clients, -1)
        mean = whole(delta[VIEWS], context.asked[VIEWS][0]).view(clients, -1)
        there = mean.any(1)
        sent = views[there] + mean[there] * (context.share * clients)  # the mean has 1 of C at each
        smooth = user_graph(sent, self.threshold, self.neighbours == "near") @ sent
        after = views.index_put((there,), smooth)
        context.memory(self)["views"] = after.view(-1, items.shape[1])
        return {"item": smooth.mean(0).view_as(items) - items}

    def score(self, model: Model, data: Federation, done: Round) -> Score:
        """Each client predicts with the items as one more local training leaves them."""
        order = longest_first(data, torch.arange(len(data)))
        views, seed = self._views(done.params, data, done.state), int(done.settings.seed)
        context = RoundContext(model, data, done.settings, done, done.params, {})
        with one_thread():
            sent = joined_updates(self._trained(context, views, order, seed, done.number + 1))
        learned = {name: moved(done.params[name], sent.deltas[name], 1.0) for name in model.private}
        tables = torch.empty(len(data), *done.params["item"].shape)
        tables[order] = sent.deltas["item"].values.view_as(tables) + done.params["item"]

        def score(users: Tensor, items: Tensor) -> Tensor:
            """One user to a row is the usual case, and the layers are then looked up once."""
            alike = users.dim() == 2 and bool((users == users[:, :1]).all())
            who, what = (users[:, 0], items) if alike else (users.flatten(), items.view(-1, 1))
            p = {name: value[who][:, None] for name, value in learned.items()}
            p["item"] = tables[data.owner[who][:, None], what]
            return model.predict(p, {}).view(users.shape)

        return score

    def _views(self, params: Tree, data: Federation, state: Mapping[str, Any]) -> Tensor:
        """(N I, D) the R_u of all clients: the shared table, until the graph was first used."""
        kept = state.get(self.name, {}).get("views")
        return params["item"].repeat(len(data), 1) if kept is None else kept

    def _trained(
        self, context: RoundContext, views: Tensor, cohort: Tensor, seed: int, number: int
    ) -> Iterator[Update]:
        """Yield what clients learned, with all rows of the items."""
        items = context.params["item"]
        local = replace(self, proximal=self.pull(items))
        keep, guide = 1 - self.local_lr * local.proximal, Guide(items, views, local.proximal)
        everything = context.model, context.data, context.params, cohort, local
        for update in updates(*everything, seed=seed, number=number, correction=guide):
            clients, touched = len(update.cohort), update.deltas["item"]
            own = views.view(-1, *items.shape)[update.cohort]  # (c, I, D)
            table = (own - items) * (1 - keep**update.steps).to(items)[:, None, None]
            table = table.flatten(0, 1)
            table.index_copy_(0, touched.client * len(items) + touched.ids, touched.values)
            ids = torch.arange(len(items)).to(items.device)
            client = torch.arange(clients).to(items.device)
            rows = Rows(table, ids.repeat(clients), client.repeat_interleave(len(items)))
            yield replace(update, deltas=update.deltas | {"item": rows})
