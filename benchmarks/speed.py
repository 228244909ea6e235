"""The engine against plain loops over clients, interleaved in one run, one CPU thread, fp32.

python benchmarks/speed.py [--quick]

Five jobs. 'MLP': 100 clients of 200 examples, 64 -> 64 -> 1, batches of 32: the built-in model
eager and compiled, and the same network as an `nn.Module` through vmap. 'tables': matrix
factorisation of dimension 64 at 10,000 and 50,000 items, the same examples. 'lesson': lesson 2's
own round on MovieLens. 'million': a cohort of 1,000 out of a million users on disk. Every loop
draws the engine's examples and must end with the engine's parameters. 'ranks': the full ranking of
lesson 2's users, against one that scores every pair by itself; no rank may differ.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common import entry, from_params, is_quick, parameters, record
from loops import module_loop, table_loop
from torch import nn

from fedlab import (
    Columns,
    Federation,
    Settings,
    Stored,
    from_module,
    full_ranks,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
    perceptron,
    scorer,
    synthesise,
)
from fedlab.core import Round, Score, arranged
from fedlab.data import Split
from fedlab.evaluation import rank, seen

CLIENTS, EXAMPLES, WIDTH = 100, 200, 64
Way = Callable[[int], dict]  # round number -> parameters


def interleaved(
    ways: dict[str, Way], repeats: int, settings: Settings
) -> tuple[dict[str, float], float]:
    """The median seconds of each way, taken in turn after one warm-up, and their difference.

    That is the largest difference of the parameters they end with.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worst = 0.0
    for number in range(repeats + 1):
        ends = []
        for name, way in ways.items():
            began = time.perf_counter()
            ends.append(way(number))
            if number:
                seconds[name].append(time.perf_counter() - began)
        worst = max(
            worst,
            *(
                float((end[n] - ends[0][n]).abs().max()) / settings.server_lr
                for end in ends[1:]
                for n in end
                if n in ends[0]
            ),
        )
    return {name: median(values) for name, values in seconds.items()}, worst


def report(title: str, times: dict[str, float], worst: float) -> None:
    """Print a job's medians; a difference above 1e-5 is an error."""
    print(
        f"{title}: {', '.join(f'{name} {s * 1e3:.1f} ms' for name, s in times.items())}; "
        f"difference {worst:.1e}",
        flush=True,
    )
    assert worst < 1e-5, title


def network() -> nn.Module:
    """The MLP as a module."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


def vectors(clients: int) -> Columns:
    """200 examples of 64 numbers for each client, with a target that they determine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clients * EXAMPLES, WIDTH, generator=generator)
    target = (x @ torch.randn(WIDTH, generator=generator) > 0).float()
    return Columns({"x": x, "target": target}, torch.arange(clients).repeat_interleave(EXAMPLES))


def params_of(step: Callable[[int], Round]) -> Way:
    """The parameters after a round."""
    return lambda number: step(number).params


def mlp(repeats: int) -> dict[str, float]:
    """Seconds of an MLP round: loop, eager, compiled, module."""
    data, built = vectors(CLIENTS), perceptron(WIDTH, WIDTH)
    module = from_module(network(), {"x": torch.zeros(2, WIDTH)})
    settings = Settings(cohort=CLIENTS, local_lr=0.1)
    start = module.init(0)
    names = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}
    first = {
        "w1": start["0.weight"].transpose(1, 2).contiguous(),
        "b1": start["0.bias"],
        "w2": start["2.weight"][:, 0],
        "b2": start["2.bias"],
    }

    def renamed(p: dict) -> dict:
        return {
            names[n]: v.transpose(1, 2) if n == "w1" else v[:, None] if n == "w2" else v
            for n, v in p.items()
        }

    def engine(how: str) -> Way:
        step = from_params(built, data, settings.replace(engine=how), first)
        return lambda number: renamed(step(number).params)

    ways = {
        "loop": lambda number: module_loop(network, start, data, settings, number),
        "eager": engine("eager"),
        "compiled": engine("compiled"),
        "module": params_of(from_params(module, data, settings, start)),
    }
    times, worst = interleaved(ways, repeats, settings)
    report(f"MLP, {CLIENTS} clients", times, worst)
    return times


def growth(repeats: int) -> tuple[float, float]:
    """Seconds for each client, at 100 and at 1,000 clients a round, taken in turn."""
    model, sizes = perceptron(WIDTH, WIDTH), (100, 1000)
    params, data = model.init(0), {n: vectors(n) for n in sizes}
    steps = {
        n: from_params(model, data[n], Settings(cohort=n, local_lr=0.1), params) for n in sizes
    }
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    for number in range(repeats + 1):
        for n in sizes:
            began = time.perf_counter()
            steps[n](number)
            seconds[n].append((time.perf_counter() - began) / n)
    return median(seconds[100][1:]), median(seconds[1000][1:])


def knob_delay() -> float:
    """The longest delay of the first compiled round after a knob is turned.

    It is the seconds of that round, less those of the round that follows it.
    """
    data, model = vectors(CLIENTS), perceptron(WIDTH, WIDTH)
    now = Settings(cohort=CLIENTS, local_lr=0.1, engine="compiled")
    params = model.init(0)
    from_params(model, data, now, params)(0)
    turned = [
        {"local_lr": 0.2},
        {"cohort": 37},
        {"batch_size": 20},
        {"local_epochs": 2},
        {"server_lr": 2.0},
        {"weight_decay": 0.01},
        {"weighting": "equal"},
        {"seed": 1},
        {"batch_size": 64, "cohort": 64},
    ]
    worst = 0.0
    for number, change in enumerate(turned, 1):
        now, seconds = now.replace(**change), []
        for _ in range(3):
            began = time.perf_counter()
            from_params(model, data, now, params)(number)
            seconds.append(time.perf_counter() - began)
        worst = max(worst, seconds[0] - min(seconds[1:]))
    return worst


def tables(items: int, repeats: int) -> dict[str, float]:
    """Seconds of a round of matrix factorisation, 100 clients of 200 examples.

    The ways are a dense loop, a row loop and the engine.
    """
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(CLIENTS).repeat_interleave(EXAMPLES)
    item = torch.randint(items, (len(owner),), generator=generator)
    target = (torch.rand(len(owner), generator=generator) < 0.2).float()
    data = Columns({"user": owner, "item": item, "target": target}, owner)
    model, settings = (
        matrix_factorisation(CLIENTS, items, WIDTH),
        Settings(cohort=CLIENTS, local_lr=1.0),
    )
    params = model.init(0)

    def loop(dense: bool) -> Way:
        return lambda number: table_loop(params, data, settings, number, dense)

    ways = {
        "engine": params_of(from_params(model, data, settings, params)),
        "dense loop": loop(True),
        "row loop": loop(False),
    }
    times, worst = interleaved(ways, repeats, settings)
    report(f"matrix factorisation, {items:,} items", times, worst)
    return times


def lesson(cohort: int):
    """Lesson 2's model, federation and settings with another cohort."""
    shown = parameters("02_fedavg")
    train = leave_one_out(load()).train
    data = Federation(train, one_per_user(train))
    model = matrix_factorisation(train.user_count, train.item_count, shown["DIM"])
    settings = Settings(
        cohort=cohort,
        local_lr=shown["LOCAL_LR"],
        server_lr=shown["SERVER_LR"],
        weighting="equal",
        batch_size=shown["BATCH_SIZE"],
    )
    return model, data, settings


def movielens(cohort: int, repeats: int) -> dict[str, float]:
    """Seconds of a round of lesson 2: engine, dense loop, row loop."""
    model, data, settings = lesson(cohort)
    params = model.init(0)
    ways = {"engine": params_of(from_params(model, data, settings, params))}
    if cohort <= 256:
        ways |= {
            name: lambda number, d=name == "dense loop": table_loop(
                params, data, settings, number, d
            )
            for name in ("dense loop", "row loop")
        }
    times, worst = interleaved(
        ways | ({} if len(ways) > 1 else {"again": ways["engine"]}), repeats, settings
    )
    report(f"lesson 2, {cohort} users", times, worst)
    return times


def pair_ranks(split: Split, score: Score, chunk: int = 64) -> torch.Tensor:
    """Full ranks (U,) as they were until edition 0.7: every pair is scored by itself.

    What users have met is looked for anew in every chunk of them.
    """
    ranks = []
    for users, positives in zip(
        split.test.users.split(chunk), split.test.items.split(chunk), strict=True
    ):
        items = torch.arange(split.test.item_count).expand(len(users), -1)
        scores = score(users[:, None].expand_as(items), items)
        met = seen((split.train, split.validation), users).scatter(1, positives[:, None], True)
        positive = scores.gather(1, positives[:, None])[:, 0]
        ranks.append(rank(positive, scores.masked_fill(met, -torch.inf)))
    return torch.cat(ranks)


def ranks(repeats: int) -> dict[str, float]:
    """Seconds of the full ranking of 671 users over 9,066 films after a round of lesson 2."""
    model, data, settings = lesson(671)
    params, split = model.init(0), leave_one_out(load())
    params = from_params(model, data, settings, params)(1).params
    score = scorer(model, params)

    def pairs(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        leaves = {
            name: arranged(params[name], {"user": users, "item": items}[kind])
            for name, kind in model.rows.items()
        }
        return model.predict(leaves, {})

    ways: dict[str, Way] = {
        "product": lambda number: {"ranks": full_ranks(split, score)},
        "pairs": lambda number: {"ranks": pair_ranks(split, pairs)},
    }
    times, worst = interleaved(ways, repeats, settings)
    report("full ranking, 671 users, 9,066 films", times, worst)
    return times


def million(quick: bool) -> tuple[float, float]:
    """How a round of 1,000 clients from a million users compares to one from 10,000.

    Returns the ratio of their seconds, and the peak MB of the former.
    """
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        began = time.perf_counter()
        synthesise(large, 20_000 if quick else 1_000_000, 100_000)
        print(
            f"federation written in {time.perf_counter() - began:.0f} s, "
            f"{sum(f.stat().st_size for f in large.iterdir()) / 1e6:.0f} MB",
            flush=True,
        )
        synthesise(small, 10_000, 100_000)
        ask = subprocess.Popen(
            [sys.executable, __file__, "streamed", large],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        other = subprocess.Popen(
            [sys.executable, __file__, "streamed", small],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answers: dict[str, list[dict]] = {"large": [], "small": []}
        for _ in range(3 if quick else 11):  # in turn, each in a process of its own
            for name, process in (("large", ask), ("small", other)):
                process.stdin.write("round\n")
                process.stdin.flush()
                answers[name].append(json.loads(process.stdout.readline()))
        for process in (ask, other):
            process.communicate()
    seconds = {name: median(a["seconds"] for a in rows[1:]) for name, rows in answers.items()}
    peak = answers["large"][-1]["mb"]
    print(
        f"1,000 of a million users: {seconds['large']:.3f} s a round, of 10,000: "
        f"{seconds['small']:.3f} s; peak {peak:.0f} MB",
        flush=True,
    )
    return seconds["large"] / seconds["small"], peak


def streamed(folder: Path) -> None:
    """Take a round of 1,000 clients for each line read.

    The answer to each line is the round's seconds and the process's peak memory.
    """
    data = Stored(folder)
    model = matrix_factorisation(len(data), data.item_count, 32, sparse_users=True)
    settings, params = Settings(cohort=1000, local_lr=1.0), model.init(0)
    for number, _ in enumerate(sys.stdin, 1):
        began = time.perf_counter()
        params = from_params(model, data, settings, params)(number).params
        print(json.dumps({"seconds": time.perf_counter() - began, "mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    """Peak memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss also remembers the process that started this one
        return (
            int(
                next(
                    line.split()[1]
                    for line in status.read_text().splitlines()
                    if line.startswith("VmHWM")
                )
            )
            / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def everybody() -> None:
    """Print the peak memory in MB of a process that runs three rounds of all 671 users."""
    model, data, settings = lesson(671)
    params = model.init(0)
    for number in range(1, 4):
        params = from_params(model, data, settings, params)(number).params
    print(peak_mb())


def main(quick: bool) -> None:
    repeats = 3 if quick else 15
    tail = f"median of {repeats} interleaved rounds, one thread{', quick' if quick else ''}"

    def ratio(slow: float, fast: float, note: str, goal: float | None = None) -> dict:
        return entry(slow / fast, "ratio", goal, higher=True, seeds=1, note=f"{note}; {tail}")

    net = mlp(repeats)
    results = {
        "stacked_vs_loop_100": ratio(
            net["loop"], net["eager"], "MLP 64-64-1, 100 clients, eager", 15
        ),
        "compiled_vs_loop_100": ratio(net["loop"], net["compiled"], "the same, compiled", 25),
        "module_vs_loop_100": ratio(
            net["loop"], net["module"], "the same as an nn.Module through vmap", 8
        ),
        "knob_delay_s": entry(
            knob_delay(),
            "s",
            0.1,
            higher=False,
            seeds=1,
            note="worst first compiled round after a turned knob, less the round itself",
        ),
    }
    few, many = growth(3 if quick else 9)
    results["per_client_1000_vs_100"] = entry(
        many / few,
        "ratio",
        1.25,
        higher=False,
        seeds=1,
        note=f"seconds for each client of a round, MLP; {tail}",
    )
    small, large = tables(10_000, 1 if quick else 5), tables(50_000, 1 if quick else 3)
    results |= {
        "mf_vs_dense_10k": ratio(
            small["dense loop"], small["engine"], "matrix factorisation, 10,000 items, D=64", 30
        ),
        "mf_vs_dense_50k": ratio(
            large["dense loop"], large["engine"], "the same, 50,000 items", 80
        ),
        "mf_vs_rows_10k": ratio(
            small["row loop"], small["engine"], "10,000 items, loop over touched rows only"
        ),
        "mf_50k_over_10k": entry(
            large["engine"] / small["engine"],
            "ratio",
            1.5,
            higher=False,
            seeds=1,
            note=f"time of a round at 5 times the items; {tail}",
        ),
    }
    films, everyone = movielens(100, 1 if quick else 9), movielens(671, 1 if quick else 5)
    ranking = ranks(1 if quick else 9)
    over, peak = million(quick)
    whole = float(
        subprocess.run(
            [sys.executable, __file__, "everybody"], check=True, capture_output=True, text=True
        ).stdout
    )
    results |= {
        "lesson2_vs_loop_100": ratio(
            films["dense loop"], films["engine"], "lesson 2, 100 users, dense tables"
        ),
        "lesson2_vs_row_loop_100": ratio(
            films["row loop"], films["engine"], "lesson 2, loop over touched rows only"
        ),
        "full_ranks_speedup": ratio(
            ranking["pairs"],
            ranking["product"],
            "full ranking, 671 users, 9,066 films, D=32, against every pair scored by itself",
            25,
        ),
        "round_s_671": entry(
            everyone["engine"],
            "s",
            None,
            higher=False,
            seeds=1,
            note=f"lesson 2, everybody; {tail}",
        ),
        "peak_mb_671": entry(
            whole,
            "MB",
            1500,
            higher=False,
            seeds=1,
            note="process peak with torch, 3 rounds of all 671 users at 9,066 items",
        ),
        "million_vs_10k_users": entry(
            over,
            "ratio",
            1.3,
            higher=False,
            seeds=1,
            note="time of a round of 1,000 clients, 1,000,000 users on disk over 10,000",
        ),
        "million_users_peak_mb": entry(
            peak,
            "MB",
            4096,
            higher=False,
            seeds=1,
            note="process peak with torch, rounds of 1,000 of 1,000,000 users",
        ),
    }
    record("speed", results, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["everybody"]:
        everybody()
    elif sys.argv[1:2] == ["streamed"]:
        streamed(Path(sys.argv[2]))
    else:
        main(is_quick())
