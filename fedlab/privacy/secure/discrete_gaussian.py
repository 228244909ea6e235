"""Noise in shares: each client adds a little, and their sum is private although nobody adds it all.

    z_k = round(x_k / gamma) + N_Z(0, sigma^2 / gamma^2)   mod 2^32,    what client k sends, masked
    the server sees                 gamma sum_k z_k                     and nothing before the noise

N_Z is the discrete Gaussian: whole numbers x with chances in proportion to exp(-x^2 / 2 sigma^2).
On whole numbers sums are exact, so no last digit gives a value away, as it does with floating point
noise. A sum of discrete Gaussians is nearly, but not quite, one of the summed variance; tau bounds
what is missing.

Two parts of algorithm 1 are set otherwise. The modulus is 2^32 and gamma as fine as it allows, so
no sum can wrap around, whatever the vectors; the random rotation, which spreads a vector over its
numbers so that a small modulus suffices, is left out. And the noise counted on is that of the
honest ones among the least number of clients for which a secure sum opens: more of them only hide
more.

Letters: n clients, t of them whose noise is counted on, d numbers of a vector x, c its longest
length (L2), gamma the unit, sigma the deviation of one client's noise, beta the chance that
rounding is repeated.

Sources: Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated
learning with secure aggregation", algorithms 1 and 2, theorem 1, proposition 14; Canonne, Kamath,
Steinke 2020, "The discrete Gaussian for differential privacy", algorithms 1 to 3 (exact sampling).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedlab.core import require
from fedlab.privacy.noise_source import BITS, NoiseSource
from fedlab.privacy.secure.keys import Words

BETA = math.exp(-0.5)  # as in the paper's experiments
SPARE = 12  # deviations of the summed noise that fit in beside the vectors
WIDEST = 2**28  # a deviation in units: the products of `discrete_gaussian` stay below 2^63

Whole = NDArray[np.int64]


def heads(
    exponents: NDArray[np.float64], exact: Callable[[int], Fraction], source: NoiseSource
) -> NDArray[np.bool_]:
    """For each exponent x >= 0, True with a chance of exp(-x), without any rounding.

    A uniform number U of 53 bits is compared with exp(-x) in floating point. Where both are so
    close that rounding could decide, once in 10^13 times, the exact exponent does. exact: place ->
    the exponent as a fraction. Source: Canonne et al., algorithm 1, by another way.
    """
    drawn = source.whole(len(exponents)).numpy()
    chance = np.exp(-exponents) * 2.0**BITS
    found: NDArray[np.bool_] = drawn < chance
    doubt = (exponents + 1) * chance * 2.0**-48 + 1  # floats are off by less than a tenth of it
    for place in np.flatnonzero(np.abs(drawn - chance) <= doubt).tolist():
        found[place] = settled(int(drawn[place]), exact(place), source)
    return found


def settled(drawn: int, exponent: Fraction, source: NoiseSource) -> bool:
    """Whether U < exp(-x), for a U whose first 53 bits are `drawn`: more bits, until it is clear.

    >>> settled(0, Fraction(1), NoiseSource()), settled(2**53 - 1, Fraction(1), NoiseSource())
    (True, False)
    """
    bits = BITS
    while True:
        with localcontext(Context(prec=bits // 3 + 30)) as digits:
            x = Decimal(exponent.numerator) / Decimal(exponent.denominator)
            chance = (-x).exp() * 2**bits
            error = (x + 2) * chance * Decimal(10) ** (2 - digits.prec)
            if drawn + 1 <= chance - error:
                return True
            if drawn >= chance + error:
                return False
        drawn, bits = drawn << BITS | int(source.whole(1)), bits + BITS


def discrete_laplace(count: int, scale: int, source: NoiseSource) -> Whole:
    """Whole numbers (count,) with chances in proportion to exp(-|x| / scale).

    About `count` of them, never fewer. Source: Canonne et al., algorithm 2.
    """
    found: list[Whole] = []
    missing = count
    while missing > 0:
        drawn = below(scale, missing * 2 + 8, source)
        low = drawn[heads(drawn / scale, partial(_share, drawn, scale), source)]
        high, going = np.zeros_like(low), np.arange(len(low))
        while len(going):
            going = going[heads(np.ones(len(going)), lambda place: Fraction(1), source)]
            high[going] += 1
        size = low + scale * high
        negative = source.whole(len(size)).numpy() % 2 == 1
        found.append(np.where(negative, -size, size)[~(negative & (size == 0))])
        missing -= len(found[-1])
    return np.concatenate([np.zeros(0, np.int64), *found])


def _share(drawn: Whole, scale: int, place: int) -> Fraction:
    return Fraction(int(drawn[place]), scale)


def below(limit: int, count: int, source: NoiseSource) -> Whole:
    """Whole numbers (count,) from 0 to limit - 1, each as likely as another."""
    drawn: Whole = source.whole(count).numpy()
    while len(bad := np.flatnonzero(drawn >= 2**BITS - 2**BITS % limit)):
        drawn[bad] = source.whole(len(bad)).numpy()
    return drawn % limit


def discrete_gaussian(count: int, deviation: int, source: NoiseSource) -> Whole:
    """Whole numbers (count,) with chances in proportion to exp(-x^2 / (2 deviation^2)), exactly.

    deviation: a whole number, from 1 to 2^28. Source: Canonne et al., algorithm 3.

    >>> drawn = discrete_gaussian(10_000, 5, NoiseSource.of(0, "example", 0))
    >>> drawn.dtype, bool(abs(drawn.std() - 5) < 0.2)
    (dtype('int64'), True)
    """
    require(1 <= deviation <= WIDEST, "deviation", deviation, "choose from 1 to 2^28")
    scale, variance, found, missing = deviation + 1, deviation**2, [], count
    while missing > 0:
        drawn = discrete_laplace(missing * 3 // 2 + 8, scale, source)
        top = np.abs(np.abs(drawn) * scale - variance)  # times 1 / (deviation scale), squared, / 2
        exponents = (top / (deviation * scale)) ** 2 / 2
        found.append(drawn[heads(exponents, partial(_square, top, deviation), source)][:missing])
        missing -= len(found[-1])
    return np.concatenate([np.zeros(0, np.int64), *found])


def _square(top: Whole, deviation: int, place: int) -> Fraction:
    return Fraction(int(top[place]) ** 2, 2 * deviation**2 * (deviation + 1) ** 2)


def tau(deviation: int, shares: int) -> float:
    """By how much a sum of t discrete Gaussians is not one; theorem 1."""
    each = 2 * math.pi**2 * deviation**2
    return 10 * sum(math.exp(-each * k / (k + 1)) for k in range(1, shares))


def concentrated(square: int, deviation: int, numbers: int, shares: int) -> float:
    """The epsilon such that a noisy sum is epsilon^2 / 2 concentrated differentially private.

    That is, its Renyi divergence of order a is at most a epsilon^2 / 2. Neighbours: one client
    sends zeros in place of its vector, with its noise. square: of the longest vector, in units.
    deviation: of one client's noise, in units. numbers: d. shares: t. Theorem 1, with the constant
    that follows from proposition 14: a Delta^2 / (2 t sigma^2) + tau d is at most a / 2 times
    (Delta^2 / (t sigma^2) + 2 tau d).

    >>> concentrated(square=400, deviation=5, numbers=10, shares=4)
    2.0
    """
    drift, apart = math.sqrt(square / shares) / deviation, tau(deviation, shares)
    return min(math.sqrt(drift**2 + 2 * apart * numbers), drift + apart * math.sqrt(numbers))


@dataclass(frozen=True)
class NoiseShares:
    """The mechanism: how clients round and add noise, and what their sum proves.

    clip: c. unit: gamma. deviation: sigma / gamma, a whole number. numbers: d. shares: t, the
    clients whose noise is counted on. Raises `ParameterError` for values out of range.
    """

    clip: float
    unit: float
    deviation: int
    numbers: int
    shares: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("clip", "unit"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "choose a positive number")
        require(1 <= self.deviation <= WIDEST, "deviation", self.deviation, "choose from 1 to 2^28")
        require(self.numbers >= 1, "numbers", self.numbers, "choose 1 or more")
        require(self.shares >= 1, "shares", self.shares, "choose 1 or more")

    @classmethod
    def planned(
        cls, clip: float, noise: float, numbers: int, clients: int, shares: int
    ) -> "NoiseShares":
        """Shares of which any t add up to a deviation of noise times clip, or a little more.

        noise: z. numbers: d. clients: n, as many as may add their vector. shares: t.

        >>> one = NoiseShares.planned(1.0, 1.0, 10, clients=10, shares=7)
        >>> round(one.deviation * one.unit * 7**0.5, 4)
        1.0
        """
        most = clip * (clients + SPARE * noise * math.sqrt(clients / shares))
        unit = most / (2**31 - 2**25)  # what is left is for rounding
        deviation = max(1, math.ceil(noise * clip / (unit * math.sqrt(shares))))
        return cls(clip, unit, deviation, numbers, shares)

    @property
    def longest(self) -> int:
        """The square of the longest rounded vector, in units: Delta_2^2 of theorem 1."""
        c, d = self.clip / self.unit, self.numbers
        repeated = math.sqrt(2 * math.log(1 / BETA)) * (c + math.sqrt(d) / 2)
        return math.floor(min((c + math.sqrt(d)) ** 2, c**2 + d / 4 + repeated))

    def concentrated(self) -> float:
        """The epsilon of `concentrated` that a sum of t rounded and noisy vectors proves."""
        return concentrated(self.longest, self.deviation, self.numbers, self.shares)

    def rounded(self, values: NDArray[np.float64], source: NoiseSource) -> Whole:
        """A vector (d,), clipped, in units, each number up or down by chance.

        It is repeated until the vector is no longer than `longest`.
        """
        length = float(np.linalg.norm(values))
        require(math.isfinite(length), "values", length, "give numbers that are finite")
        scaled = values * (min(1.0, self.clip / length) if length else 0.0) / self.unit
        low = np.floor(scaled)
        while True:
            up = source.uniform(len(values)).numpy() < scaled - low
            whole: Whole = (low + up).astype(np.int64)
            if int(whole @ whole) <= self.longest:
                return whole

    def encode(self, values: NDArray[np.float64], source: NoiseSource) -> Words:
        """What a client sends into the secure sum, words (d,); algorithm 1."""
        noise = discrete_gaussian(len(values), self.deviation, source)
        return (self.rounded(values, source) + noise).astype(np.uint32)

    def decode(self, total: Words) -> NDArray[np.float64]:
        """The noisy sum (d,) that words stand for; algorithm 2."""
        return total.astype(np.int32).astype(np.float64) * self.unit
