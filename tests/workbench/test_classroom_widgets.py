"""A class on the screen: the widget in which learners rate, join and compare, and the teacher's."""

import sys
from pathlib import Path

import pytest
import torch
from waiting import until

from fedlab.core import ParameterError
from fedlab.data import load
from fedlab.nodes.classroom import PRIVATE, USUAL, Entrance, started, taught, welcome
from fedlab.workbench import Ratings
from fedlab.workbench.classroom import familiar

sys.path.append(str(Path(__file__).parents[1] / "nodes"))

from learner import few  # noqa: E402 - made-up films of the tests of a class

PATIENT = 240  # seconds, for a machine that does much else


@pytest.fixture(scope="module")
def model():
    return started(few(), dim=4, rounds=5)


@pytest.fixture
def room(model):
    with Entrance("127.0.0.1:0", welcome(model, few().catalogue)) as found:
        yield found


@pytest.fixture
def me():
    """A widget of made-up films in which eight are rated; no other is there."""
    Ratings._last = None
    found = Ratings(films=few(), count=12, name="Ann", patience=PATIENT)
    for k, (film, _) in enumerate(found.films[:8]):
        found.rate(film, 5 if k % 2 else 2)
    yield found
    found.close()
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
    assert familiar(few(), 3) == torch.bincount(few().items).argsort(
        descending=True, stable=True
    )[:3].tolist()
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
    up, down = me.learner.carried
    assert (down, up) == room.carried
    assert f"You sent {up / 1e6:.1f} MB and got {down / 1e6:.1f} MB." in me.cost
    told(me, "join", str(room.invitation), "Ben")  # again, under another name
    until(lambda: me.state == "waiting")
    assert room.here().keys() == {"Ben"}
    assert (me.lists, me.cost) == ({}, "")


def test_epsilon_is_told_where_there_is_noise(me, room, model):
    me.join(str(room.invitation))
    until(lambda: me.state == "waiting")
    *_, last = taught(room, model, PRIVATE.replace(rounds=2), seconds=PATIENT, private=True)
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
    with Entrance("127.0.0.1:0", welcome(model, few().catalogue)) as room:
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
