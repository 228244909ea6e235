"""Nodes and coordinator as processes, killed at any moment: the run is the undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from coordinate import SETTINGS
from world import World, difference

from fedlab.algorithms import Scaffold, federate
from fedlab.core import load_round
from fedlab.nodes import write_node
from fedlab.nodes.keeping import Keeping

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no Unix sockets")


class Machines:
    """Three node processes and a coordinator, each of which can be killed and started again."""

    def __init__(self, folder, world, rounds):
        self.folder, self.rounds, self.running = folder, rounds, {}
        self.where = str(folder / "line")
        for k, name in enumerate(world.names):
            write_node(folder / name, name, world.own(k))
            self.words(
                name,
                [sys.executable, "-m", "fedlab", "node", folder / name, "--socket", self.where],
            )
        script = [sys.executable, HERE / "coordinate.py", self.where, folder, len(world.names)]
        self.words("coordinator", [*script, rounds])

    def words(self, name, words):
        self.running[name] = [list(map(str, words)), None]
        self.start(name)

    def start(self, name):
        words = self.running[name][0]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name][1] = subprocess.Popen(words, stdout=log, stderr=log)

    def kill(self, name):
        process = self.running[name][1]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def log(self, name="coordinator"):
        return (self.folder / f"{name}.log").read_text()

    def done(self):
        return max(
            [
                0,
                *(
                    int(line.split()[1])
                    for line in self.log().splitlines()
                    if line.startswith("round ")
                ),
            ]
        )

    def wait(self, number, seconds=300):
        end = time.monotonic() + seconds
        while self.done() < number:
            assert time.monotonic() < end, self.log() + self.log("node0")
            assert self.running["coordinator"][1].poll() in (None, 0), self.log()
            time.sleep(0.01)

    def close(self):
        for name in self.running:
            self.kill(name)


def disturbed(folder, world, rounds, kills, seed=0):
    """Run on processes, kill one or the other `kills` times; (last Round, how many were killed)."""
    luck = random.Random(seed)
    names = [*world.names, "coordinator"]
    with ExitStack() as stack:
        machines = Machines(folder, world, rounds)
        stack.callback(machines.close)
        for k in range(kills):
            machines.wait(1 + k * (rounds - 2) // kills)
            time.sleep(luck.random() * 0.1)
            name = "coordinator" if k % 2 else names[luck.randrange(len(world.names))]
            machines.kill(name)
            machines.start(name)
        machines.wait(rounds)
        machines.running["coordinator"][1].wait(timeout=120)
    return load_round(folder / "last")


def private_rows(folder, world):
    """Everybody's private rows, as they are on the nodes' disks."""
    found = world.model.init(0)["user"]
    for name in world.names:
        (run,) = [place for place in (folder / name).iterdir() if place.is_dir()]
        keeping = Keeping(run)
        for client in keeping.counted:
            ids, values = keeping.of(client)["rows"]["user"]
            found = found.index_copy(0, ids, values)
    return found


def test_killed_nodes_and_coordinators_change_nothing(tmp_path):
    world, rounds = World(), 10
    *_, one = federate(world.model, world.data, SETTINGS.replace(rounds=rounds), local=Scaffold())
    last = disturbed(tmp_path, world, rounds, kills=4)
    assert last.number == rounds
    assert difference(one.params, last.params) < 1e-5
    assert float((private_rows(tmp_path, world) - one.params["user"]).abs().max()) < 1e-5
    assert not torch.equal(one.params["user"], world.model.init(0)["user"])
