"""Jobs of the runner's thread and sweeps: order, turns, draws."""

import threading
import time

import pytest
from waiting import until

from fedlab.core import ParameterError, Settings
from fedlab.workbench import Experiment, Runner, Sweep, side_by_side, values

BASE = Settings(seed=1)


def test_a_grid_tries_every_combination_once():
    trials = Sweep(
        {"local_lr": [0.1, 0.5, 0.1], "weighting": ["equal", "examples"]}, "loss", "min"
    ).trials(BASE)
    assert [(t.local_lr, t.weighting) for t in trials] == [
        (0.1, "equal"),
        (0.5, "equal"),
        (0.1, "examples"),
        (0.5, "examples"),
    ]
    assert {t.rounds for t in trials} == {BASE.rounds}


def test_a_random_search_draws_every_value_anew_within_its_range():
    sweep = Sweep({"local_lr": [0.01, 10.0], "cohort": [5, 600]}, "loss", "min", count=100)
    trials = sweep.trials(BASE)
    rates, cohorts = [t.local_lr for t in trials], [t.cohort for t in trials]
    assert len(set(rates)) > 80
    assert min(rates) >= 0.01
    assert max(rates) <= 10
    assert 35 <= sum(r < 0.316 for r in rates) <= 65  # by ratios: half in half the decades
    assert all(isinstance(c, int) and 5 <= c <= 600 for c in cohorts)
    assert sweep.trials(BASE) == trials
    assert sweep.trials(Settings(seed=2)) != trials
    names = {
        t.weighting
        for t in Sweep({"weighting": ["equal", "examples"]}, "loss", "min", 20).trials(BASE)
    }
    assert names == {"equal", "examples"}


@pytest.mark.parametrize(
    ("over", "count", "message"),
    [
        ({}, 0, r"over=\[\]: choose one or two"),
        ({"cohort": [1], "rounds": [1], "seed": [1]}, 0, "over=.*choose one or two"),
        ({"cohrt": [1]}, 0, "no such parameter; did you mean cohort"),
        ({"cohort": []}, 0, r"cohort=\[\]: give at least one value"),
        ({"cohort": [4, -1]}, 0, "cohort=-1: choose a whole number"),
        ({"seed": list(range(201))}, 0, "runs=201: a sweep has at most 200"),
        ({"seed": [1, 2]}, 201, "count=201: choose from 1 to 200"),
    ],
)
def test_a_wrong_sweep_is_refused_before_it_trains(over, count, message):
    with pytest.raises(ParameterError, match=message):
        Sweep(over, "loss", "min", count).trials(BASE)


def test_a_trial_has_what_it_does_not_read_as_usual():
    def unread(settings):
        return Experiment(settings).unread()

    base = Settings(clip=0.5, noise=2.0, uplink="clip + gaussian noise", cohort=5)
    stages = ["none", "clip", "clip + gaussian noise"]
    trials = Sweep({"uplink": stages, "cohort": [5, 6]}, "loss", "min").trials(base, unread)
    assert [(t.uplink, t.cohort, t.clip, t.noise) for t in trials[:3]] == [
        ("none", 5, 1.0, 1.0),
        ("clip", 5, 0.5, 1.0),
        ("clip + gaussian noise", 5, 0.5, 2.0),
    ]
    with pytest.raises(
        ParameterError,
        match=r"noise=3.0: nothing in this run reads it; gaussian noise, local noise, distributed "
        r"gaussian would, in the run uplink=none, noise=3.0",
    ):
        Sweep({"uplink": stages, "noise": [3.0]}, "loss", "min").trials(base, unread)


def test_values_are_read_from_text():
    assert values("local_lr", "0.1, 1e-2,,3") == [0.1, 0.01, 3.0]
    assert values("cohort", "4, 8") == [4, 8]
    assert values("weighting", " equal ") == ["equal"]
    assert values("uplink", "none, clip + gaussian noise") == ["none", "clip + gaussian noise"]
    with pytest.raises(ParameterError, match="no such parameter"):
        values("cohrt", "4")


def test_jobs_take_turns_and_one_that_fails_ends_alone():
    log, closed = [], []

    def job(name, rounds, error=None):
        try:
            for number in range(rounds):
                log.append(f"{name}{number}")
                yield
            if error:
                raise error
        finally:
            closed.append(name)

    jobs = [lambda: job("a", 2), lambda: job("b", 1, ValueError("x")), lambda: job("c", 3)]
    for _ in side_by_side(jobs, 2):
        pass
    assert log == ["a0", "b0", "a1", "c0", "c1", "c2"]
    assert closed == ["b", "a", "c"]
    half = side_by_side([lambda: job("d", 9), lambda: job("e", 9)], 2)
    for _ in range(3):
        next(half)
    half.close()
    assert closed[3:] == ["e", "d"]
    with pytest.raises(ParameterError, match="width=0"):
        next(side_by_side([], 0))


def test_the_runner_goes_through_its_states():
    gate, seen = threading.Semaphore(0), []

    def job():
        for number in range(100):
            gate.acquire(timeout=10)
            seen.append(number)
            yield

    states = []
    runner = Runner(lambda: states.append(runner.state))

    runner.start(job(), rounds=1)
    assert runner.busy
    gate.release()
    until(lambda: runner.state == "paused")
    gate.release(5)
    time.sleep(0.05)
    assert seen == [0]  # a pause holds though the work is there
    runner.go(2)
    until(lambda: seen == [0, 1, 2] and runner.state == "paused")
    runner.go()
    until(lambda: len(seen) == 6)
    runner.pause()
    assert runner.state == "paused"
    gate.release()
    until(lambda: len(seen) == 7)
    runner.stop()
    assert runner.state == "stopped"
    assert not runner.busy
    assert states[0] == "running"
    assert states[-1] == "stopped"
