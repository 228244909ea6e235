"""The audit: bounds by hand, by the paper and by jax-privacy; honest runs pass, broken ones do not.

Runs have a teaching seed, so that they pass again. Where noise is the system's, what is asserted is
more than six deviations away from what is usual.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit import (
    FAULTS,
    HONEST,
    Again,
    ForgottenRounds,
    LooseClip,
    QuietNoise,
    SameCohort,
    averaging,
    examples,
    statistics,
    users,
)
from scipy.stats import norm

from fedlab.algorithms import federate
from fedlab.attacks import (
    Audit,
    Canaries,
    CanaryExamples,
    audited,
    drift_bound,
    lower_bound,
    p_value,
    usual_guesses,
)
from fedlab.core import ParameterError, Settings
from fedlab.models import matrix_factorisation
from fedlab.privacy import (
    DPSGD,
    Clip,
    GaussianNoise,
    ItemCounts,
    LocalNoise,
    SecureSum,
    gaussian_epsilon,
    item_counts,
)

EXACT = {"noise": 1e-6, "cohort": 20, "sampling": "poisson", "teaching_seed": 0}


def test_the_numbers_of_the_paper():
    assert p_value(75, 100, 100, math.log(3), 0.0) == pytest.approx(0.553, abs=5e-4)
    found = [
        lower_bound(75, 100, 100, delta=1e-4, confidence=0.95),
        lower_bound(75, 100, 1000, delta=1e-4, confidence=0.95),
        lower_bound(1439, 1510, 100_000, delta=1e-5, confidence=0.95),
    ]
    assert found == pytest.approx([0.699, 0.673, 2.675], abs=1e-3)


# epsilon at delta by `_epsilon_one_run` and `_epsilon_one_run_fdp` of jax-privacy 2.0.0
JAX_PRIVACY = [
    (75, 100, 1000, 1e-4, 0.05, 0.672985, 0.841724),
    (1439, 1510, 100_000, 1e-5, 0.05, 2.675851, 3.309084),
    (95, 100, 200, 1e-5, 0.001, 1.668228, 2.493143),
    (850, 1000, 20_000, 1e-6, 0.001, 1.441068, 1.722796),
    (1400, 1500, 60_000, 1e-6, 0.001, 1.912918, 2.614678),
    (300, 300, 671, 1e-4, 0.001, 0.479082, 4.857265),
    (60, 60, 60, 1e-6, 0.001, 2.101742, 4.084211),
]


@pytest.mark.parametrize(
    ("right", "guesses", "count", "delta", "doubt", "any_", "bell"), JAX_PRIVACY
)
def test_the_numbers_of_another_library(right, guesses, count, delta, doubt, any_, bell):
    assert lower_bound(right, guesses, count, delta=delta, confidence=1 - doubt) == pytest.approx(
        any_, abs=1e-5
    )
    drift = drift_bound(right, guesses, count, confidence=1 - doubt)
    assert gaussian_epsilon(drift, delta) == pytest.approx(bell, abs=1e-4)


def test_bounds_by_hand():
    # forty guesses, all right: q^40 is the doubt
    q = 0.001 ** (1 / 40)
    assert lower_bound(40, 40, 40, delta=0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    # one canary, guessed right: a Gaussian of drift d lets that happen with chance Phi(d / 2)
    assert drift_bound(1, 1, 1, confidence=0.4) == pytest.approx(2 * norm.ppf(0.6), abs=1e-5)
    assert lower_bound(20, 40, 40, delta=0.0) == drift_bound(20, 40, 40) == 0.0
    assert lower_bound(0, 40, 40, delta=1e-4) == drift_bound(0, 40, 40) == 0.0


def test_the_bound_of_randomised_response_is_close_and_rarely_above():
    truth, chance, found = 1.5, np.random.default_rng(0), []
    for _ in range(400):
        right = int(chance.binomial(2000, 1 / (1 + math.exp(-truth))))
        found.append(lower_bound(right, 2000, 2000, delta=0.0, confidence=0.9))
    above = sum(each > truth for each in found) / len(found)
    assert 0.05 < above < 0.15  # a tenth, as it says: here the test is exact
    assert 0.9 * truth < np.mean(found) < truth


def test_the_bound_of_a_gaussian_is_below_it():
    chance, found = np.random.default_rng(0), []
    for _ in range(300):
        inside = chance.random(400) < 0.5
        order = (-(inside + chance.normal(size=400))).argsort()  # a drift of 1
        right = int(inside[order[:40]].sum() + (~inside[order[-40:]]).sum())
        found.append(drift_bound(right, 80, 400, confidence=0.9))
    assert sum(each > 1 for each in found) / len(found) < 0.1
    assert np.mean(found) > 0.4


def run(canaries, *stages, model=None, **turned):
    """The rounds of 20 users, with clips, noise and one epoch; all are canaries."""
    data = users(20, 0, 1, 30)
    asked = Settings(**{"rounds": 2} | EXACT | turned)
    return federate(
        model or item_counts(30),
        data,
        asked,
        local=None if model else ItemCounts(),
        uplink=[canaries, *(stages or (Clip(), GaussianNoise()))],
    )


def test_what_canaries_send_by_hand():
    both = Canaries.drawn(20, seed=0)
    *_, done = run(both)
    # a round adds C / N where a canary is in, and nothing where it is out
    torch.testing.assert_close(both.scores(done), 2 * both.inside.float() / 20, atol=1e-5, rtol=0)
    assert len(done.cohort) == 20
    other = replace(both, relation="replace-one")
    *_, done = run(other, sampling="fixed")
    torch.testing.assert_close(
        other.scores(done), (2 * both.inside.float() - 1) / 10, atol=1e-5, rtol=0
    )


def test_canaries_are_spread_over_all_parameters_and_leave_others_alone():
    data, model = users(20, 0, 1, 30), matrix_factorisation(20, 30, 2)
    few = Canaries(torch.tensor([3, 7, 11]), torch.tensor([True, False, True]))
    asked = Settings(**{"rounds": 1, "server_lr": 20.0, "local_lr": 1.0} | EXACT)
    central = [Clip(), GaussianNoise()]
    (with_them,) = federate(model, data, asked, uplink=[few, *central])
    (without,) = federate(
        model, data, asked, uplink=[Canaries(few.clients, torch.zeros(3) > 1), *central]
    )
    moved = {name: with_them.params[name] - without.params[name] for name in ("item", "bias")}
    places = [(name, place) for name in moved for place in moved[name].flatten().nonzero()[:, 0]]
    # 60 + 30 numbers, one of every 30 a canary's: 0 and 60 moved by C, but for the noise
    large = [(n, int(p)) for n, p in places if abs(float(moved[n].flatten()[p])) > 0.5]
    assert large == [("item", 0), ("bias", 0)]
    others = torch.ones(20).index_fill(0, few.clients, 0).bool()
    assert torch.equal(with_them.params["user"][others], without.params["user"][others])


@pytest.mark.parametrize(
    "name", [f"{name} {k}" for name in HONEST for k in range(len(HONEST[name]))]
)
def test_honest_runs_are_not_refuted(name):
    kind, number = name.split()
    found = HONEST[kind][int(number)](count=4000, seed=0)
    assert 0 <= found.lower < found.claimed
    assert found.claimed > 0.5
    assert not found.refuted


def test_honest_runs_with_the_systems_noise_are_not_refuted():
    for found in (statistics(20_000), examples(20_000), averaging(20_000)):
        assert not found.refuted
        assert found.lower > 0.2 * found.claimed  # about half of it, so it does see something
        assert found.seeded == -1


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_in_one_run(name):
    found = FAULTS[name](count=20_000, seed=0)
    assert found.refuted, found
    assert found.seeded == 0


def test_without_its_size_a_fault_is_none():
    honest = averaging(500, seed=1)
    for part in ({"clip": LooseClip()}, {"noise": QuietNoise()}, {"behind": (Again(),)}):
        assert averaging(500, seed=1, **part) == honest
    assert averaging(500, seed=1, noise=ForgottenRounds()) == honest
    other = averaging(500, seed=1, rate=0.1)
    assert averaging(500, seed=1, rate=0.1, who=SameCohort()).claimed == other.claimed


class LongUpdates(Clip):
    """Cuts at twice C, and tells nobody."""

    def each(self, update, context):
        cut = super().each(update, context)
        twice = torch.full_like(cut.weights, 2.0)
        return replace(cut, deltas={n: rows.scaled(twice) for n, rows in cut.deltas.items()})


class SentTwice(ItemCounts):
    """Each chunk comes twice."""

    def train(self, context, cohort):
        for update in super().train(context, cohort):
            yield update
            yield update


def test_the_gate_keeps_two_faults_from_the_sum():
    both = Canaries.drawn(20, seed=0)
    *_, done = run(both, LongUpdates(), GaussianNoise())
    inside = both.clients[both.inside].tolist()
    assert done.rejected == dict.fromkeys(inside, "it is longer than the clip of 1")
    assert float(both.scores(done).abs().max()) < 1e-4
    asked = Settings(**{"rounds": 2} | EXACT)
    *_, done = federate(
        item_counts(30),
        users(20, 0, 1, 30),
        asked,
        local=SentTwice(),
        uplink=[both, Clip(), GaussianNoise()],
    )
    assert set(done.rejected.values()) == {"it has already sent an update, which counts"}
    torch.testing.assert_close(both.scores(done), 2 * both.inside.float() / 20, atol=1e-5, rtol=0)


def test_behind_masks_and_noise_of_clients():
    masked = Canaries.drawn(20, seed=0)
    found = audited(masked, run(masked, Clip(), SecureSum(), GaussianNoise(), noise=2.0))
    assert not found.refuted
    alone = Canaries.drawn(20, "replace-one", seed=0)
    found = audited(alone, run(alone, Clip(), LocalNoise(), sampling="fixed", noise=3.0))
    assert found.claimed == pytest.approx(gaussian_epsilon(2 * math.sqrt(2) / 3, 1e-6))
    assert not found.refuted


def test_a_wide_parameter_has_room_for_many():
    many = Canaries.drawn(20, seed=0)
    model = matrix_factorisation(20, 30, 8, private_users=False)
    *_, done = run(many, model=model, local_lr=0.1)
    torch.testing.assert_close(many.scores(done), 2 * many.inside.float() / 20, atol=1e-5, rtol=0)


def test_examples_that_are_out_have_no_gradient():
    both = CanaryExamples.drawn(50, seed=0)
    asked = Settings(
        rounds=2, cohort=1, batch_size=50, example_noise=1e-6, local_lr=1.0, teaching_seed=0
    )
    *_, done = federate(both.model, both.data, asked, local=DPSGD())
    torch.testing.assert_close(both.scores(done), 2 * both.inside.float() / 50, atol=1e-5, rtol=0)
    claimed, everybody = both.claim(done, 1e-6)
    assert claimed == pytest.approx(gaussian_epsilon(math.sqrt(2) / 1e-6, 1e-6))
    assert everybody


def test_coins_are_fair_and_the_systems():
    inside = Canaries.drawn(100_000).inside
    assert abs(int(inside.sum()) - 50_000) < 6 * 158  # six deviations
    assert not torch.equal(inside, Canaries.drawn(100_000).inside)
    assert torch.equal(Canaries.drawn(50, seed=3).inside, Canaries.drawn(50, seed=3).inside)


def test_guesses_share_the_doubt():
    both = Canaries.drawn(20, seed=0)
    rounds = list(run(both, noise=0.1))
    one = audited(both, rounds, guesses=(10, 10))
    # two tests of one pair of guesses, each at half the doubt
    assert one.guesses == one.canaries == 20
    drift = drift_bound(one.right, 20, 20, confidence=0.9995)
    both_tests = (
        lower_bound(one.right, 20, 20, delta=1e-6, confidence=0.9995),
        gaussian_epsilon(drift, 1e-6),
    )
    assert one.lower == pytest.approx(max(both_tests))
    assert one.lower > 0
    # four pairs of guesses, each at an eighth
    several = audited(both, rounds, confidence=0.9)
    assert usual_guesses(20) == [(5, 5), (1, 1), (1, 1), (1, 0)]
    assert several.right == several.guesses == 10
    drift = drift_bound(10, 10, 20, confidence=1 - 0.1 / 8)
    assert several.lower == pytest.approx(gaussian_epsilon(drift, 1e-6))


def test_it_says_what_it_shows_and_what_it_does_not():
    fine = Audit(2.0, 1.0, 80, 100, 1000, 1e-6, 0.999)
    assert "epsilon is at least 1.00 at delta 1e-06, with confidence 0.999" in str(fine)
    assert "not refuted, which proves nothing" in str(fine)
    assert "teaching_seed" not in str(fine)
    wrong = replace(fine, lower=2.5, seeded=4)
    assert "The ledger says 2.00: that is refuted" in str(wrong)
    assert "teaching_seed=4" in str(wrong)


def test_what_cannot_be_audited_is_refused():
    both = Canaries.drawn(20, seed=0)
    other = Canaries.drawn(20, "replace-one", seed=0)
    plain = federate(
        item_counts(30),
        users(20, 0, 1, 30),
        {"rounds": 1, "cohort": 20},
        local=ItemCounts(),
        uplink=[both],
    )
    for make, message in (
        (lambda: audited(both, []), "rounds='none': give a run of one round"),
        (lambda: audited(both, plain), "'no ledger': the run claims nothing"),
        (lambda: audited(other, run(both)), "'no canaries'|is about add-remove"),
        (lambda: audited(both, run(both, sampling="fixed")), "is about replace-one"),
        (lambda: audited(both, run(both), guesses=(20, 1)), r"guesses=\(20, 1\): choose two whole"),
        (lambda: next(run(both, quantile=0.5, noise=1.0)), "set quantile=0"),
        (lambda: next(run(both, model=matrix_factorisation(20, 1, 2))), "each canary takes one"),
        (lambda: Canaries(torch.tensor([1, 1]), torch.ones(2).bool()), "growing numbers"),
        (lambda: Canaries.drawn(5, "both"), "relation='both': choose one of add-remove"),
        (lambda: Canaries.drawn(1), "count=1: choose 2 canaries"),
        (lambda: CanaryExamples.drawn(4).claim(next(run(both)), 0.1), "give federate local=DPSGD"),
        (lambda: lower_bound(3, 2, 9, delta=0.1), "right=3: choose from 0 to 2"),
        (lambda: lower_bound(1, 2, 1, delta=0.1), "guesses=2: choose from 1 to 1"),
        (lambda: lower_bound(1, 2, 3, delta=1.0), "delta=1.0: choose a number from 0"),
        (lambda: drift_bound(1, 2, 3, confidence=1.0), "confidence=1.0: choose a chance"),
    ):
        with pytest.raises(ParameterError, match=message):
            make()
