"""Plain loops over clients, as everybody writes them: what the engine is measured against.

The engine must equal them.
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab.algorithms import sample
from fedlab.core import Key, as_tensor


class Plain(nn.Module):
    """Matrix factorisation as a tutorial writes it."""

    def __init__(self, users: int, items: int, dim: int) -> None:
        super().__init__()
        self.user, self.item, self.bias = (
            nn.Embedding(users, dim),
            nn.Embedding(items, dim),
            nn.Embedding(items, 1),
        )

    def forward(self, user, item):
        """Logits (B,)."""
        return (self.user(user) * self.item(item)).sum(1) + self.bias(item)[:, 0]


def drawn(data, settings, number, device="cpu"):
    """A round's cohort, and the examples of each of its clients in the order of the engine."""
    cohort = sample(data, settings.cohort, number, seed=settings.seed).to(device)
    examples = data.draw(
        cohort, settings.local_epochs, settings.negatives, Key(settings.seed, "examples", number)
    )
    ends = torch.bincount(examples["client"]).tolist()
    return cohort, examples, ends


def table_loop(params, data, settings, number, dense: bool):
    """A round of matrix factorisation, client by client.

    dense: whether clients take whole tables, or only the rows that they touch.
    """
    cohort, examples, sizes = drawn(data, settings, number)
    users, items, target = (as_tensor(examples[n]).split(sizes) for n in ("user", "item", "target"))
    mean = {name: torch.zeros_like(value) for name, value in params.items()}
    new_users = params["user"].clone()
    count, dim = params["item"].shape
    resident = Plain(1, count, dim)
    for position in range(len(cohort)):
        user = int(users[position][0])
        ids, places = (
            (torch.arange(count), items[position])
            if dense
            else items[position].unique(return_inverse=True)
        )
        model = resident if dense else Plain(1, len(ids), dim)
        with torch.no_grad():
            model.user.weight.copy_(params["user"][user])
            model.item.weight.copy_(params["item"] if dense else params["item"][ids])
            model.bias.weight.copy_((params["bias"] if dense else params["bias"][ids])[:, None])
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.local_lr)
        for cut in torch.arange(len(places)).split(settings.batch_size):
            optimizer.zero_grad()
            logits = model(torch.zeros_like(cut), places[cut])
            binary_cross_entropy_with_logits(logits, target[position][cut]).backward()
            optimizer.step()
        with torch.no_grad():
            new_users[user] = model.user.weight[0]
            if dense:  # whole tables, added as they are
                mean["item"].add_(model.item.weight - params["item"], alpha=1 / len(cohort))
                mean["bias"].add_(model.bias.weight[:, 0] - params["bias"], alpha=1 / len(cohort))
            else:
                mean["item"].index_add_(
                    0, ids, (model.item.weight - params["item"][ids]) / len(cohort)
                )
                mean["bias"].index_add_(
                    0, ids, (model.bias.weight[:, 0] - params["bias"][ids]) / len(cohort)
                )
    step = {name: params[name] + settings.server_lr * mean[name] for name in ("item", "bias")}
    return step | {"user": new_users}


def module_loop(build, params, data, settings, number):
    """A round of a module on the column `x`, client by client, with one resident module.

    build() makes the module. params: its weights by name, each with a leading axis of 1.
    """
    device = next(iter(params.values())).device
    cohort, examples, sizes = drawn(data, settings, number, device)
    rows, targets = examples["x"].rows.split(sizes), as_tensor(examples["target"]).split(sizes)
    resident = build()
    names = [name for name, _ in resident.named_parameters()]
    mean = {name: torch.zeros_like(params[name]) for name in names}
    for position in range(len(cohort)):
        with torch.no_grad():
            for name, weight in resident.named_parameters():
                weight.copy_(params[name][0])
        x = examples["x"].table[rows[position]]
        optimizer = torch.optim.SGD(resident.parameters(), lr=settings.local_lr)
        for cut in torch.arange(len(x)).split(settings.batch_size):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(
                resident(x[cut]).squeeze(1), targets[position][cut]
            ).backward()
            optimizer.step()
        with torch.no_grad():
            for name, weight in resident.named_parameters():
                mean[name][0].add_(weight - params[name][0], alpha=1 / len(cohort))
    return {name: params[name] + settings.server_lr * mean[name] for name in names}
