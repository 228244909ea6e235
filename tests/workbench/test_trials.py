"""Runs of a sweep on processes: the same as one by one, whatever stops, dies or cannot be sent."""

import os
import signal
from dataclasses import replace

import torch
from runfiles import posix
from waiting import until

from fedlab.__main__ import main
from fedlab.core import Round, Settings, Stage, load_round, register
from fedlab.workbench import Runs, Sweep, Trials, better, stream
from fedlab.workbench import processes as workers
from fedlab.workbench.session import Session
from fedlab.workbench.sweeps.trials import rounds_of


def endless(settings, start=None):
    """Rounds without end, of a model of one number."""
    done = start or Round(0, Settings(**settings()), {"w": torch.zeros(1)})
    while True:
        done = replace(done, number=done.number + 1, params={"w": done.params["w"] + 1})
        yield done


def mortal(settings):
    """Two rounds, and then the process dies where the seed is 1."""
    for done in endless(settings):
        if done.number > 2 and settings().seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if done.number > 4:
            return
        yield done


def trained(folder, base, over, live=stream, processes=2):
    """The runs of a grid, what was said, and how many processes there were."""
    runs, said = Runs(folder, better()), []
    what = Sweep(over, "loss", "min")
    named = [(what.name(trial), trial) for trial in what.trials(base)]
    job = Trials(live, named, runs, runs.begin, said.append).job(processes)
    for _ in job:
        pass
    return runs, said


def alike(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def test_runs_on_processes_have_the_records_and_the_bits_of_runs_one_by_one(
    tmp_path, tiny_settings
):
    base = Settings(**tiny_settings).replace(rounds=4, uplink="error feedback")
    over = {"seed": [0, 1, 2], "model": ["matrix factorisation", "linear"]}
    (there, said), (here, _) = (
        trained(tmp_path / str(count), base, over, processes=count) for count in (2, 1)
    )
    assert said == []
    for other, run in zip(there.listed(), here.listed(), strict=True):
        assert (other.name, other.state, other.error) == (run.name, "done", "")
        assert other.settings == run.settings
        assert [*map(alike, other.records)] == [*map(alike, run.records)]
        assert other.rounds[-1].settings == run.rounds[-1].settings
        for name, value in run.rounds[-1].params.items():
            assert torch.equal(other.rounds[-1].params[name], value)
        for shelf in ("checkpoint", "best"):
            one, two = (sorted((each.home / shelf).iterdir())[-1] for each in (other, run))
            assert one.name == two.name
            assert all(
                torch.equal(load_round(one).params[name], value)
                for name, value in load_round(two).params.items()
            )
    again = Runs(tmp_path / "2", better())  # as another process reads it
    assert [run.state for run in again.listed()] == ["done"] * 6
    assert again.best(again.listed()[0].id).number == here.best(here.listed()[0].id).number


@posix
def test_a_process_that_dies_fails_its_run_alone_and_names_it(tmp_path):
    runs, _ = trained(tmp_path, Settings(), {"seed": [0, 1, 2]}, live=mortal)
    states = [(run.name, run.state, len(run.records)) for run in runs.listed()]
    assert states == [("seed=0", "done", 4), ("seed=1", "failed", 2), ("seed=2", "done", 4)]
    said = "WorkerDied: the run 'seed=1': its process was killed by signal 9"
    assert runs.listed()[1].error.startswith(said)
    assert runs.listed()[2].rounds[-1].params["w"] == 4
    assert [run.state for run in Runs(tmp_path).listed()] == ["done", "failed", "done"]


def test_stop_ends_all_processes_and_each_run_keeps_its_last_round(tmp_path, monkeypatch):
    crews = []
    hired = workers.hired
    monkeypatch.setattr(
        "fedlab.workbench.sweeps.trials.hired",
        lambda *given: crews.append(hired(*given)) or crews[-1],
    )
    session = Session(endless, Settings(), {}, tmp_path, {}, lambda: None)
    session.sweep(Sweep({"seed": [0, 1, 2]}, "loss", "min"), processes=2)
    until(lambda: len(session.members) == 2 and all(len(r.records) > 3 for r in session.members))
    session.runner.pause()
    until(lambda: session.runner.state == "paused")
    session.runner.stop()
    assert session.runner.state == "stopped"
    assert not any(worker.alive for worker in crews[0][0])
    for run in session.members:
        assert run.state == "stopped"
        last = run.records[-1]["round"]
        assert last == len(run.records) == run.rounds[-1].number
        assert run.rounds[-1].params["w"] == last
        kept = load_round(sorted((run.home / "checkpoint").iterdir())[-1])
        assert (kept.number, kept.params["w"]) == (last, last)
    run, start = session.runs.resume(session.members[0].id)
    assert start.number == len(run.records)
    session.runs.end(run, "stopped")


def test_what_cannot_be_sent_and_runs_of_one_budget_take_turns_and_say_why(
    tmp_path, tiny_settings, own_parts
):
    base = Settings(**tiny_settings)
    over = {"seed": [0, 1]}
    runs, said = trained(None, base, over, live=lambda settings: iter(stream(settings)))
    assert [run.state for run in runs.listed()] == ["done", "done"]
    assert said[0].startswith("runs take turns in one process: it cannot be sent to another")

    @register
    class Mine(Stage):
        """Of a cell."""

    runs, said = trained(None, base.replace(uplink="mine"), over)
    assert [run.state for run in runs.listed()] == ["done", "done"]
    where = "stands in a cell, or in a file that other processes do not read"
    assert said == [f"runs take turns in one process: 'mine' {where}"]

    private = base.replace(uplink="clip + gaussian noise", sampling="poisson", budget=900.0)
    runs, said = trained(tmp_path, private, over)
    assert [run.state for run in runs.listed()] == ["done", "done"]
    assert said[0].endswith(
        "they share one budget, and who is first would decide which of them it ends"
    )


def test_private_runs_on_processes_are_all_booked_in_the_ledger_of_the_folder(
    tmp_path, tiny_settings
):
    base = Settings(**tiny_settings).replace(uplink="clip + gaussian noise", sampling="poisson")
    runs, said = trained(tmp_path, base.replace(rounds=5), {"seed": [0, 1, 2]})
    assert said == []
    assert [run.state for run in runs.listed()] == ["done"] * 3
    lines = runs.ledger.path.read_text().splitlines()
    assert sum('"noise": 1.0' in line for line in lines) == 15
    spent = [run.records[-1]["epsilon"] for run in runs.listed()]
    assert len(set(spent)) == 3  # whoever ended last knows of all


def test_a_run_in_a_process_of_one_core_has_one_thread_and_its_settings_do_not_say_so(
    tiny_settings,
):
    trial = Settings(**tiny_settings)
    for asked in (trial, trial.replace(workers=2), trial.replace(model="linear")):
        *_, done = rounds_of(stream, asked, None)
        *_, same = stream(lambda asked=asked: asked)
        assert done.settings == same.settings
        assert all(torch.equal(done.params[name], same.params[name]) for name in same.params)


def test_the_command_line_takes_processes_and_parts_of_files(tmp_path, tiny_settings, capsys):
    words = [f"--set={name}={value}" for name, value in tiny_settings.items()]
    words += ["--over", "seed=0,1", "--folder", str(tmp_path)]
    assert main(["sweep", *words, "--processes", "-1"]) == 2
    assert "processes=-1: choose 1 to 256, or 0 for one on each core" in capsys.readouterr().err
    assert main(["sweep", *words, "--processes", "2"]) == 0
    out = capsys.readouterr().out
    assert "\nseed=1  1 " in out
    assert "state done" in out
