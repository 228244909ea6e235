"""Messages: what was packed comes out, and whatever else comes is one error, never a crash."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lies import LIES
from safetensors import torch as safetensors
from world import World, difference

from fedlab.communication import Quantised
from fedlab.core import Rows, Settings
from fedlab.nodes import Coordinator, Loop, Message, MessageError, pack, unpack
from fedlab.nodes.messages import DIGEST, MARK, put_rows, put_tables, rows_from, tables_from

HEAD = {"round": 3, "cohort": [1, 2], "rows": {"w": 0, "b": 0}}


def some_rows(clients=4, height=9, wide=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    held = torch.rand(clients, height, generator=generator) < 0.5
    client, ids = held.nonzero().T
    return Rows(torch.randn(len(ids), wide, generator=generator), ids, client)


def sent(deltas, clients):
    places, tensors = put_rows(deltas, clients)
    return unpack(pack({"rows": places}, tensors))


def test_what_is_packed_comes_out():
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.empty(0), "c": torch.ones(3)[::2]}
    found = unpack(pack(HEAD, tensors))
    assert dict(found.head) == HEAD
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert unpack(pack({})).head == {}


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 300))
def test_rows_of_clients_come_out_to_the_bit(seed, clients, height):
    rows = some_rows(clients, height, seed=seed)
    both = {"w": rows, "b": Rows(rows.values[:, 0], rows.ids, rows.client)}
    found = rows_from(sent(both, clients), clients)
    for name, value in both.items():
        assert torch.equal(found[name].values, value.values)
        assert torch.equal(found[name].ids, value.ids)
        assert torch.equal(found[name].client, value.client)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_coded_rows_take_fewer_bytes_and_come_out_to_the_bit(bits):
    rows, draw = some_rows(4, 900, 16), torch.Generator()
    coded = Rows(Quantised(bits)(rows, 4, 900, draw)[0], rows.ids, rows.client)
    text = pack({"rows": {"w": 0}}, put_rows({"w": coded}, 4)[1])
    found = rows_from(sent({"w": coded}, 4), 4)
    assert torch.equal(found["w"].values, coded.values)
    floats = 4 * rows.values.numel()
    assert len(text) - 4 * len(rows.ids) < floats * (0.15 if bits < 8 else 0.33)
    odd = Rows(coded.values[:3, :1].contiguous(), coded.ids[:3], coded.client[:3])
    assert torch.equal(rows_from(sent({"w": odd}, 4), 4)["w"].values, odd.values)


def test_one_list_of_row_numbers_serves_all_tables_at_these_rows():
    rows = some_rows()
    same = Rows(rows.values[:, 0], rows.ids.clone(), rows.client.clone())
    other = some_rows(seed=1)
    places, tensors = put_rows({"w": rows, "b": same, "v": other}, 4)
    assert places == {"w": 0, "b": 0, "v": 1}
    assert {name for name in tensors if name.startswith("ids")} == {"ids 0", "ids 1"}


def test_rows_of_tables_make_the_tables_anew():
    before = {"w": torch.zeros(4, 2), "b": torch.zeros(4), "c": torch.zeros(1, 3)}
    kinds = {"w": "item", "b": "item", "c": "one"}
    after = {"w": before["w"].clone(), "b": before["b"].clone(), "c": before["c"]}
    after["w"][2], after["b"][3] = 1.0, 2.0
    about, tensors = put_tables(after, kinds, {"item": torch.tensor([2, 3])})
    assert set(tensors) == {"rows item", "table w", "table b"}
    found = tables_from(unpack(pack(about, tensors)), before)
    assert all(torch.equal(found[name], value) for name, value in after.items())
    assert not before["w"].any()


MESSAGE = pack(HEAD | {"tables": {}}, put_rows({"w": some_rows()}, 4)[1])


@given(st.integers(0, len(MESSAGE) - 1))
def test_a_message_that_is_cut_is_an_error(length):
    with pytest.raises(MessageError):
        unpack(MESSAGE[:length])


@given(st.integers(0, len(MESSAGE) - 1), st.integers(1, 255))
def test_a_flipped_bit_is_an_error(place, bits):
    with pytest.raises(MessageError):
        unpack(MESSAGE[:place] + bytes([MESSAGE[place] ^ bits]) + MESSAGE[place + 1 :])


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error(text):
    for start in (b"", MESSAGE[:8], MESSAGE[:24]):
        with pytest.raises(MessageError):
            unpack(start + text)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3)
    ),
    max_leaves=5,
)
NAMES = (
    "ids 0",
    "counts 0",
    "values w",
    "shape w",
    "few w",
    "lengths w",
    "places4 w",
    "table w",
    "rows item",
)
TENSORS = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        lambda shape, kind, low: torch.full(shape, low).to(kind),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([torch.float32, torch.int32, torch.int64, torch.uint8, torch.bool]),
        st.sampled_from([-1.0, 0.0, 1.0, 3.0, float("inf")]),
    ),
)


@given(ANY, TENSORS)
def test_whatever_a_message_says_of_rows_is_rows_or_an_error(said, tensors):
    for about in (said, {"w": said}, {"w": 0}):
        message = Message({"rows": about, "tables": about, "whole": said}, tensors)
        for read in (lambda m: rows_from(m, 2), lambda m: tables_from(m, {"w": torch.zeros(3)})):
            try:
                found = read(message)
            except MessageError:
                continue
            assert isinstance(found, dict)


@given(
    st.dictionaries(st.sampled_from(["ask", "run", "round", "cohort", "counted", "clients"]), ANY)
)
def test_a_node_answers_whatever_it_is_asked(head):
    node = World.small()
    for ask in ("hello", "train", "measure", None):
        question = pack(head if ask is None else head | {"ask": ask})
        answer = unpack(node.answer(question))
        assert "error" in answer.head or (ask == "hello" and "name" in answer.head)
    assert "error" in unpack(node.answer(b"\0")).head


@pytest.mark.parametrize("head", ['{"a":NaN}', '{"a":1', "[1]", "[" * 5000, '"a"', ""])
def test_a_head_that_is_no_json_object_is_refused(head):
    body = safetensors.save({"w": torch.ones(1)}, {"head": head})
    with pytest.raises(MessageError, match=r"form|head"):
        unpack(MARK + hashlib.blake2b(body, digest_size=DIGEST).digest() + body)
    with pytest.raises(ValueError, match="JSON"):
        pack({"a": float("nan")})


def test_a_shape_beyond_all_measure_is_refused():
    shape = torch.tensor([0, 2**31 - 1, 2**31 - 1, 2**31 - 1], dtype=torch.int32)
    none = torch.empty(0)
    about = {"shape w": shape, "few w": none, "lengths w": torch.zeros(1, dtype=torch.int32)}
    about |= {"places4 w": none.byte(), "ids 0": none.int(), "counts 0": about["lengths w"]}
    with pytest.raises(MessageError, match="shape"):
        rows_from(Message({"rows": {"w": 0}}, about), 1)


class Liar(Loop):
    """Carries bytes, and puts a lie in place of one node's answers in round 2."""

    def __init__(self, loop, name, lie):
        super().__init__(loop.answers)
        object.__setattr__(self, "what", (name, lie))

    def ask(self, to, seconds):
        name, lie = self.what
        for who, answer in super().ask(to, seconds):
            train = unpack(to[who]).head
            lies = who == name and train["ask"] == "train" and train["round"] == 2
            yield who, (lie(answer) if lies else answer)


def lied_to(lie, rounds=4):
    """The Rounds of a run in which a node lies in round 2."""
    world = World(users=24)
    far = Coordinator(Liar(world.loop, "node1", lie), world.model, quorum=0.0)
    return list(far.rounds(Settings(rounds=rounds, cohort=12, local_lr=1.0)))


@pytest.mark.parametrize("way", LIES)
def test_a_node_that_lies_is_refused_with_a_reason_and_the_run_goes_on(way):
    rounds = lied_to(LIES[way])
    lost = rounds[1].rejected
    assert lost
    assert all(8 <= client < 16 for client in lost)
    assert all(reason for reason in lost.values())
    assert not rounds[0].rejected
    assert not rounds[2].rejected
    assert not rounds[3].rejected
    assert all(value.isfinite().all() for done in rounds for value in done.params.values())
    gone = lied_to(lambda answer: b"")
    if lost.keys() == gone[1].rejected.keys():  # its clients are lost, and nothing else
        assert difference(rounds[3].params, gone[3].params) == 0
