"""Models: the shapes they promise and the mistakes they refuse."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import tiny

from fedlab.core import Key, ParameterError, stream
from fedlab.engine import gradients
from fedlab.evaluation import scorer
from fedlab.models import (
    Model,
    Product,
    content,
    interaction,
    item_features,
    linear,
    matrix_factorisation,
    perceptron,
    user_features,
)
from fedlab.models.model import sigmoid


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction", "linear"])
def test_scores_do_not_depend_on_how_they_are_asked_for(name, build, split):
    model = build(name, split.train)
    params = {n: torch.randn(p.shape, generator=stream(0, n)) for n, p in model.init(0).items()}
    score = scorer(model, params)
    users, items = torch.arange(6).view(3, 2), torch.arange(10, 16).view(3, 2)
    grid = score(users, items)
    assert grid.shape == (3, 2)
    torch.testing.assert_close(grid.flatten(), score(users.flatten(), items.flatten()))
    one = torch.stack(
        [score(u[None], i[None])[0] for u, i in zip(users.flatten(), items.flatten(), strict=True)]
    )
    torch.testing.assert_close(grid.flatten(), one)


def test_the_interaction_model_starts_as_matrix_factorisation():
    a, b = matrix_factorisation(3, 4, 5), interaction(3, 4, 5)
    pairs = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])
    both = [scorer(m, m.init(0))(*pairs) for m in (a, b)]
    torch.testing.assert_close(*both)


def test_dropout_drops_its_share_and_keeps_the_mean():
    who = torch.arange(20), torch.full((20,), 100), Key(0, "noise")
    noise = interaction(1, 1, 50, dropout=0.3).noise(*who)["keep"]
    assert noise.shape == (2000, 50)
    assert float(noise.float().mean()) == pytest.approx(0.7, abs=0.01)
    assert interaction(1, 1, 4, dropout=0.0).noise(*who) == {}


def test_loss_by_hand():
    clicks, stars = matrix_factorisation(1, 1), matrix_factorisation(1, 1, task="ratings")
    assert clicks.loss(torch.zeros(1), torch.ones(1)).item() == pytest.approx(0.6931, abs=1e-4)
    assert stars.loss(torch.tensor([3.0]), torch.tensor([1.0])).item() == 4.0


@pytest.mark.parametrize("task", ["clicks", "ratings"])
def test_gradients_by_hand_equal_those_of_autograd(task):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    tables, net = matrix_factorisation(5, 6, 4, task=task), perceptron(3, 7, task=task)
    known = content(draw(6, 2), draw(5, 3), 7, task=task)
    layers = {"w1": draw(2, 7, 7), "b1": draw(2, 7), "w2": draw(2, 7), "b2": draw(2, 1)}
    pairs = {"item": torch.arange(16).view(2, 8) % 6, "user": torch.arange(16).view(2, 8) % 5}
    for model, leaves, batch in [
        (tables, {"user": draw(2, 1, 4), "item": draw(2, 8, 4), "bias": draw(2, 8)}, {}),
        (tables, {"user": draw(2, 8, 4), "item": draw(2, 8, 4), "bias": draw(2, 8)}, {}),
        (
            net,
            {"w1": draw(2, 3, 7), "b1": draw(2, 7), "w2": draw(2, 7), "b2": draw(2, 1)},
            {"x": draw(2, 8, 3)},
        ),
        (known, layers | {"bias": draw(2, 8)}, dict(pairs)),
        (known, layers | {"bias": draw(2, 1)}, dict(pairs)),  # clients of one item each
    ]:
        batch |= {"target": (draw(2, 8) > 0).double()}
        share = draw(2, 8)
        fixed = model.constants
        found, by_hand = gradients(model, leaves, fixed, batch, share)
        same, by_graph = gradients(replace(model, pullback=None), leaves, fixed, batch, share)
        torch.testing.assert_close(found, same)
        ready = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        loss = model.loss(model.predict(ready | fixed, batch), batch["target"])
        of_loss = torch.autograd.grad((loss * share).sum(), list(ready.values()))
        for a, b, c in zip(by_hand, by_graph, of_loss, strict=True):
            whole = torch.bmm(*a) if isinstance(a, Product) else a
            torch.testing.assert_close(whole, c, check_dtype=False, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(b, c, check_dtype=False, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("task", ["clicks", "ratings"])
def test_the_slope_of_many_targets_is_that_of_their_mean_loss(task):
    model = replace(perceptron(3, 7, task=task), pullback=None)
    prediction = torch.randn(2, 5, 4, generator=stream(0, "slope")).requires_grad_()
    target = (prediction.detach() > 0.3).float()
    (expected,) = torch.autograd.grad(model.loss(prediction, target).sum(), prediction)
    torch.testing.assert_close(model.slope(prediction.detach(), target), expected)


def test_a_sigmoid_has_the_same_bits_wherever_it_stands():
    x = torch.randn(1000, generator=stream(0, "sigmoid")) * 5
    whole = sigmoid(x)
    torch.testing.assert_close(whole, x.sigmoid())
    for first in (0, 1, 7, 40):
        for count in (*range(1, 70), 500):
            assert torch.equal(sigmoid(x[first : first + count]), whole[first : first + count])


@pytest.mark.parametrize("name", ["user", "item"])
def test_more_rows_move_no_other(name):
    for make in (
        matrix_factorisation,
        interaction,
        partial(matrix_factorisation, sparse_users=True),
    ):
        few, many = make(30, 40, 5).init(7), make(6000, 90, 5).init(7)
        count = len(few[name])
        assert torch.equal(few[name][torch.arange(count)], many[name][torch.arange(count)])
        assert not torch.equal(
            few[name][torch.arange(count)], make(30, 40, 5).init(8)[name][torch.arange(count)]
        )
    first = matrix_factorisation(6000, 90, 5).init(7)["user"]
    assert float(first.std()) == pytest.approx(0.1, rel=0.03)
    assert float(first.mean().abs()) < 0.003


def test_features_by_hand():
    train = tiny([0, 0, 1], [0, 1, 1], [5.0, 3.0, 1.0])
    assert item_features(train.catalogue).tolist() == [[1, 0, 0], [0, 1, 0]]
    shrunk = user_features(train, strength=2.0)[:, 0]
    # mean 3: above by 2 + 0 over 4, by -2 over 3
    assert shrunk.tolist() == pytest.approx([2 / 4, -2 / 3])


def test_bad_models_are_refused():
    with pytest.raises(ParameterError, match="dim=0: choose a whole number of 1 or more"):
        matrix_factorisation(3, 3, 0)
    with pytest.raises(ParameterError, match=r"dropout=1\.0"):
        interaction(3, 3, dropout=1.0)
    with pytest.raises(ParameterError, match="task='stars'"):
        matrix_factorisation(3, 3, task="stars")
    base = linear(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ParameterError, match="private='theta'"):
        Model("x", "clicks", base.init, base.predict, base.rows, frozenset({"theta"}))
    with pytest.raises(ParameterError, match="strength=0"):
        user_features(tiny([0], [0]), 0)
