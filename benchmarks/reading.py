"""Data of other people: which layouts are read, how fast, in how much memory, and what is refused.

    python benchmarks/reading.py [--quick]

- `layouts_read`: how many of the tables that edition 0.5.0 refused are read in one line, right row
  by row.
- `read_1m_vs_columnar`: the time to read a million made-up ratings, over that of polars' own read
  with its users and items numbered; each in a process of its own, in turn, the median.
- `read_1m_memory_vs_columns`: by how much memory grows at most meanwhile, over that of the columns
  (28 bytes a row), after a small file was read. `read_10m_peak_mb`: all of the process, 10 million.
- `fuzz_tracebacks`: files that were spoiled at random (bytes cut, doubled, overwritten; lines and
  fields exchanged), and how many of them end in anything but interactions or a `DataError`.
- `import_over_torch`: the time to import fedlab over that to import torch alone.
- `wheel_mb`: the size of the wheel, as tests build it.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from common import ROOT, entry, is_quick, record
from layouts import CLICKS, DATES, LAYOUTS, ROWS, WITHOUT_TIMES, lines, rows_of, write

from fedlab.core import ParameterError
from fedlab.data import DataError, read, read_split

READ = """
import sys, time, json
import fedlab, polars
from fedlab.data import read
def size(name):
    status = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) for row in status if row.startswith(name)) / 1e3
read(sys.argv[2])
base = size("VmRSS")
began = time.perf_counter()
rows = len(read(sys.argv[1]))
took = time.perf_counter() - began
print(json.dumps([rows, took, size("VmHWM") - base, size("VmHWM")]))
"""
OWN = """
import sys, time, json
import polars
polars.read_csv(sys.argv[2])
began = time.perf_counter()
frame = polars.read_csv(sys.argv[1])
for name in ("userId", "movieId"):
    frame[name].rank("dense").to_numpy()
print(json.dumps([len(frame), time.perf_counter() - began]))
"""
BYTES = 28  # of a row: user, item and time in 8 each, a rating in 4


def made_up(file: Path, rows: int) -> None:
    """Write about so many ratings, each pair once, most of them of a few items."""
    draw = np.random.default_rng(0)
    users, items = rows // 150, max(3000, rows // 300)
    user = draw.integers(1, users + 1, 2 * rows)
    item = (draw.pareto(1.2, len(user)) * 50).astype(int) % items + 1
    pairs = np.unique(user * (items + 1) + item)
    draw.shuffle(pairs)
    pairs = pairs[:rows]
    columns = {"userId": pairs // (items + 1), "movieId": pairs % (items + 1)}
    columns["rating"] = draw.integers(1, 11, len(pairs)) / 2
    columns["timestamp"] = draw.integers(800_000_000, 1_500_000_000, len(pairs))
    pl.DataFrame(columns).write_csv(file)


def told(code: str, *files: Path) -> list[float]:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], check=True, capture_output=True, text=True
    )
    found: list[float] = json.loads(done.stdout)
    return found


def layouts() -> tuple[int, int]:
    """(how many layouts are read right, of how many)."""
    wanted, right = sorted(row[:2] for row in ROWS), []
    with tempfile.TemporaryDirectory() as place:
        every = LAYOUTS | WITHOUT_TIMES | CLICKS
        for number, (files, path) in enumerate(every.values()):
            folder = Path(place) / str(number)
            folder.mkdir()
            write(folder, files)
            right.append(rows_of(read(folder / path)) == wanted)
        folder = Path(place)
        write(folder, {"u1.base": lines("\t", ROWS[:2]), "u1.test": lines("\t", ROWS[2:])})
        split = read_split(folder / "u1.base", folder / "u1.test")
        parts = (split.train, split.validation, split.test)
        right.append(sorted(row for part in parts for row in rows_of(part)) == wanted)
        columns = dict(zip(("user", "item", "stars", "day"), zip(*ROWS, strict=True), strict=True))
        frame = pl.DataFrame(columns | {"day": pl.Series(DATES[:2] + DATES[:1]).str.to_datetime()})
        frame.write_parquet(folder / "shop.parquet")
        right.append(rows_of(read(folder / "shop.parquet")) == wanted)
    return sum(right), len(right)


def wheel_mb() -> float:
    """The size of the wheel that is made of this checkout."""
    sys.path.insert(0, str(ROOT / "tests"))
    from built import build, checkout  # noqa: PLC0415 - of the tests

    with tempfile.TemporaryDirectory() as place:
        checkout(Path(place) / "here")
        return build("wheel", Path(place) / "here", Path(place)).stat().st_size / 1e6


def spoiled(draw: random.Random) -> dict[str, bytes]:
    """The files of a layout, one of them changed."""
    files, _ = draw.choice([*(LAYOUTS | WITHOUT_TIMES | CLICKS).values()])
    files = {n: text if isinstance(text, bytes) else text.encode() for n, text in files.items()}
    name = draw.choice([*files])
    data = bytearray(files[name])
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, luck = draw.randrange(len(data) + 1), draw.random()
        some = data[at : at + draw.choice((1, 3, 20))]
        if luck < 0.2:
            del data[at : at + len(some)]
        elif luck < 0.4:
            data[at:at] = some * draw.choice((1, 5))
        elif luck < 0.6:
            data[at:at] = draw.choice(
                (b'"', b"\0", b"\xff", b"\n", b"\r", b",", b";", b"::", b"\t", b" ", b"-", b"1e999")
            )
        elif luck < 0.8:
            rows = data.split(b"\n")
            draw.shuffle(rows)
            data = bytearray(b"\n".join(rows))
        elif data:
            data[draw.randrange(len(data))] = draw.randrange(256)
    return files | {name: bytes(data)}


def fuzz(count: int) -> tuple[int, int]:
    """(how many spoiled files ended in something else than data or an error that says what)."""
    draw, bad, taken = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            folder = Path(place) / str(number)
            folder.mkdir()
            files = spoiled(draw)
            write(folder, files)
            try:
                target = folder / draw.choice([".", *files])
                read(target)
                taken += 1
            except (DataError, ParameterError) as error:
                if not str(error):
                    bad += 1
            except BaseException:  # noqa: BLE001 - that is what is looked for
                bad += 1
                print(files, traceback.format_exc(), sep="\n")
    return bad, taken


def figure(value: float, unit: str, goal: float | None, note: str, *, more: bool = False) -> dict:
    """One row of the results."""
    return entry(value, unit, goal, higher=more, seeds=1, note=note)


def speed(quick: bool) -> dict[str, dict]:
    """What reading takes, against polars' own."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        small, big, huge = (Path(place) / f"{name}.csv" for name in ("small", "big", "huge"))
        made_up(small, 1000)
        made_up(big, 100_000 if quick else 1_000_000)
        pairs = [(told(READ, big, small), told(OWN, big, small)) for _ in range(2 if quick else 7)]
        mine, own = (median(row[k][1] for row in pairs) for k in (0, 1))
        rows, columns = pairs[0][0][0], pairs[0][0][0] * BYTES / 1e6
        grown = median(row[0][2] for row in pairs)
        found["read_1m_vs_columnar"] = figure(
            mine / own, "times", 1.5, f"{rows:,} ratings: {1e3 * mine:.0f} and {1e3 * own:.0f} ms"
        )
        found["read_1m_memory_vs_columns"] = figure(
            grown / columns, "times", 3, f"{grown:.0f} MB beyond, columns of {columns:.0f} MB"
        )
        if not quick:
            made_up(huge, 10_000_000)
            rows, took, _, peak = told(READ, huge, small)
            found["read_10m_peak_mb"] = figure(
                peak, "MB", 4000, f"{rows:,.0f} ratings in {took:.1f} s, all of the process"
            )
    return found


def import_ratio(repeats: int) -> float:
    """How long `import fedlab` takes, over `import torch`: each in a Python of its own, in turn."""
    lines = "from time import perf_counter as now; began = now(); import {}; print(now() - began)"
    dropped = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # installed packages are compiled, too
    env = {n: v for n, v in os.environ.items() if n not in dropped} | {"PYTHONPATH": str(ROOT)}

    def seconds(name: str) -> float:
        words = [sys.executable, "-c", lines.format(name)]
        return float(subprocess.run(words, check=True, env=env, capture_output=True).stdout)

    seconds("fedlab")  # compiles
    return median(seconds("fedlab") / seconds("torch") for _ in range(repeats))


if __name__ == "__main__":
    quick = is_quick()
    read_right, every = layouts()
    spoilt = 200 if quick else 2000
    tracebacks, taken = fuzz(spoilt)
    measured = {
        "layouts": figure(every, "tables", None, "tables that 0.5.0 refused", more=True),
        "layouts_read": figure(read_right, "tables", 20, "in one line, all rows right", more=True),
        "wheel_mb": figure(
            wheel_mb(), "MB", 25, "lessons, solutions, data and their licence in it"
        ),
        "fuzz_files": figure(spoilt, "files", None, f"{taken} could be read", more=True),
        "fuzz_tracebacks": figure(
            tracebacks, "files", 0, "neither data nor an error that says why"
        ),
        "import_over_torch": figure(
            import_ratio(2 if quick else 21), "times", 1.3, "the median of 21 pairs"
        ),
    }
    record("data", measured | speed(quick), quick)
