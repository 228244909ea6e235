"""Secure aggregation.

A server learns the sum of its clients' vectors and no single one, even when some drop out.

    y_u = x_u + G(b_u) + sum_{v > u} G(s_uv) - sum_{v < u} G(s_uv)     mod 2^32

Each pair agrees on a seed s_uv, and what one adds the other subtracts. Whoever drops out after that
leaves masks behind: so each client has given shares of its key and of its own seed b_u to all
others, and t of them bring back one of the two, never both. Keys are fresh in each run.

The server is honest but curious: it keeps to the protocol. One that tells clients different things
about who dropped out is caught only if they sign what they saw (Bonawitz et al., the active
protocol), which is left out here.

Letters: n clients, t threshold, D numbers in a vector. Source: Bonawitz et al. 2017, "Practical
secure aggregation for privacy-preserving machine learning", figure 4.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedlab.core import require
from fedlab.privacy.shamir import SecureSumError, joined_secret, split_secret, weights_at_zero

Words = NDArray[np.uint32]


def expand_seed(seed: bytes, length: int) -> Words:
    """G: a seed of 32 bytes as `length` words that nobody can tell from chance.

    A ChaCha20 key stream.
    """
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(4 * length)), dtype="<u4")


def agreed_key(mine: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """32 bytes that only the two of a pair know."""
    shared = mine.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(shared)


@dataclass(frozen=True)
class Keys:
    """What a client tells everybody: public keys, for masks and for letters."""

    mask: bytes
    encryption: bytes


@dataclass
class Member:
    """A client in one run. number: from 1, its place in the shares. run.

    A name that no other run has.
    """

    number: int
    run: bytes
    _mask: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _encryption: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    _others: dict[int, Keys] = field(default_factory=dict, repr=False)
    _threshold: int = 0
    _arrived: set[int] = field(default_factory=set, repr=False)

    def keys(self) -> Keys:
        """Round 0: what it tells everybody."""
        return Keys(self._mask.public_key().public_bytes_raw(),
                    self._encryption.public_key().public_bytes_raw())

    def encrypted_shares(self, everyone: Mapping[int, Keys], threshold: int) -> dict[int, bytes]:
        """Round 1: to each other client, sealed, its shares of this one's mask key and own seed."""
        self._others = {number: keys for number, keys in everyone.items() if number != self.number}
        self._threshold = threshold
        count = max(everyone)
        both = [split_secret(secret, count, threshold)
                for secret in (self._mask.private_bytes_raw(), self._seed)]
        return {number: self._sealed(number, b"".join(points[number - 1].to_bytes(66, "big")
                                                      for points in both))
                for number in everyone}

    def _sealed(self, to: int, text: bytes) -> bytes:
        nonce, label = os.urandom(12), self._label(self.number, to)
        return nonce + ChaCha20Poly1305(self._pair(to)).encrypt(nonce, text, label)

    def _label(self, sender: int, to: int) -> bytes:
        return self.run + sender.to_bytes(4, "big") + to.to_bytes(4, "big")

    def _pair(self, other: int) -> bytes:
        known = self._others[other].encryption if other != self.number else self.keys().encryption
        return agreed_key(self._encryption, known, b"letter" + self.run)

    def masked(self, vector: Words, senders: Iterable[int]) -> Words:
        """Round 2: the vector under its own mask and one with each client whose letters arrived."""
        found = vector + expand_seed(self._seed, len(vector))
        for other in senders:
            if other != self.number:
                key = agreed_key(self._mask, self._others[other].mask, b"mask" + self.run)
                mask = expand_seed(key, len(vector))
                found = found + mask if self.number < other else found - mask
        return found

    def revealed_shares(self, inbox: Mapping[int, bytes],
                        there: Iterable[int]) -> dict[int, int]:
        """Round 3: of each sender one share.

        Of its seed where its vector arrived, else of its mask key; never both.
        """
        there, found = set(there), {}
        if len(there) < self._threshold:
            raise SecureSumError(
                f"{len(there)} vectors arrived, fewer than the threshold {self._threshold}: a sum "
                "of so few says too much of each")
        if self._arrived and self._arrived != there:
            raise SecureSumError("asked for shares twice with different clients there: that would "
                                 "open single vectors")
        self._arrived = there
        for sender, sealed in inbox.items():
            cipher, label = ChaCha20Poly1305(self._pair(sender)), self._label(sender, self.number)
            try:
                text = cipher.decrypt(sealed[:12], sealed[12:], label)
            except InvalidTag:
                raise SecureSumError(
                    f"client {self.number}: the shares from client {sender} were changed, or "
                    "belong to another run or pair") from None
            found[sender] = int.from_bytes(text[66:] if sender in there else text[:66], "big")
        return found


def unmasked(vectors: Mapping[int, Words], everyone: Mapping[int, Keys], senders: Iterable[int],
             shares: Mapping[int, Mapping[int, int]], threshold: int, run: bytes) -> Words:
    """The server's part: the sum of the vectors that arrived.

    Raises `SecureSumError` below the threshold.

    vectors: client -> masked (D,). everyone: client -> its keys. senders: whose letters arrived.
    shares: client that answered -> {sender: one share}.
    """
    if len(vectors) < threshold or len(shares) < threshold:
        raise SecureSumError(
            f"{len(vectors)} vectors and {len(shares)} answers arrived; at least {threshold} of "
            "each are needed, so nothing is opened")
    weights = weights_at_zero(list(shares)[:threshold])
    length = len(next(iter(vectors.values())))
    total = np.zeros(length, dtype=np.uint32)
    for vector in vectors.values():
        require(len(vector) == length, "vectors", len(vector), f"the others have {length} numbers")
        total += vector
    for sender in senders:
        secret = joined_secret({x: shares[x][sender] for x in weights}, weights)
        if sender in vectors:
            total -= expand_seed(secret, length)
            continue
        # this client dropped out: remove the masks that the others added for it
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != everyone[sender].mask:
            raise SecureSumError(
                f"the shares of client {sender}'s key do not fit together: one of them was changed")
        for other in vectors:
            mask = expand_seed(agreed_key(key, everyone[other].mask, b"mask" + run), length)
            total = total - mask if other < sender else total + mask
    return total


@dataclass(frozen=True)
class FixedPoint:
    """Numbers from -bound to bound as words mod 2^32.

    So that the sum of `clients` of them does not overflow.

    One unit is bound clients / 2^31: a sum is off by half of it for each client at most.
    """

    bound: float
    clients: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(0 < self.bound < float("inf"), "bound", self.bound, "choose a positive number")
        require(1 <= self.clients < 2**20, "clients", self.clients, "choose from 1 to a million")

    @property
    def unit(self) -> float:
        """The value of one step."""
        return self.bound * self.clients / (2**31 - self.clients)

    def encode(self, values: NDArray[np.float64]) -> Words:
        """Words of values.

        Raises `ParameterError` for one beyond the bound, which could wrap around in the sum.
        """
        worst = float(np.abs(values).max(initial=0.0))
        require(worst <= self.bound, "values", worst,
                f"beyond the bound {self.bound:g} sums overflow; clip first")
        return np.rint(values / self.unit).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> NDArray[np.float64]:
        """The sum that words stand for."""
        return total.astype(np.int32).astype(np.float64) * self.unit


@dataclass(frozen=True)
class SecureSumResult:
    """What a run took: bytes that all clients sent, and the sum."""

    total: Words
    bytes_up: int


def secure_sum(vectors: Mapping[int, Words], threshold: int, *, dropped_before: Iterable[int] = (),
               dropped_after: Iterable[int] = ()) -> SecureSumResult:
    """One whole run among clients 1, 2, ...: the sum of the vectors that arrive.

    dropped_before: who drops out after sending letters, before the vector: not in the sum. dropped_after: who drops
    out after the vector: in the sum, but does not answer. Raises `SecureSumError` where fewer than
    the threshold remain.
    """
    count = len(vectors)
    require(sorted(vectors) == list(range(1, count + 1)), "vectors", sorted(vectors)[:8],
            "number clients 1, 2, ...")
    require(count // 2 < threshold <= count, "threshold", threshold,
            f"choose more than half of the {count} clients, so that no two halves can open both "
            "secrets of one")
    run = os.urandom(16)
    members = {number: Member(number, run) for number in vectors}
    everyone = {number: member.keys() for number, member in members.items()}
    outbox = {number: member.encrypted_shares(everyone, threshold)
              for number, member in members.items()}
    there = [number for number in members if number not in set(dropped_before)]
    sent = {number: members[number].masked(vectors[number], members) for number in there}
    inbox = {to: {sender: sealed[to] for sender, sealed in outbox.items()} for to in members}
    shares = {number: members[number].revealed_shares(inbox[number], there)
              for number in there if number not in set(dropped_after)}
    total = unmasked(sent, everyone, members, shares, threshold, run)
    up = 64 * count + sum(len(text) for sealed in outbox.values() for text in sealed.values())
    up += sum(4 * len(vector) for vector in sent.values())
    up += sum(66 * len(answer) for answer in shares.values())
    return SecureSumResult(total, up)
