"""The same federated job through what a user would pick instead.

    python benchmarks/peers.py [--quick] [frameworks] [jax] [hand]

Without a group, all are measured. 'frameworks': Flower, pfl, fedjax, and loops with modules and
optimisers. 'jax': a round as one compiled call on arrays. 'hand': PyTorch by hand, with the
gradient by hand client after client, or `torch.func.vmap(grad)`. Each peer with packages of its
own runs in an environment under benchmarks/.peers, built from PyPI when it is missing, through its
own natural API (benchmarks/peers/). All start before the first round is timed; rounds are then
taken in turn, one peer at a time. Peers have one CPU thread on one core, except Flower, whose
simulation keeps its processes on all cores, as it is meant to. Weights at the end are brought back:
all must have moved as far and reach the same loss, so that all did the same work. In the groups
'jax' and 'hand' all train the same clients, so that must hold after one round too, more closely,
and each parameter must have moved the same way.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np
from common import ROOT, entry, label, record
from speed import lesson

from fedlab.algorithms import sample

HERE, ENVIRONMENTS = ROOT / "benchmarks" / "peers", ROOT / "benchmarks" / ".peers"
PINS = {
    "flower": ["torch==2.13.0", "flwr[simulation]==1.41.0"],
    "pfl": ["torch==2.13.0", "pfl[pytorch]==0.6.0"],
    # fedjax 0.0.17 calls jax.tree_map, which later versions of jax no longer have
    "fedjax": [
        "jax==0.4.30",
        "jaxlib==0.4.30",
        "dm-haiku==0.0.12",
        "optax==0.2.3",
        "numpy<2",
        "fedjax==0.0.17",
    ],
    "jax": ["jaxlib==0.10.2", "jax==0.10.2"],
    # its compiler of small operations is the older one, which some jobs run faster on
    "jax04": ["jaxlib==0.4.30", "numpy<2", "jax==0.4.30"],
    "implicit": ["numpy==2.4.6", "scipy==1.17.1", "implicit==0.7.3"],  # of ials.py
}
PEERS = {  # script, environment (None: this one), further arguments
    "fedlab": ("ours.py", None, []),
    "loop": ("loop.py", None, []),
    "student's loop": ("student.py", None, []),
    "Flower": ("flower.py", "flower", []),
    "pfl": ("pfl_research.py", "pfl", []),
    "fedjax": ("fedjax_peer.py", "fedjax", []),
    "hand loop": ("arrays/torch_ways.py", None, ["hand"]),
    "vmap(grad)": ("arrays/torch_ways.py", None, ["vmap"]),
} | {
    f"{title} {way}": ("arrays/jax_ways.py", env, [way])
    for title, env in (("JAX", "jax"), ("JAX 0.4", "jax04"))
    for way in ("vmap", "vmap hand", "scan", "scan hand", "flat", "lanes")
}
OURS = "fedlab"
FRAMEWORKS = (OURS, "loop", "student's loop", "Flower", "pfl", "fedjax")
HAND, JAX = ("hand loop", "vmap(grad)"), tuple(name for name in PEERS if name.startswith("JAX"))
GROUPS = {"frameworks": FRAMEWORKS, "jax": (OURS, *JAX), "hand": (OURS, *HAND)}
WAYS = {  # see arrays/jax_ways.py
    "mlp": ("vmap", "vmap hand", "scan", "scan hand"),
    "private": ("vmap", "scan", "flat"),
    "clicks": ("scan", "flat", "lanes"),
}
EQUAL = {"perceptron": "mlp", "private_mf10k": "private10000", "private_mf50k": "private50000"}
CLIENTS, EXAMPLES, WIDTH = 100, 200, 64
ROUNDS = 11  # of the groups 'jax' and 'hand'
# limits for the same work: of losses, of distances, of cosines, of ways that draw the same
LOSSES, FAR, APART = 0.01, 0.1, 0.02
SAME = {"mlp": 0.95, "private": 0.6, "clicks": 0.1}


def environment(name: str) -> str:
    """Build a peer's environment when it is missing; return '', or why it cannot be built."""
    folder, pins = ENVIRONMENTS / name, PINS[name]
    stamp = folder / "ready"
    if stamp.exists() and stamp.read_text() == repr(pins):
        return ""
    print(f"building {folder}: {' '.join(pins)}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    done = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "-q", *pins],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"{pins[-1]} does not install here: {done.stderr.strip().splitlines()[-1]}"
    stamp.write_text(repr(pins))
    return ""


def job(kind: str, cohort: int, path: Path, clients: int = CLIENTS) -> dict[str, np.ndarray]:
    """Write a job and return what judges it: all examples, and the first weights.

    kind: 'mlp', 'mf' or 'private' with the number of items, for clients of 200 examples; or
    'clicks', lesson 2's users.
    """
    rng = np.random.default_rng(0)
    if kind == "clicks":
        return lesson_job(cohort, path)
    if kind == "mlp":
        x = rng.standard_normal((clients, EXAMPLES, WIDTH), np.float32)
        teacher = rng.standard_normal(WIDTH).astype(np.float32)
        columns = {"x": x, "target": (x @ teacher > 0).astype(np.float32)}
        shapes = {
            "first.weight": (WIDTH, WIDTH),
            "first.bias": (WIDTH,),
            "second.weight": (1, WIDTH),
            "second.bias": (1,),
        }
        model, rate = "mlp", 0.1
    else:
        model, rate = kind.rstrip("0123456789"), 1.0
        items = int(kind.removeprefix(model))
        item = rng.integers(items, size=(clients, EXAMPLES))
        columns = {
            "user": np.repeat(np.arange(clients)[:, None], EXAMPLES, 1),
            "item": item,
            "target": (rng.random((clients, EXAMPLES)) < np.where(item % 5 == 0, 0.8, 0.05)).astype(
                np.float32
            ),
        }
        shapes = tables(clients, items, WIDTH)
    first = random_weights(shapes, rng)
    cohorts = np.tile(np.arange(clients), (ROUNDS + 1, 1))
    plain = {"model": model, "clients": clients, "examples": EXAMPLES, "rate": rate}
    write(path, plain | {"cohort": cohort, "batch": 32, "cohorts": cohorts}, columns, first)
    return columns | first


def tables(users: int, items: int, width: int) -> dict[str, tuple[int, int]]:
    """The shapes of matrix factorisation."""
    return {"user.weight": (users, width), "item.weight": (items, width), "bias.weight": (items, 1)}


def random_weights(
    shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """First weights."""
    return {
        name: rng.uniform(-1, 1, shape).astype(np.float32) / WIDTH**0.5
        for name, shape in shapes.items()
    }


def write(
    path: Path, plain: dict, columns: dict[str, np.ndarray], weights: dict[str, np.ndarray]
) -> None:
    """Write a job's file."""
    parts = {f"columns/{n}": c for n, c in columns.items()}
    parts |= {f"weights/{n}": w for n, w in weights.items()}
    np.savez(path, **plain, **parts)


def lesson_job(cohort: int, path: Path) -> dict[str, np.ndarray]:
    """Write lesson 2's job and return what judges it: its clicks, each with one random item."""
    model, data, settings = lesson(cohort)
    layout = data.layout
    items = data.train.item_count
    assert np.array_equal(layout.columns["user"], np.repeat(np.arange(len(data)), layout.counts))
    first = {
        f"{name}.weight": value.numpy().reshape(len(value), -1)
        for name, value in model.init(settings.seed).items()
    }
    plain = {
        "model": "clicks",
        "clients": len(data),
        "counts": layout.counts,
        "cohort": cohort,
        "cohorts": np.stack([sample(data, cohort, n).numpy() for n in range(1, ROUNDS + 2)]),
        "batch": settings.batch_size,
        "rate": settings.local_lr,
        "server_rate": settings.server_lr,
        "negatives": settings.negatives,
    }
    write(path, plain, {"item": layout.columns["item"]}, first)
    user, item = (layout.columns[name] for name in ("user", "item"))
    other = np.random.default_rng(1).integers(items, size=len(item))  # nobody else's stream
    examples = {
        "user": np.concatenate([user, user]),
        "item": np.concatenate([item, other]),
        "target": np.repeat(np.float32([1, 0]), len(item)),
    }
    return examples | first


def loss(held: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> float:
    """Mean cross-entropy of weights on all clients' examples."""
    if "x" in held:
        h = np.maximum(held["x"] @ weights["first.weight"].T + weights["first.bias"], 0)
        y = h @ weights["second.weight"][0] + weights["second.bias"][0]
    else:
        y = (weights["user.weight"][held["user"]] * weights["item.weight"][held["item"]]).sum(-1)
        y = y + weights["bias.weight"][held["item"], 0]
    return float(np.mean(np.maximum(y, 0) - y * held["target"] + np.log1p(np.exp(-np.abs(y)))))


class Peer:
    """A peer's process, from its start to its weights."""

    def __init__(self, name: str, how: tuple[str, str | None, list[str]], path: Path) -> None:
        """Start the peer on a job; how: its script, environment and further arguments."""
        script, env, more = how
        python = sys.executable if env is None else str(ENVIRONMENTS / env / "bin" / "python")
        self.name, self.final, self.seconds, self.peak = (
            name,
            path.with_name(f"{name}.npz"),
            [],
            0.0,
        )
        variables = os.environ | {
            "PEER_JOB": str(path),
            "OMP_NUM_THREADS": "1",
            "RAY_DEDUP_LOGS": "0",
            "PYTHONWARNINGS": "ignore",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "JAX_PLATFORMS": "cpu",
        }
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(HERE)] + ([str(ROOT)] if env is None else [])
        )
        self.log = path.with_name(f"{name}.log")
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [python, HERE / script, path, self.final, *more],
            cwd=HERE,
            env=variables,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
        )
        # threads that it starts later stay there too
        if name != "Flower" and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})
        self.first = 0.0

    def round(self) -> None:
        """Take one round, timed by the peer itself; the first one also from the process's start."""
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        self.seconds.append(json.loads(answer))
        self.first = self.first or time.perf_counter() - self.began
        self.peak = max(self.peak, tree_mb(self.process.pid))

    def end(self) -> dict[str, np.ndarray]:
        """End the peer and return its weights."""
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        self.process.wait(120)
        with np.load(self.final) as file:
            return {name: file[name] for name in file.files}


def tree_mb(root: int) -> float:
    """Memory of a process and all below it in MB, shared pages counted once (PSS)."""
    parent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    tree, grown = {root}, 0
    while len(tree) > grown:
        grown = len(tree)
        tree |= {child for child, above in parent.items() if above in tree}
    total = 0
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def took_turns(
    names: Iterable[str], path: Path, rounds: int
) -> tuple[list[Peer], list[dict[str, np.ndarray]]]:
    """Peers that took one round to start with and then as many in turn; and their weights."""
    peers = []
    for name in names:  # one starts after the other, so that first rounds are undisturbed
        peers.append(Peer(name, PEERS[name], path))
        peers[-1].round()
    for _ in range(rounds):
        for peer in peers:
            peer.round()
    return peers, [peer.end() for peer in peers]


def compare(
    key: str, kind: str, cohort: int, rounds: int, names: Iterable[str], clients: int = CLIENTS
) -> dict[str, dict[str, float]]:
    """For each peer: median seconds of a round, start to first round, peak MB, loss at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.npz"
        held = job(kind, cohort, path, clients)
        peers, ends = took_turns(names, path, rounds)
    table = {
        peer.name: {
            "seconds": median(peer.seconds[1:]),
            "first": peer.first,
            "mb": peer.peak,
            **judged(held, end),
        }
        for peer, end in zip(peers, ends, strict=True)
    }
    if not set(FRAMEWORKS[1:]) & set(table):  # these draw by themselves
        after = [{n: end[f"first/{n}"] for n in held if f"first/{n}" in end} for end in ends]
        last = [{n: end[n] for n in held if n in end} for end in ends]
        for weights in (after, last):
            alike(kind, held, dict(zip(table, weights, strict=True)))
    for name, row in table.items():
        print(
            f"{key:18} {name:16} {row['seconds'] * 1e3:8.2f} ms  first {row['first']:6.1f} s  "
            f"{row['mb']:6.0f} MB  loss {row['loss']:.4f}  moved {row['moved']:.3f}",
            flush=True,
        )
    for what, spread in (("loss", 1.05), ("moved", 1.25)):
        values = {name: row[what] for name, row in table.items()}
        same = max(values.values()) < spread * min(values.values())
        assert same, f"the peers did not do the same work: {what} {values}"
    return table


def judged(held: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, float]:
    """The loss of some weights, and how far they moved from the first ones."""
    moved = sum(float(np.square(weights[n] - held[n]).sum()) for n in held if n in weights) ** 0.5
    return {"loss": loss(held, weights), "moved": moved}


def alike(kind: str, held: dict[str, np.ndarray], ends: dict[str, dict[str, np.ndarray]]) -> None:
    """Fail unless all ways reached our loss, each parameter having moved as far and the same way.

    What may differ is what is drawn: the order of examples, of which those in the last, shorter
    batch count four times as much, and unseen items. A single number that hardly moves is left out.
    Ways on whole arrays draw the same, so they must agree with one another but for rounding.
    """
    drawn_alike = [name for name in ends if name.startswith(("JAX", "vmap"))]
    for way, weights in ends.items():
        ours, twin = ends[OURS], ends[drawn_alike[0]]
        ratio = loss(held, weights) / loss(held, ours)
        assert abs(ratio - 1) < LOSSES, (
            f"{way} did not do the same work: {ratio:.4f} times our loss"
        )
        for name, value in weights.items():
            mine, theirs, like = ((w[name] - held[name]).ravel() for w in (ours, weights, twin))
            far = np.linalg.norm(theirs) / np.linalg.norm(mine)
            same = mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)
            good = abs(far - 1) < FAR and same > SAME[kind.rstrip("0123456789")]
            what = f"{name} moved {far:.3f} times as far, cosine {same:.3f}"
            assert value.size == 1 or good, f"{way} did not do the same work: {what}"
            apart = np.linalg.norm(theirs - like) / np.linalg.norm(like)
            what = f"{name} is {apart:.4f} apart from that of {drawn_alike[0]}"
            assert way not in drawn_alike or apart < APART, f"{way} computes otherwise: {what}"


def entries(
    key: str, table: dict[str, dict[str, float]], rounds: int, quick: bool
) -> dict[str, dict]:
    """The figures of a job, as results."""
    units = {"seconds": "s", "first": "s", "mb": "MB", "loss": "nats", "moved": "L2 norm"}
    note = f"{key}, median of {rounds} rounds taken in turn{', quick' if quick else ''}"
    return {
        f"{key}_{label(name)}_{what}": entry(
            value, units[what], None, higher=False, seeds=1, note=note
        )
        for name, row in table.items()
        for what, value in row.items()
    }


def frameworks(quick: bool) -> dict[str, dict]:
    """Measure the frameworks, and loops with modules and optimisers."""
    names, missing = found(FRAMEWORKS)
    rounds = 2 if quick else 9
    jobs = {"mlp_20": ("mlp", 20, rounds), "mlp_100": ("mlp", 100, rounds)}
    if not quick:
        jobs |= {"mf10k_20": ("mf10000", 20, 5), "mf50k_20": ("mf50000", 20, 3)}
    results, tables = {}, {}
    for key, (kind, cohort, count) in jobs.items():
        tables[key] = compare(key, kind, cohort, count, names)
        results |= entries(key, tables[key], count, quick)
    ours = tables["mlp_100"]
    for name, ratio_of, goal in (
        ("Flower", "vs_flower", 100),
        ("pfl", "vs_pfl", 15),
        ("fedjax", "vs_fedjax", 8),
    ):
        if name in names:
            note = f"{PINS[PEERS[name][1]][-1]}, 100 of 100 clients, MLP"
            ratio = ours[name]["seconds"] / ours[OURS]["seconds"]
            results[ratio_of] = entry(ratio, "ratio", goal, higher=True, seeds=1, note=note)
        else:
            print(f"{ratio_of} not measured: {missing[name]}")
    if "Flower" in names:
        results["memory_vs_flower"] = entry(
            ours[OURS]["mb"] / ours["Flower"]["mb"],
            "ratio",
            0.25,
            higher=False,
            seeds=1,
            note="peak memory of the process tree, 100 of 100 clients, MLP",
        )
    return results


def found(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    environments = {PEERS[name][1] for name in names} - {None}
    reasons = {env: reason for env in environments if (reason := environment(env))}
    missing = {n: reasons[PEERS[n][1]] for n in names if PEERS[n][1] in reasons}
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    return [name for name in names if name not in missing], missing


def arrays(groups: Iterable[str], quick: bool) -> dict[str, dict]:
    """Measure JAX on whole arrays and PyTorch by hand, those groups that are asked for."""
    names, _ = found(dict.fromkeys(name for group in groups for name in GROUPS[group]))
    if names == [OURS]:
        return {}
    jobs = {f"{key}_{n}": (kind, n) for key, kind in EQUAL.items() for n in (100, 1000)}
    jobs |= {f"lesson2_{n}": ("clicks", n) for n in (20, 100, 671)}
    if quick:
        jobs = {key: jobs[key] for key in ("perceptron_100", "private_mf10k_100", "lesson2_20")}
    rounds = 2 if quick else ROUNDS
    results = {}
    for key, (kind, n) in jobs.items():
        ways = WAYS[kind.rstrip("0123456789")]
        here = [name for name in names if name not in JAX or PEERS[name][2][0] in ways]
        table = compare(key, kind, n, rounds, here, n)
        results |= entries(key, table, rounds, quick) | ratios(key, table, rounds)
    return results


def ratios(key: str, table: dict[str, dict[str, float]], rounds: int) -> dict[str, dict]:
    """How many times our round goes into that of the fastest JAX, and of the loop by hand."""
    tail = f"median of {rounds} rounds taken in turn on one core, load {os.getloadavg()[0]:.1f}"
    results = {}
    seconds = {name: row["seconds"] for name, row in table.items()}
    if forms := {name: taken for name, taken in seconds.items() if name in JAX}:
        best = min(forms, key=forms.__getitem__)
        note = f"{best}, the fastest of {len(forms)} forms; {tail}"
        results[f"{key}_vs_jax_best"] = entry(
            forms[best] / seconds[OURS], "ratio", 1.5, higher=True, seeds=1, note=note
        )
    if HAND[0] in seconds:
        results[f"{key}_vs_hand_loop"] = entry(
            seconds[HAND[0]] / seconds[OURS], "ratio", None, higher=True, seeds=1, note=tail
        )
    return results


def main(quick: bool, groups: list[str]) -> None:
    """Measure the groups and write the results."""
    if "frameworks" in groups:
        record("peers", frameworks(quick), quick)
    if by_array := [group for group in groups if group != "frameworks"]:
        record("peers", arrays(by_array, quick), quick)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--quick", action="store_true")
    asked.add_argument("groups", nargs="*", choices=[*GROUPS, []], metavar="group")
    given = asked.parse_args()
    main(given.quick, given.groups or list(GROUPS))
