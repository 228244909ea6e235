"""The model that comes out of a search, and what it recommends."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fedlab.algorithms import Ease, Implicit
from fedlab.core import ParameterError, Round, Settings, require
from fedlab.data import recent
from fedlab.workbench.best.report import Row
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.export import export_model, zipped_model
from fedlab.workbench.runs import Record

NEAR = 100_000  # names that are compared with one that nobody has


class Pick(NamedTuple):
    """A recommendation: the item's id, what it is called, and its score."""

    item: str
    title: str
    score: float


@dataclass(frozen=True, repr=False)
class Best:
    """The best federated model for some data, trained on all of them.

    report: what it is worth, beginning with whether it beats popularity. table: the same as rows.
    method: its name there. settings: those that train it again. objective: what chose them.
    cancelled: whether the search was. folder: where the runs of the search lie, its own, `run`,
    among them.
    """

    report: str
    table: tuple[Row, ...]
    method: str
    settings: Settings
    objective: str
    cancelled: bool
    folder: Path
    run: str
    _done: Round = field(compare=False)
    _records: Sequence[Record] = field(compare=False)
    _card: dict[str, Any] = field(compare=False)

    def __repr__(self) -> str:
        return self.report

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(self.settings)

    def top(self, who: str | int | Sequence[str], k: int = 10) -> list[Pick]:
        """The k items that suit somebody best, best first, without those that they have clicked.

        who: the id of a user of the data; or a list of what a new person clicked, oldest first, as
        ids of items or as titles that only one item has. A user known by id goes by all clicks in
        the data. There are fewer than k where fewer are left. Raises `ParameterError` for unknown
        ids, with those most alike, and for a list of nothing.
        """
        require(isinstance(k, int) and k >= 1, "k", k, "choose a whole number of 1 or more")
        items, weights = self._known(str(who)) if isinstance(who, str | int) else self._new(who)
        here = self._experiment
        scores = cast(Implicit | Ease, here.local).recommend(
            here.model, here.federation, dict(self._done.params), items, weights
        )
        scores = scores.index_fill(0, items, -torch.inf)
        order = scores.argsort(descending=True, stable=True)[: min(k, len(scores) - len(items))]
        known = here.split.train.catalogue
        return [Pick(known.item_ids[i], known.names[i], float(scores[i])) for i in order.tolist()]

    def save(self, folder: str | Path) -> Path:
        """Write the model into a new folder, with a card that has the table; return the folder.

        Plain torch loads it, as the card says. Rows of single people are not in it. Raises
        `ParameterError` for a folder that holds something, and OSError.
        """
        return export_model(
            self._experiment, self._done, folder, records=self._records, reached=self._card
        )

    def zipped(self) -> bytes:
        """The files that `save` writes, as one zip file."""
        return zipped_model(self._experiment, self._done, self._records, reached=self._card)

    def _known(self, user: str) -> tuple[Tensor, Tensor]:
        """The items (n,) that a user clicked, and their weights (n,)."""
        train = self._experiment.split.train
        row = self._places("user", train.catalogue.user_ids).get(user)
        if row is None:
            raise unknown("user", user, train.catalogue.user_ids)
        mine = train.take(train.users == row)
        require(len(mine) > 0, "user", user, "it has no clicks in these data; give a list of items")
        return mine.items, recent(mine, self._recency)

    def _new(self, given: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The items (n,) of a new person, without repeats, and their weights (n,)."""
        known = self._experiment.split.train.catalogue
        require(len(given) > 0, "who", list(given), "name an item that the person clicked")
        ids, titles = self._places("item", known.item_ids), self._places("title", known.names)
        rows = []
        for name in map(str, given):
            row = ids.get(name, titles.get(name))
            if row is None:
                raise unknown("item", name, (*known.item_ids, *known.names))
            rows.append(row)
        rows = list(dict.fromkeys(reversed(rows)))[::-1]  # what comes again counts as the last
        later = torch.arange(len(rows) - 1, -1, -1)
        return torch.tensor(rows), (1 + later.double()).pow(-self._recency).float()

    @property
    def _recency(self) -> float:
        return float(self.settings.recency)

    @cached_property
    def _by_name(self) -> dict[str, dict[str, int]]:
        return {}

    def _places(self, what: str, names: Sequence[str]) -> dict[str, int]:
        """Name -> its place, of names that are there once."""
        if what not in self._by_name:
            places = dict(zip(names, range(len(names)), strict=True))
            if len(places) < len(names):
                twice = {name for at, name in enumerate(names) if places[name] != at}
                places = {name: at for name, at in places.items() if name not in twice}
            self._by_name[what] = places
        return self._by_name[what]


def unknown(what: str, name: str, names: Sequence[str]) -> ParameterError:
    """The error for a name that these data do not have, with those most alike to it."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(names))[:NEAR], 3)
    more = f"; there are {', '.join(map(repr, near))}" if near else ""
    new = "; for a new person give a list of items" if what == "user" else ""
    return ParameterError(f"{what}={name!r}: these data have no such {what}{more}{new}")
