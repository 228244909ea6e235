"""Next-item prediction: a Transformer over a user's latest items (SASRec).

    items h_1 .. h_T -> rows + positions -> self-attention, feed-forward -> state of the last item
    score of a candidate = state . its row

Items are known by a learned row, by their text, or by both. `SASRec` is an `nn.Module` over history
and candidate, so `fedlab.models.from_module` and `federate` train it like any other.

Letters: n train ratings, U users, I items, T items of a history, E dimensions of a text vector, D
dimensions of a row, H attention heads, B examples.

Source: Kang, McAuley 2018, "Self-attentive sequential recommendation" (SASRec), sections 3.1 to
3.4; the loss is taken on drawn pairs of a history and its next item, not on all positions at once.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedlab.core import Key, Lookup, Tree, below, require, to
from fedlab.data import Federation, Interactions, from_latest
from fedlab.models import Factored, Model, factored, loaded


def histories(train: Interactions, length: int) -> Tensor:
    """The items (n, T) that the same user rated before each rating, the latest one last.

    length: T, from 1 to 1000, else `ParameterError`. Shorter histories are filled at the front with
    I, which is not the number of any item.

    >>> from fedlab.data import load
    >>> train = load().take(torch.arange(4))  # four ratings of one user, the earliest first
    >>> train.items.tolist()
    [1815, 1962, 2925, 1083]
    >>> histories(train, 2).tolist()
    [[9066, 9066], [9066, 1815], [1815, 1962], [1962, 2925]]
    """
    require(1 <= length <= 1000, "length", length, "choose from 1 to 1000 films")
    place, order = _timeline(train)
    films, rows = train.items[order], torch.arange(len(order))
    found = torch.full((len(order), length), train.item_count)
    for back in range(1, length + 1):
        there = place[order] >= back
        found[order[there], length - back] = films[rows[there] - back]
    return found


def last_films(train: Interactions, length: int) -> Tensor:
    """The latest items (U, T) of each user, filled like `histories`: where a recommendation starts.

    >>> from fedlab.data import load
    >>> train = load().take(torch.arange(4))  # four ratings of the first of 671 users
    >>> last_films(train, 3)[:2].tolist()
    [[1962, 2925, 1083], [9066, 9066, 9066]]
    """
    later = from_latest(train)
    recent = later < length
    found = torch.full((train.user_count, length), train.item_count)
    found[train.users[recent], length - 1 - later[recent]] = train.items[recent]
    return found


def _timeline(train: Interactions) -> tuple[Tensor, Tensor]:
    """Two (n,): how many earlier ratings the user has, and the rows ordered by user and time."""
    counts = torch.bincount(train.users, minlength=train.user_count)
    place = counts[train.users] - 1 - from_latest(train)
    return place, (train.users * (len(train) + 1) + place).argsort()


@dataclass(frozen=True)
class Sequences:
    """A federation of clicks whose examples carry a further column, history (n, T).

    A click comes with the items before it. A drawn negative comes with the items before one of the
    user's clicks, which is drawn as well. data: a `Federation` of clicks. length: T.
    """

    data: Federation
    length: int = 20

    @property
    def task(self) -> str:
        """The task of the federation; only 'clicks' can be drawn from."""
        return self.data.task

    @property
    def counts(self) -> Tensor:
        """Train ratings of each client (N,)."""
        return self.data.counts

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def _known(self) -> tuple[Tensor, ...]:
        """All histories, the rows by user and time, and where each user starts among them."""
        train = self.data.train
        _, order = _timeline(train)
        starts = torch.bincount(train.users, minlength=train.user_count).cumsum(0)
        starts = torch.cat([starts.new_zeros(1), starts])
        return histories(train, self.length), order, starts

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns of `Federation.draw` and the column history (n, T).

        Raises `ParameterError` for any other task than 'clicks'.
        """
        require(
            self.task == "clicks", "task", self.task, "histories are of clicks; set task='clicks'"
        )
        columns = self.data.draw(cohort, epochs, negatives, key)
        table, order, starts = self._known
        user, first = columns["user"], starts[columns["user"]]
        counts = torch.bincount(columns["client"], minlength=len(cohort))
        luck = key.of("histories").runs(cohort, counts)
        drawn = order[first + below(luck, starts[user + 1] - first)]
        row = torch.where(columns["target"] > 0, self.data.rows(user, columns["item"]), drawn)
        return columns | {"history": cast(Tensor, Lookup(table, row))}


class SASRec(nn.Module):
    """history (B, T) and item (B,) -> logits (B,), as described at the top of this file."""

    known: Tensor

    def __init__(
        self,
        items: int,
        vectors: Tensor | None = None,
        *,
        dim: int = 32,
        length: int = 20,
        heads: int = 2,
        ids: bool = True,
    ) -> None:
        """Draw the first weights from the global generator of torch.

        items: I. vectors: frozen text vectors (I, E), or None. ids: whether items have learned
        rows. dim: D, a multiple of `heads`. length: T. Raises `ParameterError` when an item would
        have neither a text nor a row, and for sizes that do not fit.
        """
        super().__init__()
        require(
            ids or vectors is not None,
            "ids",
            ids,
            "an item needs a row of its own or a text; give one of both",
        )
        require(dim % heads == 0, "heads", heads, f"choose a divisor of dim={dim}")
        self.heads, self.positions = heads, nn.Parameter(torch.randn(length, dim) * 0.1)
        self.rows = nn.Parameter(torch.randn(items + 1, dim) * 0.1) if ids else None
        self.bias = nn.Parameter(torch.zeros(items + 1)) if ids else None
        if vectors is not None:
            require(len(vectors) == items, "vectors", tuple(vectors.shape), f"give {items} rows")
            short = principal_components(vectors, 2 * dim)
            self.register_buffer("known", torch.cat([short, torch.zeros(1, short.shape[1])]))
            self.from_text = nn.Linear(short.shape[1], dim)
        self.query_key_value, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.norm_output = nn.LayerNorm(dim)

    def table(self) -> Tensor:
        """The rows (I + 1, D) of all items, followed by the row of the padding."""
        if not hasattr(self, "from_text"):
            return cast(Tensor, self.rows)
        projected: Tensor = self.from_text(self.known)
        return projected if self.rows is None else projected + self.rows

    def forward(self, history: Tensor, item: Tensor | None = None) -> Tensor:
        """Logits (B,) of the candidates item (B,) after history (B, T).

        Of lists item (B, K) they are (B, K), and without item (B, I), of all items.

        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = SASRec(items=5, dim=8, length=3)
        >>> net(torch.tensor([[5, 0, 1]]), torch.tensor([2])).shape
        torch.Size([1])
        """
        state, table, bias = self.states(history), self.table(), self.bias
        if item is None:
            logit = state @ table[:-1].T
            return logit if bias is None else logit + bias[:-1]
        one = state if item.dim() == 1 else state[:, None]
        logit = (one * table[item]).sum(-1)
        return logit if bias is None else logit + bias[item]

    def states(self, history: Tensor) -> Tensor:
        """The state (B, D) after each history (B, T)."""
        table = self.table()
        padding = history == len(table) - 1
        x = table[history] + self.positions
        parts = self.query_key_value(self.norm_attention(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)  # (B, T, H, d)
        # only the last position asks, so its scores need no causal mask: (B, H, T)
        scores = torch.einsum("bhd,bthd->bht", query[:, -1], key) / key.shape[-1] ** 0.5
        weights = scores.masked_fill(padding[:, None], -1e9).softmax(-1)
        state = x[:, -1] + self.output(torch.einsum("bht,bthd->bhd", weights, value).flatten(1))
        hidden = self.expand(self.norm_feed_forward(state)).relu()
        normed: Tensor = self.norm_output(state + self.contract(hidden))
        return normed


def with_lists(model: Model) -> Model:
    """A SASRec's model that works out the state after a history once for a list of items."""
    net = model.module
    assert isinstance(net, SASRec)

    def one(own: Tree, fixed: Tree, given: Tree) -> Tensor:
        scores: Tensor = functional_call(net, own | fixed, (), given)
        return scores

    def over(p: Tree, batch: Tree) -> Tensor:
        given: Tree = {name: batch[name] for name in ("history", "item") if name in batch}
        own, fixed = ({name: p[name] for name in names} for names in (model.rows, model.constants))
        scores: Tensor = vmap(one, (0, None, 0))(own, fixed, given)
        return scores

    return replace(model, over=over)


def principal_components(vectors: Tensor, dim: int) -> Tensor:
    """The first `dim` principal components (I, dim) of vectors (I, E), scaled to unit length.

    They keep most of what texts say at a fraction of the cost.

    >>> import torch
    >>> principal_components(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 1).abs().tolist()
    [[1.0], [1.0]]
    """
    centred = vectors - vectors.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    return nn.functional.normalize(left[:, :dim] * singular[:dim])


def sequence_scorer(model: Model, params: Tree, films: Tensor, chunk: int = 4096) -> Factored:
    """A function (users, items of the same shape) -> scores on the CPU, from users' latest items.

    films (U, T): the latest items of each user, as `last_films` gives them. chunk: histories that
    are read at a time.
    """
    assert model.module is not None
    net = cast(SASRec, loaded(model.module, to(params, "cpu")))
    with torch.inference_mode():
        states = torch.cat([net.states(some) for some in films.split(chunk)])
        items = net.table()[:-1]
    return factored(states, items, None if net.bias is None else net.bias[:-1].detach())
