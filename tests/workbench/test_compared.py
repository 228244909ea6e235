"""A run behind the others, and runs that differ in nothing but their seed, as the view is told."""

import pytest
from waiting import until

from fedlab.algorithms import federate
from fedlab.core import Settings
from fedlab.workbench import Workbench
from fedlab.workbench.runs import Run
from fedlab.workbench.view import Pens

SMALL = Settings(rounds=3, cohort=4)


@pytest.fixture
def bench(build, clicks):
    model = build("matrix factorisation", clicks.train)
    made = Workbench(
        lambda settings: federate(model, clicks, settings), SMALL, {"cohort": (1, 9), "seed": None}
    )
    yield made
    made.session.runner.stop()
    made.close()


def tell(bench, command, *given):
    """Send what a button sends, and say why it was refused."""
    bench._told(None, {"command": command, "given": list(given)}, None)
    return bench.notice


def trained(bench):
    count = len(bench.table)
    tell(bench, "start")
    until(lambda: len(bench.table) > count and bench.state == "done")
    return bench.session.members[-1]


def lines(bench):
    return {line["id"]: line for line in bench.picture["lines"]}


def test_a_reference_lies_behind_and_is_no_line_of_its_own(bench):
    first = trained(bench)
    second = trained(bench)
    assert bench.picture["reference"] is None
    assert not tell(bench, "compare", first.id)
    assert bench.picture["reference"]["name"] == first.name
    rounds, values = bench.picture["reference"]["series"]["loss"]
    assert rounds == [1, 2, 3]
    assert values == [float(f"{r['loss']:.5g}") for r in first.records]
    tell(bench, "pin", first.id, True)
    assert set(lines(bench)) == {second.id}
    tell(bench, "compare", second.id)  # the last run has its line as well
    assert set(lines(bench)) == {first.id, second.id}
    tell(bench, "compare", "")
    assert bench.picture["reference"] is None
    assert set(lines(bench)) == {first.id, second.id}


def test_a_reference_that_is_not_there_or_is_deleted(bench):
    first = trained(bench)
    trained(bench)
    assert "gone" in tell(bench, "compare", "gone")
    tell(bench, "compare", first.id)
    tell(bench, "delete", first.id)
    assert bench.picture["reference"] is None


def test_a_sweep_over_seeds_stays_in_the_charts_and_is_alike(bench):
    tell(bench, "sweep", {"seed": "0, 1, 2"}, "loss", 0)
    until(lambda: bench.state == "done")
    found = list(lines(bench).values())
    assert sorted(line["seed"] for line in found) == [0, 1, 2]
    assert {line["alike"] for line in found} == {0}


def test_what_differs_in_more_than_a_seed_is_not_alike(bench):
    tell(bench, "sweep", {"seed": "0, 1", "cohort": "2, 3"}, "loss", 0)
    until(lambda: bench.state == "done")
    for run in bench.session.members:
        tell(bench, "pin", run.id, True)
    alike = {}
    for run in bench.session.members:
        alike.setdefault(run.settings["cohort"], set()).add(lines(bench)[run.id]["alike"])
    assert sorted(map(len, alike.values())) == [1, 1]
    assert not set.intersection(*alike.values())


def test_a_knob_turned_on_the_way_makes_runs_unlike():
    runs = [Run(f"run {seed}", {"cohort": 4, "seed": seed}) for seed in range(3)]
    for run in runs:
        sizes = {"bytes_up": 1, "bytes_down": 1, "seconds": 0.1, "clients": 4}
        run.records = [{"round": n, "loss": 0.5, **sizes} for n in (1, 2)]
    runs[2].records[1]["turned"] = {"cohort": 8}
    found = Pens().picture(runs, runs[2], ["loss"], 2, 1.0)["lines"]
    assert [line["alike"] for line in found] == [0, 0, 2]
