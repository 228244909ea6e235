"""What a trained model recommends, of a search or opened from the folder that it was saved in.

Letters: I items, D dimensions, T items in a table of pairs, n clicks of one person.
"""

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedlab.algorithms import Ease, Implicit
from fedlab.core import REGISTRY, DataError, Local, ParameterError, Settings, Tree, require, turned
from fedlab.data import Interactions, recent
from fedlab.workbench.experiment import WHOLE, Experiment

NEAR = 100_000  # names that are compared with one that nobody has
OPENED = ("matrix factorisation", "item-item")  # models that `load_model` takes
ALONE = (
    "the vectors of its users stayed with them; export it with them (people=True, --people), or "
    "train by local='implicit', which recommends from clicks"
)


class Pick(NamedTuple):
    """A recommendation: the item's id, what it is called, and its score."""

    item: str
    title: str
    score: float


@dataclass(frozen=True, repr=False)
class Recommender:
    """A trained model that recommends.

    items, titles (I,): ids in the order of the model's rows, and what to call them. weights: name
    -> tensor, as `export_model` writes them. local: how a client recommends from what it clicked;
    None where people have vectors of their own, which are then those of `users`, in their order.
    data: gives the clicks of users who are asked for by id.
    """

    items: Sequence[str]
    titles: Sequence[str]
    weights: Tree
    local: Implicit | Ease | None
    users: Sequence[str]
    data: Callable[[], Interactions]

    def __repr__(self) -> str:
        return f"<a model that recommends from {len(self.items):,} items>"

    def top(self, who: str | int | Sequence[str | int], k: int = 10) -> list[Pick]:
        """The k items that suit somebody best, best first, without those that they have clicked.

        who: the id of a user of the data; or a list of what a new person clicked, oldest first, as
        ids of items or as titles that only one item has. A user known by id goes by all clicks in
        the data. There are fewer than k where fewer are left. Raises `ParameterError` for unknown
        ids, with those most alike, for a list of nothing, and for a list where the model knows
        people by vectors of their own.
        """
        require(isinstance(k, int) and k >= 1, "k", k, "choose a whole number of 1 or more")
        known = isinstance(who, str | int)
        items, weights = self._known(str(who)) if known else self._new(cast(Sequence[str], who))
        scores = self._scores(who, items, weights).index_fill(0, items, -torch.inf)
        order = scores.argsort(descending=True, stable=True)[: min(k, len(scores) - len(items))]
        return [Pick(self.items[i], self.titles[i], float(scores[i])) for i in order.tolist()]

    def _scores(self, who: object, items: Tensor, weights: Tensor) -> Tensor:
        """The scores (I,) of all items for somebody with these clicks (n,)."""
        if self.local:
            clicks = torch.zeros(len(self.items)).index_copy_(0, items, weights)
            return self.local.recommend(self.weights, clicks)
        fix = (
            "this model knows people by vectors of their own, which clicks do not tell; name a user"
        )
        require(isinstance(who, str | int), "who", who, fix)
        vector = self.weights["user"][self._place("user", str(who), self.users)]
        return self.weights["item"] @ vector + self.weights["bias"]

    def _known(self, user: str) -> tuple[Tensor, Tensor]:
        """The items (n,) that a user clicked, of those in the model, and their weights (n,)."""
        data = self.data()
        row = self._place("user", user, data.catalogue.user_ids)
        mine = data.take(data.users == row)
        ids, places = data.catalogue.item_ids, self._places["item"]
        at = torch.tensor([places.get(ids[i], -1) for i in mine.items.tolist()]).long()
        fix = "it has no clicks in these data; give a list of items"
        require(bool((at >= 0).any()), "user", user, fix)
        return at[at >= 0], recent(mine, self._recency)[at >= 0]

    def _new(self, given: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The items (n,) of a new person, without repeats, and their weights (n,)."""
        require(len(given) > 0, "who", list(given), "name an item that the person clicked")
        rows, ids, titles = [], self._places["item"], self._places["title"]
        for name in map(str, given):
            row = ids.get(name, titles.get(name))
            if row is None:
                raise unknown("item", name, (*self.items, *self.titles))
            rows.append(row)
        rows = list(dict.fromkeys(reversed(rows)))[::-1]  # what comes again counts as the last
        later = torch.arange(len(rows) - 1, -1, -1)
        return torch.tensor(rows), (1 + later.double()).pow(-self._recency).float()

    @property
    def _recency(self) -> float:
        return self.local.recency if self.local else 0.0

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """Name -> row of an item, by id and by title, of names that are there once."""
        return {"item": _once(self.items), "title": _once(self.titles)}

    @staticmethod
    def _place(what: str, name: str, names: Sequence[str]) -> int:
        try:
            return names.index(name)
        except ValueError:
            new = "; for a new person give a list of items" if what == "user" else ""
            raise ParameterError(f"{unknown(what, name, names)}{new}") from None


def _once(names: Sequence[str]) -> dict[str, int]:
    """Name -> its place, of names that are there once."""
    places = dict(zip(names, range(len(names)), strict=True))
    twice = {name for at, name in enumerate(names) if places[name] != at}
    return {name: at for name, at in places.items() if name not in twice}


def unknown(what: str, name: str, names: Sequence[str]) -> ParameterError:
    """The error for a name that these data do not have, with those most alike to it.

    >>> str(unknown("item", "1", ["0001", "0002"]))
    "item='1': these data have no such item; there are '0001'; give an id as a text, with its zeros"
    """
    every = list(dict.fromkeys(names))
    same = [each for each in every if each.lstrip("0") == name.lstrip("0")][:3]
    near = same or difflib.get_close_matches(name, every[:NEAR], 3)
    more = f"; there are {', '.join(map(repr, near))}" if near else ""
    more += "; give an id as a text, with its zeros" * bool(same)
    return ParameterError(f"{what}={name!r}: these data have no such {what}{more}")


def load_model(folder: str | Path, data: str | Path | Interactions | None = None) -> Recommender:
    """A model that was saved, by `Best.save`, `export_model` or `fedlab export`, to recommend with.

    data: who clicked what until now, `Interactions` or a name as settings have it, for users who
    are asked for by id; by default what the model was trained on, as long as it is where it was.
    New people need none. Items that came later are not in the model. Matrix factorisation and
    item-item models are opened. Raises `ParameterError` for a folder without such a model, and
    OSError.

    >>> import tempfile
    >>> from fedlab import from_arrays
    >>> from fedlab.workbench import fit_best
    >>> users, items = [k // 4 for k in range(40)], [k * k % 23 for k in range(40)]
    >>> best = fit_best(from_arrays(users, items), budget=1, processes=1, say=lambda line: None)
    >>> place = best.save(tempfile.mkdtemp())
    >>> load_model(place).top(["0", "4"], k=2) == best.top(["0", "4"], k=2)
    True
    """
    place = Path(folder)
    fix = "there is no model in it; name a folder that `save` or `fedlab export` has written"
    require((place / "card.json").is_file(), "folder", str(folder), fix)
    about, rows = (json.loads((place / f).read_text("utf-8")) for f in ("card.json", "rows.json"))
    name, settings = about["model"]["name"], Settings(**about["settings"]["settings"])
    local = turned(cast(type[Local], REGISTRY["local"][settings.local])(), settings)
    people = place / "people.safetensors"
    why = closed(name, local, people=people.is_file())
    require(not why, "folder", str(folder), why)
    weights: Tree = load_file(place / "model.safetensors")
    own: Implicit | Ease | None = None
    if type(local) is Implicit:
        clicks = about["data"]["train"] / about["data"]["clients"]
        own = replace(local, mean_clicks=local.mean_clicks or clicks)
    elif type(local) is Ease:
        own = local
    else:
        weights |= load_file(people)
    users = rows.get("user", ())
    asked = data if data is not None else settings.data
    items, titles = rows["item"], rows.get("title", rows["item"])
    return Recommender(items, titles, weights, own, users, lambda: _clicks(asked))


def closed(model: str, local: Local, *, people: bool) -> str:
    """Why `load_model` cannot open an exported model of this name; '' where it can.

    local: what clients did. people: whether the rows of single people were exported as well.
    """
    if model not in OPENED:
        return f"it holds a model of the kind {model}; card.md in it has the lines that load it"
    return "" if people or type(local) in (Implicit, Ease) else ALONE


def _clicks(data: Any) -> Interactions:
    """The interactions of a name, as settings have it, or these themselves."""
    if isinstance(data, Interactions):
        return data
    try:
        return Experiment(Settings(data=str(data), train_on=WHOLE)).split.train
    except DataError as error:
        fix = "say where users' clicks are: load_model(..., data=...), --data on the command line"
        raise DataError(f"{error}; {fix}") from error
