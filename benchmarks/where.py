"""Where the time of a round goes, and how far it is from the least that any program must do.

python benchmarks/where.py [--quick]

Times the stages of rounds on one CPU thread, draws docs/round.svg and writes
benchmarks/results/round.json. The floor counts what cannot be left out: the matrix products of the
MLP at the speed of the same products alone, or the rows of the tables read and written once at the
speed of a copy, whichever is longer.
"""

import contextlib
import pkgutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from unittest import mock

import torch
from common import ROOT, entry, from_params, is_quick, record
from gpu import copy_rate, must_move
from speed import CLIENTS, EXAMPLES, WIDTH, lesson, vectors

from fedlab import Settings, perceptron
from fedlab.engine import sgd
from fedlab.evaluation import figures

STAGES = {  # what is timed, and the name of its share of a round
    "fedlab.engine.cohort.chunks": "draw examples",
    "fedlab.engine.cohort.arrange": "cut into batches",
    "fedlab.engine.cohort.holdings": "find the rows",
    "predict": "predict",
    "gradients": "gradients",
    "rule": "update",
    "fedlab.engine.cohort.run": "look up, loss",
    "fedlab.aggregation.mean.Sums.add": "aggregate",
    "fedlab.algorithms.gate.norms": "norms",
    "fedlab.algorithms.gate.reasons": "gate",
}
BATCH = 32


class Clock:
    """Adds up seconds by name; time inside an inner stage is not counted for the outer one."""

    def __init__(self) -> None:
        """Nothing is timed so far."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[float] = []

    def timed(self, name: str, function: Callable) -> Callable:
        """The same function, timed; a generator function is timed by each of its steps."""

        def measured(*args, **kwargs):
            with self.stage(name):
                out = function(*args, **kwargs)
            return self.steps(name, out) if hasattr(out, "__next__") else out

        return measured

    def steps(self, name: str, stream_):
        """Pass a generator on, timing what it does and not what its reader does."""
        while True:
            with self.stage(name):
                item = next(stream_, self)
            if item is self:
                return
            yield item

    @contextlib.contextmanager
    def stage(self, name: str):
        """Time a block."""
        began = time.perf_counter()
        self.open.append(0.0)
        yield
        took = time.perf_counter() - began
        self.seconds[name] += took - self.open.pop()
        if self.open:
            self.open[-1] += took


def stages(model, data, settings: Settings, repeats: int) -> dict[str, float]:
    """Median seconds of each stage of a round, and of all of it."""
    params, rows = model.init(0), defaultdict(list)
    for number in range(repeats + 2):
        clock = Clock()
        with contextlib.ExitStack() as stack:
            for target, stage in STAGES.items():
                if "." in target:
                    original = pkgutil.resolve_name(target)
                    stack.enter_context(mock.patch(target, clock.timed(stage, original)))
            there = model
            if settings.engine == "eager":
                rules = {"sgd": clock.timed(STAGES["rule"], sgd)}
                stack.enter_context(mock.patch.dict("fedlab.engine.step.RULES", rules))
                there = replace(model, pullback=partial(by_hand, clock, model))
            with clock.stage("rest"):
                from_params(there, data, settings, params)(number)
        for name, value in clock.seconds.items():
            rows[name].append(value)
    return {name: median(values[2:]) for name, values in rows.items()}


def by_hand(clock: Clock, model, p, batch):
    """A model's pullback with both of its halves timed."""
    y, pull = clock.timed("predict", model.pullback)(p, batch)
    return y, clock.timed("gradients", pull)


def product_floor() -> float:
    """Seconds of the MLP's matrix products alone: forward and weight gradient of each step."""
    x, w = torch.randn(CLIENTS, BATCH, WIDTH), torch.randn(CLIENTS, WIDTH, WIDTH)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        h = torch.bmm(x, w)
        torch.bmm(x.transpose(1, 2), h)
        times.append(time.perf_counter() - began)
    return median(times) * EXAMPLES / BATCH


def main(quick: bool) -> None:
    repeats, shares = 3 if quick else 25, {}
    net = (
        perceptron(WIDTH, WIDTH),
        vectors(CLIENTS),
        Settings(cohort=CLIENTS, local_lr=0.1, engine="eager"),
    )
    shares["MLP, 100 clients"] = stages(*net, repeats)
    shares["the same, compiled"] = stages(
        net[0], net[1], net[2].replace(engine="compiled"), repeats
    )
    model, data, settings = lesson(100)
    shares["lesson 2, 100 users"] = stages(model, data, settings.replace(engine="eager"), repeats)
    rate, results = copy_rate(torch.device("cpu")), {}
    for label, parts in shares.items():
        key = {"MLP, 100 clients": "mlp", "the same, compiled": "mlp_compiled"}.get(
            label, "lesson2"
        )
        whole = sum(parts.values())
        print(
            f"{label}: {whole * 1e3:.1f} ms;",
            ", ".join(f"{n} {s * 1e3:.2f}" for n, s in parts.items()),
            flush=True,
        )
        for name, value in parts.items():
            slug = name.replace(",", "").replace(" ", "_")
            results[f"{key}_{slug}_ms"] = entry(
                value * 1e3, "ms", None, higher=False, seeds=1, note=label
            )
        results[f"{key}_round_ms"] = entry(
            whole * 1e3, "ms", None, higher=False, seeds=1, note=f"{label}, all stages"
        )
    # examples of an average cohort
    counts = data.counts.double().mean() * 100 * (1 + settings.negatives)
    floors = {
        "mlp_products_ms": (product_floor(), "matrix products alone, 2 a step"),
        "mlp_bytes_ms": (
            must_move(CLIENTS) / rate,
            "as a copy: weights in and out each step, inputs in twice",
        ),
        "lesson2_bytes_ms": (
            float(counts) * 4 * (4 * model.init(0)["item"].shape[1] + 10) / rate,
            "each example's two rows read and written once, its columns read, as a copy",
        ),
    }
    for name, (value, note) in floors.items():
        results[name] = entry(value * 1e3, "ms", None, higher=False, seeds=1, note=note)
    results["copy_gb_s"] = entry(
        rate / 1e9, "GB/s", None, higher=True, seeds=1, note="large copy, read and written"
    )
    record("round", results, quick)
    if not quick:
        picture(shares)


def picture(shares: dict[str, dict[str, float]]) -> None:
    """docs/round.svg: a bar of stages for each job."""
    names = sorted(
        {n for parts in shares.values() for n in parts}, key=[*STAGES.values(), "rest"].index
    )
    with figures.panels(1, 9, 2.8) as (figure, (axis,)):
        for place, name in enumerate(names):
            left = [sum(parts.get(n, 0) for n in names[:place]) * 1e3 for parts in shares.values()]
            axis.barh(
                list(shares),
                [parts.get(name, 0) * 1e3 for parts in shares.values()],
                left=left,
                label=name,
                color=figures.COLOURS[place % len(figures.COLOURS)],
                alpha=1 if place < len(figures.COLOURS) else 0.5,
            )
        axis.invert_yaxis()
        axis.set(title="where a round's time goes", xlabel="milliseconds, one CPU thread")
        figure.legend(loc="outside right center")
        figure.savefig(ROOT / "docs" / "round.svg", metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
