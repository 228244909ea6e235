"""Secret sharing: any t shares bring a secret back, and fewer say nothing about it.

Letters: t threshold, x the point of a share.

Source: Shamir 1979, "How to share a secret", section 2.
"""

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**521 - 1  # of the field; the secrets are keys and seeds of 256 bits


class SecureSumError(RuntimeError):
    """The sum cannot be computed, or somebody tampered with it; nothing is opened."""


def split_secret(secret: bytes, count: int, threshold: int) -> list[int]:
    """Shares of a secret: points x = 1 .. count of a random polynomial that is the secret at 0.

    secret: 32 bytes. threshold: t; the polynomial has degree t - 1.

    >>> shares = split_secret(bytes(32), count=3, threshold=2)
    >>> chosen = {1: shares[0], 3: shares[2]}
    >>> joined_secret(chosen, weights_at_zero(chosen)) == bytes(32)
    True
    """
    terms = [
        int.from_bytes(secret, "big"),
        *(secrets.randbelow(PRIME) for _ in range(threshold - 1)),
    ]
    points = []
    for x in range(1, count + 1):
        value = 0
        for term in reversed(terms):
            value = (value * x + term) % PRIME
        points.append(value)
    return points


def weights_at_zero(xs: Iterable[int]) -> dict[int, int]:
    """Lagrange weights mod PRIME: with them, points at `xs` add up to the polynomial at 0.

    >>> weights_at_zero([1, 2]) == {1: 2, 2: PRIME - 1}  # f(0) = 2 f(1) - f(2)
    True
    """
    xs, weights = tuple(xs), {}
    for x in xs:
        numerator, denominator = 1, 1
        for other in xs:
            if other != x:
                numerator = numerator * -other % PRIME
                denominator = denominator * (x - other) % PRIME
        weights[x] = numerator * pow(denominator, -1, PRIME) % PRIME
    return weights


def joined_secret(shares: Mapping[int, int], weights: Mapping[int, int]) -> bytes:
    """The 32 bytes that were split, from t or more shares.

    shares: x -> point. weights: `weights_at_zero` of these x. Raises `SecureSumError` when the
    shares do not belong together.
    """
    value = sum(weights[x] * point for x, point in shares.items()) % PRIME
    if value >= 2**256:
        raise SecureSumError("the shares of a secret do not fit together: one of them was changed")
    return value.to_bytes(32, "big")
