"""Settings: the turned knobs, over the defaults, and their JSON."""

import json
import pickle

import pytest

from fedlab.core import ParameterError, Settings, differing, parsed, read_settings, write_settings


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
        "settings": {"rounds": 3, "local_lr": 0.25, "server_optimizer": "adam"},
    }
    assert read_settings(text, Settings()) == settings
    assert read_settings(text, Settings(cohort=5, rounds=9)) == settings.replace(cohort=5)


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
