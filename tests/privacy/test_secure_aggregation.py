"""Secure aggregation: exact sums with drop-outs; nothing opens too early or after tampering."""

import os
import random
from math import comb

import numpy as np
import pytest
from scipy import stats

from fedlab.core import ParameterError
from fedlab.privacy import (
    PRIME,
    FixedPoint,
    Member,
    SecureSumError,
    expand_seed,
    joined_secret,
    secure_sum,
    split_secret,
    unmasked,
    weights_at_zero,
)


def words(count, length, seed=0):
    chance = np.random.default_rng(seed)
    return {
        number: chance.integers(0, 2**32, length, dtype=np.uint32) for number in range(1, count + 1)
    }


def plain(vectors, there):
    total = np.zeros_like(vectors[1])
    for number in there:
        total += vectors[number]
    return total


def test_a_thousand_cases_of_drop_outs_are_exact_or_aborted():
    chance, exact = random.Random(0), 0
    for case in range(1000):
        count = chance.randint(2, 7)
        threshold = chance.randint(count // 2 + 1, count)
        vectors = words(count, 3, case)
        before = {n for n in vectors if chance.random() < 0.25}
        after = {n for n in vectors if chance.random() < 0.25} - before
        there = [n for n in vectors if n not in before]
        if len(there) - len(after) >= threshold:
            found = secure_sum(vectors, threshold, dropped_before=before, dropped_after=after)
            assert np.array_equal(found.total, plain(vectors, there))
            exact += 1
            continue
        with pytest.raises(SecureSumError, match=r"threshold|needed, so nothing is opened"):
            secure_sum(vectors, threshold, dropped_before=before, dropped_after=after)
    assert 300 < exact < 900


class Run:
    """A run, step by step, so that a test can reach between the steps."""

    def __init__(self, count=5, threshold=3, length=4):
        self.vectors, self.run, self.threshold = words(count, length), os.urandom(16), threshold
        self.members = {n: Member(n, self.run) for n in self.vectors}
        self.keys = {n: m.keys() for n, m in self.members.items()}
        self.outbox = {n: m.encrypted_shares(self.keys, threshold) for n, m in self.members.items()}
        self.inbox = {
            to: {n: written[to] for n, written in self.outbox.items()} for to in self.members
        }

    def masked(self, there):
        return {n: self.members[n].masked(self.vectors[n], self.members) for n in there}

    def shares(self, there):
        return {n: self.members[n].revealed_shares(self.inbox[n], there) for n in there}


def test_two_shares_below_the_threshold_say_nothing_and_three_say_all():
    secret = bytes(range(32))
    points = split_secret(secret, 5, 3)
    for chosen in ((1, 2, 3), (5, 1, 4)):
        assert joined_secret({x: points[x - 1] for x in chosen}, weights_at_zero(chosen)) == secret
    with pytest.raises(SecureSumError, match="do not fit together"):
        joined_secret({x: points[x - 1] for x in (1, 2)}, weights_at_zero((1, 2)))
    # one share is any number
    hits = [split_secret(secret, 5, 3)[0] * 10 // PRIME for _ in range(2000)]
    assert stats.chisquare(np.bincount(hits, minlength=10)).pvalue > 1e-4


def test_weights_at_zero_by_hand():
    found = weights_at_zero((1, 2, 3))  # f(0) = 3 f(1) - 3 f(2) + f(3)
    assert found == {1: comb(3, 1), 2: PRIME - comb(3, 2), 3: comb(3, 3)}


def test_what_the_server_sees_of_one_client_is_chance():
    run = Run(length=20_000)
    for number in run.vectors:
        run.vectors[number][:] = 7  # the plainest vector there is
    seen = run.masked([1])[1]
    assert stats.kstest(seen / 2**32, "uniform").pvalue > 1e-4
    again = Run(length=20_000)
    assert (expand_seed(os.urandom(32), 100) != expand_seed(os.urandom(32), 100)).any()
    assert (again.masked([1])[1] != seen).mean() > 0.99  # fresh keys in each run


def test_a_sum_whose_shares_were_changed_is_not_opened():
    for spoil in (
        lambda text: text[:-1] + bytes([text[-1] ^ 1]),
        lambda text: bytes([text[0] ^ 1]) + text[1:],
    ):
        run = Run()
        run.inbox[2][4] = spoil(run.inbox[2][4])
        with pytest.raises(SecureSumError, match="client 2: the shares from client 4 were changed"):
            run.shares([1, 2, 3, 4, 5])


def test_shares_of_another_run_or_pair_are_refused():
    run, other = Run(), Run()
    run.inbox[2][4] = other.inbox[2][4]
    with pytest.raises(SecureSumError, match="or belong to another run or pair"):
        run.shares([1, 2, 3, 4, 5])
    run = Run()
    run.inbox[2][4] = run.inbox[2][3]
    with pytest.raises(SecureSumError, match="or belong to another run or pair"):
        run.shares([1, 2, 3, 4, 5])


def test_a_changed_share_is_found():
    run, there = Run(), [1, 2, 3, 4]  # client 5 dropped out: its key is brought back
    vectors, shares = run.masked(there), run.shares(there)
    right = unmasked(vectors, run.keys, run.members, shares, 3, run.run)
    assert np.array_equal(right, plain(run.vectors, there))
    shares[2][5] = (shares[2][5] + 1) % PRIME
    with pytest.raises(SecureSumError, match="do not fit together: one of them was changed"):
        unmasked(vectors, run.keys, run.members, shares, 3, run.run)


def test_nobody_tells_both_secrets_of_one_client():
    run = Run()
    run.members[1].revealed_shares(run.inbox[1], [1, 2, 3, 4])  # of 5, its mask key
    with pytest.raises(SecureSumError, match="asked for shares twice with different clients there"):
        # and now its own seed: together they open it
        run.members[1].revealed_shares(run.inbox[1], [1, 2, 3, 4, 5])
    with pytest.raises(SecureSumError, match="2 vectors arrived, fewer than the threshold 3"):
        run.members[2].revealed_shares(run.inbox[2], [1, 2])


def test_fixed_point_sums_do_not_overflow_and_are_close():
    count = 50
    fixed, chance = FixedPoint(2.0, count), np.random.default_rng(0)
    values = chance.uniform(-2, 2, (count, 1000))
    values[:, 0], values[:, 1] = 2.0, -2.0  # the worst that all can send
    total = plain({k + 1: fixed.encode(row) for k, row in enumerate(values)}, range(1, count + 1))
    assert np.abs(fixed.decode(total) - values.sum(0)).max() <= count * fixed.unit / 2 + 1e-12
    assert fixed.decode(total)[0] == pytest.approx(100)
    with pytest.raises(
        ParameterError, match=r"values=2\.01: beyond the bound 2 sums overflow; clip first"
    ):
        fixed.encode(np.array([2.01]))
    for bad, message in (
        ((0.0, 5), "bound=0.0"),
        ((1.0, 0), "clients=0"),
        ((float("nan"), 5), "bound=nan"),
    ):
        with pytest.raises(ParameterError, match=message):
            FixedPoint(*bad)


def test_bytes_are_counted():
    found = secure_sum(words(4, 100), 3)
    sealed = 12 + 2 * 66 + 16  # nonce, two shares, tag
    assert found.bytes_up == 4 * 64 + 16 * sealed + 4 * 400 + 16 * 66


@pytest.mark.parametrize(
    ("vectors", "threshold", "message"),
    [
        (words(4, 3), 2, "threshold=2: choose more than half of the 4 clients"),
        (words(4, 3), 5, "threshold=5"),
        ({2: words(4, 3)[1]}, 1, r"vectors=\[2\]: number clients 1, 2, ..."),
    ],
)
def test_bad_runs_are_refused(vectors, threshold, message):
    with pytest.raises(ParameterError, match=message):
        secure_sum(vectors, threshold)


def test_vectors_of_another_length_are_refused():
    run = Run()
    vectors = run.masked([1, 2, 3])
    vectors[2] = vectors[2][:3]
    with pytest.raises(ParameterError, match="vectors=3: the others have 4 numbers"):
        unmasked(vectors, run.keys, run.members, run.shares([1, 2, 3]), 3, run.run)
