"""Settings: the turned knobs, over the defaults, and their JSON."""

import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlab.workbench  # noqa: F401 - every part that may have a knob
from fedlab.core import (
    ParameterError,
    Settings,
    described,
    differing,
    parsed,
    read_settings,
    read_settings_file,
    settings_line,
    write_settings,
)


def test_only_what_is_turned_is_held_and_all_else_is_usual():
    settings = Settings(rounds=3, cohort=64, local_lr=0.25)
    assert dict(settings) == {"rounds": 3, "local_lr": 0.25}
    assert (settings.rounds, settings.cohort) == (3, 64)
    assert (settings["local_lr"], settings["seed"]) == (0.25, 0)
    assert len(settings) == 2
    assert "rounds" in settings
    assert "cohort" not in settings
    assert settings.get("cohort") == 64
    assert settings.get("no such knob", 3) == 3
    with pytest.raises(KeyError):
        settings["replace"]
    assert repr(settings) == "Settings(rounds=3, local_lr=0.25)"


def test_settings_compare_and_hash_by_what_is_turned():
    one, other = Settings(rounds=3, cohort=5), Settings(cohort=5, rounds=3, seed=0)
    assert one == other
    assert hash(one) == hash(other)
    assert one != Settings(rounds=3)
    assert len({one, other, Settings()}) == 2
    assert one == {"rounds": 3, "cohort": 5}


def test_a_knob_is_turned_and_turned_back():
    settings = Settings(rounds=3)
    assert settings.replace(cohort=5) == Settings(rounds=3, cohort=5)
    assert settings.replace(rounds=40) == Settings()
    assert settings == Settings(rounds=3)
    assert Settings(**settings.replace(seed=1)) == Settings(rounds=3, seed=1)


def test_settings_survive_a_copy():
    settings = Settings(rounds=3, local_lr=0.25)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rounds": 0}, "rounds=0: choose a whole number from 1 to 10000"),
        ({"cohort": 0}, "cohort=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"learning_rate": 1}, "learning_rate=1: no such parameter"),
        ({"cohorts": 1}, "cohorts=1: no such parameter; did you mean cohort?"),
        (
            {"server_optimizer": "lamb"},
            "server_optimizer='lamb': choose one of sgd, momentum, adam",
        ),
    ],
)
def test_a_wrong_knob_is_named_with_its_value_and_the_fix(bad, message):
    with pytest.raises(ParameterError, match=message):
        Settings(**bad)
    with pytest.raises(ParameterError, match=message):
        Settings(rounds=3).replace(**bad)


def test_a_name_that_no_part_has_is_no_attribute():
    with pytest.raises(AttributeError, match="no part has a knob 'learning_rate'"):
        _ = Settings().learning_rate
    assert not hasattr(Settings(), "learning_rate")


def test_json_holds_the_turned_knobs_and_gives_them_back():
    settings = Settings(rounds=3, local_lr=0.25, server_optimizer="adam")
    text = write_settings(settings)
    assert json.loads(text) == {
        "fedlab": 2,
        "whole": True,
        "settings": {"rounds": 3, "local_lr": 0.25, "server_optimizer": "adam"},
    }
    assert read_settings(text, Settings()) == settings
    assert read_settings(text, Settings(cohort=5, rounds=9)) == settings
    mine = text.replace('"whole": true,', "")
    assert read_settings(mine, Settings(cohort=5, rounds=9)) == settings.replace(cohort=5)
    assert read_settings(text.replace("true", "false"), Settings(cohort=5)).cohort == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{rounds: 3}",
            "settings='{rounds: 3}': not JSON .* in line 1.; paste what `settings` shows",
        ),
        ("[1]", r"settings=\[1\]: write {\"fedlab\": 2, \"settings\": {...}}"),
        ('{"fedlab": 2}', "settings=.*write"),
        (
            '{"fedlab": 1, "settings": {}}',
            "fedlab=1: these settings are of another version; this one reads version 2",
        ),
        ('{"settings": {}}', "fedlab=None"),
        ('{"fedlab": 2, "whole": 1, "settings": {}}', "whole=1: write true, or leave it out"),
        ('{"fedlab": 2, "settings": {"rounds": 0}}', "rounds=0: choose a whole number"),
        (
            '{"fedlab": 2, "settings": {"round": 3}}',
            "round=3: no such parameter; did you mean rounds?",
        ),
    ],
)
def test_wrong_json_is_named_and_nothing_is_taken(text, message):
    with pytest.raises(ParameterError, match=message):
        read_settings(text, Settings())


def test_a_line_holds_the_turned_knobs_and_gives_them_back():
    settings = Settings(rounds=3, local_lr=0.25, uplink="clip + gaussian noise", data='a"b c.csv')
    line = settings_line(settings)
    assert line.startswith('fedlab=2 rounds=3 local_lr=0.25 uplink="clip + gaussian noise"')
    assert read_settings(f"\n {line} ", Settings(cohort=5)) == settings  # a line is whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fedlab=1 cohort=8", "fedlab=1: these settings are of another version"),
        ("fedlab=2 cohort 8", "settings='cohort 8': write name=value"),
        ("fedlab=2 cohort=8 cohort=9", "this name stands there twice"),
        ("fedlab=2 cohrt=8", "cohrt=8: no such parameter; did you mean cohort?"),
        ("fedlab=2 cohort=[1]", "write a number or a short text"),
        ("fedlab=2 local=sgd", "settings='sgd': not JSON"),
        ("fedlab=", "write name=value"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_taken(line, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        read_settings(line, Settings())


def test_words_become_the_values_of_their_knobs():
    assert parsed("rounds", "3") == 3
    assert isinstance(parsed("rounds", "3"), int)
    assert parsed("local_lr", "3") == 3.0
    assert isinstance(parsed("local_lr", "3"), float)
    assert parsed("optimizer", "adamw") == "adamw"
    assert parsed("rounds", "many") == "many"  # refused later, with its name
    assert parsed("no such knob", "3") == "3"


def test_what_differs_is_named_once():
    runs = [Settings(rounds=3, cohort=5), Settings(rounds=3, cohort=6), Settings(rounds=3, seed=1)]
    assert differing(runs) == ["cohort", "seed"]
    assert differing(runs[:1]) == differing([]) == []


def doc(inside, edition=2):
    return f'{{"fedlab": {edition}, "settings": {inside}}}'


HOSTILE = {
    "nested": ("[" * 100_000, "nested too deep"),
    "nested and whole": (doc('{"cohort": ' + "[" * 5000 + "]" * 5000 + "}"), "nested too deep"),
    "a deep value": (doc('{"cohort": ' + "[" * 200 + "]" * 200 + "}"), "cohort=[[[[[[[...]]]]]]]"),
    "digits": (doc('{"cohort": ' + "9" * 5000 + "}"), "a whole number of thousands of digits"),
    "fewer digits": (doc('{"cohort": ' + "9" * 4000 + "}"), "write a number or a short text"),
    "self": (doc('{"self": 3}'), "self=3: no such parameter"),
    "not a number": (doc('{"local_lr": NaN}'), "local_lr=nan: choose a number"),
    "infinite": (doc('{"local_lr": 1e999}'), "local_lr=inf: choose a number"),
    "twice": (doc('{"cohort": 5, "cohort": 6}'), "settings='cohort': this name stands there twice"),
    "twice outside": ('{"fedlab": 2, "settings": {}, "settings": {}}', "stands there twice"),
    "half a character": (doc('{"data": "\\ud800"}'), "data='\\ud800': write a number or a short"),
    "a zero byte": (doc('{"data": "a\\u0000b"}'), "data='a\\x00b'"),
    "a long text": (doc(json.dumps({"data": "x" * 5000})), "write a number or a short text"),
    "a long name": (doc(json.dumps({"x" * 5000: 1})), "no such parameter"),
    "huge": (doc(json.dumps({"data": "x" * 2_000_000})), "a text of at most 1000000 characters"),
    "true": (doc("{}", "true"), "fedlab=True: these settings are of another version"),
    "null": (doc('{"cohort": null}'), "cohort=None: write a number"),
    "bool": (doc('{"cohort": true}'), "cohort=True: choose a whole number"),
    "empty": ("", "not JSON"),
    "list": (doc("[]"), "write {"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_text_holds_the_answer_is_one_short_sentence(text, message, tmp_path):
    with pytest.raises(ParameterError, match=re.escape(message)) as error:
        read_settings(text, Settings())
    assert len(str(error.value)) < 3000  # the longest names every knob
    assert "\n" not in str(error.value)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError):
        read_settings_file(tmp_path / "a.json", Settings())


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "a.json"
    for content, message in (
        (b'{"fedlab": 2, "settings": {"data": "\xff"}}', "byte 36 is not UTF-8"),
        ("{}".encode("utf-16"), "byte 0 is not UTF-8"),
        (b" " * 2_000_000, "at most 1000000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ParameterError, match=message):
            read_settings_file(file, Settings())
    file.write_bytes(b"\xef\xbb\xbf" + doc('{"cohort": 5}').encode())  # as some editors save it
    assert read_settings_file(file, Settings()) == Settings(cohort=5)
    for name in (tmp_path, tmp_path / "none", "a\0b", "x" * 5000):
        with pytest.raises((ParameterError, OSError)):
            read_settings_file(name, Settings())


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8)
NAMES = st.sampled_from([*sorted(described()), "self", "", "settings"]) | st.text(max_size=9)
VALID = json.dumps(
    {"fedlab": 2, "settings": {"cohort": 8, "local_lr": 0.5, "uplink": "clip", "data": "é"}}
)


@st.composite
def spoiled(draw, text=VALID):
    """A valid text, cut, doubled or overwritten at a few places."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 9)))
        text = text[:start] + draw(st.text(max_size=4) | st.just(text[start:end] * 2)) + text[end:]
    return text


TEXTS = (
    st.text()
    | spoiled()
    | ANYTHING.map(json.dumps)
    | st.builds(lambda e, s: json.dumps({"fedlab": e, "settings": s}), ANYTHING, ANYTHING)
    | st.dictionaries(NAMES, ANYTHING).map(lambda s: doc(json.dumps(s)))
)


def answered(call):
    """What comes of it: Settings, or the sentence of a `ParameterError`."""
    try:
        return call()
    except ParameterError as error:
        return str(error)


@settings(max_examples=300)
@given(TEXTS)
def test_any_text_is_settings_or_one_sentence(text):
    before = Settings(rounds=3)
    found = answered(lambda: read_settings(text, before))
    if isinstance(found, Settings):
        assert read_settings(write_settings(found), Settings()) == found
    else:
        assert 0 < len(found) < 5000
    assert before == Settings(rounds=3)


@settings(max_examples=200)
@given(content=st.binary(max_size=99) | TEXTS.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_in_a_file_are_settings_or_one_sentence(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    found = answered(lambda: read_settings_file(file, Settings()))
    assert isinstance(found, Settings) or 0 < len(found) < 5000
