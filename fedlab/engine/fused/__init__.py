"""Compiled clients: for some models, all that a client does in a round is one loop in the cache.

Importing this costs nothing; what is compiled, and numba, is loaded when a cohort first trains.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Key, SparseTable, Summed, Tree, Update, compiled_loops
from fedlab.data import Layout, Source, layout_of
from fedlab.engine.local_settings import LocalSettings
from fedlab.models import Model

# of the models that it knows: what picks each parameter's rows
ROWS = {
    "factors": {"user": "user", "item": "item", "bias": "item"},
    "perceptron": dict.fromkeys(("w1", "b1", "w2", "b2"), "one"),
}


class Clicks(NamedTuple):
    """What clients clicked: counts (C,) of the items (n,), from starts (C,) on.

    The items of each client grow. weights (n,): of the clicks; empty where all weigh 1.
    """

    starts: np.ndarray
    counts: np.ndarray
    items: np.ndarray
    weights: np.ndarray


def unfit(model: Model, data: Source, params: Tree, local: LocalSettings) -> str:
    """Why compiled clients cannot train this model on these data; '' where they can."""
    return next(filter(None, _reasons(model, data, params, local)), "")


def _reasons(model: Model, data: Source, params: Tree, local: LocalSettings) -> Iterator[str]:
    if compiled_loops() is None:
        yield "numba is not installed"
    if dict(model.rows) != ROWS.get(model.kernel):
        yield f"no compiled client for the model {model.name!r}"
    for name, usual in (("precision", "fp32"), ("micro_batch", 0)):
        if getattr(local, name) != usual:
            yield f"{name}={getattr(local, name)!r} is for models that others train"
    layout = layout_of(data)
    if layout is None:
        yield "these data draw their examples by themselves"
        return
    yield from (_unread(name, params[name]) for name in model.rows)
    fits = _fits_factors if model.kernel == "factors" else _fits_perceptron
    yield from fits(layout, params)


def _unread(name: str, value: Any) -> str:
    """Why compiled code cannot read a parameter; ''."""
    table = value.first if isinstance(value, SparseTable) and name == "user" else value
    if not isinstance(table, Tensor) or table.layout != torch.strided:
        return f"{name!r} is a {type(value).__name__}"
    if table.device.type != "cpu":
        return f"parameters on {table.device.type}"
    if table.dtype != torch.float32:
        return f"parameters of {table.dtype}"
    fine = table.is_contiguous() and not table.requires_grad
    return "" if fine else f"{name!r} does not lie side by side in memory, or wants a gradient"


def _fits_factors(layout: Layout, params: Tree) -> Iterator[str]:
    needed = {"item"} if layout.items else {"user", "item", "target"}
    yield from _columns(layout, needed)
    for name in needed & {"user", "item"}:
        column = layout.columns[name]
        if column.ndim != 1 or not np.issubdtype(column.dtype, np.integer):
            yield f"{name!r} is no column of whole numbers"
    item, bias, user = (tuple(params[name].shape) for name in ("item", "bias", "user"))
    if not (len(item) == len(user) == 2 and item[1] == user[1] and bias == item[:1]):
        yield f"parameters of shapes {item}, {bias} and {user}"


def _fits_perceptron(layout: Layout, params: Tree) -> Iterator[str]:
    yield from _columns(layout, {"x", "target"})
    x, shapes = layout.columns["x"], [tuple(params[n].shape) for n in ("w1", "b1", "w2", "b2")]
    if not (x.ndim == 2 and x.dtype == np.float32 and x.flags.c_contiguous):
        yield "'x' is not a table of float32, row by row"
        return
    width = shapes[1][-1] if shapes[1] else 0
    if shapes != [(1, x.shape[1], width), (1, width), (1, width), (1, 1)]:
        yield f"'x' has {x.shape[1]} columns, the parameters shapes {shapes}"


def _columns(layout: Layout, needed: set[str]) -> Iterator[str]:
    """Yield what is missing, or not as long as the rest."""
    columns = {name: layout.columns[name] for name in needed & layout.columns.keys()}
    if len(columns) < len(needed):
        yield f"these data have no column {', '.join(sorted(needed - columns.keys()))}"
    if any(len(column) < layout.counts.sum() for column in columns.values()):
        yield "a column is shorter than the data were"
    target = columns.get("target", np.empty(0, np.float32))
    if target.dtype != np.float32 or target.ndim != 1:
        yield "'target' is no column of float32"


def updates(
    model: Model,
    data: Source,
    params: Tree,
    cohort: Tensor,
    local: LocalSettings,
    key: Key,
    correction: Any = None,
) -> Iterator[Update]:
    """Yield the updates of a cohort (C,), in its order; see `fedlab.engine.updates`."""
    from fedlab.engine.fused.cohort import Job, updates  # noqa: PLC0415 - loads numba

    return updates(Job(model, data, params, local, key, correction), cohort)


def sums_up(model: Model) -> bool:
    """Whether its compiled clients can be added up one after another."""
    return model.kernel == "factors"


def summed(
    model: Model,
    data: Source,
    params: Tree,
    cohort: Tensor,
    local: LocalSettings,
    key: Key,
    weights: Tensor,
    longest: float,
) -> Summed:
    """Train a cohort (C,) and add up what it sends; see `Local.train_summed`."""
    from fedlab.engine.fused.cohort import Job, summed  # noqa: PLC0415 - loads numba

    return summed(Job(model, data, params, local, key), cohort, weights, longest)
