"""Robust rules by hand, against numpy, and against clients that lie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mean import DELTAS, SERVER, dense, sent

from fedlab.aggregation import (
    CoordinateMedian,
    Krum,
    NoDeltaError,
    NormBound,
    RowBound,
    TrimmedMean,
    WeightedMean,
    as_aggregation,
    joined_updates,
    krum_scores,
)
from fedlab.core import ParameterError, Rows


def full(given):
    """Every client holds every row: given (C, I, D) as one update."""
    clients, items = given.shape[:2]
    client, ids = (
        t.flatten()
        for t in torch.meshgrid(torch.arange(clients), torch.arange(items), indexing="ij")
    )
    return sent({"w": Rows(given.flatten(0, 1), ids, client)}, torch.ones(clients))


def random(clients, items=7, dim=3, seed=0):
    return torch.randn(clients, items, dim, generator=torch.Generator().manual_seed(seed))


def test_median_and_trimmed_mean_ask_the_holders_of_a_row():
    deltas = {
        "w": Rows(
            torch.tensor([1.0, 5.0, 9.0, 100.0, 4.0, 2.0, -7.0])[:, None],
            torch.tensor([0, 1, 0, 0, 1, 0, 2]),
            torch.tensor([0, 0, 1, 2, 2, 3, 3]),
        )
    }
    updates, server = sent(deltas, torch.ones(4)), {"w": torch.zeros(5, 1)}
    # row 0: 1, 9, 100, 2; row 1: 5, 4; row 2: -7; rows 3 and 4: nobody
    for rule, first in (
        (CoordinateMedian(), 5.5),
        (TrimmedMean(trim=0.25), 5.5),
        (TrimmedMean(trim=0.24), 28.0),
    ):
        found = dense(rule, updates, server)["w"][:, 0].tolist()
        assert found == [first, 4.5, -7.0, 0.0, 0.0]


@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_median_and_trimmed_mean_equal_numpy(clients):
    given, server = random(clients), {"w": torch.zeros(7, 3)}
    middle = dense(CoordinateMedian(), full(given), server)["w"]
    np.testing.assert_allclose(middle, np.median(given, axis=0), atol=1e-6)
    cut = int(0.3 * clients)
    expected = np.sort(given.numpy(), axis=0)[cut : clients - cut].mean(0)
    np.testing.assert_allclose(
        dense(TrimmedMean(trim=0.3), full(given), server)["w"], expected, atol=1e-6
    )


def test_krum_by_hand():
    # on a line at 0, 1, 3, 7, 100 with f = 1: two nearest each
    at = torch.tensor([0.0, 1.0, 3.0, 7.0, 100.0])
    updates, server = full(at.view(5, 1, 1)), {"w": torch.zeros(1, 1)}
    scores = krum_scores(joined_updates(updates), 1)
    assert scores.tolist() == [1 + 9, 1 + 4, 4 + 9, 16 + 36, 93**2 + 97**2]
    assert dense(Krum(byzantine=1), updates, server)["w"].item() == 1
    assert dense(Krum(byzantine=1, keep=3), updates, server)["w"].item() == pytest.approx(4 / 3)


def test_krum_counts_a_row_that_is_not_held_as_zero():
    dims = torch.randn(6, 40, 2, generator=torch.Generator().manual_seed(1))
    held = torch.rand(6, 40, generator=torch.Generator().manual_seed(2)) < 0.3
    client, ids = held.nonzero().T
    update = joined_updates(sent({"w": Rows(dims[client, ids], ids, client)}, torch.ones(6)))
    flat = (dims * held[:, :, None]).flatten(1).double()
    nearest = torch.cdist(flat, flat).square().sort(1).values[:, 1:4].sum(1)  # C - f - 2 = 3 others
    torch.testing.assert_close(krum_scores(update, 1), nearest)
    import fedlab.aggregation.robust as module

    torch.testing.assert_close(module._products(update.deltas["w"], 6, chunk=7), flat @ flat.T)


@pytest.mark.parametrize(
    "rule",
    [CoordinateMedian(), TrimmedMean(trim=0.25), Krum(byzantine=2), Krum(byzantine=2, keep=5)],
)
def test_two_liars_among_nine_do_not_steer(rule):
    given = 1 + 0.1 * random(9)
    given[:2] = -1000
    step = dense(rule, full(given), {"w": torch.zeros(7, 3)})["w"]
    assert float((step - 1).abs().max()) < 0.5
    assert float(dense(WeightedMean(), full(given), {"w": torch.zeros(7, 3)})["w"].max()) < -200


def test_norm_bound_by_hand():
    # client 0: sqrt(16 + 64 + 1) = 9, client 1: sqrt(4 + 25 + 16)
    step = dense(NormBound(bound=4.5), sent(DELTAS, torch.ones(2)), SERVER)
    shrink = 4.5 / 45**0.5
    torch.testing.assert_close(step["item"][:, 0], torch.tensor([1.0, (4 + 2 * shrink) / 2, 0.0]))
    torch.testing.assert_close(step["dense"][0], torch.tensor([(0.5 + 5 * shrink) / 2, 2 * shrink]))
    free = dense(NormBound(bound=1e6), sent(DELTAS, torch.ones(2)), SERVER)
    torch.testing.assert_close(free, dense(WeightedMean(), sent(DELTAS, torch.ones(2)), SERVER))


@settings(max_examples=50)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_one_client_and_equal_clients_are_taken_as_they_are(clients, seed):
    one = random(1, seed=seed)
    for rule in (CoordinateMedian(), TrimmedMean(trim=0.4), NormBound(bound=1e6)):
        step = dense(rule, full(one.expand(clients, -1, -1)), {"w": torch.zeros(7, 3)})["w"]
        torch.testing.assert_close(step, one[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrimmedMean(trim=0.5), "trim=0.5: choose a number from 0 to 0.49"),
        (lambda: TrimmedMean(trim=-0.1), "trim=-0.1"),
        (lambda: Krum(byzantine=-1), "byzantine=-1"),
        (lambda: Krum(keep=0), "keep=0"),
        (lambda: NormBound(bound=0.0), "bound=0.0"),
        (lambda: NormBound(bound=float("inf")), "bound=inf"),
        (lambda: RowBound(bound=-1.0), "bound=-1.0"),
        (lambda: Krum(keeps=2), "keeps=2: no such parameter; did you mean keep?"),
    ],
)
def test_settings_without_meaning_are_refused(build, message):
    with pytest.raises(ParameterError, match=message):
        build()


@pytest.mark.parametrize(
    "rule", [WeightedMean(), CoordinateMedian(), TrimmedMean(), Krum(), NormBound(), RowBound()]
)
def test_nobody_makes_no_delta(rule):
    with pytest.raises(NoDeltaError, match="no client is left"):
        rule(iter(()), SERVER)


def test_too_few_clients_for_krum():
    with pytest.raises(NoDeltaError, match="byzantine=2: Krum needs 7 clients and has 6"):
        Krum(byzantine=2)(full(random(6)), {"w": torch.zeros(7, 3)})


def test_row_bound_by_hand_and_with_a_norm_bound_after():
    deltas = {
        "w": Rows(
            torch.tensor([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0]]),
            torch.tensor([0, 1, 0]),
            torch.tensor([0, 0, 1]),
        ),
        "b": Rows(torch.tensor([2.0]), torch.tensor([1]), torch.tensor([1])),
    }
    updates, server = sent(deltas, torch.ones(2)), {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    found = dense(RowBound(bound=1.0), updates, server)
    # (.6 + .6, .8 + .8) / 2
    torch.testing.assert_close(found["w"], torch.tensor([[0.6, 0.8], [0.15, 0.2]]))
    torch.testing.assert_close(found["b"], torch.tensor([0.0, 0.5]))
    # 1.25**.5 and 2**.5 long
    both = dense(RowBound(bound=1.0, then=NormBound(bound=1.0)), updates, server)
    first, second = 1.25**-0.5, 2**-0.5
    torch.testing.assert_close(both["w"][0], torch.tensor([0.3, 0.4]) * (first + second))
    torch.testing.assert_close(both["b"][1], torch.tensor(0.5 * second))
    assert updates[0].deltas["w"].values[0].tolist() == [3.0, 4.0]  # what was sent is untouched


def test_a_bound_hands_a_list_to_what_walks_its_updates_twice():
    def twice(updates, server):
        first, second = list(updates), list(updates)
        assert len(first) == len(second) == 1
        return WeightedMean()(second, server)

    updates = sent(DELTAS, torch.ones(2))
    for rule in (NormBound, RowBound):
        assert rule().streams
        again = rule(bound=100.0, then=as_aggregation(twice))
        assert not again.streams
        torch.testing.assert_close(
            dense(again, updates, SERVER), dense(WeightedMean(), updates, SERVER)
        )
