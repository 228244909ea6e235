"""The engine against a plain loop over clients, for each model, optimiser and shape of work."""

import pytest
import torch
from conftest import context, tiny
from oracle import train_one

from fedlab.algorithms import Scaffold, federate, sample
from fedlab.core import Key, Settings
from fedlab.data import Columns, Federation, by_activity
from fedlab.engine import SGD, LocalSettings, arrange, hyper, train_cohort
from fedlab.models import Model

SETTINGS = {
    "sgd": {},
    "two epochs": {"local_epochs": 2},
    "decay": {"weight_decay": 0.01, "local_lr": 0.1},
    "fedsgd": {"batch_size": 0},
    "odd batch": {"batch_size": 7},
    "adamw": {"optimizer": "adamw", "local_lr": 0.01, "weight_decay": 0.05},
    "fedprox": {"proximal": 0.5, "local_epochs": 2, "weight_decay": 0.01},
    "fedprox that overshoots": {"proximal": 3.0, "local_lr": 0.5},  # k < 0: nothing can be put off
    "fedprox by adamw": {"proximal": 0.5, "optimizer": "adamw", "local_lr": 0.01},
}


def per_client(deltas, clients):
    """Rows as the oracle gives them: for each client {name: {row id: values}}."""
    return [
        {
            n: dict(zip(d.ids[d.client == c].tolist(), d.values[d.client == c], strict=True))
            for n, d in deltas.items()
        }
        for c in range(clients)
    ]


def check_against_loop(model, data, local, clients=12, keep_rate=1.0, control=None):
    params = model.init(1)
    cohort = sample(data, clients, 1)
    examples = data.draw(cohort, local.local_epochs, local.negatives, Key(0, "examples", 1))
    examples |= model.noise(cohort, torch.bincount(examples["client"]), Key(0, "noise", 1))
    deltas, losses, steps = train_cohort(model, params, examples, cohort, local, control)
    assert losses.shape == (len(cohort),)
    sizes = torch.bincount(examples["client"]) // local.local_epochs
    width = local.batch_size or 10**9
    assert steps.tolist() == [-(-n // width) * local.local_epochs for n in sizes.tolist()]
    for c, mine in enumerate(per_client(deltas, len(cohort))):
        own = {n: column[examples["client"] == c] for n, column in examples.items()}
        shift = (
            {
                n: control.shift(
                    n, torch.arange(len(server)), torch.zeros(len(server)).long(), cohort[c : c + 1]
                )
                for n, server in control.server.items()
            }
            if control
            else None
        )
        expected, loss = train_one(model, params, own, local, keep_rate, shift)
        assert losses[c] == pytest.approx(loss, abs=1e-5)
        for name, rows in expected.items():
            assert sorted(mine[name]) == sorted(rows)
            assert max(float((mine[name][i] - rows[i]).abs().max()) for i in rows) < 1e-5
            assert any(float(rows[i].abs().max()) > 0 for i in rows)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["matrix factorisation", "interaction", "linear"])
def test_stacked_cohort_equals_plain_loop_on_clicks(name, setting, clicks, build):
    model = build(name, clicks.train, **({"dropout": 0.2} if name == "interaction" else {}))
    check_against_loop(model, clicks, LocalSettings(**SETTINGS[setting]), keep_rate=0.8)


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction", "linear"])
def test_stacked_cohort_equals_plain_loop_on_ratings(name, stars, build):
    model = build(
        name, stars.train, "ratings", **({"dropout": 0.0} if name == "interaction" else {})
    )
    check_against_loop(model, stars, LocalSettings(local_lr=0.05))


@pytest.mark.parametrize("name", ["matrix factorisation", "linear"])
def test_scaffold_equals_plain_loop(name, build, split):
    data, local = (
        Federation(split.train, by_activity(split.train, 9)),
        Scaffold(batch_size=2048, local_lr=0.05),
    )
    model = build(name, split.train)
    (*_, done) = federate(model, data, Settings(rounds=2, cohort=9), local=local)
    control = done.state["scaffold"]["control"]
    assert all(float(c.abs().max()) > 0 for c in control.server.values())
    check_against_loop(model, data, local, 9, 0.8, control)


def test_a_pull_that_overshoots_for_many_steps_has_its_numbers():
    local = LocalSettings(proximal=6.0, local_lr=0.5)  # k = -2, and 2^2000 is no float
    assert hyper(local, 2000)[-1] == (1.0, 0.5, -2.0, 1.0, 0.0, 1.0)


def test_platforms_with_many_users_equal_plain_loop(split, build):
    data = Federation(split.train, by_activity(split.train, 20))
    for private in (True, False):
        model = build("matrix factorisation", split.train, private_users=private)
        check_against_loop(model, data, LocalSettings(batch_size=256), 3)


def test_parameters_that_share_a_gradient_do_not_disturb_each_other():
    """y = a_item + b_item: autograd may hand out one tensor for both."""

    def init(seed):
        return {"a": torch.zeros(3), "b": torch.zeros(3)}

    model = Model(
        "biases", "ratings", init, lambda p, batch: p["a"] + p["b"], {"a": "item", "b": "item"}
    )
    data = Federation(tiny([0, 0, 0], [0, 1, 2], [3.0, 6.0, 9.0]), torch.tensor([0]), "ratings")
    examples = data.draw(torch.tensor([0]), 1, 0, Key(0, "x"))
    deltas, _, _ = train_cohort(
        model, init(0), examples, torch.tensor([0]), LocalSettings(local_lr=0.5)
    )
    for name in ("a", "b"):  # 0.5 * 2 * y / 3 examples
        assert deltas[name].values.tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_batches_hold_every_example_once_and_pad_with_weight_zero():
    client = torch.tensor([0] * 5 + [1] * 3)
    examples = {"client": client, "epoch": torch.zeros(8).long(), "item": torch.arange(8)}
    batches = arrange(examples, epochs=1, width=2)
    assert batches.active == [2, 2, 1]
    assert batches.columns["item"].tolist() == [[0, 1], [5, 6], [2, 3], [7, 7], [4, 4]]
    assert batches.weight.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1, 0], [1, 0]]


def test_one_sgd_step_by_hand(build):
    model = build("matrix factorisation", tiny([0], [0]), "ratings")
    params = {
        "user": torch.full((1, 8), 0.5),
        "item": torch.full((1, 8), 0.25),
        "bias": torch.zeros(1),
    }
    data = Federation(tiny([0], [0], [3.0]), torch.tensor([0]), "ratings")
    examples = data.draw(torch.tensor([0]), 1, 0, Key(0, "x"))
    deltas, losses, _ = train_cohort(
        model, params, examples, torch.tensor([0]), LocalSettings(local_lr=0.1)
    )
    # prediction 8 * 0.5 * 0.25 = 1, error -2, loss 4; d/dq = 2 * -2 * p = -2, d/dp = -1, d/db = -4
    assert losses.tolist() == [4.0]
    torch.testing.assert_close(deltas["item"].values, torch.full((1, 8), 0.2))
    torch.testing.assert_close(deltas["user"].values, torch.full((1, 8), 0.1))
    torch.testing.assert_close(deltas["bias"].values, torch.tensor([0.4]))


def test_fedprox_holds_clients_back():
    two = Columns(
        {"x": torch.tensor([1.0, 3.0]), "target": torch.tensor([1.0, 6.0])},
        torch.tensor([0, 1]),
        "ratings",
    )
    line = Model(
        "line",
        "ratings",
        lambda seed: {"w": torch.zeros(1, 1)},
        lambda p, b: p["w"] * b["x"],
        {"w": "one"},
    )
    free, held = (
        next(
            federate(
                line,
                two,
                Settings(cohort=2),
                local=SGD(local_epochs=20, local_lr=0.02, batch_size=0, proximal=mu),
            )
        )
        for mu in (0.0, 10.0)
    )
    assert (held.norms < free.norms).all()


def test_work_is_what_a_client_goes_through(clicks, stars, build):
    model, cohort = build("matrix factorisation", clicks.train), torch.tensor([3, 9])
    local = SGD(local_epochs=2, negatives=3)
    assert torch.equal(local.work(context(model, clicks), cohort), clicks.counts[cohort] * 2 * 4)
    assert torch.equal(local.work(context(model, stars), cohort), stars.counts[cohort] * 2)
