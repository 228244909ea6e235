"""Noise in shares: exact draws, and an epsilon that the sum of the shares really proves.

`discrete_gaussian_vectors.csv` has the epsilon of dp-accounting for such sums; its first lines say
how it was made.
"""

import csv
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedlab.algorithms import Membership, Participation, federate
from fedlab.core import ParameterError, Settings
from fedlab.models import matrix_factorisation
from fedlab.privacy import (
    Clip,
    DistributedGaussian,
    GaussianNoise,
    NoiseShares,
    NoiseSource,
    Release,
    discrete_gaussian,
    epsilon,
    gaussian_epsilon,
    least_threshold,
    secure_sum,
)
from fedlab.privacy.ledger import Spent, booked, proven
from fedlab.privacy.secure import concentrated, discrete_laplace
from fedlab.privacy.secure.discrete_gaussian import below, heads, settled
from fedlab.privacy.secure.stages import threshold

LINES = Path(__file__).with_name("discrete_gaussian_vectors.csv").read_text().splitlines()
VECTORS = list(csv.DictReader(line for line in LINES if not line.startswith("#")))
UPLINK = [Clip(), DistributedGaussian()]
QUICK = {"cohort": 10, "local_lr": 0.5, "clip": 0.5, "teaching_seed": 0}


@pytest.fixture(scope="module")
def films(split):
    return matrix_factorisation(split.train.user_count, split.train.item_count, 8)


def chances(deviation, reach, power=2):
    """The numbers from -reach to reach, and the chance of each."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(np.abs(x / deviation) ** power) / power)
    return x, weights / weights.sum()


def fits(drawn, x, chance):
    """How likely draws are that fit their chances no better; rare numbers are one."""
    often = chance * len(drawn) > 10
    seen = np.array([(drawn == value).sum() for value in x])
    observed = [*seen[often], len(drawn) - seen[often].sum()]
    expected = [*chance[often], 1 - chance[often].sum()]
    return stats.chisquare(observed, np.array(expected) * len(drawn)).pvalue


@pytest.mark.parametrize("seed", [0, -1])
@pytest.mark.parametrize("deviation", [1, 2, 9])
def test_draws_are_discrete_gaussian(deviation, seed):
    drawn = discrete_gaussian(40_000, deviation, NoiseSource.of(seed, "draws", 1))
    assert fits(drawn, *chances(deviation, 12 * deviation)) > 1e-5
    again = discrete_gaussian(40_000, deviation, NoiseSource.of(seed, "draws", 1))
    assert np.array_equal(drawn, again) == (seed == 0)


def test_draws_of_the_laplace_proposal_and_of_whole_numbers():
    source = NoiseSource.of(0, "laplace", 0)
    drawn = discrete_laplace(40_000, 3, source)
    assert len(drawn) >= 40_000
    assert fits(drawn, *chances(3, 60, power=1)) > 1e-5
    assert stats.chisquare(np.bincount(below(7, 30_000, source))).pvalue > 1e-5
    wide = discrete_gaussian(20_000, 2**28, source) / 2**28
    assert stats.kstest(wide, "norm").pvalue > 1e-5


class Told(NoiseSource):
    """A source that gives the numbers that it is told, one after another."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = list(numbers)

    def whole(self, count):
        given, self.numbers = self.numbers[:count], self.numbers[count:]
        assert len(given) == count
        return torch.tensor(given)


@pytest.mark.parametrize("exponent", [Fraction(1), Fraction(1, 3), Fraction(7, 2), Fraction(30)])
def test_where_floating_point_cannot_tell_more_bits_do(exponent):
    with localcontext(prec=80):
        x = Decimal(exponent.numerator) / Decimal(exponent.denominator)
        bits = int((-x).exp() * 2**159)  # the first 159 bits of exp(-x), in three words
    first, second, third = bits >> 106, bits >> 53 & 2**53 - 1, bits & 2**53 - 1

    def heads_of(*words):
        place = np.array([float(exponent)])
        return bool(heads(place, lambda _: exponent, Told(*words))[0])

    assert heads_of(first, second - 1)
    assert not heads_of(first, second + 1)
    assert heads_of(first, second, third - 1)
    assert not heads_of(first, second, third + 1)
    assert settled(first - 1, exponent, Told())
    assert not settled(first + 1, exponent, Told())


def test_rounding_is_unbiased_and_never_longer_than_the_bound():
    shares, source = NoiseShares(1.0, 0.01, 5, 200, 4), NoiseSource.of(0, "rounding", 0)
    values = np.random.default_rng(0).normal(size=200)
    values /= np.linalg.norm(values)
    many = np.array([shares.rounded(values, source) for _ in range(3000)])
    assert (np.square(many).sum(1) <= shares.longest).all()
    assert np.abs(many - values * 100).max() < 1 + 1e-9
    off = (many.mean(0) - values * 100) * math.sqrt(3000)
    assert np.abs(off).max() < 0.5 * 5  # a mean of 3000 deviates by at most half a unit
    assert np.square(many).sum(1).std() > 0  # by chance, not to the nearest
    longer = shares.rounded(5 * values, source)  # who does not clip is clipped
    assert longer @ longer <= shares.longest
    assert not shares.rounded(np.zeros(200), source).any()


def test_the_longest_rounded_vector_by_hand():
    # theorem 1 with c = 100 units, beta = exp(-1/2) (so the root of 2 log 1 / beta is 1)
    assert NoiseShares(1.0, 0.01, 5, 16, 4).longest == 100**2 + 16 / 4 + (100 + 4 / 2)
    assert NoiseShares(1.0, 1.0, 5, 1, 4).longest == math.floor(1 + 1 / 4 + 1 + 1 / 2)
    assert NoiseShares(0.01, 1.0, 5, 4, 4).longest == math.floor(0.0001 + 1 + 0.01 + 1)


def summed_chances(deviation, shares):
    """The chances of a sum of discrete Gaussians, term by term."""
    total = one = chances(deviation, 14 * deviation)[1]
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


@pytest.mark.parametrize(("deviation", "shares", "shift"), [(1, 2, 1), (1, 7, 2), (2, 5, 3)])
def test_the_renyi_divergence_of_a_sum_is_below_the_theorems(deviation, shares, shift):
    p = summed_chances(deviation, shares)
    near, far = p[shift:], p[:-shift]
    bound = concentrated(shift**2, deviation, 1, shares) ** 2 / 2
    for order in (1.5, 2, 5, 10):
        kept = (near > 1e-280) & (far > 1e-280)
        terms = order * np.log(near[kept]) + (1 - order) * np.log(far[kept])
        found = math.log(np.exp(terms).sum()) / (order - 1)
        assert 0.97 * order * bound < found <= order * bound + 1e-12


def claim(row):
    """The epsilon that the formula proves for a line of the vectors."""
    deviation, shares = int(row["deviation"]), int(row["counted"])
    square, spread = int(row["shift"]) ** 2, int(row["spread"])
    each = concentrated(square * spread, deviation, spread, shares)
    one = Release(1 / each, 1.0, int(row["sums"]), "all")
    return epsilon([one], float(row["delta"]), method="rdp")


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: row["id"])
def test_epsilon_is_never_below_an_independent_one_and_close(row):
    low, high, found = float(row["low"]), float(row["high"]), claim(row)
    assert found >= low
    if row["counted"] == row["there"]:
        assert found <= 1.13 * high  # Renyi divergence tells a little less than all
    else:
        assert found > high  # more clients than are counted on hide more


def test_who_counts_on_all_that_were_planned_claims_too_little():
    by_id = {row["id"]: row for row in VECTORS}
    for seven, ten in (("13", "19"), ("14", "20")):  # seven of ten arrive
        assert by_id[seven]["there"] == "7"
        assert claim(by_id[ten] | {"counted": "10"}) < float(by_id[seven]["low"])
        assert claim(by_id[ten]) >= float(by_id[seven]["low"])


def test_the_theorem_by_another_calculation():
    for clip, unit, deviation, numbers, shares in (
        (1.0, 0.01, 40, 1000, 7),
        (0.5, 0.1, 1, 300, 5),
        (2.0, 0.001, 3000, 50, 34),
    ):
        made = NoiseShares(clip, unit, deviation, numbers, shares)
        sigma = deviation * unit
        square = min(
            clip**2
            + unit**2 * numbers / 4
            + math.sqrt(2 * 0.5) * unit * (clip + unit * math.sqrt(numbers) / 2),
            (clip + unit * math.sqrt(numbers)) ** 2,
        )
        tau = 10 * math.fsum(
            math.exp(-2 * (math.pi * sigma / unit) ** 2 * (k / (k + 1))) for k in range(1, shares)
        )
        spread = shares * sigma**2
        expected = min(
            math.sqrt(square / spread + 2 * tau * numbers),
            math.sqrt(square / spread) + tau * math.sqrt(numbers),
        )
        assert made.concentrated() == pytest.approx(expected, rel=0.02 if unit == 0.1 else 1e-3)
        assert made.concentrated() <= expected * (1 + 1e-12)  # `longest` is a whole number


def test_planned_shares_add_up_to_the_noise_and_do_not_wrap_around():
    for noise in (1e-6, 0.5, 3.0, 1e6):
        for clients in (1, 3, 12):
            needed = least_threshold(clients)
            made = NoiseShares.planned(2.0, noise, 40, clients, needed)
            spread = made.deviation * made.unit * math.sqrt(needed)
            assert 2.0 * noise <= spread <= 2.0 * noise * 1.001 + made.unit * math.sqrt(needed)
            source = NoiseSource.of(0, "planned", clients)
            worst = np.zeros(40)
            worst[0] = -2.0
            sent = {k: made.encode(worst, source) for k in range(1, clients + 1)}
            found = made.decode(secure_sum(sent).total if clients > 1 else sent[1])
            reach = 7 * made.deviation * made.unit * math.sqrt(clients)
            assert abs(found[0] + 2 * clients) <= reach + clients * made.unit
            assert np.abs(found[1:]).max() <= reach + 1e-12
    fine = NoiseShares.planned(1.0, 1.0, 100_000, 50, 34)
    assert 1 / fine.concentrated() == pytest.approx(1.0, abs=1e-4)  # rounding costs next to nothing
    coarse = NoiseShares.planned(1.0, 1e6, 100_000, 50, 34)
    assert 1 / coarse.concentrated() < 1e6  # where it does, it is in the claim


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip=0.0"),
        ({"unit": math.inf}, "unit=inf"),
        ({"deviation": 0}, "deviation=0: choose from 1"),
        ({"deviation": 2**29}, "deviation=536870912"),
        ({"numbers": 0}, "numbers=0"),
        ({"shares": 0}, "shares=0"),
    ],
)
def test_bad_shares_are_refused(change, message):
    whole = {"clip": 1.0, "unit": 0.1, "deviation": 1, "numbers": 1, "shares": 1}
    with pytest.raises(ParameterError, match=message):
        NoiseShares(**whole | change)
    with pytest.raises(ParameterError, match="values=nan: give numbers that are finite"):
        NoiseShares(**whole).rounded(np.array([math.nan]), NoiseSource())
    with pytest.raises(ParameterError, match="deviation=0"):
        discrete_gaussian(1, 0, NoiseSource())


def test_the_model_moves_by_the_noise_of_those_that_arrive(films, clicks):
    still = QUICK | {"rounds": 1, "local_lr": 1e-9, "noise": 4.0, "clip": 1.0}
    for drop_out, answering, colluding in ((0, 0.7, 0), (0.2, 0.7, 0), (0, 1.0, 0), (0, 0.7, 0.3)):
        asked = Settings(drop_out=drop_out, answering=answering, colluding=colluding, **still)
        done = next(federate(films, clicks, asked, uplink=UPLINK))
        needed, counted = math.ceil(10 * answering), math.ceil(10 * (answering - colluding))
        assert needed <= len(done.cohort) <= 10
        moved = done.params["item"] - films.init(0)["item"]
        deviation = 4.0 * math.sqrt(len(done.cohort) / counted) / 10  # of a mean over ten
        assert float(moved.std()) == pytest.approx(deviation, rel=0.02)
        assert not done.skipped


def test_with_hardly_any_noise_it_is_the_plain_sum(films, clicks):
    asked = Settings(rounds=1, noise=1e-6, **QUICK)
    shared, central = (
        next(federate(films, clicks, asked, uplink=uplink)).params
        for uplink in (UPLINK, [Clip(), GaussianNoise()])
    )
    torch.testing.assert_close(shared["item"], central["item"], atol=1e-6, rtol=1e-5)
    assert not torch.equal(shared["item"], central["item"])


def test_a_round_with_fewer_clients_than_are_counted_on_is_skipped_and_booked(films, clicks):
    asked = Settings(rounds=2, drop_out=0.6, noise=4.0, **QUICK)
    rounds = list(federate(films, clicks, asked, uplink=UPLINK))
    for done in rounds:
        assert "clients are there, and a secure sum opens for 7" in done.skipped
        assert torch.equal(done.params["item"], films.init(0)["item"])
        assert done.metrics["epsilon"] > 0


def test_the_servers_own_clients_are_fewer_than_the_protocol_stands():
    for clients in range(1, 200):
        for share in (2 / 3, 0.7, 1.0):
            needed = threshold(share, clients)
            assert math.floor(clients / 3) <= max(0, 2 * needed - clients - 1)
            assert least_threshold(clients) <= needed <= clients
            assert needed - math.floor(clients / 3) >= 1


def test_what_is_booked_is_the_release_of_the_client_that_sent_most(films, clicks):
    asked = Settings(rounds=3, noise=30.0, **QUICK)
    twelve = Participation(members=Membership.only(torch.arange(671) < 12), warm=False)
    rounds = list(federate(films, clicks, asked, uplink=UPLINK, participation=twelve))
    most = int(torch.bincount(torch.cat([done.cohort for done in rounds])).max())
    size = sum(value.numel() for name, value in films.init(0).items() if name != "user")
    assert most == 3
    made = NoiseShares.planned(0.5, 30.0, size, 10, 7)
    once = Release(1 / made.concentrated(), 1.0, most, "all")
    expected = epsilon([once], 1e-4, relation="replace-one", method="rdp")
    assert rounds[-1].metrics["epsilon"] == pytest.approx(expected, rel=1e-6)
    # more than normal noise of the same deviation would prove
    exact = gaussian_epsilon(2 * math.sqrt(most) / 30, 1e-4)
    assert exact < rounds[-1].metrics["epsilon"] < 1.3 * exact


def test_a_ledger_with_noise_that_is_not_normal_stays_with_renyi_divergence():
    release, who = Release(5.0, 1.0, 1, "all"), torch.arange(3)
    normal = booked({}, [Spent(release, who)], 3)
    other = booked({}, [Spent(release, who, normal=False)], 3)
    later = booked(other, [Spent(release, who)], 3)
    assert proven(normal, 1e-4) < proven(other, 1e-4) < proven(later, 1e-4)
    assert proven(other, 1e-4) == epsilon([release], 1e-4, relation="replace-one", method="rdp")


def test_clients_draw_noise_of_their_own(films, clicks):
    asked = Settings(rounds=1, noise=1e-4, **QUICK)
    one, again, system = (
        next(federate(films, clicks, asked.replace(teaching_seed=seed), uplink=UPLINK))
        for seed in (0, 0, -1)
    )
    assert torch.equal(one.params["item"], again.params["item"])
    assert not torch.equal(one.params["item"], system.params["item"])
    made, source = NoiseShares(1.0, 0.1, 9, 50, 3), NoiseSource()
    sent = [made.encode(np.zeros(50), source).astype(np.int32) for _ in range(2)]
    assert (sent[0] != sent[1]).any()
