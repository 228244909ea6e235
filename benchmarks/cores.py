"""Compiled clients: against edition 0.5.0, on two cores, on large tables and large cohorts.

    python benchmarks/cores.py [--quick] [--against FOLDER]

against: a checkout of edition 0.5.0. Each way is a process of its own that takes a round when it
is told to; ways take rounds in turn, and what counts is the median of each. One thread is pinned to
one core, two threads to two. Threads share clients and not sums, so all of them end with the same
bits, which is checked here for 1, 2 and 3 threads.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fedlab

ROOT = Path(__file__).resolve().parents[1]
ONE, TWO = "1", "0,1"  # cores that ways are pinned to


def job(name: str, clients: int) -> tuple[Any, Any, dict[str, Any]]:
    """(model, data, settings) that both editions can run; name: 'lesson 2', 'mlp' or items."""
    asked = {"rounds": 10_000, "cohort": clients, "local_lr": 0.1}
    if name == "lesson 2":
        train = fedlab.leave_one_out(fedlab.load()).train
        model = fedlab.matrix_factorisation(train.user_count, train.item_count, 32)
        asked |= {"local_lr": 1.0, "server_lr": 50.0, "weighting": "equal"}
        return model, fedlab.Federation(train, fedlab.one_per_user(train)), asked
    generator, count = torch.Generator().manual_seed(0), 200 * clients
    owner = torch.arange(count) % clients
    if name == "mlp":
        x = torch.randn(count, 64, generator=generator)
        columns = {"x": x, "target": (x[:, 0] > 0).float()}
        return fedlab.perceptron(64, 64), fedlab.Columns(columns, owner), asked
    item = torch.randint(int(name), (count,), generator=generator)
    columns = {"user": owner, "item": item, "target": (item % 2).float()}
    model = fedlab.matrix_factorisation(clients, int(name), 32)
    return model, fedlab.Columns(columns, owner), asked


def serve(name: str, clients: int, more: dict[str, Any]) -> None:
    """Take a round for each line that is read; answer with its seconds, or a mark of the model."""
    torch.set_num_threads(1)
    model, data, asked = job(name, clients)
    kind = getattr(fedlab, "Settings", None) or fedlab.Config
    rounds = fedlab.federate(model, data, kind(**asked | more))
    for _ in range(3):
        done = next(rounds)
    for line in sys.stdin:
        if line == "mark\n":
            found = hashlib.sha256()
            for value in done.params.values():
                found.update(value.numpy().tobytes())
            print(found.hexdigest(), flush=True)
        elif line == "memory\n":
            status = Path("/proc/self/status").read_text()
            print(next(row.split()[1] for row in status.splitlines() if "VmRSS" in row), flush=True)
        else:
            began = time.perf_counter()
            done = next(rounds)
            print(time.perf_counter() - began, flush=True)


class Way:
    """A process that takes rounds."""

    def __init__(self, root: Path, cores: str, name: str, clients: int, **more: Any) -> None:
        words = [sys.executable, __file__, "serve", name, str(clients), json.dumps(more)]
        pinned = ["taskset", "-c", cores, *words]
        self.process = subprocess.Popen(
            pinned,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )

    def ask(self, what: str = "round") -> str:
        """What it answers."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """End it."""
        self.process.communicate()


def in_turn(ways: list[Way], repeats: int) -> list[float]:
    """The median seconds of each way."""
    took = [[float(way.ask()) for way in ways] for _ in range(repeats)]
    return [median(column) for column in zip(*took, strict=True)]


def against_0_5(old: Path, repeats: int) -> dict[str, Any]:
    """How many times as fast as edition 0.5.0, on one core."""
    from common import entry  # noqa: PLC0415 - the other edition has another `fedlab`

    found = {}
    for key, name, clients, goal in (
        ("fused_vs_0_5_lesson2_20", "lesson 2", 20, None),
        ("fused_vs_0_5_lesson2_100", "lesson 2", 100, 10.0),
        ("fused_vs_0_5_lesson2_671", "lesson 2", 671, 8.0),
        ("fused_vs_0_5_mlp", "mlp", 100, 2.0),
        ("fused_vs_0_5_10k_items", "10000", 100, None),
        ("fused_vs_0_5_50k_items", "50000", 100, None),
    ):
        ways = [Way(old, ONE, name, clients), Way(ROOT, ONE, name, clients, workers=1)]
        before, now = in_turn(ways, repeats)
        for way in ways:
            way.end()
        note = f"{name}, {clients} clients, one core: {1e3 * before:.1f} and {1e3 * now:.2f} ms"
        found[key] = entry(before / now, "times", goal, higher=True, seeds=1, note=note)
    return found


def growth(repeats: int) -> dict[str, Any]:
    """Two cores, large tables and large cohorts."""
    from common import entry  # noqa: PLC0415

    found, same, speedups = {}, [], {}
    for name, clients in (("lesson 2", 671), ("10000", 1000), ("mlp", 1000)):
        ways = [
            Way(ROOT, cores, name, clients, workers=workers)
            for cores, workers in ((ONE, 1), (TWO, 2), (TWO, 3))
        ]
        one, two, _ = in_turn(ways, repeats)
        same.append(len({way.ask("mark") for way in ways}) == 1)
        for way in ways:
            way.end()
        speedups[f"{name}, {clients}"] = one / two
    each = ", ".join(f"{name} clients {value:.2f}" for name, value in speedups.items())
    found["two_cores"] = entry(
        min(speedups.values()), "times", 1.5, higher=True, seeds=1, note=f"the least of {each}"
    )
    found["same_bits_on_any_cores"] = entry(
        float(all(same)), "", 1, higher=True, seeds=1, note="1, 2 and 3 threads, three jobs"
    )
    ways = [Way(ROOT, ONE, str(items), 100, workers=1) for items in (10_000, 1_000_000)]
    few, many = in_turn(ways, repeats)
    peaks = [int(way.ask("memory")) / 1e3 for way in ways]
    for way in ways:
        way.end()
    more = peaks[1] - peaks[0] - 4 * 33 * 990_000 / 1e6
    note = f"100 clients, D=32: {1e3 * few:.2f} and {1e3 * many:.2f} ms; {more:.0f} MB above tables"
    found["million_items_vs_10k"] = entry(
        many / few, "times", 1.3, higher=False, seeds=1, note=note
    )
    ways = [Way(ROOT, ONE, "10000", clients, workers=1) for clients in (100, 1000, 10_000)]
    hundred, thousand, most = in_turn(ways, max(3, repeats // 3))
    for way in ways:
        way.end()
    note = f"10,000 items; ten thousand clients take {most / hundred:.0f} times a hundred's time"
    found["per_client_1000_over_100"] = entry(
        thousand / hundred / 10, "ratio", 1.1, higher=False, seeds=1, note=note
    )
    return found


def main() -> None:
    from common import record  # noqa: PLC0415

    words = argparse.ArgumentParser()
    words.add_argument("--quick", action="store_true")
    words.add_argument("--against", type=Path)
    asked = words.parse_args()
    repeats = 3 if asked.quick else 21
    found = growth(repeats)
    if asked.against:
        found |= against_0_5(asked.against, repeats)
    record("speed", found, asked.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
