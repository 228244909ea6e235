"""Compiled clients: for some models, all that a client does in a round is one loop in the cache.

Importing this costs nothing; what is compiled, and numba, is loaded when a cohort first trains.
"""

import importlib
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
FACTORS = {"user": "user", "item": "item", "bias": "item"}
LAYERS = dict.fromkeys(("w1", "b1", "w2", "b2"), "one")  # as `dense.Layers` has them
ROWS = {
    "factors": FACTORS,
    "interaction": FACTORS | {"dense": "one", "offset": "one"},
    "perceptron": LAYERS,
    "content": LAYERS | {"bias": "item"},
}
FEATURES = ("item_features", "user_features")
CLICK = 0.125  # of a click in `clicks`: so little that a clip acts on the gradients


class Clicks(NamedTuple):
    """What clients clicked: counts (C,) of the items (n,), from starts (C,) on.

    The items of each client grow. weights (n,): of the clicks; empty where all weigh 1.
    """

    starts: np.ndarray
    counts: np.ndarray
    items: np.ndarray
    weights: np.ndarray


class Strength(NamedTuple):
    """w0: weight of an item that was not clicked; reg: strength of the regularisation.

    They are those of Rendle et al. 2022, eq. 3 and 12.
    """

    w0: float
    reg: float

    @classmethod
    def of(cls, mean: float, items: int, unseen: float, regularisation: float) -> "Strength":
        """Those of strengths that know no size, see `fedlab.algorithms.implicit`.

        mean: clicks of a user.

        >>> Strength.of(16, 100, unseen=4.0, regularisation=2.0)
        Strength(w0=0.64, reg=0.1)
        """
        return cls(unseen * mean / items, regularisation * mean**-0.5 / (1 + unseen))


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
    own = set(model.constants)
    if own != set(FEATURES if model.kernel == "content" else ()):
        yield f"constants {', '.join(sorted(own))} that no compiled client reads"
        return
    tables, sparse = params | model.constants, model.kernel == "factors"
    yield from (_unread(name, tables[name], sparse) for name in (*model.rows, *model.constants))
    if model.kernel in ("perceptron", "content"):
        yield from _fits_layers(layout, tables)
        return
    yield from _fits_factors(layout, params)
    if model.kernel == "interaction":
        yield from _fits_interaction(model, params)


def _unread(name: str, value: Any, sparse: bool) -> str:
    """Why compiled code cannot read a table; ''. sparse: whether it reads sparse users."""
    kept = isinstance(value, SparseTable) and name == "user" and sparse
    table = value.first if kept else value
    if not isinstance(table, Tensor) or table.layout != torch.strided:
        return f"{name!r} is a {type(value).__name__}"
    if table.device.type != "cpu":
        return f"{name!r} on {table.device.type}"
    if table.dtype != torch.float32:
        return f"{name!r} of {table.dtype}"
    fine = table.is_contiguous() and not table.requires_grad
    return "" if fine else f"{name!r} does not lie side by side in memory, or wants a gradient"


def _fits_factors(layout: Layout, params: Tree) -> Iterator[str]:
    yield from _pairs(layout)
    item, bias, user = (tuple(params[name].shape) for name in ("item", "bias", "user"))
    if not (len(item) == len(user) == 2 and item[1] == user[1] and bias == item[:1]):
        yield f"parameters of shapes {item}, {bias} and {user}"


def _fits_interaction(model: Model, params: Tree) -> Iterator[str]:
    dense, offset = (tuple(params[name].shape) for name in ("dense", "offset"))
    if dense != (1, params["item"].shape[1], 1) or offset != (1, 1):
        yield f"parameters of shapes {dense} and {offset}"
    if model.noise is not getattr(model.predict, "noise", None):
        yield "dropout that is not the model's own"


def _fits_layers(layout: Layout, tables: Tree) -> Iterator[str]:
    shapes = [tuple(tables[name].shape) for name in LAYERS]
    if "bias" in tables:
        yield from _pairs(layout)
        items, users, bias = (tuple(tables[name].shape) for name in (*FEATURES, "bias"))
        fit = len(items) == len(users) == 2 and users[1] >= items[1] and bias == items[:1]
        if not fit:
            yield f"features of shapes {items} and {users}, 'bias' of shape {bias}"
            return
        what, wide = "an input", 2 * items[1] + users[1]
    else:
        yield from _columns(layout, {"x", "target"})
        x = layout.columns["x"]
        if not (x.ndim == 2 and x.dtype == np.float32 and x.flags.c_contiguous):
            yield "'x' is not a table of float32, row by row"
            return
        what, wide = "'x'", x.shape[1]
    width = shapes[1][-1] if shapes[1] else 0
    if shapes != [(1, wide, width), (1, width), (1, width), (1, 1)]:
        yield f"{what} has {wide} columns, the parameters shapes {shapes}"


def _pairs(layout: Layout) -> Iterator[str]:
    """Yield what is wrong with the columns of users and items."""
    needed = {"item"} if layout.items else {"user", "item", "target"}
    yield from _columns(layout, needed)
    for name in needed & {"user", "item"}:
        column = layout.columns[name]
        if column.ndim != 1 or not np.issubdtype(column.dtype, np.integer):
            yield f"{name!r} is no column of whole numbers"


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
    keys: tuple[Key, Key],
    correction: Any = None,
) -> Iterator[Update]:
    """Yield the updates of a cohort (C,), in its order; see `fedlab.engine.updates`.

    keys: those of the draws of examples and of noise.
    """
    from fedlab.engine.fused.cohort import Job  # noqa: PLC0415 - loads numba

    found: Iterator[Update] = _clients(model).updates(
        Job(model, data, params, local, *keys, correction), cohort
    )
    return found


def sums_up(model: Model) -> bool:
    """Whether its compiled clients can be added up one after another."""
    return model.kernel in ("factors", "perceptron", "content")


def _clients(model: Model) -> Any:
    """The module of a model's compiled clients."""
    where = {"factors": "cohort", "perceptron": "dense", "content": "dense"}
    name = where.get(model.kernel, model.kernel)
    return importlib.import_module(f"fedlab.engine.fused.{name}")


def summed(
    model: Model,
    data: Source,
    params: Tree,
    cohort: Tensor,
    local: LocalSettings,
    keys: tuple[Key, Key],
    weights: Tensor,
    longest: float,
) -> Summed:
    """Train a cohort (C,) and add up what it sends; see `Local.train_summed`."""
    from fedlab.engine.fused.cohort import Job  # noqa: PLC0415 - loads numba

    job = Job(model, data, params, local, *keys)
    found: Summed = _clients(model).summed(job, cohort, weights, longest)
    return found
