"""Compiled clients: for some models, all that a client does in a round is one loop in the cache.

Importing this costs nothing; what is compiled, and numba, is loaded when a cohort first trains.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Key, Summed, Tree, Update, compiled_loops
from fedlab.data import Layout, Source, layout_of
from fedlab.engine.local_settings import LocalSettings
from fedlab.models import Model

# of the models that it knows: what picks each parameter's rows, and the columns that it reads
ROWS = {
    "factors": {"user": "user", "item": "item", "bias": "item"},
    "perceptron": dict.fromkeys(("w1", "b1", "w2", "b2"), "one"),
}
COLUMNS = {"factors": {"user", "item", "target"}, "perceptron": {"x", "target"}}


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
    return next(_reasons(model, data, params, local), "")


def _unfit_data(model: Model, layout: Layout, params: Tree) -> Iterator[str]:
    needed = {"item"} if layout.items else COLUMNS.get(model.kernel, set())
    if layout.items and model.kernel != "factors":
        yield "it draws no negatives"
    if not needed <= layout.columns.keys():
        yield f"these data have no column {', '.join(sorted(needed - layout.columns.keys()))}"
    elif model.kernel == "perceptron":
        x, w1 = layout.columns["x"], params["w1"]
        if not (x.ndim == 2 and x.dtype == np.float32 and x.flags.c_contiguous):
            yield "'x' is not a table of float32, row by row"
        elif x.shape[1] != w1.shape[1]:
            yield f"'x' has {x.shape[1]} columns, the model {w1.shape[1]}"


def _reasons(model: Model, data: Source, params: Tree, local: LocalSettings) -> Iterator[str]:
    if compiled_loops() is None:
        yield "numba is not installed"
    if dict(model.rows) != ROWS.get(model.kernel):
        yield f"no compiled client for the model {model.name!r}"
    layout = layout_of(data)
    if layout is None:
        yield "these data draw their examples by themselves"
        return
    yield from _unfit_data(model, layout, params)
    for name, usual in (("precision", "fp32"), ("micro_batch", 0)):
        if getattr(local, name) != usual:
            yield f"{name}={getattr(local, name)!r} is for models that others train"
    for name in model.rows:
        value = params[name]
        if value.device.type != "cpu":
            yield f"parameters on {value.device.type}"
        elif isinstance(value, Tensor) and value.dtype != torch.float32:
            yield f"parameters of {value.dtype}"
        elif isinstance(value, Tensor) and not value.is_contiguous():
            yield f"{name!r} does not lie side by side in memory"


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
