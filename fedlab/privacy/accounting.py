"""Privacy accounting: the epsilon that noise proves, at a stated delta.

    P(M(D) in S) <= exp(epsilon) P(M(D') in S) + delta        for all neighbours D, D' and all S

| sampling  | neighbours differ in | accountants |
| ---       | --- | --- |
| `poisson` | one client more or less (`add-remove`) | `tight`: Opacus' PRV, `rdp`: Opacus' RDP |
| `all`     | `add-remove`, or one client's data (`replace-one`) | `tight`: exact; `rdp` |
| `fixed`   | `replace-one` | `rdp`: Wang et al., theorem 27 |

Every other combination raises `ParameterError`. Replacing the data of one client moves a sum of
contributions of norm at most C by up to 2 C, adding or removing a client by up to C; the same noise
therefore proves less for `replace-one`.

Letters: C the clipping norm, q the sampling rate, D and D' neighbouring data sets, M the mechanism,
S a set of its outputs.

Sources: Mironov 2017, "Renyi differential privacy" (RDP); Gopi, Lee, Wutschitz 2021, "Numerical
composition of differential privacy" (PRV); Balle, Wang 2018, "Improving the Gaussian mechanism for
differential privacy", theorem 8 (exact); Wang, Balle, Kasiviswanathan 2019, "Subsampled Renyi
differential privacy and analytical moments accountant", theorem 27; Canonne, Kamath, Steinke 2020,
"The discrete Gaussian for differential privacy", proposition 12 (from RDP to epsilon).
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from fedlab.core import ParameterError, require

SAMPLING = ("poisson", "fixed", "all")
RELATIONS = ("add-remove", "replace-one")
METHODS = ("tight", "rdp")
PRV_ERROR = 0.01  # of epsilon
LOOSE = 50.0  # an epsilon above which nobody asks for a tighter one, and PRV's numbers overflow
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256)
# differences of moments cancel in hundreds of digits
DIGITS = Context(prec=600, Emax=MAX_EMAX, Emin=MIN_EMIN)


@dataclass(frozen=True)
class Release:
    """Noisy sums of clients' contributions, each with an L2 norm of at most C.

    noise: the noise multiplier, the standard deviation of the noise on the sum in units of C; above
    0. rate: q, the chance (`poisson`) or share (`fixed`) of clients in a sum; above 0, at most 1.
    times: the number of sums, 0 or more. sampling: one of SAMPLING; with `all`, everybody is in
    every sum. Raises `ParameterError` for values out of range.

    >>> Release(noise=1.0, rate=0.1, times=20)
    Release(noise=1.0, rate=0.1, times=20, sampling='poisson')
    """

    noise: float
    rate: float = 1.0
    times: int = 1
    sampling: str = "poisson"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            0 < self.noise < math.inf,
            "noise",
            self.noise,
            "choose a positive number; without noise nothing holds",
        )
        require(
            0 < self.rate <= 1, "rate", self.rate, "choose a share of the clients from above 0 to 1"
        )
        require(
            isinstance(self.times, int) and self.times >= 0,
            "times",
            self.times,
            "choose a whole number, 0 or more",
        )
        require(
            self.sampling in SAMPLING,
            "sampling",
            self.sampling,
            f"choose one of {', '.join(SAMPLING)}",
        )
        require(
            self.sampling != "all" or self.rate == 1,
            "rate",
            self.rate,
            "where everybody is in a sum it is 1",
        )


def epsilon(
    releases: Sequence[Release],
    delta: float,
    *,
    relation: str = "add-remove",
    method: str = "tight",
) -> float:
    """The smallest epsilon that the accountant proves for all releases together; 0 for no release.

    delta: between 0 and 1. relation: one of RELATIONS. method: 'tight' is at most 0.02 above the
    truth, but above LOOSE, and where Poisson cohorts come with sums over all; there it is 'rdp',
    which is quick and never smaller. Raises `ParameterError` where no proof is known.

    >>> round(epsilon([Release(noise=1.0, sampling="all")], delta=1e-5), 2)
    4.38
    """
    require(
        0 < delta < 1, "delta", delta, "choose a number between 0 and 1, below one over the clients"
    )
    require(relation in RELATIONS, "relation", relation, f"choose one of {', '.join(RELATIONS)}")
    require(method in METHODS, "method", method, f"choose one of {', '.join(METHODS)}")
    releases = [release for release in releases if release.times]
    if not releases:
        return 0.0
    kinds = {"all" if r.rate == 1 else r.sampling for r in releases}
    sensitivity = 2 if relation == "replace-one" else 1  # of a sum, in units of C
    releases = [replace(r, noise=r.noise / sensitivity) for r in releases]
    if kinds == {"all"} and method == "tight":
        return gaussian_epsilon(math.sqrt(sum(r.times / r.noise**2 for r in releases)), delta)
    known = kinds <= ({"poisson", "all"} if relation == "add-remove" else {"fixed", "all"})
    require(
        known and (method == "rdp" or relation == "add-remove"),
        "sampling",
        "+".join(sorted(kinds)),
        f"no proof here for relation={relation!r} and method={method!r}; poisson goes with "
        "add-remove, fixed with replace-one and method='rdp'",
    )
    quick = _by_rdp(releases, delta)
    if method == "rdp" or "all" in kinds or quick > LOOSE:
        return quick
    return _composed(releases, delta)


def _by_rdp(releases: Sequence[Release], delta: float) -> float:
    """Epsilon by the Renyi divergences, which add up order by order."""
    each = [
        [
            r.times * value
            for value in _divergences(r.noise, r.rate, r.sampling == "fixed" and r.rate < 1)
        ]
        for r in releases
    ]
    return min(
        _from_rdp(order, sum(parts), delta) for order, *parts in zip(ORDERS, *each, strict=True)
    )


def replaced(releases: Sequence[Release], delta: float) -> float:
    """Epsilon, where one client's data is replaced, of what is proven for one more or less.

    To replace is to remove one and to add one: twice epsilon, at (1 + exp(epsilon)) times delta.
    Source: Dwork, Roth 2014, theorem 2.2. releases: of Poisson cohorts.

    >>> one = [Release(noise=1.0, rate=0.1)]
    >>> 2 * epsilon(one, 1e-5) < replaced(one, 1e-5)
    True
    """
    single = epsilon(releases, delta, method="rdp")
    for _ in range(60):  # the smaller delta is, the larger epsilon: until both fit
        needed = epsilon(releases, delta / (1 + math.exp(single)), method="rdp")
        if needed <= single:
            return 2 * single
        single = needed
    raise ParameterError(
        f"delta={delta!r}: nothing is proven where one client is replaced; use more noise"
    )


def _composed(releases: Sequence[Release], delta: float) -> float:
    """Epsilon of sums over Poisson cohorts by Opacus' PRV: composed anew, made discrete once.

    A ledger asks before each round. What takes a third of a second does not depend on how often a
    sum was released but on how often it may be, here up to the next power of two.
    """
    times = Counter[tuple[float, float]]()
    for release in releases:
        times[release.noise, release.rate] += release.times
    most = tuple((*kind, max(64, 1 << (count - 1).bit_length())) for kind, count in times.items())
    from opacus.accountants.analysis.prv import compose_heterogeneous  # noqa: PLC0415 - seconds

    whole = compose_heterogeneous(list(_discrete(most, delta)), list(times.values()))
    return float(whole.compute_epsilon(delta, delta / 1000, PRV_ERROR)[2])


@lru_cache(maxsize=64)
def _discrete(most: tuple[tuple[float, float, int], ...], delta: float) -> tuple[Any, ...]:
    """The privacy loss of each kind of sum (noise, rate, times at most), made discrete."""
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 - takes seconds
    from opacus.accountants.analysis import prv  # noqa: PLC0415 - takes seconds

    losses = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in most]
    # the warning is about the orders that its search starts from
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        domain = PRVAccountant()._get_domain(
            losses, [count for *_, count in most], PRV_ERROR, delta / 1000
        )
    cut = [prv.TruncatedPrivacyRandomVariable(x, domain.t_min, domain.t_max) for x in losses]
    return tuple(prv.discretize(each, domain) for each in cut)


@lru_cache(maxsize=256)
def _divergences(noise: float, rate: float, fixed: bool) -> tuple[float, ...]:
    """Renyi divergence of one sum at each of ORDERS; cached, since a ledger asks every round."""
    if fixed:
        return tuple(fixed_size_rdp(rate, noise, order) for order in ORDERS)
    from opacus.accountants.analysis.rdp import compute_rdp  # noqa: PLC0415 - takes seconds

    return tuple(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS).tolist())


def noise_for(
    target: float,
    delta: float,
    releases: Sequence[Release],
    *,
    relation: str = "add-remove",
    method: str = "tight",
) -> float:
    """The least factor on the noise of all releases for which epsilon is at most `target`.

    It is found to one part in a thousand. target: above 0. The other arguments are those of
    `epsilon`. Raises `ParameterError` when no factor up to a million suffices.

    >>> 1.0 < noise_for(2.0, 1e-5, [Release(noise=1.0, sampling="all")]) < 2.5
    True
    """
    require(0 < target < math.inf, "target", target, "choose a positive epsilon")

    def proven(factor: float) -> float:
        return epsilon(
            [replace(r, noise=factor * r.noise) for r in releases],
            delta,
            relation=relation,
            method=method,
        )

    low, high = 1 / 64, 1.0
    while proven(high) > target:
        require(
            high < 2**20,
            "target",
            target,
            "not even a million times the noise proves it; choose a larger one",
        )
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if proven(middle) > target else (low, middle)
    return high


def gaussian_epsilon(drift: float, delta: float) -> float:
    """Exact epsilon of a Gaussian of standard deviation 1 whose mean moves by `drift` at most.

    The result is never below the truth. drift: sensitivity over the standard deviation of the
    noise; of several sums, the root of the sum of their squares. Source: Balle, Wang 2018, theorem
    8.

    >>> round(gaussian_epsilon(1.0, 1e-5), 2)
    4.38
    """

    def delta_at(e: float) -> float:  # Balle and Wang, theorem 8
        ends = torch.tensor([drift / 2 - e / drift, -drift / 2 - e / drift], dtype=torch.float64)
        near, far = torch.special.log_ndtr(ends).tolist()
        return math.exp(near) - math.exp(e + far)

    low, high = 0.0, 1.0
    if delta_at(0.0) <= delta:
        return 0.0
    while delta_at(high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def adaptive_clip_noise(noise: float, bit_noise: float) -> float:
    """The noise multiplier of an update that is released beside a noisy count of unclipped clients.

    Both together then prove what `noise` alone would. bit_noise: standard deviation of the noise on
    the count; more than half of `noise`, else `ParameterError`. Source: Andrew et al. 2021,
    "Differentially private learning with adaptive clipping", theorem 1.

    >>> round(adaptive_clip_noise(1.0, bit_noise=10.0), 4)
    1.0013
    """
    require(
        2 * bit_noise > noise > 0,
        "bit_noise",
        bit_noise,
        f"choose more than half of noise={noise:g}",
    )
    return (noise**-2 - (2 * bit_noise) ** -2) ** -0.5


def fixed_size_rdp(rate: float, noise: float, order: float) -> float:
    """Renyi divergence of one sum over a cohort of fixed size, at `order` above 1.

    rate: q. noise: its standard deviation over the largest change that one client can cause.
    Source: Wang, Balle, Kasiviswanathan 2019, theorem 27.
    """
    if order != int(order):  # (order - 1) times the divergence is convex in the order
        below, t = math.floor(order), order - math.floor(order)
        return (
            (1 - t) * _log_moment(rate, noise, below) + t * _log_moment(rate, noise, below + 1)
        ) / (order - 1)
    return _log_moment(rate, noise, int(order)) / (order - 1)


def _log_moment(rate: float, noise: float, order: int) -> float:
    """(order - 1) times the divergence, for a whole order: Wang et al., theorem 27."""
    with localcontext(DIGITS):
        terms = (
            Decimal(rate) ** j * math.comb(order, j) * term
            for j, term in enumerate(_terms(noise)[: order + 1])
        )
        return float(sum(terms, Decimal(0)).ln())


@lru_cache(maxsize=64)
def _terms(noise: float) -> list[Decimal]:
    """What multiplies each power of the rate beside the binomial coefficient, in theorem 27."""
    largest = int(max(ORDERS))
    with localcontext(DIGITS):
        moments = [(x * (x - 1) / (2 * Decimal(noise) ** 2)).exp() for x in range(largest + 3)]
        column, differences = moments, []  # forward differences at 0, one for each order
        while column:
            differences.append(column[0])
            column = [b - a for a, b in pairwise(column)]
        near = [
            4 * (differences[2 * (j // 2)] * differences[2 * ((j + 1) // 2)]).sqrt()
            for j in range(3, largest + 1)
        ]
        return [
            Decimal(1),
            Decimal(0),
            min(4 * (moments[2] - 1), 2 * moments[2]),
            *(min(bound, 2 * moment) for bound, moment in zip(near, moments[3:-2], strict=True)),
        ]


def _from_rdp(order: float, divergence: float, delta: float) -> float:
    """Epsilon from a Renyi divergence: Canonne et al., proposition 12."""
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
