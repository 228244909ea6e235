"""The model that comes out of a search, and what it recommends."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fedlab.algorithms import Ease, Implicit
from fedlab.core import Round, Settings
from fedlab.workbench.best.report import Row
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.export import Pick, Recommender, export_model
from fedlab.workbench.runs import Record


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

    @cached_property
    def _recommender(self) -> Recommender:
        here, local = self._experiment, cast(Implicit | Ease, self._experiment.local)
        known, data = here.split.train.catalogue, here.federation
        if isinstance(local, Implicit):
            local = replace(local, mean_clicks=local.mean_clicks or len(data.train) / len(data))
        weights = dict(self._done.params) | dict(here.model.constants)
        return Recommender(
            known.item_ids, known.names, weights, local, known.user_ids, lambda: data.train
        )

    def top(self, who: str | int | Sequence[str | int], k: int = 10) -> list[Pick]:
        """The k items that suit somebody best, best first, without those that they have clicked.

        who: the id of a user of the data; or a list of what a new person clicked, oldest first, as
        ids of items or as titles that only one item has. A user known by id goes by all clicks in
        the data. There are fewer than k where fewer are left. Raises `ParameterError` for unknown
        ids, with those most alike, and for a list of nothing.
        """
        return self._recommender.top(who, k)

    def save(self, folder: str | Path) -> Path:
        """Write the model into a new folder, with a card that has the table; return the folder.

        `load_model` opens it again, and plain torch loads it, as the card says. Rows of single
        people are not in it. Raises `ParameterError` for a folder that holds something, and
        OSError.
        """
        return export_model(
            self._experiment, self._done, folder, records=self._records, reached=self._card
        )
