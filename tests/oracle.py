"""The slow, readable twin of the engine: one client after another, with torch's own optimisers.

It shares no code with `fedlab.engine`: a client copies the rows it touches into
`nn.Parameter`s, slices its examples into batches in Python and steps `torch.optim`.
"""

import copy

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from fedlab.core import as_tensor


def forward(name, p, batch, features):
    """Predictions of each built-in model, written out again."""
    if name == "linear":
        item, user = features
        x = torch.cat(
            [item[batch["item"]], user[batch["user"]], torch.ones(len(batch["item"]), 1)], 1
        )
        return x @ p["theta"][0, :, 0]
    if name == "content":
        item, user = features[0][batch["item"]], features[1][batch["user"]]
        x = torch.cat([item, user, item * user[:, : item.shape[1]]], 1)
        h = (x @ p["w1"][0] + p["b1"][0]).relu()
        return h @ p["w2"][0] + p["b2"][0, 0] + p["bias"][batch["item_row"]]
    h = p["user"][batch["user_row"]] * p["item"][batch["item_row"]]
    if name == "matrix factorisation":
        return h.sum(1) + p["bias"][batch["item_row"]]
    if "keep" in batch:
        h = h * batch["keep"] / batch["keep_rate"]
    return h @ p["dense"][0, :, 0] + p["offset"][0, 0] + p["bias"][batch["item_row"]]


def train_module(module, examples, local, inputs, task):
    """Train a copy of a module on one client's own columns: (delta by name, mean loss over steps).

    A mask column '<dropout's name>.keep' replaces the draw of that `nn.Dropout`.
    """
    net, masks = copy.deepcopy(module), [n for n in examples if n.endswith(".keep")]
    rule = torch.optim.SGD if local.optimizer == "sgd" else torch.optim.AdamW
    optimizer = rule(
        [p for p in net.parameters() if p.requires_grad],
        lr=local.local_lr,
        weight_decay=local.weight_decay,
    )
    parts, now, losses = dict(net.named_modules()), {}, []
    for name in masks:
        part = parts[name.removesuffix(".keep")]
        part.forward = lambda x, name=name, p=part.p: x * now[name] / (1 - p)
    for epoch in range(local.local_epochs):
        mine = {n: as_tensor(c)[examples["epoch"] == epoch] for n, c in examples.items()}
        for cut in torch.arange(len(mine["target"])).split(local.batch_size or len(mine["target"])):
            now.update({n: mine[n][cut] for n in masks})
            optimizer.zero_grad()
            prediction = net(*(mine[n][cut] for n in inputs)).reshape(mine["target"][cut].shape)
            loss = (mse_loss if task == "ratings" else binary_cross_entropy_with_logits)(
                prediction, mine["target"][cut]
            )
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    start = dict(module.named_parameters())
    return {n: (p - start[n]).detach() for n, p in net.named_parameters()}, sum(losses) / len(
        losses
    )


def train_one(model, params, examples, local, keep_rate=1.0, shift=None):
    """Train one client by itself: (delta as name -> row id -> values, mean loss over steps).

    shift: name -> whole tensors c - c_i that SCAFFOLD adds to each gradient.
    """
    ids = {
        "user": examples["user"].unique(),
        "item": examples["item"].unique(),
        "one": torch.zeros(1).long(),
    }
    held = {n: torch.nn.Parameter(params[n][ids[kind]].clone()) for n, kind in model.rows.items()}
    start = {n: p.detach().clone() for n, p in held.items()}
    rule = torch.optim.SGD if local.optimizer == "sgd" else torch.optim.AdamW
    optimizer = rule(held.values(), lr=local.local_lr, weight_decay=local.weight_decay)
    features = tuple(model.constants.values())
    losses = []
    for epoch in range(local.local_epochs):
        mine = {n: c[examples["epoch"] == epoch] for n, c in examples.items()}
        for cut in torch.arange(len(mine["item"])).split(local.batch_size or len(mine["item"])):
            batch = {n: c[cut] for n, c in mine.items()} | {"keep_rate": keep_rate}
            for kind in ("user", "item"):
                batch[f"{kind}_row"] = torch.searchsorted(ids[kind], batch[kind])
            optimizer.zero_grad()
            prediction = forward(model.name, held, batch, features)
            loss = (mse_loss if model.task == "ratings" else binary_cross_entropy_with_logits)(
                prediction, batch["target"]
            )
            loss.backward()
            for n in held.keys() - model.private:
                held[n].grad += local.proximal * (held[n].detach() - start[n])
                held[n].grad += shift[n][ids[model.rows[n]]] if shift else 0
            optimizer.step()
            losses.append(float(loss.detach()))
    delta = {
        n: dict(zip(ids[model.rows[n]].tolist(), p.detach() - start[n], strict=True))
        for n, p in held.items()
    }
    return delta, sum(losses) / len(losses)


def implicit_loss(table, users, items, unseen, regularisation):
    """The loss of implicit matrix factorisation, term by term. table (U, I): 1 where clicked."""
    scores, clicks = users @ items.T, table.sum()
    n, m = clicks / table.shape[0], clicks / table.shape[1]
    pull = regularisation / n.sqrt()
    own, others = table.sum(1) + unseen * n, table.sum(0) + unseen * m
    return (
        (table * (1 - scores).square()).sum()
        + unseen * clicks / table.numel() * scores.square().sum()
        + pull / (1 + unseen) * (own * users.square().sum(1)).sum()
        + pull / (1 + unseen) * (others * items.square().sum(1)).sum()
    )


def weighed(train):
    """(U, I): 1 / (1 + the user's clicks since) where a user clicked, row by row."""
    table = torch.zeros(train.user_count, train.item_count)
    for user, item, time in zip(train.users, train.items, train.times, strict=True):
        table[user, item] = 1 / (1 + int(((train.users == user) & (train.times > time)).sum()))
    return table
