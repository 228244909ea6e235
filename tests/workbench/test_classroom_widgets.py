"""A class on the screen: the widget in which learners rate, join and compare, and the teacher's."""

import sys
from pathlib import Path

import pytest
import torch
from waiting import until

from fedlab.core import ParameterError
from fedlab.data import load
from fedlab.nodes import join
from fedlab.nodes.classroom import PRIVATE, USUAL, Entrance, started, taught, welcome
from fedlab.workbench import Classroom, Ratings
from fedlab.workbench.classroom import familiar

sys.path.append(str(Path(__file__).parents[1] / "nodes"))

from learner import few

PATIENT = 240  # seconds, for a machine that does much else


@pytest.fixture(scope="module")
def model():
    return started(few(), dim=4, rounds=5)


@pytest.fixture
def room(model):
    with Entrance("127.0.0.1:0") as found:
        found.open(welcome(model, few().catalogue))
        yield found


@pytest.fixture
def me():
    """A widget of made-up films in which eight are rated; no other is there."""
    Ratings._last = None
    found = Ratings(films=few(), count=12, name="Ann", patience=PATIENT)
    for k, (film, _) in enumerate(found.films[:8]):
        found.rate(film, 5 if k % 2 else 2)
    yield found
    found.leave()
    Ratings._last = None


def told(me, command, *given):
    """As the browser sends it."""
    me._handle_custom_msg({"command": command, "given": list(given)}, [])


def test_films_are_well_known_and_of_many_kinds():
    films = load()
    found = familiar(films)
    known = torch.bincount(films.items, minlength=films.item_count)
    assert len({*found}) == 20
    assert known[found].min() > known.sort(descending=True).values[60]
    assert films.catalogue.categories[found].any(0).sum() >= 15
    assert len(familiar(films, 400)) == len({*familiar(films, 400)}) == 400
    assert (
        familiar(few(), 3)
        == torch.bincount(few().items).argsort(descending=True, stable=True)[:3].tolist()
    )
    with pytest.raises(ParameterError, match="count=21: choose from 1 to 20, so that 10 are left"):
        Ratings(films=few(), count=21)
    for bad in (0, 31, "3"):
        with pytest.raises(ParameterError, match="choose from 1 to 30"):
            familiar(few(), bad)


def test_titles_have_years_and_stars_keep_their_order():
    Ratings._last = None
    me = Ratings(count=3)
    assert [title for _, title in me.films][:2] == ["Forrest Gump (1994)", "Pulp Fiction (1994)"]
    first, second, third = (id_ for id_, _ in me.films)
    for film, stars in ((third, 4), (first, 5), (second, 1), (third, 3), (second, 0)):
        told(me, "rate", film, stars)
    assert list(me.given.items()) == [(third, 3), (first, 5)]
    assert me.message == "2 of 3 rated, 2 with 3 stars or more."
    again = Ratings(count=3)  # as when the cell is run again
    assert again.given == again.stars == me.given


@pytest.mark.parametrize(
    "content",
    [None, {}, {"command": "rate"}, {"command": "rate", "given": ["1"]}, {"command": ["x"]},
     {"command": "rate", "given": ["film 00", 6]}, {"command": "rate", "given": ["x", 3]},
     {"command": "rate", "given": ["film 00", True]}, {"command": "join", "given": ["a\n", "b"]}],
)  # fmt: skip
def test_nonsense_of_the_browser_changes_nothing(me, content):
    before = dict(me.given)
    me._handle_custom_msg(content, [])
    assert me.notice
    assert (me.given, me.state) == (before, "rating")


def test_a_learner_rates_joins_and_compares(me, room, model):
    told(me, "join", str(room.invitation), "Ann")
    until(lambda: me.state == "waiting")
    assert room.here().keys() == {"Ann"}
    rounds = taught(room, model, USUAL.replace(rounds=3), seconds=PATIENT)
    assert next(rounds).number == 0
    assert me.state == "training"
    assert me.message.startswith("Round 0 of 3")
    assert me.lists == {}
    assert [each.number for each in rounds] == [1, 2, 3]
    assert me.state == "over"
    assert me.lists == {"before": me.learner.top(10, before=True), "after": me.learner.top(10)}
    assert "No noise was added" in me.cost
    assert me.learner.news["metrics"].keys() == {"hr@10", "ndcg@10"}
    up, down = me.learner.carried
    assert (down, up) == room.carried
    assert f"You sent {up / 1e6:.2f} MB and got {down / 1e6:.2f} MB." in me.cost
    told(me, "join", str(room.invitation), "Ben")  # again, under another name
    until(lambda: me.state == "waiting")
    assert room.here().keys() == {"Ben"}
    assert (me.lists, me.cost) == ({}, "")


def test_epsilon_is_told_where_there_is_noise(me, room, model):
    me.join(str(room.invitation))
    until(lambda: me.state == "waiting")
    *_, last = taught(room, model, PRIVATE.replace(rounds=2), seconds=PATIENT, private=True)
    assert me.learner.news["metrics"] == {"epsilon": last.metrics["epsilon"]}  # of noise alone
    assert f"The class's epsilon is {last.metrics['epsilon']:.3g}, of one person." in me.cost


def test_what_is_wrong_is_said_and_stars_are_kept(me, room):
    given, good = dict(me.given), str(room.invitation)
    for line, why in (("", "copy the whole line"), ("x@y", "copy the whole line")):
        told(me, "join", line, "Ann")
        assert why in me.notice
        assert me.state == "rating"
    told(me, "join", "2" * 8 + good[8:], "Ann")
    until(lambda: "join code is wrong" in me.notice)
    until(lambda: me.state == "rating")
    for film in given:
        told(me, "rate", film, 2)
    told(me, "join", good, "Ann")
    assert "3 stars or more" in me.notice
    assert me.given == dict.fromkeys(given, 2)
    assert me.state == "rating"
    assert room.here() == {}


def test_an_address_where_nobody_is_can_be_left(me):
    with Entrance("127.0.0.1:0") as gone:
        line = str(gone.invitation)
    told(me, "join", line, "Ann")
    until(lambda: "nobody answers at 127.0.0.1" in me.notice)
    assert me.state == "joining"
    told(me, "leave")
    until(lambda: me.state == "rating")
    assert "left before the class let one in" in me.notice
    assert len(me.given) == 8


def test_a_class_that_goes_away_is_told_with_what_there_is(me, model):
    me._patience = 2.0
    with Entrance("127.0.0.1:0") as room:
        room.open(welcome(model, few().catalogue))
        me.join(str(room.invitation))
        until(lambda: me.state == "waiting")
        rounds = taught(room, model, USUAL.replace(rounds=9), seconds=PATIENT)
        for _ in range(3):
            next(rounds)
        room.close()
        until(lambda: me.state == "away")
        until(lambda: me.state == "gone")
    assert "nobody answers" in me.notice
    assert len(me.given) == 8
    assert me.lists["before"] == me.learner.top(10, before=True)
    assert len(me.lists["after"]) == 10


# the teacher's


@pytest.fixture
def screen(model):
    with_start = {"films": few(), "start": model, "seconds": PATIENT}
    found = Classroom(**with_start)
    yield found
    found.end()
    until(lambda: found.entrance.here() == {})


def comes(screen, name, part):
    return join(str(screen.entrance.invitation), name=name, slice=part, data=few())


def test_the_teacher_sees_who_is_there_and_trains_with_them(screen):
    people = screen.children[1]
    assert people.value == "<b>0 here:</b> nobody yet"
    assert str(screen.entrance.invitation) in screen.children[0].value
    bench = screen.bench
    bench.session.start()
    until(lambda: bench.state == "failed")
    assert "wait until somebody has joined" in bench.message
    with comes(screen, "<Ann>", "1 of 5"), comes(screen, "Ben", "2 of 5") as ben:
        until(lambda: people.value == "<b>2 here:</b> &lt;Ann&gt;, Ben")
        bench.session.settings = bench.session.settings.replace(rounds=3, server_lr=0.05)
        bench.session.start()
        until(lambda: bench.state == "done")
        assert [each.number for each in bench.rounds] == [0, 1, 2, 3]
        assert [len(each.cohort) for each in bench.rounds] == [0, 8, 8, 8]
        assert bench.rounds[-1].settings.server_lr == pytest.approx(0.05 * 8)
        assert [each["round"] for each in bench.session.members[-1].records] == [0, 1, 2, 3]
        assert ben.news["over"]
        ben.leave()
        until(lambda: "<b>1 here:</b> &lt;Ann&gt;<br><b>Dropped out:</b> Ben" in people.value)
        with pytest.raises(ParameterError, match="another node has this name"):
            comes(screen, "<Ann>", "3 of 5")
        until(lambda: "&lt;Ann&gt; was not let in: another node has this name" in people.value)


def test_stop_ends_the_class_for_learners_too(screen):
    with comes(screen, "Ann", "1 of 5") as ann:
        screen.bench.session.settings = screen.bench.session.settings.replace(rounds=1000)
        screen.bench.session.start()
        until(lambda: ann.news.get("round", 0) > 2)
        screen.bench.session.stop()
        until(lambda: ann.state == "over")
        assert ann.news["round"] < 1000


def test_what_a_class_cannot_do_has_no_panel(screen):
    assert screen.bench.spec["sweeps"] is False
    assert screen.bench.spec["finds"] == []
    assert "model" not in screen.bench.spec["exports"]


def test_a_second_run_beside_the_one_of_a_class_is_refused(screen):
    bench = screen.bench
    with comes(screen, "Ann", "1 of 5"):
        first, second = (screen._live(lambda: USUAL.replace(rounds=2)) for _ in range(2))
        assert next(first).number == 0
        with pytest.raises(ParameterError, match="another run is under way"):
            next(second)
        assert [done.number for done in first] == [1, 2]
        bench.session.settings = bench.session.settings.replace(rounds=2)
        bench.session.start()  # it is free again
        until(lambda: bench.state == "done")


def test_a_class_made_again_ends_the_one_before(screen, model):
    where = "{}:{}".format(*screen.entrance.where)
    again = Classroom(where, films=few(), start=model, private=True)
    assert {"clip", "noise"} <= again.bench.values.keys()
    assert "epsilon" in again.bench.session.metrics
    again.end()
