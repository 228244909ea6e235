"""Federations besides rated films: any table of examples, and clicks larger than memory.

Both keep their rows client after client, so that a cohort's rows are found by where each client
starts.

Letters: N clients, C in a cohort, n rows, F features, I items, U users.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from fedlab.core import DataError, Key, Lookup, Tree, require, stream
from fedlab.data.federation import Layout, clicks, own_rows, shuffled

FILES = ("counts.npy", "items.npy", "about.json")


@dataclass(frozen=True)
class Columns:
    """Examples of any shape, dealt out to clients: what a module of your own trains on.

    columns: name -> (n, ...), with `target` (n,) among them. owner (n,): client of each row,
    0..N-1, none empty. task: 'clicks' for targets 0 and 1, 'ratings' for numbers. Columns may lie
    on a GPU: they stay there.
    """

    draws_negatives: ClassVar[bool] = False  # the targets are given
    draws_anywhere: ClassVar[bool] = True

    columns: Mapping[str, Tensor]
    owner: Tensor
    task: str = "clicks"

    def __post_init__(self) -> None:
        """Check that every row has a client and every client a row."""
        require(
            self.task in ("clicks", "ratings"), "task", self.task, "choose one of clicks, ratings"
        )
        require(
            "target" in self.columns, "columns", sorted(self.columns), "add the column 'target'"
        )
        whole = isinstance(self.owner, Tensor) and self.owner.dtype == torch.int64
        require(
            whole and self.owner.dim() == 1,
            "owner",
            getattr(self.owner, "dtype", type(self.owner).__name__),
            "give a Tensor (n,) of whole numbers, int64",
        )
        for name, column in self.columns.items():
            self._check(name, column)
        require(
            int(self.owner.min()) >= 0,
            "owner",
            int(self.owner.min()),
            "clients are numbered from 0",
        )
        if len(empty := (self.counts == 0).nonzero()):
            raise DataError(
                f"client {int(empty[0])} of {len(self)} holds no rows; number the clients without "
                "gaps"
            )

    def _check(self, name: str, column: Tensor) -> None:
        """Raise `ParameterError` for a column that cannot be trained on."""
        title = f"columns[{name!r}]"
        require(isinstance(column, Tensor), title, type(column).__name__, "give a Tensor")
        require(
            len(column) == len(self.owner) > 0,
            title,
            tuple(column.shape),
            f"give {len(self.owner)} rows, as owner has",
        )
        require(
            name not in ("client", "epoch"),
            "columns",
            name,
            "the engine uses this name; rename the column",
        )
        good = not column.is_floating_point() or bool(column.isfinite().all())
        require(good, title, "not finite", "remove rows with NaN or infinity")
        if name == "target":
            require(
                column.dtype == torch.float32, title, column.dtype, "give float32, with .float()"
            )
            require(column.dim() == 1, title, tuple(column.shape), "give one number a row, (n,)")
            require(
                self.task == "ratings" or bool(((column >= 0) & (column <= 1)).all()),
                title,
                (float(column.min()), float(column.max())),
                "targets of clicks go from 0 to 1; give task='ratings' for other numbers",
            )

    def __len__(self) -> int:
        """N, the number of clients."""
        return len(self.counts)

    @cached_property
    def counts(self) -> Tensor:
        """(N,) rows of each client."""
        return torch.bincount(self.owner)

    @cached_property
    def _by_client(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers client after client, where each begins, and how many each has."""
        starts = self.counts.cumsum(0) - self.counts
        return self.owner.argsort(stable=True), starts, self.counts

    @cached_property
    def layout(self) -> Layout | None:
        """The rows where they lie, by client; None where they lie on a GPU."""
        order, starts, counts = (part.numpy() for part in self._by_client)
        if not all(column.is_cpu for column in self.columns.values()):
            return None
        columns = {name: column.numpy() for name, column in self.columns.items()}
        return Layout(starts, counts, columns, order)

    @cached_property
    def _moved(self) -> dict[torch.device, tuple[Tree, tuple[Tensor, ...]]]:
        """What has been copied to other devices, to stay there."""
        return {}

    def _beside(self, device: torch.device) -> tuple[Mapping[str, Tensor], tuple[Tensor, ...]]:
        """On a device: the columns, and `_by_client`."""
        if device.type == "cpu":
            return self.columns, self._by_client
        if device not in self._moved:
            columns = {name: column.to(device) for name, column in self.columns.items()}
            self._moved[device] = columns, tuple(part.to(device) for part in self._by_client)
        return self._moved[device]

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The examples of a round: columns client, epoch and those given, wide ones as `Lookup`s.

        client is the position in the cohort (C,), which lies where the examples are wanted.
        `negatives` is not used, as the targets are given.
        """
        columns, (order, starts, counts) = self._beside(cohort.device)
        _, rows = own_rows(cohort, starts, counts)
        drawn = shuffled({"row": order.index_select(0, rows)}, cohort, counts[cohort], epochs, key)
        row = drawn.pop("row")
        return drawn | {
            name: column.index_select(0, row.to(column.device))
            if column.dim() == 1
            else cast(Tensor, Lookup(column, row))
            for name, column in columns.items()
        }


@dataclass(frozen=True)
class Stored:
    """Clicks in a folder that is mapped and never read whole.

    Each user is a client, and memory follows the cohort. The folder holds counts.npy (N,) int64,
    clicks of each user; items.npy (n,) int32, user after user, growing within each; about.json with
    `items`, the number of items. `synthesise` writes such a folder; so can you.
    """

    folder: Path
    task: str = "clicks"

    def __post_init__(self) -> None:
        """Check the files against each other, without reading the clicks."""
        require(self.task == "clicks", "task", self.task, "a folder holds clicks")
        for name in FILES:
            if not (Path(self.folder) / name).is_file():
                raise DataError(
                    f"{Path(self.folder) / name}: no such file; a folder needs {', '.join(FILES)}"
                )
        if int(self.counts.sum()) != len(self._items):
            raise DataError(
                f"{self.folder}: counts.npy adds up to {int(self.counts.sum())} clicks, items.npy "
                f"holds {len(self._items)}; write both again"
            )
        if not len(self) or int(self.counts.min()) < 1:
            raise DataError(
                f"{Path(self.folder) / 'counts.npy'}: every user needs a click; leave the others "
                "out"
            )

    def __len__(self) -> int:
        """N, the number of clients, each a user."""
        return len(self.counts)

    @cached_property
    def counts(self) -> Tensor:
        """(N,) clicks of each user."""
        return torch.from_numpy(np.load(Path(self.folder) / "counts.npy"))

    @cached_property
    def item_count(self) -> int:
        """I, the number of items."""
        return int(json.loads((Path(self.folder) / "about.json").read_text())["items"])

    @cached_property
    def _items(self) -> np.ndarray:
        return np.load(Path(self.folder) / "items.npy", mmap_mode="r")

    @cached_property
    def _starts(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def layout(self) -> Layout:
        """The clicks as they lie in the folder."""
        where = self._starts.numpy(), self.counts.numpy()
        return Layout(*where, {"item": self._items}, items=self.item_count)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """Examples of a round, as `Federation.draw` gives them.

        Only the cohort's clicks are read.
        """
        client, rows = own_rows(cohort, self._starts, self.counts)
        items = torch.from_numpy(self._items[rows.numpy()].astype(np.int64))
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < self.item_count:
            raise DataError(
                f"{Path(self.folder) / 'items.npy'}: an item is not in 0 to {self.item_count - 1}"
            )
        return clicks(
            cohort, client, cohort[client], items, self.item_count, epochs, negatives, key
        )


def synthesise(
    folder: str | Path,
    users: int,
    items: int,
    *,
    mean: float = 60.0,
    tastes: int = 50,
    seed: int = 0,
    block: int = 20_000,
) -> Stored:
    """Write a federation of made-up clicks, of any size, to `folder`.

    Users have a taste and a few of them are busy; items are popular or rare. A user's number of
    clicks is log-normal about `mean` (spread 1, from 5 up to a tenth of the items). Each click
    falls, with even chance, on an item of the user's taste or on any; within both by Zipf's law
    (rank^-1). Items of taste t are those with number t modulo `tastes`. Clicks are written `block`
    users at a time, into a folder beside the final one that is renamed at the end, so nothing
    half-written stays.
    """
    for name, value, low in (
        ("users", users, 1),
        ("items", items, 2 * tastes),
        ("tastes", tastes, 1),
    ):
        require(
            isinstance(value, int) and value >= low,
            name,
            value,
            f"choose a whole number of {low} or more",
        )
    require(
        1 <= mean <= items / 10,
        "mean",
        mean,
        f"choose from 1 to {items // 10}, a tenth of the items",
    )
    target = Path(folder)
    require(not target.exists(), "folder", str(folder), "it exists; choose a new one")
    draft = target.with_name(f".{target.name}.part")
    draft.mkdir(parents=True, exist_ok=True)
    counts = []
    with (draft / "items.raw").open("wb") as raw:
        for place, first in enumerate(range(0, users, block)):
            key = stream(seed, "synthesise", place).initial_seed() & (2**63 - 1)
            count, column = _clicks_of(
                min(block, users - first), items, mean, tastes, np.random.default_rng(key)
            )
            counts.append(count)
            raw.write(column.astype(np.int32).tobytes())
    total = int(sum(c.sum() for c in counts))
    column = np.lib.format.open_memmap(
        draft / "items.npy", mode="w+", dtype=np.int32, shape=(total,)
    )
    column[:] = np.memmap(draft / "items.raw", dtype=np.int32, mode="r")
    column.flush()
    np.save(draft / "counts.npy", np.concatenate(counts))
    (draft / "about.json").write_text(
        json.dumps({"items": items, "users": users, "mean": mean, "seed": seed})
    )
    (draft / "items.raw").unlink()
    draft.rename(target)
    return Stored(target)


def _clicks_of(
    users: int, items: int, mean: float, tastes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw (clicks of each user, their items, user after user and growing).

    Repeated draws of an item are counted once.
    """
    wanted = np.clip(rng.lognormal(np.log(mean) - 0.5, 1.0, users), 5, items / 10).astype(np.int64)
    user = np.repeat(np.arange(users), wanted)

    def zipf(count: int) -> np.ndarray:  # ranks 0..count - 1, chance about 1 / (rank + 1)
        return np.minimum((count + 1.0) ** rng.random(len(user)) - 1, count - 1).astype(np.int64)

    own = zipf(items // tastes) * tastes + rng.integers(tastes, size=users)[user]
    item = np.where(rng.random(len(user)) < 0.5, own, zipf(items))
    keys = np.unique(user * items + item)
    return np.bincount(keys // items, minlength=users), keys % items
