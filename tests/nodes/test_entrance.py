"""A class beside those who mean it harm: at its door without the code, and inside with lies."""

import json
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import partial

import learner
import pytest
import torch
import waiting
from learner import opened

from fedlab.core import ParameterError
from fedlab.nodes import pack, unpack
from fedlab.nodes.classroom import Entrance, taught, welcome
from fedlab.nodes.classroom import entrance as door
from fedlab.nodes.classroom.entrance import proof
from fedlab.nodes.classroom.teacher import PRIVATE, USUAL
from fedlab.nodes.lines import sockets
from fedlab.nodes.lines.sockets import HEAD, NO, receive_frame, send_frame

PATIENT = 240  # seconds, for a machine that does much else
until = partial(waiting.until, seconds=PATIENT)
comes = partial(learner.comes, patience=PATIENT)
START = {"item": torch.linspace(-0.1, 0.1, 120).view(30, 4), "bias": torch.zeros(30)}


@pytest.fixture
def room():
    with opened(START) as found:
        yield found


def introduced(room, name, code=None):
    """Somebody who knows what is said at the door, and has said it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    line = context.wrap_socket(socket.create_connection(room.where))
    line.settimeout(PATIENT)
    nonce, about = json.loads(receive_frame(line)[1])["nonce"], {"name": name, "token": "t"}
    own = {**about, "nonce": nonce, "proof": proof(code or room.invitation.code, nonce, about)}
    send_frame(line, 0, json.dumps(own).encode())
    return line


def greeted(room, name, code=None):
    """The same, and what is answered."""
    line = introduced(room, name, code)
    return line, receive_frame(line)[1]


# at the door


def test_a_door_without_a_free_file_opens_again(room, monkeypatch):
    """As where somebody opens more connections than a process may have files."""
    tries, accept = [], room._door.accept

    class Full:
        def accept(self):
            tries.append(None)
            if len(tries) < 3:
                raise OSError(24, "Too many open files")
            return accept()

        def __getattr__(self, name):
            return getattr(real, name)

    real = room._door
    monkeypatch.setattr(room, "_door", Full())
    early = greeted(room, "early")[0]  # let in by a call that waits at the real door
    with early, greeted(room, "late")[0]:
        until(lambda: set(room.here()) == {"early", "late"})
    assert len(tries) >= 3


def test_who_says_nothing_takes_the_places_of_an_address_and_no_more(room):
    silent = [socket.create_connection(room.where) for _ in range(3 * door.PLACES)]
    until(lambda: sum("at the entrance already" in line for line in room.said) >= door.PLACES)
    for each in silent:
        each.close()
    until(lambda: not +room._greeting)
    with greeted(room, "late")[0]:
        until(lambda: set(room.here()) == {"late"})


def test_one_more_than_the_limit_reads_why_and_comes_in_when_a_place_is_free():
    said = []
    with Entrance("127.0.0.1:0", limit=2, say=said.append) as room:
        room.open(welcome(START, learner.few().catalogue))
        with comes(room, slice="1 of 5", name="a"), comes(room, slice="2 of 5", name="b") as b:
            with pytest.raises(ParameterError, match="no room: 2 are here already, which is the l"):
                comes(room, slice="3 of 5", name="c")
            assert set(room.here()) == {"a", "b"}
            assert any("c was not let in: there is no room" in line for line in said)
            b.leave()
            until(lambda: set(room.here()) == {"a"})
            with comes(room, slice="3 of 5", name="c"):
                assert set(room.here()) == {"a", "c"}
    for bad in (0, 1001):
        with pytest.raises(ParameterError, match=f"limit={bad}: choose from 1 to 1000"):
            Entrance("127.0.0.1:0", limit=bad)


def test_many_who_come_at_once_are_no_more_than_the_limit():
    with Entrance("127.0.0.1:0", limit=3) as room:
        room.open(b"")
        told = []

        def come(k):
            told.append(greeted(room, str(k)))

        people = [threading.Thread(target=come, args=(k,)) for k in range(9)]
        for each in people:
            each.start()
        for each in people:
            each.join(PATIENT)
        assert len(room.here()) == 3
        assert sum(text.startswith(NO + b"there is no room") for _, text in told) == 6
        for line, _ in told:
            line.close()


def test_who_does_not_read_its_welcome_is_let_go(monkeypatch):
    monkeypatch.setattr(sockets, "WELCOMED", 0.5)
    said = []
    with Entrance("127.0.0.1:0", say=said.append) as room:
        room.open(bytes(1 << 25))  # more than both ends hold for it
        with introduced(room, "still"):
            until(lambda: "still has gone." in said)
        assert not room.here()


def test_a_wrong_code_keeps_its_place_so_guesses_are_few(room, monkeypatch):
    slept = threading.Event()
    naps = []
    monkeypatch.setattr(door, "WRONG", 0.25)
    monkeypatch.setattr(door.time, "sleep", lambda s: (naps.append(s), slept.set()))
    line, told = greeted(room, "x", code="22222222")
    line.close()
    assert told.startswith(NO + b"the join code is wrong")
    assert slept.is_set()
    assert 0.25 in naps


def test_a_greeting_that_comes_byte_by_byte_has_an_end(room, monkeypatch):
    """Each byte comes in time, and all together do not."""
    monkeypatch.setattr(door, "GREETING", 0.5)
    with socket.create_connection(room.where) as line, suppress(OSError):
        line.sendall(bytes.fromhex("1603013e80"))  # a TLS record of 16,000 bytes follows
        for _ in range(4000):
            line.sendall(b"\x01")
            time.sleep(0.05)
            if room.said:
                break
        else:
            pytest.fail("it was waited for to its end")
    assert any("did not speak TLS" in each for each in room.said)


def test_who_was_let_go_is_gone_though_it_does_not_hang_up(room):
    line, _ = greeted(room, "still")
    with line:
        until(room.here)
        room.dismiss("still", "it says nothing")
        until(lambda: not room.here())
    assert "still has gone." in room.said


# inside


def lies(me, change):
    """Let a learner's answers be changed: change(kind of question, head, tensors)."""
    true = me.node.answer

    def answer(question):
        said = unpack(true(question))
        head, tensors = dict(said.head), dict(said.tensors)
        change(unpack(question).head["ask"], head, tensors)
        return pack(head, tensors)

    me.node.answer = answer


def _other_draws(kind, head, tensors):
    if kind == "hello":
        head["negatives"] = False


def _many_users(kind, head, tensors):
    if kind == "hello":
        head["users"], tensors["counts"] = 2_000_000, torch.ones(2_000_000, dtype=torch.int64)


def _heavy(kind, head, tensors):
    if kind == "hello":
        tensors["counts"] = torch.full_like(tensors["counts"], 2**40)


@pytest.mark.parametrize("lie", [_other_draws, _many_users, _heavy])
def test_who_lies_of_itself_is_let_go_and_the_class_goes_on(room, lie):
    with comes(room, slice="1 of 5", name="a"), comes(room, slice="2 of 5", name="liar") as liar:
        lies(liar, lie)
        done = list(taught(room, START, USUAL.replace(rounds=1), seconds=PATIENT))
    assert [each.number for each in done] == [0, 1]
    assert len(done[1].cohort) == 4  # of slice 1 of 5
    assert any("liar was let go" in line for line in room.said)


@pytest.mark.parametrize(
    "more", [{"epsilon": 0.0}, {"\x1b[31mmine": 1.0}, {"squares": 1.0}, {"count": 1e14}]
)
def test_nobody_tells_another_metric_or_more_than_its_users(room, more):
    def lie(kind, head, tensors):
        if kind == "measure":
            head["sums"] = {**head["sums"], **more}

    with comes(room, slice="1 of 5", name="a"), comes(room, slice="2 of 5", name="liar") as liar:
        lies(liar, lie)
        done = list(taught(room, START, PRIVATE.replace(rounds=1), seconds=PATIENT, private=True))
    assert [set(each.metrics) - {"epsilon"} for each in done] == [
        {"hr@10", "ndcg@10", "lost nodes"}
    ] * 2
    assert done[1].metrics["epsilon"] > 0
    assert done[1].metrics["lost nodes"] == 1


def test_what_a_learner_says_is_one_line_without_control_characters(room):
    def lie(kind, head, tensors):
        if kind == "train":
            head.clear()
            head["error"] = "\x1b[2J\nRound 9: all is well\x9b"

    with comes(room, slice="1 of 5", name="a"), comes(room, slice="2 of 5", name="liar") as liar:
        lies(liar, lie)
        *_, last = taught(room, START, USUAL.replace(rounds=1), seconds=PATIENT)
    assert {*last.rejected.values()} == {"node liar:  [2J Round 9: all is well "}


def test_a_round_waits_for_those_who_are_all_at_work_still(room):
    """Or a class of slow laptops would be over right after its first round."""
    with comes(room, slice="1 of 5", name="a") as me:
        list(
            taught(room, START, USUAL.replace(rounds=1), seconds=PATIENT)
        )  # what is done once is done
        true, awake = me.node.answer, threading.Event()

        def slow(question):
            if unpack(question).head["ask"] == "train":
                awake.wait(PATIENT)
            return true(question)

        me.node.answer = slow
        rounds = taught(room, START, USUAL.replace(rounds=2), seconds=8)
        next(rounds)
        assert next(rounds).skipped
        awake.set()
        (second,) = rounds
    assert second.number == 2
    assert not second.skipped
    assert len(second.cohort) == 4


@pytest.mark.parametrize(("number", "length"), [(7, 1 << 30), (7, 10), (0, 0)])
def test_who_sends_what_nobody_asked_for_is_let_go_before_it_is_received(room, number, length):
    line, _ = greeted(room, "eve")
    until(lambda: "eve" in room.here())
    line.sendall(HEAD.pack(number, length))  # and no more, so that waiting for it would show
    until(lambda: "eve" not in room.here())
    line.close()


def test_an_answer_that_is_larger_than_any_update_ends_the_connection(room):
    line, _ = greeted(room, "eve")
    until(lambda: "eve" in room.here())
    found = []
    asking = threading.Thread(target=lambda: found.extend(room.ask({"eve": b"?"}, PATIENT)))
    asking.start()
    number, _ = receive_frame(line)
    line.sendall(HEAD.pack(number, room.longest + 1))
    asking.join(PATIENT)
    assert [lost.why for _, lost in found] == ["its connection broke"]
    line.close()
