"""The package as a whole: whether parts compose, what a round passes through, how large it is.

    python benchmarks/architecture.py [--quick] [--against FOLDER] [--house]

What a pair of parts must do is in `composition.py`. Quick: every fortieth pair, without models of
texts. against: a checkout of edition 0.5.0, whose rounds are taken in turn with this one's; each
edition runs in a process of its own, on one thread. house: without the pairs.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from torch import nn

import fedlab

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "fedlab"
LINES = 370  # statements of edition 0.5.0, counted in the same way
JOBS = ("mlp", "module", "factors 10k", "factors 50k", "lesson 2")


def statements(folder: Path) -> int:
    """Count the statements of all Python files, by `ast`."""
    return sum(
        isinstance(node, ast.stmt)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    )


def long_lines() -> int:
    """Count the lines of more than 100 characters in the code and the notebooks' code cells."""
    texts = [
        path.read_text()
        for folder in ("fedlab", "tests", "benchmarks", "data")
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sum(len(line) > 100 for text in texts for line in text.splitlines())


def passed_through() -> tuple[set[str], int]:
    """(files, number of statements) that a default round of lesson 2 runs, after the first."""
    model, data, _ = job("lesson 2")
    rounds = fedlab.federate(model, data, fedlab.Settings(rounds=3, cohort=20))
    next(rounds)
    lines: set[tuple[str, int]] = set()

    def look(frame: FrameType, event: str, _: object) -> Callable | None:
        if not frame.f_code.co_filename.startswith(str(HOUSE)):
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return look

    sys.settrace(look)
    next(rounds)
    sys.settrace(None)
    files = {name for name, _ in lines}
    first = {name: first_lines(Path(name)) for name in files}
    return files, len({(name, first[name].get(line, line)) for name, line in lines})


def first_lines(path: Path) -> dict[int, int]:
    """For each line of a statement its first, so that no layout changes a count."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            last = node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno
            found |= dict.fromkeys(range(node.lineno, last + 1), node.lineno)
    return found


def job(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """(model, data, settings) of a job that both editions can run."""
    generator = torch.Generator().manual_seed(0)
    owner, common = torch.arange(20_000) % 100, {"rounds": 10_000, "cohort": 100, "local_lr": 0.1}
    if name == "lesson 2":
        train = fedlab.leave_one_out(fedlab.load()).train
        model = fedlab.matrix_factorisation(train.user_count, train.item_count, 32)
        settings = {
            "rounds": 10_000,
            "cohort": 64,
            "local_lr": 1.0,
            "server_lr": 50.0,
            "weighting": "equal",
        }
        return model, fedlab.Federation(train, fedlab.one_per_user(train)), settings
    x = torch.randn(20_000, 64, generator=generator)
    target = (x[:, 0] > 0).float()
    if name.startswith("factors"):
        items = {"10k": 10_000, "50k": 50_000}[name.split()[1]]
        item = torch.randint(items, (20_000,), generator=generator)
        columns = {"user": owner, "item": item, "target": target}
        model = fedlab.matrix_factorisation(100, items, 64)
        return model, fedlab.Columns(columns, owner), common
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    model = fedlab.perceptron(64, 64) if name == "mlp" else fedlab.from_module(net, {"x": x[:4]})
    return model, fedlab.Columns({"x": x, "target": target}, owner), common


def serve(name: str) -> None:
    """Take a round for each line that is read, and answer with its seconds."""
    torch.set_num_threads(1)
    model, data, settings = job(name)
    kind = getattr(fedlab, "Settings", None) or fedlab.Config
    rounds = fedlab.federate(model, data, kind(**settings))
    for _ in range(2):
        next(rounds)
    for _ in sys.stdin:
        began = time.perf_counter()
        next(rounds)
        print(time.perf_counter() - began, flush=True)


def ratio(name: str, against: Path, repeats: int) -> float:
    """The speed over that of another checkout: rounds in turn, the median ratio of the pairs."""
    words = [sys.executable, __file__, "serve", name]
    both = [
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        for root in (against, ROOT)
    ]
    pairs = []
    for _ in range(repeats):
        took = []
        for process in both:
            process.stdin.write("round\n")
            process.stdin.flush()
            took.append(float(process.stdout.readline()))
        pairs.append(took[0] / took[1])
    for process in both:
        process.communicate()
    return median(pairs)


def measured(against: Path | None, quick: bool) -> None:
    """Record the size of the package and, against another checkout, its speed."""
    from common import entry, record  # noqa: PLC0415 - the other edition has another `fedlab`

    files, lines = passed_through()
    names = [path.name for path in HOUSE.iterdir() if path.name != "__pycache__"]
    print("a round passes through", *sorted(str(Path(f).relative_to(HOUSE)) for f in files))
    counts = {
        "files_in_a_round": (len(files), 10),
        "lines_in_a_round": (lines, LINES),
        "long_lines": (long_lines(), 0),
        "names_in_package": (len(names), 16),
        "statements": (statements(HOUSE), 6137),
    }
    found = {
        name: entry(value, "", goal, higher=False, seeds=1, note="counted")
        for name, (value, goal) in counts.items()
    }
    if against:
        ratios = {name: ratio(name, against, 5 if quick else 41) for name in JOBS}
        each = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
        found["speed_vs_0_5"] = entry(
            min(ratios.values()),
            "ratio",
            0.9,
            higher=True,
            seeds=1,
            note=f"the least of {each}{', quick' if quick else ''}",
        )
    record("architecture", found, quick)


def report(found: Any, quick: bool) -> None:
    """Record what all pairs came to."""
    from common import entry, record  # noqa: PLC0415

    note = (
        f"{found.combinations} combinations, {found.works} work, {found.refused} are refused, "
        f"{found.knobs} knobs turned{', quick' if quick else ''}"
    )
    lists = {
        "composition_silent": (found.silent, "a part without effect"),
        "composition_raw_errors": (
            found.raw + found.unclear,
            "no ParameterError that names parts and a way out",
        ),
        "knobs_ignored": (found.ignored, "turned, and nothing changes or is said"),
        "resume_unequal": (found.unequal, "other bits after going on from a Round"),
    }
    record(
        "architecture",
        {"composition_pairs": entry(found.pairs, "pairs", None, higher=True, seeds=1, note=note)}
        | {
            name: entry(len(lines), "", 0, higher=False, seeds=1, note=said)
            for name, (lines, said) in lists.items()
        },
        quick,
    )


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--quick", action="store_true")
    words.add_argument("--house", action="store_true")
    words.add_argument("--against", type=Path)
    asked = words.parse_args()
    measured(asked.against, asked.quick)
    if not asked.house:
        from composition import composed  # noqa: PLC0415 - the other edition has no such parts

        report(composed(40 if asked.quick else 1, texts=not asked.quick), asked.quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        main()
