"""Secure sums: exact with drop-outs; nothing opens too early or after tampering."""

import os
import random
from math import comb

import numpy as np
import pytest
from scipy import stats
from secure_sums import dropped_out

from fedlab.core import ParameterError
from fedlab.privacy import (
    PRIME,
    FixedPoint,
    Identity,
    Member,
    SecureSumError,
    Server,
    Terms,
    expand_seed,
    joined_secret,
    least_threshold,
    secure_sum,
    split_secret,
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


def test_a_hundred_cases_of_drop_outs_are_exact_or_aborted():
    found = [dropped_out(seed) for seed in range(100)]
    assert "wrong" not in found
    assert min(found.count("exact"), found.count("aborted")) > 15


class Run:
    """A run, step by step, so that a test can reach between the steps."""

    def __init__(self, count=5, threshold=4, length=4):
        self.vectors = words(count, length)
        self.identities = {n: Identity() for n in self.vectors}
        directory = {n: identity.public for n, identity in self.identities.items()}
        self.terms = Terms(os.urandom(16), threshold, length, directory)
        self.members = {n: Member(n, own, self.terms) for n, own in self.identities.items()}
        self.server = Server(self.terms)

    def shared(self, without=()):
        """The letters for each member, after rounds 0 and 1."""
        self.adverts = self.server.keys({n: m.advertise_keys() for n, m in self.members.items()})
        texts = {n: m.share_keys(self.adverts) for n, m in self.members.items()}
        self.letters = self.server.letters({n: t for n, t in texts.items() if n not in without})
        return self.letters

    def masked(self, there):
        return {n: self.members[n].masked_input(self.letters[n], self.vectors[n]) for n in there}

    def signed(self, there):
        return {n: self.members[n].consistency_check(there) for n in there}

    def shares(self, there):
        """The answers of round 4, after rounds 1 to 3."""
        self.shared()
        self.server.inputs(self.masked(there))
        signatures = self.server.signatures(self.signed(there))
        return {n: self.members[n].unmasking(signatures) for n in there}


def test_less_than_the_threshold_of_shares_says_nothing_and_three_say_all():
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
    run, again = Run(length=20_000), Run(length=20_000)
    for each in (run, again):
        each.vectors[1][:] = 7  # the plainest vector there is
        each.shared()
    seen = run.masked([1])[1]
    assert stats.kstest(seen / 2**32, "uniform").pvalue > 1e-4
    assert (expand_seed(os.urandom(32), 100) != expand_seed(os.urandom(32), 100)).any()
    assert (again.masked([1])[1] != seen).mean() > 0.99  # fresh keys in each run


def test_clients_that_drop_out_between_any_two_rounds():
    run = Run(7, 5)
    run.shared(without=[7])  # has sent keys only: nobody masks for it
    there, left = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6]
    masked = run.masked([1, 2, 3, 4, 5, 6])
    assert run.server.inputs(masked) == there
    signatures = run.server.signatures({n: run.members[n].consistency_check(there) for n in left})
    shares = {n: run.members[n].unmasking(signatures) for n in left}
    assert np.array_equal(run.server.total(shares), plain(run.vectors, there))
    assert set(shares[1]) == {1, 2, 3, 4, 5, 6}


def test_a_sum_whose_shares_were_changed_is_not_opened():
    for spoil in (
        lambda text: text[:-1] + bytes([text[-1] ^ 1]),
        lambda text: bytes([text[0] ^ 1]) + text[1:],
        lambda text: text[:5],
    ):
        run = Run()
        run.shared()
        run.letters[2][4] = spoil(run.letters[2][4])
        run.masked(run.members)
        signatures = run.signed(run.members)
        with pytest.raises(SecureSumError, match="client 2: the shares from client 4 were changed"):
            run.members[2].unmasking(signatures)


def test_shares_of_another_run_or_pair_are_refused():
    for other in (lambda run, strange: strange.letters[2][4], lambda run, _: run.letters[2][3]):
        run, strange = Run(), Run()
        run.shared(), strange.shared()
        run.letters[2][4] = other(run, strange)
        run.masked(run.members)
        signatures = run.signed(run.members)
        with pytest.raises(SecureSumError, match="or belong to another run or pair"):
            run.members[2].unmasking(signatures)


def test_a_changed_or_missing_share_is_found():
    there = [1, 2, 3, 4]  # client 5 dropped out: its key is brought back
    run = Run()
    shares = run.shares(there)
    assert np.array_equal(run.server.total(shares), plain(run.vectors, there))
    for owner, by in ((5, 1), (3, PRIME // 7)):
        changed = shares | {2: shares[2] | {owner: (shares[2][owner] + by) % PRIME}}
        with pytest.raises(SecureSumError, match="do not fit together: one of them was changed"):
            run.server.total(changed)
    without = shares | {2: {n: share for n, share in shares[2].items() if n != 5}}
    with pytest.raises(SecureSumError, match="client 2 gave no share of client 5"):
        run.server.total(without)


def test_each_round_happens_once_and_in_order_and_none_behind_a_failure():
    run = Run()
    letters = run.shared()
    one, two, three = (run.members[n] for n in (1, 2, 3))
    with pytest.raises(SecureSumError, match="client 1: asked for unmasking, but masked_input is"):
        one.unmasking({})
    with pytest.raises(SecureSumError, match="client 1: it has stopped, after something that it"):
        one.masked_input(letters[1], run.vectors[1])
    with pytest.raises(SecureSumError, match="client 2: asked for share_keys, but masked_input is"):
        two.share_keys(run.adverts)
    run.masked([3, 4, 5])
    with pytest.raises(SecureSumError, match="client 3: asked for masked_input, but consistency_"):
        three.masked_input(letters[3], run.vectors[3])
    done = Run()
    done.shares([1, 2, 3, 4])
    with pytest.raises(SecureSumError, match="asked for unmasking, but the run is over"):
        done.members[1].unmasking({})


def test_a_vector_of_ones_own_that_does_not_fit_is_no_failure_of_the_run():
    run = Run()
    letters = run.shared()[1]
    for bad in (run.vectors[1][:3], run.vectors[1].astype(np.int64)):
        with pytest.raises(ParameterError, match=r"vector=.*the terms say 4 words of 32 bits"):
            run.members[1].masked_input(letters, bad)
    assert run.members[1].masked_input(letters, run.vectors[1]).shape == (4,)


def test_the_server_opens_nothing_for_fewer_than_the_threshold():
    run = Run()
    shares = run.shares([1, 2, 3, 4])
    for method, given in (
        (run.server.keys, run.adverts),
        (run.server.letters, run.letters),
        (run.server.inputs, run.vectors),
        (run.server.signatures, run.adverts),
        (run.server.total, shares),
    ):
        few = {n: given[n] for n in (1, 2, 3)}
        with pytest.raises(SecureSumError, match=r"3 clients .*, fewer than the threshold 4"):
            method(few)
    with pytest.raises(SecureSumError, match=r"client 2 sent \(3,\) words; the terms say 4"):
        run.server.inputs(run.vectors | {2: run.vectors[2][:3]})


def test_the_terms_say_how_many_clients_of_the_servers_they_stand():
    # 2 t > n + n_C
    for clients in range(1, 40):
        least = least_threshold(clients)
        assert 3 * least > 2 * clients >= 3 * (least - 1)
        if clients > 2:
            directory = {n: os.urandom(32) for n in range(1, clients + 1)}
            found = Terms(bytes(16), least, 1, directory).colluding
            assert 2 * least > clients + found
            assert 2 * least <= clients + found + 1
            assert found >= (clients - 1) // 3  # n/3, rounded up, less one


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
    keys, sealed = 32 + 32 + 64, 12 + 2 * 66 + 16  # two keys and a signature; nonce, shares, tag
    for threshold in (3, 4):
        found = secure_sum(words(4, 100), threshold)
        shares = threshold * 4 * 66  # of as many clients as are needed
        assert found.bytes_up == 4 * keys + 12 * sealed + 4 * 400 + 4 * 64 + shares


@pytest.mark.parametrize(
    ("vectors", "threshold", "message"),
    [
        (words(6, 3), 4, "threshold=4: choose more than two thirds of the 6 clients"),
        (words(4, 3), 5, "threshold=5"),
        ({2: words(4, 3)[1]}, 1, r"directory=\[2\]: number clients 1, 2, ..."),
        ({}, 1, "vectors={}: give one for each client"),
        (words(2, 0), 2, "length=0: choose 1 or more"),
        (words(1, 3), 1, "directory=1: a sum over one client is that client's vector"),
    ],
)
def test_bad_runs_are_refused(vectors, threshold, message):
    with pytest.raises(ParameterError, match=message):
        secure_sum(vectors, threshold)


def test_bad_terms_are_refused():
    keys = {n: os.urandom(32) for n in (1, 2, 3)}
    for change, message in (
        ({"run": b"short"}, "run=b'short': give 16 bytes that no other run has"),
        ({"directory": keys | {3: keys[1]}}, "has an identity key of its own"),
        ({"directory": keys | {3: b"short"}}, "has an identity key of its own, of 32 bytes"),
        ({"directory": {}}, r"directory=\[\]"),
    ):
        whole = {"run": bytes(16), "threshold": 3, "length": 1, "directory": keys} | change
        with pytest.raises(ParameterError, match=message):
            Terms(**whole)
    mine = dict(keys)
    kept = Terms(bytes(16), 3, 1, mine)
    mine[1] = bytes(32)  # whoever drew them up cannot change them later
    assert kept.directory[1] == keys[1]


def test_sizes_and_thresholds_at_random_sum_exactly():
    chance = random.Random(0)
    for _ in range(10):
        vectors = words(chance.randint(2, 12), 5, chance.getrandbits(32))
        assert np.array_equal(secure_sum(vectors).total, plain(vectors, vectors))
