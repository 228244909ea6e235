"""Compile what compiled clients need, and keep it on disk, before anybody waits for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedlab.core import Key, Rows, compiled_loops
from fedlab.data import Columns, Layout
from fedlab.engine import fused
from fedlab.engine.local_settings import LocalSettings
from fedlab.models import content, interaction, matrix_factorisation, perceptron


@contextmanager
def compiling(tell: Callable[[str], Any]) -> Iterator[None]:
    """Within it, `tell` hears once that something is compiled, when that begins.

    That is so on a machine's first runs only, as what is compiled is kept on disk.
    """
    if compiled_loops() is None:
        yield
        return
    from numba.core import event  # noqa: PLC0415 - loaded by what is compiled, or never

    said = list[bool]()

    class Heard(event.Listener):
        """Passes on the first beginning."""

        def on_start(self, _: Any) -> None:
            """Something is compiled."""
            if not said:
                said.append(True)
                tell("Compiling what trains clients, once on this machine: about half a minute.")

        def on_end(self, _: Any) -> None:
            """It is there."""

    with event.install_listener("numba:compile", Heard()):
        yield


class _Clicks(Columns):
    """Columns that draw unseen items, as clicks do."""

    @property
    def layout(self) -> Layout:
        """The rows by client and item."""
        starts, counts = (part.numpy() for part in self._by_client[1:])
        return Layout(starts, counts, {"item": torch.arange(4).repeat(2).int().numpy()}, items=9)

    draw = Columns.draw


def warm() -> float:
    """Compile all; returns the seconds that it took, next to nothing where it was done before."""
    began, owner = time.perf_counter(), torch.arange(8) // 4
    if compiled_loops() is None:
        return 0.0
    columns = {
        "user": owner,
        "item": torch.arange(8) % 4,
        "target": (torch.arange(8) % 2).float(),
        "x": torch.ones(8, 2),
    }
    cohort, local = torch.arange(2), LocalSettings(workers=1)
    keys = Key(0, "examples", 1), Key(0, "noise", 1)
    tables, features = matrix_factorisation(2, 9, 2), (torch.ones(9, 2), torch.ones(2, 2))
    others = perceptron(2, 2), content(*features, 2), interaction(2, 9, 2)
    for model, kind in ((tables, _Clicks), *((each, Columns) for each in (tables, *others))):
        data, params = kind(columns, owner), model.init(0)
        for update in fused.updates(model, data, params, cohort, local, keys):
            for rows in update.deltas.values():
                _loops(rows)
        if fused.sums_up(model):
            fused.summed(model, data, params, cohort, local, keys, torch.ones(2), 1.0)
    from fedlab.engine.fused.cohort import Job, warm_sums  # noqa: PLC0415 - loads numba
    from fedlab.engine.fused.least_squares import Compiled  # noqa: PLC0415

    warm_sums(Job(tables, _Clicks(columns, owner), tables.init(0), local, *keys))

    counts = torch.full((2,), 4).numpy()
    items, none = columns["item"].int().numpy(), torch.empty(0).numpy()
    clicks = fused.Clicks(counts * [0, 1], counts, items, none)
    solver = Compiled(tables.init(0)["item"], fused.Strength(0.1, 0.1))
    solver.gradients(clicks)
    solver.vectors(clicks)
    solver.summed(clicks, torch.ones(2), 1.0)
    return time.perf_counter() - began


def _loops(rows: Rows) -> None:
    """Run the loops over rows once."""
    height = int(rows.ids.max()) + 1
    rows.senders(2)
    rows.growing(height)
    rows.square_norms(2)
    rows.merged(height)
    rows.add_to(torch.zeros(height, *rows.values.shape[1:]), torch.ones(2))
