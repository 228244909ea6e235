"""Who took part: the score by hand, intervals against scipy's, and the bound that epsilon is."""

import math

import pytest
import torch
from scipy.stats import binomtest, bootstrap, mannwhitneyu, norm

from fedlab.algorithms import Membership, Participation, federate
from fedlab.attacks import (
    auc_standard_error,
    clopper_pearson,
    membership_metrics,
    membership_scores,
    tpr_bound,
)
from fedlab.core import ParameterError, Settings
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, gaussian_epsilon


def test_membership_scores_by_hand():
    moved = torch.tensor([1.0, 3.0, 5.0, 5.0])
    popularity = torch.tensor([1.0, 1.0, 3.0, 3.0])  # films 0, 1 are alike, so are 2, 3
    watched = torch.tensor([[True, False, True, False], [False, True, True, True], [False] * 4])
    # farther than alike: -1, 1, 0, 0; weights 1/2, 1/2, 1/4, 1/4
    expected = [-0.5 / 0.75, 0.5 / 1.0, 0.0]
    scores = membership_scores(moved, watched, popularity)
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_intervals_by_scipy():
    for found, of in ((0, 10), (3, 10), (10, 10), (171, 335)):
        theirs = binomtest(found, of).proportion_ci(method="exact")
        assert clopper_pearson(found, of) == pytest.approx((theirs.low, theirs.high))
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))  # by hand: none of ten
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))
    generator = torch.Generator().manual_seed(0)
    members = torch.randn(150, generator=generator) + 0.5
    others = torch.randn(120, generator=generator)
    scores, inside = torch.cat([members, others]), torch.arange(270) < 150
    found = membership_metrics(scores, inside)

    def area(a, b):
        return mannwhitneyu(a, b).statistic / (len(a) * len(b))

    theirs = bootstrap(
        (members.numpy(), others.numpy()),
        area,
        vectorized=False,
        n_resamples=400,
        rng=0,
        method="percentile",
    ).confidence_interval
    assert found["auc"] == pytest.approx(area(members.numpy(), others.numpy()))
    interval = found["auc_low"], found["auc_high"]
    assert interval == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    truth = float(norm.cdf(0.7 / math.sqrt(2)))  # of two normals 0.7 apart
    generator, inside, held = torch.Generator().manual_seed(1), torch.arange(200) < 100, 0
    for _ in range(400):
        scores = torch.randn(200, generator=generator) + 0.7 * inside
        found = membership_metrics(scores, inside)
        held += found["auc_low"] <= truth <= found["auc_high"]
    assert 0.92 <= held / 400 <= 0.98


def test_found_at_a_rate_of_mistakes():
    scores, inside = torch.arange(40.0), torch.arange(40) % 2 == 1  # others at 0, 2, ..., 38
    found = membership_metrics(scores, inside, fpr=0.1)  # two others may pass: 38 and 36
    assert found["tpr"] == 3 / 20  # members at 35, 37, 39
    assert membership_metrics(torch.zeros(40), inside)["tpr"] == 0  # all alike: nobody is found
    assert membership_metrics(torch.zeros(40), inside)["auc"] == 0.5


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_no_attack_on_a_gaussian_sum_passes_the_bound(noise):
    delta = 1e-4
    epsilon = gaussian_epsilon(1 / noise, delta)
    for fpr in (0.001, 0.01, 0.05, 0.3, 0.9):
        best = float(norm.cdf(1 / noise - norm.ppf(1 - fpr)))  # Neyman and Pearson's test
        assert best <= tpr_bound(epsilon, delta, fpr) + 1e-9
    assert tpr_bound(0.0, 0.0, 0.05) == pytest.approx(0.05)
    assert tpr_bound(1000.0, 0.0, 0.05) == 1.0


def test_the_spread_of_an_auc_by_hand():
    # at 1/2 with many of both: sqrt((m + o + 1) / (12 m o)), as of Mann and Whitney's U
    expected = math.sqrt(101 / (12 * 40 * 60))
    assert auc_standard_error(0.5, 40, 60) == pytest.approx(expected, rel=1e-3)
    assert auc_standard_error(1.0, 40, 60) == 0


def test_noise_hides_who_took_part(clicks, split):
    inside = torch.rand(len(clicks), generator=torch.Generator().manual_seed(0)) < 0.5
    who = Participation(members=Membership.only(inside), warm=False)
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    watched = torch.zeros(len(clicks), split.train.item_count, dtype=torch.bool)
    watched[split.train.users, split.train.items] = True
    found = []
    for noise in (1e-6, 1.0):
        # of about 335 members each takes part with chance .45, as of 671 clients 300 did
        asked = Settings(
            rounds=6,
            sampling="poisson",
            cohort=150,
            local_lr=15.0,
            clip=5.0,
            noise=noise,
            teaching_seed=0,
        )
        *_, last = federate(
            model, clicks, asked, participation=who, uplink=[Clip(), GaussianNoise()]
        )
        assert inside[last.cohort].all()
        scores = membership_scores(last.params["bias"], watched, split.train.item_counts())
        found.append(membership_metrics(scores, inside))
    assert found[0]["auc_low"] > 0.65
    assert found[1]["auc_low"] < found[1]["auc"] < found[0]["auc_low"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: membership_scores(torch.zeros(3), torch.zeros(2, 4).bool(), torch.zeros(4)),
            r"moved=\(3,\): give a number for each",
        ),
        (
            lambda: membership_metrics(torch.zeros(4), torch.arange(4) < 2, level=1.0),
            "level=1.0: choose a share",
        ),
        (
            lambda: membership_metrics(torch.zeros(4), torch.arange(4) < 2, fpr=0.0),
            "fpr=0.0: choose a share",
        ),
        (lambda: membership_metrics(torch.zeros(4), torch.ones(4).bool()), "needs both classes"),
        (lambda: clopper_pearson(3, 2), "found=3: choose from 0 to 2"),
        (lambda: tpr_bound(-1.0, 0.0, 0.1), "epsilon=-1.0: choose 0 or more"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
