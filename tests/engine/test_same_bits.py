"""A client's delta and a round's sum have the same bits, whoever stands beside the client."""

import pytest
import torch
from conftest import tiny
from torch import nn

from fedlab.algorithms import federate
from fedlab.algorithms.participation import longest_first
from fedlab.core import Settings, stream
from fedlab.data import Columns, Federation, Lists, one_per_user
from fedlab.engine import LocalSettings, updates
from fedlab.models import (
    content,
    from_module,
    interaction,
    linear,
    listwise,
    matrix_factorisation,
    perceptron,
    user_factor_model,
)

G = stream(0, "same bits")
USERS, ITEMS, CLIENTS = 60, 90, 40
COUNTS = [1, 1, 2, 2, 3, 5, 8, 8, 13, 21, 29, 30, 31, 34, 60] * 4  # clicks of each user
ORDERS = [torch.randperm(ITEMS, generator=G)[:count].tolist() for count in COUNTS]
SEEN = tiny(
    [u for u in range(USERS) for _ in range(COUNTS[u])],
    [i for own in ORDERS for i in own],
    user_count=USERS,
    item_count=ITEMS,
)
ALONE = Federation(SEEN, one_per_user(SEEN))
SHOPS = Federation(SEEN, (torch.arange(USERS) * 7 % 50).clamp(max=CLIENTS - 1))
OWNER = torch.arange(CLIENTS).repeat_interleave(torch.tensor(COUNTS[:CLIENTS]))
ROWS = len(OWNER)
TABLE = Columns(
    {
        "x": torch.randn(ROWS, 5, generator=G),
        "item": torch.randint(9, (ROWS,), generator=G),
        "target": (torch.rand(ROWS, generator=G) < 0.5).float(),
    },
    OWNER,
)
FEATURES = torch.randn(ITEMS, 6, generator=G), torch.randn(USERS, 7, generator=G)


class Net(nn.Module):
    """A table, two layers and dropout."""

    def __init__(self):
        super().__init__()
        self.item, self.first = nn.Embedding(9, 3), nn.Linear(8, 12)
        self.last, self.drop = nn.Linear(12, 1), nn.Dropout(0.2)

    def forward(self, x, item):
        """Logits (B,)."""
        h = torch.cat([x, self.item(item)], 1)
        return self.last(self.drop(self.first(h).tanh()))[:, 0]


def module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return from_module(
            Net(), {n: TABLE.columns[n][:3] for n in ("x", "item")}, rows={"item.weight": "item"}
        )


def lists(model, data, loss):
    return listwise(model, loss), Lists(data, loss)


KINDS = {
    "matrix factorisation": lambda: (matrix_factorisation(USERS, ITEMS, 6), ALONE),
    "of one dimension": lambda: (matrix_factorisation(USERS, ITEMS, 1), ALONE),
    "shops": lambda: (matrix_factorisation(USERS, ITEMS, 6), SHOPS),
    "interaction": lambda: (interaction(USERS, ITEMS, 20, dropout=0.3), ALONE),
    "perceptron": lambda: (perceptron(5, 7), TABLE),
    "narrow perceptron": lambda: (perceptron(5, 1), TABLE),
    "linear": lambda: (linear(*FEATURES, task="clicks"), ALONE),
    "content": lambda: (content(*FEATURES, hidden=9), ALONE),
    "taste": lambda: (user_factor_model(ITEMS, 4, FEATURES[0], task="clicks"), ALONE),
    "module": lambda: (module(), TABLE),
    "pairs": lambda: lists(interaction(USERS, ITEMS, 20, dropout=0.3), ALONE, "bpr"),
    "pairs of shops": lambda: lists(matrix_factorisation(USERS, ITEMS, 6), SHOPS, "bpr"),
    "drawn lists": lambda: lists(content(*FEATURES, hidden=9), ALONE, "sampled softmax"),
    "all items": lambda: lists(matrix_factorisation(USERS, ITEMS, 6), ALONE, "softmax"),
    "all items of shops": lambda: lists(interaction(USERS, ITEMS, 6), SHOPS, "softmax"),
}
SETTINGS = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "local_lr": 0.01, "weight_decay": 0.1},
    "whole epochs": {"batch_size": 0, "local_epochs": 2},
    "batches of 10": {"batch_size": 10},
    "one by one": {"batch_size": 1},
    "proximal": {"proximal": 0.5, "local_epochs": 2},
    "little by little": {"micro_batch": 5},
    "eager": {"engine": "eager"},
}


def deltas(model, data, cohort, local):
    """{client: {name: (row ids, values)}} and the losses of a cohort in its canonical order."""
    found = {}
    cohort = longest_first(data, cohort)
    for update in updates(model, data, model.init(3), cohort, local, number=2):
        for place, client in enumerate(update.cohort.tolist()):
            found[client] = {
                name: (d.ids[d.client == place], d.values[d.client == place])
                for name, d in update.deltas.items()
            } | {"loss": (update.steps[place], update.losses[place])}
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_trains_to_the_same_bits_alone_and_in_any_cohort(kind, setting):
    (model, data), usual = KINDS[kind](), {"local_lr": 0.3, **SETTINGS[setting]}
    local = LocalSettings(**usual)
    whole = deltas(model, data, torch.arange(len(data)), local)
    mixed = torch.randperm(len(data), generator=stream(1, "mixed"))
    cohorts = [mixed[:1], mixed[1:2], mixed[2:3], mixed[3:6], mixed[6:20]]
    others = [deltas(model, data, cohort, local) for cohort in cohorts]
    others += [deltas(model, data, mixed, LocalSettings(**usual, memory_mb=mb)) for mb in (1, 1000)]
    for other in others:
        for client, own in other.items():
            for name, pair in own.items():
                assert all(map(torch.equal, pair, whole[client][name])), (client, name)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_bit_of_a_run(kind):
    model, data = KINDS[kind]()
    settings = Settings(
        rounds=3, cohort=len(data) - 5, local_lr=0.3, server_optimizer="adam", server_lr=0.01
    )
    *_, once = federate(model, data, settings.replace(memory_mb=10_000))
    for mb in (0, 1, 2):
        *_, other = federate(model, data, settings.replace(memory_mb=mb))
        assert torch.equal(once.losses, other.losses)
        assert torch.equal(once.norms, other.norms)
        assert all(torch.equal(once.params[n], other.params[n]) for n in once.params)
