"""Knobs, and the registry of the parts that own them."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab import Local, ParameterError, Settings, Stage, knob, register
from fedlab.aggregation import MeanOfHolders, ServerStep
from fedlab.core import REGISTRY, Part, described, knobs, like, title_of
from fedlab.core.knobs import Knob, _described
from fedlab.engine import SGD, LocalSettings


@pytest.fixture
def registry():
    """The parts as they were, whatever a test announces."""
    before = {kind: dict(parts) for kind, parts in REGISTRY.items()}
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(before)
    _described.clear()


def strength(default=0.5, high=1.0, meaning="how strong it is"):
    return knob(default, 0.0, high, "", meaning)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"local_lr": -1.0}, r"local_lr=-1\.0: choose a number from 0 to 100"),
        ({"local_lr": float("nan")}, "local_lr=nan"),
        ({"local_lr": "fast"}, "local_lr='fast'"),
        ({"local_epochs": 0}, "local_epochs=0: choose a whole number from 1 to 100"),
        ({"local_epochs": 2.5}, "local_epochs=2.5"),
        ({"local_epochs": True}, "local_epochs=True"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"optimizer": "adam"}, "optimizer='adam': choose one of sgd, adamw"),
        ({"learning_rate": 1}, "learning_rate=1: no such parameter"),
        ({"local_epoch": 1}, "local_epoch=1: no such parameter; did you mean local_epochs?"),
    ],
)
def test_a_part_and_the_settings_refuse_the_same_and_name_parameter_value_and_fix(bad, message):
    for made in (SGD, LocalSettings, Settings):
        with pytest.raises(ParameterError, match=message):
            made(**bad)


@given(st.integers(1, 100), st.floats(0, 100), st.sampled_from(["sgd", "adamw"]))
def test_values_in_range_are_taken_as_they_are(epochs, rate, optimizer):
    for made in (SGD, Settings):
        part = made(local_epochs=epochs, local_lr=rate, optimizer=optimizer)
        assert (part.local_epochs, part.local_lr, part.optimizer) == (epochs, rate, optimizer)


@given(st.floats(allow_nan=True, allow_infinity=True).filter(lambda x: not 0 <= x <= 100))
def test_values_out_of_range_never_pass(rate):
    for made in (SGD, Settings):
        with pytest.raises(ParameterError):
            made(local_lr=rate)


def test_every_part_can_be_made_from_settings_alone_and_says_what_it_turns():
    for kind, parts in REGISTRY.items():
        for title, cls in parts.items():
            part = cls()
            assert (part.kind, part.name) == (kind, title)
            assert all(knob.meaning for knob in knobs(cls).values())
    names = [title for parts in REGISTRY.values() for title in parts]
    assert len(set(names)) == len(names)


def test_every_knob_has_a_default_that_fits_and_readers():
    found = described()
    for name, each in found.items():
        each.knob.check(name, each.default, each.kind)
        assert each.readers
    assert found["local_lr"].readers[:1] == ("sgd",)
    assert not found["seed"].knob.live
    assert found["local_lr"].knob.live
    choice = Knob(0, 0, "", "an aggregation", parts="aggregation")
    assert choice.options == tuple(REGISTRY["aggregation"])
    with pytest.raises(ParameterError, match=r"rule='mode': choose one of .*weighted mean"):
        choice.check("rule", "mode", str)


def test_a_name_is_the_words_of_the_class_or_its_title():
    assert title_of(MeanOfHolders) == "mean of holders"
    assert MeanOfHolders().name == "mean of holders"
    assert title_of(SGD) == SGD().name == "sgd"
    assert title_of(ServerStep) == "server step"


def test_a_registered_part_is_known_everywhere(registry):
    @register
    class Siege(Stage):
        """Turns something."""

        siege_strength: float = strength()

    assert registry["stage"]["siege"] is Siege
    assert Siege(siege_strength=0.25).siege_strength == 0.25
    assert Settings(siege_strength=0.25).siege_strength == 0.25
    assert Settings().siege_strength == 0.5
    assert described()["siege_strength"].readers == ("siege",)
    with pytest.raises(
        ParameterError, match=r"siege_strength=2\.0: choose a number from 0 to 1 \(how strong"
    ):
        Siege(siege_strength=2.0)
    with pytest.raises(
        ParameterError, match=r"siege_strenth=0\.1: .*; did you mean siege_strength\?"
    ):
        Settings(siege_strenth=0.1)
    with pytest.raises(AttributeError):
        Siege().siege_strength = 1.0


def test_the_fixture_forgets_what_a_test_announced():
    assert "siege" not in REGISTRY["stage"]
    with pytest.raises(ParameterError, match=r"siege_strength=0\.1: no such parameter"):
        Settings(siege_strength=0.1)


def test_running_a_cell_again_replaces_its_part(registry):
    for default in (0.5, 0.75):

        @register
        class Siege(Stage):
            """The same cell, with another default."""

            siege_strength: float = strength(default)

        assert registry["stage"]["siege"] is Siege
        assert Settings().siege_strength == default


def test_a_knob_may_be_shared_by_parts_that_describe_it_alike(registry):
    @register
    class Siege(Stage):
        """Reads a knob of others."""

        local_lr: float = like(LocalSettings, "local_lr")

    assert described()["local_lr"].readers[-1] == "siege"
    assert Siege(local_lr=0.1).local_lr == 0.1


def test_a_part_may_have_fields_that_are_no_knobs(registry):
    @register
    class Siege(Stage):
        """Has a friend."""

        siege_strength: float = strength()
        friend: object = None

    assert list(knobs(Siege)) == ["siege_strength"]
    assert "friend" not in described()
    assert Siege(friend=3).friend == 3


def taken():
    @register
    class Clip(Stage):
        """Has the name of another part."""


def taken_elsewhere():
    @register
    class Other(Local):
        """Has the name of a part of another kind."""

        title = "clip"


def without_range():
    @register
    class Siege(Stage):
        """Has a knob from 1 to 1."""

        siege_strength: float = knob(1.0, 1.0, 1.0, "", "how strong it is")


def out_of_range():
    @register
    class Siege(Stage):
        """Has a default that its own range has not."""

        siege_strength: float = knob(9.0, 0.0, 5.0, "", "how strong it is")


def of_no_type():
    @register
    class Siege(Stage):
        """Has a knob that is a list."""

        siege_strength: list = strength()


def otherwise():
    @register
    class Siege(Stage):
        """Has a knob of others, with another range."""

        local_lr: float = knob(0.5, 0.0, 3.0, "", "something else")


def another_default():
    @register
    class Siege(Stage):
        """Has a knob of others, with another default."""

        local_lr: float = knob(
            0.1, 0.0, 100.0, "", "step size on the clients", log=True, usual=(0.01, 10.0)
        )


def without_default():
    @register
    class Siege(Stage):
        """Cannot be made from settings."""

        friend: object


def of_no_kind():
    @register
    class Siege:
        """Is no part."""


@pytest.mark.parametrize(
    ("announce", "message"),
    [
        (taken, "register='clip': <class 'fedlab.privacy.mechanisms.Clip'> has this name; choose"),
        (taken_elsewhere, "register='clip': .* has this name; choose another"),
        (
            without_range,
            r"siege.siege_strength=\(1.0, 1.0\): give the lowest and the highest value, growing",
        ),
        (out_of_range, r"siege.siege_strength=9.0: choose a number from 0 to 5"),
        (of_no_type, "siege.siege_strength=<class 'list'>: annotate a knob as int, float or str"),
        (
            otherwise,
            "siege.local_lr=0.5: sgd.* describes this knob otherwise; choose another name, or",
        ),
        (another_default, "siege.local_lr=0.1: sgd.* describes this knob otherwise"),
        (
            without_default,
            "siege.friend='no default': give it one, so that the part can be made from",
        ),
        (
            of_no_kind,
            "register='Siege': derive the part from Local, Stage, Aggregation, Schedule or",
        ),
    ],
)
def test_what_cannot_be_announced_is_refused_and_leaves_no_trace(registry, announce, message):
    before, known = {kind: dict(parts) for kind, parts in registry.items()}, dict(described())
    with pytest.raises(ParameterError, match=message):
        announce()
    assert registry == before
    assert described() == known


def test_a_part_that_is_not_announced_has_no_knobs():
    @dataclass(frozen=True)
    class Own(Part):
        """Used as it is."""

        level: float = 0.5

    assert knobs(Own) == {}
    assert knobs(int) == {}
    assert Own().name == "own"
