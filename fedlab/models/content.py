"""What is known of films and users besides ratings, and the models that predict from it.

Letters: U users, I items, B examples, F features, G genres, H hidden units, n pairs.
"""

import torch
from torch import Tensor

from fedlab.core import Tree, require
from fedlab.data import Catalogue, Ratings
from fedlab.models.model import Model, check_sizes, drawn, perceptron


def linear(item_features: Tensor, user_features: Tensor, *, task: str = "ratings",
           clients: int = 0) -> Model:
    """`y = theta . x`, where x is (item features, user features, 1): (I, F1) and (U, F2) floats.

    clients: 0 for one shared theta; N for a private theta on each of N clients, so that nothing is
    sent.
    """
    width = item_features.shape[1] + user_features.shape[1] + 1

    def init(seed: int) -> Tree:
        return {"theta": torch.zeros(clients or 1, width, 1)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        item, user = p["item_features"][batch["item"]], p["user_features"][batch["user"]]
        x = torch.cat([item, user, torch.ones_like(item[..., :1])], -1)   # (..., B, F)
        return (x @ p["theta"]).squeeze(-1)

    return Model("linear", task, init, predict, {"theta": "client" if clients else "one"},
                 frozenset({"theta"} if clients else ()),
                 {"item_features": item_features, "user_features": user_features})


def content(item_features: Tensor, user_features: Tensor, hidden: int = 32, *,
            task: str = "clicks") -> Model:
    """`y = w2 . relu(W1 x + b1) + b2 + beta_i`, x = (item, user, their product).

    All parameters are shared.

    item_features (I, F), user_features (U, F') with F' >= F: the first F of both are multiplied;
    give the same genres.
    """
    check_sizes(hidden=hidden)
    wide, both = item_features.shape[1], item_features.shape[1] + user_features.shape[1]
    require(user_features.shape[1] >= wide, "user_features", tuple(user_features.shape),
            f"give {wide} columns or more")
    layers = perceptron(both + wide, hidden, task=task)

    def init(seed: int) -> Tree:
        return layers.init(seed) | {"bias": torch.zeros(len(item_features))}

    def predict(p: Tree, batch: Tree) -> Tensor:
        item, user = p["item_features"][batch["item"]], p["user_features"][batch["user"]]
        x = torch.cat([item, user, item * user[..., :wide]], -1)  # (A, B, F)
        return layers.predict(p, {"x": x}) + p["bias"]

    return Model("content", task, init, predict, {**layers.rows, "bias": "item"},
                 constants={"item_features": item_features, "user_features": user_features},
                 activity=2 * hidden + 3 * wide)


def item_features(catalogue: Catalogue) -> Tensor:
    """(I, G + 1) what a film says of itself.

    Its genres as 0/1, and its year in units of 20 years from 1990.
    """
    years = torch.where(catalogue.years > 0, (catalogue.years - 1990) / 20, 0.0)
    return torch.cat([catalogue.genres.float(), years[:, None]], 1)


def user_features(train: Ratings, strength: float = 5.0) -> Tensor:
    """(U, 2) from train alone.

    A user's mean value, shrunk to the overall one, and log activity, centred.

    strength: how many average ratings each user is imagined to have given already.
    """
    require(strength > 0, "strength", strength, "choose a positive number of imagined ratings")
    counts = torch.bincount(train.users, minlength=train.user_count).float()
    above = torch.zeros(train.user_count).index_add_(0, train.users,
                                                     train.values - train.values.mean())
    activity = counts.clamp(min=1).log()
    return torch.stack([above / (counts + strength), (activity - activity.mean()) / 2], 1)


def genre_profile(train: Ratings, strength: float = 20.0) -> Tensor:
    """(U, G) how much more of each genre a user watched in train than all do.

    The log of the ratio of shares.

    strength: how many average films each user is imagined to have watched already.
    """
    require(strength > 0, "strength", strength, "choose a positive number of imagined films")
    genres = train.catalogue.genres[train.items].float()
    usual = genres.sum(0) / genres.sum() + 1e-6
    watched = torch.zeros(train.user_count, genres.shape[1]).index_add_(0, train.users, genres)
    share = (watched + strength * usual) / (watched.sum(1, keepdim=True) + strength)
    return (share / usual).log()


def history(train: Ratings, vectors: Tensor) -> Tensor:
    """(U, E) the mean of the vectors (I, E) of a user's films in train.

    Less the mean over all clicks.
    """
    require(len(vectors) == train.item_count, "vectors", tuple(vectors.shape),
            f"give {train.item_count} rows")
    counts = torch.bincount(train.users, minlength=train.user_count).clamp(min=1)
    clicked = vectors[train.items]
    total = torch.zeros(train.user_count, vectors.shape[1]).index_add_(0, train.users,
                                                                       clicked - clicked.mean(0))
    return total / counts[:, None]


def user_factor_model(items: int, dim: int = 8, known: Tensor | None = None, *,
                      bias: Tensor | None = None, task: str = "ratings", spread: float = 0.1,
                      clients: int = 0) -> Model:
    """`y = c + b_i + w . x_i + s u_0 + (q_i + W x_i) . u`.

    One vector (u_0, u) of a client, shared until it adapts.

    known: x (I, F) of the items, or none. bias (I,): b at the start, such as items' means, or
    zeros. No rows by user: one whom nobody knows starts with the rest. clients: 0 for that; N for
    one on each of N clients: FedPer.
    """
    check_sizes(items=items, dim=dim)
    known, bias = (torch.zeros(shape) if t is None else t for t, shape in ((known, (items, 1)),
                                                                           (bias, (items,))))
    require(len(known) == items, "known", tuple(known.shape), f"give {items} rows")
    require(bias.shape == (items,), "bias", tuple(bias.shape), f"give ({items},)")

    def init(seed: int) -> Tree:
        item = drawn(seed, "item", items, dim) * spread
        return {"user": torch.zeros(clients or 1, dim + 1), "item": item,
                "bias": bias.clone(), "offset": torch.zeros(1, 1), "scale": torch.full((1, 1), 0.5),
                "told": torch.zeros(1, known.shape[1], dim + 1)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        told = p["known"][batch["item"]] @ p["told"]  # (..., B, D + 1)
        user = p["user"].unsqueeze(-2)  # (..., 1, D + 1)
        like = ((p["item"] + told[..., 1:]) * user[..., 1:]).sum(-1)
        return p["offset"] + p["bias"] + told[..., 0] + p["scale"] * user[..., 0] + like

    return Model("taste", task, init, predict, {"user": "client" if clients else "one",
                                                "item": "item", "bias": "item", "offset": "one",
                                                "scale": "one", "told": "one"},
                 frozenset({"user"} if clients else ()), {"known": known})
