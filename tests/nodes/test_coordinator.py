"""The coordinator: who is there, what is asked of whom, what is measured, and who is refused."""

import pytest
import torch
from world import Table, World, difference, rounds_and_bytes

from fedlab.algorithms import Meta, Scaffold, federate
from fedlab.attacks import Poison
from fedlab.communication import ErrorFeedback
from fedlab.core import REGISTRY, ParameterError, Settings, Stage, load_round, register, save_round
from fedlab.core.knobs import _described
from fedlab.data import Federation, load, of_users, one_per_user, split_by_time, standardise
from fedlab.evaluation import ranking, rmse, scorer
from fedlab.models import MatrixFactorisation, perceptron
from fedlab.nodes import Coordinator, Held, Loop, Lost, Node, gathered, pack, unpack
from fedlab.privacy import Clip, GaussianNoise

USUAL = Settings(rounds=4, cohort=12, local_lr=1.0, server_lr=5.0)


class Flaky(Loop):
    """Carries bytes, and loses the answers of some nodes in some rounds."""

    def __init__(self, loop, lost):
        super().__init__(loop.answers)
        object.__setattr__(self, "lost", lost)

    def ask(self, to, seconds):
        for name, answer in super().ask(to, seconds):
            head = unpack(to[name]).head
            gone = head.get("round") in self.lost.get(name, ())
            yield name, Lost("its connection broke") if gone else answer


def test_metrics_over_nodes_are_those_of_one_process():
    world = World()
    far = world.far()
    for done in far.rounds(USUAL):
        found = far.measure(done)
        params = {**done.params, "user": world.private(done)}
        assert found == pytest.approx(ranking(scorer(world.model, params), world.held))
    assert 0 < found["ndcg@10"] < found["hr@10"] < 1


def test_errors_of_ratings_over_nodes_are_those_of_one_process():
    split = standardise(split_by_time(load()))
    few = torch.arange(split.train.user_count) < 20
    train, held = of_users(split.train, few), of_users(split.validation, few)
    model = MatrixFactorisation(dim=4).build(train, "ratings")
    nodes, answers = [], {}
    for first in (0, 10):
        here = (torch.arange(20) >= first) & (torch.arange(20) < first + 10)
        own = of_users(train, here)
        data = Federation(own, one_per_user(own), "ratings")
        node = Node(f"n{first}", data, held=Held(ratings=of_users(held, here), std=split.std))
        nodes.append(node)
        answers[node.name] = node.answer
    settings = Settings(rounds=3, cohort=20, local_lr=0.1)
    far = Coordinator(Loop(answers), MatrixFactorisation(dim=4))
    *_, done = far.rounds(settings)
    *_, one = federate(model, Federation(train, one_per_user(train), "ratings"), settings)
    score = scorer(model, one.params)
    by_hand = rmse(score(held.users, held.items), held.values) * split.std
    assert far.measure(done)["rmse"] == pytest.approx(by_hand, rel=1e-5)


def test_lost_nodes_are_lost_clients_with_a_reason():
    world = World()
    line = Flaky(world.loop, {"node1": {2, 3}})
    far = Coordinator(line, world.model, quorum=0.0)
    first, second, third, last = far.rounds(USUAL)
    assert not first.rejected
    assert not last.rejected
    for done in (second, third):
        assert done.rejected
        assert len(done.cohort) + len(done.rejected) == 12
        assert set(done.rejected.values()) == {"node node1: its connection broke"}
        assert all(13 <= client < 26 for client in done.rejected)


def test_what_did_not_count_trains_nobody_twice():
    """A lost answer leaves its clients' private rows as they were, though the node had trained."""
    world = World()
    far = Coordinator(Flaky(world.loop, {"node1": {2}}), world.model, quorum=0.0)
    rounds = far.rounds(USUAL)
    first, second = next(rounds), next(rounds)
    far.measure(second)
    rows = world.private(second)
    untouched = [client for client in second.rejected if client not in first.cohort]
    assert untouched
    assert torch.equal(rows[untouched], world.model.init(0)["user"][untouched])
    moved = second.cohort.tolist()
    assert not torch.equal(rows[moved], world.model.init(0)["user"][moved])


def test_fewer_than_a_quorum_skip_the_round():
    world = World()
    far = Coordinator(Flaky(world.loop, {"node0": {2}, "node1": {2}}), world.model, quorum=0.6)
    first, second, *_ = far.rounds(USUAL)
    assert "quorum of 0.6" in second.skipped
    assert not first.skipped
    assert difference(first.params, second.params) == 0
    assert set(second.rejected.values()) == {f"node node{k}: its connection broke" for k in (0, 1)}


def test_nobody_at_all_skips_the_round():
    world = World()
    gone = {name: {2} for name in world.names}
    rounds = Coordinator(Flaky(world.loop, gone), world.model, quorum=0.0).rounds(USUAL)
    assert [done.skipped != "" for done in rounds] == [False, True, False, False]


@pytest.mark.parametrize("local", [None, Scaffold()])
def test_a_coordinator_that_goes_on_from_a_checkpoint_is_as_one_that_never_stopped(tmp_path, local):
    world, again = World(folder=tmp_path / "a"), World(folder=tmp_path / "b")
    rounds = list(world.far(local=local).rounds(USUAL))
    for done in again.far(local=local).rounds(USUAL):
        if done.number == 2:
            save_round(done, tmp_path / "last")
        if done.number == 3:  # two rounds beyond the checkpoint nodes were told
            break
    again.nodes = {name: again.node(k) for k, name in enumerate(again.names)}
    far = again.far(local=local)
    *_, last = far.rounds(USUAL, start=load_round(tmp_path / "last"))
    assert difference(rounds[-1].params, last.params) == 0
    far.measure(last), world.far(local=local).measure(rounds[-1])
    assert torch.equal(world.private(last), again.private(last))


def test_a_node_that_comes_back_gets_its_tables_whole(tmp_path):
    world = World(folder=tmp_path)
    far = world.far()
    rounds = far.rounds(USUAL)
    next(rounds)
    world.nodes["node1"] = world.node(1)
    second, third = next(rounds), next(rounds)
    assert not second.rejected
    assert second.bytes_down > third.bytes_down


def test_a_node_gets_the_rows_that_changed_since_it_last_answered():
    """Down go 4 bytes a number of these rows; up, what one process counts; 5% beside."""
    world = World(users=120, dim=32)
    settings = USUAL.replace(cohort=40, rounds=6)
    for done, down, up in rounds_and_bytes(world, settings):
        assert down <= done.bytes_down <= 1.05 * down
        assert done.bytes_up <= 1.05 * up


def test_a_codec_saves_bytes_on_the_wire():
    world, settings = World(dim=16), USUAL.replace(codec="4 bits")
    *_, plain = world.far().rounds(USUAL)
    *_, coded = World(dim=16).far(uplink=[ErrorFeedback()]).rounds(settings)
    assert coded.bytes_up < 0.3 * plain.bytes_up


def test_private_runs_do_without_counts():
    world = World()
    roster = gathered(world.loop, told=False)
    assert set(roster.counts.tolist()) == {1}
    parts = {"uplink": [Clip(), GaussianNoise()], "roster": roster}
    settings = USUAL.replace(teaching_seed=1, delta=1e-3)
    *_, done = world.far(**parts).rounds(settings)
    assert done.metrics["epsilon"] > 0


def test_an_update_longer_than_the_clip_is_refused():
    """A node that does not clip gains nothing."""
    world = World()
    honest = world.nodes["node1"].answer

    def unclipped(question):
        found = unpack(question)
        if found.head["ask"] == "train":
            found.head["settings"]["clip"] = 100.0
        return honest(pack(found.head, found.tensors))

    loop = Loop({**world.loop.answers, "node1": unclipped})
    far = Coordinator(loop, world.model, uplink=[Clip()], quorum=0.0)
    (done,) = far.rounds(USUAL.replace(rounds=1, clip=0.01))
    assert done.rejected
    assert set(done.rejected.values()) == {"it is longer than the clip of 0.01"}
    assert all(13 <= client < 26 for client in done.rejected)
    assert float(done.norms.max()) <= 0.01 * (1 + 1e-5)


def test_an_attack_on_a_node_is_as_in_one_process():
    world, settings = World(), USUAL.replace(liars=0.3)
    *_, one = federate(world.model, world.data, settings, uplink=[Poison()])
    *_, there = world.far(uplink=[Poison()]).rounds(settings)
    assert difference(one.params, there.params) < 1e-5


@pytest.fixture(autouse=True, scope="module")
def known():
    """Parts of this file alone."""
    register(Shrink)
    yield
    del REGISTRY[Shrink.kind][Shrink.name]
    _described.clear()


class Shrink(Stage):
    """A stage with an argument that no message can carry."""

    by: object = None


def test_what_cannot_go_over_nodes_is_refused():
    world = World()
    for parts, words in (
        ({"local": Meta()}, "write `tells`"),
        ({"uplink": [Clip(quantile=0.5)]}, "quantile=0.5"),
        ({"uplink": [Poison(clients=torch.tensor([1]))]}, "poison.clients"),
        ({"uplink": [Shrink(by=object())]}, "shrink.by"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"quorum": 2.0}, "quorum=2.0"),
    ):
        with pytest.raises(ParameterError, match=words):
            world.far(**parts)
    with pytest.raises(ParameterError, match="data"):
        Node("a", world.far().data)


def test_nodes_that_do_not_fit_together_are_refused():
    world, table = World(users=6), Table()
    loop = Loop({**world.loop.answers, **{n: node.answer for n, node in table.nodes.items()}})
    with pytest.raises(ParameterError, match="numbers of items"):
        Coordinator(loop, world.model)
    stars = World(users=6, task="ratings").nodes["node0"]
    with pytest.raises(ParameterError, match="different tasks"):
        Coordinator(Loop({**world.loop.answers, "stars": stars.answer}), world.model)
    with pytest.raises(ParameterError, match=r"0 of 1 are there within 0.1 s"):
        Coordinator(Loop({}), world.model, seconds=0.1)
    with pytest.raises(ParameterError, match=r"form|message"):
        Coordinator(Loop({"n": lambda question: b"hello"}), world.model)


def test_a_node_with_another_model_is_lost_with_a_reason():
    table = Table()
    table.nodes["n1"]._model = lambda data: perceptron(5, 9)
    (done,) = table.far(quorum=0.0).rounds(Settings(rounds=1, cohort=12))
    assert sorted(done.rejected) == [4, 5, 6, 7]
    assert "the model here has" in done.rejected[4]


def test_a_node_that_lost_its_disk_says_so(tmp_path):
    world = World(folder=tmp_path)
    rounds = world.far(quorum=0.0).rounds(USUAL.replace(cohort=40))
    next(rounds)
    world.nodes["node1"] = Node(
        "node1", world.own(1), tmp_path / "elsewhere", model=world.nodes["node1"]._model
    )
    second = next(rounds)
    assert len(second.rejected) == 13
    assert "it has no update of client" in second.rejected[13]


def test_another_run_begins_anew_and_a_round_of_other_settings_is_refused():
    world = World()
    *_, first = world.far().rounds(USUAL)
    *_, again = world.far().rounds(USUAL)
    assert difference(first.params, again.params) == 0
    with pytest.raises(ParameterError, match="start"):
        next(world.far().rounds(USUAL.replace(rounds=9, seed=1), start=first))
    with pytest.raises(ParameterError, match="start"):
        next(federate(world.model, world.data, USUAL.replace(rounds=9), start=first))
