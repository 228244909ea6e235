"""What the members of a secure sum know before it begins, and from elsewhere than the server.

A server that could choose who takes part, how many must answer, or whose key is whose, would open
any vector it likes. Therefore these are the `Terms` of a run, which every member holds, and every
signature is over a digest of them: members that hold other terms do not understand each other.

    2 t > n + the server's own clients

Two lists with t signatures each have 2 t signatures; the server's own clients sign both, an honest
one signs once. So under this condition there is one list only, and one secret of each client. With
t above two thirds of n it holds for nearly a third of the clients.

Letters: n clients, t threshold, D numbers of a vector.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", figure 4, setup (a trusted third party hands out the signing keys), and section 6,
privacy against active adversaries (the condition).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlab.core import require
from fedlab.privacy.secure.shamir import SecureSumError


def least_threshold(clients: int) -> int:
    """The least t above two thirds of n.

    >>> [least_threshold(clients) for clients in (2, 3, 10, 50)]
    [2, 3, 7, 34]
    """
    return 2 * clients // 3 + 1


@dataclass(frozen=True)
class Terms:
    """What all members of a run know from elsewhere than the server.

    run: 16 bytes that no other run has. threshold: t, above two thirds of the clients. length: D.
    directory: number of each client, 1 to n, two or more -> its public identity key. Raises
    `ParameterError` for terms under which vectors could be opened.
    """

    run: bytes
    threshold: int
    length: int
    directory: Mapping[int, bytes]

    def __post_init__(self) -> None:
        """Check the ranges; keep a directory that nobody can change."""
        count, known = len(self.directory), self.directory.values()
        require(len(self.run) == 16, "run", self.run, "give 16 bytes that no other run has")
        require(
            count > 0 and sorted(self.directory) == list(range(1, count + 1)),
            "directory",
            sorted(self.directory)[:8],
            "number clients 1, 2, ...",
        )
        fix = "a sum over one client is that client's vector; let two or more take part"
        require(count > 1, "directory", count, fix)
        require(
            len(set(known)) == count and {len(key) for key in known} == {32},
            "directory",
            count,
            "each client has an identity key of its own, of 32 bytes",
        )
        require(
            least_threshold(count) <= self.threshold <= count,
            "threshold",
            self.threshold,
            f"choose more than two thirds of the {count} clients and no more than all, so that no "
            "two groups can open both secrets of one",
        )
        require(self.length > 0, "length", self.length, "choose 1 or more")
        object.__setattr__(self, "directory", MappingProxyType(dict(self.directory)))

    @property
    def colluding(self) -> int:
        """How many clients may be the server's without harm to the others: 2 t - n - 1."""
        return 2 * self.threshold - len(self.directory) - 1

    @cached_property
    def digest(self) -> bytes:
        """A mark of 32 bytes of everything in these terms."""
        sizes = b"".join(n.to_bytes(8, "big") for n in (self.threshold, self.length))
        keys = b"".join(self.directory[number] for number in sorted(self.directory))
        return hashlib.sha256(self.run + sizes + keys).digest()

    def label(self, purpose: str, *numbers: int) -> bytes:
        """What binds a key, a letter or a signature to these terms, to a purpose and to clients."""
        clients = b"".join(number.to_bytes(4, "big") for number in numbers)
        return purpose.encode().ljust(16, b"\0") + self.digest + clients

    def check(self, number: int, purpose: str, content: bytes, signature: bytes) -> None:
        """Raise `SecureSumError` unless this client signed this content for this purpose."""
        key = Ed25519PublicKey.from_public_bytes(self.directory[number])
        try:
            key.verify(signature, self.label(purpose, number) + content)
        except InvalidSignature:
            raise SecureSumError(
                f"the signature of client {number} does not fit its {purpose}: they were changed, "
                "or are another client's or another run's"
            ) from None


class Identity:
    """The signing key of a client, the same in all runs; its public half is in directories."""

    def __init__(self, key: bytes | None = None) -> None:
        """Draw a key, or take up one of 32 bytes that `private` gave."""
        new = Ed25519PrivateKey.generate
        self._key = new() if key is None else Ed25519PrivateKey.from_private_bytes(key)
        self._runs: set[bytes] = set()

    @property
    def public(self) -> bytes:
        """The public key, of 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """The key itself, of 32 bytes, to be kept where nobody else reads."""
        return self._key.private_bytes_raw()

    def enter(self, run: bytes) -> None:
        """Note a run; raises `SecureSumError` for one that the client has been in.

        Two members of one client in one run would sign two lists.
        """
        if run in self._runs:
            raise SecureSumError(
                "this client has been in this run before: a member is used once, and a run needs "
                "16 bytes of its own"
            )
        self._runs.add(run)

    def sign(self, terms: Terms, number: int, purpose: str, content: bytes) -> bytes:
        """The client's signature, of 64 bytes; see `Terms.check`."""
        return self._key.sign(terms.label(purpose, number) + content)
