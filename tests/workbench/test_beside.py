"""What runs stand beside, whether they beat it, and the search that the workbench offers."""

import csv
import io
import json
import shutil
import zipfile

import pytest
import torch
from conftest import tiny
from runfiles import chained_anew
from test_best import made
from waiting import until

from fedlab.__main__ import main
from fedlab.core import ParameterError, Settings, write_settings
from fedlab.data import DataError, from_arrays, leave_one_out, within_an_hour
from fedlab.evaluation import at_k, chance, interval, ndcg, popularity, ranking, rmse
from fedlab.evaluation import metrics as measures
from fedlab.workbench import (
    Experiment,
    Runs,
    Workbench,
    beside,
    better,
    export,
    fit_best,
    lead,
    stream,
)
from fedlab.workbench.best.report import ALIKE
from fedlab.workbench.runs import advice
from fedlab.workbench.runs.log import LOG

HOUR = 3600


def of_file(data, path):
    """The name of a file with these clicks."""
    pairs = zip(data.users.tolist(), data.items.tolist(), data.times.tolist(), strict=True)
    rows = [f"{user},{item},{time}" for user, item, time in pairs]
    path.write_text("\n".join(["user,item,timestamp", *rows]))
    return str(path)


@pytest.fixture(scope="module")
def tasteful(tmp_path_factory):
    """A file of clicks that follow tastes, which popularity knows nothing of."""
    return of_file(made(tastes=4), tmp_path_factory.mktemp("data") / "clicks.csv")


def learning(data, **turned):
    """Settings of a federation that learns tastes within a moment."""
    how = {"local": "implicit", "rounds": 4, "cohort": 60, "against": 20}
    return Settings(data=data, **how | turned)


def test_chance_and_popularity_and_means_are_what_they_are_by_hand(tiny_settings):
    settings = Settings(**tiny_settings)
    found, here = beside(settings), Experiment(settings)
    assert found["popularity"] == ranking(popularity(here.split.train), here.candidates)
    ranks = torch.arange(1, 22)  # each as likely as any other, beside 20 items
    assert found["chance"] == pytest.approx(at_k(ranks), abs=1e-6)
    assert chance(torch.tensor([4]))["hr@10"] == 1.0
    stars = Settings(**tiny_settings | {"task": "ratings", "model": "linear"}).without(["against"])
    split, means = Experiment(stars).split, beside(stars)
    held, train = split.validation, split.train
    assert means["mean rating"]["rmse"] == pytest.approx(
        float(held.values.square().mean()) ** 0.5 * split.std
    )
    total = torch.zeros(24).index_add_(0, train.users, train.values)
    own = (total / (train.user_counts() + 5))[held.users]
    assert means["mean of each user"]["rmse"] == pytest.approx(rmse(own, held.values) * split.std)
    assert beside(settings.replace(train_on="everything").without(["against"])) == {}


def test_a_lead_is_paired_by_user_and_one_of_popularity_over_itself_is_none(tasteful):
    settings = learning(tasteful)
    *_, done = stream(lambda: settings)
    found, here = lead(settings, done), Experiment(settings)
    mine, theirs = (
        here.candidates.ranks(score) for score in (here.score(done), popularity(here.split.train))
    )
    assert found["more"] == pytest.approx(ndcg(mine) - ndcg(theirs), abs=1e-6)
    assert found["low"] < found["more"] < found["high"]
    assert (found["over"], found["clients"], found["round"]) == ("popularity", 60, 4)
    none = {**found, "more": 0.0, "low": 0.0, "high": 0.0}
    run = Runs().begin(settings, "mine")
    run.lead = none
    assert "mine DOES NOT BEAT POPULARITY: +0.0000" in run.verdict


def test_ratings_are_led_by_the_better_of_the_means(tiny_settings):
    settings = Settings(
        **tiny_settings | {"task": "ratings", "model": "linear", "local_lr": 0.01}
    ).without(["against"])
    *_, done = stream(lambda: settings)
    found, means = lead(settings, done), beside(settings)
    assert found["over"] == min(means, key=lambda name: means[name]["rmse"])
    own = done.metrics["rmse"]
    assert found["more"] == pytest.approx(means[found["over"]]["rmse"] ** 2 - own**2, abs=1e-5)


def test_the_command_says_it_and_the_folder_keeps_it(tasteful, tmp_path, capsys):
    file, folder = tmp_path / "settings.json", str(tmp_path / "runs")
    file.write_text(write_settings(learning(tasteful)))
    assert main(["run", str(file), "--folder", folder, "--name", "good"]) == 0
    assert "good beats popularity: +" in capsys.readouterr().out.splitlines()[-1]
    popular = of_file(made(tastes=1), tmp_path / "popular.csv")
    words = ["--set", f"data={popular}", "--set", "local=sgd", "--set", "cohort=2"]
    words += ["--set", "rounds=1"]
    assert main(["run", str(file), "--folder", folder, "--name", "poor", *words]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("poor DOES NOT BEAT POPULARITY")
    assert "0.033 rounds on average: let more take part in a round (cohort)" in last
    assert main(["compare", folder]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any("chance ndcg@10" in line for line in said)
    assert any("popularity ndcg@10" in line for line in said)
    assert any(line.startswith("good ") and "NDCG@10 [+0." in line for line in said)
    assert any(line.startswith("poor ") and "NDCG@10 [-0." in line for line in said)
    kept = Runs(folder)
    one, other = kept.listed()
    assert [each.beside for each in kept.listed()] == [
        beside(Settings(**each.settings)) for each in kept.listed()
    ]
    assert one.lead["low"] > 0 > other.lead["low"]
    rows = list(csv.DictReader(io.StringIO(export([one], "csv").decode())))
    assert float(rows[0]["popularity: ndcg@10"]) == one.beside["popularity"]["ndcg@10"]
    assert json.loads(export([one], "json"))["runs"][0]["lead"] == one.lead
    assert export([one], "png").startswith(b"\x89PNG")
    place = tmp_path / "model"
    assert main(["export", "good", "--folder", folder, "--to", str(place)]) == 0
    assert "This model beats popularity: +" in (place / "card.md").read_text()


def test_a_run_that_goes_on_is_compared_anew(tasteful, tmp_path, capsys):
    file, folder = tmp_path / "settings.json", str(tmp_path / "runs")
    file.write_text(write_settings(learning(tasteful, rounds=1)))
    assert main(["run", str(file), "--folder", folder]) == 0
    assert main(["resume", "run 1", "--folder", folder, "--set", "rounds=6"]) == 0
    assert "run 1 beats popularity" in capsys.readouterr().out.splitlines()[-1]
    (run,) = Runs(folder).listed()
    assert run.lead["round"] == run.best("ndcg@10", "max")["round"]


def test_what_the_log_says_of_it_is_checked(tasteful, tmp_path):
    runs = Runs(tmp_path, better(), None, beside, lead)
    run, settings = runs.begin(learning(tasteful)), learning(tasteful)
    for done in stream(lambda: settings):
        runs.add(run, done, settings)
    runs.end(run, "done")
    for number, (old, new) in enumerate(
        {
            '"over": "popularity"': '"over": 3',
            '"by": "ndcg@10"': '"by": "hr"',
            '{"chance": {"hr@10": 0.': '{"chance": {"hr@10": "0."}, "x": {"hr@10": 0.',
        }.items()
    ):
        other = tmp_path / f"other {number}"
        shutil.copytree(tmp_path / run.id, other / run.id)
        assert old in (other / run.id / LOG).read_text()
        chained_anew(other / run.id, lambda text, old=old, new=new: text.replace(old, new))
        (bad,) = Runs(other).listed()
        assert bad.state == "damaged"
        assert "remove the run's folder" in bad.error


def test_what_to_try_hangs_on_how_often_clients_took_part():
    assert advice(0.317).startswith("Each client took part in 0.32 rounds on average")
    assert advice(10).startswith("Try other learning rates")


def test_an_interval_of_many_is_that_of_a_bootstrap(monkeypatch):
    each = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    drawn = interval(each)
    monkeypatch.setattr(measures, "MANY", 1000)
    assert interval(each) == pytest.approx(drawn, abs=1e-3)


def test_how_soon_the_test_came_by_hand():
    times = [0, 10, 20, 30, 0, 10, 20, 20 * HOUR]
    split = leave_one_out(tiny([0] * 4 + [1] * 4, [0, 1, 2, 3] * 2, times=times))
    assert within_an_hour(split) == 0.5
    with pytest.raises(DataError, match="time"):
        within_an_hour(leave_one_out(from_arrays([0] * 4, [0, 1, 2, 3])))


def test_figures_of_several_seeds_are_means(tmp_path):
    data, quiet = made(tastes=4), {"processes": 1, "say": lambda line: None, "budget": 2}
    ones = [fit_best(data, folder=tmp_path / str(s), seed=s, **quiet) for s in (0, 1)]
    both = fit_best(data, folder=tmp_path / "0", seeds=2, **quiet)

    def row(best, name):
        return next(each for each in best.table if each.method == name)

    for name in ("popularity", "item kNN", "pooled EASE"):  # of the same settings in each
        wanted = [row(one, name).metrics["ndcg@10"] for one in ones]
        assert row(both, name).metrics["ndcg@10"] == pytest.approx(sum(wanted) / 2)
        spread = torch.tensor(wanted).std()
        assert row(both, name).metrics["ndcg@10 sd"] == pytest.approx(float(spread), abs=1e-6)
    assert "means over 2 seeds" in both.report
    assert "ndcg@10 sd" not in row(ones[0], "popularity").metrics


def test_what_recency_gains_stands_beside(tmp_path, monkeypatch):
    from fedlab.workbench.best.methods import federated

    def recent(train):
        method = federated(train)[0]
        (guess,) = (each for each in method.first if each["recency"] == 1.0)
        return [type(method)(method.name, method.ranges, [guess], method.settings)]

    monkeypatch.setattr("fedlab.workbench.best.fit.federated", recent)
    best = fit_best(made(tastes=4), budget=1, folder=tmp_path, processes=1, say=lambda line: None)
    assert ALIKE in [row.method for row in best.table]
    assert "100% of the test clicks came within an hour" in best.report
    assert "weighing recent clicks gains " in best.report
    assert "in the sampled ranking and " in best.report


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seeds": 0}, "seeds=0: choose a whole number from 1"),
        ({"settings": Settings(rounds=3)}, "rounds=3: the search chooses it"),
        (
            {"settings": Settings(uplink="clip + gaussian noise")},
            "a release that no epsilon would count; search without noise",
        ),
        ({"settings": Settings(uplink="clip + clip")}, "clip"),
    ],
)
def test_what_a_search_cannot_share_is_refused(tmp_path, how, message):
    with pytest.raises(ParameterError, match=message):
        fit_best(made(tastes=4), folder=tmp_path, processes=1, say=lambda line: None, **how)


def test_all_trials_send_by_the_uplink_that_is_asked_for(tmp_path):
    shared = Settings(uplink="error feedback", codec="signs")
    how = {"budget": 1, "processes": 1, "say": lambda line: None}
    best = fit_best(made(tastes=4), folder=tmp_path, settings=shared, **how)
    assert best.settings.uplink == "error feedback"
    assert {run.settings["codec"] for run in Runs(tmp_path).listed()} == {"signs"}


def tell(bench, command, *given):
    """Send what a button sends."""
    bench._told(None, {"command": command, "given": list(given)}, None)


@pytest.fixture
def bench(tasteful, tmp_path):
    start = Settings(data=tasteful, rounds=2, cohort=8, against=20)
    shown = Workbench(stream, start, metrics=better(), folder=tmp_path)
    yield shown
    shown.session.runner.stop()
    shown.close()


def test_the_workbench_draws_what_a_run_stands_beside(bench):
    tell(bench, "start")
    until(lambda: bench.state == "done")
    (line,), (row,) = bench.picture["lines"], bench.table
    assert line["beside"] == beside(bench.session.settings)
    assert row["beside"]["popularity ndcg@10"] == line["beside"]["popularity"]["ndcg@10"]
    assert "BEAT POPULARITY" in row["verdict"] or "beats popularity" in row["verdict"]
    assert bench.message.endswith(row["verdict"])


def test_the_workbench_finds_the_best(bench):
    tell(bench, "find", "sampled", "2")
    until(lambda: bench.state == "done")
    assert bench.report.startswith("federated")
    assert bench.message == "Done: " + bench.report.split("\n")[0]
    assert bench.picture["progress"] == 1.0
    found = bench.session.found
    (row,) = (each for each in bench.table if each["id"] == found.run)
    assert row["name"].endswith("on everything")
    assert len(found.top("0", 3)) == 3
    with zipfile.ZipFile(io.BytesIO(found.zipped())) as files:
        card = files.read("fedlab-model/card.md").decode()
    assert bench.report.split("\n")[0] in card
    tell(bench, "start")  # a run of one's own comes next
    until(lambda: bench.state == "done" and bench.message.startswith("Done: round"))


def test_a_search_that_is_stopped_in_the_workbench_keeps_its_best(bench):
    heard = bench.session._heard

    def stop_after_one(line):
        heard(line)
        if line.startswith("trial 1 "):
            bench.session.stop()

    bench.session._heard = stop_after_one
    tell(bench, "find", "sampled", "40")
    until(lambda: bench.state == "stopped")
    assert bench.session.found.cancelled
    assert "The search was cancelled after" in bench.report


@pytest.mark.parametrize(
    ("given", "turned", "folder", "message"),
    [
        (("sampled", "0"), {}, True, "budget='0': choose a number of trials"),
        (("auc", "2"), {}, True, "objective='auc'"),
        (("sampled", "2"), {"task": "ratings"}, True, "task='ratings': a search ranks items"),
        (("sampled", "2"), {}, False, "name a folder under Runs"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_the_workbench(bench, given, turned, folder, message):
    bench.session.settings = bench.session.settings.replace(**turned)
    if not folder:
        bench.session.runs.folder = None
    tell(bench, "find", *given)
    assert message in bench.notice
    assert bench.state == "ready"
