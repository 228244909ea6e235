"""The same federated job through what a user would pick instead.

    python benchmarks/peers.py [--quick]

The peers are Flower, pfl, fedjax, and loops by hand. Each runs in an environment of its own under
benchmarks/.peers, built from PyPI when it is missing, through its own natural API
(benchmarks/peers/). All start before the first round is timed; rounds are then taken in turn, one
peer at a time. Peers have one CPU thread on one core, except Flower, whose simulation keeps its
processes on all cores, as it is meant to. Weights at the end are brought back: all must have moved
as far and reach the same loss, so that all did the same work.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median

import numpy as np
from common import ROOT, entry, is_quick, record

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
    "implicit": ["numpy==2.4.6", "scipy==1.17.1", "implicit==0.7.3"],  # of ials.py
}
PEERS = {  # script, environment (None: this one), further arguments
    "fedlab": ("ours.py", None, []),
    "fedlab compiled": ("ours.py", None, ["compiled"]),
    "loop": ("loop.py", None, []),
    "student's loop": ("student.py", None, []),
    "Flower": ("flower.py", "flower", []),
    "pfl": ("pfl_research.py", "pfl", []),
    "fedjax": ("fedjax_peer.py", "fedjax", []),
}
CLIENTS, EXAMPLES, WIDTH = 100, 200, 64


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


def job(kind: str, cohort: int, path: Path) -> dict[str, np.ndarray]:
    """Write a job: 100 clients of 200 examples. kind: 'mlp', or 'mf' with the number of items."""
    rng = np.random.default_rng(0)
    if kind == "mlp":
        x = rng.standard_normal((CLIENTS, EXAMPLES, WIDTH), np.float32)
        teacher = rng.standard_normal(WIDTH).astype(np.float32)
        columns = {"x": x, "target": (x @ teacher > 0).astype(np.float32)}
        weights = {
            "first.weight": (WIDTH, WIDTH),
            "first.bias": (WIDTH,),
            "second.weight": (1, WIDTH),
            "second.bias": (1,),
        }
        model, rate = "mlp", 0.1
    else:
        items = int(kind.removeprefix("mf"))
        item = rng.integers(items, size=(CLIENTS, EXAMPLES))
        columns = {
            "user": np.repeat(np.arange(CLIENTS)[:, None], EXAMPLES, 1),
            "item": item,
            "target": (rng.random((CLIENTS, EXAMPLES)) < np.where(item % 5 == 0, 0.8, 0.05)).astype(
                np.float32
            ),
        }
        weights = {
            "user.weight": (CLIENTS, WIDTH),
            "item.weight": (items, WIDTH),
            "bias.weight": (items, 1),
        }
        model, rate = "mf", 1.0
    first = {
        name: rng.uniform(-1, 1, shape).astype(np.float32) / WIDTH**0.5
        for name, shape in weights.items()
    }
    np.savez(
        path,
        model=model,
        cohort=cohort,
        batch=32,
        rate=rate,
        **{f"columns/{n}": c for n, c in columns.items()},
        **{f"weights/{n}": w for n, w in first.items()},
    )
    return columns | first


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
        if env is None:
            variables["PYTHONPATH"] = str(ROOT)
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


def compare(kind: str, cohort: int, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    """For each peer: median seconds of a round, start to first round, peak MB, loss at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.npz"
        held = job(kind, cohort, path)
        peers = []
        for name in names:  # one starts after the other, so that first rounds are undisturbed
            peers.append(Peer(name, PEERS[name], path))
            peers[-1].round()
        for _ in range(rounds):
            for peer in peers:
                peer.round()
        table = {}
        for peer in peers:
            final = peer.end()
            moved = sum(float(np.square(final[n] - held[n]).sum()) for n in final) ** 0.5
            table[peer.name] = {
                "seconds": median(peer.seconds[1:]),
                "first": peer.first,
                "mb": peer.peak,
                "loss": loss(held, final),
                "moved": moved,
            }
    for name, row in table.items():
        print(
            f"{kind} {cohort:3} {name:16} {row['seconds']:8.4f} s  first {row['first']:6.1f} s  "
            f"{row['mb']:6.0f} MB"
            f"  loss {row['loss']:.4f}  moved {row['moved']:.3f}",
            flush=True,
        )
    for what, spread in (("loss", 1.05), ("moved", 1.25)):
        values = {name: row[what] for name, row in table.items()}
        same = max(values.values()) < spread * min(values.values())
        assert same, f"the peers did not do the same work: {what} {values}"
    return table


def main(quick: bool) -> None:
    missing = {
        name: reason for name, (_, env, _) in PEERS.items() if env and (reason := environment(env))
    }
    names = [name for name in PEERS if name not in missing]
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    rounds = 2 if quick else 9
    jobs = {"mlp_20": ("mlp", 20, rounds), "mlp_100": ("mlp", 100, rounds)}
    if not quick:
        jobs |= {"mf10k_20": ("mf10000", 20, 5), "mf50k_20": ("mf50000", 20, 3)}
    tables = {
        key: compare(
            kind, cohort, count, [n for n in names if kind == "mlp" or n != "fedlab compiled"]
        )
        for key, (kind, cohort, count) in jobs.items()
    }
    results = {}
    units = {"seconds": "s", "first": "s", "mb": "MB", "loss": "nats", "moved": "L2 norm"}
    for key, table in tables.items():
        note = f"{key}, median of {jobs[key][2]} rounds taken in turn{', quick' if quick else ''}"
        for name, row in table.items():
            label = name.lower().replace("'", "").replace(" ", "_")
            results |= {
                f"{key}_{label}_{what}": entry(
                    value, units[what], None, higher=False, seeds=1, note=note
                )
                for what, value in row.items()
            }
    ours = tables["mlp_100"]
    for name, label, goal in (
        ("Flower", "vs_flower", 40),
        ("pfl", "vs_pfl", 15),
        ("fedjax", "vs_fedjax", 10),
    ):
        if name in names:
            note = f"{PINS[PEERS[name][1]][-1]}, 100 of 100 clients, MLP, our eager engine"
            ratio = ours[name]["seconds"] / ours["fedlab"]["seconds"]
            results[label] = entry(ratio, "ratio", goal, higher=True, seeds=1, note=note)
        else:
            print(f"{label} not measured: {missing[name]}")
    if "Flower" in names:
        results["memory_vs_flower"] = entry(
            ours["fedlab"]["mb"] / ours["Flower"]["mb"],
            "ratio",
            0.25,
            higher=False,
            seeds=1,
            note="peak memory of the process tree, 100 of 100 clients, MLP",
        )
    record("peers", results, quick)


if __name__ == "__main__":
    main(is_quick())
