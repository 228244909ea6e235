"""Sockets: who is there, who is gone, who comes back, and who is not let in."""

import os
import socket
import threading
import time
from contextlib import suppress

import pytest
from world import World, difference

from fedlab.core import ParameterError, Settings
from fedlab.nodes import Coordinator, Lost, Sockets, gathered, serve
from fedlab.nodes.lines import sockets
from fedlab.nodes.lines.sockets import HEAD, address

unix = pytest.mark.skipif(os.name != "posix", reason="there are no Unix sockets")


def wherever(kind, tmp_path):
    return str(tmp_path / "line") if kind == "unix" else "127.0.0.1:0"


def told(line):
    """The address of a coordinator as nodes are told it."""
    return line.where if isinstance(line.where, str) else "{}:{}".format(*line.where)


def begin(name, answer, where, patience=1.0):
    thread = threading.Thread(
        target=serve, args=(name, answer, where), kwargs={"patience": patience}, daemon=True
    )
    thread.start()
    return thread


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [pytest.param("unix", marks=unix), "tcp"])
def test_a_run_over_sockets_is_as_over_a_loop(kind, tmp_path):
    world, settings = World(), Settings(rounds=3, cohort=12, local_lr=1.0)
    *_, one = World().far().rounds(settings)
    with Sockets(wherever(kind, tmp_path)) as line:
        for name, node in world.nodes.items():
            begin(name, node.answer, told(line))
        roster = gathered(line, 20, count=3)
        assert roster.names == tuple(world.names)
        *_, there = Coordinator(line, world.model, roster=roster).rounds(settings)
    assert difference(one.params, there.params) < 1e-6


def test_questions_are_asked_side_by_side_and_answers_come_as_they_are_there():
    late = threading.Event()

    def slow(question):
        late.wait(20)
        return b"slow"

    with Sockets("127.0.0.1:0") as line:
        begin("slow", slow, told(line))
        begin("quick", bytes.upper, told(line))
        until(lambda: len(line.nodes()) == 2)
        answers = line.ask({"slow": b"a", "quick": b"b", "nobody": b"c"}, 20)
        first = dict([next(answers), next(answers)])
        assert first == {"quick": b"B", "nobody": Lost("it is not there")}
        late.set()
        assert list(answers) == [("slow", b"slow")]


def test_nobody_waits_for_a_node_that_owes_an_answer():
    """A late answer is not taken for that of another question, and ends the waiting."""
    late = threading.Event()

    def slow(question):
        if question == b"first":
            late.wait(20)
        return question

    with Sockets("127.0.0.1:0") as line:
        begin("slow", slow, told(line))
        until(lambda: line.nodes() == {"slow": ""})
        found = dict(line.ask({"slow": b"first"}, 0.1))
        assert found == {"slow": Lost("it did not answer within 0.1 s")}
        why = "it has not answered an earlier question yet"
        assert line.nodes() == {"slow": why}
        assert dict(line.ask({"slow": b"second"}, 600)) == {"slow": Lost(why)}
        late.set()
        until(lambda: line.nodes() == {"slow": ""})
        assert dict(line.ask({"slow": b"second"}, 20)) == {"slow": b"second"}


def test_a_broken_connection_is_noticed_at_once_and_the_node_comes_back():
    with Sockets("127.0.0.1:0") as line:
        host = socket.create_connection(line.where)
        text = b'{"name": "a", "token": "x"}'
        host.sendall(HEAD.pack(0, len(text)) + text)
        until(lambda: line.nodes() == {"a": ""})
        answers = line.ask({"a": b"question"}, 600)
        threading.Timer(0.2, lambda: host.shutdown(socket.SHUT_RDWR)).start()
        assert next(answers) == ("a", Lost("its connection broke"))
        host.close()
        assert line.nodes() == {"a": "its connection broke"}
        assert dict(line.ask({"a": b"again"}, 600)) == {"a": Lost("its connection broke")}
        begin("a", bytes.upper, told(line))
        until(lambda: line.nodes() == {"a": ""})
        assert dict(line.ask({"a": b"again"}, 20)) == {"a": b"AGAIN"}


@unix
def test_nodes_wait_for_a_coordinator_and_find_the_next_one(tmp_path):
    where = str(tmp_path / "line")
    begin("a", bytes.upper, where, patience=60)
    for _ in range(2):
        with Sockets(where) as line:
            until(lambda line=line: line.nodes() == {"a": ""})
            assert dict(line.ask({"a": b"x"}, 20)) == {"a": b"X"}
            with pytest.raises(ParameterError, match="another coordinator"):
                Sockets(where)


def test_two_nodes_of_one_name_are_told():
    with Sockets("127.0.0.1:0") as line:
        begin("a", bytes.upper, told(line), patience=60)
        until(lambda: line.nodes() == {"a": ""})
        with pytest.raises(ParameterError, match="another node has this name"):
            serve("a", bytes.lower, told(line))
        assert line.twice == {"a"}
        assert dict(line.ask({"a": b"x"}, 20)) == {"a": b"X"}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD.pack(0, 1 << 60),
        HEAD.pack(0, 2) + b"{}",
        HEAD.pack(0, 5) + b"[" * 5,
        HEAD.pack(0, 26) + b'{"name": "", "token": "x"}',
        HEAD.pack(0, 24) + b'{"name": 3, "token": ""}',
        HEAD.pack(0, 100) + b"{",
    ],
)
def test_who_does_not_say_a_name_is_let_go(sent):
    with Sockets("127.0.0.1:0") as line:
        with socket.create_connection(line.where) as other:
            other.settimeout(20)
            with suppress(OSError):  # it may be let go before it is done
                other.sendall(sent)
                other.shutdown(socket.SHUT_WR)
                assert other.recv(10) == b""
        assert line.nodes() == {}


def test_a_greeting_that_comes_byte_by_byte_has_an_end(monkeypatch):
    """Each byte comes in time, and all together do not."""
    monkeypatch.setattr(sockets, "GREETING", 0.5)
    said = []
    with (
        Sockets("127.0.0.1:0", say=said.append) as line,
        suppress(OSError),
        socket.create_connection(line.where) as other,
    ):
        other.sendall(HEAD.pack(0, 1 << 14))
        for _ in range(4000):
            other.sendall(b" ")
            time.sleep(0.05)
            if said:
                break
        else:
            pytest.fail("it was waited for to its end")
    assert any("not let in" in each for each in said)


def test_addresses_off_this_machine_are_refused(tmp_path):
    for text in ("0.0.0.0:7000", "example.org:80", "127.0.0.1:x", "127.0.0.1:99999", "", "x" * 200):
        with pytest.raises(ParameterError, match="socket"):
            address(text)
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(ParameterError, match="a file is there"):
        Sockets(str(taken))
    with Sockets("127.0.0.1:0") as line, pytest.raises(ParameterError, match="cannot listen"):
        Sockets(told(line))


def test_somebody_who_is_no_coordinator_is_not_waited_for():
    """It lets in whoever comes, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        where, said = f"127.0.0.1:{door.getsockname()[1]}", []
        with pytest.raises(ParameterError, match=f"{where}.*no coordinator was there within 0.5 s"):
            serve("a", bytes.upper, where, patience=0.5, say=said.append)
    assert where in said[0]


def test_patience_counts_from_when_the_coordinator_went():
    with Sockets("127.0.0.1:0") as line:
        where = told(line)
        thread = begin("a", bytes.upper, where, patience=3.0)
        until(lambda: not line.nodes().get("a", "away"))
        time.sleep(3.2)  # connected all the time, and asked nothing
    with Sockets(where) as line:
        until(lambda: not line.nodes().get("a", "away"))
    thread.join(20)
    assert not thread.is_alive()
