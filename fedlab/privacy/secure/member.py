"""A client in a secure sum: what it sends in each round, and what it refuses to answer.

    y_u = x_u + G(b_u) + sum_{v > u} G(s_uv) - sum_{v < u} G(s_uv)     mod 2^32

Every pair of clients agrees on a seed s_uv; one adds the mask G(s_uv), the other subtracts it. A
client that drops out afterwards leaves such masks in the sum. Therefore each client has split its
mask key and its own seed b_u into shares for all others: t of them bring back one of the two, never
both. Keys are fresh in every run.

A server that lies would give clients keys of its own, or tell one half of them that u has dropped
out and the other half that it has not, and so get both secrets of u. Therefore clients sign their
keys, and in round 3 the list of those whose vectors arrived; nobody gives away a share before t
clients have signed the same list.

Letters: n clients, t threshold, D numbers of a vector x_u, y_u the masked vector, G the expansion
of a seed; U1 the clients that sent keys, U2 shares, U3 a vector, U4 a signature.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", figure 4, with all that is underlined there for active adversaries (the rounds are
numbered as there).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedlab.core import require
from fedlab.privacy.secure.keys import Words, agreed_key, expand_seed, point
from fedlab.privacy.secure.shamir import SecureSumError, split_secret
from fedlab.privacy.secure.terms import Identity, Terms

ROUNDS = ("advertise_keys", "share_keys", "masked_input", "consistency_check", "unmasking")
SHARE = 66  # bytes
NONCE = 12


@dataclass(frozen=True)
class Advert:
    """The public keys of a client, one for masks, one for encrypting shares, and its signature."""

    mask: bytes
    encryption: bytes
    signature: bytes


def arrivals(numbers: Iterable[int]) -> bytes:
    """The list of those whose vectors arrived, as it is signed.

    >>> arrivals([2, 1]) == bytes([0, 0, 0, 1, 0, 0, 0, 2])
    True
    """
    return b"".join(number.to_bytes(4, "big") for number in sorted(numbers))


def mask_seed(mine: X25519PrivateKey, other: bytes, terms: Terms, pair: Iterable[int]) -> bytes:
    """s_uv: the seed of the masks of a pair of clients."""
    return agreed_key(mine, other, terms.label("mask", *sorted(pair)))


class Member:
    """A client in one run of the protocol: each round once, in order, and none behind a failure.

    Whatever the server sends is checked as figure 4 has it; what fails raises `SecureSumError`,
    and the member answers nothing more.

    | the server, with up to 2 t - n - 1 clients of its own | |
    | --- | --- |
    | hands out keys of its own, swaps, repeats or replays keys | refused: keys are signed |
    | repeats a client's key, or has one of low order | refused |
    | chooses the threshold, makes up clients | has no say in it: `Terms` |
    | forwards the shares of too few, or says that too few arrived | refused: t at least |
    | tells clients different lists of who arrived | opens nothing: t must sign one list |
    | asks for another vector, or for shares twice | refused: each round happens once |
    | replays messages of another run, pair or round | refused: all are bound to these |
    | adds up as few as it can | t vectors at least, less those of its own clients |

    | what it does not stand | |
    | --- | --- |
    | more clients of the server's than that | they open whom they like |
    | a directory that lies, a run's 16 bytes used twice | come from elsewhere: trust them |
    | a client that adds nonsense to the sum, or too much | nobody sees it; see `fedlab.attacks` |
    | what the sum itself tells, of few clients or over rounds | see `DistributedGaussian` |
    | a server or client that stops the run | it opens nothing, but there is no sum |
    | who takes part, when, and how long vectors are | is seen |
    """

    def __init__(self, number: int, identity: Identity, terms: Terms) -> None:
        """Draw keys. number: the client's in the directory.

        Raises `SecureSumError` when the directory has another identity under this number, and when
        the client has been in this run before.
        """
        self.number, self.terms = number, terms
        if terms.directory.get(number) != identity.public:
            raise self._refusal("the directory has another identity under this number")
        identity.enter(terms.run)
        self._identity = identity
        self._mask_key, self._letter_key = (X25519PrivateKey.generate() for _ in range(2))
        self._seed = os.urandom(32)
        self._due: int | None = 0
        self._adverts: dict[int, Advert] = {}
        self._letters: dict[int, bytes] = {}
        self._own_share = 0
        self._arrived: frozenset[int] = frozenset()

    def advertise_keys(self) -> Advert:
        """Round 0: the signed public keys that the client tells everybody."""
        with self._round(0):
            mask, letter = (
                key.public_key().public_bytes_raw() for key in (self._mask_key, self._letter_key)
            )
            signature = self._identity.sign(self.terms, self.number, "keys", mask + letter)
            self._adverts[self.number] = Advert(mask, letter, signature)
            return self._adverts[self.number]

    def share_keys(self, adverts: Mapping[int, Advert]) -> dict[int, bytes]:
        """Round 1: for each other client, encrypted shares of this client's mask key and own seed.

        adverts: the signed keys of U1.
        """
        with self._round(1):
            self._check_adverts(adverts)
            self._adverts = dict(adverts)
            shares = [
                split_secret(secret, len(self.terms.directory), self.terms.threshold)
                for secret in (self._mask_key.private_bytes_raw(), self._seed)
            ]
            self._own_share = shares[1][self.number - 1]
            return {
                to: self._sealed(
                    to, b"".join(points[to - 1].to_bytes(SHARE, "big") for points in shares)
                )
                for to in adverts
                if to != self.number
            }

    def masked_input(self, letters: Mapping[int, bytes], vector: Words) -> Words:
        """Round 2: the vector (D,) under the client's own mask and a mask for each of U2.

        letters: the encrypted shares, by sender; U2 are their senders and this client.
        """
        fits = isinstance(vector, np.ndarray) and vector.dtype == np.uint32
        require(
            fits and vector.shape == (self.terms.length,),
            "vector",
            f"{type(vector).__name__} {getattr(vector, 'dtype', '')} {np.shape(vector)}",
            f"the terms say {self.terms.length} words of 32 bits",
        )
        with self._round(2):
            self._check_group({*letters, self.number}, self._adverts.keys(), "sent shares")
            if self.number in letters:
                raise self._refusal("it is handed shares of its own")
            self._letters, found = dict(letters), vector + expand_seed(self._seed, len(vector))
            for other in letters:
                pair = (self.number, other)
                seed = mask_seed(self._mask_key, self._adverts[other].mask, self.terms, pair)
                mask = expand_seed(seed, len(vector))
                found = found + mask if self.number < other else found - mask
            return found

    def consistency_check(self, arrived: Iterable[int]) -> bytes:
        """Round 3: the signature of the list U3 of those whose vectors arrived."""
        with self._round(3):
            there = frozenset(arrived)
            self._check_group(there, {*self._letters, self.number}, "sent a vector")
            if self.number not in there:
                raise self._refusal("it is told that its own vector did not arrive")
            self._arrived = there
            return self._identity.sign(self.terms, self.number, "arrivals", arrivals(there))

    def unmasking(self, signatures: Mapping[int, bytes]) -> dict[int, int]:
        """Round 4: one share for each of U2.

        It is a share of the sender's own seed when the sender's vector arrived, else of its mask
        key; never of both. signatures: those of U4 for the same list that this client signed.
        """
        with self._round(4):
            self._check_group(signatures.keys(), self._arrived, "signed the list")
            for number, signature in signatures.items():
                self.terms.check(number, "arrivals", arrivals(self._arrived), signature)
            found = {self.number: self._own_share}
            for sender, sealed in self._letters.items():
                text = self._unsealed(sender, sealed)
                mine = text[SHARE:] if sender in self._arrived else text[:SHARE]
                found[sender] = int.from_bytes(mine, "big")
            return found

    @contextmanager
    def _round(self, number: int) -> Iterator[None]:
        """A round, which must be the next one; one that fails is the member's last."""
        due, self._due = self._due, None
        if due is None:
            raise self._refusal("it has stopped, after something that it refused")
        if due != number:
            then = f"{ROUNDS[due]} is next" if due < len(ROUNDS) else "the run is over"
            raise self._refusal(f"asked for {ROUNDS[number]}, but {then}: each happens once")
        try:
            yield
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise self._refusal(
                f"what it was sent has not the form of a message ({error})"
            ) from error
        self._due = number + 1

    def _refusal(self, reason: str) -> SecureSumError:
        return SecureSumError(f"client {self.number}: {reason}")

    def _check_group(self, group: Iterable[int], known: Iterable[int], did: str) -> None:
        """Refuse a group that has clients not in `known`, or fewer than the threshold."""
        group = set(group)
        if ghosts := group - set(known):
            raise self._refusal(f"{sorted(ghosts, key=repr)[:4]} cannot have {did}")
        if len(group) < self.terms.threshold:
            raise self._refusal(
                f"{len(group)} clients {did}, fewer than the threshold {self.terms.threshold}: a "
                "sum of so few says too much of each"
            )

    def _check_adverts(self, adverts: Mapping[int, Advert]) -> None:
        """Refuse keys of too few, or not signed by their clients, or twice the same, or weak."""
        self._check_group(adverts.keys(), self.terms.directory, "sent keys")
        if adverts.get(self.number) != self._adverts[self.number]:
            raise self._refusal("its own keys are not among those that it is told, or were changed")
        seen: dict[int, int] = {}
        for number, advert in adverts.items():
            self.terms.check(number, "keys", advert.mask + advert.encryption, advert.signature)
            for key in (advert.mask, advert.encryption):
                if point(key) in seen:
                    raise self._refusal(f"clients {seen[point(key)]} and {number} have equal keys")
                seen[point(key)] = number
                try:
                    agreed_key(self._letter_key, key, b"")
                except SecureSumError as reason:
                    raise self._refusal(f"of client {number}, {reason}") from None

    def _letter_cipher(self, other: int) -> ChaCha20Poly1305:
        purpose = self.terms.label("letter", *sorted((self.number, other)))
        return ChaCha20Poly1305(
            agreed_key(self._letter_key, self._adverts[other].encryption, purpose)
        )

    def _sealed(self, to: int, text: bytes) -> bytes:
        nonce, label = os.urandom(NONCE), self.terms.label("share", self.number, to)
        return nonce + self._letter_cipher(to).encrypt(nonce, text, label)

    def _unsealed(self, sender: int, sealed: bytes) -> bytes:
        nonce, label = sealed[:NONCE].ljust(NONCE), self.terms.label("share", sender, self.number)
        try:
            text = self._letter_cipher(sender).decrypt(nonce, sealed[NONCE:], label)
        except InvalidTag:
            text = b""
        if len(text) != 2 * SHARE:
            raise self._refusal(
                f"the shares from client {sender} were changed, or belong to another run or pair"
            )
        return text
