"""A federation over nodes against one process: its numbers, its bytes, its kills, and lies.

- `over_nodes_difference`: the largest difference of a shared or private parameter after 20 rounds,
  over all ways of the tests: plain, weighted, with drop-outs, SCAFFOLD, FedProx, a codec, noise on
  the sum and clients' own (teaching seed), FedBuff, FedAsync, and the perceptron.
- `bytes_vs_rows`: bytes on the line over those of the rows: down, the rows that changed since the
  node last answered; up, the rows that clients touched. 4 bytes a number and a row number.
- `kills_survived`: nodes and the coordinator, processes of their own, killed by SIGKILL at ten
  points each; a kill counts where the run ends with the parameters of an undisturbed one.
- `lies_refused`: ways in which a node lies, of which the run refuses the clients concerned, with a
  reason, and goes on to a finite model.
- `class_learners`: of eight learners, processes of their own with a slice of MovieLens each, those
  who heard the end of a class of 20 rounds and were recommended ten films; the fewest of all seeds.
- `class_gain`: by how much NDCG@10 of a click held out for each of their users rose from the model
  that the class starts from, which knows none of them, to its last one; the mean of all seeds.
- `class_gain_of_eight`: the same for classes of eight learners who are one such user each.
- `overhead_vs_node_work`: seconds of a round over two nodes of all users through NVFLARE, over
  those that the node that worked longest spent on its answer; the median of the rounds behind the
  first two.
- `killed_node_round_s`: seconds from when a node is killed at work until its round has ended
  without it, through NVFLARE; the median, of the slower way: the node alone, or its site with it.

The first four are measured on that of tests/nodes: ml-latest-small's first users, three nodes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import engine
import torch
from common import ROOT, entry, record

sys.path[:0] = [str(ROOT / "tests" / "nodes"), str(ROOT / "tests")]

from lies import LIES  # noqa: E402 - of the tests, as are those below
from test_kills import SETTINGS, disturbed, private_rows  # noqa: E402
from test_over_nodes import KINDS, USUAL  # noqa: E402
from test_wire import lied_to  # noqa: E402
from world import Table, World, difference, rounds_and_bytes  # noqa: E402

from fedlab.algorithms import Scaffold, federate  # noqa: E402
from fedlab.core import Settings, Tree  # noqa: E402
from fedlab.data import load, of_users  # noqa: E402
from fedlab.engine import SGD  # noqa: E402
from fedlab.nodes.classroom import USUAL as OF_CLASS  # noqa: E402
from fedlab.nodes.classroom import Entrance, Learner, started, taught, welcome  # noqa: E402

PATIENT = 600  # seconds, for a machine that does much else
LEARNER = f"""
import json, sys
from fedlab.nodes import join
_, invitation, part = sys.argv
with join(invitation, name=part, slice=part, patience={PATIENT}) as me:
    sys.stdin.read()
    print(json.dumps([me.state, me.news.get("round"), me.top(10)]))
"""


def kind_of_run(kind: str, rounds: int) -> float:
    """The largest difference of any parameter between one process and nodes."""
    settings, parts = KINDS[kind]
    world, settings = World(), settings.replace(rounds=rounds)
    local, uplink = parts.get("local", SGD)(), [stage() for stage in parts.get("uplink", [])]
    more = {"schedule": parts["schedule"]()} if "schedule" in parts else {}
    *_, one = federate(world.model, world.data, settings, local=local, uplink=uplink, **more)
    far = world.far(local=local, uplink=uplink)
    *_, there = far.rounds(settings, **more)
    far.measure(there)  # tells nodes what counted in the last round
    private = float((world.private(there) - one.params["user"]).abs().max())
    return max(difference(one.params, there.params), private)


def perceptron(rounds: int) -> float:
    """The same for the perceptron over columns."""
    table, settings = Table(), Settings(rounds=rounds, cohort=8, local_lr=0.5)
    *_, one = federate(table.model, table.data, settings)
    *_, there = table.far().rounds(settings)
    return difference(one.params, there.params)


def byte_ratios(users: int, rounds: int) -> Iterator[float]:
    """For each round bytes on the line over those of rows."""
    world = World(users=users, dim=32)
    settings = USUAL.replace(cohort=users // 3, rounds=rounds)
    for done, down, up in rounds_and_bytes(world, settings):
        yield (done.bytes_down + done.bytes_up) / (down + up)


def survived(kills: int, rounds: int) -> int:
    """How many kills a run has stood: all, or none where its parameters differ."""
    world = World()
    *_, one = federate(world.model, world.data, SETTINGS.replace(rounds=rounds), local=Scaffold())
    with tempfile.TemporaryDirectory() as home:
        last = disturbed(Path(home), world, rounds, kills)
        private = private_rows(Path(home), world) - one.params["user"]
    apart = max(difference(one.params, last.params), float(private.abs().max()))
    return kills if last.number == rounds and apart < 1e-5 else 0


def refused(way: str) -> bool:
    """Whether a lie costs clients of the node that lies, and nothing else."""
    rounds = lied_to(LIES[way])
    lost = rounds[1].rejected
    finite = all(bool(v.isfinite().all()) for done in rounds for v in done.params.values())
    others = any(done.rejected for done in rounds if done.number != 2)
    return bool(lost) and all(8 <= c < 16 and lost[c] for c in lost) and finite and not others


def held(seed: int, learners: int, rounds: int) -> tuple[int, float]:
    """A class: how many learners got to its end, and by how much its NDCG@10 rose."""
    films, start = load(), started(seed=seed)
    with Entrance("127.0.0.1:0") as room:
        room.open(welcome(start, films.catalogue))
        words = [sys.executable, "-c", LEARNER, str(room.invitation)]
        how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        parts = [f"{k + 1} of {learners}" for k in range(learners)]
        people = [subprocess.Popen([*words, part], start_new_session=True, **how) for part in parts]
        try:
            end = time.monotonic() + PATIENT
            while len(room.here()) < learners and time.monotonic() < end:
                time.sleep(0.1)
            settings = OF_CLASS.replace(rounds=rounds, seed=seed)
            first, *_, last = taught(room, start, settings, seconds=PATIENT)
            told = [each.communicate(timeout=PATIENT)[0].splitlines() for each in people]
        finally:
            for each in people:
                each.kill()
                each.wait()
    there = [json.loads(lines[-1]) for lines in told if lines]
    ended = [1 for state, done, top in there if (state, done, len(top)) == ("over", rounds, 10)]
    return len(ended), last.metrics["ndcg@10"] - first.metrics["ndcg@10"]


def of_eight(seed: int, start: Tree, rounds: int) -> float:
    """By how much NDCG@10 rose in a class of eight people, drawn among those it does not know."""
    films, settings = load(), OF_CLASS.replace(rounds=rounds, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    who = 1 + 2 * torch.randperm(films.user_count // 2, generator=draw)[:8]
    with Entrance("127.0.0.1:0") as room:
        room.open(welcome(start, films.catalogue))
        for user in who.tolist():
            own = of_users(films, torch.arange(films.user_count) == user)
            Learner(room.invitation, f"user {user}", own, PATIENT).begin()
        first, *_, last = taught(room, start, settings, seconds=PATIENT)
    return last.metrics["ndcg@10"] - first.metrics["ndcg@10"]


def small_classes(quick: bool) -> dict[str, dict]:
    """The figure of classes of eight people."""
    classes, start = 2 if quick else 20, started()
    gains = [of_eight(seed, start, 3 if quick else 20) for seed in range(classes)]
    error = statistics.stdev(gains) / classes**0.5
    note = f"of {classes} classes of eight people who bring what they rated; standard error "
    note += f"{error:.3f}"
    value = statistics.mean(gains)
    row = entry(value, "NDCG@10", None, higher=True, seeds=classes, note=note)
    return {"class_gain_of_eight": row}


def of_classes(quick: bool) -> dict[str, dict]:
    """Both figures of a class of eight slices."""
    seeds, learners, rounds = (1, 2, 3) if quick else (3, 8, 20)
    each = [held(seed, learners, rounds) for seed in range(seeds)]
    ended, gains = min(count for count, _ in each), [gain for _, gain in each]
    note = f"of {learners} processes in a class of {rounds} rounds, the fewest of all seeds"
    spread = f"{min(gains):+.3f} to {max(gains):+.3f}; learners bring all of the users that the "
    spread += "first model does not know"
    return {
        "class_learners": entry(ended, "learners", learners, higher=True, seeds=seeds, note=note),
        "class_gain": entry(
            statistics.mean(gains), "NDCG@10", 0.02, higher=True, seeds=seeds, note=spread
        ),
    }


def over_engine(quick: bool) -> dict[str, dict]:
    """Both figures of rounds through NVFLARE; it installs that once, and needs Linux."""
    rounds, kills = (3, 1) if quick else (20, 5)
    load = Path("/proc/loadavg").read_text().split()[0]
    with engine.running() as (relay, far):
        times = engine.overheads(relay, far, rounds)
        ways = {"the node alone": ["site-2.node"], "its site with it": ["site-2.node", "site-2"]}
        each = {
            way: [engine.killed(relay, far, names) for _ in range(kills)]
            for way, names in ways.items()
        }
    ratios = [whole / own for whole, own in times]
    middle = [statistics.median(part) for part in zip(*times, strict=True)]
    note = f"{min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds of NVFLARE, 64 clients, 32 "
    note += f"numbers a vector, all on one machine of two cores: {middle[0]:.2f} s, of which the "
    note += f"node {middle[1]:.2f}; load {load} as it began"
    slowest = max(each, key=lambda way: statistics.median(each[way]))
    spread = "; ".join(f"{way} {min(s):.2f} to {max(s):.2f} s" for way, s in each.items())
    told = f"{kills} kills each by SIGKILL, {spread}; load {load} as it began"
    value = statistics.median(each[slowest])
    return {
        "overhead_vs_node_work": entry(
            statistics.median(ratios), "times", 3, higher=False, seeds=1, note=note
        ),
        "killed_node_round_s": entry(value, "s", 90, higher=False, seeds=1, note=told),
    }


def main(quick: bool, parts: list[str]) -> None:
    """Measure the parts that are named, and record them."""
    found, rounds = {}, 3 if quick else 20
    if "difference" in parts:
        kinds = ["plain", "SCAFFOLD"] if quick else list(KINDS)
        each = {kind: kind_of_run(kind, rounds) for kind in kinds}
        each["perceptron"] = perceptron(rounds)
        worst = max(each, key=each.__getitem__)
        found["over_nodes_difference"] = entry(
            each[worst] * 1e6,
            "of 1e-6",
            10,
            higher=False,
            seeds=1,
            note=f"of {len(each)} ways after {rounds} rounds; largest: {worst}",
        )
    if "bytes" in parts:
        ratios = list(byte_ratios(60 if quick else 120, rounds))
        note = f"the worst of {rounds} rounds, 3 nodes, 32 numbers a vector"
        found["bytes_vs_rows"] = entry(max(ratios), "times", 1.05, higher=False, seeds=1, note=note)
    if "kills" in parts:
        kills = 2 if quick else 20
        found["kills_survived"] = entry(
            survived(kills, kills + 4),
            "kills",
            kills,
            higher=True,
            seeds=1,
            note=f"of {kills} by SIGKILL, nodes and the coordinator in turn, over sockets",
        )
    if "lies" in parts:
        ways = [way for way in LIES if refused(way)]
        left = ", ".join(sorted(LIES.keys() - ways)) or "none"
        note = f"of {len(LIES)} ways; not refused: {left}"
        found["lies_refused"] = entry(len(ways), "ways", len(LIES), higher=True, seeds=1, note=note)
    if "class" in parts:
        found |= of_classes(quick)
    if "small classes" in parts:
        found |= small_classes(quick)
    if "engine" in parts:
        found |= over_engine(quick)
    record("nodes", found, quick)


if __name__ == "__main__":
    PARTS = ["difference", "bytes", "kills", "lies", "class", "small classes", "engine"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, ways and kills")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    main(asked.quick, asked.only)
