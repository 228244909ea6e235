"""What one watches next.

A Transformer over a user's last films, with items known by text, by number, or both.

    films h_1 .. h_T -> rows + places -> self-attention, feed-forward -> the state of the last film; score = state . row

It is an `nn.Module` over history and candidate, so it trains through `fedlab.modules` and
`federate` as any other.

Letters: n train ratings, U users, I items, T films of a history, E numbers of a text vector, D
dimensions, B examples. Source: Kang, McAuley 2018, "Self-attentive sequential recommendation"
(SASRec), sections 3.1 to 3.4, with the loss on drawn (history, next film) pairs instead of all
positions at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from fedlab.core import Key, Lookup, Score, Tree, below, require, to
from fedlab.data import Federation, Ratings, from_latest
from fedlab.models import Model


def histories(train: Ratings, length: int) -> Tensor:
    """(n, T) each rating's films of the same user before it, the latest last.

    I, which is no item, fills the front.
    """
    require(1 <= length <= 1000, "length", length, "choose from 1 to 1000 films")
    place, order = _timeline(train)
    films, rows = train.items[order], torch.arange(len(order))
    found = torch.full((len(order), length), train.item_count)
    for back in range(1, length + 1):
        there = place[order] >= back
        found[order[there], length - back] = films[rows[there] - back]
    return found


def last_films(train: Ratings, length: int) -> Tensor:
    """(U, T) each user's latest films of train, as `histories` has them.

    What a recommendation starts from.
    """
    later = from_latest(train)
    recent = later < length
    found = torch.full((train.user_count, length), train.item_count)
    found[train.users[recent], length - 1 - later[recent]] = train.items[recent]
    return found


def _timeline(train: Ratings) -> tuple[Tensor, Tensor]:
    """(how many of the user's ratings are earlier (n,), row numbers by user and time (n,))."""
    counts = torch.bincount(train.users, minlength=train.user_count)
    place = counts[train.users] - 1 - from_latest(train)
    return place, (train.users * (len(train) + 1) + place).argsort()


@dataclass(frozen=True)
class Sequences:
    """A Federation of clicks whose examples have a column `history` (n, T) as well.

    A click comes with the films before it, a drawn negative with those before one of the user's
    clicks, drawn too.
    """

    data: Federation
    length: int = 20

    @property
    def task(self) -> str:
        """'clicks'."""
        return self.data.task

    @property
    def counts(self) -> Tensor:
        """(N,) train ratings of each client."""
        return self.data.counts

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def _known(self) -> tuple[Tensor, ...]:
        """Histories, rows by user and time, and where each user starts among these."""
        train = self.data.train
        _, order = _timeline(train)
        starts = torch.bincount(train.users, minlength=train.user_count).cumsum(0)
        starts = torch.cat([starts.new_zeros(1), starts])
        return histories(train, self.length), order, starts

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns of `Federation.draw`, and history (n, T)."""
        require(self.task == "clicks", "task", self.task,
                "histories are of clicks; set task='clicks'")
        columns = self.data.draw(cohort, epochs, negatives, key)
        table, order, starts = self._known
        user, first = columns["user"], starts[columns["user"]]
        counts = torch.bincount(columns["client"], minlength=len(cohort))
        luck = key.of("histories").runs(cohort, counts)
        drawn = order[first + below(luck, starts[user + 1] - first)]
        row = torch.where(columns["target"] > 0, self.data.rows(user, columns["item"]), drawn)
        return columns | {"history": cast(Tensor, Lookup(table, row))}


class SASRec(nn.Module):
    """history (B, T), item (B,) -> logits (B,); see the top of the file."""

    known: Tensor

    def __init__(self, items: int, vectors: Tensor | None = None, *, dim: int = 32,
                 length: int = 20, heads: int = 2, ids: bool = True) -> None:
        """items: I. vectors: (I, E) of their texts, frozen, or none. ids.

        Whether each item has a row of its own.
        """
        super().__init__()
        require(ids or vectors is not None, "ids", ids,
                "an item needs a row of its own or a text; give one of both")
        require(dim % heads == 0, "heads", heads, f"choose a divisor of dim={dim}")
        self.heads, self.places = heads, nn.Parameter(torch.randn(length, dim) * 0.1)
        self.rows = nn.Parameter(torch.randn(items + 1, dim) * 0.1) if ids else None
        self.bias = nn.Parameter(torch.zeros(items + 1)) if ids else None
        if vectors is not None:
            require(len(vectors) == items, "vectors", tuple(vectors.shape), f"give {items} rows")
            short = narrowed(vectors, 2 * dim)
            self.register_buffer("known", torch.cat([short, torch.zeros(1, short.shape[1])]))
            self.told = nn.Linear(short.shape[1], dim)
        self.inputs, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.before, self.between, self.after = (nn.LayerNorm(dim) for _ in range(3))

    def table(self) -> Tensor:
        """(I + 1, D) a row for each item, and one for none."""
        if not hasattr(self, "told"):
            return cast(Tensor, self.rows)
        told: Tensor = self.told(self.known)
        return told if self.rows is None else told + self.rows

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """(B, T), (B,) -> (B,)."""
        table = self.table()
        none = history == len(table) - 1
        x = table[history] + self.places
        query, key, value = (part.unflatten(-1,
                                            (self.heads,
                                             -1)) for part in self.inputs(self.before(x)).chunk(3,
                                                                                                -1))
        # of the last film to all
        like = torch.einsum("bhd,bthd->bht", query[:, -1], key) / key.shape[-1] ** 0.5
        share = like.masked_fill(none[:, None], -1e9).softmax(-1)
        state = x[:, -1] + self.output(torch.einsum("bht,bthd->bhd", share, value).flatten(1))
        state = self.after(state + self.narrow(self.wide(self.between(state)).relu()))
        logit = (state * table[item]).sum(-1)
        return logit if self.bias is None else logit + self.bias[item]


def narrowed(vectors: Tensor, wide: int) -> Tensor:
    """(I, wide) unit vectors of the main directions of (I, E).

    Most of what texts say, in a fraction of the time.
    """
    centred = vectors - vectors.mean(0)
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    return nn.functional.normalize(left[:, :wide] * size[:wide])


def sequence_scorer(model: Model, params: Tree, films: Tensor, chunk: int = 4096) -> Score:
    """Predictions for users by their last films (U, T).

    A function (users, items of one shape) -> scores on the CPU.
    """
    device = next(iter(params.values())).device
    constants = to(model.constants, device)
    predict: Callable[[Tree, Tree], Tensor] = model.predict

    def score(users: Tensor, items: Tensor) -> Tensor:
        found = []
        for who, what in zip(users.flatten().split(chunk), items.flatten().split(chunk),
                             strict=True):
            batch = {"history": films[who][None].to(device), "item": what[None].to(device)}
            with torch.no_grad():
                found.append(predict(params | constants, batch)[0].cpu())
        return torch.cat(found).view(users.shape)
    return score
