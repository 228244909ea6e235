"""Aggregation by hand, and its invariants by property."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from fedlab.aggregation import (
    CoordinateMedian,
    Hierarchical,
    MeanOfHolders,
    NoDeltaError,
    OwnWeights,
    WeightedMean,
    as_aggregation,
)
from fedlab.core import ParameterError, Rows, Update, whole

SERVER = {"item": torch.zeros(3, 1), "dense": torch.zeros(1, 2)}
DELTAS = {  # client 0 holds items 0 and 1, client 1 only item 1
    "item": Rows(
        torch.tensor([[4.0], [8.0], [2.0]]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    ),
    "dense": Rows(
        torch.tensor([[1.0, 0.0], [5.0, 4.0]]), torch.tensor([0, 0]), torch.tensor([0, 1])
    ),
}


def sent(deltas, weights):
    """One update with these deltas and weights; losses and client numbers do not matter here."""
    return [
        Update(
            deltas,
            weights,
            torch.zeros(len(weights)),
            torch.arange(len(weights)),
            torch.ones(len(weights)),
        )
    ]


def dense(rule, updates, server):
    """The delta of an aggregation, which is the same whether some of it came as rows or not."""
    kept, found = list(updates), rule(updates, server)
    for name, delta in rule.delta(kept, server).items():
        assert torch.equal(whole(delta, server[name]), found[name])
    return found


def test_fedavg_by_hand():
    step = dense(WeightedMean(), sent(DELTAS, torch.tensor([3.0, 1.0])), SERVER)
    assert step["item"].tolist() == [[3.0], [6.5], [0.0]]  # (3*4)/4, (3*8 + 2)/4
    assert step["dense"].tolist() == [[2.0, 1.0]]


def test_fedsubavg_by_hand():
    step = dense(MeanOfHolders(), sent(DELTAS, torch.tensor([3.0, 1.0])), SERVER)
    assert step["item"].tolist() == [[4.0], [6.5], [0.0]]  # item 0: its one holder, undiluted
    assert step["dense"].tolist() == [[2.0, 1.0]]


def test_fedavg_equals_numpy_average_of_dense_deltas():
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    given = torch.randn(5, 7, 3, generator=generator)
    client, ids = (
        t.flatten() for t in torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    )
    weights = torch.rand(5, generator=generator)
    step = dense(
        WeightedMean(),
        sent({"w": Rows(given.view(-1, 3), ids, client)}, weights),
        {"w": torch.zeros(7, 3)},
    )
    np.testing.assert_allclose(step["w"], np.average(given, axis=0, weights=weights), atol=1e-6)


@settings(max_examples=100)
@drawn(st.lists(st.floats(0.01, 100), min_size=2, max_size=2), st.floats(0.01, 100))
def test_only_the_shares_of_the_weights_count(weights, factor):
    for rule in (WeightedMean(), MeanOfHolders()):
        a = dense(rule, sent(DELTAS, torch.tensor(weights)), SERVER)
        b = dense(rule, sent(DELTAS, torch.tensor(weights) * factor), SERVER)
        for name in SERVER:
            torch.testing.assert_close(a[name], b[name])
            low, high = DELTAS[name].values.min().clamp(max=0), DELTAS[name].values.max()
            assert bool((a[name] >= low - 1e-4).all() and (a[name] <= high + 1e-4).all())


def test_equal_weights_are_the_plain_mean():
    step = dense(WeightedMean(), sent(DELTAS, torch.ones(2)), SERVER)
    assert step["dense"].tolist() == [pytest.approx([3.0, 2.0])]


@pytest.mark.parametrize("rule", [WeightedMean(), MeanOfHolders()])
def test_chunks_add_up_to_the_whole_whether_as_rows_or_as_tensors(rule):
    """A table of 3 rows is summed densely, one of 50 stays rows: both equal all clients at once."""
    weights = torch.tensor([3.0, 1.0])
    chunks = []
    for c in (0, 1):
        mine = {n: d.client == c for n, d in DELTAS.items()}
        deltas = {
            n: Rows(d.values[mine[n]], d.ids[mine[n]], d.client[mine[n]] - c)
            for n, d in DELTAS.items()
        }
        chunks += sent(deltas, weights[c : c + 1])
    for count, kind in ((3, torch.Tensor), (50, Rows)):
        server = SERVER | {"item": torch.zeros(count, 1)}
        assert isinstance(rule.delta(iter(chunks), server)["item"], kind)
        once, twice = (dense(rule, u, server) for u in (sent(DELTAS, weights), chunks))
        for name in server:
            torch.testing.assert_close(once[name], twice[name])


def test_given_weights_go_by_client_number():
    updates = [replace(sent(DELTAS, torch.tensor([9.0, 9.0]))[0], cohort=torch.tensor([2, 0]))]
    step = dense(OwnWeights([1.0, 5.0, 3.0]), updates, SERVER)
    assert step["item"].tolist() == [[3.0], [6.5], [0.0]]
    with pytest.raises(NoDeltaError, match="all weights are 0"):
        OwnWeights([0.0, 1.0, 0.0])(updates, SERVER)


@pytest.mark.parametrize("alpha", [[1.0, -0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_impossible_weights_are_refused(alpha):
    with pytest.raises(ParameterError, match="alpha="):
        OwnWeights(alpha)


def test_weighted_means_of_platforms_are_one_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    rows = Rows(
        torch.randn(40, 2, generator=generator),
        torch.randint(9, (40,), generator=generator),
        torch.arange(8).repeat_interleave(5),
    )
    updates, server = (
        sent({"w": rows}, torch.rand(8, generator=generator)),
        {"w": torch.zeros(9, 2)},
    )
    platform = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1])
    torch.testing.assert_close(
        dense(Hierarchical(platform), updates, server)["w"],
        dense(WeightedMean(), updates, server)["w"],
    )
    # a median over platforms is another thing than over devices
    step = dense(Hierarchical(platform, outer=CoordinateMedian()), updates, server)["w"]
    each = torch.stack(
        [dense(WeightedMean(), [updates[0].only(platform == k)], server)["w"] for k in range(3)]
    )
    held = torch.stack(
        [torch.isin(torch.arange(9), rows.ids[platform[rows.client] == k]) for k in range(3)]
    )
    for row in range(9):
        if held[:, row].any():
            whole_table = each[:, row].sort(0).values[1]
            few = each[held[:, row], row]
            expected = few.sort(0).values[[(len(few) - 1) // 2, len(few) // 2]].mean(0)
            assert torch.allclose(step[row], expected) or torch.allclose(step[row], whole_table)


def test_weights_of_clients_are_given_where_clients_are_aggregated():
    updates, platform = sent(DELTAS, torch.tensor([3.0, 1.0])), torch.tensor([0, 1])
    alpha = OwnWeights([1.0, 1.0])
    inside = dense(Hierarchical(platform, inner=alpha), updates, SERVER)
    # one client each: weights do not matter
    assert inside["item"].tolist() == [[3.0], [6.5], [0.0]]
    with pytest.raises(
        ParameterError, match="alpha='platforms': weights are by client; give them to"
    ):
        Hierarchical(platform, outer=alpha)(updates, SERVER)


def test_a_function_is_an_aggregation_of_its_own_name():
    def doubled(updates, server):
        (update,) = updates
        return {"dense": 2 * update.deltas["dense"].values[:1], "item": update.deltas["item"]}

    rule = as_aggregation(doubled)
    assert rule.name == "doubled"
    assert as_aggregation(rule) is rule
    found = rule(sent(DELTAS, torch.ones(2)), SERVER)
    assert found["dense"].tolist() == [[2.0, 0.0]]
    assert found["item"].tolist() == [[4.0], [10.0], [0.0]]  # rows are added up
