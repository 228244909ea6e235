"""Secure aggregation: a server learns the sum of its clients' vectors, and no single vector.

    y_u = x_u + G(b_u) + sum_{v > u} G(s_uv) - sum_{v < u} G(s_uv)     mod 2^32

Every pair of clients agrees on a seed s_uv; one adds the mask G(s_uv), the other subtracts it. A
client that drops out afterwards leaves such masks in the sum. Therefore each client has split its
mask key and its own seed b_u into shares for all others: t of them bring back one of the two, never
both. Keys are fresh in every run.

The server is honest but curious: it follows the protocol. A server that tells clients different
things about who dropped out would be caught only if clients signed what they saw (the active
protocol of Bonawitz et al.), which is left out here.

Letters: n clients, t threshold, D numbers of a vector x_u, y_u the masked vector, G the expansion
of a seed.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", figure 4 (the rounds are numbered as there).
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
    """G: expand a seed of 32 bytes into `length` pseudorandom words, as a ChaCha20 key stream.

    >>> words = expand_seed(bytes(32), 5)
    >>> words.dtype, bool((words == expand_seed(bytes(32), 5)).all())
    (dtype('uint32'), True)
    """
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(4 * length)), dtype="<u4")


def agreed_key(mine: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """The key of 32 bytes that a pair of clients shares for a purpose: Diffie-Hellman, HKDF."""
    shared = mine.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(shared)


@dataclass(frozen=True)
class Keys:
    """The public keys of a client: one for masks, one for encrypting shares."""

    mask: bytes
    encryption: bytes


@dataclass
class Member:
    """A client in one run of the protocol.

    number: from 1; it is also the point of the client's shares. run: bytes that no other run has.
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
        """Round 0: the public keys that the client tells everybody."""
        return Keys(
            self._mask.public_key().public_bytes_raw(),
            self._encryption.public_key().public_bytes_raw(),
        )

    def encrypted_shares(self, everyone: Mapping[int, Keys], threshold: int) -> dict[int, bytes]:
        """Round 1: for each client, the encrypted shares of this client's mask key and own seed.

        everyone: the public keys of all clients. threshold: t.
        """
        self._others = {number: keys for number, keys in everyone.items() if number != self.number}
        self._threshold = threshold
        both = [
            split_secret(secret, max(everyone), threshold)
            for secret in (self._mask.private_bytes_raw(), self._seed)
        ]
        return {
            number: self._sealed(
                number, b"".join(points[number - 1].to_bytes(66, "big") for points in both)
            )
            for number in everyone
        }

    def _sealed(self, to: int, text: bytes) -> bytes:
        nonce, label = os.urandom(12), self._label(self.number, to)
        return nonce + ChaCha20Poly1305(self._pair(to)).encrypt(nonce, text, label)

    def _label(self, sender: int, to: int) -> bytes:
        return self.run + sender.to_bytes(4, "big") + to.to_bytes(4, "big")

    def _pair(self, other: int) -> bytes:
        known = self._others[other].encryption if other != self.number else self.keys().encryption
        return agreed_key(self._encryption, known, b"letter" + self.run)

    def masked(self, vector: Words, senders: Iterable[int]) -> Words:
        """Round 2: the vector (D,) under the client's own mask and a mask for each sender.

        senders: the clients whose shares arrived.
        """
        found = vector + expand_seed(self._seed, len(vector))
        for other in senders:
            if other != self.number:
                key = agreed_key(self._mask, self._others[other].mask, b"mask" + self.run)
                mask = expand_seed(key, len(vector))
                found = found + mask if self.number < other else found - mask
        return found

    def revealed_shares(self, inbox: Mapping[int, bytes], there: Iterable[int]) -> dict[int, int]:
        """Round 3: one share for each sender.

        It is a share of the sender's own seed when the sender's vector arrived, else of its mask
        key; never of both. inbox: the encrypted shares, by sender. there: the clients whose vectors
        arrived. Raises `SecureSumError` when fewer than the threshold arrived, when asked again
        with another list, and when a ciphertext was changed.
        """
        there, found = set(there), {}
        if len(there) < self._threshold:
            raise SecureSumError(
                f"{len(there)} vectors arrived, fewer than the threshold {self._threshold}: a sum "
                "of so few says too much of each"
            )
        if self._arrived and self._arrived != there:
            raise SecureSumError(
                "asked for shares twice with different clients there: that would open single "
                "vectors"
            )
        self._arrived = there
        for sender, sealed in inbox.items():
            cipher, label = ChaCha20Poly1305(self._pair(sender)), self._label(sender, self.number)
            try:
                text = cipher.decrypt(sealed[:12], sealed[12:], label)
            except InvalidTag:
                raise SecureSumError(
                    f"client {self.number}: the shares from client {sender} were changed, or "
                    "belong to another run or pair"
                ) from None
            found[sender] = int.from_bytes(text[66:] if sender in there else text[:66], "big")
        return found


def unmasked(
    vectors: Mapping[int, Words],
    everyone: Mapping[int, Keys],
    senders: Iterable[int],
    shares: Mapping[int, Mapping[int, int]],
    threshold: int,
    run: bytes,
) -> Words:
    """The server's part: the sum (D,) of the vectors that arrived.

    vectors: client -> masked vector (D,). everyone: client -> its public keys. senders: the clients
    whose shares were delivered. shares: client that answered -> {sender: its share}. Raises
    `SecureSumError` when fewer than the threshold arrived or answered, or when a share was changed.
    """
    if len(vectors) < threshold or len(shares) < threshold:
        raise SecureSumError(
            f"{len(vectors)} vectors and {len(shares)} answers arrived; at least {threshold} of "
            "each are needed, so nothing is opened"
        )
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
                f"the shares of client {sender}'s key do not fit together: one of them was changed"
            )
        for other in vectors:
            mask = expand_seed(agreed_key(key, everyone[other].mask, b"mask" + run), length)
            total = total - mask if other < sender else total + mask
    return total


@dataclass(frozen=True)
class FixedPoint:
    """Numbers from -bound to bound as words mod 2^32, such that a sum of `clients` cannot overflow.

    One unit is about bound * clients / 2^31; a sum is off by at most half a unit for each client.
    Raises `ParameterError` for a bound that is not positive and for less than one client.

    >>> fixed = FixedPoint(bound=1.0, clients=2)
    >>> total = fixed.encode(np.array([0.5])) + fixed.encode(np.array([-0.25]))
    >>> round(float(fixed.decode(total)[0]), 6)
    0.25
    """

    bound: float
    clients: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.bound < float("inf"), "bound", self.bound, "choose a positive number")
        require(1 <= self.clients < 2**20, "clients", self.clients, "choose from 1 to a million")

    @property
    def unit(self) -> float:
        """The value of one unit."""
        return self.bound * self.clients / (2**31 - self.clients)

    def encode(self, values: NDArray[np.float64]) -> Words:
        """Words of values; `ParameterError` for one beyond the bound, which could wrap around."""
        worst = float(np.abs(values).max(initial=0.0))
        require(
            worst <= self.bound,
            "values",
            worst,
            f"beyond the bound {self.bound:g} sums overflow; clip first",
        )
        return np.rint(values / self.unit).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> NDArray[np.float64]:
        """The sum that words (D,) stand for."""
        return total.astype(np.int32).astype(np.float64) * self.unit


@dataclass(frozen=True)
class SecureSumResult:
    """The sum of a run and the bytes that all clients sent."""

    total: Words
    bytes_up: int


def secure_sum(
    vectors: Mapping[int, Words],
    threshold: int,
    *,
    dropped_before: Iterable[int] = (),
    dropped_after: Iterable[int] = (),
) -> SecureSumResult:
    """Run the whole protocol among clients 1, 2, ... and return the sum of the vectors that arrive.

    vectors: client -> words (D,). threshold: t, more than half of the clients. dropped_before:
    clients that drop out before they send their vector; they are not in the sum. dropped_after:
    clients that drop out after it; they are in the sum, but do not answer. Raises `ParameterError`
    for other numbers of clients or thresholds, and `SecureSumError` when fewer than the threshold
    remain.

    >>> vectors = {k: np.full(3, k, dtype=np.uint32) for k in (1, 2, 3)}
    >>> secure_sum(vectors, threshold=2, dropped_before=[3]).total.tolist()
    [3, 3, 3]
    """
    count = len(vectors)
    require(
        sorted(vectors) == list(range(1, count + 1)),
        "vectors",
        sorted(vectors)[:8],
        "number clients 1, 2, ...",
    )
    require(
        count // 2 < threshold <= count,
        "threshold",
        threshold,
        f"choose more than half of the {count} clients, so that no two halves can open both "
        "secrets of one",
    )
    run = os.urandom(16)
    members = {number: Member(number, run) for number in vectors}
    everyone = {number: member.keys() for number, member in members.items()}
    outbox = {
        number: member.encrypted_shares(everyone, threshold) for number, member in members.items()
    }
    there = [number for number in members if number not in set(dropped_before)]
    sent = {number: members[number].masked(vectors[number], members) for number in there}
    inbox = {to: {sender: sealed[to] for sender, sealed in outbox.items()} for to in members}
    shares = {
        number: members[number].revealed_shares(inbox[number], there)
        for number in there
        if number not in set(dropped_after)
    }
    total = unmasked(sent, everyone, members, shares, threshold, run)
    up = 64 * count + sum(len(text) for sealed in outbox.values() for text in sealed.values())
    up += sum(4 * len(vector) for vector in sent.values())
    up += sum(66 * len(answer) for answer in shares.values())
    return SecureSumResult(total, up)
