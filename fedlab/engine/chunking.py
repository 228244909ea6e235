"""A cohort trains chunk after chunk.

So that memory follows a stated budget and not the number of clients.

Clients come with most examples first. What each draws is keyed by its number, so the budget decides
what is in memory together and no result. A chunk is as many clients as fit the budget; within it,
groups of about equally wide batches train at once.

A client's delta has the same bits in every group, since nothing that its arithmetic hangs on comes
from its neighbours: how wide its batches are padded, whether it holds a single row, whether SGD may
put off its pull. (By the eager engine, on a CPU, one thread.)

Letters: C clients in the cohort, n examples, B examples a step, R rows.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fedlab.core import Config, Key, Rows, Tree, Update, as_tensor, joined, require
from fedlab.data import Source
from fedlab.engine.batches import Correction, arrange, train
from fedlab.engine.step import puts_off
from fedlab.models import Model

Train = Callable[[Model, Tree, Tree, Tensor, Config, Correction | None], tuple[dict[str, Rows],
                                                                               Tensor, Tensor]]
BLOCK = 256          # clients whose examples are drawn at once
# measured on a CPU: less costs steps, more leaves the cache (lesson 2: 64 and 1024 are 15% slower)
USUAL_MB = 128


def updates(model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
            number: int = 1, purpose: str = "", control: Correction | None = None,
            train: Train | None = None, graphs: int = 1) -> Iterator[Update]:
    """Draw, train and hand over a cohort, chunk by chunk, in its order (most examples first).

    cohort (C,): client numbers. number, purpose: the round, and what sets these draws apart from a
    round's. control: SCAFFOLD's variates. train: what clients do with their examples,
    `train_cohort` unless given. graphs: how many steps it keeps for one backward pass, to plan
    memory by.
    """
    if not len(cohort):
        return
    device, first, train = next(iter(params.values())).device, 0, train or train_cohort
    weights = data.counts[cohort].float() if config.weighting == "examples" else torch.ones(
        len(cohort))
    for examples in chunks(model, data, params, cohort, config, number=number, purpose=purpose,
                           graphs=graphs):
        here = slice(first, first + int(examples["client"][-1]) + 1)
        on_device = {name: column.to(device) for name, column in examples.items()}
        deltas, losses, steps = train(model, params, on_device, cohort[here].to(device), config,
                                      control)
        yield Update(deltas, weights[here].to(device), losses, cohort[here], steps)
        first = here.stop


def chunks(model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *, number: int,
           purpose: str, graphs: int = 1) -> Iterator[Tree]:
    """Examples of the next clients, as many as fit the memory budget."""
    # more epochs are more examples, and no wider steps
    usual = USUAL_MB * min(config.local_epochs, 8)
    budget, held, clients, used = (config.memory_mb or usual) * 1e6, [], 0, 0.0
    key, noise = (Key(config.seed, f"{purpose}{what}", number) for what in ("examples", "noise"))
    for block in cohort.split(BLOCK):
        examples = data.draw(block, config.local_epochs, config.negatives, key)
        sizes = torch.bincount(examples["client"], minlength=len(block))
        examples |= model.noise(block, sizes, noise)
        ends, first = [0, *sizes.cumsum(0).tolist()], 0
        for k, need in enumerate(client_bytes(model, params, examples, sizes, config,
                                              graphs).tolist()):
            fits = not config.memory_mb or need <= budget
            require(fits, "memory_mb", config.memory_mb, f"client {int(block[k])} alone needs about "
                    f"{need / 1e6:.1f} MB; choose {int(need / 1e6) + 1} or more, or a smaller batch_size")
            if used and used + need > budget:
                held.append(_part(examples, ends, first, k, clients))
                yield {name: joined([part[name] for part in held]) for name in held[0]}
                held, clients, used, first = [], 0, 0.0, k
            used += need
        held.append(_part(examples, ends, first, len(block), clients))
        clients += len(block) - first
    yield {name: joined([part[name] for part in held]) for name in held[0]}


def _part(examples: Tree, ends: list[int], first: int, last: int, before: int) -> Tree:
    """The examples of clients first..last - 1 of a block.

    Who follow `before` others in their chunk.
    """
    part = {name: column[ends[first]:ends[last]] for name, column in examples.items()}
    return part | {"client": part["client"] + (before - first)}


def client_bytes(model: Model, params: Tree, examples: Tree, sizes: Tensor, config: Config,
                 graphs: int = 1) -> Tensor:
    """(C,) about what each client takes while it trains.

    Its rows and their copies, its examples, `graphs` steps.

    sizes (C,): examples of each client. Counted from shapes and held against measured peaks in
    docs/performance.md.
    """
    width = (sizes // config.local_epochs).clamp(max=config.batch_size or 2**40)
    # as sent, trained, their difference, its weighted sum
    copies = 4 + 3 * (config.optimizer == "adamw")
    copies += 2 * (config.proximal > 0) + 2 * (config.correction != "none")
    column = sum(c[:1].nbytes for c in examples.values())
    need = sizes.double() * (3 * column + 48)  # drawn, sorted, arranged; looked up by row
    for name, kind in model.rows.items():
        floats = params[name].shape[1:].numel()
        if kind in examples:
            need += 4 * floats * (copies * sizes.clamp(max=len(params[name])) + 6 * graphs * width)
        else:
            need += 4 * floats * (copies + 2 * graphs)
    kept = width.clamp(max=config.micro_batch or 2**40)  # for the backward pass, and its gradients
    return need + 8 * graphs * model.activity * kept


def train_cohort(model: Model, params: Tree, examples: Tree, cohort: Tensor, config: Config,
                 control: Correction | None = None) -> tuple[dict[str, Rows], Tensor, Tensor]:
    """`client.train` in groups of clients whose batches are about equally wide.

    So that padding stays below half.

    examples: as `Source.draw` gives them for `cohort`, which has the client with most examples
    first.
    """
    per_epoch = torch.bincount(examples["client"], minlength=len(cohort)) // config.local_epochs
    widths, alike = _alike(model, examples, per_epoch, config)
    deltas: list[dict[str, Rows]] = []
    losses, steps, first, seen = [], [], 0, 0
    for size in alike:
        last = first + size
        count = int(per_epoch[first:last].sum()) * config.local_epochs
        group = {name: column[seen:seen + count] for name, column in examples.items()}
        group["client"] = group["client"] - first
        batches = arrange(group, config.local_epochs, widths[first])
        delta, loss, taken = train(model, params, batches, cohort[first:last], config, control)
        deltas.append({name: Rows(d.values, d.ids, d.client + first) for name, d in delta.items()})
        losses.append(loss)
        steps.append(taken)
        first, seen = last, seen + count
    return {name: Rows.joined([d[name] for d in deltas]) for name in deltas[0]}, torch.cat(
        losses), torch.cat(steps)


def _alike(model: Model, examples: Tree, per_epoch: Tensor,
           config: Config) -> tuple[list[int], list[int]]:
    """(width of each client's batches (C,), sizes of the groups of neighbours that train alike).

    What sets groups apart is known from each client's own examples alone. per_epoch (C,): examples.
    """
    width = room(per_epoch, config.batch_size)
    steps = (per_epoch + width - 1).div(width, rounding_mode="floor") * config.local_epochs
    most = int(steps.max())
    late = torch.tensor([puts_off(config, t) for t in range(most + 1)], device=steps.device)[steps]
    apart = [width, late, *single(model, examples, len(per_epoch))]
    cut = torch.stack([(column[1:] != column[:-1]) for column in apart]).any(0).nonzero()[:, 0] + 1
    ends = [0, *cut.tolist(), len(per_epoch)]
    return width.tolist(), [last - first for first, last in pairwise(ends)]


def room(count: Tensor, batch_size: int) -> Tensor:
    """(C,) how wide a client's batches are padded, by its own examples of an epoch alone (C,).

    To a power of two, at most the batch size; whole epochs in one batch to an eighth of that, so
    that less than a quarter is padding.
    """
    wide = 2 ** count.double().log2().ceil().long()
    if batch_size:
        return wide.clamp(max=batch_size)
    part = (wide // 8).clamp(min=1)
    return (count + part - 1) // part * part


def single(model: Model, examples: Tree, clients: int) -> list[Tensor]:
    """For each kind of looked-up rows (C,), whether all examples of a client look up the same one.

    Such a client's row is broadcast and its gradient is a product, in other bits than by look-up.
    """
    client = examples["client"]
    inside = client[1:] == client[:-1]
    found = []
    for kind in sorted(set(model.rows.values()) - {"one", "client"}):
        rows = as_tensor(examples[kind])
        change = ((rows[1:] != rows[:-1]) & inside).float()
        found.append(torch.zeros(clients, device=client.device).index_add_(0, client[1:],
                                                                           change) == 0)
    return found
