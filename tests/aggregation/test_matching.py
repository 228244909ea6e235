"""Matched averaging: by hand, on copies in another order, and against a search over all orders."""

from itertools import permutations, product

import pytest
import torch

from fedlab.aggregation import (
    Hierarchical,
    Matched,
    NoDeltaError,
    WeightedMean,
    as_update,
    hidden_layers,
)
from fedlab.aggregation.matching import matching
from fedlab.algorithms import Scaffold, federate
from fedlab.core import ParameterError, Settings
from fedlab.data import Columns
from fedlab.models import content, matrix_factorisation, neural_collaborative_filtering, perceptron

MODEL = perceptron(3, 8)
X = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))


def reordered(tree, order, into="w1", bias="b1", out="w2"):
    """The same network with the units of a layer in another order."""
    axis = -1 if tree[out].dim() == 2 else 1
    new = {into: tree[into][..., order], bias: tree[bias][..., order]}
    return tree | new | {out: tree[out].index_select(axis, order)}


def after(rule, models, server, weights=None):
    """The server's parameters after a step with these models of its clients."""
    delta = rule([as_update(models, server, weights)], server)
    return {name: server[name] + delta[name] for name in server}


def answers(tree):
    return MODEL.predict(tree, {"x": X})


def luck(seed):
    return torch.Generator().manual_seed(seed)


def test_two_units_by_hand():
    """Units (w1, b1, w2) of client 0: (4, 0, 2), (0, 2, 0); of client 1: (0, 4, 2), (6, 0, 2)."""
    server = {
        "w1": torch.tensor([[[0.0, 4.0]]]),
        "b1": torch.tensor([[4.0, 0.0]]),
        "w2": torch.tensor([[0.0, 2.0]]),
        "b2": torch.tensor([[1.0]]),
    }
    first = {
        "w1": torch.tensor([[[4.0, 0.0]]]),
        "b1": torch.tensor([[0.0, 2.0]]),
        "w2": torch.tensor([[2.0, 0.0]]),
        "b2": torch.tensor([[2.0]]),
    }
    other = {
        "w1": torch.tensor([[[0.0, 6.0]]]),
        "b1": torch.tensor([[4.0, 0.0]]),
        "w2": torch.tensor([[2.0, 2.0]]),
        "b2": torch.tensor([[6.0]]),
    }
    # in place: 16 + 16 + 0 and 36 + 4 + 4 from each other; crossed: 4 + 0 + 0 and 0 + 4 + 4.
    # weights 3 and 1; the server's units lie the other way round than client 0's
    found = after(Matched(), [first, other], server, torch.tensor([3.0, 1.0]))
    assert found["w1"].tolist() == [[[0.0, 4.5]]]  # (3 * 0 + 0) / 4 and (3 * 4 + 6) / 4
    assert found["b1"].tolist() == [[2.5, 0.0]]
    assert found["w2"].tolist() == [[0.5, 2.0]]
    assert found["b2"].tolist() == [[3.0]]
    plain = after(WeightedMean(), [first, other], server, torch.tensor([3.0, 1.0]))
    assert plain["w1"].tolist() == [[[3.0, 1.5]]]


def test_copies_in_another_order_are_one_function_and_their_plain_mean_is_none():
    one = MODEL.init(1)
    copies = [reordered(one, torch.randperm(8, generator=luck(k))) for k in range(5)]
    for each in copies:
        torch.testing.assert_close(answers(each), answers(one))
    server, weights = MODEL.init(9), torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0])
    torch.testing.assert_close(
        answers(after(Matched(), copies, server, weights)), answers(one), atol=1e-6, rtol=1e-5
    )
    plain = after(WeightedMean(), copies, server, weights)
    assert (answers(plain) - answers(one)).abs().max() > 0.1


def test_where_no_order_is_better_it_is_the_weighted_mean_bit_for_bit():
    server = MODEL.init(0)
    near = [
        {name: v + 0.02 * torch.randn(v.shape, generator=luck(k)) for name, v in server.items()}
        for k in range(4)
    ]
    sent = [as_update(near, server, torch.tensor([1.0, 2.0, 3.0, 4.0]))]
    ours, plain = Matched()(sent, server), WeightedMean()(sent, server)
    for name, delta in plain.items():
        assert torch.equal(ours[name], delta)


def test_the_result_lies_the_way_the_server_does():
    """A step of half the way must go towards the matched mean, not through crossed units."""
    server = MODEL.init(0)
    turned = [reordered(server, torch.randperm(8, generator=luck(k))) for k in range(3)]
    for delta in Matched()([as_update(turned, server)], server).values():
        assert delta.abs().max() < 1e-6


def cost(units, order, weights):
    """The sum of squares that is made small."""
    here = torch.stack([units[k, list(each)] for k, each in enumerate(order)])
    mean = (weights.view(-1, 1, 1) * here).sum(0) / weights.sum()
    return float((weights.view(-1, 1, 1) * (here - mean).square()).sum())


@pytest.mark.parametrize("seed", range(6))
def test_two_clients_are_matched_as_well_as_any_order_would(seed):
    units = torch.randn(2, 4, 3, generator=luck(seed), dtype=torch.float64)
    weights = torch.rand(2, generator=luck(seed + 50)) + 0.1
    found = matching(units, weights, units[0])
    least = min(cost(units, (range(4), each), weights) for each in permutations(range(4)))
    assert cost(units, found.tolist(), weights) == pytest.approx(least)
    assert [sorted(each) for each in found.tolist()] == [[0, 1, 2, 3]] * 2


def test_several_clients_are_matched_until_none_gains_by_itself():
    everything, best = list(permutations(range(3))), 0
    for seed in range(12):
        units = torch.randn(4, 3, 2, generator=luck(seed), dtype=torch.float64)
        weights = torch.rand(4, generator=luck(seed + 50)) + 0.1
        found = matching(units, weights, units[0]).tolist()
        reached = cost(units, found, weights)
        for k, each in product(range(4), everything):
            turned = [*found[:k], list(each), *found[k + 1 :]]
            assert reached <= cost(units, turned, weights) + 1e-12
        least = min(cost(units, o, weights) for o in product(everything, repeat=4))
        best += reached <= least * (1 + 1e-9)
    assert best >= 6  # a search one client at a time does not always find the least


def test_several_layers_are_matched_one_after_another():
    model = neural_collaborative_filtering(3, 5, dim=8, depth=3)
    shared = {name: value for name, value in model.init(0).items() if name != "user"}
    assert hidden_layers(shared) == [("w1", "b1", "w2"), ("w2", "b2", "w3")]
    turned = reordered(shared, torch.randperm(8, generator=luck(0)))
    turned = reordered(turned, torch.randperm(4, generator=luck(1)), "w2", "b2", "w3")
    for delta in Matched()([as_update([turned, shared], shared)], shared).values():
        assert delta.abs().max() < 1e-6


def test_item_biases_are_averaged_as_they_are():
    model = content(torch.zeros(4, 2), torch.zeros(3, 2), hidden=4)
    server = model.init(0)
    turned = reordered(server, torch.tensor([3, 2, 1, 0])) | {"bias": torch.full((4,), 2.0)}
    found = after(Matched(), [server, turned], server)
    assert found["bias"].tolist() == [1.0] * 4
    torch.testing.assert_close(found["w1"], server["w1"])


def test_it_acts_inside_a_hierarchy():
    server = MODEL.init(0)
    turned = [reordered(server, torch.randperm(8, generator=luck(k))) for k in range(4)]
    rule = Hierarchical(torch.tensor([0, 0, 1, 1]), inner=Matched(), outer=Matched())
    for delta in rule([as_update(turned, server)], server).values():
        assert delta.abs().max() < 1e-6


def columns():
    x = torch.randn(40, 3, generator=luck(0))
    return Columns({"x": x, "target": (x[:, 0] > 0).float()}, torch.arange(40) % 4)


def test_a_federation_trains_with_it():
    settings = Settings(rounds=3, cohort=4, local_lr=0.5)
    ours, plain = (
        list(federate(MODEL, columns(), settings, aggregate=rule))
        for rule in (Matched(), WeightedMean())
    )
    for name in MODEL.rows:  # short steps from the same start: units stay in their places
        assert torch.equal(ours[-1].params[name], plain[-1].params[name])


def test_what_cannot_be_matched_is_refused():
    factors = matrix_factorisation(3, 4, 2)
    shared = {name: value for name, value in factors.init(0).items() if name != "user"}
    with pytest.raises(ParameterError, match="it needs a layer whose hidden units can be matched"):
        Matched()([as_update([shared], shared)], shared)
    with pytest.raises(ParameterError, match="local='scaffold': matched: clients send control of"):
        next(federate(MODEL, columns(), local=Scaffold(), aggregate=Matched()))
    server = MODEL.init(0)
    broken = server | {"b1": torch.full((1, 8), torch.nan)}
    with pytest.raises(ParameterError, match="b1='not finite': an update has to be finite"):
        Matched()([as_update([server, broken], server)], server)
    with pytest.raises(NoDeltaError, match="all weights are 0"):
        Matched()([as_update([server], server, torch.zeros(1))], server)
    with pytest.raises(NoDeltaError, match="no client is left"):
        Matched()([], server)


def test_a_model_without_such_a_layer_is_named(clicks):
    model = matrix_factorisation(clicks.train.user_count, clicks.train.item_count, 2)
    with pytest.raises(ParameterError, match="model='matrix factorisation': matched: it needs"):
        next(federate(model, clicks, Settings(cohort=2), aggregate=Matched()))


@pytest.mark.parametrize(
    "change",
    [
        {"w2": torch.zeros(1, 7)},
        {"b1": torch.zeros(8)},
        {"w1": torch.zeros(3, 8)},
        {"w1": torch.zeros(2, 3, 8)},
    ],
)
def test_shapes_that_do_not_fit_are_no_layer(change):
    assert hidden_layers(MODEL.init(0) | change) == []
