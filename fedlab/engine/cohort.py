"""Local training: what the clients of a cohort do in a round, chunk after chunk, many at once.

A client holds only the rows it touches, and a step touches only the rows of its batch, so the work
follows the examples and not the catalogue. Memory follows a stated budget: a chunk is as many
clients as fit it; within it, groups of about equally wide batches train at once.

Clients come with most examples first. Step s is a dense block of the A_s clients that still have a
batch; clients that have finished fall off the end, so nobody waits and only a last, short batch is
padded (weight 0). A client's numbers depend on nobody beside it.

Letters: C clients, A_s of them active in step s, B examples each, M batches in all, n examples, R
rows.

Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
data", algorithm 1, ClientUpdate.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from fedlab.core import (
    Key,
    Local,
    ParameterError,
    RoundContext,
    Rows,
    Summed,
    Tree,
    Update,
    add_rows,
    arranged,
    as_tensor,
    joined,
    made_with,
    register,
    require,
)
from fedlab.data import Source
from fedlab.engine import fused, gpu
from fedlab.engine.backends import check_engine
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import Work, check_rows, kept, puts_off, run, stepwise
from fedlab.models import Model


class Correction(Protocol):
    """An offset to the gradient of each row, fixed over a round, against clients drifting apart."""

    def shift(self, name: str, ids: Tensor, client: Tensor, cohort: Tensor) -> Tensor:
        """The offsets (R, ...) of some rows of a parameter.

        ids (R,): the rows. client (R,): the place in the cohort of the client that holds each.
        """


@dataclass(frozen=True)
class Batches:
    """All local batches of a cohort, step after step; the first A_s clients have a batch in step s.

    columns: (M, B, ...) tensors. weight (M, B): 1 / (examples in the batch), 0 on padding. owner
    (M,): the client of each batch. active: A_s for each step, never growing.
    """

    columns: Tree
    weight: Tensor
    owner: Tensor
    active: list[int]


def arrange(examples: Tree, epochs: int, width: int) -> Batches:
    """Cut each client's epochs into batches of at most `width` examples, the last one shorter.

    examples: columns (n, ...) as `Federation.draw` gives them, the client with most examples first.
    """
    client, epoch = examples["client"], examples["epoch"]
    clients = int(client[-1]) + 1
    # examples in each epoch of each client
    sizes = torch.bincount(client * epochs + epoch, minlength=clients * epochs)
    cuts = (sizes + width - 1) // width  # batches in each
    total = cuts.view(clients, epochs).sum(1)  # (C,) local steps S of each client
    active = (total > torch.arange(int(total.max()), device=client.device)[:, None]).sum(1)

    def ramp(counts: Tensor) -> Tensor:  # 0, 1, ..., count - 1 for each count
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1]), device=client.device) - (
            ends - counts
        ).repeat_interleave(counts)

    start = (sizes.cumsum(0) - sizes).repeat_interleave(cuts) + ramp(cuts) * width
    length = (sizes.repeat_interleave(cuts) - ramp(cuts) * width).clamp(max=width)
    owner = torch.arange(clients, device=client.device).repeat_interleave(total)
    # from client- to step-major
    order = ((active.cumsum(0) - active)[ramp(total)] + owner).argsort()
    slot, length = torch.arange(width, device=client.device), length[order, None]
    # (M, B); padding repeats the last example
    places = start[order, None] + slot.minimum(length - 1)
    columns = {
        name: arranged(column, places)
        for name, column in examples.items()
        if name not in ("client", "epoch")
    }
    return Batches(columns, (slot < length) / length, owner[order], active.tolist())


@dataclass(frozen=True)
class RowIndex:
    """Which rows of a kind the clients hold.

    ids, client (R,): row of the parameter and position of the client, client after client. index
    (M, B): which of these each example uses, or None where a client holds a single row. live: R of
    each step, a prefix.
    """

    ids: Tensor
    client: Tensor
    index: Tensor | None
    live: list[int]


def holdings(model: Model, params: Tree, batches: Batches, cohort: Tensor) -> dict[str, RowIndex]:
    """For each kind of parameter rows, those that the clients' examples touch."""
    clients = len(cohort)
    everyone = torch.arange(clients, device=cohort.device)
    held = {
        "one": RowIndex(torch.zeros_like(cohort), everyone, None, batches.active),
        "client": RowIndex(cohort, everyone, None, batches.active),
    }
    for name, kind in model.rows.items():
        if kind not in held:
            size, column = len(params[name]), as_tensor(batches.columns[kind])
            check_rows(kind, column, size)
            keys, index = torch.unique(batches.owner[:, None] * size + column, return_inverse=True)
            client = keys // size
            ends = torch.bincount(client, minlength=clients).cumsum(0)
            live = ends[torch.tensor(batches.active) - 1].tolist()
            held[kind] = RowIndex(
                keys % size, client, None if len(keys) == clients else index, live
            )
    return held


def train(
    model: Model,
    params: Tree,
    batches: Batches,
    cohort: Tensor,
    local: LocalSettings,
    correction: Correction | None = None,
) -> tuple[dict[str, Rows], Tensor, Tensor]:
    """Train a cohort from `params`: (delta of each parameter, mean losses (C,), local steps (C,)).

    The mean loss is taken over a client's steps. The result equals training each client by itself;
    a delta is client minus server. correction: SCAFFOLD's control variates.
    """
    kinds = holdings(model, params, batches, cohort)
    held = {name: kinds[kind] for name, kind in model.rows.items()}

    def sent(name: str) -> Tensor:  # the rows as they came from the server
        return params[name].index_select(0, held[name].ids)  # 6x faster here than params[name][ids]

    values = {name: sent(name) for name in held}
    work = Work(
        _rows(values, held, batches, cohort, model, local, correction),
        {k: h.index for k, h in kinds.items()},
        batches.columns,
        batches.weight,
        batches.active,
        {name: h.live for name, h in held.items()},
    )
    losses = run(model, work, local)
    deltas = {
        name: Rows(
            values[name].sub_(params[name] if model.rows[name] == "one" else sent(name)),
            h.ids,
            h.client,
        )
        for name, h in held.items()
    }
    means = (losses * batches.weight).sum(1)  # (M,)
    steps = torch.bincount(batches.owner, minlength=len(cohort)).to(means)
    return deltas, add_rows(torch.zeros_like(steps), batches.owner, means) / steps, steps


def _rows(
    values: Tree,
    held: dict[str, RowIndex],
    batches: Batches,
    cohort: Tensor,
    model: Model,
    local: LocalSettings,
    correction: Correction | None,
) -> dict[str, Tree]:
    """The trees of `Work.rows`: the values, and what AdamW, FedProx or SCAFFOLD need of them."""
    rows: dict[str, Tree] = {"values": values, "means": {}, "squares": {}, "fixed": {}, "later": {}}
    sgd, late = local.optimizer == "sgd", puts_off(local, len(batches.active))
    for name, value in values.items():
        if not sgd:
            rows["means"][name], rows["squares"][name] = (
                torch.zeros_like(value),
                torch.zeros_like(value),
            )
        if name not in model.private and (local.proximal or correction):
            fixed = value * (local.local_lr * local.proximal) if sgd else value.clone()
            if correction is not None:
                at = held[name]
                fixed -= local.local_lr * correction.shift(name, at.ids, at.client, cohort)
            rows["later" if late and held[name].index is not None else "fixed"][name] = fixed
    return rows


Train = Callable[
    [Model, Tree, Tree, Tensor, LocalSettings, Correction | None],
    tuple[dict[str, Rows], Tensor, Tensor],
]
BLOCK, GPU_BLOCK = 256, 8192  # clients whose examples are drawn at once
# measured on a CPU: less costs steps, more leaves the cache (lesson 2: 64 and 1024 are 15% slower)
USUAL_MB = 128
SHARE = 0.25  # of a GPU's memory


def updates(
    model: Model,
    data: Source,
    params: Tree,
    cohort: Tensor,
    local: LocalSettings,
    *,
    seed: int = 0,
    number: int = 1,
    purpose: str = "",
    correction: Correction | None = None,
    train: Train | None = None,
    graphs: int = 1,
) -> Iterator[Update]:
    """Draw examples, train and yield the updates of a cohort, chunk by chunk, in its order.

    cohort (C,): client numbers, those with most examples first. seed, number, purpose: of the run,
    the round, and what sets these draws apart from a round's. correction: added to gradients, as
    SCAFFOLD does. train: what clients do with their examples, `train_cohort` unless given. graphs:
    how many steps it keeps for one backward pass, to plan memory by.
    """
    if not len(cohort):
        return
    device, first = next(iter(params.values())).device, 0
    weights, keys = data.counts[cohort].float(), keys_of(seed, number, purpose)
    if train is None and how(model, data, params, local) == "fused":
        if device.type == "cpu":
            yield from fused.updates(model, data, params, cohort, local, keys, correction)
            return
        train = gpu.train_cohort
    train = train or train_cohort
    if local.engine not in ("eager", "fused"):
        check_engine(local.engine, device)
    corrected = correction is not None
    for examples in chunks(
        model, data, params, cohort, local, keys, graphs=graphs, corrected=corrected
    ):
        here = slice(first, first + int(examples["client"][-1]) + 1)
        on_device = {name: column.to(device) for name, column in examples.items()}
        deltas, losses, steps = train(
            model, params, on_device, cohort[here].to(device), local, correction
        )
        yield Update(deltas, weights[here].to(device), losses, cohort[here], steps)
        first = here.stop


def keys_of(seed: int, number: int, purpose: str = "") -> tuple[Key, Key]:
    """The keys of a round's draws of examples and of noise."""
    return Key(seed, f"{purpose}examples", number), Key(seed, f"{purpose}noise", number)


def how(model: Model, data: Source, params: Tree, local: LocalSettings) -> str:
    """How local steps run: the engine, where it is eager in place of another with the reason."""
    if local.engine != "fused":
        return local.engine
    on_cpu = next(iter(params.values())).device.type == "cpu"
    why = stepwise(model, local) or (
        fused.unfit(model, data, params, local) if on_cpu else gpu.unfit(model, params, local)
    )
    return f"eager: {why}" if why else "fused"


def chunks(
    model: Model,
    data: Source,
    params: Tree,
    cohort: Tensor,
    local: LocalSettings,
    keys: tuple[Key, ...],
    *,
    graphs: int = 1,
    corrected: bool = False,
) -> Iterator[Tree]:
    """Yield the examples of the next clients, as many as fit the memory budget.

    keys: those of the draws of examples and of noise.
    """
    device = next(iter(params.values())).device
    budget, held, clients, used = _budget(local, device), [], 0, 0.0
    for block in cohort.split(BLOCK if device.type == "cpu" else GPU_BLOCK):
        if made_with(data, "draw", "draws_anywhere"):
            block = block.to(device)  # noqa: PLW2901 - the same clients
        examples = data.draw(block, local.local_epochs, local.negatives, keys[0])
        sizes = torch.bincount(examples["client"], minlength=len(block))
        examples |= model.pairs(params, examples)
        examples |= model.noise(block.to(sizes.device), sizes, keys[1])
        ends, first = [0, *sizes.cumsum(0).tolist()], 0
        for k, need in enumerate(
            client_bytes(model, params, examples, sizes, local, graphs, corrected).tolist()
        ):
            if local.memory_mb and need > budget:
                raise ParameterError(
                    f"memory_mb={local.memory_mb!r}: client {int(block[k])} alone needs about "
                    f"{need / 1e6:.1f} MB; choose {int(need / 1e6) + 1} or more, or a smaller "
                    "batch_size"
                )
            if used and used + need > budget:
                held.append(_part(examples, ends, first, k, clients))
                yield {name: joined([part[name] for part in held]) for name in held[0]}
                held, clients, used, first = [], 0, 0.0, k
            used += need
        held.append(_part(examples, ends, first, len(block), clients))
        clients += len(block) - first
    yield {name: joined([part[name] for part in held]) for name in held[0]}


def _budget(local: LocalSettings, device: torch.device) -> float:
    """Bytes that clients that train at once may take."""
    if local.memory_mb:
        return local.memory_mb * 1e6
    if device.type == "cuda":
        return SHARE * torch.cuda.get_device_properties(device).total_memory
    return USUAL_MB * 1e6 * min(local.local_epochs, 8)  # more examples, and no wider steps


def _part(examples: Tree, ends: list[int], first: int, last: int, before: int) -> Tree:
    """The examples of clients first..last - 1 of a block, behind `before` others in their chunk."""
    part = {name: column[ends[first] : ends[last]] for name, column in examples.items()}
    return part | {"client": part["client"] + (before - first)}


def client_bytes(
    model: Model,
    params: Tree,
    examples: Tree,
    sizes: Tensor,
    local: LocalSettings,
    graphs: int = 1,
    corrected: bool = False,
) -> Tensor:
    """About how many bytes (C,) each client takes while it trains.

    They are its rows and their copies, its examples, and `graphs` steps. sizes (C,): examples of
    each client. The bytes are counted from shapes and held against measured peaks in
    docs/performance.md.
    """
    width = (sizes // local.local_epochs).clamp(max=local.batch_size or 2**40)
    # as sent, trained, their difference, its weighted sum
    copies = 4 + 3 * (local.optimizer == "adamw")
    copies += 2 * (local.proximal > 0) + 2 * corrected
    column = sum(c[:1].nbytes for c in examples.values())
    need = sizes.double() * (3 * column + 48)  # drawn, sorted, arranged; looked up by row
    for name, kind in model.rows.items():
        floats = params[name].shape[1:].numel()
        if kind in examples:
            need += 4 * floats * (copies * sizes.clamp(max=len(params[name])) + 6 * graphs * width)
        else:
            need += 4 * floats * (copies + 2 * graphs)
    kept = width.clamp(max=local.micro_batch or 2**40)  # for the backward pass, and its gradients
    return need + 8 * graphs * model.activity * kept


def train_cohort(
    model: Model,
    params: Tree,
    examples: Tree,
    cohort: Tensor,
    local: LocalSettings,
    correction: Correction | None = None,
) -> tuple[dict[str, Rows], Tensor, Tensor]:
    """Train a cohort in groups of clients whose batches are about equally wide.

    Padding then stays below half. examples: as `Source.draw` gives them for `cohort`, which has the
    client with most examples first.
    """
    per_epoch = torch.bincount(examples["client"], minlength=len(cohort)) // local.local_epochs
    require(
        bool((per_epoch.diff() <= 0).all()),
        "cohort",
        cohort[:8].tolist(),
        "the clients with most examples come first here; order it by `data.counts`",
    )
    widths, alike = _alike(model, examples, per_epoch, local)
    deltas: list[dict[str, Rows]] = []
    losses, steps, first, seen = [], [], 0, 0
    for size in alike:
        last = first + size
        count = int(per_epoch[first:last].sum()) * local.local_epochs
        group = {name: column[seen : seen + count] for name, column in examples.items()}
        group["client"] = group["client"] - first
        batches = arrange(group, local.local_epochs, widths[first])
        delta, loss, taken = train(model, params, batches, cohort[first:last], local, correction)
        deltas.append({name: Rows(d.values, d.ids, d.client + first) for name, d in delta.items()})
        losses.append(loss)
        steps.append(taken)
        first, seen = last, seen + count
    return (
        {name: Rows.joined([d[name] for d in deltas]) for name in deltas[0]},
        torch.cat(losses),
        torch.cat(steps),
    )


def _alike(
    model: Model, examples: Tree, per_epoch: Tensor, local: LocalSettings
) -> tuple[list[int], list[int]]:
    """Find groups of neighbours that train alike: (width of each client's batches, group sizes).

    What sets groups apart is known from each client's own examples alone. per_epoch (C,): how many
    examples each client has.
    """
    width = room(per_epoch, local.batch_size)
    steps = (per_epoch + width - 1).div(width, rounding_mode="floor") * local.local_epochs
    apart = [width, *single(model, examples, len(per_epoch))]
    if kept(local) != 1:
        late = [puts_off(local, t) for t in range(int(steps.max()) + 1)]
        apart.append(torch.tensor(late, device=steps.device)[steps])
    cut = torch.stack([(column[1:] != column[:-1]) for column in apart]).any(0).nonzero()[:, 0] + 1
    ends = [0, *cut.tolist(), len(per_epoch)]
    return width.tolist(), [last - first for first, last in pairwise(ends)]


def room(count: Tensor, batch_size: int) -> Tensor:
    """The width (C,) of each client's batches, from its own number of examples in an epoch (C,).

    That number is rounded up to a power of two, and the width is at most the batch size. Where a
    batch takes a whole epoch, it is rounded up to a multiple of an eighth of that power, so that
    less than a quarter is padding.
    """
    wide = 2 ** count.double().log2().ceil().long()
    if batch_size:
        return wide.clamp(max=batch_size)
    part = (wide // 8).clamp(min=1)
    return (count + part - 1) // part * part


def single(model: Model, examples: Tree, clients: int) -> list[Tensor]:
    """For each kind of looked-up rows (C,), whether all examples of a client look up the same one.

    Such a client's row is broadcast and its gradient is a product, whose bits differ from those of
    a look-up.
    """
    client = examples["client"]
    inside = client[1:] == client[:-1]
    found = []
    for kind in sorted(set(model.rows.values()) - {"one", "client"}):
        rows = as_tensor(examples[kind])
        several = client[1:][(rows[1:] != rows[:-1]) & inside]
        found.append(torch.bincount(several, minlength=clients) == 0)
    return found


@register
class SGD(LocalSettings, Local):
    """Epochs of SGD or AdamW over each client's own examples, from the server's parameters."""

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The number of negatives, where none are drawn."""
        return () if facts.get("negatives") else ("negatives",)

    def work(self, context: RoundContext, cohort: Tensor) -> Tensor:
        """(C,) examples that each client goes through: clicks come with their negatives."""
        drawn = 1 + self.negatives * (context.data.task == "clicks")
        counts: Tensor = context.data.counts[cohort]
        return counts * self.local_epochs * drawn

    def tells(self, context: RoundContext) -> Tree:
        """Nothing: parameters are all that clients need."""
        return {}

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield each client's delta, chunk by chunk."""
        context.notes["engine"] = how(context.model, context.data, context.params, self)
        return updates(
            context.model,
            context.data,
            context.params,
            cohort,
            self,
            seed=context.seed,
            number=context.number,
        )

    def train_summed(
        self, context: RoundContext, cohort: Tensor, weights: Tensor, longest: float
    ) -> Summed | None:
        """The sum of what `train` yields, where the engine is fused."""
        model, data, params = context.model, context.data, context.params
        on_cpu = next(iter(params.values())).device.type == "cpu"
        if how(model, data, params, self) != "fused" or not fused.sums_up(model):
            return None
        context.notes["engine"] = "fused"
        keys = keys_of(context.seed, context.number)
        if on_cpu:
            return fused.summed(model, data, params, cohort, self, keys, weights, longest)
        parts, own = chunks(model, data, params, cohort, self, keys), data.counts[cohort].float()
        return gpu.summed(model, params, parts, cohort, own, self, weights, longest)
