"""Recommenders as pairs of pure functions: draw the parameters, predict from them.

`predict(p, batch)` sees its parameters already looked up: p['item'] holds the vectors of the
batch's items, (..., B, D), not the whole table. The leading axes are free, so the same line serves
one client, a stacked cohort (A, B, ...) and the scoring of users against candidates. Predictions
are logits for clicks and values for ratings.

Letters: U users, I items, B examples, D dimensions, F features, A clients still active.
Sources: Rendle et al. 2009 and Koren et al. 2009 (matrix factorisation); He et al. 2017, "Neural
collaborative filtering", eq. 9-10 (the interaction model, with an item bias and dropout added).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab.core import Key, SparseTable, Tree, require


class Product(NamedTuple):
    """A gradient (A, F, H), kept as its factors: left (A, F, B) @ right (A, B, H).

    They are multiplied while the gradient is added to the weights.
    """

    left: Tensor
    right: Tensor


Pull = Callable[[Tensor], Mapping[str, Tensor | Product]]
TASKS = ("clicks", "ratings")


def _nothing(client: Tensor, counts: Tensor, key: Key) -> Tree:
    return {}


@dataclass(frozen=True)
class Model:
    """A recommender: functions that draw its parameters and predict from them, and their facts.

    init(seed) -> Tree; axis 0 of each parameter is its rows, and each row is drawn by its number
    and the parameter's name, see `drawn`. predict(parameters at the examples, batch) -> (..., B).
    rows: for each parameter what picks its rows: 'item', 'user', 'pair' (a row for each user and
    item, user * I + item; then some parameter has rows by item), 'client', or 'one' (a single row).
    private: names that never leave a client; their rows go by user, pair or client. constants:
    fixed tables that `predict` looks into, handed to it whole.

    noise(client (C,), counts (C,), key) -> columns (n, ...) drawn for the training examples of
    these clients, counts of each (dropout); empty by default. pullback(parameters, batch) ->
    (predictions, a function from their gradient to the gradient of each parameter at the examples):
    predict's gradient by hand, where that is worth it; None leaves it to autograd. activity: floats
    that `predict` keeps for one example beside its parameters, to plan memory by. module: what the
    model was made from, for `loaded`. kernel: the compiled client in `fedlab/engine/fused` that
    trains exactly this `predict`, or ''. factors(whole parameters and constants, those by user with
    a row for each user) -> users (U, D), items (I, D), bias (I,): for a model whose prediction is
    p_u . q_i + beta_i, the tables of these; else None. penalty(parameters at the examples) ->
    (..., B): what a local update adds to the loss of each example; its gradient is autograd's.
    list_loss: the loss of lists that it learns by, or '', see `fedlab.models.losses`.
    over(parameters at the examples, batch) -> (..., B, K): the predictions of the items of each
    example's list, or of all items where the batch has no column item; None leaves it to `predict`
    and `factors`.
    """

    name: str
    task: str
    init: Callable[[int], Tree]
    predict: Callable[[Tree, Tree], Tensor]
    rows: Mapping[str, str]
    private: frozenset[str] = frozenset()
    constants: Tree = field(default_factory=dict)
    noise: Callable[[Tensor, Tensor, Key], Tree] = _nothing
    pullback: Callable[[Tree, Tree], tuple[Tensor, Pull]] | None = None
    activity: int = 0
    module: nn.Module | None = None
    factors: Callable[[Tree], tuple[Tensor, Tensor, Tensor]] | None = None
    penalty: Callable[[Tree], Tensor] | None = None
    list_loss: str = ""
    over: Callable[[Tree, Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        """Raise `ParameterError` for a task that is unknown and for what cannot be kept private."""
        require(self.task in TASKS, "task", self.task, f"choose one of {', '.join(TASKS)}")
        for name in self.private:
            require(
                self.rows.get(name) in ("user", "pair", "client"),
                "private",
                name,
                "only parameters with rows by user, pair or client can be private",
            )

    @property
    def kernel(self) -> str:
        """The compiled client in `fedlab/engine/fused` that trains this very `predict`, or ''."""
        return getattr(self.predict, "kernel", "")

    def pairs(self, params: Tree, columns: Tree) -> Tree:
        """The column `pair`, where a parameter has rows by it, of columns user and item."""
        if "pair" not in self.rows.values():
            return {}
        items = next(len(params[name]) for name, kind in self.rows.items() if kind == "item")
        return {"pair": columns["user"] * items + columns["item"]}

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each example: cross-entropy for clicks, squared error for ratings.

        For an example with K targets it is their mean.
        """
        if self.task == "clicks":
            loss = binary_cross_entropy_with_logits(prediction, target, reduction="none")
        else:
            loss = (prediction - target).square()
        return loss.mean(-1) if loss.dim() > 2 else loss

    def slope(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The derivative of each example's loss by its prediction."""
        if self.task == "clicks":  # s(y) - t, of which a small rest is not lost beside a 1
            slope = sigmoid(prediction) * (1 - target) - sigmoid(-prediction) * target
        else:
            slope = 2 * (prediction - target)
        return slope / prediction.shape[-1] if prediction.dim() > 2 else slope


def drawn(seed: int, name: str, rows: int, columns: int) -> Tensor:
    """Normal first values (R, D) of the parameter `name`, each row drawn by its number.

    More rows therefore change none of these.
    """
    return Key(seed, f"init {name}").normal(torch.arange(rows), columns)


def uniform(seed: int, name: str, fan: int, rows: int, columns: int) -> Tensor:
    """First values (R, D) of a layer with `fan` inputs, as `nn.Linear` has them; by row, too."""
    luck = Key(seed, f"init {name}").uniform(torch.arange(rows), columns)
    return ((luck * 2 - 1) / fan**0.5).float()


def sigmoid(x: Tensor) -> Tensor:
    """The sigmoid, with the same bits for a number wherever in a tensor it stands.

    On a CPU torch's own takes 32 numbers at a time and the rest one by one, by another exp; so the
    rest is filled up to 32. (1 / (1 + exp(-x)) in single operations would cost 7% of a small
    round.)
    """
    count, x = x.numel(), x.contiguous()
    if torch.compiler.is_compiling() or count % 32 == 0:
        return x.sigmoid()
    filled = x.new_zeros(count + -count % 32)
    filled[:count] = x.view(-1)
    return filled.sigmoid_()[:count].view_as(x)


def check_sizes(**sizes: int) -> None:
    """Raise `ParameterError` unless all are whole numbers of 1 or more."""
    for name, size in sizes.items():
        require(
            isinstance(size, int) and size > 0, name, size, "choose a whole number of 1 or more"
        )


DISTINCT = 4096  # different first vectors among sparse users


def matrix_factorisation(
    users: int,
    items: int,
    dim: int = 32,
    *,
    task: str = "clicks",
    private_users: bool = True,
    sparse_users: bool = False,
    spread: float = 0.1,
) -> Model:
    """`y = p_u . q_i + beta_i`; `spread` is the standard deviation of the first vectors.

    sparse_users: store a private user vector once it has trained, for federations of very many
    users.
    """
    check_sizes(users=users, items=items, dim=dim)
    require(
        private_users or not sparse_users,
        "sparse_users",
        sparse_users,
        "only private users can be sparse",
    )

    def init(seed: int) -> Tree:
        first = drawn(seed, "user", min(users, DISTINCT) if sparse_users else users, dim) * spread
        # a SparseTable answers as a Tensor in all that is asked of private rows
        user = cast(Tensor, SparseTable.untouched(users, first)) if sparse_users else first
        return {
            "user": user,
            "item": drawn(seed, "item", items, dim) * spread,
            "bias": torch.zeros(items),
        }

    def predict(p: Tree, batch: Tree) -> Tensor:
        return (p["user"] * p["item"]).sum(-1) + p["bias"]

    def pullback(p: Tree, batch: Tree) -> tuple[Tensor, Pull]:
        user, item = p["user"], p["item"]  # (A, B, D), or (A, 1, D) of a client's one user

        def pull(g: Tensor) -> Mapping[str, Tensor | Product]:  # (A, B)
            single = user.shape[1] == 1 and item.shape[2] > 1
            mine = torch.bmm(g.unsqueeze(1), item) if single else g.unsqueeze(-1) * item
            if user.shape[1] == 1 and not single:  # bits of a product of width 1 depend on A
                mine = mine.sum(1, keepdim=True)
            return {"user": mine, "item": g.unsqueeze(-1) * user, "bias": g}

        return predict(p, batch), pull

    predict.kernel = "factors"  # type: ignore[attr-defined]
    return Model(
        "matrix factorisation",
        task,
        init,
        predict,
        {"user": "user", "item": "item", "bias": "item"},
        frozenset({"user"} if private_users else ()),
        pullback=pullback,
        factors=lambda p: (p["user"], p["item"], p["bias"]),
    )


def interaction(
    users: int,
    items: int,
    dim: int = 32,
    *,
    dropout: float = 0.1,
    task: str = "clicks",
    private_users: bool = True,
    spread: float = 0.1,
) -> Model:
    """`y = w . dropout(p_u * q_i) + b + beta_i`; a sigmoid of it is the chance of a click.

    dropout: share of the interaction's entries set to zero in training, from 0 to below 1.
    """
    check_sizes(users=users, items=items, dim=dim)
    require(0 <= dropout < 1, "dropout", dropout, "choose a share from 0 to below 1")
    table = matrix_factorisation(
        users, items, dim, task=task, private_users=private_users, spread=spread
    )

    def init(seed: int) -> Tree:
        return table.init(seed) | {"dense": torch.ones(1, dim, 1), "offset": torch.zeros(1, 1)}

    def noise(client: Tensor, counts: Tensor, key: Key) -> Tree:
        return {"keep": key.keep(client, counts, dim, dropout)} if dropout else {}

    def predict(p: Tree, batch: Tree) -> Tensor:
        h = p["user"] * p["item"]  # (..., B, D)
        if "keep" in batch:
            h = h * batch["keep"] / (1 - dropout)
        return (h @ p["dense"]).squeeze(-1) + p["offset"] + p["bias"]

    predict.kernel = "interaction"  # type: ignore[attr-defined]
    predict.dropout, predict.noise = dropout, noise  # type: ignore[attr-defined]

    def factors(p: Tree) -> tuple[Tensor, Tensor, Tensor]:
        return p["user"] * p["dense"].view(-1), p["item"], p["bias"] + p["offset"].view(-1)

    rows = {**table.rows, "dense": "one", "offset": "one"}
    return Model(
        "interaction", task, init, predict, rows, table.private, noise=noise, factors=factors
    )


def hybrid(
    users: int,
    known: Tensor,
    dim: int = 32,
    *,
    task: str = "clicks",
    private_users: bool = True,
    spread: float = 0.1,
) -> Model:
    """`y = p_u . (q_i + W x_i) + beta_i`: an item by its own row and by what is known of it.

    known: x (I, F), such as narrowed text vectors, so that an item that few have clicked still has
    a vector.
    """
    table = matrix_factorisation(
        users, len(known), dim, task=task, private_users=private_users, spread=spread
    )

    def init(seed: int) -> Tree:
        return table.init(seed) | {"told": torch.zeros(1, known.shape[1], dim)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        item = p["item"] + p["known"][batch["item"]] @ p["told"]  # (..., B, D)
        return (p["user"] * item).sum(-1) + p["bias"]

    return Model(
        "hybrid",
        task,
        init,
        predict,
        {**table.rows, "told": "one"},
        table.private,
        {"known": known},
        factors=lambda p: (p["user"], p["item"] + p["known"] @ p["told"][0], p["bias"]),
    )


def perceptron(inputs: int, hidden: int = 64, *, task: str = "clicks") -> Model:
    """`y = w2 . relu(W1 x + b1) + b2` on a column `x` (n, F) of the examples.

    The first weights are drawn as in `nn.Linear`.
    """
    check_sizes(inputs=inputs, hidden=hidden)

    def init(seed: int) -> Tree:
        return {
            "w1": uniform(seed, "w1", inputs, inputs, hidden)[None],
            "b1": uniform(seed, "b1", inputs, 1, hidden),
            "w2": uniform(seed, "w2", hidden, 1, hidden),
            "b2": uniform(seed, "b2", hidden, 1, 1),
        }

    def layers(p: Tree, batch: Tree) -> tuple[Tensor, Tensor]:
        h = torch.baddbmm(p["b1"].unsqueeze(1), batch["x"], p["w1"]).relu_()  # (A, B, H)
        # 4x faster here than a matrix product of width 1
        return (h * p["w2"].unsqueeze(1)).sum(-1) + p["b2"], h

    def pullback(p: Tree, batch: Tree) -> tuple[Tensor, Pull]:
        y, h = layers(p, batch)

        def pull(g: Tensor) -> Mapping[str, Tensor | Product]:  # (A, B)
            gh = h.sign().mul_(p["w2"].unsqueeze(1)).mul_(g.unsqueeze(-1))
            return {
                "w1": Product(batch["x"].transpose(1, 2), gh),
                "b1": gh.sum(1),
                "w2": torch.bmm(g.unsqueeze(1), h).squeeze(1),
                "b2": g.sum(1, keepdim=True),
            }

        return y, pull

    def predict(p: Tree, batch: Tree) -> Tensor:
        return layers(p, batch)[0]

    predict.kernel = "perceptron"  # type: ignore[attr-defined]
    return Model(
        "perceptron",
        task,
        init,
        predict,
        dict.fromkeys(("w1", "b1", "w2", "b2"), "one"),
        pullback=pullback,
        activity=2 * hidden,
    )
