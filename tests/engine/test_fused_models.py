"""Compiled clients of content, interaction and perceptron models, held as factorisation is."""

from dataclasses import replace

import pytest
import torch
from test_cohort import SETTINGS
from test_fused import WAYS, Nothing, cases, check_against_oracle, last, reason, same, table

from fedlab.algorithms import Scaffold
from fedlab.algorithms.scaffold import Control
from fedlab.core import Key, ParameterError
from fedlab.data import Columns
from fedlab.engine import LocalSettings, updates
from fedlab.models import content, interaction, perceptron


def features(users, items):
    own = torch.Generator().manual_seed(7)  # the same in whatever order tests run
    return torch.rand(items, 4, generator=own), torch.rand(users, 5, generator=own)


KINDS = {
    "content": lambda *sizes, task: content(*features(*sizes), 7, task=task),
    "interaction": lambda *sizes, task: interaction(*sizes, 6, dropout=0.2, task=task),
    "shared interaction": lambda *sizes, task: interaction(
        *sizes, 9, dropout=0.0, task=task, private_users=False
    ),
}
PAIRS = [
    ("content", "clicks"),
    ("content", "stars"),
    ("content", "columns"),
    ("interaction", "clicks"),
    ("interaction", "stars"),
    ("shared interaction", "columns"),
]
# clients of many users, whom the oracle trains example by example
LONG = [
    ("content", "platforms", "sgd"),
    ("interaction", "platforms", "fedprox"),
    ("shared interaction", "platforms that share users", "decay"),
]


def made(kind, case, clicks, stars):
    data = cases(clicks, stars)[case][0]
    train = getattr(data, "train", None)
    sizes = (train.user_count, train.item_count) if train is not None else (20, 60)
    return data, KINDS[kind](*sizes, task=data.task)


@pytest.mark.parametrize(
    ("kind", "case", "setting"),
    [*((kind, case, setting) for kind, case in PAIRS for setting in SETTINGS), *LONG],
)
def test_a_compiled_client_learns_what_the_oracle_learns(kind, case, setting, clicks, stars):
    data, model = made(kind, case, clicks, stars)
    usual = {"local_lr": 0.02} if data.task == "ratings" else {}
    check_against_oracle(data, model, LocalSettings(**usual | SETTINGS[setting]))


@pytest.mark.parametrize("kind", KINDS)
def test_control_variates_reach_compiled_clients(kind, clicks, stars):
    data, model = made(kind, "columns", clicks, stars)
    shared = {n: value for n, value in model.init(2).items() if n not in model.private}
    control = replace(Control.of(shared), server={n: 0.1 * value for n, value in shared.items()})
    for more in ({}, {"weight_decay": 0.05}):
        local = LocalSettings(local_lr=0.2, local_epochs=2, **more)
        check_against_oracle(data, model, local, control)


def pixels(task="clicks"):
    """Columns of a perceptron: clients of 23 to 46 examples."""
    x = torch.randn(1100, 5, generator=torch.Generator().manual_seed(2))
    columns = {"x": x, "target": (x[:, 0] > 0).float()}
    return Columns(columns, torch.arange(1100) % 40 % 37, task), perceptron(5, 7, task=task)


@pytest.mark.parametrize("case", ["clicks", "stars", "columns", "pixels"])
@pytest.mark.parametrize("asked", WAYS, ids=str)
def test_bits_depend_neither_on_threads_nor_on_who_adds_up(case, asked, clicks, stars):
    data, model = pixels() if case == "pixels" else made("content", case, clicks, stars)
    usual = {"local_lr": 0.02 if data.task == "ratings" else 0.3, "server_lr": 1.0}
    asked = usual | asked
    if "longest" in asked:
        usual = last(model, data, **asked | {"longest": 1e6}).norms
        asked |= {"longest": float(usual.median())}
    if "heaviest" in asked:
        asked |= {"heaviest": float(data.counts.double().mean())}
    one = last(model, data, workers=1, **asked)
    assert one.engine == "fused"
    same(one, last(model, data, workers=3, memory_mb=2, **asked))
    same(one, last(model, data, [Nothing()], workers=1, **asked))
    same(one, last(model, data, [Nothing()], workers=2, memory_mb=3, **asked))
    if "longest" in asked or ("heaviest" in asked and case != "columns"):
        assert one.rejected


def test_the_interaction_model_has_the_same_bits_on_any_threads(clicks, stars):
    for asked in ({}, {"local_epochs": 2, "weight_decay": 0.01}):
        data, model = made("interaction", "clicks", clicks, stars)
        one = last(model, data, workers=1, **asked)
        assert one.engine == "fused"
        same(one, last(model, data, workers=3, memory_mb=3, **asked))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_scaffold_is_that_of_stacked_clients(kind, clicks, stars):
    data, model = made(kind, "columns", clicks, stars)
    asked = {"local_lr": 0.1, "server_lr": 1.0}
    fused, eager = (
        last(model, data, local=Scaffold(), engine=engine, **asked) for engine in ("fused", "eager")
    )
    assert fused.engine == "fused"
    for name, value in eager.params.items():
        torch.testing.assert_close(fused.params[name], value, rtol=1e-3, atol=1e-5)


def test_a_client_that_diverges_is_refused_and_the_others_count():
    data, model = pixels("ratings")
    data.columns["target"] = data.columns["target"].masked_fill(data.owner == 3, 1e30)
    asked = {"rounds": 1, "local_lr": 0.1, "server_lr": 1.0, "cohort": 37}
    done = last(model, data, **asked)
    assert list(done.rejected) == [3]
    assert all(bool(value.isfinite().all()) for value in done.params.values())
    same(done, last(model, data, [Nothing()], **asked))


def test_dropout_is_drawn_as_the_model_draws_it():
    """Each entry of a row that is dropped has no gradient, so signs of gradients tell the mask."""
    owner, count = torch.arange(30) // 15, torch.tensor([15, 15])
    columns = {"user": owner, "item": torch.arange(30), "target": torch.ones(30)}
    data, model = Columns(columns, owner), interaction(2, 30, 11, dropout=0.5, spread=1.0)
    params, cohort = model.init(0), torch.arange(2)
    (sent,) = updates(model, data, params, cohort, LocalSettings(batch_size=0, workers=1), seed=4)
    drawn = data.draw(cohort, 1, 4, Key(4, "examples", 1))
    keep = model.noise(cohort, count, Key(4, "noise", 1))["keep"]
    assert torch.equal(sent.deltas["item"].values != 0, keep[drawn["item"].argsort()])


def test_what_does_not_fit_trains_eagerly_and_says_why():
    data, (items, users) = table(), features(20, 60)
    model = content(items, users, 7)
    assert reason(model, data) == "fused"
    for params, why in (
        ({"bias": torch.zeros(59)}, "shapes"),
        ({"bias": torch.zeros(60, 1)}, "shapes"),
        ({"w1": torch.zeros(1, 12, 7)}, "an input has 13 columns"),
        ({"w2": torch.zeros(1, 6)}, "an input has 13 columns"),
        ({"w1": torch.zeros(1, 13, 7).double()}, "float64"),
        ({"bias": torch.zeros(60, device="meta")}, "'bias' on meta"),
    ):
        assert why in reason(model, data, **params), params
    for name, value, why in (
        ("item_features", items.double(), "'item_features' of torch.float64"),
        ("item_features", items.to("meta"), "'item_features' on meta"),
        ("item_features", items[:9], "shapes"),
        ("item_features", torch.zeros(60, 6), "shapes"),
        ("user_features", torch.zeros(20), "shapes"),
        ("user_features", torch.rand(5, 20).T, "side by side"),
        ("more", users, "constants"),
    ):
        other = replace(model, constants=model.constants | {name: value})
        assert why in reason(other, data), name
    other = replace(model, predict=lambda p, batch: p["bias"], pullback=None)
    assert "no compiled client" in reason(other, data)
    other = table()
    other.columns["item"] = torch.zeros(900)
    assert "whole numbers" in reason(model, other)


def test_an_interaction_that_does_not_fit_trains_eagerly_and_says_why():
    data, model = table(), interaction(20, 60, 6)
    assert reason(model, data) == "fused"
    for params in (
        {"dense": torch.zeros(1, 5, 1)},
        {"dense": torch.zeros(2, 6, 1)},
        {"offset": torch.zeros(1)},
        {"bias": torch.zeros(59)},
        {"user": torch.zeros(20, 5)},
    ):
        assert "shapes" in reason(model, data, **params), params
    other = replace(model, noise=lambda client, counts, key: {})
    assert "dropout" in reason(other, data)


@pytest.mark.parametrize("kind", ["content", "interaction"])
def test_rows_that_a_table_has_not_are_named_and_never_read(kind, clicks, stars):
    for name, size in (("item", 60), ("user", 20)):
        for row in (size, -1, 2**31 + 5, -(2**40)):
            data, model = made(kind, "columns", clicks, stars)
            data.columns[name][7] = row
            with pytest.raises(ParameterError, match=rf"{name}=.*has {size} rows of {name}s"):
                last(model, data, cohort=20)
    data, model = made(kind, "clicks", clicks, stars)
    with pytest.raises(ParameterError, match="the model has 600 rows of users"):
        last(KINDS[kind](600, 9066, task="clicks"), data, cohort=671)
    with pytest.raises(ParameterError, match="the model has 500 rows of items"):
        last(KINDS[kind](671, 500, task="clicks"), data)
    with pytest.raises(ParameterError, match=r"memory_mb=1: client .* alone needs about"):
        last(interaction(671, 9066, 64), data, memory_mb=1, cohort=671)
