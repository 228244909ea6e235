"""Functions from a stream of Rounds to another, or to one of them."""

import pytest
import torch

from fedlab.core import ParameterError, Round, Settings, best_round, measured, stop_early


def rounds(count):
    """Rounds that differ in their number."""
    for number in range(1, count + 1):
        yield Round(number, Settings(), {"w": torch.tensor([float(number)])})


def test_measure_stop_and_keep_the_best():
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    scored = measured(rounds(5), lambda done: {"ndcg": next(scores)})
    kept = list(stop_early(scored, "ndcg", "max", patience=2))
    assert [r.metrics["ndcg"] for r in kept] == [0.1, 0.5, 0.4, 0.5]
    assert best_round(kept, "ndcg", "max").number == 2
    assert best_round(kept, "ndcg", "min").number == 1
    every = list(measured(rounds(3), lambda done: {"x": float(done.params["w"])}, every=2))
    assert [r.metrics for r in every] == [{}, {"x": 2.0}, {}]


def test_rounds_without_the_metric_do_not_stop_a_run():
    every = measured(rounds(6), lambda done: {"x": 1.0}, every=3)
    assert [done.number for done in stop_early(every, "x", "max", patience=2)] == list(range(1, 7))


def test_a_round_may_be_kept_without_its_weight():
    (done,) = rounds(1)
    assert (done.light().params, done.light().state, done.light().number) == ({}, {}, 1)
    assert done.loss != done.loss  # nobody trained
    losses = Round(1, Settings(), {}, losses=torch.tensor([1.0, 3.0]))
    assert losses.loss == 2.0


def test_bad_arguments_name_the_fix():
    with pytest.raises(ParameterError, match="metric='auc': no Round has it; measure it with"):
        best_round(rounds(2), "auc", "max")
    with pytest.raises(ParameterError, match="patience=0"):
        next(stop_early([], "x", "max", 0))
    with pytest.raises(ParameterError, match="every=0"):
        next(measured([], dict, 0))
    with pytest.raises(ParameterError, match="mode='lowest': write 'min'"):
        best_round(measured(rounds(1), lambda done: {"x": 1.0}), "x", "lowest")
