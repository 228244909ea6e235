"""Metrics against hand calculations and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedlab.core import ParameterError
from fedlab.evaluation import accuracy, at_k, auc, hit_rate, mae, mse, ndcg, rank, rmse

VALUES = st.floats(-5, 5, width=32).map(lambda x: round(x, 1))  # rounded, so that ties are common


def test_errors_by_hand():
    p, t = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])
    assert mse(p, t) == pytest.approx(13 / 3)
    assert rmse(p, t) == pytest.approx(math.sqrt(13 / 3))
    assert mae(p, t) == pytest.approx(5 / 3)
    assert accuracy(torch.tensor([2.0, 1.0, 3.0]), t) == pytest.approx(2 / 3)


def test_ranks_by_hand_and_ties_against_us():
    others = torch.tensor([[1.0, 3.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    ranks = rank(torch.tensor([2.0, 2.0, float("nan")]), others)
    assert ranks.tolist() == [2, 4, 4]
    assert rank(torch.zeros(1), torch.zeros(1, 99)).tolist() == [100]
    assert hit_rate(ranks, 2) == pytest.approx(1 / 3)
    assert ndcg(ranks, 4) == pytest.approx((1 / math.log2(3) + 2 / math.log2(5)) / 3)
    assert at_k(torch.tensor([1, 11]), 10) == {"hr@10": 0.5, "ndcg@10": 0.5}


@settings(max_examples=100)
@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=2, max_size=40))
def test_auc_and_errors_equal_scikit_learn(rows):
    scores = torch.tensor([s for s, _ in rows])
    target = torch.tensor([float(t) for _, t in rows])
    assert mse(scores, target) == pytest.approx(
        sk.mean_squared_error(target, scores), rel=1e-5, abs=1e-7
    )
    assert mae(scores, target) == pytest.approx(
        sk.mean_absolute_error(target, scores), rel=1e-5, abs=1e-7
    )
    assert accuracy(scores, target) == pytest.approx(sk.accuracy_score(target > 0.5, scores > 0))
    if 0 < target.sum() < len(target):
        assert auc(scores, target) == pytest.approx(sk.roc_auc_score(target, scores))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 12))
def test_ndcg_and_hit_rate_equal_scikit_learn(seed, candidates, k):
    rng = np.random.default_rng(seed)
    # no ties
    scores = rng.permuted(np.tile(np.arange(candidates, dtype=np.float32), (8, 1)), axis=1)
    truth = np.zeros_like(scores)
    truth[:, 0] = 1
    ranks = rank(torch.from_numpy(scores[:, 0]), torch.from_numpy(scores[:, 1:]))
    assert ndcg(ranks, k) == pytest.approx(sk.ndcg_score(truth, scores, k=k), abs=1e-6)
    if 2 < candidates > k:
        top = sk.top_k_accuracy_score(np.zeros(8), scores, k=k, labels=np.arange(candidates))
        assert hit_rate(ranks, k) == pytest.approx(top)


def test_auc_needs_both_classes():
    with pytest.raises(ParameterError, match="needs both classes"):
        auc(torch.ones(3), torch.ones(3))
