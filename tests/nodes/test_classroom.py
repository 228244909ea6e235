"""A class: who is let in and who is not, what learners get, and eight of them as processes."""

import io
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import waiting
from learner import comes, few, opened
from safetensors.torch import save_file

from fedlab.__main__ import main
from fedlab.core import ParameterError
from fedlab.data import load
from fedlab.nodes import Lost, join
from fedlab.nodes.classroom import PRIVATE, USUAL, Entrance, Invitation, started, taught
from fedlab.nodes.classroom.entrance import proof
from fedlab.nodes.classroom.learner import fitted, rated, sliced
from fedlab.nodes.lines.sockets import NO, receive_frame, send_frame

PATIENT = 240  # seconds, for a machine that does much else
until = partial(waiting.until, seconds=PATIENT)


@cache
def model():
    return started(few(), dim=4, rounds=5)


@pytest.fixture
def room():
    with opened(model()) as found:
        yield found


def test_an_invitation_is_read_as_it_is_written():
    text = "7GH2KMNP@example.org:7000#" + "0f" * 16
    assert str(Invitation.read(f" {text}\n")) == text
    for bad in ("", "x", None, text[1:], text[:-1], text.replace("7000", "70000"), text + "\nx"):
        with pytest.raises(ParameterError, match="copy the whole line"):
            Invitation.read(bad)


def test_two_classes_have_codes_and_certificates_of_their_own():
    with Entrance("127.0.0.1:0") as one, Entrance("127.0.0.1:0") as other:
        assert one.where[0] == other.where[0] == "127.0.0.1"
        assert one.invitation.code != other.invitation.code
        assert one.invitation.fingerprint != other.invitation.fingerprint


@pytest.mark.parametrize("where", ["", "7000", "0.0.0.0:7000", "127.0.0.1:x", "/tmp/x", ":7000"])
def test_an_address_is_one_that_learners_can_type(where):
    with pytest.raises(ParameterError, match="address that learners will type"):
        Entrance(where)


def test_questions_and_answers_pass_in_both_directions_at_once(room):
    """More bytes than a socket holds, side by side, as they were sent."""
    big = os.urandom(1 << 22)
    room.longest = 2 * len(big)  # as of a larger model
    with comes(room, slice="1 of 5", name="a") as a, comes(room, slice="2 of 5", name="b") as b:
        a.node.answer = b.node.answer = lambda question: question[::-1]
        for _ in range(3):
            assert dict(room.ask({"a": big, "b": b"xy"}, PATIENT)) == {"a": big[::-1], "b": b"yx"}
        assert room.carried[1] > 3 * len(big)


# who is not let in


def refused(room, invitation, match):
    with pytest.raises(ParameterError, match=match):
        join(str(invitation), data=few(), slice="1 of 5", name="x")
    assert room.here() == {}


def changed(room, **how):
    return Invitation(**{**vars(room.invitation), **how})


def test_a_wrong_join_code_is_refused_and_the_code_is_never_sent(room):
    refused(room, changed(room, code="22222222"), "join code is wrong")
    until(lambda: any("join code is wrong" in line for line in room.said))
    assert room.invitation.code not in proof(room.invitation.code, "n", {"name": "", "token": ""})


def test_another_certificate_is_refused_before_anything_is_said(room):
    refused(room, changed(room, fingerprint="0" * 32), "another certificate is there")


def test_who_speaks_no_tls_is_refused(room):
    with socket.create_connection(room.where) as line:
        line.settimeout(PATIENT)
        with suppress(OSError):
            send_frame(line, 0, b'{"name": "x", "token": "y"}')
            line.shutdown(socket.SHUT_WR)
            while line.recv(100):
                pass
    until(lambda: any("did not speak TLS" in line for line in room.said))
    assert room.here() == {}


def test_a_learner_meets_somebody_who_speaks_no_tls():
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer():
            line, _ = door.accept()
            with line, suppress(OSError):
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        invitation = Invitation("22222222", *door.getsockname(), "0" * 32)
        with pytest.raises(ParameterError, match="speaks no TLS"):
            join(str(invitation), data=few(), slice="1 of 5")
        thread.join()


def secured(room):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    line = context.wrap_socket(socket.create_connection(room.where))
    line.settimeout(PATIENT)
    return line, json.loads(receive_frame(line)[1])["nonce"]


def test_a_greeting_that_was_recorded_is_refused(room):
    about = {"name": "x", "token": "y"}
    line, nonce = secured(room)
    own = {**about, "nonce": nonce, "proof": proof(room.invitation.code, nonce, about)}
    with line:
        send_frame(line, 0, json.dumps(own).encode())
        assert receive_frame(line)[1] == room.welcome
    until(lambda: room.here() == {})
    again, other = secured(room)
    with again:
        send_frame(again, 0, json.dumps(own).encode())
        assert receive_frame(again)[1] == NO + b"its greeting was recorded earlier"
    again, other = secured(room)
    with again:
        send_frame(again, 0, json.dumps({**own, "nonce": other}).encode())
        assert b"join code is wrong" in receive_frame(again)[1]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"nonce": 3}', b"\xff", b"x" * (1 << 20)])
def test_nonsense_behind_tls_is_let_go(room, text):
    line, _ = secured(room)
    with line, suppress(OSError):
        send_frame(line, 0, text)
        while line.recv(1000):
            pass
    until(lambda: any("not let in" in line for line in room.said))
    assert room.here() == {}


def test_the_class_goes_on_beside_those_who_are_refused(room):
    with comes(room, slice="1 of 5", name="a"):
        rounds = taught(room, model(), USUAL.replace(rounds=2), seconds=PATIENT)
        next(rounds)
        with pytest.raises(ParameterError, match="join code"):
            join(str(changed(room, code="22222222")), data=few(), slice="1 of 5")
        with pytest.raises(ParameterError, match="another node has this name"):
            comes(room, slice="2 of 5", name="a")
        done = list(rounds)
    assert [each.number for each in done] == [1, 2]
    assert not done[-1].rejected


def test_a_learner_who_answers_nonsense_is_let_go_and_the_class_goes_on(room):
    with comes(room, slice="1 of 5", name="a"), comes(room, slice="2 of 5", name="liar") as liar:
        liar.node.answer = lambda question: b"nonsense"
        done = list(taught(room, model(), USUAL.replace(rounds=2), seconds=PATIENT))
    assert [each.number for each in done] == [0, 1, 2]
    assert all(len(each.cohort) == 4 for each in done[1:])  # of slice 1 of 5
    assert any("liar was let go" in line for line in room.said)


def test_a_class_about_other_films_is_refused(room):
    with pytest.raises(ParameterError, match="other films"):
        join(str(room.invitation), data=load(), slice="1 of 8")


def test_nobody_is_there():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(ParameterError, match="nobody lets one in"):
        join(str(Invitation("2" * 8, "127.0.0.1", port, "0" * 32)), slice="1 of 8", patience=0.5)


# what learners bring, and get


def test_ratings_are_known_by_title_or_id():
    films, toy = load(), {"Toy Story": 5, "318": 4.5, "Heat": 2}
    own = rated(toy, films)
    assert own.items.tolist() == [films.catalogue.item_ids.index(i) for i in ("1", "318", "6")]
    for bad, match in (
        ({}, "give titles"),
        ({"Toy Stori": 5}, "there are 'Toy Story'"),
        ({"Toy Story": 6}, "0.5 to 5"),
        ({"Toy Story": "5"}, "0.5 to 5"),
        ({"Toy Story": 5, "1": 4}, "twice"),
    ):
        with pytest.raises(ParameterError, match=match):
            rated(bad, films)


def test_slices_are_those_whom_the_start_does_not_know():
    every = [sliced(few(), f"{k} of 8").catalogue.user_ids for k in range(1, 9)]
    assert sorted(sum(every, ())) == [f"{u:02}" for u in range(1, 40, 2)]
    for bad in ("", "0 of 8", "9 of 8", "1 of 21", "1/8", 3):
        with pytest.raises(ParameterError, match="slice"):
            sliced(few(), bad)


def test_a_fitted_vector_is_where_its_loss_is_least():
    tables, own = model(), sliced(few(), "1 of 8")
    found = fitted(tables, own)

    def loss(user):
        """By hand: clicks weigh 1, all unseen items of a user 4 for each click."""
        total = 0.01 * user.square().sum()
        for u, vector in enumerate(user):
            mine = set(own.items[own.users == u].tolist())
            for i in range(own.item_count):
                score = tables["item"][i] @ vector + tables["bias"][i]
                sign, weight = (-1, 1.0) if i in mine else (1, 4 * len(mine) / (30 - len(mine)))
                total += weight / len(mine) * torch.nn.functional.softplus(sign * score)
        return float(total)

    generator = torch.Generator().manual_seed(1)
    nudges = 0.1 * torch.randn(5, *found.shape, generator=generator)
    assert all(loss(found) < loss(found + nudge) for nudge in nudges)


def test_one_learner_has_recommendations_before_and_after(room):
    liked = {f"film {i:02}": 5.0 for i in (0, 2, 4, 6, 8)}
    with comes(room, ratings={**liked, "film 01": 1}, name="Ann") as me:
        with comes(room, slice="1 of 2", name="others"):
            before = me.top(24, before=True)
            assert before == me.top(24)
            assert len({*before}) == 24
            assert not {*before} & {*liked, "film 01"}
            done = list(taught(room, model(), USUAL.replace(rounds=6), seconds=PATIENT))
        assert me.top(24) != before == me.top(24, before=True)
        assert [each.number for each in done] == list(range(7))
        assert all(0 <= each.metrics["hr@10"] <= 1 for each in done)
        after = me._params()
        assert torch.equal(after["item"], done[-1].params["item"])  # the class's last model
        with pytest.raises(ParameterError, match="choose from 1 to 24"):
            me.top(25)
    assert not me.there
    assert len(me.top(3)) == 3
    assert {"Ann is here.", "others has gone."} <= {*room.said}


def test_two_runs_of_a_class_are_alike():
    found = []
    for _ in range(2):
        with (
            opened(model()) as room,
            comes(room, slice="1 of 5", name="a"),
            comes(room, slice="2 of 5", name="b"),
        ):
            *_, last = taught(room, model(), USUAL.replace(rounds=3), seconds=PATIENT)
            found.append((last.metrics, last.params["item"]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_who_comes_late_takes_part_from_the_next_round(room):
    with comes(room, slice="1 of 5", name="a") as a:
        rounds = taught(room, model(), USUAL.replace(rounds=4), seconds=PATIENT)
        early = [next(rounds), next(rounds)]
        row = a._params()["user"]
        with comes(room, slice="2 of 5", name="b"):
            late = list(rounds)
    sizes = [len(each.cohort) for each in early + late]
    assert [each.number for each in early + late] == [0, 1, 2, 3, 4]
    assert sizes[:2] == [0, 4]
    assert sizes[3:] == [8, 8]  # it came while the second round was prepared, or before
    assert not torch.equal(row, a._params()["user"])


def test_noise_is_told_as_epsilon_that_goes_on_where_others_come(room):
    with comes(room, slice="1 of 5", name="a"):
        rounds = taught(room, model(), PRIVATE.replace(rounds=4), seconds=PATIENT, private=True)
        early = [next(rounds), next(rounds)]
        with comes(room, slice="2 of 5", name="b"):
            done = early[1:] + list(rounds)
    spent = [each.metrics["epsilon"] for each in done]
    assert len(spent) == 4
    assert all(one < other for one, other in itertools.pairwise(spent))


def test_a_class_that_nobody_is_in_ends(room):
    assert list(taught(room, model(), USUAL.replace(rounds=3), seconds=0.1)) == []
    assert dict(room.ask({"a": b"x"}, 1)) == {"a": Lost("it is not there")}


# with processes


LEARNER = Path(__file__).with_name("learner.py")


def goes_to(room, k):
    """A learner in a session and process of its own."""
    words = [sys.executable, LEARNER, str(room.invitation), f"learner {k}", f"{k} of 8"]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, start_new_session=True, **how)


def test_eight_learners_of_whom_one_is_killed_and_one_comes_late(room):
    people = [goes_to(room, k) for k in range(1, 8)]
    try:
        until(lambda: len(room.here()) == 7)
        done = []
        for each in taught(room, model(), USUAL.replace(rounds=20), seconds=PATIENT):
            done.append(each)
            if each.number == 5:
                people[2].kill()
                until(lambda: len(room.here()) == 6)
            if each.number == 10:
                people.append(goes_to(room, 8))
                until(lambda: len(room.here()) == 7)
        told = [p.communicate()[0].splitlines() for k, p in enumerate(people) if k != 2]
    finally:
        for each in people:
            each.kill()
            each.wait()
            each.stdin.close()
            each.stdout.close()
    assert [each.number for each in done] == list(range(21))
    counts = [sliced(few(), f"{k} of 8").user_count for k in range(1, 9)]
    sizes = [len(each.cohort) for each in done]
    assert sizes[1:6] == [sum(counts[:7])] * 5
    assert sizes[6:11] == [sum(counts[:7]) - counts[2]] * 5
    assert sizes[11:] == [sum(counts) - counts[2]] * 10
    assert all("connection broke" in why for why in done[6].rejected.values())
    assert not any(each.skipped for each in done)
    assert all(first == "here" and json.loads(tops)[0] for first, tops in told)
    assert {"learner 3 has gone.", "learner 8 is here."} <= {*room.said}


def test_the_command_holds_a_class(tmp_path):
    films, generator = load(), torch.Generator().manual_seed(0)
    tables = {"item": torch.randn(films.item_count, 4, generator=generator) / 10}
    save_file(tables | {"bias": torch.zeros(films.item_count)}, tmp_path / "model.safetensors")
    (tmp_path / "rows.json").write_text(json.dumps({"item": films.catalogue.item_ids}))
    words = [sys.executable, "-m", "fedlab", "class", "--model", tmp_path, "--private"]
    words += ["--count", "1", "--rounds", "2", "--deadline", str(PATIENT)]
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, words)), **how) as teacher:
        said = iter(teacher.stdout)
        line = next(line for line in said if "join(" in line)
        with join(line.split('"')[1], name="Ann", ratings={"Toy Story": 5, "Heat": 4, "318": 4}):
            rest = list(said)
    assert teacher.returncode == 0
    found = [line for line in rest if line.startswith(("Before the class: 1 here", "Round"))]
    assert len(found) == 3
    assert "epsilon" in found[-1]
    assert "hr@10" in found[-1]
    assert "Ann is here.\n" in rest
    assert "MB to learners" in rest[-1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--address", "0.0.0.0:7000", "--count", "1"], "address"),
        (["--model", "nowhere", "--count", "1"], "no model in it"),
        (["--count", "-1"], "no keyboard"),
        (["--count", "1", "--limit", "0"], "--limit lets 0 in"),
        (["--count", "65"], "--limit lets 64 in"),
    ],
)
def test_the_command_says_what_is_wrong(given, match, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("fedlab.__main__.started", model)
    monkeypatch.setattr("fedlab.__main__.load", few)
    assert main(["class", *given]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["address", "port", "folder", "rounds", "deadline"])
def test_what_is_wrong_is_said_before_a_model_is_trained(wrong, capsys, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr("fedlab.__main__.started", lambda: trained.append(1) or model())
    monkeypatch.setattr("fedlab.__main__.load", few)
    monkeypatch.setattr("fedlab.__main__._all_here", lambda *_: None)  # or a failure would wait
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = {"address": "192.0.2.1:7000", "port": f"127.0.0.1:{taken.getsockname()[1]}"}
        if wrong == "folder":
            monkeypatch.setenv("TMPDIR", str(tmp_path / "away"))
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "away"))
        rounds = "-1" if wrong == "rounds" else "1"
        words = ["class", "--address", where.get(wrong, "127.0.0.1:0"), "--count", "1"]
        deadline = "0" if wrong == "deadline" else "0.1"
        assert main([*words, "--rounds", rounds, "--deadline", deadline]) == 2
    says = {"folder": "certificate cannot be written", "rounds": "rounds=-1"}
    says["deadline"] = "--deadline=0.0"
    assert says.get(wrong, "cannot listen there") in capsys.readouterr().err
    assert not trained
