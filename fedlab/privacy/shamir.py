"""A secret in shares: any t of them bring it back, fewer say nothing at all.

Source: Shamir 1979, "How to share a secret".
"""

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**521 - 1  # of the field; the secrets are keys and seeds of 256 bits


class SecureSumError(RuntimeError):
    """The sum cannot be had, or somebody tampered: nothing is opened."""


def split_secret(secret: bytes, count: int, threshold: int) -> list[int]:
    """Shamir.

    Points 1 to `count` of a random polynomial of degree t - 1 that is the secret at 0.
    """
    terms = [int.from_bytes(secret, "big"),
             *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    points = []
    for x in range(1, count + 1):
        value = 0
        for term in reversed(terms):
            value = (value * x + term) % PRIME
        points.append(value)
    return points


def weights_at_zero(xs: Iterable[int]) -> dict[int, int]:
    """Lagrange: with which weights points at `xs` add up to the polynomial's value at 0."""
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
    """The 32 bytes that were split, from t shares or more: x -> point."""
    value = sum(weights[x] * point for x, point in shares.items()) % PRIME
    if value >= 2**256:
        raise SecureSumError("the shares of a secret do not fit together: one of them was changed")
    return value.to_bytes(32, "big")
