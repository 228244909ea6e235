"""Figures show the numbers they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from fedlab.algorithms import federate
from fedlab.core import Settings, measured
from fedlab.data import Federation, equal
from fedlab.evaluation import figures


@pytest.fixture(scope="module")
def rounds(build, clicks):
    model = build("matrix factorisation", clicks.train)
    return list(
        measured(
            federate(model, clicks, Settings(rounds=4, cohort=3)),
            lambda r: {"m": r.number / 10},
            every=2,
        )
    )


def test_curves_draw_each_run_on_each_panel(rounds):
    figure = figures.curves(
        {"a": rounds, "b": rounds[:2]},
        ["m"],
        levels={"m: chance": 0.1},
        read={"norm": lambda r: 1.0},
    )
    loss, metric, norm = figure.axes
    losses = [r.loss for r in rounds]
    assert [line.get_ydata().tolist() for line in loss.lines] == [losses, losses[:2]]
    assert metric.lines[0].get_xydata().tolist() == [[2, 0.2], [4, 0.4]]
    assert [t.get_text() for t in metric.texts] == ["chance"]
    assert norm.lines[0].get_ydata().tolist() == [1.0] * 4
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["a", "b"]
    assert [a.get_title(loc="left") for a in figure.axes] == ["mean local loss", "m", "norm"]
    assert len(figures.curves({"a": rounds}, ["m"], loss=False).axes) == 1


def test_bars_lines_and_histograms_carry_values_and_labels():
    (axis,) = figures.bars({"HR": {"x": 0.5, "y": 0.25}}).axes
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.25]
    assert [t.get_text() for t in axis.texts] == ["0.500", "0.250"]
    (axis,) = figures.lines(
        [1, 10], {"s": [3, 4]}, title="t", xlabel="x", ylabel="y", log=True
    ).axes
    assert axis.get_xscale() == "log"
    assert axis.lines[0].get_ydata().tolist() == [3, 4]


def test_intervals_reach_from_low_to_high():
    one, other = figures.intervals(
        {"AUC": {"a": (0.6, 0.5, 0.8), "b": (0.5, 0.4, 0.6)}, "share": {"a": (0.1, 0.0, 0.2)}},
        {"AUC": 0.5},
    ).axes
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in one.collections]
    assert ends == [pytest.approx([0.5, 0.8]), pytest.approx([0.4, 0.6])]
    assert [label.get_text() for label in one.get_yticklabels()] == ["a", "b"]
    dashed = [line for line in one.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.5]
    assert not [line for line in other.lines if line.get_linestyle() == "--"]


def test_tastes_show_platforms_over_the_average(split):
    figure = figures.genre_lift({"random": Federation(split.train, equal(split.train, 3))})
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (3, len(split.train.catalogue.category_names))
    assert abs(float(image.mean()) - 1) < 0.2


def test_nothing_is_left_open(rounds):
    figures.curves({"a": rounds})
    assert plt.get_fignums() == []


def test_a_space_has_a_colour_a_group_and_names_at_their_points():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    even = torch.tensor([True, False, True])
    figure = figures.scatter({"a": points, "b": -points}, {"even": even}, {1: "Heat"})
    one, two = figure.axes
    assert [len(drawn.get_offsets()) for drawn in one.collections] == [3, 2]
    assert (one.texts[0].get_text(), one.texts[0].xy) == ("Heat", (2.0, 3.0))
    assert two.texts[0].xy == (-2.0, -3.0)
    assert [t.get_text() for t in two.get_legend().get_texts()] == ["even"]
