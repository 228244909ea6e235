"""Features of items and users, and the models that predict from them.

Letters: U users, I items, B examples, A clients of a cohort, F features, G genres, H hidden units,
D dimensions of a user's vector, E dimensions of a text vector, N clients.

Sources: Koren, Bell, Volinsky 2009, "Matrix factorization techniques for recommender systems", the
sections on biases and on additional inputs; Arivazhagan et al. 2019, "Federated learning with
personalization layers" (FedPer, a private user vector).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlab.core import Tree, require
from fedlab.data import Catalogue, Interactions
from fedlab.models.model import Model, Product, Pull, check_sizes, drawn, perceptron


def linear(
    item_features: Tensor, user_features: Tensor, *, task: str = "ratings", clients: int = 0
) -> Model:
    """Linear regression `y = theta . x` over x = (item features, user features, 1).

    item_features (I, F1), user_features (U, F2): floats. task: 'ratings' or 'clicks'. clients: 0
    for one theta that all clients share; N for a private theta on each of N clients, in which case
    nothing is sent.

    >>> import torch
    >>> model = linear(torch.zeros(4, 3), torch.zeros(5, 2))
    >>> model.init(torch.Generator())["theta"].shape  # 3 + 2 features and a constant
    torch.Size([1, 6, 1])
    """
    width = item_features.shape[1] + user_features.shape[1] + 1

    def init(seed: int) -> Tree:
        return {"theta": torch.zeros(clients or 1, width, 1)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        item, user = p["item_features"][batch["item"]], p["user_features"][batch["user"]]
        x = torch.cat([item, user, torch.ones_like(item[..., :1])], -1)  # (..., B, F)
        return (x @ p["theta"]).squeeze(-1)

    return Model(
        "linear",
        task,
        init,
        predict,
        {"theta": "client" if clients else "one"},
        frozenset({"theta"} if clients else ()),
        {"item_features": item_features, "user_features": user_features},
    )


def content(
    item_features: Tensor, user_features: Tensor, hidden: int = 32, *, task: str = "clicks"
) -> Model:
    """A perceptron `y = w2 . relu(W1 x + b1) + b2 + beta_i` over x = (item, user, their product).

    item_features (I, F) and user_features (U, F') with F' >= F: the first F columns of both are
    multiplied, so they should mean the same, say the same genres. hidden: H. All parameters are
    shared. Raises `ParameterError` for sizes that do not fit.

    >>> import torch
    >>> model = content(torch.zeros(4, 3), torch.zeros(5, 3), hidden=8)
    >>> model.init(torch.Generator())["bias"].shape
    torch.Size([4])
    """
    check_sizes(hidden=hidden)
    width = item_features.shape[1]
    require(
        user_features.shape[1] >= width,
        "user_features",
        tuple(user_features.shape),
        f"give {width} columns or more",
    )
    layers = perceptron(2 * width + user_features.shape[1], hidden, task=task)

    def init(seed: int) -> Tree:
        return layers.init(seed) | {"bias": torch.zeros(len(item_features))}

    def inputs(p: Tree, batch: Tree) -> Tree:
        item, user = p["item_features"][batch["item"]], p["user_features"][batch["user"]]
        return {"x": torch.cat([item, user, item * user[..., :width]], -1)}  # (A, B, F)

    def predict(p: Tree, batch: Tree) -> Tensor:
        return layers.predict(p, inputs(p, batch)) + p["bias"]

    def pullback(p: Tree, batch: Tree) -> tuple[Tensor, Pull]:
        assert layers.pullback is not None
        y, below = layers.pullback(p, inputs(p, batch))

        def pull(
            g: Tensor,
        ) -> Mapping[str, Tensor | Product]:  # (A, B); a client's one item: (A, 1)
            single = p["bias"].shape[1] < g.shape[1]
            return {**below(g), "bias": g.sum(1, keepdim=True) if single else g}

        return y + p["bias"], pull

    predict.kernel = "content"  # type: ignore[attr-defined]
    return Model(
        "content",
        task,
        init,
        predict,
        {**layers.rows, "bias": "item"},
        constants={"item_features": item_features, "user_features": user_features},
        pullback=pullback,
        activity=2 * hidden + 3 * width,
    )


def item_features(catalogue: Catalogue) -> Tensor:
    """Features (I, G + 1) of items: genres as 0 or 1, and the year in units of 20 years from 1990.

    An unknown year counts as 1990.

    >>> from fedlab.data import load
    >>> item_features(load().catalogue).shape
    torch.Size([9066, 20])
    """
    years = torch.where(catalogue.years > 0, (catalogue.years - 1990) / 20, 0.0)
    return torch.cat([catalogue.categories.float(), years[:, None]], 1)


def user_features(train: Interactions, strength: float = 5.0) -> Tensor:
    """Features (U, 2) of users from train: mean rating and log activity, both centred.

    The mean rating is given as its distance to the overall mean and shrunk towards it. strength:
    the average ratings that each user is imagined to have given already, above 0, else
    `ParameterError`.

    >>> from fedlab.data import load
    >>> user_features(load()).shape
    torch.Size([671, 2])
    """
    require(strength > 0, "strength", strength, "choose a positive number of imagined ratings")
    counts = torch.bincount(train.users, minlength=train.user_count).float()
    above = torch.zeros(train.user_count).index_add_(
        0, train.users, train.values - train.values.mean()
    )
    activity = counts.clamp(min=1).log()
    return torch.stack([above / (counts + strength), (activity - activity.mean()) / 2], 1)


def genre_profile(train: Interactions, strength: float = 20.0) -> Tensor:
    """Log of each user's share of a genre (U, G) in train over the share among all ratings.

    strength: the average items that each user is imagined to have rated already, above 0, else
    `ParameterError`.

    >>> from fedlab.data import load
    >>> genre_profile(load()).shape
    torch.Size([671, 19])
    """
    require(strength > 0, "strength", strength, "choose a positive number of imagined films")
    genres = train.catalogue.categories[train.items].float()
    usual = genres.sum(0) / genres.sum() + 1e-6
    watched = torch.zeros(train.user_count, genres.shape[1]).index_add_(0, train.users, genres)
    share = (watched + strength * usual) / (watched.sum(1, keepdim=True) + strength)
    return (share / usual).log()


def history(train: Interactions, vectors: Tensor) -> Tensor:
    """The mean vector (U, E) of each user's train items, less the mean over all train ratings.

    vectors (I, E): one for each item, else `ParameterError`. Users without ratings get zeros.

    >>> from fedlab.data import load
    >>> train = load()
    >>> history(train, train.catalogue.categories.float()).shape
    torch.Size([671, 19])
    """
    require(
        len(vectors) == train.item_count,
        "vectors",
        tuple(vectors.shape),
        f"give {train.item_count} rows",
    )
    counts = torch.bincount(train.users, minlength=train.user_count).clamp(min=1)
    clicked = vectors[train.items]
    total = torch.zeros(train.user_count, vectors.shape[1]).index_add_(
        0, train.users, clicked - clicked.mean(0)
    )
    return total / counts[:, None]


def user_factor_model(
    items: int,
    dim: int = 8,
    known: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    task: str = "ratings",
    spread: float = 0.1,
    clients: int = 0,
) -> Model:
    """`y = c + b_i + w . x_i + s u_0 + (q_i + W x_i) . u`: item factors and one user vector.

    The user's vector (u_0, u) is shared until a client adapts it to its own ratings. No parameter
    has rows by user, so a new user starts where everybody else does. In the parameters, 'offset' is
    c, 'bias' is b, 'told' is (w, W), 'scale' is s, 'item' is q and 'user' is (u_0, u).

    items: I. dim: D. known (I, F): features x of the items, or None. bias (I,): the first b, such
    as the items' means, or None for zeros. spread: standard deviation of the first q. clients: 0
    for one shared user vector; N for a private one on each of N clients (FedPer). Raises
    `ParameterError` for sizes that do not fit.

    >>> import torch
    >>> model = user_factor_model(items=4, dim=2)
    >>> model.init(torch.Generator().manual_seed(0))["user"].tolist()
    [[0.0, 0.0, 0.0]]
    """
    check_sizes(items=items, dim=dim)
    known = torch.zeros(items, 1) if known is None else known
    bias = torch.zeros(items) if bias is None else bias
    require(len(known) == items, "known", tuple(known.shape), f"give {items} rows")
    require(bias.shape == (items,), "bias", tuple(bias.shape), f"give ({items},)")

    def init(seed: int) -> Tree:
        item = drawn(seed, "item", items, dim) * spread
        return {
            "user": torch.zeros(clients or 1, dim + 1),
            "item": item,
            "bias": bias.clone(),
            "offset": torch.zeros(1, 1),
            "scale": torch.full((1, 1), 0.5),
            "told": torch.zeros(1, known.shape[1], dim + 1),
        }

    def predict(p: Tree, batch: Tree) -> Tensor:
        from_known = p["known"][batch["item"]] @ p["told"]  # (..., B, D + 1): w . x_i, then W x_i
        user = p["user"].unsqueeze(-2)  # (..., 1, D + 1): u_0, then u
        product = ((p["item"] + from_known[..., 1:]) * user[..., 1:]).sum(-1)
        return p["offset"] + p["bias"] + from_known[..., 0] + p["scale"] * user[..., 0] + product

    rows = {
        "user": "client" if clients else "one",
        "item": "item",
        "bias": "item",
        "offset": "one",
        "scale": "one",
        "told": "one",
    }
    return Model(
        "taste", task, init, predict, rows, frozenset({"user"} if clients else ()), {"known": known}
    )
