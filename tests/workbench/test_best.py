"""The best model for some data: the same for a seed, honest, resumable, and no use without data."""

import json
import math
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file

from fedlab.__main__ import main
from fedlab.core import DataError, ParameterError, Settings
from fedlab.data import from_arrays, leave_one_out, of_users, recent
from fedlab.evaluation import Unmet, candidates, gains, interval, popularity, ranking
from fedlab.workbench import Experiment, Runs, better, fit_best, load_model, stream
from fedlab.workbench.best import memory, methods
from fedlab.workbench.best.memory import needed
from fedlab.workbench.best.methods import TABLE, federated, least_clicks, pooled, shortened
from fedlab.workbench.best.report import Facts, Row, chance, verdict
from fedlab.workbench.best.search import Budget
from fedlab.workbench.export import export_model
from fedlab.workbench.export.recommender import unknown
from fedlab.workbench.runs.log import LOG

USERS, ITEMS, OWN = 60, 40, 8


def made(*, tastes, seed=0):
    """Clicks of users who keep to the items of one of so many tastes; with 1 all are popular."""
    draw = torch.Generator().manual_seed(seed)
    chances = 1 / (1 + torch.arange(ITEMS) // tastes).double()
    rows = []
    for user in range(USERS):
        mine = torch.where(torch.arange(ITEMS) % tastes == user % tastes, chances, chances / 100)
        rows.append(torch.multinomial(mine, OWN, generator=draw))
    users = torch.arange(USERS).repeat_interleave(OWN)
    return from_arrays(
        users.numpy(), torch.cat(rows).numpy(), times=torch.arange(USERS * OWN).numpy()
    )


@pytest.fixture(scope="module")
def tasteful():
    return made(tastes=4)


@pytest.fixture(scope="module")
def search(tasteful, tmp_path_factory):
    """A search of six trials: its folder, what it said, and its best."""
    folder, said = tmp_path_factory.mktemp("best"), []
    best = fit_best(tasteful, budget=6, folder=folder, processes=1, say=said.append)
    return folder, said, best


def quiet(data, **how):
    """A search in one process that says nothing."""
    return fit_best(data, **{"processes": 1, "say": lambda line: None, "budget": 2} | how)


def test_tastes_are_found_and_beat_popularity(search):
    _, said, best = search
    assert " beats popularity: +" in best.report.split("\n")[0]
    names = [row.method for row in best.table]
    assert names[:2] == ["chance", "popularity"]
    assert {"item kNN", "pooled EASE", "pooled iALS", "federated iALS"} <= set(names)
    assert sum(line.startswith("trial") and "federated" in line for line in said) == 6


def test_what_only_popularity_explains_is_not_shown_as_a_success():
    best = quiet(made(tastes=1), budget=4)
    first, fix, *_ = best.report.split("\n")
    assert "DOES NOT BEAT POPULARITY" in first
    assert "Recommend what is popular" in fix


def test_a_seed_gives_the_same_trials_and_the_same_bits_side_by_side_or_not(
    search, tasteful, tmp_path
):
    _, said, best = search
    again = []
    other = fit_best(tasteful, budget=6, folder=tmp_path, processes=2, say=again.append)

    def told(lines):
        return sorted(line.partition("; best so far")[0] for line in lines)

    assert told(again) == told(said)
    assert other.report == best.report
    assert other.top("0", 5) == best.top("0", 5)


def test_the_table_is_of_models_that_have_seen_train_alone(search, tasteful):
    folder, _, best = search
    split = leave_one_out(tasteful)
    popular = next(row for row in best.table if row.method == "popularity")
    against = best.settings.get("against", 99)
    drawn = candidates(split, "test", min(against, ITEMS - OWN))
    want = ranking(popularity(split.train), drawn)
    assert popular.metrics["ndcg@10"] == want["ndcg@10"]
    assert popular.metrics["ndcg@10 low"] <= want["ndcg@10"] <= popular.metrics["ndcg@10 high"]
    whole = Experiment(best.settings).split
    assert (len(whole.train), len(whole.test)) == (USERS * OWN, 0)
    runs = Runs(folder, better()).listed()
    assert len(runs) == 7  # six trials, and the model itself, of which nothing is measured
    measured = ["ndcg@10" in run.records[-1] for run in runs]
    assert measured == [True] * 6 + [False]
    assert runs[-1].id == best.run


def test_validation_chooses_by_the_objective(search, tasteful):
    folder, _, _ = search
    best = quiet(tasteful, budget=6, folder=folder, objective="full")
    runs = [run for run in Runs(folder, better()).listed() if "full ndcg@10" in run.records[-1]]
    top = max(runs, key=lambda run: run.records[-1]["full ndcg@10"])
    for name in ("local", "dim", "ridge", "unseen", "recency"):
        assert best.settings[name] == (top.settings.get(name, best.settings[name]))


def test_a_search_goes_on_where_it_was(search, tasteful):
    folder, _, best = search
    before = {run.id for run in Runs(folder, better()).listed()}
    again = quiet(tasteful, budget=6, folder=folder)
    assert again.report == best.report
    assert {run.id for run in Runs(folder, better()).listed()} == before


def test_a_search_that_is_cancelled_keeps_its_best(tasteful, tmp_path):
    said = []

    def stop():
        return sum(line.startswith("trial") for line in said) >= 2

    best = quiet(tasteful, budget=8, folder=tmp_path, say=said.append, stop=stop)
    assert best.cancelled
    assert "cancelled after 2 federated trials" in best.report
    assert "Not tried: item kNN, pooled EASE, pooled iALS" in best.report
    assert len(best.top("0", 3)) == 3
    whole = quiet(tasteful, budget=3, folder=tmp_path)
    assert not whole.cancelled
    assert "3 federated trials" in whole.report


def test_ctrl_c_keeps_the_best_too_and_says_so_where_there_is_none(tasteful, tmp_path):
    def interrupt(line):
        if line.startswith("trial 1"):
            raise KeyboardInterrupt

    best = quiet(tasteful, folder=tmp_path / "one", say=interrupt)
    assert "cancelled after 1 federated trials" in best.report
    with pytest.raises(KeyboardInterrupt, match="before the first trial"):
        quiet(tasteful, folder=tmp_path / "none", stop=lambda: True)


def test_nobody_is_recommended_what_they_have_seen(search, tasteful):
    *_, best = search
    for user in range(0, USERS, 7):
        found = best.top(str(user), ITEMS)
        mine = set(tasteful.items[tasteful.users == user].tolist())
        assert {int(pick.item) for pick in found} == set(range(ITEMS)) - mine
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    some = ["0", "4", "8"]
    assert not {pick.item for pick in best.top(some, ITEMS)} & set(some)


@pytest.mark.parametrize("method", ["federated iALS", "federated EASE"])
def test_one_person_scores_as_all_do_together(tasteful, tmp_path, monkeypatch, method):
    def only(train):
        return [each for each in federated(train) if each.name == method]

    monkeypatch.setattr("fedlab.workbench.best.fit.federated", only)
    best = quiet(tasteful, folder=tmp_path)
    here = Experiment(best.settings)
    score = here.score(best._done)
    train = here.split.train
    for user in (0, 13):
        found = best.top(str(user), 5)
        items = torch.tensor([int(pick.item) for pick in found])
        want = score(torch.full_like(items, user), items)
        got = torch.tensor([pick.score for pick in found])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        order = train.times[train.users == user].argsort()
        same = [str(i) for i in train.items[train.users == user][order].tolist()]
        for one, other in zip(best.top(same, 5), found, strict=True):  # a new person of like clicks
            assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-6)


def test_what_is_saved_scores_the_same_in_plain_torch(search, tmp_path):
    *_, best = search
    place = best.save(tmp_path / "model")
    card = json.loads((place / "card.json").read_text())
    words = (place / "card.md").read_text()
    assert best.report.split("\n")[0] in words
    assert "popularity" in card["metrics"]["table"]
    for text in (best.report, words):
        for meaning in (
            "HR@10: the share of users",
            "NDCG@10: the same",
            "[95%]: users were drawn",
        ):
            assert text.count(meaning) == 1
    rows = json.loads((place / "rows.json").read_text())["item"]
    weights = load_file(place / "model.safetensors")
    user, train = 5, Experiment(best.settings).split.train
    space = {"weights": weights}
    mine = train.take(train.users == user)
    line = card["load"]["lines"][-1]
    if "clicked" in line:
        clicks = torch.zeros(ITEMS)
        clicks[mine.items] = recent(mine, best.settings.recency)
        scores = clicks @ weights["item_item"]
    else:
        here = Experiment(best.settings)
        own = here.local.personal(here.federation, dict(best._done.params))
        space["user"] = own["user"][user]
        exec(line, space)
        scores = space["scores"]
    for pick in best.top(str(user), 5):
        assert float(scores[rows.index(pick.item)]) == pytest.approx(pick.score, rel=1e-4)
    with pytest.raises(ParameterError, match="something is there already"):
        best.save(place)


def test_what_is_saved_is_opened_again_and_recommends_the_same(search, tasteful, tmp_path, capsys):
    *_, best = search
    place = best.save(tmp_path / "model")
    opened = load_model(place)
    for who in ("5", 7, ["0", "4", "8"], [12, 1]):
        ours, theirs = best.top(who, 6), opened.top(who, 6)
        assert [pick[:2] for pick in theirs] == [pick[:2] for pick in ours]
        scores = [pick.score for pick in theirs]
        assert scores == pytest.approx([pick.score for pick in ours], rel=1e-5)
    more = from_arrays(["u0"] * 3, ["3", "1", "99"], times=[1, 2, 3])
    new = load_model(place, more)
    assert new.top("u0", 4) == opened.top(["3", "1"], 4)  # the item that came later is left out
    with pytest.raises(ParameterError, match="user='5': these data have no such user"):
        new.top("5")
    capsys.readouterr()
    assert main(["top", str(place), "5", "-k", "3"]) == 0
    known = capsys.readouterr().out.splitlines()
    assert known[0].split() == ["item", "score"]
    assert [line.split()[0] for line in known[1:]] == [pick.item for pick in best.top("5", 3)]
    assert main(["top", str(place), "--clicked", "0", "4", "8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert main(["top", str(place)]) == 2
    assert "one of the two" in capsys.readouterr().err
    assert main(["top", str(tmp_path), "5"]) == 2
    assert "there is no model in it" in capsys.readouterr().err


def test_a_saved_model_needs_its_data_for_people_of_theirs_alone(tasteful, tmp_path):
    file = tmp_path / "clicks.parquet"
    rows = {"user": tasteful.users.numpy(), "item": tasteful.items.numpy() + 1}
    items = {"item": range(1, ITEMS + 1), "title": [f"Good {k}" for k in range(ITEMS)]}
    pl.DataFrame(rows).write_parquet(file)
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    named = f"{file}?items={tmp_path}/items.parquet"
    best = quiet(named, folder=tmp_path / "runs", budget=1)
    place = best.save(tmp_path / "model")
    file.rename(tmp_path / "moved.parquet")
    opened = load_model(place)
    assert opened.top(["Good 0", "5"], 3) == opened.top(["1", "5"], 3)
    assert {pick.title for pick in opened.top([1], 40)} == {f"Good {k}" for k in range(1, ITEMS)}
    with pytest.raises(DataError, match=r"no such file.*; say where users' clicks are"):
        opened.top("3")
    assert load_model(place, f"{tmp_path}/moved.parquet").top("3", 3) == best.top("3", 3)


def test_ids_that_lost_their_zeros_are_named():
    with pytest.raises(ParameterError, match=r"item='12': .*there are '00012'; give an id as a t"):
        raise unknown("item", "12", ["00001", "00012", "12a"])
    with pytest.raises(ParameterError, match=r"user='u1': these data have no such user$"):
        raise unknown("user", "u1", ["somebody"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"who": "nobody"}, r"user='nobody': these data have no such user.*give a list of items"),
        ({"who": ["400"]}, r"item='400': these data have no such item"),
        ({"who": []}, r"name an item that the person clicked"),
        ({"who": "0", "k": 0}, r"k=0: choose a whole number of 1 or more"),
    ],
)
def test_who_and_how_many_are_checked(search, asked, message):
    with pytest.raises(ParameterError, match=message):
        search[2].top(**asked)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"budget": 0}, "budget=0: choose a number of trials, 1 or more"),
        ({"budget": -3}, "budget=-3: choose a number of trials, 1 or more"),
        ({"budget": "0 s"}, "budget='0 s'"),
        ({"budget": "0 min"}, "budget='0 min'"),
        ({"budget": "-1 min"}, "budget='-1 min'"),
        ({"budget": None}, "budget=None"),
        ({"budget": True}, "budget=True"),
        ({"budget": math.inf}, "budget=inf"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"budget": "soon"}, "budget='soon'"),
        ({"objective": "auc"}, "objective='auc': choose one of sampled, full"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_trained(tasteful, tmp_path, how, message):
    with pytest.raises(ParameterError, match=message):
        quiet(tasteful, folder=tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()


def test_budgets_are_trials_or_times():
    assert Budget.of(3) == Budget(trials=3)
    assert Budget.of("90 s") == Budget(seconds=90.0)
    assert Budget.of("2h").seconds == 7200


def test_a_time_is_a_budget_too(tasteful, tmp_path):
    best = quiet(tasteful, budget="0.01 s", folder=tmp_path)
    # as many as are proposed together, whatever the time
    assert "4 federated trials, 12 of pooled baselines" in best.report


def test_users_of_one_click_are_left_out_of_the_measure_and_can_be_recommended_to(tmp_path):
    whole = made(tastes=4)
    users = torch.cat([whole.users, torch.tensor([USERS, USERS + 1])])
    items = torch.cat([whole.items, torch.tensor([0, 3])])
    said = []
    best = quiet(from_arrays(users.numpy(), items.numpy()), folder=tmp_path, say=said.append)
    why = "2 users with fewer than 3 interactions are left out, as validation and test take one"
    assert why in best.report
    assert any(why in line for line in said)
    assert "as there are no times" in best.report
    assert "0" not in {pick.item for pick in best.top(str(USERS), ITEMS)}


FEW = (
    [u for u in range(12) for _ in range(4)],
    [(3 * u + k * k) % 20 for u in range(12) for k in range(4)],
)
SAME = [u for u in range(5) for _ in range(3)], [0, 1, 2] * 5
EDGES = {  # data, and why there is no answer; '' where there is one
    "one user": (tiny([0] * 6, range(6), times=range(6), item_count=30), ""),
    "one user of three clicks": (tiny([0] * 3, range(3), times=range(3), item_count=9), ""),
    "all ratings equal": (tiny(*FEW, values=[4.0] * 48, times=range(48)), ""),
    "all ratings zero": (tiny(*FEW, values=[0.0] * 48, times=range(48)), ""),
    "all times equal": (tiny(*FEW, times=[7] * 48), ""),
    "no times": (from_arrays(*FEW), ""),
    "items nobody rated": (tiny(*FEW, times=range(48), item_count=300), ""),
    "everybody clicked the same": (tiny(*SAME, times=range(15), item_count=5), ""),
    "one click each": (tiny([0, 1], [0, 1], times=[0, 1]), "no user has 3 interactions"),
    "one item": (from_arrays([0, 1, 2], [0, 0, 0]), "no user has 3 interactions"),
    "all items clicked": (tiny(*SAME, times=range(15)), "clicked all 3 items"),
    "no clicks": (from_arrays(*FEW).take(torch.arange(0)), "no rows in it"),
}


@pytest.mark.parametrize("name", EDGES)
def test_data_at_the_edges_have_an_answer_or_a_clear_error(tmp_path, name):
    data, why = EDGES[name]
    if why:
        with pytest.raises(DataError, match=why):
            quiet(data, folder=tmp_path, budget=1)
        return
    best = quiet(data, folder=tmp_path, budget=1)
    assert "POPULARITY" in best.report.split("\n")[0].upper()
    user = data.catalogue.user_ids[0]
    mine = {data.catalogue.item_ids[i] for i in data.items[data.users == 0].tolist()}
    items = {pick.item for pick in best.top(user, data.item_count)}
    assert items == set(data.catalogue.item_ids) - mine


@pytest.mark.parametrize("uplink", ["clip + secure sum", "secure sum"])
def test_secure_sums_are_refused_at_once_with_the_way_out(tasteful, tmp_path, uplink):
    with pytest.raises(ParameterError, match=r"uplink='.*': .* so search without 'secure sum'"):
        quiet(tasteful, folder=tmp_path, settings=Settings(uplink=uplink))
    assert not Runs(tmp_path, better()).listed()


def memory_of(monkeypatch, free):
    """Let so many bytes be free."""
    for name in ("fit", "search"):
        monkeypatch.setattr(f"fedlab.workbench.best.{name}.free_memory", lambda: free)


@pytest.mark.parametrize(("room", "hired"), [(1.5, []), (2.5, [2]), (9.0, [3])])
def test_no_more_trials_go_side_by_side_than_memory_has_room_for(
    tasteful, tmp_path, monkeypatch, room, hired
):
    most = max(needed(method, tasteful) for method in [*federated(tasteful), *pooled(tasteful)])
    memory_of(monkeypatch, room * (memory.PROCESS + most))
    counts, said = [], []

    def none(count, *_):
        counts.append(count)
        return [], "none start here"

    monkeypatch.setattr("fedlab.workbench.best.search.hired", none)
    quiet(tasteful, folder=tmp_path, processes=3, budget=1, say=said.append)
    assert counts == hired
    told = [line for line in said if "GB are free" in line]
    first = {1.5: "trials take turns in one process, not 3: one takes up to", 2.5: "2 trials side"}
    assert [line.startswith(first[room]) for line in told] == [True] * (room < 3)


def test_what_memory_has_no_room_for_is_left_out_and_nothing_at_all_is_refused(
    tasteful, tmp_path, monkeypatch
):
    sizes = {method.name: needed(method, tasteful) for method in federated(tasteful)}
    large, small = sorted(sizes, key=sizes.__getitem__, reverse=True)
    memory_of(monkeypatch, (sizes[large] + sizes[small]) / 2)
    said = []
    best = quiet(tasteful, folder=tmp_path / "one", budget=1, say=said.append)
    assert best.method == small
    assert any(line.startswith(f"{large} is left out: it takes up to") for line in said)
    memory_of(monkeypatch, 1e3)
    with pytest.raises(DataError, match=r"40 items and 360 clicks are too many .* at_least\(data"):
        quiet(tasteful, folder=tmp_path / "none")


def test_what_is_free_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    whole, group = tmp_path / "meminfo", tmp_path / "group"
    monkeypatch.setattr(memory, "MEMORY", whole)
    monkeypatch.setattr(memory, "GROUP", group)
    assert memory.free_memory() > 0  # whatever the system says otherwise
    whole.write_text("MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\nHugePages: 0\n")
    assert memory.free_memory() == 4_096_000
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    assert memory.free_memory() == 4_096_000
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("anon 1000\ninactive_file 500000\n")
    assert memory.free_memory() == 1_000_000
    (group / "memory.max").write_text("1000\n")
    assert memory.free_memory() == 0


def test_many_items_have_short_vectors_and_a_line_says_what_there_is_no_room_for(
    tasteful, tmp_path, monkeypatch
):
    assert shortened(tasteful) == []
    monkeypatch.setattr(methods, "NUMBERS", 50 * ITEMS)
    monkeypatch.setattr(methods, "TABLE", 20)
    ials, *_ = federated(tasteful)
    assert ials.ranges["dim"].high == 50
    assert max(guess["dim"] for guess in ials.first) == 50
    said = []
    quiet(tasteful, folder=tmp_path, budget=1, say=said.append)
    assert any(line.startswith("EASE has room for 20 of 40 items: those of") for line in said)
    assert "iALS has vectors of at most 50 numbers, as there are 40 items" in said
    monkeypatch.setattr(methods, "TABLE", 1)
    assert shortened(tasteful)[0].startswith("EASE is left out: its table has room for 1 of 40")


def test_what_is_tried_fits_the_data(tasteful):
    names = ["federated iALS", "federated EASE"]
    assert [method.name for method in federated(tasteful)] == names
    timeless = from_arrays(tasteful.users.numpy(), tasteful.items.numpy())
    for method in [*federated(timeless), *pooled(timeless)]:
        assert "recency" not in method.ranges
    two = tasteful.take(torch.arange(len(tasteful)) % OWN < 2)  # of each user
    for method in [*federated(two), *pooled(two)]:
        for guess in method.first:
            assert guess.keys() == method.ranges.keys()
            for name, value in guess.items():
                assert method.ranges[name].low <= value <= method.ranges[name].high
    assert federated(two)[0].ranges["regularisation"].high < 2**0.5


def test_a_table_of_pairs_fits_or_there_is_none():
    many = torch.arange(9_000) % 30
    chosen = least_clicks(many)
    assert int((many >= chosen[0]).sum()) <= TABLE < int((many >= chosen[0] - 1).sum())
    assert list(chosen) == sorted(chosen)
    assert least_clicks(torch.ones(9_000)) == ()
    wide = tiny([0, 0, 0], [0, 1, 2], item_count=9_000)
    assert [m.name for m in federated(wide)] == ["federated iALS", "federated EASE"]
    once = tiny([0] * 9_000, range(9_000))
    assert [m.name for m in federated(once)] == ["federated iALS"]


def test_chance_by_hand():
    unmet = Unmet(torch.arange(2), torch.tensor([0, 1]), 5, torch.tensor([0, 1, 6]))
    found = chance(1, unmet).metrics
    # among one other item the rank is 1 or 2, each at even chance
    assert found["hr@10"] == 1.0
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    # one user has met one item beside the held-out one, so 3 others are left; the other none
    sizes = [sum(1 / math.log2(1 + r) for r in range(1, n + 1)) / n for n in (4, 5)]
    assert found["full ndcg@10"] == pytest.approx(sum(sizes) / 2)


def test_what_trains_on_everything_measures_nothing_and_says_so(tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item\na,1\na,2\na,3\na,4\nb,1\n")
    settings = Settings(
        data=str(tmp_path / "clicks.csv"), train_on="everything", rounds=1, local="implicit"
    )
    (done,) = stream(lambda: settings)
    made = Experiment(settings)
    assert [len(part) for part in (made.split.train, made.split.validation)] == [5, 0]
    assert done.metrics == {}
    place = export_model(made, done, tmp_path / "model")
    assert "nothing was left on which to measure it" in (place / "card.md").read_text()
    for name, value in {"against": 9, "measure_every": 2, "full_ranking": "on"}.items():
        with pytest.raises(ParameterError, match=name):
            next(stream(lambda turned={name: value}: settings.replace(**turned)))


def test_an_interval_is_that_of_the_mean_over_users():
    each = torch.cat([torch.zeros(500), torch.ones(500)])
    low, high = interval(each)
    spread = 1.96 * 0.5 / 1000**0.5
    assert low == pytest.approx(0.5 - spread, abs=0.006)
    assert high == pytest.approx(0.5 + spread, abs=0.006)
    assert interval(each) == interval(each)
    with pytest.raises(ParameterError, match="each=0"):
        interval(torch.zeros(0))


def test_a_lead_that_may_be_luck_is_no_lead(ratings):
    split = leave_one_out(of_users(ratings, torch.arange(671) < 8))
    mine, popular = torch.tensor([1, 20] * 4), torch.tensor([20, 2] * 4)
    given = {"popularity": popular, "ours": mine}
    rows = [Row.of(name, "", [(ranks, ranks)], 0) for name, ranks in given.items()]
    facts = Facts(split, "sampled", "ours", 99, 1, 0, (), cancelled=False)
    assert float(gains(mine).mean()) > float(gains(popular).mean())
    assert "DOES NOT BEAT" in verdict(rows, facts)[0]


def test_a_file_that_changed_is_searched_anew(tmp_path, tasteful):
    file = tmp_path / "clicks.csv"
    rows = [
        f"{u},{i}" for u, i in zip(tasteful.users.tolist(), tasteful.items.tolist(), strict=True)
    ]
    file.write_text("\n".join(["user,item", *rows]))
    one = quiet(file, folder=tmp_path / "runs", budget=1)
    file.write_text("\n".join(["user,item", *rows[OWN:]]))
    two = quiet(file, folder=tmp_path / "runs", budget=1)
    assert one.run != two.run
    assert (tmp_path / "runs" / two.run / LOG).exists()


def test_the_command_prints_the_report_and_where_the_model_lies(tasteful, tmp_path, capsys):
    file, runs, place = (str(tmp_path / name) for name in ("clicks.csv", "runs", "model"))
    rows = [
        f"{u},{i}" for u, i in zip(tasteful.users.tolist(), tasteful.items.tolist(), strict=True)
    ]
    (tmp_path / "clicks.csv").write_text("\n".join(["user,item", *rows]))
    words = ["best", file, "--folder", runs, "--to", place, "--processes", "1"]
    assert main([*words, "--budget", "0"]) == 2
    assert "budget='0': choose a number of trials" in capsys.readouterr().err
    assert main([*words, "--budget", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("federated")
    assert "trial 2 of 2" in said.err
    assert f"The model is in {place}" in said.out
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert main(words) == 2  # before anything trains
    assert "something is there already" in capsys.readouterr().err
    assert main(["compare", runs]) == 0
    assert "on everything" in capsys.readouterr().out


def test_the_example_of_the_page_on_the_package_runs(tasteful, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "package.md").read_text()
    (example,) = (e for e in re.findall(r"```python\n(.+?)```", page, re.S) if "fit_best" in e)
    users, items = {0: "ann"}, {0: "tea", 1: "cup"}
    pairs = zip(tasteful.users.tolist(), tasteful.items.tolist(), strict=True)
    rows = [f"{users.get(u, u)},{items.get(i, i)}" for u, i in pairs]
    monkeypatch.chdir(tmp_path)
    Path("clicks.csv").write_text("\n".join(["user,item", *rows]))
    exec(example.replace('budget="10 min"', "budget=1, processes=1"), {})
    assert "popularity" in capsys.readouterr().out.lower()
    assert Path("best-model", "card.md").exists()
