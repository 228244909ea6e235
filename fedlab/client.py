"""Local training: what one client does in a round, for all clients of a cohort at once.

Clients' parameters are disjoint, so the gradient of the *sum* of their losses is every client's own gradient:
one backward pass serves all. A client holds only the rows it touches, and a step touches only the rows of
its batch, so the work follows the examples and not the catalogue.

Clients come longest first. Step s is a dense block of the A_s clients that still have a batch; clients that
have finished fall off the end, so nobody waits and only a last, short batch is padded (weight 0).

Letters: C clients, A_s of them active in step s, B examples a step, M batches in all, R rows.
Sources: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
algorithm 1, ClientUpdate; Loshchilov, Hutter 2019, algorithm 2 (AdamW).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Config, Rows, Tree
from fedlab.models import Model

Apply = Callable[[Tensor, Tensor | None, Tensor, int], None]


@dataclass(frozen=True)
class Batches:
    """All local batches of a cohort, step after step; the first A_s clients have a batch in step s.

    columns: (M, B, ...) tensors. weight (M, B): 1 / (examples in the batch), 0 on padding.
    owner (M,): the client of each batch. active: A_s for each step, never growing.
    """

    columns: Tree
    weight: Tensor
    owner: Tensor
    active: list[int]


def arrange(examples: Tree, epochs: int, width: int) -> Batches:
    """Cut each client's epochs into batches of at most `width` examples, the last one short.

    examples: columns (n, ...) as `Federation.draw` gives them, the client with most examples first.
    """
    client, epoch = examples["client"], examples["epoch"]
    clients = int(client[-1]) + 1
    sizes = torch.bincount(client * epochs + epoch, minlength=clients * epochs)  # of a client's epoch
    cuts = (sizes + width - 1) // width                         # batches in each
    total = cuts.view(clients, epochs).sum(1)                   # (C,) local steps S of each client
    active = (total > torch.arange(int(total.max()), device=client.device)[:, None]).sum(1)

    def ramp(counts: Tensor) -> Tensor:                         # 0, 1, ..., count - 1 for each count
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1]), device=client.device) - (ends - counts).repeat_interleave(counts)

    start = (sizes.cumsum(0) - sizes).repeat_interleave(cuts) + ramp(cuts) * width
    length = (sizes.repeat_interleave(cuts) - ramp(cuts) * width).clamp(max=width)
    owner = torch.arange(clients, device=client.device).repeat_interleave(total)
    order = ((active.cumsum(0) - active)[ramp(total)] + owner).argsort()   # from client- to step-major
    slot, length = torch.arange(width, device=client.device), length[order, None]
    places = start[order, None] + slot.minimum(length - 1)      # (M, B); padding repeats the last example
    columns = {name: column[places] for name, column in examples.items() if name not in ("client", "epoch")}
    return Batches(columns, (slot < length) / length, owner[order], active.tolist())


@dataclass(frozen=True)
class Local:
    """One parameter's rows on the clients.

    index: for each step the row of each example (A_s * B,). None when each client holds just one row: then
    nothing is looked up, the row broadcasts over the examples (`over_examples`: it needs an axis for them).
    """

    values: Tensor         # (R, ...)
    rows: Rows             # their ids and clients; values as they came from the server
    index: list[Tensor] | None
    live: list[int]        # rows held by the clients active in each step: a prefix
    over_examples: bool

    def leaf(self, step: int, active: int) -> Tensor:
        """The values at the examples of a step, (A, B, ...), or (A, 1, ...) or (A, ...) of single rows."""
        if self.index is None:
            rows = self.values[: self.live[step]].detach()
            return rows.unsqueeze(1) if self.over_examples else rows
        return self.values.index_select(0, self.index[step]).view(active, -1, *self.values.shape[1:])


def gather(model: Model, params: Tree, batches: Batches, cohort: Tensor) -> dict[str, Local]:
    """Copy to each client the rows that its examples touch."""
    clients = len(cohort)
    everyone = torch.arange(clients, device=cohort.device)
    single = {"one": torch.zeros_like(cohort), "client": cohort}
    found: dict[str, tuple[Tensor, Tensor, list[Tensor] | None, list[int]]] = {
        kind: (ids, everyone, None, batches.active) for kind, ids in single.items()}
    local = {}
    for name, kind in model.rows.items():
        if kind not in found:
            keys, index = torch.unique(batches.owner[:, None] * len(params[name]) + batches.columns[kind],
                                       return_inverse=True)
            holder = keys // len(params[name])
            held = torch.bincount(holder, minlength=clients).cumsum(0)
            live = held[torch.tensor(batches.active) - 1].tolist()
            steps = [rows.flatten() for rows in index.split(batches.active)]
            found[kind] = keys % len(params[name]), holder, None if len(keys) == clients else steps, live
        ids, holder, index, live = found[kind]
        values = params[name].index_select(0, ids)               # 6x faster here than params[name][ids]
        local[name] = Local(values, Rows(values.clone(), ids, holder), index, live, kind not in single)
    return local


def sgd(config: Config) -> Apply:
    """`w <- w - lr (g + lambda w)`."""
    def apply(values: Tensor, index: Tensor | None, grad: Tensor, live: int) -> None:
        if config.weight_decay:
            values[:live].mul_(1 - config.local_lr * config.weight_decay)
        _scatter(values[:live], index, grad * -config.local_lr)   # not in place: two leaves may share one gradient
    return apply


def adamw(config: Config, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Apply:
    """AdamW on the rows a client holds, all of them at each step as moments fade; state is fresh each round."""
    (b1, b2), taken = betas, 0
    moments: list[Tensor] = []                                   # first and second, of all rows

    def apply(values: Tensor, index: Tensor | None, grad: Tensor, live: int) -> None:
        nonlocal taken
        if not moments:
            moments.extend(torch.zeros_like(values) for _ in range(2))
        taken += 1
        m, v, w = moments[0][:live], moments[1][:live], values[:live]
        g = _scatter(torch.zeros_like(w), index, grad)
        w.mul_(1 - config.local_lr * config.weight_decay)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        denominator = v.sqrt().div_((1 - b2**taken) ** 0.5).add_(eps)
        w.addcdiv_(m, denominator, value=-config.local_lr / (1 - b1**taken))
    return apply


OPTIMIZERS: dict[str, Callable[[Config], Apply]] = {"sgd": sgd, "adamw": adamw}


def _scatter(values: Tensor, index: Tensor | None, grad: Tensor) -> Tensor:
    """Add each example's gradient to its row, in place (scatter_add_ is 3x faster here than index_add_)."""
    if index is None:
        return values.add_(grad.view_as(values))
    flat = grad.flatten(0, 1)
    return values.scatter_add_(0, index if flat.dim() == 1 else index[:, None].expand_as(flat), flat)


def train(model: Model, params: Tree, batches: Batches, cohort: Tensor,
          config: Config) -> tuple[dict[str, Rows], Tensor]:
    """Train a cohort from `params`: (delta of each parameter, mean loss of each client over its steps (C,)).

    Equal to training each client by itself; `delta` is client minus server.
    """
    local = gather(model, params, batches, cohort)
    rules = {name: OPTIMIZERS[config.optimizer](config) for name in local}
    losses = []
    blocks = {name: column.split(batches.active) for name, column in batches.columns.items()}
    for step, (active, weight) in enumerate(zip(batches.active, batches.weight.split(batches.active), strict=True)):
        leaves = {name: p.leaf(step, active).requires_grad_() for name, p in local.items()}
        batch = {name: block[step] for name, block in blocks.items()}
        loss = model.loss(model.predict(leaves | model.constants, batch), batch["target"])     # (A, B)
        grads = torch.autograd.grad(loss, list(leaves.values()), weight)    # of the sum of all clients' means
        losses.append(loss.detach())
        for (name, p), grad in zip(local.items(), grads, strict=True):
            rules[name](p.values, p.index[step] if p.index else None, grad, p.live[step])
    deltas = {name: Rows(p.values.sub_(p.rows.values), p.rows.ids, p.rows.client) for name, p in local.items()}
    means = (torch.cat(losses) * batches.weight).sum(1)                      # (M,)
    totals = means.new_zeros(2, len(cohort)).index_add_(1, batches.owner, torch.stack([means, torch.ones_like(means)]))
    return deltas, totals[0] / totals[1]
