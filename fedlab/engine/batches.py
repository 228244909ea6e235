"""Local training: what one client does in a round, for all clients of a cohort at once.

A client holds only the rows it touches, and a step touches only the rows of its batch, so the work
follows the examples and not the catalogue. The step itself is in `fedlab.step`, how it runs in
`fedlab.engine`.

Clients come longest first. Step s is a dense block of the A_s clients that still have a batch;
clients that have finished fall off the end, so nobody waits and only a last, short batch is padded
(weight 0).

Letters: C clients, A_s of them active in step s, B examples a step, M batches in all, R rows.
Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
data", algorithm 1, ClientUpdate.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedlab.core import Rows, Tree, arranged, as_tensor
from fedlab.engine.backends import run
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import Work, puts_off
from fedlab.models import Model


class Correction(Protocol):
    """What keeps clients from drifting apart.

    An offset to the gradient of each row, fixed over a round.
    """

    def shift(self, name: str, ids: Tensor, client: Tensor, cohort: Tensor) -> Tensor:
        """(R.

        ...) the offset of the rows `ids` (R,) of clients at places `client` (R,) in the cohort.
        """


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
    # of a client's epoch
    sizes = torch.bincount(client * epochs + epoch, minlength=clients * epochs)
    cuts = (sizes + width - 1) // width                         # batches in each
    total = cuts.view(clients, epochs).sum(1)                   # (C,) local steps S of each client
    active = (total > torch.arange(int(total.max()), device=client.device)[:, None]).sum(1)

    def ramp(counts: Tensor) -> Tensor:  # 0, 1, ..., count - 1 for each count
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1]),
                            device=client.device) - (ends - counts).repeat_interleave(counts)

    start = (sizes.cumsum(0) - sizes).repeat_interleave(cuts) + ramp(cuts) * width
    length = (sizes.repeat_interleave(cuts) - ramp(cuts) * width).clamp(max=width)
    owner = torch.arange(clients, device=client.device).repeat_interleave(total)
    # from client- to step-major
    order = ((active.cumsum(0) - active)[ramp(total)] + owner).argsort()
    slot, length = torch.arange(width, device=client.device), length[order, None]
    # (M, B); padding repeats the last example
    places = start[order, None] + slot.minimum(length - 1)
    columns = {name: arranged(column, places) for name,
               column in examples.items() if name not in ("client", "epoch")}
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
    """For each kind of parameter rows, what the clients' examples touch."""
    clients = len(cohort)
    everyone = torch.arange(clients, device=cohort.device)
    held = {"one": RowIndex(torch.zeros_like(cohort), everyone, None, batches.active),
            "client": RowIndex(cohort, everyone, None, batches.active)}
    for name, kind in model.rows.items():
        if kind not in held:
            size = len(params[name])
            keys, index = torch.unique(batches.owner[:,
                                                     None] * size
                                       + as_tensor(batches.columns[kind]), return_inverse=True)
            client = keys // size
            ends = torch.bincount(client, minlength=clients).cumsum(0)
            live = ends[torch.tensor(batches.active) - 1].tolist()
            held[kind] = RowIndex(keys % size, client, None if len(keys) == clients else index,
                                  live)
    return held


def train(model: Model, params: Tree, batches: Batches, cohort: Tensor, local: LocalSettings,
          correction: Correction | None = None) -> tuple[dict[str, Rows], Tensor, Tensor]:
    """Train a cohort from `params`.

    (delta of each parameter, mean loss over its steps and their number, (C,) each).

    Equal to training each client by itself; `delta` is client minus server. correction: SCAFFOLD's
    variates.
    """
    kinds = holdings(model, params, batches, cohort)
    held = {name: kinds[kind] for name, kind in model.rows.items()}

    def sent(name: str) -> Tensor:                           # the rows as they came from the server
        return params[name].index_select(0, held[name].ids)  # 6x faster here than params[name][ids]
    values = {name: sent(name) for name in held}
    work = Work(_rows(values, held, batches, cohort, model, local, correction), {k: h.index for k,
                                                                               h in kinds.items()},
                batches.columns, batches.weight, batches.active, {name: h.live for name,
                                                                  h in held.items()})
    losses = run(model, work, local)
    deltas = {name: Rows(values[name].sub_(params[name] if model.rows[name] == "one"
                                           else sent(name)), h.ids, h.client) for name,
              h in held.items()}
    means = (losses * batches.weight).sum(1)                                 # (M,)
    totals = means.new_zeros(2, len(cohort)).index_add_(1, batches.owner,
                                                        torch.stack([means,
                                                                     torch.ones_like(means)]))
    return deltas, totals[0] / totals[1], totals[1]


def _rows(values: Tree, held: dict[str, RowIndex], batches: Batches, cohort: Tensor, model: Model,
          local: LocalSettings, correction: Correction | None) -> dict[str, Tree]:
    """The trees of `Work.rows`.

    Besides the values, what AdamW or FedProx or SCAFFOLD need of each held row.
    """
    rows: dict[str, Tree] = {"values": values, "means": {}, "squares": {}, "fixed": {}, "later": {}}
    sgd, late = local.optimizer == "sgd", puts_off(local, len(batches.active))
    for name, value in values.items():
        if not sgd:
            rows["means"][name], rows["squares"][name] = torch.zeros_like(value), torch.zeros_like(
                value)
        if name not in model.private and (local.proximal or correction):
            fixed = value * (local.local_lr * local.proximal) if sgd else value.clone()
            if correction is not None:
                at = held[name]
                fixed -= local.local_lr * correction.shift(name, at.ids, at.client, cohort)
            rows["later" if late and held[name].index is not None else "fixed"][name] = fixed
    return rows
