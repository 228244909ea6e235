"""Challenges: each can be met, says by itself when it is, and gives nothing away before."""

import pytest
from waiting import until

from fedlab.core import ParameterError, Settings
from fedlab.workbench import CHALLENGES, Challenge, Workbench, better, stream
from fedlab.workbench.guide import Attempt
from fedlab.workbench.guide.challenges import liars_of
from fedlab.workbench.runs import Run

MB, PRIVATE, LIAR = CHALLENGES
MET_PRIVATELY = {
    **{"local": "dpals", "rounds": 5, "cohort": 671, "dim": 3, "clip": 1.0, "noise": 1.387},
    **{
        "server_lr": 1.0,
        "mean_clicks": 20.0,
        "recency": 0.5,
        "unseen": 50.0,
        "regularisation": 0.6,
    },
    **{"kept_items": 1500, "user_length": 0.02, "rarity": 0.15, "moments": 0.02},
}


@pytest.fixture
def bench():
    made = Workbench(stream, Settings(rounds=3), metrics=better())
    yield made
    made.session.runner.stop()
    made.close()


def tell(bench, command, *given):
    """Send what a button sends, and say why it was refused."""
    bench._told(None, {"command": command, "given": list(given)}, None)
    return bench.notice


def turn(bench, **to):
    """Turn knobs as sliders do."""
    bench.values = {**bench.values, **to}
    assert not bench.notice


def trained(bench):
    runs = len(bench.table)
    tell(bench, "start")
    until(lambda: len(bench.table) > runs and bench.state in ("done", "failed"))
    assert bench.state == "done", bench.message


def test_popularity_is_beaten_with_20_mb(bench):
    tell(bench, "challenge", MB)
    assert bench.challenge["name"] == MB
    assert bench.values["cohort"] == CHALLENGES[MB].start.cohort
    turn(bench, rounds=5)
    trained(bench)
    assert not bench.challenge["met"]
    assert bench.challenge["words"].startswith("Best within the limit: ndcg@10 0.")
    turn(bench, local="implicit", server_lr=1.0, recency=1.0, dim=8)
    trained(bench)
    assert bench.challenge["met"]
    sent = sum(r.bytes_up + r.bytes_down for r in bench.rounds)
    assert sent < 20e6
    best = max(r.metrics["ndcg@10"] for r in bench.rounds)
    assert bench.challenge["words"].startswith("Met: ndcg@10 0.")
    level = bench.session.members[-1].beside["popularity"]["ndcg@10"]
    assert best > level + 0.05
    tell(bench, "challenge", "")
    assert bench.challenge == {}


def test_a_private_model_is_above_popularity(bench):
    tell(bench, "challenge", PRIVATE)
    turn(bench, **MET_PRIVATELY)
    trained(bench)
    assert bench.challenge["met"], bench.challenge["words"]
    within = [r.metrics for r in bench.rounds if r.metrics["epsilon"] < CHALLENGES[PRIVATE].below]
    level = bench.session.members[-1].beside["popularity"]["ndcg@10"]
    assert len(within) == 4
    assert max(found["ndcg@10"] for found in within) > level + 0.005


def test_a_liar_is_found_by_the_length_of_what_it_sends(bench):
    tell(bench, "challenge", LIAR)
    assert "no run of this challenge has a round yet" in tell(bench, "accuse", 3)
    tell(bench, "see", True)
    tell(bench, "start")
    until(lambda: len(bench.rounds) >= 2)
    tell(bench, "pause")
    until(lambda: bench.state == "paused")
    until(lambda: bench.seen.get("steps", {}).get("round") == bench.rounds[-1].number + 1)
    liars, count = liars_of(bench.session.settings)
    assert len(liars) == round(0.02 * 671)
    assert count == 671
    assert bench.seen["steps"]["liars"] == []
    honest = next(client for client in range(count) if client not in liars)
    tell(bench, "accuse", honest)
    assert bench.challenge["words"] == f"Wrong: client {honest} is honest. Tries so far: 1."
    steps = bench._saw_all["steps"]
    assert set(steps["liars"]) == liars
    lengths = {c: x * x + y * y for c, (x, y) in zip(steps["cohort"], steps["arrows"], strict=True)}
    while not bench.challenge["met"]:  # as a learner would: the longest arrow of a round, and step
        assert bench.rounds[-1].number < 20
        found = max(lengths, key=lengths.get)
        tell(bench, "accuse", found)
        if not bench.challenge["met"]:
            bench, lengths = stepped(bench)
    assert found in liars
    assert bench.challenge["words"].startswith("Right, with ")
    assert set(bench.seen["steps"]["liars"]) == liars


def stepped(bench):
    """After one more round: the workbench, and the lengths of the arrows that are seen."""
    number = bench.rounds[-1].number + 1
    tell(bench, "step")
    until(lambda: bench.state == "paused" and bench.rounds[-1].number == number)
    until(lambda: bench.seen.get("steps", {}).get("round") == number + 1)
    steps = bench.seen["steps"]
    ends = zip(steps["cohort"], steps["arrows"], strict=True)
    return bench, {client: x * x + y * y for client, (x, y) in ends}


def test_what_tells_a_liar_is_not_sent_while_it_is_sought(bench):
    tell(bench, "challenge", LIAR)
    upload = {"sent": 5.0, "learned": 1.0, "auc": 0.1, "alone": 0.9}
    person = {"user": "1", "upload": upload}
    found = {"steps": {"arrows": [], "liars": [7]}, "person": person}
    bench._saw(None, found)
    assert bench.seen["steps"]["liars"] == []
    assert bench.seen["person"]["upload"] == upload | {"learned": 5.0, "alone": 0.1}
    tell(bench, "challenge", "")
    assert bench.seen == found


def recorded(*rounds, beside=0.3, **settings):
    """A run of rounds, each an ndcg@10, MB and what else stands on record."""
    run = Run("run 1", settings, beside={"popularity": {"ndcg@10": beside}})
    for number, (value, mb, more) in enumerate(rounds, 1):
        sizes = {"bytes_up": int(mb * 1e6), "bytes_down": 0}
        run.records.append({"round": number, "ndcg@10": value, **sizes, **more})
    return run


def attempt(**limits):
    return Attempt("mine", Challenge("Do it.", Settings(delta=1e-3), **limits), frozenset())


@pytest.mark.parametrize(
    ("limits", "rounds", "met"),
    [
        ({"most_mb": 20.0}, [(0.2, 10, {}), (0.31, 10, {})], True),
        ({"most_mb": 20.0}, [(0.2, 10, {}), (0.31, 10.1, {})], False),  # too late
        ({"most_mb": 20.0}, [(0.3, 10, {})], False),  # as good is not above
        ({"below": 4.0}, [(0.4, 1, {"epsilon": 3.99})], True),
        ({"below": 4.0}, [(0.4, 1, {"epsilon": 4.0})], False),
        ({"below": 4.0}, [(0.4, 1, {"epsilon": None})], False),  # nothing is proven
        ({"below": 4.0}, [(0.4, 1, {})], False),  # nothing is private
        ({"below": 4.0}, [(0.4, 1, {"epsilon": 3, "turned": {"against": 9}})], False),
    ],
)
def test_records_meet_a_challenge_or_do_not(limits, rounds, met):
    tried = attempt(**limits)
    tried.look([recorded(*rounds)])
    assert tried.met is met


def test_a_setting_that_must_stay_is_named():
    tried = attempt(below=4.0, fixed=("delta",))
    tried.look([recorded((0.4, 1, {"epsilon": 1.0}), delta=0.5)])
    assert not tried.met
    assert tried.words == "run 1 does not count: delta must stay 0.001."


def test_runs_of_before_do_not_count_and_later_records_are_taken_in():
    run = recorded((0.2, 1, {}))
    old = Attempt("mine", Challenge("Do it.", Settings()), frozenset([run.id]))
    fresh = attempt()
    for tried in (old, fresh):
        tried.look([run])
    run.records.append(run.records[0] | {"round": 2, "ndcg@10": 0.5})
    for tried in (old, fresh):
        tried.look([run])
    assert (old.met, fresh.met) == (False, True)
    assert fresh.words == "Met: ndcg@10 0.5000 in round 2, popularity 0.3000."


def test_what_cannot_be_done_is_refused(bench):
    assert "no challenge is on" in tell(bench, "accuse", 1)
    assert "nothing like it" in tell(bench, "challenge", "nothing like it")
    tell(bench, "challenge", MB)
    assert "choose the challenge 'find the liar' first" in tell(bench, "accuse", 1)
    tell(bench, "reset")
    assert bench.challenge == {}
    with pytest.raises(ParameterError, match="challenges="):
        Workbench(lambda settings: iter(()), Settings(), {}, challenges=CHALLENGES)
    assert Workbench(stream, Settings(), {"cohort": None}).spec["challenges"] == []


def test_a_client_that_is_not_there_or_a_run_without_liars_is_refused(bench):
    tell(bench, "challenge", LIAR)
    turn(bench, rounds=5)
    trained(bench)
    assert "client=671: choose from 0 to 670" in tell(bench, "accuse", 671)
    turn(bench, uplink="none")
    trained(bench)
    assert "nobody lies as the knobs stand" in tell(bench, "accuse", 3)
