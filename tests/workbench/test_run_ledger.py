"""The ledger of a folder of runs: every private run books there, and none gets around it."""

import json
import signal
import subprocess
import sys

import pytest
from composition import folder
from runfiles import posix
from waiting import until

from fedlab.__main__ import main
from fedlab.core import ParameterError, Settings, checkpoints_in
from fedlab.privacy import Ledger, People, Release, epsilon
from fedlab.workbench import Experiment, Runs, Workbench, stream

Q = 8 / 26


def asked(**more):
    return Settings(
        **{
            "data": folder(),
            "rounds": 3,
            "cohort": 8,
            "dim": 4,
            "against": 20,
            "uplink": "clip + gaussian noise",
            "sampling": "poisson",
            "noise": 2.0,
        }
        | more
    )


def settings_of(given):
    return [f"--set={name}={value}" for name, value in given.items()]


def run(tmp_path, given, *more):
    return main(["run", "--folder", str(tmp_path), *settings_of(given), *more])


def shown(tmp_path):
    return Runs(tmp_path).listed()[-1].records[-1]["epsilon"]


def booked(tmp_path, given):
    return Ledger(tmp_path / "ledger").spent(People.of(Experiment(given).federation))


def test_runs_of_the_command_line_add_up(tmp_path, capsys):
    for runs in (1, 2, 3):
        assert run(tmp_path, asked()) == 0
        alone = epsilon([Release(2.0, Q, 3 * runs)], 1e-4)
        assert shown(tmp_path) == pytest.approx(alone)
    assert run(tmp_path, asked(budget=0.5)) == 2
    assert "budget=0.5: a round would bring epsilon from" in capsys.readouterr().err
    assert booked(tmp_path, asked())["releases"] == {(2.0, Q, "poisson"): 9}


def test_a_sweep_adds_up_over_its_trials(tmp_path):
    over = ["--over", "local_lr=0.1,0.5,1.0", "--metric", "loss"]
    assert main(["sweep", "--folder", str(tmp_path), *settings_of(asked()), *over]) == 0
    assert booked(tmp_path, asked())["releases"] == {(2.0, Q, "poisson"): 9}
    most = max(each.records[-1]["epsilon"] for each in Runs(tmp_path).listed())
    assert most == pytest.approx(epsilon([Release(2.0, Q, 9)], 1e-4))


def test_the_workbench_and_the_command_line_share_it(tmp_path):
    assert run(tmp_path, asked()) == 0
    bench = Workbench(stream, asked(), folder=tmp_path)
    bench.session.start()
    until(lambda: not bench.session.runner.busy)
    assert bench.session.runner.state == "done"
    assert shown(tmp_path) == pytest.approx(epsilon([Release(2.0, Q, 6)], 1e-4))


def trained_in(bench):
    bench.session.start()
    until(lambda: not bench.session.runner.busy)
    assert bench.session.runner.state == "done"
    return bench.session.runs.listed()[-1].records[-1]["epsilon"]


def test_another_folder_gets_what_was_booked_in_the_one_before(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    bench = Workbench(stream, asked(), folder=one)
    runs = bench.session.runs
    assert trained_in(bench) == pytest.approx(epsilon([Release(2.0, Q, 3)], 1e-4))
    (one / "ledger.head").write_text("beside it")
    runs.open(two)
    assert runs.trouble == ""
    assert (two / "ledger.head").read_text() == "beside it"
    (one / "ledger.head").unlink()
    (two / "ledger.head").unlink()
    assert trained_in(bench) == pytest.approx(epsilon([Release(2.0, Q, 6)], 1e-4))
    assert booked(two, asked())["releases"] == {(2.0, Q, "poisson"): 6}
    runs.open(two)  # the same one
    assert runs.trouble == ""
    both = [path.read_bytes() for path in (one / "ledger", two / "ledger")]
    runs.open(one)
    assert "count apart" in runs.trouble
    assert str(two / "ledger") in runs.trouble
    assert [path.read_bytes() for path in (one / "ledger", two / "ledger")] == both
    runs.open(two)  # which has all that the other one has
    assert runs.trouble == ""
    bench.close()


def test_a_teaching_seed_counts_its_own_run_alone(tmp_path):
    for _ in range(2):
        assert run(tmp_path, asked(teaching_seed=0)) == 0
        assert shown(tmp_path) == pytest.approx(epsilon([Release(2.0, Q, 3)], 1e-4))
    assert not (tmp_path / "ledger").exists()


@posix
def test_what_a_killed_run_released_stays_booked(tmp_path):
    words = [sys.executable, "-m", "fedlab", "run", "--folder", str(tmp_path)]
    process = subprocess.Popen([*words, *settings_of(asked(rounds=5000))])
    people = People.of(Experiment(asked()).federation)
    path = tmp_path / "ledger"

    def times():
        return Ledger(path).spent(people).get("releases", {}).get((2.0, Q, "poisson"), 0)

    until(lambda: path.exists() and times() > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = Runs(tmp_path).listed()
    seen, spent = len(killed.records), times()
    assert seen <= spent <= seen + 1  # booked before it is released
    kept = [int(path.name) for path in checkpoints_in(tmp_path / killed.id / "checkpoint")]
    goes_on = max(kept) + 5
    words = ["resume", killed.id, "--folder", str(tmp_path), f"--set=rounds={goes_on}"]
    assert main(words) == 0
    assert times() == spent + 5  # repeated rounds are new releases
    assert shown(tmp_path) == pytest.approx(epsilon([Release(2.0, Q, spent + 5)], 1e-4))


def test_a_ledger_that_was_edited_ends_the_command(tmp_path, capsys):
    assert run(tmp_path, asked()) == 0
    path = tmp_path / "ledger"
    path.write_bytes(path.read_bytes().replace(b'"noise": 2.0', b'"noise": 9.0'))
    assert run(tmp_path, asked()) == 2
    assert "this line, or one before it, was changed" in capsys.readouterr().err
    assert run(tmp_path, asked(uplink="none").without(["noise", "sampling"])) == 2


def test_a_run_does_not_go_on_beside_a_ledger_that_lacks_it(tmp_path, capsys):
    assert run(tmp_path, asked()) == 0
    (tmp_path / "ledger").unlink()
    (tmp_path / "ledger.head").unlink()
    (done,) = Runs(tmp_path).listed()
    words = ["resume", done.id, "--folder", str(tmp_path), "--set=rounds=5"]
    assert main(words) == 2
    assert "lacks releases of the Round to start from" in capsys.readouterr().err


def test_a_stream_of_ones_own_without_a_ledger_still_runs(tmp_path):
    def live(ask):
        return stream(ask)

    bench = Workbench(live, asked(), folder=tmp_path)
    bench.session.start()
    until(lambda: not bench.session.runner.busy)
    assert bench.session.runner.state == "done"
    assert not (tmp_path / "ledger").exists()


def test_a_ledger_is_made_of_a_file(tmp_path):
    with pytest.raises(ParameterError, match=r"ledger=.*give a Ledger, made of a file"):
        next(stream(asked, ledger=str(tmp_path)))


def test_the_best_model_leaves_with_what_was_spent_by_then(tmp_path, capsys):
    runs = tmp_path / "runs"
    for _ in range(2):
        assert run(runs, asked(measure_every=1), "--name", "mine") == 0
    last = Runs(runs).listed()[-1]
    words = ["export", last.id, "--folder", str(runs), "--to", str(tmp_path / "model")]
    assert main(words) == 0
    best = Runs(runs).best(last.id)
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    by_hand = epsilon([Release(2.0, Q, 3 + best.number)], 1e-4)
    assert card["privacy"]["epsilon"] == pytest.approx(by_hand)
    assert f"after round {best.number}" in capsys.readouterr().out
    assert main(words) == 2  # the folder holds a model
    assert main(["export", "mine", "--folder", str(runs), "--to", str(tmp_path / "x")]) == 2
    assert "several have this name" in capsys.readouterr().err
