"""The inside of a round: it is what the loop does next, and looking at it changes nothing."""

import json
import re
import threading

import pytest
import torch
from waiting import until

from fedlab import Settings
from fedlab.algorithms import ahead, in_order, pipeline
from fedlab.core import DataError, Key, ParameterError, Round, Rows, Update
from fedlab.workbench import PRESETS, Workbench, stream
from fedlab.workbench.experiment import Experiment, better, turning
from fedlab.workbench.inside import Look, Looker, Watcher
from fedlab.workbench.inside.items import Map, place_of
from fedlab.workbench.inside.people import People, taste
from fedlab.workbench.inside.plane import losses, plane, projected, sampled
from fedlab.workbench.inside.recording import WHOLE, page, recording
from fedlab.workbench.runs.keyframes import Keyframes

SMALL = Settings(rounds=4, cohort=8, dim=4, local_lr=1.0, server_lr=5.0, weighting="equal")


def run(settings):
    """The Rounds of an experiment, each with its parameters."""
    return [*stream(lambda: settings)]


def parts(made):
    return pipeline(
        in_order(made.local, made.uplink, made.aggregation, made.schedule),
        turning(made, lambda: made.settings, len(made.federation))(),
        made.source,
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"proximal": 1.0},
        {"local": "scaffold"},
        {"uplink": "poison"},
        {"uplink": "error feedback"},
    ],
    ids=str,
)
def test_it_is_the_round_that_the_loop_does_next(more):
    settings = SMALL.replace(**more)
    rounds, made = run(settings), Experiment(settings)
    _, chunks = ahead(parts(made), made.model, made.source, rounds[1])
    sent = [update for _, update in chunks]
    assert torch.cat([update.cohort for update in sent]).tolist() == rounds[2].cohort.tolist()
    before, after = (rounds[n].params["item"] for n in (1, 2))
    total = torch.zeros_like(before)
    for update in sent:
        update.deltas["item"].add_to(total, torch.ones(len(update.cohort)))
    moved = settings.server_lr * total / len(rounds[2].cohort)
    assert torch.allclose(before + moved, after, atol=1e-5)
    assert not torch.equal(before, after)


def test_a_look_leaves_the_run_as_it_is():
    whole = run(SMALL)
    looker, seen = Looker(SMALL), []
    for done in stream(lambda: SMALL):
        seen.append(looker.look(done, SMALL, user="3", item="Pulp Fiction"))
    assert len(seen) == len(whole)
    assert all(torch.equal(done.params[n], whole[-1].params[n]) for n in done.params)


def test_a_knob_is_seen_before_the_round_comes():
    looker, before = Looker(SMALL), run(SMALL)[-1]

    def mean(**more):
        return looker.look(before, SMALL.replace(**more))["steps"]["mean"][0]

    assert mean(proximal=0.5) < mean() < mean(local_epochs=5)


def test_drift_and_what_is_done_about_it_are_seen():
    platforms = PRESETS["10 platforms that differ in taste"].replace(rounds=12)

    def agreement(seed, **more):
        settings = platforms.replace(seed=seed, **more)
        return Looker(settings).look(run(settings)[-1], settings)["steps"]["agreement"]

    for seed in (0, 1):
        plain, far = agreement(seed), agreement(seed, local_epochs=5)
        assert far < plain
        assert agreement(seed, local_epochs=5, local="scaffold") > far


def test_steps_and_their_mean_by_hand():
    values = torch.tensor([[3.0, 1.0], [3.0, -1.0], [0.0, 2.0]])
    rows = Rows(values, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    ones = torch.ones(2)
    update = Update({"w": rows}, ones, ones, torch.arange(2), ones)
    found = plane(update, {"w": torch.zeros(2, 2)}, torch.tensor([3.0, 1.0]))
    mean = torch.tensor([[3.0, 0.5], [0.0, 0.5]])
    assert found.mean[0] == pytest.approx(float(mean.norm()))
    assert found.mean[1] == pytest.approx(0, abs=1e-6)
    assert found.lengths.tolist() == pytest.approx([10**0.5, 14**0.5])
    assert found.agreement == pytest.approx(float(mean.norm()) / (0.75 * 10**0.5 + 0.25 * 14**0.5))
    assert found.held == pytest.approx(1)  # two clients always lie in one plane
    assert torch.allclose(projected({"w": mean}, {"w": mean}, found), found.mean, atol=1e-6)
    ways = [torch.zeros(4), torch.zeros(4)]
    for way, ids, value in zip(
        found.directions["w"].client,
        found.directions["w"].ids,
        found.directions["w"].values,
        strict=True,
    ):
        ways[way].view(2, 2)[ids] = value
    both = torch.stack(ways)
    assert torch.allclose(both @ both.T, torch.eye(2), atol=1e-6)


def test_of_many_clients_the_first_are_looked_at(monkeypatch):
    monkeypatch.setattr("fedlab.workbench.inside.plane.NUMBERS", 12)
    rows = Rows(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), torch.arange(5))
    update = Update({"w": rows}, torch.ones(5), torch.ones(5), torch.arange(5), torch.ones(5))
    found = plane(update, {"w": torch.zeros(1, 4)}, torch.ones(5))
    assert (found.cohort.tolist(), found.of) == ([0, 1, 2], 5)


def test_what_is_not_finite_is_no_step():
    rows = Rows(torch.tensor([[torch.nan], [1.0]]), torch.tensor([0, 0]), torch.arange(2))
    update = Update({"w": rows}, torch.ones(2), torch.ones(2), torch.arange(2), torch.ones(2))
    found = plane(update, {"w": torch.zeros(1, 1)}, torch.ones(2))
    assert found.mean[0] == 1
    assert (
        plane(update.only(torch.tensor([True, False])), {"w": torch.zeros(1, 1)}, torch.ones(1))
        is None
    )


def test_the_loss_over_the_plane_is_that_of_moved_parameters():
    before, made = run(SMALL)[1], Experiment(SMALL)
    pipe = parts(made)
    _, chunks = ahead(pipe, made.model, made.source, before)
    sent = chunks[0][1]
    params = dict(before.params)
    found = plane(sent, params, torch.ones(len(sent.cohort)))
    drawn = made.source.draw(found.cohort, 1, 4, Key(0, "test"))
    some = sampled(drawn, found.cohort, torch.ones(len(found.cohort)), Key(0, "kept"))
    grid = torch.tensor([-1.0, 0.0, 2.0])
    table = losses(made.model, params, some, found.directions, grid)
    for row, b in enumerate(grid.tolist()):
        for column, a in enumerate(grid.tolist()):
            there = dict(params)
            for name, both in found.directions.items():
                there[name] = params[name].clone()
                for way, size in ((0, a), (1, b)):
                    mine = both.client == way
                    there[name][both.ids[mine]] += size * both.values[mine]
            at = {"user": some["user"], "item": some["item"]}
            rows = {n: there[n][at[kind]] for n, kind in made.model.rows.items()}
            each = made.model.loss(made.model.predict(rows, at), some["target"])
            mean = float((each * some["weight"]).sum() / some["weight"].sum())
            assert float(table[row, column]) == pytest.approx(mean, rel=1e-5)


def test_liars_are_named_and_the_rule_is_shown():
    settings = SMALL.without(["weighting"]).replace(
        uplink="poison", aggregation="coordinate median", liars=0.3, cohort=20
    )
    before = run(settings)[-1]
    found = Looker(settings).look(before, settings)["steps"]
    assert len(found["liars"]) == round(0.3 * 671)
    bad = [a for a, n in zip(found["arrows"], found["cohort"], strict=True) if n in found["liars"]]
    assert bad
    assert found["rule"] == "coordinate median"
    assert len(found["taken"]) == 2
    more = Looker(settings).look(before, settings.replace(liars=0.4))["steps"]["liars"]
    assert {*found["liars"]} < {*more}


def test_what_an_upload_tells_and_what_masks_and_noise_leave():
    plain = Looker(SMALL).look(run(SMALL)[-1], SMALL, user="3")["person"]
    assert plain["upload"]["auc"] == 1
    assert all(each["true"] for each in plain["upload"]["read"])
    assert plain["clicks"] == 49
    assert plain["held"][0]["item"] == "Princess Bride, The"
    assert len(plain["top"]) == 10
    noisy = SMALL.without(["weighting"]).replace(uplink="clip + local noise", clip=0.1, noise=5.0)
    found = Looker(noisy).look(run(noisy)[-1], noisy, user="3")["person"]["upload"]
    assert found["alone"] == 1
    assert 0.3 < found["auc"] < 0.75


def test_people_who_are_not_there_are_said_with_those_most_alike():
    looker = Looker(SMALL)
    with pytest.raises(ParameterError, match="user='99999': these data have no such user"):
        looker.check("user", "99999")
    with pytest.raises(ParameterError, match="there are 'Pulp Fiction'"):
        looker.look(looker.begin(), SMALL, item="Pulp Fictio")


def test_taste_is_the_first_principal_component():
    made = Experiment(SMALL)
    places, _ = taste(made.federation)
    train, count = made.split.train, len(made.federation)
    table = torch.zeros(count, train.item_count, dtype=torch.float64)
    table[train.users, train.items] = made.federation.counts[train.users].double().rsqrt()
    left, _, _ = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    same = torch.nn.functional.cosine_similarity(left[:, 0], places, dim=0)
    assert abs(float(same)) > 0.99


def test_dots_remember_who_took_part():
    rounds, people = run(SMALL), People(Experiment(SMALL).federation)
    assert people.dots("a", [])["met"] == 0
    found = people.dots("a", rounds)
    assert found["round"] == 4
    assert found["cohort"] == sorted(rounds[-1].cohort.tolist())
    client = int(rounds[1].cohort[0])
    assert found["since"][client] in (0, 1, 2)
    assert people.dots("a", rounds) == found
    assert people.dots("b", rounds[:1])["met"] == 8


def test_the_map_keeps_its_directions_between_powers_of_two():
    made, rounds = Experiment(SMALL), run(SMALL.replace(rounds=9))
    places = Map(made.federation)
    since = [places.at(made.score(done), done.number)["since"] for done in rounds]
    assert since == [1, 2, 2, 4, 4, 4, 4, 8, 8]
    assert places.at(lambda users, items: items, 3) == {}


def test_a_place_counts_ties_against_the_item():
    made = Experiment(SMALL)
    flat = place_of(0, lambda users, items: torch.zeros(items.shape), made.federation)
    assert flat["shown"] == 0
    best = place_of(0, lambda users, items: (items == 0).float(), made.federation)
    assert (best["shown"], best["median"]) == (1, 1)


@pytest.mark.parametrize("name", [name for name in PRESETS if "adapters" not in name])
def test_each_preset_can_be_looked_into_from_its_start(name):
    settings = PRESETS[name]
    settings = settings.without(Experiment(settings).unread())
    looker = Looker(settings)
    found = looker.look(looker.begin(), settings, user="3", item="Pulp Fiction")
    assert found["steps"].get("arrows") or found["steps"]["why"]
    assert found["item"]["places"][0][0] == 0
    assert found["person"]["upload"]["rows"] > 0


def test_a_watcher_takes_the_last_look_asked_for_and_says_what_fails():
    told, gate, asked = [], threading.Event(), []

    def wanted():
        asked.append(1)
        gate.wait(300)
        if len(asked) == 2:
            raise DataError("the file is gone")
        return Look(SMALL, SMALL)

    watcher = Watcher(wanted, lambda looker, found: told.append((looker, found)))
    for _ in range(5):
        watcher.ask(busy=False)
    gate.set()
    until(lambda: len(told) >= 1 and told)
    watcher.ask(busy=False)
    until(lambda: any("why" in found for _, found in told))
    watcher.close(wait=True)
    assert "arrows" in told[0][1]["steps"]
    assert {"why": "the file is gone"} in [found for _, found in told]
    assert len(asked) <= 3


@pytest.fixture
def bench():
    found = Workbench(stream, SMALL.replace(rounds=6), metrics=better(), presets=PRESETS)
    yield found
    found.session.stop()
    tell(found, "see", False)


def seen(bench):
    """The round that was seen last."""
    return bench.seen.get("steps", {}).get("round")


def tell(bench, command, *given):
    bench._told(None, {"command": command, "given": [*given]}, None)


def test_the_workbench_looks_only_when_asked_and_follows(bench):
    assert (bench.seen, bench.dots, bench.stays) == ({}, {}, {})
    tell(bench, "follow", "user", "3")
    assert "press See the round" in bench.notice
    tell(bench, "see", True)
    until(lambda: seen(bench) == 1)
    tell(bench, "start")
    until(lambda: bench.state == "done" and seen(bench) == 7)
    assert bench.dots["round"] == 6
    tell(bench, "follow", "user", "3")
    until(lambda: bench.seen.get("person", {}).get("user") == "3")
    tell(bench, "follow", "item", "no such film")
    assert "these data have no such item" in bench.notice
    assert bench.inside == {"on": True, "user": "3", "item": "", "at": -1}
    tell(bench, "follow", "anybody", "3")
    assert "choose user or item" in bench.notice
    tell(bench, "see", False)
    tell(bench, "start")
    until(lambda: bench.state == "done")
    assert bench.seen == {}


def test_a_run_over_other_clients_than_those_on_show_is_not_disturbed(bench):
    tell(bench, "see", True)
    until(lambda: bench.stays.get("people", {}).get("count") == 671)
    tell(bench, "preset", "10 platforms that differ in taste")
    until(lambda: bench.stays["people"]["count"] == 10)
    tell(bench, "start")
    until(lambda: bench.dots.get("round", 0) >= 2)
    tell(bench, "stop")
    until(lambda: bench.state == "stopped")
    tell(bench, "preset", "few clients: 8 users a round")
    tell(bench, "start")
    until(lambda: bench.state == "done")
    until(lambda: bench.dots.get("round") == 200)
    assert bench.stays["people"]["count"] == 671


def test_looks_do_not_change_what_is_trained():
    plain = run(SMALL.replace(rounds=6))[-1]
    bench = Workbench(stream, SMALL.replace(rounds=6), metrics=better())
    tell(bench, "see", True)
    tell(bench, "start")
    until(lambda: bench.state == "done")
    last = bench.rounds[-1]
    assert all(torch.equal(last.params[n], plain.params[n]) for n in last.params)
    tell(bench, "see", False)


def test_a_stream_of_ones_own_has_no_inside():
    def mine(ask):
        return stream(ask)

    bench = Workbench(mine, SMALL)
    assert not bench.spec["inside"]
    tell(bench, "see", True)
    assert "only a workbench over fedlab.workbench.stream" in bench.notice


def test_a_round_that_was_not_kept_is_trained_again_to_the_bit():
    settings = SMALL.replace(rounds=9, server_optimizer="adam", server_lr=0.1)
    rounds, looker = run(settings), Looker(settings)
    for start in (looker.begin(), rounds[2]):
        again = looker.again(start, [settings] * (6 - start.number))
        assert again.number == 6
        assert all(torch.equal(again.params[n], rounds[5].params[n]) for n in again.params)
    assert looker.again(rounds[2], []) is rounds[2]


def test_knobs_turned_on_the_way_are_turned_again(bench):
    tell(bench, "step")
    until(lambda: bench.state == "paused" and len(bench.rounds) == 1)
    bench.values = bench.values | {"local_lr": 3.0}
    tell(bench, "start")
    until(lambda: bench.state == "done")
    session, last = bench.session, bench.rounds[-1]
    record = session.members[0].settings_by_round()
    assert [each["local_lr"] for each in record] == [1.0, *[3.0] * 5]
    again = Looker(SMALL).again(Looker(SMALL).begin(), record)
    assert torch.equal(again.params["item"], last.params["item"])


def test_private_rounds_are_not_drawn_again():
    settings = SMALL.without(["weighting"]).replace(
        uplink="clip + gaussian noise", sampling="poisson", noise=1.0
    )
    looker = Looker(settings)
    with pytest.raises(ParameterError, match="their noise cannot be drawn again"):
        looker.again(looker.begin(), [settings])


def test_a_look_goes_back_and_a_branch_begins_there(bench):
    tell(bench, "see", True)
    tell(bench, "start")
    until(lambda: bench.state == "done")
    whole = bench.session.members[-1]
    tell(bench, "at", 3)
    until(lambda: seen(bench) == 4 and bench.dots["round"] == 3)
    bench.values = bench.values | {"local_lr": 0.1}
    tell(bench, "branch", 3)
    until(lambda: bench.state == "done" and bench.session.members[-1] is not whole)
    branch = bench.session.members[-1]
    assert branch.name == "run 1 from round 3"
    assert branch.records[:3] == whole.records[:3]
    assert branch.records[3]["turned"] == {"local_lr": 0.1}
    assert branch.records[-1]["loss"] > whole.records[-1]["loss"]
    assert [line["id"] for line in bench.picture["lines"]] == [whole.id, branch.id]
    assert bench.inside["at"] == -1


def test_a_branch_with_the_same_knobs_is_the_same_run(bench):
    tell(bench, "start")
    until(lambda: bench.state == "done")
    last, records = bench.rounds[-1], bench.session.members[-1].records
    tell(bench, "branch", 2)
    until(lambda: bench.state == "done" and len(bench.session.runs.all) == 2)
    again = bench.rounds[-1]
    assert all(torch.equal(again.params[n], last.params[n]) for n in last.params)
    seconds = {"seconds": 0}
    theirs = [each | seconds for each in bench.session.members[-1].records]
    assert theirs == [each | seconds for each in records]


@pytest.mark.parametrize(
    ("at", "fix"),
    [(0, "press Start"), (7, "has done 6 rounds"), (6, "turn rounds up"), (-5, "a new one")],
)
def test_a_branch_that_cannot_be_says_why_and_leaves_the_run(bench, at, fix):
    tell(bench, "branch", 1)
    assert "press Start first" in bench.notice
    tell(bench, "start")
    until(lambda: bench.state == "done")
    tell(bench, "branch", at)
    assert fix in bench.notice
    assert len(bench.session.members) == 1


def test_a_branch_is_kept_and_goes_on_after_a_restart(tmp_path):
    bench = Workbench(stream, SMALL.replace(rounds=6), metrics=better(), folder=tmp_path)
    tell(bench, "start")
    until(lambda: bench.state == "done")
    tell(bench, "branch", 4)
    until(lambda: bench.state == "done" and len(bench.session.runs.all) == 2)
    after = Workbench(stream, SMALL.replace(rounds=8), metrics=better(), folder=tmp_path)
    branch = after.session.runs.listed()[-1]
    assert [each["round"] for each in branch.records] == [1, 2, 3, 4, 5, 6]
    tell(after, "resume", branch.id)
    until(lambda: after.state == "done")
    assert after.session.members[-1].records[-1]["round"] == 8


def test_keyframes_are_thinned_to_fit():
    kept = Keyframes(limit=10_000)
    for number in range(1, 101):
        kept.offer("a", Round(number, SMALL, {"w": torch.zeros(250)}))
    assert kept.nearest("a", 100).number == 96
    assert kept.nearest("a", 15) is None
    for number in range(1, 9):
        kept.offer("b", Round(number, SMALL, {"w": torch.zeros(250)}))
    assert kept.nearest("b", 8).number == 8  # the older run gives way
    kept.offer("c", Round(1, SMALL, {"w": torch.zeros(5000)}))
    assert kept.nearest("c", 1) is None
    assert kept.nearest("nobody", 5) is None


def test_a_run_is_recorded_as_a_page_of_a_megabyte(bench, monkeypatch):
    sent = []
    monkeypatch.setattr(
        bench, "send", lambda content, buffers=None: sent.append((content, buffers))
    )
    tell(bench, "export", "replay")
    assert "train a run first" in bench.notice
    tell(bench, "start")
    until(lambda: bench.state == "done")
    tell(bench, "export", "replay")
    ((content, (found,)),) = sent
    assert content == {"file": "fedlab-replay.html"}
    assert len(found) <= 1_000_000
    text = found.decode()
    data = json.loads(re.search(r"^const recording = (.*);$", text, re.MULTILINE)[1])
    assert [look["round"] for look in data["looks"]] == [0, 1, 2, 3, 4, 5, 6]
    assert [look["seen"]["steps"]["round"] for look in data["looks"]] == [1, 2, 3, 4, 5, 6, 7]
    assert data["looks"][3]["dots"]["cohort"] == sorted(bench.rounds[2].cohort.tolist())
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_a_page_that_is_too_large_has_fewer_looks_and_no_text_ends_its_script():
    traits = dict.fromkeys(WHOLE, "</script><b>")
    looks = [{"round": n, "seen": "x" * 100_000} for n in range(21)]
    found = page(traits, looks, "", "").decode()
    data = json.loads(re.search(r"^const recording = (.*);$", found, re.MULTILINE)[1])
    assert [look["round"] for look in data["looks"]] == [0, 4, 8, 12, 16, 20]
    assert data["traits"]["text"] == "</script><b>"
    assert found.count("</script>") == 1


def test_private_rounds_are_recorded_as_far_as_they_were_kept():
    settings = SMALL.without(["weighting"]).replace(
        uplink="clip + gaussian noise", sampling="poisson", noise=1.0, delta=1e-3
    )
    bench = Workbench(stream, settings, metrics=better())
    tell(bench, "start")
    until(lambda: bench.state == "done")
    run = bench.session.members[-1]
    looks = recording(Looker(settings), run, bench.session.runs.frames)
    assert [look["round"] for look in looks] == [0, 1, 2, 3, 4]
    looks = recording(Looker(settings), run, Keyframes())
    assert [look["round"] for look in looks] == [0]


def test_another_run_is_looked_at_from_its_newest_round(bench):
    tell(bench, "see", True)
    tell(bench, "start")
    until(lambda: bench.state == "done" and seen(bench) == 7)
    tell(bench, "at", 3)
    until(lambda: seen(bench) == 4 and not bench.looking)
    tell(bench, "reset")
    assert bench.inside["at"] == -1
    until(lambda: seen(bench) == 1 and bench.dots["round"] == 0)
    tell(bench, "start")
    until(lambda: bench.state == "done" and seen(bench) == 7)
    bench.values = bench.values | {"rounds": 2 + 3}
    assert "round 6 of 6" in bench.message


def test_names_of_branches_do_not_pile_up(bench):
    tell(bench, "start")
    until(lambda: bench.state == "done")
    for at in (4, 2):
        tell(bench, "branch", at)
        tell(bench, "branch", at)  # a second press while the first is being made ready
        until(lambda: bench.state == "done" and bench.session.members)
    names = [run.name for run in bench.session.runs.listed()]
    assert names[0] == "run 1"
    assert {*names[1:]} == {"run 1 from round 4", "run 1 from round 2"}


def test_a_look_of_a_private_run_says_that_it_is_one_draw():
    settings = SMALL.without(["weighting"]).replace(
        uplink="clip + gaussian noise", sampling="poisson", noise=1.0
    )
    looker = Looker(settings)
    assert looker.look(looker.begin(), settings)["steps"]["drawn"]
    plain = Looker(SMALL)
    assert not plain.look(plain.begin(), SMALL)["steps"]["drawn"]


def test_a_recording_does_not_give_a_challenge_away(bench, monkeypatch):
    sent = []
    monkeypatch.setattr(bench, "send", lambda content, buffers=None: sent.append(buffers[0]))
    tell(bench, "challenge", "find the liar")
    bench.values = bench.values | {"rounds": 5, "cohort": 8, "dim": 4}
    tell(bench, "start")
    until(lambda: bench.state == "done")
    tell(bench, "export", "replay")
    data = re.search(r"^const recording = (.*);$", sent[0].decode(), re.MULTILINE)[1]
    assert {tuple(look["seen"]["steps"]["liars"]) for look in json.loads(data)["looks"]} == {()}


def test_rounds_of_a_deleted_run_are_let_go(bench):
    tell(bench, "start")
    until(lambda: bench.state == "done")
    runs, run = bench.session.runs, bench.session.members[-1]
    assert runs.frames.nearest(run.id, 3).number == 3
    tell(bench, "delete", run.id)
    assert runs.frames.nearest(run.id, 3) is None
