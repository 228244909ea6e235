"""Epsilon against vectors of other accountants, and the mistakes that make it wrong."""

import csv
import math
from pathlib import Path

import pytest

from fedlab.core import ParameterError
from fedlab.privacy import Release, adaptive_clip_noise, epsilon, gaussian_epsilon, noise_for

ROWS = {
    f"{row['id']}-{row['sampling'][:5]}": row
    for row in csv.DictReader(
        Path(__file__).with_name("dp_test_vectors.csv").read_text().splitlines()
    )
}
RUNS = [name for name in ROWS if name[0] == "P"]
LOCAL = [name for name in ROWS if name[0] == "L"]


def release(row):
    kind = {"p": "poisson", "f": "fixed", "n": "all"}[row["sampling"][0]]
    return Release(
        float(row["sigma"]), 1.0 if kind == "all" else float(row["q"]), int(row["T"]), kind
    )


@pytest.mark.parametrize("name", RUNS)
def test_epsilon_is_that_of_other_accountants(name):
    row = ROWS[name]
    one, delta, relation = release(row), float(row["delta"]), row["relation"]
    quick = epsilon([one], delta, relation=relation, method="rdp")
    known = [
        float(row[column]) for column in ("opacus_rdp", "dpa_rdp") if row[column] not in ("", "n/a")
    ]
    assert known
    assert all(quick == pytest.approx(value, rel=0.005) for value in known)
    if one.sampling == "fixed":
        with pytest.raises(
            ParameterError, match="sampling='fixed': no proof here for relation='replace-one'"
        ):
            epsilon([one], delta, relation=relation)
        return
    tight = epsilon([one], delta, relation=relation)
    exact = float(row["analytic"] or row["dpa_pld"])
    assert exact - 0.001 <= tight <= exact + 0.02
    assert tight <= quick


def test_settings_that_change_compose():
    row = ROWS["M1-poiss"]
    both = [Release(1.2, 0.02, 100), Release(0.8, 0.01, 300)]
    assert epsilon(both, 1e-5, method="rdp") == pytest.approx(float(row["dpa_rdp"]), rel=0.005)
    assert float(row["dpa_pld"]) - 0.001 <= epsilon(both, 1e-5) <= float(row["dpa_pld"]) + 0.02


@pytest.mark.parametrize("name", LOCAL)
def test_one_release_is_exact_and_the_classic_formula_is_false_where_epsilon_is_large(name):
    row = ROWS[name]
    noise, delta, claimed = (
        float(row["sigma"]),
        float(row["delta"]),
        float(row["note"].split(";")[0].split()[1]),
    )
    assert noise == pytest.approx(math.sqrt(2 * math.log(1.25 / delta)) / claimed)
    true = gaussian_epsilon(1 / noise, delta)
    assert true == pytest.approx(float(row["analytic"]), abs=1e-6)
    assert (true > claimed) == ("FALSE" in row["note"])


def test_a_noisy_count_takes_its_part():
    row = ROWS["A1-poiss"]
    assert adaptive_clip_noise(1.0, 5.0) == pytest.approx(float(row["analytic"]), rel=1e-9)
    both = [Release(1.0, float(row["q"]), int(row["T"]))]
    assert epsilon(both, 1e-5, method="rdp") == pytest.approx(float(row["dpa_rdp"]), rel=0.005)
    z = adaptive_clip_noise(1.0, 5.0)
    assert 1 / z**2 + 1 / 10**2 == pytest.approx(1.0)


def test_one_client_replaced_moves_the_sum_twice_as_far():
    # to forget the factor 2 is to count on twice the noise
    right, wrong = (
        epsilon(
            [Release(noise, 0.01655629139, 200, "fixed")],
            1e-5,
            relation="replace-one",
            method="rdp",
        )
        for noise in (0.8, 1.6)
    )
    assert right == pytest.approx(60.1, abs=0.1)
    assert wrong == pytest.approx(4.50, abs=0.01)
    everybody = [Release(1.0, sampling="all")]
    assert epsilon(everybody, 1e-5, relation="replace-one") == epsilon(
        [Release(0.5, sampling="all")], 1e-5
    )


@pytest.mark.parametrize("method", ["tight", "rdp"])
def test_noise_for_an_epsilon_proves_it_and_hardly_more(method):
    plan = [Release(1.0, 0.1, 50)]
    factor = noise_for(2.0, 1e-4, plan, method=method)
    proven = epsilon([Release(factor, 0.1, 50)], 1e-4, method=method)
    assert proven <= 2.0
    assert proven > 1.98


def test_nothing_released_costs_nothing_and_more_costs_more():
    assert epsilon([], 1e-5) == 0
    assert epsilon([Release(1.0, 0.1, 0)], 1e-5) == 0
    for method in ("tight", "rdp"):
        rising = [
            epsilon([Release(1.0, 0.1, times)], 1e-5, method=method) for times in (1, 10, 100)
        ]
        assert rising == sorted(rising)
        # a rate of 1 is everybody, by another name
        assert epsilon([Release(1.0, 1.0, 3)], 1e-5, method=method) == pytest.approx(
            epsilon([Release(1.0, sampling="all", times=3)], 1e-5, method=method)
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Release(0.0), "noise=0.0: choose a positive number"),
        (lambda: Release(-1.0), "noise=-1.0"),
        (lambda: Release(math.nan), "noise=nan"),
        (lambda: Release(1.0, 0.0), "rate=0.0: choose a share of the clients"),
        (
            lambda: Release(1.0, 0.5, sampling="all"),
            "rate=0.5: where everybody is in a sum it is 1",
        ),
        (lambda: Release(1.0, 0.5, -1), "times=-1"),
        (
            lambda: Release(1.0, 0.5, sampling="shuffle"),
            "sampling='shuffle': choose one of poisson, fixed, all",
        ),
        (lambda: epsilon([Release(1.0)], 0.0), "delta=0.0: choose a number between 0 and 1"),
        (lambda: epsilon([Release(1.0)], 0.1, relation="swap"), "relation='swap'"),
        (lambda: epsilon([Release(1.0)], 0.1, method="moments"), "method='moments'"),
        (
            lambda: epsilon([Release(1.0, 0.1)], 0.1, relation="replace-one"),
            "sampling='poisson': no proof here",
        ),
        (lambda: epsilon([Release(1.0, 0.1, 1, "fixed")], 0.1), "sampling='fixed': no proof here"),
        (
            lambda: epsilon([Release(1.0, 0.1, 1, "fixed"), Release(1.0, 0.1)], 0.1, method="rdp"),
            "'fixed.poisson'",
        ),
        (lambda: adaptive_clip_noise(1.0, 0.4), "bit_noise=0.4: choose more than half of noise=1"),
        (lambda: noise_for(0.0, 1e-5, [Release(1.0)]), "target=0.0: choose a positive epsilon"),
    ],
)
def test_what_is_not_proven_is_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
