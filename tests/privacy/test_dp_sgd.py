"""DP-SGD within platforms: gradients as Opacus has them, the clip by hand, a rating's epsilon."""

import math

import pytest
import torch
from conftest import tiny
from opacus import GradSampleModule
from torch import nn

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Settings
from fedlab.data import Columns, Federation, equal
from fedlab.models import from_module, matrix_factorisation, perceptron, user_factor_model
from fedlab.privacy import DPSGD, Release, epsilon, example_gradients, proven_for_examples


@pytest.fixture(scope="module")
def platforms(ratings):
    few = ratings.take((ratings.users < 60) & (ratings.items < 3000))
    return Federation(few, equal(few, 60, 0) % 3, "ratings")


def films(data, dim=3):
    return user_factor_model(data.train.item_count, dim, spread=0.1)


def test_gradients_of_examples_are_those_of_opacus():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    x, y = torch.randn(9, 4), torch.randn(9)
    model = from_module(net, {"x": x}, task="ratings")
    found, losses = example_gradients(model, model.init(0), {"x": x, "target": y})
    wrapped = GradSampleModule(net)
    each = (wrapped(x.clone().requires_grad_())[:, 0] - y).square()
    each.mean().backward()  # Opacus takes the mean for granted
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name].view(9, *parameter.shape), parameter.grad_sample)
    torch.testing.assert_close(losses, each.detach())


def test_a_table_gives_the_row_of_each_example(platforms):
    model = films(platforms)
    params = model.init(0) | {"user": torch.randn(1, 4)}
    batch = {"item": torch.tensor([3, 5, 3]), "target": torch.tensor([1.0, 2.0, 3.0])}
    found, _ = example_gradients(model, params, batch)
    for place in range(3):
        own = {name: value.clone().requires_grad_() for name, value in params.items()}
        ready = {
            name: own[name] if kind == "one" else own[name][batch["item"][place]][None, None]
            for name, kind in model.rows.items()
        }
        one = {name: column[place][None, None] for name, column in batch.items()}
        model.loss(model.predict(ready | model.constants, one), one["target"]).sum().backward()
        torch.testing.assert_close(found["user"][place], own["user"].grad[0])
        torch.testing.assert_close(found["item"][place], own["item"].grad[batch["item"][place]])


def test_one_example_moves_the_sum_by_the_clip_at_most(platforms):
    model = films(platforms)
    params = {name: value + 1 for name, value in model.init(0).items()}
    torch.manual_seed(0)
    batch = {
        "item": torch.randint(0, 3000, (500,)).clamp(max=platforms.train.item_count - 1),
        "target": torch.randn(500) * 100,
    }
    batch["target"][:4] = torch.tensor([math.nan, math.inf, -math.inf, 3e38])
    mechanism = DPSGD(example_clip=0.7, example_noise=1.0)
    for place in range(0, 500, 7):
        one = {name: column[place : place + 1] for name, column in batch.items()}
        total, _ = mechanism.summed(model, params, one)
        length = math.sqrt(sum(float(value.double().square().sum()) for value in total.values()))
        assert length <= 0.7 * (1 + 1e-6)
    whole, _ = mechanism.summed(model, params, batch)
    parts = [
        mechanism.summed(model, params, {n: c[i : i + 1] for n, c in batch.items()})[0]
        for i in range(500)
    ]
    torch.testing.assert_close(
        whole["user"], sum(part["user"] for part in parts), atol=1e-3, rtol=1e-4
    )


def test_a_wide_clip_and_hardly_noise_is_gradient_descent():
    train = tiny([0, 0, 0], [0, 1, 2], values=[1.0, 2.0, 3.0])
    data = Federation(train, torch.zeros(1, dtype=torch.int64), "ratings")
    model = user_factor_model(3, 2, spread=0.1)
    asked = Settings(rounds=1, cohort=1, batch_size=3, local_lr=0.1, local_epochs=1)
    (plain,) = federate(model, data, asked)
    (quiet,) = federate(model, data, asked, local=DPSGD(example_clip=1e2, example_noise=1e-6))
    for name, value in plain.params.items():
        torch.testing.assert_close(quiet.params[name], value, atol=1e-4, rtol=1e-3)


def trained(platforms, start=None, **turned):
    """The rounds of a run of DP-SGD at three platforms."""
    asked = Settings(rounds=4, cohort=3, **{"batch_size": 200, "example_noise": 0.6} | turned)
    return list(federate(films(platforms), platforms, asked, local=DPSGD(), start=start))


def test_platforms_learn_under_noise_and_account_for_one_rating(platforms):
    rounds = trained(platforms, teaching_seed=0)
    assert float(rounds[-1].losses.mean()) < 0.7 * float(rounds[0].losses.mean())
    spent = proven_for_examples(rounds[-1].state["ledger"], 1e-5)
    assert sorted(spent) == [0, 1, 2]
    for client, value in spent.items():
        rate = 200 / int(platforms.counts[client])
        assert value == pytest.approx(epsilon([Release(0.6, rate, 4 * math.ceil(1 / rate))], 1e-5))
    again, other = trained(platforms, teaching_seed=0), trained(platforms)
    assert torch.equal(again[-1].params["bias"], rounds[-1].params["bias"])
    assert not torch.equal(other[-1].params["bias"], rounds[-1].params["bias"])


def test_a_resumed_run_has_the_bits_and_the_ledger_of_the_uninterrupted_one(platforms):
    whole = trained(platforms, teaching_seed=0)
    *_, last = trained(platforms, whole[1], teaching_seed=0)
    assert all(torch.equal(value, last.params[name]) for name, value in whole[-1].params.items())
    spent, half, resumed = (
        proven_for_examples(done.state["ledger"], 1e-5) for done in (whole[-1], whole[1], last)
    )
    assert resumed == spent
    assert all(half[client] < value for client, value in spent.items())


def test_what_is_not_proven_is_refused(platforms, clicks):
    model = films(platforms)

    def run(data=platforms, model=model, **turned):
        return lambda: next(federate(model, data, Settings(cohort=3, **turned), local=DPSGD()))

    own = matrix_factorisation(
        platforms.train.user_count, platforms.train.item_count, 2, task="ratings"
    )
    apart = user_factor_model(platforms.train.item_count, 2, clients=3)
    clicked = matrix_factorisation(clicks.train.user_count, clicks.train.item_count, 2)
    for call, message in [
        (lambda: DPSGD(example_clip=0.0), "example_clip=0.0: choose a number from 1e-09"),
        (lambda: DPSGD(example_noise=math.nan), "example_noise=nan: choose a number"),
        (run(clicks, clicked), "task='clicks': dp-sgd: a click brings drawn negatives along"),
        (run(model=own), "private={'user'}: dp-sgd: rows that stay would be trained without"),
        (run(model=apart), "private={'user'}"),
        (run(batch_size=0), "batch_size=0: dp-sgd: choose how many ratings"),
        (
            run(optimizer="adamw"),
            "optimizer='adamw': nothing in this run reads it beside dp-sgd; sgd",
        ),
        (run(noise=2.0), "noise=2.0: nothing in this run reads it; gaussian noise"),
        (run(weighting="equal", proximal=1.0), "proximal=1.0: nothing in this run reads it"),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()


def test_clients_weigh_as_the_aggregation_is_told(platforms):
    one, other = (
        trained(platforms, teaching_seed=0, **more)[-1] for more in ({}, {"weighting": "equal"})
    )
    assert len(set(platforms.counts.tolist())) > 1
    assert not torch.equal(one.params["bias"], other.params["bias"])


def test_examples_without_items_train_as_well():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = Columns({"x": x, "target": x[:, 0]}, torch.arange(40) % 4, task="ratings")
    model = perceptron(3, 4, task="ratings")
    settings = Settings(cohort=4, example_clip=0.5, teaching_seed=1)
    done = next(federate(model, data, settings, local=DPSGD()))
    assert len(done.cohort) == 4
    assert bool(done.losses.isfinite().all())
