"""Fewer bytes up: each client codes what it learned, with a memory of what the code left out.

    sent = code(delta + e),   e <- delta + e - sent        error feedback: what was left out is sent later

Under `federate_privately` this comes before the clip, which is one factor for a whole delta and
leaves a code a code; noise of the clients' own and secure sums take 4 bytes for every number, and
refuse coded deltas.

Letters: C clients, R rows sent. Sources: Seide et al. 2014, "1-bit stochastic gradient descent"
(error feedback); Karimireddy et al. 2019, "Error feedback fixes signSGD".
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.communication.codecs import Codec
from fedlab.core import Config, Rows, Tree, Update, require, stream
from fedlab.engine import updates
from fedlab.models import Model


def row_bytes(ids: Tensor, client: Tensor, clients: int) -> Tensor:
    """(C,) bytes of each client's row numbers, which grow.

    Each as its distance from the last, 7 bits a byte.
    """
    first = torch.ones_like(client, dtype=torch.bool)
    first[1:] = client[1:] != client[:-1]
    apart = torch.where(first, ids + 1, ids - ids.roll(1))
    require(bool((apart > 0).all()), "ids", ids[apart <= 0][:1].tolist(),
            "a client's row numbers must grow")
    each = 1 + sum((apart >> 7 * more > 0).long() for more in range(1, 5))
    return torch.zeros(clients, dtype=torch.int64, device=ids.device).index_add_(0, client,
                                                                                 torch.as_tensor(
        each))


class ErrorFeedback:
    """A client update whose deltas go through `code`; hand `update` to `federate`.

    One object for one run.

    feedback: whether clients keep what was left out for the next time that they hold the row.
    trained: what clients do before. Rows' numbers go beside tables whose code does not tell them,
    as distances, see `row_bytes`.
    """

    def __init__(self, code: Codec, *, feedback: bool = True,
                 trained: Callable[..., Iterator[Update]] = updates) -> None:
        """Nothing left out yet."""
        self.code, self.feedback, self.trained = code, feedback, trained
        self.left: dict[str, Memory] = {}

    def update(self, model: Model, data: Any, params: Tree, cohort: Tensor, config: Config, *,
               number: int = 1, **named: Any) -> Iterator[Update]:
        """As `fedlab.cohort.updates`, compressed.

        Private rows do not leave and are left as they are.
        """
        for sent in self.trained(model, data, params, cohort, config, number=number, **named):
            clients, deltas = len(sent.cohort), dict(sent.deltas)
            size = torch.zeros(clients, dtype=torch.int64, device=sent.weights.device)
            kinds: set[str] = set()
            for name, rows in sent.deltas.items():
                if name in model.private:
                    continue
                draw = stream(config.seed, f"code {name}", number)
                deltas[name], bytes_ = self._coded(name, rows, len(params[name]), sent.cohort, draw)
                size += bytes_
                if not self.code.says_where and model.rows[name] not in {"one", *kinds}:
                    kinds.add(model.rows[name])
                    size += row_bytes(rows.ids, rows.client, clients)
            yield replace(sent, deltas=deltas, bytes_up=size)

    def _coded(self, name: str, rows: Rows, height: int, cohort: Tensor, draw: torch.Generator
               ) -> tuple[Rows, Tensor]:
        """(what arrives of a table, bytes of each client)."""
        if not self.feedback:
            arrives, size = self.code(rows, len(cohort), height, draw)
            return replace(rows, values=arrives), size
        memory = self.left.setdefault(name, Memory(height, rows.values))
        client = cohort.to(rows.ids.device)[rows.client]
        whole = replace(rows, values=memory.of(client, rows.ids).add_(rows.values))
        arrives, size = self.code(whole, len(cohort), height, draw)
        rest = whole.values - arrives  # not in place: a code may hand its input on
        if not rest.sum().isfinite():
            rest.nan_to_num_(0.0, 0.0, 0.0)  # a bad round stays one
        memory.keep(client, rows.ids, rest)
        return replace(rows, values=arrives), size


class Memory:
    """What clients left out of each row.

    A place for each row that a client ever held, 4 bytes for each that it may.
    """

    def __init__(self, height: int, like: Tensor) -> None:
        """Empty. height: rows of the table. like (R, ...): values of its rows."""
        self.place = torch.zeros((0, height), dtype=torch.int32, device=like.device)
        # place 0 is of what nobody left
        self.values, self.used = like.new_zeros(1, *like.shape[1:]), 1

    def of(self, client: Tensor, ids: Tensor) -> Tensor:
        """(R, ...) a copy of these rows, 0 where there is nothing; client (R,): numbers."""
        missing = int(client.max()) + 1 - len(self.place) if len(client) else 0
        if missing > 0:
            self.place = torch.cat([self.place, self.place.new_zeros(missing, self.place.shape[1])])
        return self.values.index_select(0, self.place[client, ids])

    def keep(self, client: Tensor, ids: Tensor, rest: Tensor) -> None:
        """Remember these instead; `of` has been asked for the same rows."""
        at = self.place[client, ids]
        fresh = (at == 0).nonzero()[:, 0]
        at[fresh] = torch.arange(self.used, self.used + len(fresh), dtype=torch.int32,
                                 device=ids.device)
        self.place[client[fresh], ids[fresh]] = at[fresh]
        self.used += len(fresh)
        # twice the room, not filled: pages come as they are written
        if self.used > len(self.values):
            larger = self.values.new_empty(2 * self.used, *self.values.shape[1:])
            larger[: len(self.values)] = self.values
            self.values = larger
        self.values.index_copy_(0, at.long(), rest)
