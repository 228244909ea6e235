"""The server of a secure sum, and a whole run in one process.

This server follows the protocol; `Member` is there for one that does not.

Letters: n clients, t threshold, D numbers of a vector; U1 the clients that sent keys, U2 shares, U3
a vector, U4 a signature, U5 the shares of others.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", figure 4 (the rounds are numbered as there).
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlab.core import require
from fedlab.privacy.secure.keys import Words, expand_seed
from fedlab.privacy.secure.member import SHARE, Advert, Member, mask_seed
from fedlab.privacy.secure.shamir import SecureSumError, joined_secret, weights_at_zero
from fedlab.privacy.secure.terms import Identity, Terms, least_threshold


class Server:
    """What the server gathers in each round, and tells the clients that are still there.

    Every round raises `SecureSumError` when fewer clients than the threshold are left.
    """

    def __init__(self, terms: Terms) -> None:
        """terms: those that the members hold."""
        self.terms = terms
        self._adverts: dict[int, Advert] = {}
        self._senders: list[int] = []
        self._inputs: dict[int, Words] = {}

    def keys(self, adverts: Mapping[int, Advert]) -> dict[int, Advert]:
        """Round 0: the keys of U1, for each of them."""
        self._enough(adverts, "sent keys")
        self._adverts = dict(adverts)
        return self._adverts

    def letters(self, sent: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """Round 1: for each of U2, the encrypted shares for it, by sender.

        sent: sender -> client that shall read them -> encrypted shares.
        """
        self._enough(sent, "sent shares")
        self._senders = list(sent)
        return {to: {of: texts[to] for of, texts in sent.items() if of != to} for to in sent}

    def inputs(self, sent: Mapping[int, Words]) -> list[int]:
        """Round 2: the list U3 of those whose masked vectors (D,) arrived."""
        self._enough(sent, "sent a vector")
        for number, vector in sent.items():
            if vector.shape != (self.terms.length,):
                raise SecureSumError(
                    f"client {number} sent {vector.shape} words; the terms say {self.terms.length}"
                )
        self._inputs = dict(sent)
        return sorted(sent)

    def signatures(self, sent: Mapping[int, bytes]) -> dict[int, bytes]:
        """Round 3: the signatures of U4, for each of them."""
        self._enough(sent, "signed the list")
        return dict(sent)

    def total(self, shares: Mapping[int, Mapping[int, int]]) -> Words:
        """Round 4: the sum (D,) of the vectors that arrived.

        shares: client of U5 -> {sender: its share}. Raises `SecureSumError` also where shares do
        not fit together. (A client that gives wrong ones can spoil a sum, as by a wrong vector.)
        """
        self._enough(shares, "gave shares")
        weights, inputs = weights_at_zero(list(shares)[: self.terms.threshold]), self._inputs
        total = np.zeros(self.terms.length, dtype=np.uint32)
        for vector in inputs.values():
            total += vector
        for sender in self._senders:
            if missing := [x for x in weights if sender not in shares[x]]:
                raise SecureSumError(f"client {missing[0]} gave no share of client {sender}")
            secret = joined_secret({x: shares[x][sender] for x in weights}, weights)
            if sender in inputs:
                total -= expand_seed(secret, self.terms.length)
            else:
                total += self._left_over(sender, secret)
        return total

    def _left_over(self, gone: int, secret: bytes) -> Words:
        """The masks (D,), to be added, that are missing for a client that has dropped out."""
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != self._adverts[gone].mask:
            raise SecureSumError(
                f"the shares of client {gone}'s key do not fit together: one of them was changed"
            )
        found = np.zeros(self.terms.length, dtype=np.uint32)
        for other in self._inputs:
            seed = mask_seed(key, self._adverts[other].mask, self.terms, (gone, other))
            mask = expand_seed(seed, self.terms.length)
            if other < gone:  # it has added this mask
                found -= mask
            else:
                found += mask
        return found

    def _enough(self, there: Collection[int], did: str) -> None:
        if len(there) < self.terms.threshold:
            raise SecureSumError(
                f"{len(there)} clients {did}, fewer than the threshold {self.terms.threshold}: "
                "nothing is opened"
            )


@dataclass(frozen=True)
class SecureSumResult:
    """The sum of a run and the bytes that all clients sent."""

    total: Words
    bytes_up: int


def secure_sum(
    vectors: Mapping[int, Words],
    threshold: int | None = None,
    *,
    dropped_before: Iterable[int] = (),
    dropped_after: Iterable[int] = (),
) -> SecureSumResult:
    """Run the whole protocol among clients 1, 2, ... and return the sum of the vectors that arrive.

    vectors: client -> words (D,). threshold: t, more than two thirds of the clients; by default the
    least such number. dropped_before: clients that drop out before they send their vector; they are
    not in the sum. dropped_after: clients that drop out after it; they are in the sum, but sign and
    answer nothing. The server asks as many of the others for shares as it needs. Raises
    `ParameterError` for other numbers of clients or thresholds, and `SecureSumError` when fewer
    than the threshold remain.

    >>> vectors = {k: np.full(3, k, dtype=np.uint32) for k in (1, 2, 3, 4)}
    >>> secure_sum(vectors, threshold=3, dropped_before=[4]).total.tolist()
    [6, 6, 6]
    """
    require(len(vectors) > 0, "vectors", dict(vectors), "give one for each client")
    identities = {number: Identity() for number in vectors}
    terms = Terms(
        os.urandom(16),
        least_threshold(len(vectors)) if threshold is None else threshold,
        len(next(iter(vectors.values()))),
        {number: identity.public for number, identity in identities.items()},
    )
    members = {number: Member(number, own, terms) for number, own in identities.items()}
    server, there = Server(terms), [n for n in members if n not in set(dropped_before)]
    adverts = server.keys({number: member.advertise_keys() for number, member in members.items()})
    texts = {number: member.share_keys(adverts) for number, member in members.items()}
    letters = server.letters(texts)
    sent = {n: members[n].masked_input(letters[n], vectors[n]) for n in there}
    arrived = server.inputs(sent)
    left = [n for n in arrived if n not in set(dropped_after)]
    signatures = server.signatures({n: members[n].consistency_check(arrived) for n in left})
    shares = {n: members[n].unmasking(signatures) for n in left[: terms.threshold]}
    up = sum(len(a.mask + a.encryption + a.signature) for a in adverts.values())
    up += sum(len(text) for written in texts.values() for text in written.values())
    up += sum(vector.nbytes for vector in sent.values())
    up += sum(len(signature) for signature in signatures.values())
    up += sum(SHARE * len(answer) for answer in shares.values())
    return SecureSumResult(server.total(shares), up)
