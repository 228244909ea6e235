"""The data of a node: its own rows under the numbers of the whole federation.

Draws are keyed by client, and parameters by user, so a client that keeps its number draws what it
would draw beside all others. A node therefore holds a federation of all N clients in which those of
others are empty; it knows nothing of them but how many they are.

Letters: N clients and U users in all, c and u of them on this node.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.data import Catalogue, Columns, Federation, Interactions


@dataclass(frozen=True)
class Place:
    """Where a node's clients and users are among all: N, the first client, U, the first user."""

    clients: int
    client: int
    users: int
    user: int


@dataclass(frozen=True)
class FederationShare(Federation):
    """A federation of N clients of which some are elsewhere, and empty here.

    owner (U,): -1 for users elsewhere. clients: N.
    """

    clients: int = 0

    def __post_init__(self) -> None:
        """Clients elsewhere hold no rows: nothing to check."""

    def __len__(self) -> int:
        """N, the number of clients."""
        return self.clients


@dataclass(frozen=True)
class ColumnsShare(Columns):
    """Examples of some of N clients; the others hold none here."""

    clients: int = 0

    def __post_init__(self) -> None:
        """Clients elsewhere hold no rows: nothing to check."""

    @cached_property
    def counts(self) -> Tensor:
        """(N,) rows of each client."""
        return torch.bincount(self.owner, minlength=self.clients)


Own = Federation | Columns


def check_own(data: Own) -> None:
    """Raise `ParameterError` for a source that cannot be a part of a larger one."""
    fix = "give a Federation or Columns, of this node's clients alone"
    require(type(data) in (Federation, Columns), "data", type(data).__name__, fix)


def placed(data: Own, place: Place) -> FederationShare | ColumnsShare:
    """A node's own data under the numbers of the whole.

    >>> rows = Columns({"target": torch.ones(2)}, torch.tensor([0, 1]))
    >>> placed(rows, Place(clients=5, client=3, users=0, user=0)).counts
    tensor([0, 0, 0, 1, 1])
    """
    if isinstance(data, Columns):
        owner = data.owner + place.client
        return ColumnsShare(data.columns, owner, data.task, clients=place.clients)
    owner = torch.full((place.users,), -1)
    owner[place.user : place.user + len(data.owner)] = data.owner + place.client
    return FederationShare(shifted(data.train, place), owner, data.task, clients=place.clients)


def shifted(part: Interactions, place: Place) -> Interactions:
    """Interactions of a node's users under their numbers among all."""
    own = part.catalogue.user_ids
    behind = place.users - place.user - len(own)
    names = ("",) * place.user + own + ("",) * behind
    return replace(
        part, users=part.users + place.user, catalogue=replace(part.catalogue, user_ids=names)
    )


def without_rows(users: int, items: int) -> Interactions:
    """A table of no interactions: all that a coordinator has of people's data."""
    none = torch.empty(0, dtype=torch.int64)
    return Interactions(none, none, Catalogue(("",) * users, ("",) * items))
