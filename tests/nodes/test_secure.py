"""Secure sums over nodes: the sum is right, and nobody's update is in the coordinator's process."""

import gc
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import context
from world import World, difference

from fedlab.algorithms import federate
from fedlab.algorithms.participation import longest_first
from fedlab.core import ParameterError, Settings
from fedlab.engine import SGD
from fedlab.models import MatrixFactorisation
from fedlab.nodes import Coordinator, Loop, Lost, Node, Sockets, gathered, unpack, write_node
from fedlab.privacy import Clip, DistributedGaussian, GaussianNoise, SecureSum
from fedlab.privacy.secure import FixedPoint

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


@pytest.mark.parametrize(("uplink", "settings"), [(PLAIN, USUAL), (PRIVATE, NOISY)])
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
    _first, second, third = far.rounds(USUAL)
    assert not second.skipped
    assert not third.rejected
    gone = set(second.rejected)
    if step in ("keys", "shares", "masked"):
        assert gone
        assert all(10 <= client < 20 for client in gone)
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
    assert "did not open" in second.skipped
    assert not third.skipped
    assert difference(first.params, second.params) == 0


def asked_for(world):
    """A transport that notes the steps of secure sums, and those."""
    steps, line = [], world.loop
    real = line.ask

    def ask(to, seconds):
        steps.extend(unpack(question).head.get("step") for question in to.values())
        return real(to, seconds)

    object.__setattr__(line, "ask", ask)
    return line, steps


def test_a_sum_over_the_clients_of_one_node_is_not_opened():
    line, steps = asked_for(world := World(count=4))
    asked = USUAL.replace(rounds=12, cohort=2, seed=1)
    done = list(Coordinator(line, world.model, uplink=PLAIN).rounds(asked))
    alone = [each for each in done if "is there alone" in each.skipped]
    assert 0 < len(alone) < 12
    assert steps.count("unmask") == 4 * (12 - len(alone))


def test_where_one_node_alone_has_sent_its_vector_nothing_is_opened():
    """The others that are left have no client in the cohort, so the sum would be its own."""
    line, steps = asked_for(world := World(count=4))
    real, lost = line.ask, []

    def ask(to, seconds):
        for name, answer in real(to, seconds):
            head = unpack(to[name]).head
            if head.get("step") == "masked" and head["cohort"] and not lost:
                lost.append(name)
                answer = Lost("gone")  # noqa: PLW2901
            yield name, answer

    object.__setattr__(line, "ask", ask)
    asked = USUAL.replace(rounds=12, cohort=2, seed=1)
    far = Coordinator(line, world.model, uplink=PLAIN, quorum=0.0)
    done = next(each for each in far.rounds(asked) if lost)
    assert "is there alone" in done.skipped
    assert "unmask" not in steps
    assert set(done.rejected.values()) == {f"node {lost[0]}: gone (in a secure sum: masked)"}


def test_one_node_alone_has_no_secure_sum():
    with pytest.raises(ParameterError, match=r"nodes=\['node0'\]: a secure sum over one node"):
        World(count=1).far(uplink=PLAIN)
    with pytest.raises(ParameterError, match="cohort=1: a sum over one client"):
        next(World(count=4).far(uplink=PLAIN).rounds(USUAL.replace(cohort=1)))


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


def test_a_node_notices_that_its_own_identity_is_another(tmp_path):
    world = World(count=4, folder=tmp_path)
    next(world.far(uplink=PLAIN).rounds(USUAL))
    (tmp_path / "node2" / "identity").write_bytes(bytes(32))
    for k, name in enumerate(world.names):
        world.nodes[name] = world.node(k)
    done = next(world.far(uplink=PLAIN).rounds(USUAL))
    own = f"its own identity is not what it was; put it back from a copy: {tmp_path}/node2/identity"
    assert any(own in why for why in done.rejected.values())
    assert "did not open" in done.skipped


@pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")
def test_what_a_node_keeps_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    """Its data, identity, those of others, private rows, and what counted; and what was there."""
    world, before = World(count=4, folder=tmp_path), os.umask(0)
    try:
        (tmp_path / "node0").mkdir(mode=0o777)
        for name in ("data.node", "data.node.new", "identity", "others.json"):
            (tmp_path / "node0" / name).touch(0o666)
        (tmp_path / "node0" / "identity").write_bytes(bytes(32))
        (tmp_path / "node0" / "others.json").write_bytes(b"{}")
        for k, name in enumerate(world.names):
            write_node(tmp_path / name, name, world.own(k))
        far = world.far(uplink=PLAIN)
        *_, last = far.rounds(USUAL)
        far.measure(last)
    finally:
        os.umask(before)
    assert not last.skipped
    found = list(tmp_path.glob("*/**/*"))
    files = {path.name for path in found if path.is_file()}
    assert {"data.node", "identity", "others.json", "counted.json", "state.safetensors"} <= files
    for path in [*found, *map(tmp_path.joinpath, world.names)]:
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} {mode:o}"


def test_noise_in_shares_is_refused():
    with pytest.raises(ParameterError, match="distributed gaussian"):
        World(count=4).far(uplink=[Clip(), DistributedGaussian()])


# What is in the coordinator's process


def held(known=()):
    """Every array of numbers and all bytes in this process but those in `known`, by identity."""
    kinds, every = (torch.Tensor, torch.nn.Parameter, np.ndarray, bytes), gc.get_objects()
    found = [part for part in gc.get_referents(*every) if type(part) in kinds]
    found += [part for part in every if type(part) in kinds]
    return {id(part): part for part in found if id(part) not in known}


def memory(part):
    """The bytes of an array."""
    if isinstance(part, torch.Tensor):
        plain = part.is_cpu and part.layout == torch.strided and not part.is_meta
        part = part.detach().numpy() if plain else np.empty(0)
    return part if isinstance(part, bytes) else part.tobytes() if part.dtype != object else b""


class Watched:
    """A transport that looks, at every answer, for what nobody but nodes should have.

    needles: client -> what of its update to look for, in several forms.
    """

    def __init__(self, line, needles):
        self.line, self.needles, self.seen, self.before = line, needles, set(), held()

    def nodes(self):
        return self.line.nodes()

    def ask(self, to, seconds):
        for name, answer in self.line.ask(to, seconds):
            yield name, answer
            self.look()

    def look(self):
        for part in held(self.before).values():
            text = memory(part)
            for client, forms in self.needles.items():
                if any(form in text for form in forms) and not any(part is f for f in forms):
                    self.seen.add(client)


def needles(world, settings, cohort):
    """A row of each client's clipped update that its node's other clients have not.

    It is as floats and as fixed-point words. A client of another node has the row, too: in the sum
    over all it is another one.
    """
    local, clip = SGD(local_lr=settings.local_lr), Clip(clip=settings.clip)
    see = context(world.model, world.data, local=local)
    clip.begin(see)
    sent = [
        clip.each(replace_deltas(u), see)
        for u in local.train(see, longest_first(world.data, cohort))
    ]
    (sent,) = sent
    rows, found = sent.deltas["item"], {}
    client, node = (
        sent.cohort[rows.client],
        torch.searchsorted(torch.tensor(world.cuts[1:]), sent.cohort[rows.client], right=True),
    )
    for who in cohort.tolist():
        mine = client == who
        here = (node == node[mine][0]) & ~mine
        fit = (
            mine
            & ~torch.isin(rows.ids, rows.ids[here])
            & torch.isin(rows.ids, rows.ids[node != node[mine][0]])
        )
        numbers = rows.values[fit][0].numpy()
        words = FixedPoint(settings.clip * (1 + 2e-5), 1000).encode(numbers.astype(np.float64))
        forms = [numbers, numbers.astype(np.float64), words]
        found[who] = [form.tobytes() for form in forms]
    return found


def replace_deltas(update):
    """The update without what stays with clients."""
    return replace(update, deltas={n: r for n, r in update.deltas.items() if n != "user"})


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
            words = [sys.executable, "-m", "fedlab", "node", tmp_path / name, "--socket", where]
            running.append(subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL))
        try:
            yield world, line, gathered(line, 300, count=4)
        finally:
            for each in running:
                each.kill()
                each.wait()


def test_the_coordinators_process_never_holds_an_update(processes):
    """Without the secure sum the same look finds the update of everybody in the cohort."""
    world, line, roster = processes
    settings = USUAL.replace(rounds=1)
    (one,) = federate(world.model, world.data, settings, uplink=PLAIN)
    known, seen = needles(world, settings, one.cohort), {}
    for name, uplink in (("plain", [Clip()]), ("secure", PLAIN)):
        watched = Watched(line, known)
        far = Coordinator(watched, MatrixFactorisation(dim=4), uplink=uplink, roster=roster)
        (done,) = far.rounds(settings)
        watched.look()
        assert set(done.cohort.tolist()) == set(one.cohort.tolist())
        assert difference(one.params, done.params) < 1e-5
        seen[name] = watched.seen
        del far, watched
    assert seen == {"plain": set(one.cohort.tolist()), "secure": set()}
