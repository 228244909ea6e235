"""What the cards of presets claim, on the bundled data: once, and over three seeds with SEEDS=3.

What takes few rounds runs over three seeds always.
"""

import os
from functools import lru_cache

import pytest

from fedlab.core import Settings
from fedlab.privacy import bet_in_words
from fedlab.workbench import CARDS, PRESETS, beside, stream

SEEDS = range(int(os.environ.get("SEEDS", "1")))
USERS = "671 users, matrix factorisation"
FEW = "few clients: 8 users a round"
DIFFERENT = "10 platforms that differ in taste"
PLATFORMS = "practice: 10 e-commerce platforms, averaged"
SELECTED = "practice: 5 video platforms, the best model selected"
LATE = "asynchronous: a buffer of 10"
PRIVATE = "private: a clip, and noise on the sum"
SMALL = "an eighth of the bytes up: 4 bits a number"
ATTACKED = "under attack: one in ten lies, the median holds"
IMPLICIT = "implicit: users solve their own vectors"
EASE = "EASE: which items are clicked together"
TEXTS = "texts and clicks: what MiniLM says of a film"
STARS = "stars, not clicks"


@lru_cache
def trained(settings):
    """The rounds of some settings, of which runs of several claims are made once."""
    chosen = Settings(**dict(settings))
    return [done.light() for done in stream(lambda: chosen)]


def run(name, seed, **more):
    """The rounds of a preset."""
    return trained(tuple(PRESETS[name].replace(seed=seed, **more).items()))


def ndcg(rounds):
    """Round -> its ndcg@10, where it was measured."""
    return {r.number: r.metrics["ndcg@10"] for r in rounds if "ndcg@10" in r.metrics}


def popular(seed, name=USERS):
    return beside(PRESETS[name].replace(seed=seed))["popularity"]["ndcg@10"]


def last(rounds):
    return ndcg(rounds)[rounds[-1].number]


def up(rounds):
    return sum(r.bytes_up for r in rounds) / 1e6


def down(rounds):
    return sum(r.bytes_down for r in rounds) / 1e6


def test_every_preset_has_a_card():
    assert list(CARDS) == list(PRESETS)


@pytest.mark.parametrize("seed", SEEDS)
def test_users_reach_popularity_stay_and_pass_it(seed):
    found, level = ndcg(run(USERS, seed)), popular(seed)
    assert round(64 * 60 / 671) == 6
    assert max(found[n] for n in range(1, 11)) < level
    assert all(abs(found[n] - level) < 0.03 for n in range(10, 21))
    assert found[60] > level + 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_few_clients_come_as_far_as_popularity(seed):
    few, level = last(run(FEW, seed)), popular(seed)
    assert abs(few - level) < 0.02 < last(run(USERS, seed)) - few
    assert 8 * 200 < 64 * 60


@pytest.mark.parametrize("seed", SEEDS)
def test_platforms_that_differ_learn_by_heart(seed):
    rounds = run(DIFFERENT, seed)
    found = ndcg(rounds)
    assert all(len(r.cohort) == 10 for r in rounds)
    assert max(found, key=found.get) < len(rounds)
    assert rounds[-1].loss < rounds[max(found, key=found.get) - 1].loss


@pytest.mark.parametrize("seed", range(3))
def test_ten_rounds_of_platforms_are_worth_sixty_of_users(seed):
    assert last(run(PLATFORMS, seed, rounds=10)) > 0.42
    if seed in SEEDS:
        assert last(run(USERS, seed)) < 0.42


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_model_of_platforms_beats_popularity(seed):
    rounds = run(SELECTED, seed)
    assert max(value for n, value in ndcg(rounds).items() if n <= 20) > popular(seed, SELECTED)
    assert len(rounds) == 30
    assert 11 < up(rounds) < 12.5


@pytest.mark.parametrize("seed", SEEDS)
def test_late_updates_teach(seed):
    rounds = run(LATE, seed)
    assert rounds[-1].metrics["staleness"] > 2
    assert last(rounds) > popular(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_leaves_little_and_hides_little(seed):
    rounds = run(PRIVATE, seed)
    assert max(ndcg(rounds).values()) < 0.7 * popular(seed)
    said = bet_in_words(rounds[-1].metrics["epsilon"], PRESETS[PRIVATE].delta)
    assert said.startswith("over 1,000,000 times for each time that it is wrong")


@pytest.mark.parametrize("seed", SEEDS)
def test_four_bits_cost_nothing_that_is_seen(seed):
    small, whole = run(SMALL, seed), run(USERS, seed)
    assert abs(last(small) - last(whole)) < 0.01
    assert 7.5 < up(whole) / up(small) < 8.5
    assert down(whole) == pytest.approx(down(small))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_median_holds_and_the_mean_does_not(seed):
    honest, held = last(run(USERS, seed)), last(run(ATTACKED, seed))
    assert abs(honest - held) < 0.02
    assert last(run(ATTACKED, seed, aggregation="weighted mean")) < held - 0.02


@pytest.mark.parametrize("seed", range(3))
def test_solving_takes_one_round(seed):
    found = ndcg(run(IMPLICIT, seed, rounds=5))
    assert found[1] > popular(seed, IMPLICIT)
    assert found[5] > 0.55
    if seed in SEEDS:
        before = (USERS, FEW, DIFFERENT, SELECTED, LATE, PRIVATE, SMALL, ATTACKED)
        assert all(last(run(name, seed)) < 0.5 for name in before)
        assert last(run(PLATFORMS, seed)) < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_counting_takes_one_round(seed):
    rounds = run(EASE, seed)
    found = ndcg(rounds)
    assert found[1] > popular(seed, EASE)
    assert found[10] > found[1]
    assert down(rounds) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_begin_at_chance_and_end_above_clicks(seed):
    rounds = run(TEXTS, seed)
    assert ndcg(rounds)[1] < beside(PRESETS[TEXTS])["chance"]["ndcg@10"] + 0.02
    assert last(rounds) > last(run(USERS, seed)) + 0.01


@pytest.mark.parametrize("seed", range(3))
def test_stars_pass_the_mean_of_each_user(seed):
    found = [r.metrics["rmse"] for r in run(STARS, seed)]
    level = beside(PRESETS[STARS].replace(seed=seed))["mean of each user"]["rmse"]
    first = next(n for n, value in enumerate(found, 1) if value < level)
    assert 25 <= first <= 45
    assert 0.004 < level - found[-1] < 0.015
