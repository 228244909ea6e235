"""Functions from a stream of Rounds to another, or to one of them."""

import math

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


def scored(*values, first=1):
    """Rounds with these values of a metric, the last of which none should ask for in vain."""
    for number, value in enumerate(values, first):
        metrics = {} if value is None else {"x": value}
        yield Round(number, Settings(), {}, metrics=metrics)


@pytest.mark.parametrize(
    ("mode", "values", "patience", "target", "ends", "said"),
    [
        ("max", (0.1, 0.4, 0.5, 0.9), 5, 0.5, 3, "x has reached 0.5"),
        ("min", (1.2, 1.0, 0.99, 0.5), 5, 1.0, 2, "x has reached 1"),
        ("max", (0.1, 0.1, 0.05, 0.9), 2, 0.5, 3, "x has not improved for 2 measured rounds"),
        ("max", (0.1, 0.0, 0.0, 0.0, 0.0, 0.0), 0, 0.5, 6, ""),
        ("max", (0.1, None, None, 0.2, None, 0.6), 1, 0.5, 6, "x has reached 0.5"),
        ("max", (math.nan, math.nan, 0.7), 2, None, 2, "x has not improved for 2 measured rounds"),
    ],
)
def test_a_run_ends_at_its_target_or_when_patience_is_out(
    mode, values, patience, target, ends, said
):
    kept = list(stop_early(scored(*values), "x", mode, patience, target=target))
    assert (kept[-1].number, kept[-1].ended) == (ends, said)
    assert not any(done.ended for done in kept[:-1])


def test_a_run_that_goes_on_counts_as_if_it_had_not_been_cut():
    values = (0.3, 0.2, 0.25, 0.2, 0.9)
    whole = list(stop_early(scored(*values), "x", "max", patience=3))
    assert len(whole) == 4
    for cut in (1, 2, 3):
        start = whole[cut - 1]
        rest = list(
            stop_early(scored(*values[cut:], first=cut + 1), "x", "max", patience=3, start=start)
        )
        assert [done.number for done in rest] == [done.number for done in whole[cut:]]
        assert rest[-1].ended == whole[-1].ended
        assert rest[-1].state == whole[-1].state
    with pytest.raises(ParameterError, match="start='Round 4': the run had ended: x has not impro"):
        next(stop_early(scored(1.0), "x", "max", patience=3, start=whole[-1]))
    more = stop_early(scored(1.0, first=5), "x", "max", patience=4, start=whole[-1])
    assert next(more).ended == ""  # who asks for more may go on


def test_a_round_may_be_kept_without_its_weight():
    (done,) = rounds(1)
    assert (done.light().params, done.light().state, done.light().number) == ({}, {}, 1)
    assert done.loss != done.loss  # nobody trained
    losses = Round(1, Settings(), {}, losses=torch.tensor([1.0, 3.0]))
    assert losses.loss == 2.0


def test_bad_arguments_name_the_fix():
    with pytest.raises(ParameterError, match="metric='auc': no Round has it; measure it with"):
        best_round(rounds(2), "auc", "max")
    with pytest.raises(ParameterError, match="patience=0: choose 1 or more; 0, for as long"):
        next(stop_early([], "x", "max", 0))
    with pytest.raises(ParameterError, match="patience=-1"):
        next(stop_early([], "x", "max", -1, target=0.5))
    with pytest.raises(ParameterError, match="target=nan: choose a finite number"):
        next(stop_early([], "x", "max", target=math.nan))
    with pytest.raises(ParameterError, match="every=0"):
        next(measured([], dict, 0))
    with pytest.raises(ParameterError, match="mode='lowest': write 'min'"):
        best_round(measured(rounds(1), lambda done: {"x": 1.0}), "x", "lowest")
