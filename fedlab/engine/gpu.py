"""Clients of a cohort on a GPU, for the models whose kernels are in `kernels.py`.

A round on a GPU waits for the host that launches its operations, hundreds of them if each local
step is some. Here all local steps of all clients are one, and what nobody has to see singly is
added up before the host looks at it.

Letters: C clients, n examples, R rows of a table that clients hold, S of users, H its height, D
numbers in each.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedlab.core import Lookup, Rows, Summed, Tree, Update
from fedlab.engine.fused import LAYERS, ROWS
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import check_rows, kept
from fedlab.models import Model

WIDEST = 128  # examples of a batch, dimensions, inputs, hidden units: what registers have room for
LEAST = 16  # of each size of a matrix product in Triton
KERNELS = ("factors", "perceptron")
TABLES = ("item", "bias", "user")  # in the order of the kernel


def unfit(model: Model, params: Tree, local: LocalSettings) -> str:
    """Why the clients of this model cannot be trained by one kernel; '' where they can."""
    return next(_reasons(model, params, local), "")


def _reasons(model: Model, params: Tree, local: LocalSettings) -> Iterator[str]:
    if importlib.util.find_spec("triton") is None:
        yield "triton is not installed"
    if model.kernel not in KERNELS or dict(model.rows) != ROWS[model.kernel] or model.constants:
        yield f"no kernel for the model {model.name!r}"
        return
    usual = {"optimizer": "sgd", "precision": "fp32", "micro_batch": 0}
    for name, value in usual.items():
        if getattr(local, name) != value:
            yield f"{name}={getattr(local, name)!r} is for models that others train"
    if not 0 < local.batch_size <= WIDEST:
        yield f"batch_size={local.batch_size!r}; a kernel takes 1 to {WIDEST}"
    for name in model.rows:
        shape = params[name].shape
        if max(shape[1:], default=1) > WIDEST:
            yield f"{name!r} has {max(shape[1:])} columns; a kernel takes {WIDEST}"
        if not isinstance(params[name], Tensor) or params[name].dtype != torch.float32:
            yield f"{name!r} is no table of float32"


class HeldRows(NamedTuple):
    """Rows of a kind that clients hold, client after client.

    ids, client (R,): the row, and who holds it. place (n,): which of these an example uses. starts
    (C + 1,): where those of each client begin.
    """

    ids: Tensor
    client: Tensor
    place: Tensor
    starts: Tensor


class Trained(NamedTuple):
    """What clients have learned: deltas by name, mean losses (C,), local steps (C,).

    squares (C,): the squared lengths of what they send. rows: of each kind, how many (C,).
    """

    deltas: dict[str, Rows]
    losses: Tensor
    steps: Tensor
    squares: Tensor
    rows: dict[str, Tensor]


class Job(NamedTuple):
    """What the kernels of a group of clients are handed; starts (C + 1,): of their examples."""

    model: Model
    params: Tree
    examples: Tree
    cohort: Tensor
    local: LocalSettings
    correction: Any
    starts: Tensor
    losses: Tensor
    squares: Tensor

    @property
    def moves(self) -> bool:
        """Whether a step moves rows that none of its examples touches."""
        local = self.local
        return self.correction is not None or local.weight_decay > 0 or local.proximal > 0

    def fixed(
        self, values: Tree, held: Callable[[str], tuple[Tensor, Tensor]]
    ) -> tuple[Tree, dict[str, float]]:
        """What each step adds to all rows, and the share that it keeps of them.

        held: gives the ids and clients of the rows of a parameter.
        """
        local, fixed, keep = self.local, dict[str, Tensor](), dict[str, float]()
        for name, value in values.items():
            free = name in self.model.private
            keep[name] = 1 - local.local_lr * local.weight_decay if free else kept(local)
            fixed[name] = value * (0.0 if free else local.local_lr * local.proximal)
            if self.correction is not None and not free:
                shift = self.correction.shift(name, *held(name), self.cohort)
                fixed[name] -= local.local_lr * shift
        return fixed, keep


def train_cohort(
    model: Model,
    params: Tree,
    examples: Tree,
    cohort: Tensor,
    local: LocalSettings,
    correction: Any = None,
) -> tuple[dict[str, Rows], Tensor, Tensor]:
    """Train a cohort (C,) from `params`: (delta of each parameter, mean losses, local steps (C,)).

    examples: as `Source.draw` gives them, all of them on the device of the parameters.
    """
    found = trained(model, params, examples, cohort, local, correction)
    return found.deltas, found.losses, found.steps


def summed(
    model: Model,
    params: Tree,
    chunks: Iterable[Tree],
    cohort: Tensor,
    counts: Tensor,
    local: LocalSettings,
    weights: Tensor,
    longest: float,
) -> Summed:
    """Train a cohort (C,) and add up what it sends; see `Local.train_summed`.

    chunks: examples of the next clients, as `engine.chunks` yields them. counts (C,): how much each
    client's update weighs by itself. A chunk is added up in one order, then chunks in theirs.
    """
    total = {n: torch.zeros_like(p) for n, p in params.items() if n not in model.private}
    device, first, parts, own = (
        next(iter(params.values())).device,
        0,
        list[Trained](),
        dict[str, list[Rows]](),
    )
    for examples in chunks:
        clients = int(examples["client"][-1]) + 1
        here = slice(first, first + clients)
        found = trained(model, params, examples, cohort[here].to(device), local)
        fine = (found.squares.double().sqrt() <= longest) & found.losses.isfinite()
        share = torch.where(fine, weights[here].to(device), 0.0)
        for name, into in total.items():
            _add(into, found.deltas[name], share)
        for name in model.private:
            rows = found.deltas[name]
            own.setdefault(name, []).append(Rows(rows.values, rows.ids, rows.client + first))
        parts.append(found._replace(deltas={}))
        first = here.stop
    losses, steps, squares = (
        torch.cat([getattr(part, name) for part in parts]).cpu()
        for name in ("losses", "steps", "squares")
    )
    sent = Update({}, counts, losses, cohort, steps)
    sizes = {k: torch.cat([part.rows[k] for part in parts]).cpu() for k in parts[0].rows}
    sizes = {kind: sizes[kind] for kind in {model.rows[name] for name in total}}
    kept = {name: Rows.joined(rows) for name, rows in own.items()}
    return Summed(sent, squares.double().sqrt(), sizes, dict(total), kept)


def _add(into: Tensor, delta: Rows, share: Tensor) -> None:
    """Add a delta's rows, each times the share (C,) of its client, to a table (H, ...).

    Rows of clients with the share 0 may be no numbers.
    """
    from fedlab.engine import kernels  # noqa: PLC0415 - loads Triton

    weights = share[delta.client]
    values = delta.values.view(len(delta.ids), -1)
    if len(into) == 1:
        rows = torch.where(weights[:, None] > 0, values, 0.0)
        into += (weights @ rows).view(into.shape)
        return
    ids, order = delta.ids.sort(stable=True)
    numbers, counts = ids.unique_consecutive(return_counts=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    sums = values.new_empty(len(numbers), values.shape[1])
    width = values.shape[1]
    kernels.sum_rows[(len(numbers),)](
        torch.where(weights[:, None] > 0, values, 0.0),
        weights,
        order,
        starts,
        sums,
        width,
        _room(width),
        32,
        enable_fp_fusion=True,
    )
    into.index_add_(0, numbers, sums.view(-1, *into.shape[1:]))  # each number once


def trained(
    model: Model,
    params: Tree,
    examples: Tree,
    cohort: Tensor,
    local: LocalSettings,
    correction: Any = None,
) -> Trained:
    """Train a cohort (C,) whose examples are there."""
    client, clients = examples["client"], len(cohort)
    starts = torch.searchsorted(client, torch.arange(clients + 1, device=client.device))
    batch, epochs = local.batch_size, local.local_epochs
    each = starts.diff() // epochs
    steps = ((each + batch - 1) // batch * epochs).float()
    losses, squares = torch.empty_like(steps), torch.empty_like(steps)
    job = Job(model, params, examples, cohort, local, correction, starts, losses, squares)
    deltas, rows = (_factors if model.kernel == "factors" else _perceptron)(job)
    return Trained(deltas, losses, steps, squares, rows)


def _room(size: int, least: int = 1) -> int:
    """A size rounded up to a power of two."""
    return max(least, 1 << (size - 1).bit_length())


def _held(kind: str, client: Tensor, column: Tensor, height: int, clients: int) -> HeldRows:
    """The rows of a table of this height that column (n,) of the examples looks up."""
    check_rows(kind, column, height)
    keys, place = torch.unique(client * height + column, return_inverse=True)
    owner = keys // height
    starts = torch.searchsorted(owner, torch.arange(clients + 1, device=owner.device))
    return HeldRows(keys % height, owner, place, starts)


def _given(job: Job) -> Any:
    """The examples as kernels read them, with a wide column as rows of a table."""
    from fedlab.engine import kernels  # noqa: PLC0415 - loads Triton

    target, local = job.examples["target"], job.local
    x: Any = job.examples.get("x", Lookup(target, job.starts))  # which nobody reads
    if not isinstance(x, Lookup):
        x = Lookup(x, torch.arange(len(x), device=x.device))
    how = local.batch_size, local.local_epochs, local.local_lr
    return kernels.Given(job.starts, target, x.table.contiguous(), x.rows, *how)


def _factors(job: Job) -> tuple[dict[str, Rows], dict[str, Tensor]]:
    """Train clients of matrix factorisation: (their deltas, how many rows of each kind)."""
    from fedlab.engine import kernels  # noqa: PLC0415 - loads Triton

    model, params, local, clients = job.model, job.params, job.local, len(job.cohort)
    kinds = {
        kind: _held(kind, job.examples["client"], job.examples[kind], len(params[kind]), clients)
        for kind in ("item", "user")
    }
    of = {name: kinds[model.rows[name]] for name in TABLES}
    values = {n: params[n].new_empty(len(of[n].ids), *params[n].shape[1:]) for n in TABLES}
    fixed, keep = values, dict.fromkeys(TABLES, 1.0)
    if job.moves:
        begun = {name: params[name].index_select(0, of[name].ids) for name in TABLES}
        fixed, keep = job.fixed(begun, lambda name: (of[name].ids, of[name].client))
    width = params["item"].shape[1]
    item, bias, user = (
        kernels.Table(
            values[name],
            params[name],
            fixed[name],
            of[name].ids,
            of[name].starts,
            of[name].place,
            keep[name],
            1 if name == "bias" else width,
        )
        for name in ("item", "bias", "user")
    )
    kernels.factors[(clients,)](
        item,
        bias,
        user,
        _given(job),
        kernels.Told(job.losses, job.squares),
        len(kinds["user"].ids) > clients,
        "user" in model.private,
        job.moves,
        model.task == "clicks",
        _room(local.batch_size, LEAST),
        _room(width, LEAST),
        enable_fp_fusion=True,
    )
    deltas = {name: Rows(values[name], h.ids, h.client) for name, h in of.items()}
    return deltas, {kind: held.starts.diff() for kind, held in kinds.items()}


def _perceptron(job: Job) -> tuple[dict[str, Rows], dict[str, Tensor]]:
    """Train clients of a perceptron: (their deltas, how many rows of each kind)."""
    from fedlab.engine import kernels  # noqa: PLC0415 - loads Triton

    clients, local = len(job.cohort), job.local
    everyone = torch.arange(clients, device=job.starts.device)
    none = torch.zeros_like(everyone)
    server = {name: job.params[name] for name in LAYERS}
    deltas = {name: v.new_empty(clients, *v.shape[1:]) for name, v in server.items()}
    fixed, keep = server, dict.fromkeys(LAYERS, 1.0)
    if job.moves:
        values = {name: v.expand(clients, *v.shape[1:]) for name, v in server.items()}
        fixed, keep = job.fixed(values, lambda _: (none, everyone))
    inputs, hidden = server["w1"].shape[1:]
    kernels.perceptron[(clients,)](
        *(kernels.Layers(**tables) for tables in (server, fixed, deltas)),
        _given(job),
        kernels.Told(job.losses, job.squares),
        keep["w1"],
        inputs,
        hidden,
        job.moves,
        job.model.task == "clicks",
        *(_room(size, LEAST) for size in (local.batch_size, inputs, hidden)),
        enable_fp_fusion=True,
    )
    rows = {name: Rows(delta, none, everyone) for name, delta in deltas.items()}
    return rows, {"one": torch.ones_like(everyone)}
