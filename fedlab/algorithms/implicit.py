"""Federated implicit matrix factorisation: each client solves for its own user's vector.

The server follows the items' gradients. The loss gives a small weight to all films that a user has
not met, so no negatives are drawn:

    L = sum_{u,i clicked} (1 - p_u.q_i)^2 + unseen N / (U I) sum_{u,i} (p_u.q_i)^2
        + pull (sum_u (n_u + unseen n) / (1 + unseen) |p_u|^2
                + sum_i (n_i + unseen m) / (1 + unseen) |q_i|^2)

    with n = N / U, m = N / I, pull = regularisation / sqrt(n)

Neither strength knows a size. All pairs together weigh `unseen` times what the clicks weigh. A user
with n clicks is pulled to zero by regularisation sqrt(n) clicks: so many are chance, as counts have
a standard deviation of sqrt(n). So few clicks are pulled harder, for their number, than many. Below
a pull of 1 the best model is never zero: make all scores e^2, by a number e in each vector, and the
loss changes by 2 N (pull - 1) e^2 and terms of e^4.

Rendle's weights are w0 = unseen n / I and reg = pull / (1 + unseen). So unseen = w0 I / n, and
regularisation = reg (1 + unseen) sqrt(n).

What must be known of others is n, beside the numbers of users and items. It is a sum over clients,
over their number; the server hears it, unless it is told one (`mean_clicks`). Where nobody may
learn such a sum, as in a private run, it must be told.

What a client needs of the films it never met is in Q'Q (D, D), which the server sends; what the
server needs of them is in the sum of p_u p_u' (D, D), which the clients send. So nobody moves the
whole table. A single p_u p_u' gives away the user's vector: it is private only in a sum, by secure
aggregation.

The server's half needs no step size. With G the mean of p_u p_u', the curvature of the mean loss in
an item's vector is

    sum_{u clicked i} p_u p_u' / U + w0 G + reg (n_i / U + w0) ~ (c n_i / U + w0) (G + reg)

as if those who clicked the item were like all, but for c = `CAUTION`. So one rotation, along whose
axes G is diagonal, gives every item its step of Newton. n_i is the sum of `clicks`, a number for
each row that a client sends. Of a part of the clients, the server goes a part of the way: the
share of them that took part, or 1 / sqrt(t) in the t-th step where that is more.

To recommend, a client solves its vector anew, and may weigh what it clicked last more: what one
watches next follows from it, and nothing of that leaves the client.

Letters: U users, I items, C clients in a cohort, D dimensions, N clicks, n_u and n_i of them of a
user and of a film. Sources: Ammad-ud-din et al. 2019, "Federated collaborative filtering for
privacy-preserving personalized recommendation system", algorithm 1; Hu, Koren, Volinsky 2008;
Rendle et al. 2022, "Revisiting the performance of iALS on item recommendation benchmarks", eq. 3
and 12 (the regularisation, nu = 1); Robbins, Monro 1951, "A stochastic approximation method" (steps
that shrink).
"""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedlab.core import (
    Delta,
    Key,
    Local,
    Round,
    RoundContext,
    Rows,
    Score,
    Summed,
    Tree,
    Update,
    add_rows,
    compiled_loops,
    knob,
    register,
    require,
    whole,
)
from fedlab.data import Federation, Source, layout_of, own_rows, recent
from fedlab.engine.fused import CLICK, Clicks, Strength
from fedlab.evaluation import scorer
from fedlab.models import Model

if TYPE_CHECKING:
    from fedlab.engine.fused.least_squares import Compiled

GROUP = "implicit"
GROUP_SIZE = 256  # clients at a time, of whom each sends D x D numbers
CAUTION = 5.0  # how much more than of all clients the curvature may be of those who clicked an item
MOMENTUM = 0.5  # share of the last step that stays where all take part
FARTHEST = 1.0  # that an item moves in a step: vectors of that length give scores of 1
NOTHING, SURE = (
    0.02,
    10,
)  # scores below which nothing is learned, and the step from which that is so


def recency() -> float:
    """The knob of all methods in which a client recommends from its own clicks."""
    power: float = knob(
        0.0,
        0.0,
        10.0,
        "",
        "a click weighs (1 + own clicks since) ** -recency where a client recommends; in training "
        "all weigh 1",
        usual=(0.0, 2.0),
        group=GROUP,
    )
    return power


@register
class Implicit(Local):
    """Each client solves its own vector; the server takes a step of Newton for every item.

    It is for a model with the parameters `user` and `item`, one client per user; biases stay as
    they are. It brings the size of the server's step: server_lr=1 is right at any size.
    """

    unseen: float = knob(
        10.0,
        1e-6,
        1e6,
        "times the clicks",
        "implicit: weight of all pairs of user and item together, clicked or not",
        log=True,
        usual=(0.5, 50.0),
        group=GROUP,
    )
    regularisation: float = knob(
        1.0,
        1e-9,
        1e3,
        "sqrt(n) clicks",
        "implicit: pull on the vectors to zero; a user with the mean of n clicks is pulled by as "
        "much as sqrt(n) clicks",
        log=True,
        usual=(0.1, 3.0),
        group=GROUP,
    )
    recency: float = recency()
    mean_clicks: float = knob(
        0.0,
        0.0,
        1e9,
        "clicks a user",
        "implicit: what the server is told instead of the mean over clients; 0 takes that mean, "
        "which no private run may",
        usual=(0.0, 200.0),
        group=GROUP,
    )

    def adds(self) -> dict[str, Any]:
        """The facts that all users weigh alike and that second moments are right only in a mean."""
        return {"equal": True, "second moments": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model without such vectors, or data other than clicks.

        And for a private run that would take the clients' mean of clicks.
        """
        model = context.model
        fits = model.rows.get("user") == "user" and model.rows.get("item") == "item"
        require(
            fits and context.data.task == "clicks",
            "model",
            model.name,
            f"{self.name} needs vectors `user` and `item`, on clicks; take matrix factorisation",
        )
        require(
            self.mean_clicks > 0 or not context.private,
            "mean_clicks",
            self.mean_clicks,
            f"{self.name} would take the mean over clients, which noise in what they send does not "
            "hide; tell it what is known without them, say 20",
        )

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """The gradients of the items, who clicked them, and the sum of p_u p_u'."""
        items = context.params["item"]
        gram = items.new_zeros(1, items.shape[1], items.shape[1])
        clicks = items.new_zeros(len(items))
        return {"item": (items, "item"), "clicks": (clicks, "item"), "gram": (gram, "one")}

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield each client's vector, the negative half gradients of its items, and p_u p_u'.

        And `CLICK` for each of the items. The vector stays with the client.
        """
        items, users = context.params["item"], context.params["user"]
        solver = self._solver(items, self.strength(context.data, len(items)))
        for here in cohort.split(GROUP_SIZE):
            clicks, owners = clicked(context.data, here)
            vectors, item, losses = solver.gradients(clicks)
            client, films, owners = (t.to(item.device) for t in (*click_rows(clicks), owners))
            clients, ones = torch.arange(len(here), device=item.device), torch.ones_like(losses)
            outer, none = vectors[:, :, None] * vectors[:, None], torch.zeros_like(owners)
            sent = {
                "item": Rows(item, films, client),
                "clicks": Rows(torch.full_like(item[:, 0], CLICK), films, client),
                "gram": Rows(outer, none, clients),
                "user": Rows(vectors - users.index_select(0, owners), owners, clients),
            }
            yield Update(sent, ones, losses, here, ones)

    def train_summed(
        self, context: RoundContext, cohort: Tensor, weights: Tensor, longest: float
    ) -> Summed | None:
        """What `train` yields, added up in the cache; None without compiled loops."""
        items, users = context.params["item"], context.params["user"]
        solver = self._solver(items, self.strength(context.data, len(items)))
        layout = layout_of(context.data)
        if isinstance(solver, Plain) or layout is None or not layout.items:
            return None  # or an item may come twice
        clicks, owners = clicked(context.data, cohort)
        vectors, found = solver.summed(clicks, weights, longest)
        losses, lengths = (torch.from_numpy(column) for column in (found.losses, found.lengths))
        ones = torch.ones_like(losses)
        moved = Rows(vectors - users.index_select(0, owners), owners, torch.arange(len(cohort)))
        return Summed(
            Update({}, ones, losses, cohort, ones),
            lengths,
            {"item": torch.from_numpy(clicks.counts), "one": torch.ones_like(owners)},
            {
                "item": torch.from_numpy(found.item),
                "clicks": torch.from_numpy(found.clicks),
                "gram": torch.from_numpy(found.gram).view_as(context.server["gram"]),
            },
            {"user": moved},
        )

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """A step of Newton on the mean loss, by all items, with what the server remembers.

        The negative half gradient is made of the gradients as sent and of what `gram` implies for
        all items.
        """
        items, memory = context.params["item"], context.memory(self)
        w0, reg = self.strength(context.data, len(items))
        (gram,) = whole(delta["gram"], context.server["gram"])
        clicks = whole(delta["clicks"], context.server["clicks"]) / CLICK
        gradient = whole(delta["item"], items) - w0 * (items @ gram + reg * items)
        steps = memory.get("steps", 0) + 1
        size = max(context.share, steps**-0.5)
        memory["steps"] = steps
        memory["gram"] = torch.lerp(memory.get("gram", gram), gram, size)
        memory["clicks"] = torch.lerp(
            memory.get("clicks", clicks), clicks, max(context.share, 1 / steps)
        )
        step = size * newton(gradient, memory["gram"], memory["clicks"], Strength(w0, reg))
        if "step" in memory:
            step += MOMENTUM * context.share * memory["step"]
        memory["step"] = step.clone()  # as a delta is used up
        if steps >= SURE and not context.private:
            self._warn(memory, items, context)
        return {"item": step}

    def strength(self, data: Source, items: int) -> Strength:
        """Rendle's w0 and reg for these clients and as many items.

        >>> from fedlab.data import Columns
        >>> clicks = {"item": torch.arange(400) % 100, "target": torch.ones(400)}
        >>> data = Columns(clicks, torch.arange(400) // 16)  # 25 users of 16 clicks
        >>> Implicit(unseen=4.0, regularisation=2.0).strength(data, 100)
        Strength(w0=0.64, reg=0.1)
        """
        mean = self.mean_clicks or float(data.counts.sum()) / len(data)
        return Strength.of(mean, items, self.unseen, self.regularisation)

    def _warn(self, memory: dict[str, Any], items: Tensor, context: RoundContext) -> None:
        """Warn where nothing is learned: the clicks' scores, of at most |p| |q|, are about zero."""
        clicks, told = memory["clicks"], self.mean_clicks
        heard = float(clicks.sum())
        square = memory["gram"].trace() * (clicks @ items.square().sum(1)) / heard
        if not float(square) < NOTHING**2:
            return
        if told > 2 * heard:
            name, fix = "mean_clicks", f"users have about {heard:.3g} each; tell that"
        elif self.regularisation**2 >= heard:
            name, fix = "regularisation", "it pulls harder than the clicks hold; choose less, say 1"
        else:
            name, fix = "unseen", "all else outweighs the clicks; choose less, say 10"
        said = (
            f"{name}={getattr(self, name):g}: implicit learns next to nothing with it, after "
            f"{memory['steps']} steps scores of clicks are below {NOTHING} of 1; {fix}"
        )
        context.notes["warning"] = said
        if memory["steps"] == SURE:
            warnings.warn(said, stacklevel=5)  # where Rounds are asked for

    def score(self, model: Model, data: Any, done: Round) -> Score:
        """Solve every user's vector anew, as its client does to recommend, and predict with it."""
        return scorer(model, self.personal(data, done.params), data.owner)

    def personal(self, data: Federation, params: Tree) -> Tree:
        """The parameters with every user's vector solved against the films as they are now.

        Each client would solve its own in the same way.
        """
        clicks, owners = clicked(data, torch.arange(len(data)))
        if self.recency:
            client, films = click_rows(clicks)
            mine = recent(data.train, self.recency)[data.rows(owners[client], films)]
            clicks = clicks._replace(weights=mine.numpy())
        users = params["user"].clone()
        items = params["item"]
        solver = self._solver(items, self.strength(data, len(items)))
        users[owners.to(users.device)] = solver.vectors(clicks)
        return params | {"user": users}

    def recommend(self, weights: Tree, clicks: Tensor) -> Tensor:
        """Scores (I,) of all items for somebody, known here or not.

        weights: of matrix factorisation, `item` (I, D) and `bias` (I,). clicks (I,): how much each
        weighs, as `recent` says, 0 where there is none. The vector is solved as a client solves its
        own; `mean_clicks` must be told, as there are no clients here to take it of.
        """
        fix = "tell the mean of the clicks of a user in training, which strengths go by"
        require(self.mean_clicks > 0, "mean_clicks", self.mean_clicks, fix)
        films, mine = weights["item"], clicks.nonzero()[:, 0]
        own = mine.numpy().astype(np.int32), clicks[mine].numpy()
        how = Strength.of(self.mean_clicks, len(films), self.unseen, self.regularisation)
        one = Clicks(np.zeros(1, np.int64), np.array([len(mine)]), *own)
        (vector,) = self._solver(films, how).vectors(one)
        return films @ vector + weights["bias"]

    def _solver(self, items: Tensor, how: Strength) -> "Plain | Compiled":
        """What solves for the clients' vectors, given the items'."""
        fit = items.is_cpu and items.dtype == torch.float32 and items.is_contiguous()
        if not fit or compiled_loops() is None:
            return Plain(items, how)
        from fedlab.engine.fused.least_squares import Compiled  # noqa: PLC0415 - loads numba

        return Compiled(items, how)


def newton(gradient: Tensor, gram: Tensor, clicks: Tensor, how: Strength) -> Tensor:
    """The items' steps (I, D) for negative half gradients (I, D) of the mean loss.

    gram (D, D): mean of p p'. clicks (I,): mean number of clicks. Noise may have made either
    negative, which curvature is not. No item goes farther than `FARTHEST`.

    >>> one = torch.ones(1, 1)
    >>> newton(one, 3 * one, torch.tensor([0.2]), Strength(1.0, 1.0))  # 1 / ((5 * 0.2 + 1) (3 + 1))
    tensor([[0.1250]])
    """
    squares, axes = torch.linalg.eigh((gram + gram.T).double() / 2)
    squares, axes = squares.clamp(min=0).to(gradient), axes.to(gradient)
    curvature = (CAUTION * clicks.clamp(min=0) + how.w0)[:, None] * (squares + how.reg)
    step = (gradient @ axes / curvature) @ axes.T
    return step * (FARTHEST / step.norm(dim=1, keepdim=True)).clamp(max=1)


class Plain:
    """The same as `Compiled`, which solves for the vectors, by torch, on any device."""

    def __init__(self, items: Tensor, how: Strength) -> None:
        """Multiply once for all clients."""
        self.items, self.fine, (self.w0, self.reg) = items, items.double(), how
        self.gram = self.fine.T @ self.fine

    def vectors(self, clicks: Clicks) -> Tensor:
        """The clients' vectors (C, D)."""
        where = np.stack([clicks.starts, clicks.starts + clicks.counts], 1)
        groups = torch.from_numpy(where).split(GROUP_SIZE)
        return torch.cat([self._solved(clicks, group.tolist()) for group in groups])

    def gradients(self, clicks: Clicks) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (C, D), negative half gradients of the items clicked (n, D), losses (C,)."""
        vectors = self.vectors(clicks)
        client, films = (column.to(vectors.device) for column in click_rows(clicks))
        mine, rows = vectors.index_select(0, client), self.items.index_select(0, films)
        miss = 1 - (mine * rows).sum(1)
        losses = self.w0 * ((vectors @ self.gram.float()) * vectors).sum(1)
        losses = add_rows(losses, client, miss.square()) / torch.bincount(client)
        return vectors, miss[:, None] * mine - self.reg * rows, losses

    def _solved(self, clicks: Clicks, where: list[list[int]]) -> Tensor:
        """The vectors of clients whose clicks are these, from the first to before the last."""
        eye, lefts, rights = torch.eye(len(self.gram)).to(self.gram), list[Tensor](), list[Tensor]()
        for first, last in where:
            films = torch.from_numpy(clicks.items[first:last].astype(np.int64))
            rows = self.fine.index_select(0, films.to(self.fine.device))
            weights = torch.from_numpy(clicks.weights[first:last]).to(rows)
            weights = weights if len(weights) else torch.ones_like(rows[:, 0])
            strength = self.reg * (weights.sum() + self.w0 * len(self.items))
            lefts.append((rows.T * weights) @ rows + self.w0 * self.gram + strength * eye)
            rights.append(weights @ rows)
        return torch.linalg.solve(torch.stack(lefts), torch.stack(rights)).to(self.items)


def clicked(data: Source, cohort: Tensor) -> tuple[Clicks, Tensor]:
    """What these clients (C,) clicked, and the user of each (C,).

    Raises `ParameterError` for a client of several users.
    """
    layout, who, none = layout_of(data), cohort.numpy(), np.empty(0, np.float32)
    if layout is not None and layout.items:  # its rows lie by user and item
        starts, counts = layout.starts[who], layout.counts[who]
        items, user = layout.columns["item"], layout.columns.get("user")
    else:
        drawn = {n: c.numpy() for n, c in data.draw(cohort, 1, 0, Key(0, "order")).items()}
        order = np.lexsort([drawn[name] for name in ("item", "user", "client")])
        counts = np.bincount(drawn["client"])
        starts, items, user = counts.cumsum() - counts, drawn["item"][order], drawn["user"][order]
    first, last = (who, who) if user is None else (user[starts], user[starts + counts - 1])
    require(
        bool((first == last).all()),
        "data",
        "platforms",
        "implicit solves one user at each client; set partition='one per user'",
    )
    return Clicks(starts, counts, items, none), torch.from_numpy(first).long()


def click_rows(clicks: Clicks) -> tuple[Tensor, Tensor]:
    """(client (n,), item (n,)) of all clicks, client after client."""
    starts, counts = torch.from_numpy(clicks.starts), torch.from_numpy(clicks.counts)
    client, rows = own_rows(torch.arange(len(counts)), starts, counts)
    return client, torch.from_numpy(clicks.items.take(rows.numpy()).astype(np.int64))
