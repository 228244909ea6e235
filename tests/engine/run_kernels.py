"""Clients on a GPU; test_gpu.py runs this in a process of its own.

Without a GPU, Triton's interpreter runs the same kernels on the CPU.
"""

from dataclasses import replace

import pytest
import torch

from fedlab import Columns, Federation, equal, load, matrix_factorisation, one_per_user, perceptron
from fedlab.core import Key, Rows, norms
from fedlab.core.loops.gpu import philox
from fedlab.core.randomness import _blocks
from fedlab.engine import LocalSettings, chunks, gpu, train_cohort, updates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FILMS = load()
USERS, SHOPS = Federation(FILMS, one_per_user(FILMS)), Federation(FILMS, equal(FILMS, 300))
RATINGS = Federation(FILMS, one_per_user(FILMS), task="ratings")
SIZES = FILMS.user_count, FILMS.item_count
NUMBERS = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
TABLE = Columns({"x": NUMBERS, "target": (NUMBERS[:, 0] > 0).float()}, torch.arange(120) % 7)
USUAL = {"batch_size": 8, "local_lr": 0.3, "negatives": 1}


class Drift:
    """An offset to the gradients of the rows of a model, as SCAFFOLD has one."""

    def __init__(self, model):
        self.shapes = {name: value.shape[1:] for name, value in model.init(0).items()}

    def shift(self, name, ids, client, cohort):
        offset = 0.01 * ((ids + 3 * client) % 5).float()
        shape = self.shapes[name]
        return offset.view(-1, *[1] * len(shape)).expand(-1, *shape)


def longest(data, count):
    few = data.counts.argsort()[:count]
    return few[data.counts[few].argsort(descending=True, stable=True)]


def on(tree):
    return {name: value.to(DEVICE) for name, value in tree.items()}


def dense(rows: Rows, clients: int, height: int):
    table = torch.zeros(clients, height, *rows.values.shape[1:])
    table[rows.client.cpu(), rows.ids.cpu()] = rows.values.cpu()
    return table


JOBS = {
    "clicks": (matrix_factorisation(*SIZES, 6), USERS, {}),
    "two epochs": (matrix_factorisation(*SIZES, 6), USERS, {"local_epochs": 2}),
    "weight decay": (matrix_factorisation(*SIZES, 6), USERS, {"weight_decay": 0.1}),
    "FedProx": (matrix_factorisation(*SIZES, 6), USERS, {"proximal": 0.1}),
    "ratings": (matrix_factorisation(*SIZES, 6, task="ratings"), RATINGS, {"local_lr": 0.05}),
    "many users a client": (matrix_factorisation(*SIZES, 6), SHOPS, {}),
    "shared users": (
        matrix_factorisation(*SIZES, 6, private_users=False),
        SHOPS,
        {"proximal": 0.1, "weight_decay": 0.05},
    ),
    "perceptron": (perceptron(5, 6), TABLE, {"local_epochs": 2}),
    "perceptron, FedProx": (perceptron(5, 6), TABLE, {"proximal": 0.3, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("job", JOBS)
def test_a_kernel_trains_clients_as_eager_steps_do(job, drift):
    model, data, knobs = JOBS[job]
    local, params = LocalSettings(**USUAL | knobs), model.init(0)
    cohort = longest(data, 2 if data is SHOPS else 4)
    correction = Drift(model) if drift else None
    assert gpu.unfit(model, params, local) == ""
    examples = data.draw(cohort, local.local_epochs, local.negatives, Key(0, "examples", 1))
    deltas, losses, steps = train_cohort(model, params, examples, cohort, local, correction)
    there = {name: column.to(DEVICE) for name, column in examples.items()}
    found = gpu.train_cohort(model, on(params), there, cohort.to(DEVICE), local, correction)
    for name, value in params.items():
        want = dense(deltas[name], len(cohort), len(value))
        got = dense(found[0][name], len(cohort), len(value))
        assert float(want.abs().max()) > 1e-3
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found[1].cpu(), losses, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[2].cpu(), steps)


@pytest.mark.parametrize("job", ["clicks", "shared users", "perceptron"])
@pytest.mark.parametrize("memory_mb", [0, 1])
def test_sums_are_those_of_the_updates(job, memory_mb):
    model, data, knobs = JOBS[job]
    local = LocalSettings(**USUAL | knobs, memory_mb=memory_mb)
    params, cohort = model.init(0), longest(data, 3)
    weights = torch.tensor([2.0, 0.0, 0.5])
    keys = Key(0, "examples", 1), Key(0, "noise", 1)
    eager = updates(model, data, params, cohort, replace(local, engine="eager"), number=1)
    total = {n: torch.zeros_like(p) for n, p in params.items() if n not in model.private}
    lengths = []
    for update in eager:
        here = weights[len(lengths) : len(lengths) + len(update.cohort)]
        shared = {name: update.deltas[name] for name in total}
        lengths += norms(shared, len(update.cohort)).tolist()
        for name, into in total.items():
            shared[name].add_to(into, here)
    there = on(params)
    parts = chunks(model, data, there, cohort, local, keys)
    own = data.counts[cohort].float()
    found = gpu.summed(model, there, parts, cohort, own, local, weights, max(lengths) * 2)
    for name, want in total.items():
        torch.testing.assert_close(found.sums[name].cpu(), want, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.lengths, torch.tensor(lengths).double(), rtol=1e-5, atol=0.0)
    assert found.own.keys() == model.private
    assert torch.equal(found.sent.cohort, cohort)


def test_who_is_too_long_or_no_number_is_left_out_of_the_sums():
    model, data, _ = JOBS["clicks"]
    params, cohort, weights = on(model.init(0)), longest(data, 3), torch.ones(3)
    local = LocalSettings(**USUAL)
    keys = Key(0, "examples", 1), Key(0, "noise", 1)

    def taken(longest, params=params):
        parts = chunks(model, data, params, cohort, local, keys)
        return gpu.summed(model, params, parts, cohort, weights, local, weights, longest)

    every = taken(1e9)
    bound = float(every.lengths.sort().values[1])
    some = taken(bound)
    assert int((some.lengths <= bound).sum()) == 2
    assert not torch.equal(some.sums["item"], every.sums["item"])
    broken = {name: value.clone() for name, value in params.items()}
    broken["user"][int(cohort[0])] = torch.nan
    left = taken(1e9, broken)
    assert not bool(left.sent.losses[0].isfinite())
    assert all(bool(value.isfinite().all()) for value in left.sums.values())


def test_words_are_those_of_the_definition():
    client, block = torch.tensor([7, 7, 3, 1 << 33]), torch.tensor([0, 1, 5, (1 << 32) + 2])
    for key in (Key(0, "example"), Key(5, "other", 3)):
        signed = (word - (word >> 31 << 32) for word in key.halves)
        out = torch.zeros(4, 4, dtype=torch.int32, device=DEVICE)
        there = client.to(DEVICE), block.to(DEVICE)
        philox[(2,)](*there, out, 4, *signed, 2, enable_fp_fusion=True)
        assert torch.equal(out.cpu(), _blocks(client, block, key.halves))
