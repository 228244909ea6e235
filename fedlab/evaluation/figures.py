"""Static figures over streams of Rounds and over federations, with one look for all lessons.

Every function returns a closed matplotlib Figure, so that a cell shows it once and nothing stays
open. Colours: Okabe, Ito 2008, "Color universal design", which most colour-blind readers can tell
apart.

Letters: n points of a panel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fedlab.core import Round
from fedlab.data import Federation

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
LOOK: Any = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "legend.frameon": False,
    "svg.hashsalt": "fedlab",  # the same figure is the same file
    "text.parse_math": False,
    "lines.linewidth": 2,
    "font.size": 10,
}
Points = Sequence[tuple[float, float]]


@contextmanager
def panels(
    count: int, width: float = 4.2, height: float = 3.2
) -> Iterator[tuple[Figure, list[Axes]]]:
    """`count` axes in a row, with the look of the lessons; width and height of each in inches.

    >>> with panels(2) as (figure, axes):
    ...     len(axes)
    2
    """
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(
            1, count, figsize=(width * count, height), layout="constrained", squeeze=False
        )
        try:
            yield figure, list(axes[0])
        finally:
            plt.close(figure)


def curves(
    runs: Mapping[str, Sequence[Round]],
    metrics: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    read: Mapping[str, Callable[[Round], float]] | None = None,
    loss: bool = True,
) -> Figure:
    """Loss and metrics against rounds, one line for each run.

    runs: name -> its Rounds. metrics: names of metrics of a Round. levels: 'metric: label' ->
    height of a dashed line. read: further panels, title -> a function that reads a number from a
    Round. loss: whether to show the mean local loss.
    """
    wanted: dict[str, Callable[[Round], float]] = (
        {"mean local loss": lambda r: r.loss} if loss else {}
    )
    wanted |= {name: (lambda r, name=name: r.metrics[name]) for name in metrics} | dict(read or {})
    return overlay(
        {
            title: {
                name: [
                    (r.number, value(r))
                    for r in rounds
                    if title not in metrics or title in r.metrics
                ]
                for name, rounds in runs.items()
            }
            for title, value in wanted.items()
        },
        levels,
    )


def overlay(
    series: Mapping[str, Mapping[str, Points]],
    levels: Mapping[str, float] | None = None,
    xlabel: str = "round",
    width: float = 4.2,
    log: bool = False,
) -> Figure:
    """Panels of lines: title -> run -> its points (x, y).

    levels: as in `curves`. xlabel: what x is. width: of a panel, in inches. log: whether the x axis
    is logarithmic.

    >>> len(overlay({"loss": {"a run": [(1, 0.7), (2, 0.6)]}}).axes)
    1
    """
    with panels(len(series), width) as (figure, axes):
        for axis, (title, runs) in zip(axes, series.items(), strict=True):
            for name, points in runs.items():
                axis.plot([n for n, _ in points], [value for _, value in points], label=name)
            for label, height in (levels or {}).items():
                if label.startswith(f"{title}: "):
                    axis.axhline(height, color="#555555", linestyle="--", linewidth=1)
                    axis.text(
                        0.99,
                        height,
                        label.split(": ", 1)[1],
                        transform=axis.get_yaxis_transform(),
                        ha="right",
                        va="bottom",
                        fontsize=9,
                        color="#555555",
                    )
            axis.set(title=title, xlabel=xlabel)
            if log:
                axis.set_xscale("log")
            else:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if max(len(runs) for runs in series.values()) > 1:
            axes[0].legend(fontsize=9)
    return figure


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> Figure:
    """Named series over one axis; `log` makes the x axis logarithmic.

    >>> lines([1, 2], {"a": [0.1, 0.2]}, title="t", xlabel="x", ylabel="y").axes[0].get_xlabel()
    'x'
    """
    with panels(1, 5.6) as (figure, (axis,)):
        for name, y in series.items():
            axis.plot(x, y, marker="o", markersize=4, label=name)
        if log:
            axis.set_xscale("log")
            axis.set_xticks(list(x), [f"{value:g}" for value in x])
            axis.minorticks_off()
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axis.legend(fontsize=9)
    return figure


def bars(values: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """One panel for each measure and one bar for each name: measure -> name -> value.

    >>> len(bars({"HR@10": {"ours": 0.6, "popularity": 0.4}}).axes)
    1
    """
    with panels(len(values), 4.4, 0.42 * max(map(len, values.values())) + 1.0) as (figure, axes):
        for axis, (measure, named) in zip(axes, values.items(), strict=True):
            drawn = axis.barh(
                list(named),
                list(named.values()),
                color=[COLOURS[i % len(COLOURS)] for i in range(len(named))],
            )
            axis.bar_label(drawn, fmt="%.3f", padding=3, fontsize=9)
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.set_title(measure)
            axis.grid(visible=False)
        figure.suptitle(title)
    return figure


def intervals(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]],
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Dots with whiskers: measure -> name -> (value, low, high).

    levels: measure -> position of a dashed line.

    >>> len(intervals({"AUC": {"ours": (0.6, 0.5, 0.7)}}).axes)
    1
    """
    with panels(len(values), 4.4, 0.42 * max(map(len, values.values())) + 1.0) as (figure, axes):
        for axis, (measure, named) in zip(axes, values.items(), strict=True):
            for place, (value, low, high) in enumerate(named.values()):
                axis.errorbar(
                    value,
                    place,
                    xerr=[[value - low], [high - value]],
                    fmt="o",
                    capsize=3,
                    color=COLOURS[place % len(COLOURS)],
                )
            axis.set_yticks(range(len(named)), list(named))
            axis.set_ylim(len(named) - 0.5, -0.5)
            if measure in (levels or {}):
                axis.axvline((levels or {})[measure], color="#555555", linestyle="--", linewidth=1)
            axis.set_title(measure)
    return figure


def genre_lift(federations: Mapping[str, Federation]) -> Figure:
    """What each platform watches: the share of each genre in its ratings over the share overall."""
    with panels(len(federations), 4.6, 3.6) as (figure, axes):
        for axis, (name, data) in zip(axes, federations.items(), strict=True):
            genres = data.train.catalogue.categories[data.train.items].float()
            table = torch.zeros(len(data), genres.shape[1])
            table.index_add_(0, data.owner[data.train.users], genres)
            lift = table / table.sum(1, keepdim=True) / (table.sum(0) / table.sum())
            image = axis.imshow(lift.numpy(), cmap="PuOr_r", vmin=0, vmax=2, aspect="auto")
            axis.set_xticks(
                range(genres.shape[1]), data.train.catalogue.category_names, rotation=90, fontsize=8
            )
            axis.set_yticks(range(len(data)), [f"{n:,}" for n in data.counts.tolist()], fontsize=8)
            axis.set(title=name, ylabel="platform, by its ratings")
            axis.grid(visible=False)
        figure.colorbar(image, ax=axes, label="share of ratings over the average", shrink=0.8)
    return figure


def platforms(federations: Mapping[str, Federation]) -> Figure:
    """How many train ratings each platform holds, and of how many users."""
    with panels(len(federations), 4.6, 2.8) as (figure, axes):
        for axis, (name, data) in zip(axes, federations.items(), strict=True):
            users = torch.bincount(data.owner).tolist()
            drawn = axis.bar(range(len(data)), data.counts.tolist(), color=COLOURS[0])
            axis.bar_label(
                drawn,
                [f"{n} users" for n in users],
                fontsize=8,
                rotation=90 if len(users) > 6 else 0,
                padding=2,
            )
            axis.margins(y=0.35)
            axis.set(title=name, xlabel="platform", ylabel="train ratings", xticks=range(len(data)))
            axis.grid(visible=False)
    return figure


def histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "clients",
    bins: int = 30,
) -> Figure:
    """How a number is spread over clients, with one colour for each group.

    >>> histogram({"all": [1, 2, 2, 3]}, title="t", xlabel="x").axes[0].get_ylabel()
    'clients'
    """
    with panels(1, 5.6) as (figure, (axis,)):
        axis.hist([list(v) for v in groups.values()], bins=bins, label=list(groups), stacked=False)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if len(groups) > 1:
            axis.legend(fontsize=9)
    return figure


def scatter(
    views: Mapping[str, Tensor], groups: Mapping[str, Tensor], names: Mapping[int, str]
) -> Figure:
    """Points in the plane, one panel for each view of the same rows: title -> (n, 2).

    groups: name -> a mask (n,) of the points in its colour; the others are grey. names: row -> what
    is written beside the point.

    >>> import torch
    >>> views = {"plane": torch.zeros(2, 2)}
    >>> len(scatter(views, {"first": torch.tensor([True, False])}, {0: "a film"}).axes)
    1
    """
    with panels(len(views), 5.6, 4.6) as (figure, axes):
        for axis, (title, points) in zip(axes, views.items(), strict=True):
            axis.scatter(points[:, 0], points[:, 1], s=6, color="#cccccc")
            for name, mine in groups.items():
                axis.scatter(points[mine, 0], points[mine, 1], s=14, label=name)
            for row, text in names.items():
                axis.annotate(text, (float(points[row, 0]), float(points[row, 1])), fontsize=8)
            axis.set(title=title, xticks=[], yticks=[])
        axes[-1].legend(fontsize=9, loc="best")
    return figure
