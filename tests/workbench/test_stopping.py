"""Runs that end at a target or when patience is out: in a stream, on the command line, resumed."""

import math

import pytest

from fedlab.__main__ import main
from fedlab.core import ParameterError, Settings, load_round, save_round
from fedlab.workbench import Experiment, Runs, stream
from fedlab.workbench.session import Session
from fedlab.workbench.view import status

LONG = {"rounds": 30, "local_lr": 1.0, "server_lr": 8.0, "dim": 4}


@pytest.fixture(scope="module")
def whole(tiny_settings):
    """The NDCG of each round of a run that nothing ends."""
    settings = Settings(**tiny_settings | LONG)
    return [done.metrics["ndcg@10"] for done in stream(lambda: settings)]


def ended(tiny_settings, **change):
    settings = Settings(**tiny_settings | LONG | change)
    return list(stream(lambda: settings))


def test_a_target_ends_a_run_where_it_is_first_reached(tiny_settings, whole):
    aim = sorted(whole)[len(whole) // 2]
    first = next(n for n, value in enumerate(whole, 1) if value >= aim)
    rounds = ended(tiny_settings, stop_at=aim)
    assert len(rounds) == first < len(whole)
    assert rounds[-1].ended == f"ndcg@10 has reached {aim:g}"
    assert len(ended(tiny_settings, stop_at=1.5)) == len(whole)  # out of reach


def by_hand(values, patience):
    """The round with which patience is out."""
    best, since = -math.inf, 0
    for number, value in enumerate(values, 1):
        best, since = (value, 0) if value > best else (best, since + 1)
        if since == patience:
            return number
    return len(values)


def test_patience_ends_a_run_and_counts_rounds_that_measure(tiny_settings, whole):
    ends = by_hand(whole, 3)
    assert ends < len(whole)
    rounds = ended(tiny_settings, patience=3)
    assert len(rounds) == ends
    assert [done.metrics["ndcg@10"] for done in rounds] == whole[:ends]
    seldom = ended(tiny_settings, patience=2, measure_every=3)
    assert len(seldom) == 3 * by_hand(whole[2::3], 2)


def test_stars_end_below_a_target_and_another_metric_may_be_named(tiny_settings):
    left = {name: value for name, value in tiny_settings.items() if name != "against"}
    stars = {"task": "ratings", "model": "linear", "local_lr": 0.01, "rounds": 20}
    errors = [d.metrics["rmse"] for d in stream(lambda: Settings(**left | stars))]
    aim = (errors[0] + min(errors)) / 2
    first = next(n for n, value in enumerate(errors, 1) if value <= aim)
    settings = Settings(**left | stars, stop_at=aim)
    assert len(list(stream(lambda: settings))) == first
    last = ended(tiny_settings, patience=1, stop_by="hr@10")[-1]
    assert last.ended == "hr@10 has not improved for 1 measured rounds"


def test_what_ends_nothing_is_refused(tiny_settings):
    with pytest.raises(ParameterError, match="stop_by='auc': choose one that the run measures: nd"):
        ended(tiny_settings, patience=3, stop_by="auc")
    with pytest.raises(ParameterError, match="stop_by='hr@10': experiment does not read it"):
        ended(tiny_settings, stop_by="hr@10")
    assert "stop_by" in Experiment(Settings()).unread()
    with pytest.raises(ParameterError, match="patience=-1"):
        Settings(patience=-1)


def test_a_run_that_is_resumed_off_the_disk_ends_where_it_would_have(tiny_settings, tmp_path):
    settings = Settings(**tiny_settings | LONG, patience=4)
    rounds = list(stream(lambda: settings))
    for cut in (1, len(rounds) - 2):
        start = load_round(save_round(rounds[cut - 1], tmp_path / f"{cut}"))
        rest = list(stream(lambda: settings, start))
        assert [done.metrics for done in rest] == [done.metrics for done in rounds[cut:]]
        assert rest[-1].ended == rounds[-1].ended
    last = load_round(save_round(rounds[-1], tmp_path / "last"))
    with pytest.raises(ParameterError, match="the run had ended: ndcg@10 has not improved for 4"):
        next(stream(lambda: settings, last))


def test_the_command_line_says_why_a_run_ended_and_goes_on_when_more_is_asked(
    tiny_settings, tmp_path, capsys
):
    words = [f"--set={name}={value}" for name, value in (tiny_settings | LONG).items()]
    folder = f"--folder={tmp_path / 'runs'}"
    assert main(["run", *words, "--set=patience=3", folder]) == 0
    said = capsys.readouterr().out
    (run,) = Runs(tmp_path / "runs").listed()
    number = run.records[-1]["round"]
    assert number < 30
    why = "ndcg@10 has not improved for 3 measured rounds"
    assert f"run 1 ended early, after round {number}: {why}." in said
    assert main(["resume", "run 1", folder]) == 2
    assert why in capsys.readouterr().err
    assert main(["resume", "run 1", "--set=patience=0", folder]) == 0
    (run,) = Runs(tmp_path / "runs").listed()
    assert len(run.records) == 30


def test_runs_of_a_sweep_end_by_themselves(tiny_settings, tmp_path):
    words = [f"--set={name}={value}" for name, value in (tiny_settings | LONG).items()]
    where = f"--folder={tmp_path / 'runs'}"
    assert main(["sweep", *words, "--over=patience=2,5", "--processes=1", where]) == 0
    short, long = Runs(tmp_path / "runs").listed()
    assert short.state == long.state == "done"
    assert len(short.records) < len(long.records) < 30


def test_the_workbench_says_why(tiny_settings):
    settings = Settings(**tiny_settings | LONG, patience=2)
    session = Session(stream, settings, {"ndcg@10": "max"}, None, {}, lambda: None)
    session.start()
    session.runner._thread.join()
    text = status(session, {"MB up": 0.0, "MB down": 0.0})
    assert "ndcg@10 has not improved for 2 measured rounds" in text
    assert session.members[-1].state == "done"
