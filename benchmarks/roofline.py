"""How far compiled clients are from the least that any program must do: a roofline.

    python benchmarks/roofline.py [--quick]

Counts the operations and bytes of a round that no program can leave out, and measures on this core
how fast numbers are multiplied and added, and rows added to rows in each cache and in memory. The
floor of a round is the longer of the two times. Rounds run on one thread. Draws docs/roofline.svg
and adds `fused_over_floor` to results/speed.json.

Counted as operations: products and sums of the local steps, of the norms and of the sum over
clients; a sigmoid, a random word and the placing of an example count as many as `SIGMOID`, `WORD`
and `PLACE` say. Counted as bytes: each row of an item that an example reads, from a table; each row
that a client sends, added to a sum, which is read and written; what is drawn, written and read.
Rows that stay in the nearest cache from first to last cost nothing.

Source: Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model".
"""

import time
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from common import ROOT, entry, is_quick, record
from cores import job

from fedlab import Settings, federate
from fedlab.core.loops.cpu import compiled
from fedlab.evaluation import figures

SIGMOID, WORD, PLACE = 40, 25, 20
SIZES = {"L1": 16_000, "L2": 256_000, "L3": 4_000_000, "memory": 256_000_000}  # bytes of a table
JOBS = (("lesson 2", 671), ("lesson 2", 100), ("10000", 1000), ("mlp", 100))


class Work(NamedTuple):
    """What a round has to do: operations, bytes, and where these lie."""

    operations: float
    bytes: float
    place: str


@compiled(fastmath={"contract"})  # in another order, eight could be worked out as one
def multiply(values: np.ndarray, times: int) -> None:
    """Eight products and sums for each number, one after another; numbers are independent."""
    a, b = np.float32(0.999), np.float32(0.001)
    for _ in range(times):
        for k in range(len(values)):
            x = values[k]
            x = (((x * a + b) * a + b) * a + b) * a + b
            values[k] = (((x * a + b) * a + b) * a + b) * a + b


@compiled()
def add(out: np.ndarray, rows: np.ndarray, row: np.ndarray) -> None:
    """Add a row (D,) to the rows (R,) of a table."""
    for r in rows:
        for j in range(out.shape[1]):
            out[r, j] += row[j]


def operations_a_second(repeats: int) -> float:
    """Products and sums a second, of numbers in the nearest cache."""
    values, times = np.ones(2048, np.float32), 2000
    multiply(values, 1)
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(values, times)
        took.append(time.perf_counter() - began)
    return 16 * len(values) * times / min(took)


def bytes_a_second(size: int, repeats: int) -> float:
    """Bytes read and written a second where rows of 128 bytes are added to, in any order."""
    table, row = np.ones((size // 128, 32), np.float32), np.ones(32, np.float32)
    rows = np.random.default_rng(0).permutation(len(table))
    rows = np.tile(rows, max(1, 2_000_000 // len(rows)))[:2_000_000]
    add(table, rows[:10], row)
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        add(table, rows, row)
        took.append(time.perf_counter() - began)
    return 256 * len(rows) / min(took)


def work(name: str, data: object, cohort: torch.Tensor, settings: Settings) -> Work:
    """What a round of a cohort must do."""
    counts = data.counts[cohort].double()  # type: ignore[attr-defined]
    if name == "mlp":
        examples, inputs, hidden = float(counts.sum()), 64, 64
        steps = float((counts / settings.batch_size).ceil().sum())
        parameters = inputs * hidden + 2 * hidden + 1
        products = examples * 2 * (2 * inputs * hidden + 3 * hidden) + steps * 2 * parameters
        sent = len(cohort) * parameters
        return Work(products + 4 * sent + examples * (SIGMOID + WORD), 4 * examples * inputs, "L3")
    dims, clicks = 32, name == "lesson 2"
    each = 1 + settings.negatives * clicks
    examples = float(counts.sum()) * each
    # different items among those drawn, each as likely as another
    items = 9066 if clicks else int(name)
    rows = float((items * (1 - (1 - 1 / items) ** (counts * each))).sum())
    steps = 6 * dims + SIGMOID + WORD * (2 if clicks else 1) + PLACE
    operations = examples * steps + rows * 4 * (dims + 1)
    row = 4 * (dims + 1)
    return Work(operations, examples * (row + 24) + rows * 2 * row, "L3")


def seconds(name: str, clients: int, repeats: int) -> tuple[float, Work]:
    """The median seconds of a round, and what it must do."""
    model, data, asked = job(name, clients)
    rounds = federate(model, data, Settings(**asked, workers=1))
    took, done = [], next(rounds)
    for _ in range(repeats):
        began = time.perf_counter()
        done = next(rounds)
        took.append(time.perf_counter() - began)
    assert done.engine == "fused"
    return median(took), work(name, data, done.cohort, done.settings)


def main(quick: bool) -> None:
    repeats = 3 if quick else 25
    peak = operations_a_second(repeats)
    rates = {place: bytes_a_second(size, repeats) for place, size in SIZES.items()}
    print(f"{peak / 1e9:.1f} billion operations a second;", end=" ")
    print(", ".join(f"{place} {rate / 1e9:.1f} GB/s" for place, rate in rates.items()))
    found, points = {}, {}
    for name, clients in JOBS:
        took, must = seconds(name, clients, repeats)
        floor = max(must.operations / peak, must.bytes / rates[must.place])
        points[f"{name}, {clients} clients"] = must.operations / must.bytes, must.operations / took
        print(f"{name}, {clients}: {1e3 * took:.2f} ms, floor {1e3 * floor:.2f}")
        key = f"fused_over_floor_{name.replace(' ', '')}_{clients}"
        note = f"{1e3 * took:.1f} ms; operations {1e3 * must.operations / peak:.1f}, bytes "
        note += f"{1e3 * must.bytes / rates[must.place]:.1f}"
        found[key] = entry(took / floor, "times", None, higher=False, seeds=1, note=note)
    first = found.pop("fused_over_floor_lesson2_671")
    found["fused_over_floor"] = first | {"goal": 2.5}
    record("speed", found, quick)
    if not quick:
        picture(peak, rates, points)


def picture(peak: float, rates: dict[str, float], points: dict[str, tuple[float, float]]) -> None:
    """docs/roofline.svg: what this core can do, and what rounds reach."""
    with figures.panels(1, 8, 4) as (figure, (axis,)):
        across = np.geomspace(0.05, 100, 200)
        for place, (label, rate) in enumerate(rates.items()):
            colour = figures.COLOURS[place % len(figures.COLOURS)]
            height = np.minimum(peak, rate * across) / 1e9
            axis.plot(across, height, color=colour, label=f"{label}, {rate / 1e9:.0f} GB/s")
        for (label, (x, y)), mark in zip(points.items(), "os^D", strict=True):
            axis.plot([x], [y / 1e9], mark, color="black", markersize=7, label=label)
        axis.set(
            xscale="log",
            yscale="log",
            title="compiled clients under the roof of one core",
            xlabel="operations for each byte that must move",
            ylabel="billion operations a second",
        )
        figure.legend(loc="outside right center")
        figure.savefig(ROOT / "docs" / "roofline.svg", metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
