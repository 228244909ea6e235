"""What a round over two real nodes takes through NVFLARE, and one in which a node is killed.

`python benchmarks/engine.py FOLDER SOCKET` is a node that notes when it works: a line in
FOLDER/work.jsonl as it begins an answer, and one as it ends it. It waits before it trains where
there is a FOLDER/slow, with the seconds. `benchmarks/nodes.py` measures with two of these, each a
process behind a site of its own, and records what comes out.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ROOT

sys.path[:0] = [str(ROOT / "tests" / "nodes"), str(ROOT / "tests")]

from test_relay import SITES, Engine, until  # noqa: E402 - of the tests
from world import World  # noqa: E402

from fedlab.core import Settings  # noqa: E402
from fedlab.models import MatrixFactorisation  # noqa: E402
from fedlab.nodes import Coordinator, gathered, read_node, serve, unpack, write_node  # noqa: E402

USERS, DIM = 671, 32  # of ml-latest-small
USUAL = Settings(cohort=64, local_lr=1.0, server_lr=50.0, weighting="equal")
WARM = 2  # rounds that are left out: tables go whole, and code is compiled
PATIENT = 300.0  # seconds, for a machine that does much else
DEADLINE = 90.0  # of a round


def node(folder: Path, socket: str) -> None:
    """Be a node that notes when it works."""
    own, log = read_node(folder), folder / "work.jsonl"

    def note(what: str, ask: str) -> None:
        with log.open("a") as file:  # the clock is one for all processes
            file.write(json.dumps([what, ask, time.monotonic()]) + "\n")

    def answer(question: bytes) -> bytes:
        ask = unpack(question).get("ask", str)
        note("begins", ask)
        if ask == "train" and (folder / "slow").exists():
            time.sleep(float((folder / "slow").read_text()))
        found = own.answer(question)
        note("ends", ask)
        return found

    serve(own.name, answer, socket, say=lambda line: print(line, flush=True))


def noted(folder: Path) -> list[tuple[str, str, float]]:
    """What a node has noted so far."""
    log = folder / "work.jsonl"
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


@contextmanager
def running() -> Iterator[tuple[Engine, Coordinator]]:
    """NVFLARE with two sites, a node of half of ml-latest-small's users behind each."""
    with tempfile.TemporaryDirectory(prefix="relay", dir="/tmp") as home:
        engine, world = Engine(Path(home)), World(users=USERS, count=len(SITES))
        for number, site in enumerate(SITES):
            write_node(engine.folder / site, site, world.own(number))
        try:
            engine.do("start", "--node", words(engine))
            connected(engine.folder, SITES)
            roster = gathered(engine.relay, PATIENT, count=len(SITES))
            how = {"roster": roster, "seconds": DEADLINE, "quorum": 0.0}
            yield engine, Coordinator(engine.relay, MatrixFactorisation(dim=DIM), **how)
        finally:
            engine.do("stop")


def connected(folder: Path, sites: list[str]) -> None:
    """Wait until the node of each site has found it."""
    logs = [folder / f"{site}.node.log" for site in sites]
    assert until(lambda: all("connected" in log.read_text() for log in logs), PATIENT)


def words(engine: Engine) -> str:
    """What starts the node of a site."""
    return f"{sys.executable} {Path(__file__).resolve()} {engine.folder}/{{name}} {{socket}}"


def overheads(engine: Engine, far: Coordinator, rounds: int) -> list[tuple[float, float]]:
    """For each round its seconds, and those that the node that worked longest has worked."""
    spans, began = [], time.monotonic()
    for _ in far.rounds(USUAL.replace(rounds=rounds + WARM)):
        spans.append((began, time.monotonic()))
        began = spans[-1][1]
    found, logs = [], [noted(engine.folder / site) for site in SITES]
    for first, last in spans[WARM:]:
        worked = []
        for log in logs:
            times = [at for _, ask, at in log if ask == "train" and first <= at <= last]
            worked.append(sum(times[1::2]) - sum(times[::2]))
        found.append((last - first, max(worked)))
    return found


def killed(engine: Engine, far: Coordinator, names: list[str]) -> float:
    """Seconds from when processes of the second site are killed at work until the round ends.

    They are started again, and are back before it returns.
    """
    folder = engine.folder / SITES[1]
    (folder / "slow").write_text(str(2 * DEADLINE))
    before, at = len(noted(folder)), list[float]()

    def kill() -> None:
        until(lambda: ("begins", "train") in [each[:2] for each in noted(folder)[before:]], PATIENT)
        time.sleep(1.0)  # the other one may be done by then, as it usually is
        at.append(time.monotonic())
        engine.kill(*names)

    killer = threading.Thread(target=kill)
    killer.start()
    (done,) = far.rounds(USUAL.replace(rounds=1))
    ended = time.monotonic()
    killer.join()
    assert done.rejected, "it answered before it was killed"
    assert not done.skipped, "the other node's clients count"
    (folder / "slow").unlink()
    engine.do("start", *names, "--node", words(engine))
    assert until(lambda: not any(engine.relay.nodes().values()), PATIENT), "it is not back"
    assert until(lambda: not next(far.rounds(USUAL.replace(rounds=1))).rejected, PATIENT)
    return ended - at[0]


if __name__ == "__main__":
    node(Path(sys.argv[1]), sys.argv[2])
