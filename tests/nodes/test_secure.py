"""Secure sums over nodes: the sum is right, and nobody's update is in the coordinator's process."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from world import World, difference

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Settings
from fedlab.engine import updates
from fedlab.models import MatrixFactorisation
from fedlab.nodes import Coordinator, Loop, Lost, Node, Sockets, gathered, unpack, write_node
from fedlab.privacy import Clip, DistributedGaussian, GaussianNoise, SecureSum

USUAL = Settings(rounds=3, cohort=12, local_lr=1.0, server_lr=5.0, clip=0.5)
NOISY = USUAL.replace(teaching_seed=1, delta=1e-3, noise=0.5)
PLAIN, PRIVATE = [Clip(), SecureSum()], [Clip(), SecureSum(), GaussianNoise()]


class Failing(Loop):
    """Carries bytes, and loses nodes at a step of the secure sum of round 2."""

    def __init__(self, loop, names, step):
        super().__init__(loop.answers)
        object.__setattr__(self, "what", (names, step))
        object.__setattr__(self, "sums", [])

    def ask(self, to, seconds):
        names, step = self.what
        for name, answer in super().ask(to, seconds):
            head = unpack(to[name]).head
            if head["ask"] == "secure" and head["sum"] not in self.sums:
                self.sums.append(head["sum"])
            gone = name in names and head.get("step") == step and len(self.sums) == 2
            yield name, Lost("its connection broke") if gone else answer


@pytest.mark.parametrize("uplink, settings", [(PLAIN, USUAL), (PRIVATE, NOISY)])
def test_the_sum_is_that_of_one_process(uplink, settings):
    world = World(count=4)
    ones = federate(world.model, world.data, settings, uplink=uplink)
    far = world.far(uplink=uplink)
    for one, there in zip(ones, far.rounds(settings), strict=True):
        assert difference(one.params, there.params) < 1e-5
        assert set(one.cohort.tolist()) == set(there.cohort.tolist())
        assert not there.norms.any()  # nobody has seen one
        assert there.loss == pytest.approx(one.loss, rel=0.2)
    far.measure(there)
    assert float((world.private(there) - one.params["user"]).abs().max()) < 1e-5


@pytest.mark.parametrize("step", ["keys", "shares", "masked", "arrived", "unmask"])
def test_a_node_that_drops_out_is_not_missed(step):
    """Before its vector its clients are missing from the sum; afterwards they are in it."""
    world = World(count=4)
    far = Coordinator(Failing(world.loop, {"node1"}, step), world.model, uplink=PLAIN, quorum=0.0)
    first, second, third = far.rounds(USUAL)
    assert not second.skipped and not third.rejected
    gone = {client for client in second.rejected}
    if step in ("keys", "shares", "masked"):
        assert gone and all(10 <= client < 20 for client in gone)
        assert all(f"in a secure sum: {step}" in why for why in second.rejected.values())
    else:
        assert not gone
    whole = World(count=4).far(uplink=PLAIN).rounds(USUAL)
    next(whole)
    same = difference(next(whole).params, second.params) < 1e-6
    assert same == (step in ("arrived", "unmask"))


@pytest.mark.parametrize("step", ["keys", "masked", "unmask"])
def test_with_fewer_than_two_thirds_nothing_opens(step):
    world = World(count=4)
    line = Failing(world.loop, {"node1", "node2"}, step)
    first, second, third = Coordinator(line, world.model, uplink=PLAIN).rounds(USUAL)
    assert "did not open" in second.skipped and not third.skipped
    assert difference(first.params, second.params) == 0


def test_identities_are_known_from_the_first_time(tmp_path):
    world = World(count=4, folder=tmp_path)
    key = gathered(world.loop).keys
    next(world.far(uplink=PLAIN).rounds(USUAL))
    world.nodes["node2"] = world.node(2)
    assert gathered(world.loop).keys == key
    other = Node("node2", world.own(2), tmp_path / "other", model=world.nodes["node2"]._model)
    world.nodes["node2"] = other
    done = next(world.far(uplink=PLAIN).rounds(USUAL))
    assert "did not open" in done.skipped
    assert any("identity of node node2 is not the one" in why for why in done.rejected.values())


def test_noise_in_shares_is_refused():
    with pytest.raises(ParameterError, match="distributed gaussian"):
        World(count=4).far(uplink=[Clip(), DistributedGaussian()])


# What is in the coordinator's process


def arrays():
    """Every array of numbers, and all bytes, in this process, as numpy arrays and bytes."""
    for each in gc.get_objects():
        for part in (each, *gc.get_referents(each)):
            if isinstance(part, torch.Tensor) and part.is_cpu and part.layout == torch.strided:
                yield part.detach().numpy()
            elif isinstance(part, np.ndarray | bytes):
                yield part


class Watched:
    """A transport that looks, at every answer, for numbers that nobody but nodes should have."""

    def __init__(self, line, needles):
        self.line, self.needles, self.seen, self.looked = line, needles, set(), 0

    def nodes(self):
        return self.line.nodes()

    def ask(self, to, seconds):
        for name, answer in self.line.ask(to, seconds):
            if isinstance(answer, bytes):
                self.look(unpack(answer).tensors.values(), answer)
            yield name, answer
            self.look(arrays(), b"")

    def look(self, found, text):
        self.looked += 1
        for what, (numbers, raw) in self.needles.items():
            if raw in text:
                self.seen.add(what)
            for each in found if not isinstance(found, set) else ():
                self._look_in(what, numbers, raw, each)

    def _look_in(self, what, numbers, raw, each):
        if isinstance(each, bytes):
            if raw in each:
                self.seen.add(what)
            return
        each = each.detach().numpy() if isinstance(each, torch.Tensor) else each
        if each.dtype.kind == "f" and each.size >= len(numbers):
            near = np.isin(np.round(numbers.astype(np.float64), 7), np.round(each.ravel().astype(np.float64), 7))
            if near.all():
                self.seen.add(what)


def needles(world, settings):
    """Some numbers of what each client sends in round 1, clipped: what -> (numbers, their bytes)."""
    params = world.model.init(0)
    found = {}
    for update in updates(world.model, world.data, params, torch.arange(40), local(settings)):
        for place, client in enumerate(update.cohort.tolist()):
            rows = update.deltas["item"]
            own = rows.values[rows.client == place]
            bias = update.deltas["bias"]
            square = own.square().sum() + bias.values[bias.client == place].square().sum()
            scaled = own * min(1.0, settings.clip / float(square.sqrt()))
            some = scaled[:4].flatten().numpy().copy()
            found[client] = some, some.tobytes()
    return found


def local(settings):
    from fedlab.engine import SGD

    return SGD(local_lr=settings.local_lr)


@pytest.fixture
def processes(tmp_path):
    """Four nodes, each a process, and the line to them."""
    if os.name != "posix":
        pytest.skip("there are no Unix sockets")
    world, running = World(count=4), []
    where = str(tmp_path / "line")
    with Sockets(where) as line:
        for k, name in enumerate(world.names):
            write_node(tmp_path / name, name, world.own(k))
            words = [sys.executable, "-m", "fedlab", "node", str(tmp_path / name), "--socket", where]
            running.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        try:
            yield world, line, gathered(line, 120, count=4)
        finally:
            for each in running:
                each.kill()
                each.wait()


def test_the_coordinators_process_never_holds_an_update(processes):
    """Without the secure sum the same look finds the cohort's updates in it."""
    world, line, roster = processes
    settings, seen = USUAL.replace(rounds=1), {}
    known = needles(world, settings)
    for name, uplink in (("plain", [Clip()]), ("secure", PLAIN)):
        watched = Watched(line, dict(known))
        far = Coordinator(watched, MatrixFactorisation(dim=4), uplink=uplink, roster=roster)
        (done,) = far.rounds(settings)
        assert watched.looked and not done.rejected
        seen[name] = watched.seen, set(done.cohort.tolist())
        del far, done
        gc.collect()
    assert seen["plain"][0] >= seen["plain"][1]
    assert seen["secure"][1] == seen["plain"][1]
    assert seen["secure"][0] == set()
