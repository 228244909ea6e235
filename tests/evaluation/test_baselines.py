"""Central iALS against autograd on the whole loss, EASE and item kNN against their definitions."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from conftest import tiny
from oracle import implicit_loss, weighed

from fedlab.core import DataError, ParameterError
from fedlab.evaluation import by_history, clicked, dot, ease, ease_weights, frequent, ials, item_knn

BASELINES = import_module("fedlab.evaluation.baselines")


def three():
    """Three users and three items, as in the numbers by hand."""
    return tiny([0, 0, 1, 2, 2], [0, 1, 0, 1, 2])


def test_central_ials_reaches_a_point_without_slope(small):
    how = {"unseen": 1.0, "regularisation": 0.5}
    users, items = ials(small, 3, epochs=200, **how)
    u, i = users.double().requires_grad_(), items.double().requires_grad_()
    slopes = torch.autograd.grad(implicit_loss(clicked(small).double(), u, i, **how), [u, i])
    assert max(float(s.abs().max()) for s in slopes) < 1e-3
    assert dot(users, items)(torch.tensor([[2, 3]]), torch.tensor([[5, 1]])).tolist() == [
        pytest.approx([float(users[2] @ items[5]), float(users[3] @ items[1])])
    ]


def test_ease_is_the_least_squares_without_the_diagonal(small):
    table = clicked(small).double()
    score = ease(small, 2.0)
    users, items = (
        t.flatten() for t in torch.meshgrid(torch.arange(15), torch.arange(11), indexing="ij")
    )
    found, late = (
        s(users, items).view(15, 11).double() for s in (score, ease(small, 2.0, recency=1.0))
    )
    weighted = weighed(small).double()
    for item in range(11):  # a ridge regression on the other films, one film at a time
        others = torch.arange(11) != item
        x = table[:, others]
        b = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(10).double(), x.T @ table[:, item])
        torch.testing.assert_close(found[:, item], x @ b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(late[:, item], weighted[:, others] @ b, atol=1e-5, rtol=1e-4)


def test_ease_needs_times_only_to_weigh_by_them(small):
    without = replace(small, columns={})
    users, items = small.users, small.items
    assert torch.equal(ease(without)(users, items), ease(small)(users, items))
    with pytest.raises(DataError, match="no times; name their column when you read them"):
        ease(without, recency=1.0)


def test_ease_by_hand():
    # X'X + I = [[3, 1, 0], [1, 3, 1], [0, 1, 2]], whose inverse times 13 is
    # [[5, -2, 1], [-2, 6, -3], [1, -3, 8]]; a score is a sum of rows of B
    want = torch.tensor([[2 / 5, 1 / 3, 1 / 4], [0, 1 / 3, -1 / 8], [1 / 5, 1 / 2, 3 / 8]])
    torch.testing.assert_close(ease(three(), 1.0).rows(torch.arange(3)), want)


def test_item_knn_by_hand():
    # 0 and 1 were clicked together once, by 2 and 2 users: 1 / (2 + 1); 1 and 2 by 2 and 1
    near, far = 1 / (2**0.5 + 1), 1 / 3
    for neighbours, item_1 in ((2, far), (1, 0.0)):  # the one nearest to item 1 is item 2
        score = item_knn(three(), neighbours, 1.0)
        want = torch.tensor([[far, item_1, near], [0, item_1, 0], [far, near, near]])
        torch.testing.assert_close(score.rows(torch.arange(3)), want)


@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_item_knn_is_what_a_loop_over_all_pairs_says(small, neighbours, block, monkeypatch):
    monkeypatch.setattr(BASELINES, "BLOCK", block)
    table, weighted = clicked(small).double(), weighed(small).double()
    together, alike = table.T @ table, torch.zeros(11, 11).double()
    for i in range(11):
        near = sorted(
            (-together[i, j] / ((together[i, i] * together[j, j]).sqrt() + 0.5), j)
            for j in range(11)
            if j != i and together[i, j] > 0
        )
        for minus, j in near[:neighbours]:
            alike[j, i] = -minus
    score = item_knn(small, neighbours, 0.5, recency=1.0)
    torch.testing.assert_close(score.rows(torch.arange(15)).double(), weighted @ alike)


def test_blocks_of_users_and_items_leave_no_trace(small, monkeypatch):
    def every():
        scores = item_knn(small, 3), ease(small, 2.0), ease(small, 2.0, least_clicks=6)
        users = torch.arange(15)
        pairs = torch.arange(14, -1, -1)[:, None].expand(15, 11), torch.arange(11).expand(15, 11)
        rows = [s.rows(users) for s in scores]
        for score, whole in zip(scores, rows, strict=True):
            assert torch.equal(score(*pairs), whole.flip(0))
            assert torch.equal(score.rows(users[7:8])[0], whole[7])
        return torch.stack([*rows, dot(*ials(small, 3, epochs=2)).every(users)[0]])

    usual = every()
    for name in ("BLOCK", "PADDED"):
        monkeypatch.setattr(BASELINES, name, 4)
    monkeypatch.setattr(import_module("fedlab.models.factored"), "NUMBERS", 25)
    torch.testing.assert_close(every(), usual)


def test_no_pair_is_asked_for():
    score = ease(three(), 1.0)
    none = torch.empty(0, 4, dtype=torch.int64)
    assert score(none, none).shape == (0, 4)


def test_users_and_items_without_clicks():
    train = tiny([0, 0, 2], [0, 1, 1], user_count=4, item_count=4)
    for score in (item_knn(train), ease(train), dot(*ials(train, 2, epochs=2))):
        rows = score(torch.arange(4)[:, None].expand(4, 4), torch.arange(4).expand(4, 4))
        assert bool(rows.isfinite().all())
        assert bool((rows[[1, 3]] == 0).all())  # who clicked nothing
        assert bool((rows[:, 2:] == 0).all())  # and what nobody clicked
    assert bool((item_knn(tiny([0], [0])).rows(torch.tensor([0])) == 0).all())


def test_a_table_that_would_not_fit_names_the_way_out():
    counts = torch.tensor([5.0, 1, 3, 3, 0, 9])
    assert frequent(counts, 3, 20, 1.0).tolist() == [0, 2, 3, 5]
    said = (
        r"memory_gb=2e-07: the pairs of 6 items take 7.2e-07 GB; allow so much, or keep 2 items by "
        "least_clicks=4"
    )
    with pytest.raises(ParameterError, match=said):  # three would fit, were two not alike
        frequent(counts, 0, 20, 2e-7)
    assert frequent(counts, 4, 20, 2e-7).tolist() == [0, 5]
    with pytest.raises(ParameterError, match=r"take 1.8e-07 GB; allow so much$"):
        frequent(torch.ones(3), 0, 20, 1e-7)


def test_sums_that_noise_has_made_indefinite_have_no_negative_part():
    noisy = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # eigenvalues 3 and -1
    inverse = torch.tensor([[1.5, 1.5], [1.5, 1.5]], dtype=torch.float64)  # of its positive part
    inverse.diagonal().add_(0.5)
    inverse = torch.linalg.inv(inverse)
    want = (-inverse / inverse.diagonal()).fill_diagonal_(0)
    torch.testing.assert_close(ease_weights(noisy, 0.5), want.float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ease(None, 0.0), "strength=0.0"),
        (lambda: ials(None, unseen=0.0), "unseen=0.0"),
        (lambda: ials(None, regularisation=0.0), "regularisation=0.0"),
        (lambda: item_knn(None, 0), "neighbours=0: choose a whole number of 1 or more"),
        (lambda: item_knn(None, shrinkage=-1.0), "shrinkage=-1.0: choose 0 or more"),
        (lambda: ease(three(), least_clicks=-1), "least_clicks=-1: choose a whole number"),
        (lambda: ease(three(), memory_gb=0.0), "memory_gb=0.0: choose a positive number"),
        (lambda: ease(three(), least_clicks=3), "least_clicks=3: no item has so many; .* has 2"),
        (lambda: by_history(three(), torch.eye(2)), r"table=\(2, 2\): give a square"),
    ],
)
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()


def test_ials_in_the_cache_solves_what_it_solves_padded(small, monkeypatch):
    fast = ials(small, 5, epochs=3)
    monkeypatch.setattr(BASELINES, "compiled_loops", lambda: None)
    for one, other in zip(fast, ials(small, 5, epochs=3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
