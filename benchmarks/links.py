"""Rounds through NVFLARE over slow links: bytes and seconds for 2, 4 and 8 nodes.

The server and each site are in a network namespace of their own. Between them is a program that
hands on their packets (TUN devices): each site's link carries 10 Mbit/s in either direction, and a
packet takes 10 ms, so a question and its answer 20 ms. It stands in for `tc netem`, which not every
kernel has. It needs Linux and root, and is one machine still: all share its cores.

- `link_round_s_N`: seconds of a round over N nodes, the median of all rounds but the first two.
- `link_mb_N`: megabytes in a round on all links, down and up, with what TLS and NVFLARE add.
- `mb_down_a_node`, `mb_up_a_client`: of messages in a round, of 8 nodes.
- `node_s_a_client`: seconds that a node works for a client of a round, of 2 nodes.
- `server_mb`, `server_mb_a_site`: memory of NVFLARE's server with 8 sites at its highest, and what
  each site adds to it, from 2 sites to 8.

The last four are what the table on paper in docs/deployment.md is computed from.
"""

import argparse
import fcntl
import heapq
import os
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import engine
from common import ROOT, entry, record

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "nodes"), str(ROOT / "tests")]

from world import World  # noqa: E402 - of the tests

from deploy.launch import private, start, stop, until_up  # noqa: E402
from deploy.nvflare.__main__ import command, kits  # noqa: E402
from fedlab.models import MatrixFactorisation  # noqa: E402
from fedlab.nodes import Coordinator, Relay, gathered, write_node  # noqa: E402

RATE = 10e6  # bits a second
DELAY = 0.010  # seconds of a packet
QUEUE = 0.5  # seconds that a packet waits at most for those before it; then it is dropped
PORT = 8702
SERVER = "10.77.0.1"
TUNSETIFF, TUN, PLAIN = 0x400454CA, 0x0001, 0x1000


def ip(*words: str) -> str:
    """What `ip` says."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def spaces(count: int) -> Iterator[list[str]]:
    """Namespaces of a server and so many sites, with links between them."""
    names, lines, router = [f"fedlab{k}" for k in range(count + 1)], [], 0
    try:
        for k, name in enumerate(names):
            ip("netns", "add", name)
            lines.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            device = f"fl{k}"
            fcntl.ioctl(lines[k], TUNSETIFF, struct.pack("16sH", device.encode(), TUN | PLAIN))
            ip("link", "set", device, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{k + 1}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        router = os.fork()
        if not router:
            routed(lines)
        yield names
    finally:
        if router:
            os.kill(router, signal.SIGKILL)
            os.waitpid(router, 0)
        for line in lines:
            os.close(line)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def routed(lines: list[int]) -> None:
    """Hand packets on, late and no faster than the links of sites, until it is killed.

    lines: of the server, and of each site.
    """
    free = {("up", k): 0.0 for k in range(len(lines))} | {
        ("down", k): 0.0 for k in range(len(lines))
    }
    flying: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait = max(0.0, flying[0][0] - time.monotonic()) if flying else 1.0
        for line in select.select(lines, [], [], wait)[0]:
            packet, k, now = os.read(line, 65536), lines.index(line), time.monotonic()
            to = packet[19] - 1 if packet[0] >> 4 == 4 else -1
            link = ("up", k) if k else ("down", to)
            if not 0 <= to < len(lines) or free[link] > now + QUEUE:
                continue
            free[link] = max(free[link], now) + 8 * len(packet) / RATE
            number += 1
            heapq.heappush(flying, (free[link] + DELAY, number, to, packet))
        while flying and flying[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(flying)
            os.write(lines[to], packet)


def carried(names: list[str]) -> int:
    """Bytes on the links of all sites so far, down and up."""
    found = 0
    for k, name in enumerate(names[1:], 1):
        for way in ("rx", "tx"):
            path = f"/sys/class/net/fl{k}/statistics/{way}_bytes"
            found += int(ip("netns", "exec", name, "cat", path))
    return found


@contextmanager
def running(names: list[str]) -> Iterator[tuple[Path, Coordinator]]:
    """NVFLARE with its server in the first namespace, and a site and its node in each other."""
    sites = [f"site-{k}" for k in range(1, len(names))]
    with tempfile.TemporaryDirectory(prefix="links", dir="/tmp") as home:
        folder, world = private(Path(home)), World(users=engine.USERS, count=len(sites), dim=4)
        made = kits(folder, sites, PORT, host=SERVER)
        every = ["server", *sites]
        try:
            for name, space in zip(every, names, strict=True):
                words = command(folder, made / name)
                words = [f"host={SERVER}" if w == "host=127.0.0.1" else w for w in words]
                inside = ["ip", "netns", "exec", space, *words]
                start(folder, name, inside, {"HOME": str(folder)})
            for k, site in enumerate(sites):
                write_node(folder / site, site, world.own(k))
                own = [sys.executable, ROOT / "benchmarks" / "engine.py", folder / site]
                start(folder, f"{site}.node", [*own, folder / f"{site}.sock"])
            until_up(folder / "coordinator.sock", sites, folder)
            engine.connected(folder, sites)
            relay = Relay(folder / "coordinator.sock")
            roster = gathered(relay, engine.PATIENT, count=len(sites))
            how = {"roster": roster, "seconds": engine.PATIENT}
            yield folder, Coordinator(relay, MatrixFactorisation(dim=engine.DIM), **how)
        finally:
            for name in [*every, *[f"{site}.node" for site in sites]]:
                stop(folder, name)


def worked(folder: Path, count: int, first: float) -> float:
    """Seconds that all nodes have trained since `first`."""
    total = 0.0
    for k in range(1, count + 1):
        log = engine.noted(folder / f"site-{k}")
        times = [at for _, ask, at in log if ask == "train" and at >= first]
        total += sum(times[1::2]) - sum(times[::2])
    return total


def highest(folder: Path, name: str) -> float:
    """Megabytes of a process at its highest."""
    number = (folder / f"{name}.pid").read_text()
    told = Path(f"/proc/{number}/status").read_text()
    return int(told.split("VmHWM:")[1].split()[0]) / 1e3


def measured(count: int, rounds: int) -> dict[str, list[float]]:
    """For each round: seconds, megabytes on the links, and those that the coordinator counts.

    And once: seconds of work for a client, and the server's memory in megabytes.
    """
    found: dict[str, list[float]] = {"s": [], "mb": [], "down": [], "up": []}
    with spaces(count) as names, running(names) as (folder, far):
        began, before = time.monotonic(), carried(names)
        for done in far.rounds(engine.USUAL.replace(rounds=rounds + engine.WARM)):
            now, after = time.monotonic(), carried(names)
            assert not done.rejected, done.rejected
            found["s"].append(now - began)
            found["mb"].append((after - before) / 1e6)
            found["down"].append(done.bytes_down / 1e6)
            found["up"].append(done.bytes_up / 1e6)
            began, before = time.monotonic(), after
            if done.number == engine.WARM:
                first = began
        work = worked(folder, count, first) / rounds / engine.USUAL.cohort
        once = {"work": [work], "server": [highest(folder, "server")]}
    return {name: each[engine.WARM :] for name, each in found.items()} | once


def parts(middles: dict[int, dict[str, float]]) -> dict[str, dict]:
    """What a round is made of. middles: nodes -> medians."""
    few, many = min(middles), max(middles)
    added = (middles[many]["server"] - middles[few]["server"]) / max(1, many - few)
    rows = {
        "mb_down_a_node": (middles[many]["down"] / many, "MB"),
        "mb_up_a_client": (middles[many]["up"] / engine.USUAL.cohort, "MB"),
        "node_s_a_client": (middles[few]["work"], "s"),
        "server_mb": (middles[many]["server"], "MB"),
        "server_mb_a_site": (max(0.0, added), "MB"),
    }
    note = f"of {few} to {many} nodes of {engine.USERS} clients, {engine.DIM} numbers a vector"
    return {
        name: entry(value, unit, None, higher=False, seeds=1, note=note)
        for name, (value, unit) in rows.items()
    }


def main(quick: bool) -> None:
    """Measure, and record."""
    found, middles = {}, {}
    for count in (2,) if quick else (2, 4, 8):
        load = Path("/proc/loadavg").read_text().split()[0]
        each = measured(count, 3 if quick else 8)
        middle = {name: statistics.median(part) for name, part in each.items()}
        middles[count] = middle
        note = f"{min(each['s']):.1f} to {max(each['s']):.1f} in {len(each['s'])} rounds of 64 "
        note += f"clients; 10 Mbit/s and 20 ms there and back to each site; load {load}"
        found[f"link_round_s_{count}"] = entry(
            middle["s"], "s", None, higher=False, seeds=1, note=note
        )
        note = f"{middle['down']:.2f} down and {middle['up']:.2f} up are messages"
        found[f"link_mb_{count}"] = entry(
            middle["mb"], "MB", None, higher=False, seeds=1, note=note
        )
    record("nodes", found | parts(middles), quick)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two nodes, three rounds")
    main(parser.parse_args().quick)
