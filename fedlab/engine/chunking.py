"""A cohort trains chunk after chunk.

So that memory follows a stated budget and not the number of clients.

Clients come with most examples first. Their examples are drawn for `BLOCK` clients at a time, each
block with its own keyed generator, so the budget decides what is in memory together and no result.
A chunk is as many clients as fit the budget; within it, groups of about equally wide batches train
at once.

Letters: C clients in the cohort, n examples, B examples a step, R rows.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedlab.core import Config, Rows, Tree, Update, joined, require, stream
from fedlab.data import Source
from fedlab.engine.batches import Correction, arrange, train
from fedlab.models import Model

Train = Callable[[Model, Tree, Tree, Tensor, Config, Correction | None], tuple[dict[str, Rows],
                                                                               Tensor, Tensor]]
BLOCK = 256
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
    for place, block in enumerate(cohort.split(BLOCK)):
        which = f" {place}" if place else ""
        examples = data.draw(block, config.local_epochs, config.negatives,
                             stream(config.seed, f"{purpose}examples{which}", number))
        examples |= model.noise(len(examples["client"]), stream(config.seed,
                                                                f"{purpose}noise{which}", number))
        sizes = torch.bincount(examples["client"], minlength=len(block))
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
    longest = config.batch_size or int(per_epoch[0])
    widths = (2 ** per_epoch.double().log2().ceil().long()).clamp(max=longest).tolist()
    deltas: list[dict[str, Rows]] = []
    losses, steps, first, seen = [], [], 0, 0
    while first < len(widths):
        last = first + widths[first:].count(widths[first])
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
