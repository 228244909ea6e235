"""A node's folder: its data in one file, which `fedlab node FOLDER` reads, and below it its runs.

    FOLDER/data.node      name, train rows, and what is held out, as one message
    FOLDER/RUN/           what its clients learned in a run, see `fedlab.nodes.keeping`

Letters: U users, I items.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlab.core import DataError, ParameterError, Tree, require
from fedlab.data import Catalogue, Columns, Federation, Interactions, Split, of_users
from fedlab.evaluation import Candidates
from fedlab.nodes.keeping import owned, write_whole
from fedlab.nodes.messages import Message, MessageError, pack, unpack
from fedlab.nodes.node import Held, Node
from fedlab.nodes.share import Own, check_own

FILE = "data.node"


def write_node(folder: str | Path, name: str, data: Own, held: Held | None = None) -> Path:
    """Write the folder of a node; it may be there already, and then its data are replaced.

    Its owner alone may read what is in it.

    >>> import tempfile
    >>> rows = Columns({"target": torch.ones(2)}, torch.tensor([0, 1]))
    >>> with tempfile.TemporaryDirectory() as home:
    ...     node = read_node(write_node(Path(home, "left"), "left", rows))
    >>> node.name, len(node.data)
    ('left', 2)
    """
    check_own(data)
    place, held = Path(folder), held or Held()
    head: dict[str, Any] = {"name": name, "task": data.task, "std": held.std}
    tensors: Tree = {"owner": data.owner}
    if isinstance(data, Columns):
        tensors |= {f"column {n}": column for n, column in data.columns.items()}
    else:
        tensors |= _table("train", data.train)
        head |= {"ids": data.train.catalogue.user_ids, "items": data.train.catalogue.item_ids}
        known = data.train.catalogue.columns
        head["known"] = {n: list(c) for n, c in known.items() if not isinstance(c, Tensor)}
        tensors |= {f"known {n}": c for n, c in known.items() if isinstance(c, Tensor)}
    if held.clicks is not None:
        names = ("users", "positives", "negatives")
        tensors |= {f"clicks {n}": getattr(held.clicks, n) for n in names}
    if held.ratings is not None:
        tensors |= _table("ratings", held.ratings)
    write_whole(owned(place) / FILE, pack(head, tensors))
    return place


def _table(name: str, rows: Interactions) -> Tree:
    columns = {"users": rows.users, "items": rows.items, **rows.columns}
    return {f"{name} {n}": column for n, column in columns.items()}


def read_node(folder: str | Path) -> Node:
    """The node of a folder; raises `ParameterError` or `DataError` for one that is none."""
    place = Path(folder)
    fix = "no such file; make node folders by `fedlab nodes DATA --into FOLDER --count 3`"
    require((place / FILE).is_file(), "folder", str(place / FILE), fix)
    try:
        found = unpack((place / FILE).read_bytes())
        data = _data(found)
        held = Held(_clicks(found), _ratings(found, data), found.get("std", float))
        return Node(found.get("name", str), data, place, held=held)
    except (MessageError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError | ParameterError):
            raise
        raise DataError(f"{place / FILE}: not a node's data ({error}); write it again") from error


def _data(found: Message) -> Own:
    task, owner = found.get("task", str), found.tensors["owner"]
    if "train users" not in found.tensors:
        return Columns(_part(found.tensors, "column"), owner, task)
    known = {n: tuple(c) for n, c in found.get("known", dict).items()}
    catalogue = Catalogue(
        tuple(found.get("ids", list)),
        tuple(found.get("items", list)),
        known | _part(found.tensors, "known"),
    )
    return Federation(_interactions(found.tensors, "train", catalogue), owner, task)


def _part(tensors: Tree, name: str) -> Tree:
    return {n.removeprefix(f"{name} "): t for n, t in tensors.items() if n.startswith(f"{name} ")}


def _interactions(tensors: Tree, name: str, catalogue: Catalogue) -> Interactions:
    columns = _part(tensors, name)
    return Interactions(columns.pop("users"), columns.pop("items"), catalogue, columns)


def _clicks(found: Message) -> Candidates | None:
    own = _part(found.tensors, "clicks")
    return Candidates(**own) if own else None


def _ratings(found: Message, data: Own) -> Interactions | None:
    if "ratings users" not in found.tensors:
        return None
    return _interactions(found.tensors, "ratings", data.train.catalogue)  # type: ignore[union-attr]


def cut_into(
    folder: str | Path,
    split: Split,
    count: int,
    task: str = "clicks",
    held: Candidates | None = None,
) -> list[Path]:
    """Deal the users of a split out to the folders of `count` nodes, each user a client.

    held: for clicks, the held-out items and what they are ranked against. Raises `ParameterError`
    for more nodes than users.
    """
    users = split.train.user_count
    require(1 <= count <= users, "count", count, f"choose from 1 to {users}, the number of users")
    places = []
    for k in range(count):
        first, last = users * k // count, users * (k + 1) // count
        here = torch.arange(users)
        here = (here >= first) & (here < last)
        own = of_users(split.train, here)
        data = Federation(own, torch.arange(last - first), task)
        name = f"node{k:0{len(str(count - 1))}d}"
        places.append(
            write_node(Path(folder, name), name, data, _held(split, here, first, task, held))
        )
    return places


def _held(split: Split, here: Tensor, first: int, task: str, held: Candidates | None) -> Held:
    """What is held out of these users (U,), of which the first is `first`."""
    if task == "ratings":
        return Held(ratings=of_users(split.validation, here), std=split.std)
    if held is None:
        return Held()
    mine = here[held.users]
    own: Mapping[str, Tensor] = {
        n: getattr(held, n)[mine] for n in ("users", "positives", "negatives")
    }
    return Held(clicks=Candidates(**{**own, "users": own["users"] - first}))
