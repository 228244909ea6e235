"""The ways to take the local steps of a group of clients: eager, compiled, captured.

eager runs the step as it stands. compiled fuses it with `torch.compile` and leaves sizes and rates
open: another cohort, batch size or learning rate runs the same code at once. captured replays all
steps of a group as one CUDA graph, for cohorts whose clients take equal numbers of steps.

Letters: M batches, B examples each, R rows.
"""

import functools
import importlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import ParameterError, Tree, as_tensor, require
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import Numbers, Step, Work, build, hyper, loop
from fedlab.models import Model

Predict = Callable[[Tree, Tree], Tensor]


def other_steps(model: Model, work: Work, local: LocalSettings, eager: Step) -> Tensor:
    """Take all steps of `work` in place, compiled or captured, and return the predictions (M, B).

    eager: the step as it stands.
    """
    on_device = torch.tensor(hyper(local, len(work.active)), device=work.weight.device)
    if local.engine == "captured":
        return _replay(eager, model, work, on_device, local)
    with _tracing():
        fused = _fused(
            model.predict,
            model.pullback,
            model.task,
            tuple(model.rows.items()),
            local.optimizer,
            local.precision,
            local.micro_batch,
        )
        return loop(fused, eager, work, model.constants, on_device)


def check_engine(engine: str, device: torch.device) -> None:
    """Raise `ParameterError` for an engine that this machine or device cannot run."""
    if engine == "compiled":
        found = _compiler(os.environ.get("PATH", ""), os.environ.get("CXX", "")) is not None
        require(
            found,
            "engine",
            "compiled",
            "no C++ compiler on this machine; install g++, or choose 'eager'",
        )
    if engine == "captured":
        fix = f"CUDA graphs need device='cuda', not {device.type!r}; choose 'eager'"
        require(device.type == "cuda", "engine", "captured", fix)


@functools.lru_cache(maxsize=8)
def _compiler(path: str, named: str) -> str | None:
    return next(
        filter(
            None,
            (shutil.which(name, path=path) for name in (named, "g++", "clang++", "cl") if name),
        ),
        None,
    )


@functools.lru_cache(maxsize=64)
def _fused(
    predict: Predict,
    pullback: Any,
    task: str,
    rows: tuple[tuple[str, str], ...],
    optimizer: str,
    precision: str,
    micro: int,
) -> Step:
    """Compile the step of a model.

    The result is kept for as long as the model's `predict` is the same function.
    """
    with warnings.catch_warnings():
        # torch 2.13 warns of its own code when its compiler is imported
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
    model = Model("", task, _no_init, predict, dict(rows), pullback=pullback)
    step = torch.compile(build(model, optimizer, precision, micro, multiply=True), fullgraph=True)
    fresh = [True]

    def marked(
        held: Mapping[str, Tree],
        index: Mapping[str, Tensor | None],
        columns: Tree,
        constants: Tree,
        weight: Tensor,
        numbers: Numbers,
    ) -> Tensor:
        if fresh:  # clients, batch and rows may change; other sizes do not
            fresh.clear()
            for tree in held.values():
                for value in tree.values():
                    torch._dynamo.mark_dynamic(value, 0)
            for grid in (*index.values(), *columns.values(), weight):
                if grid is not None:
                    torch._dynamo.mark_dynamic(grid, (0, 1))
        return step(held, index, columns, constants, weight, numbers)

    return marked


def _no_init(seed: int) -> Tree:
    return {}


@contextmanager
def _tracing() -> Iterator[None]:
    """Settings under which a step compiles once.

    Gradients are traced as a part of it, and no two sizes are taken for one by chance.
    """
    sizes = importlib.import_module("torch.fx.experimental._config").patch(use_duck_shape=False)
    traced = importlib.import_module("torch._dynamo.config").patch(
        trace_autograd_ops=True, recompile_limit=64
    )
    try:
        with sizes, traced:
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(
            f"engine='compiled': the model cannot be compiled ({reason}); choose 'eager'"
        ) from error


_graphs: "dict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor, Tree]]" = {}
GRAPHS = 8  # kept at most: each holds buffers of its own


def padded(work: Work, kinds: Mapping[str, str]) -> Work:
    """The same work with its looked-up rows padded to a power of two.

    Its sizes then come back round after round.
    """
    room = {
        name: 1 << (len(v) - 1).bit_length() if work.index[kinds[name]] is not None else len(v)
        for name, v in work.rows["values"].items()
    }

    def widen(name: str, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(room[name] - len(rows), *rows.shape[1:])])

    wide = {
        what: {name: widen(name, v) for name, v in tree.items()} for what, tree in work.rows.items()
    }
    return replace(
        work, rows=wide, live={name: [rows] * len(work.active) for name, rows in room.items()}
    )


def _replay(eager: Step, model: Model, work: Work, numbers: Tensor, local: LocalSettings) -> Tensor:
    """Run all steps as one CUDA graph, which is captured once for each set of sizes.

    A group whose clients take unequal numbers of steps has sizes of its own each round and runs
    eagerly.
    """
    if len(set(work.active)) > 1:
        return loop(eager, eager, work, model.constants, numbers)
    wide = padded(
        replace(work, columns={name: as_tensor(c) for name, c in work.columns.items()}), model.rows
    )
    last = {"weight": wide.weight, "numbers": numbers}
    trees = (*wide.rows.values(), wide.index, wide.columns, last)
    given = [t for tree in trees for t in tree.values() if t is not None]
    fixed = tuple(c.data_ptr() for c in model.constants.values())
    key = (
        model.predict,
        local.optimizer,
        local.precision,
        len(work.active),
        fixed,
        *map(len, trees),
        *(t.shape for t in given),
    )
    if key not in _graphs:
        if len(_graphs) >= GRAPHS:
            _graphs.pop(next(iter(_graphs)))  # the oldest
        _graphs[key] = _capture(eager, wide, given, numbers, model.constants)
    graph, buffers, found, _ = _graphs[key]
    for buffer, tensor in zip(buffers, given, strict=True):
        buffer.copy_(tensor)
    graph.replay()
    # the buffers of the values come first
    for held, buffer in zip(work.rows["values"].values(), buffers, strict=False):
        held.copy_(buffer[: len(held)])
    return found.clone()


def _capture(
    eager: Step, wide: Work, given: list[Tensor], numbers: Tensor, constants: Tree
) -> "tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor, Tree]":
    """Capture all steps of a group: (graph, its input buffers, its predictions, its constants).

    The buffers are in the order of `given`; the constants are those that the graph reads.
    """
    buffers = [t.clone() for t in given]
    mine = {id(t): buffer for t, buffer in zip(given, buffers, strict=True)}

    def swap(tree: Mapping[str, Tensor | None]) -> dict[str, Any]:
        return {name: None if t is None else mine[id(t)] for name, t in tree.items()}

    static = replace(
        wide,
        rows={what: swap(tree) for what, tree in wide.rows.items()},
        index=swap(wide.index),
        columns=swap(wide.columns),
        weight=mine[id(wide.weight)],
    )
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up off the stream that is captured
        for _ in range(2):
            loop(eager, eager, static, constants, mine[id(numbers)])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = loop(eager, eager, static, constants, mine[id(numbers)])
    return graph, buffers, found, constants
