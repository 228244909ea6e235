"""The runner and the traits behind the live view; what a browser sees is in test_browser.py."""

import gc
import threading
import time
from dataclasses import replace

import pytest

from fedlab.core import Config, ParameterError
from fedlab.server import federate, measured
from fedlab.workbench import Runner, Workbench, describe

SMALL = Config(rounds=6, cohort=4)


@pytest.fixture(scope="module")
def live(build, clicks):
    model = build("matrix factorisation", clicks.train)
    return lambda config: measured(federate(model, clicks, config), lambda done: {"number": float(done.number)})


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def bench(live):
    made = Workbench(live, SMALL, turn={"cohort": (1, 671), "rounds": (1, 300), "local_lr": (0.1, 2.0)},
                     metrics=("number",))
    yield made
    made.runner.stop()
    made.close()


def test_a_run_ends_with_its_rounds_as_plain_data(bench):
    bench.runner.start()
    until(lambda: bench.state == "done")
    assert [r.number for r in bench.rounds] == [1, 2, 3, 4, 5, 6]
    assert bench.history["number"] == [1, 2, 3, 4, 5, 6]
    assert bench.history["loss"] == [r.loss for r in bench.rounds]
    assert [bool(r.params) for r in bench.rounds] == [False] * 5 + [True]
    assert bench.message.startswith("Done: round 6 of 6")
    assert bench.used == {"cohort": 4, "rounds": 6, "local_lr": 0.5}


def test_a_live_run_equals_a_run_in_a_cell(bench, live):
    bench.runner.start()
    until(lambda: bench.state == "done")
    plain = list(live(lambda: SMALL))
    assert [r.loss for r in bench.rounds] == [r.loss for r in plain]
    assert all((bench.rounds[-1].params[n] == plain[-1].params[n]).all() for n in plain[-1].params)


def test_pause_holds_and_a_turned_knob_counts_from_the_next_round(bench):
    bench.values = bench.values | {"rounds": 300}
    bench.runner.start()
    until(lambda: len(bench.rounds) >= 2)
    bench.runner.pause()
    until(lambda: bench.state == "paused")
    time.sleep(0.3)
    held = len(bench.rounds)
    time.sleep(0.3)
    assert len(bench.rounds) == held
    bench.values = bench.values | {"cohort": 9}
    bench.runner.start()
    until(lambda: len(bench.rounds) > held)
    bench.runner.stop()
    assert bench.state == "stopped"
    assert {len(r.cohort) for r in bench.rounds[:held]} == {4}
    assert len(bench.rounds[held].cohort) == 9
    assert bench.used["cohort"] == 9


def test_only_one_run_is_active(live):
    def endless(config):
        yield from live(lambda: replace(config(), rounds=10_000))
    first, second = (Runner(endless, SMALL, lambda: None) for _ in range(2))
    first.start()
    until(lambda: first.rounds)
    second.start()
    assert first.state == "stopped"
    Workbench(live, SMALL, turn={"cohort": (1, 671)}).close()          # running the cell again stops it, too
    assert second.state == "stopped"
    assert not [t for t in threading.enumerate() if t.name == "fedlab"]


def test_an_error_shows_in_the_status_and_the_rounds_before_it_stay(bench):
    bench.values = bench.values | {"rounds": 300}
    bench.runner.start()
    until(lambda: bench.rounds)
    bench.runner.turn(replace(SMALL, cohort=999, rounds=300))
    until(lambda: bench.state == "failed")
    assert bench.message.startswith("ParameterError: cohort=999: the federation has 671 clients")
    assert bench.rounds
    bench.runner.turn(SMALL)
    bench.runner.start()
    until(lambda: bench.state == "done")


@pytest.mark.parametrize(("value", "message"), [
    ({"cohort": 0}, "cohort=0: choose from 1 to 671"),
    ({"cohort": 2.5}, "cohort=2.5: choose a whole number"),
    ({"local_lr": 5.0}, "local_lr=5.0: choose from 0.1 to 2"),
    ({"local_lr": "<b>1</b>"}, "local_lr='<b>1</b>': choose from 0.1 to 2"),
    ({"seed": 3}, "seed=3: no such parameter"),
])
def test_a_bad_value_is_put_back_and_explained(bench, value, message):
    before = dict(bench.values)
    bench.values = bench.values | value
    assert bench.values == before
    assert bench.notice.startswith(message)
    bench.values = bench.values | {"cohort": 7}
    assert bench.notice == ""
    assert bench.runner.config().cohort == 7


def test_commands_from_the_browser_are_only_the_three(bench):
    bench._told(None, {"command": "_enter"}, None)
    bench._told(None, {}, None)
    assert bench.state == "ready"
    bench._told(None, {"command": "start"}, None)
    until(lambda: bench.state == "done")


def test_knobs_come_from_the_config_and_bad_sliders_are_refused(live):
    bench = Workbench(live, SMALL, turn={"local_lr": (0.1, 1.0)})
    (knob,) = bench.knobs
    assert (knob["label"], knob["whole"], knob["log"]) == ("local learning rate", False, True)
    assert "step size" in knob["meaning"]
    bench.close()
    with pytest.raises(ParameterError, match=r"local_rate=\(0, 1\): no such parameter; did you mean local_lr"):
        Workbench(live, SMALL, turn={"local_rate": (0, 1)})
    with pytest.raises(ParameterError, match=r"turn\['rounds'\]=\(0, 5\): choose two growing numbers from 1"):
        Workbench(live, SMALL, turn={"rounds": (0, 5)})
    gc.collect()


def test_a_diverged_loss_leaves_a_gap_and_not_a_broken_message(bench, live):
    bench.runner.start()
    until(lambda: bench.state == "done")
    broken = replace(bench.rounds[-1], losses=bench.rounds[-1].losses * float("nan"))
    bench.runner.rounds[-1] = broken
    bench._show()
    assert bench.history["loss"][-1] is None
    assert describe("running", [], 5) == "Starting: the first round is under way."
    assert "about" in describe("running", [broken], 50)
