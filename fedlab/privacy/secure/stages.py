"""Stages in which the server gets a sum and no client's update.

`[Clip(), SecureSum(), GaussianNoise()]`: the server learns the sum, and adds noise before it tells
anybody. `[Clip(), DistributedGaussian()]`: clients add noise in shares, and the server learns the
noisy sum alone.

Sources: Bonawitz et al. 2017, figure 4, in `member` and `server`; Kairouz, Liu, Steinke 2021, in
`discrete_gaussian`.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlab.aggregation import NoDeltaError
from fedlab.core import RoundContext, Stage, Tree, Update, knob, register, require
from fedlab.privacy.accounting import Release
from fedlab.privacy.ledger import Spending, Spent, noise_multiplier
from fedlab.privacy.mechanisms import GROUP, check_room, dense
from fedlab.privacy.noise_source import NoiseSource
from fedlab.privacy.secure.discrete_gaussian import NoiseShares
from fedlab.privacy.secure.fixed_point import FixedPoint
from fedlab.privacy.secure.keys import Words
from fedlab.privacy.secure.server import SecureSumResult, secure_sum
from fedlab.privacy.secure.terms import least_threshold

ALONE = "is there alone: a sum over one is that one's update, so nothing is opened"
RARELY = 1e-6  # of rounds may find at most one client by chance


def answering() -> float:
    """The knob of all stages that need a share of the cohort to answer."""
    share: float = knob(
        0.7,
        2 / 3,
        1.0,
        "of the cohort",
        "secure sum: must answer, so that it opens; more than two thirds",
        usual=(0.67, 1.0),
        group=GROUP,
    )
    return share


def threshold(share: float, clients: int) -> int:
    """t: at least this share of n clients, and more than two thirds.

    >>> threshold(0.7, 10), threshold(2 / 3, 9), threshold(1.0, 9)
    (7, 7, 9)
    """
    return max(least_threshold(clients), math.ceil(share * clients - 1e-9))


@register
class SecureSum(Stage):
    """The server gets the sum by `secure_sum` and no client's update: each sends all rows, masked.

    Its members are the clients that are there when it begins. The sum over one is the update of
    that one: a cohort of one is refused, and a round in which one alone is there is skipped, with
    nothing opened. The server's own noise comes on top of a sum that it has seen;
    `DistributedGaussian` does not show it that.
    """

    side = "sum"
    needs = ("clipped", "equal")
    refuses = ("summed", "coded", "stale", "noised")
    keeps = ("clipped", "equal")
    answering: float = answering()

    def begin(self, context: RoundContext) -> None:
        """Refuse a cohort of one."""
        cohort = context.settings.get("cohort", 2)
        fix = "a sum over one client is that client's update; choose 2 or more, or take away "
        fix += "secure sum, which hides nothing of it"
        require(cohort > 1, "cohort", cohort, fix)

    def add_up(self, updates: Iterable[Update], context: RoundContext) -> Tree:
        """The sum of the updates in fixed point, exact to one unit for each client.

        Raises `NoDeltaError` where one client alone is there.
        """
        check_company(context)
        rows = flat_rows(updates, context)
        # the gate lets 1e-5 pass, for float32
        fixed = FixedPoint(context.notes["clipped"] * (1 + 2e-5), max(1000, len(rows)))
        vectors = dict(enumerate((fixed.encode(row) for row in rows.values()), 1))
        if not vectors:
            return unflattened(np.zeros(numbers(context)), context)
        if len(vectors) == 1:
            raise NoDeltaError(f"client {next(iter(rows))} {ALONE}")
        total = summed(vectors, threshold(self.answering, len(vectors)), context)
        return unflattened(fixed.decode(total), context)


@register
class DistributedGaussian(Stage, Spending):
    """Each client adds a share of noise, and the server sees the noisy sum alone, by `secure_sum`.

    The noise of the least number of clients that must answer has a deviation of z C; where fewer
    arrive, the round is skipped and nothing opened, so the epsilon holds whoever drops out, as long
    as who does so has nothing to do with the data. Some of those that answer may be the server's
    own and know their noise: as many as `colluding` says are not counted on.

    What is booked is each client's own release, at epsilon as concentrated privacy gives it; the
    server knows the cohort, so its being drawn by chance hides nobody.
    """

    side = "sum"
    needs = ("clipped", "equal")
    refuses = ("summed", "coded", "stale", "noised", "counted")
    noise: float = noise_multiplier()
    answering: float = answering()
    colluding: float = knob(
        0.0,
        0.0,
        1 / 3,
        "of the cohort",
        "distributed gaussian: clients that may be the server's, whose noise hides nobody",
        usual=(0.0, 0.33),
        group=GROUP,
    )

    def adds(self) -> dict[str, Any]:
        """The fact that what follows is private."""
        return {"noised": True}

    def shares(self, context: RoundContext) -> NoiseShares:
        """How clients round and add noise in this round."""
        clients = len(invited(context))
        counted = threshold(self.answering, clients) - math.floor(self.colluding * clients)
        clip = context.notes["clipped"]
        return NoiseShares.planned(clip, self.noise, numbers(context), clients, counted)

    def add_up(self, updates: Iterable[Update], context: RoundContext) -> Tree:
        """The noisy sum; raises `NoDeltaError` where fewer than the threshold arrived."""
        rows, places = flat_rows(updates, context), invited(context)
        needed = threshold(self.answering, len(places))
        if len(rows) < needed:
            raise NoDeltaError(
                f"{len(rows)} of {len(places)} clients are there, and a secure sum opens for "
                f"{needed}; choose a smaller share of the cohort that must answer, if it is above "
                "two thirds, or wait for more"
            )
        shares = self.shares(context)
        nothing = np.zeros(shares.numbers, np.uint32)
        vectors = dict.fromkeys(places.values(), nothing) | {
            places[client]: shares.encode(row, self._source(client, context))
            for client, row in rows.items()
        }
        gone = [place for client, place in places.items() if client not in rows]
        total = summed(vectors, needed, context, gone)
        return unflattened(shares.decode(total), context)

    def _source(self, client: int, context: RoundContext) -> NoiseSource:
        """Where a client draws its rounding and noise from."""
        return NoiseSource.of(self.teaching_seed, f"share of noise {client}", context.number)

    def spends(self, context: RoundContext) -> Sequence[Spent]:
        """A release of its own for each client that trains, opened or not."""
        if not len(context.plan.start):
            return []
        release = Release(1 / self.shares(context).concentrated(), 1.0, 1, "all")
        return [Spent(release, context.plan.start, normal=False)]


def invited(context: RoundContext) -> dict[int, int]:
    """Client -> its number in the secure sum of this round: all that were drawn, there or not."""
    plan = context.plan
    drawn = plan.drawn.cohort if plan.drawn else plan.start
    return {client: place for place, client in enumerate(drawn.tolist(), 1)}


def check_company(context: RoundContext) -> None:
    """Raise `ParameterError` for a private run in which clients are too often alone by chance.

    A round with one alone is skipped, which tells that there was one. Where each is drawn by its
    own chance, epsilon does not count that, so it must hardly ever happen.
    """
    drawn = context.plan.drawn
    if not context.private or drawn is None or drawn.sampling != "poisson":
        return
    there = drawn.rate * (1 - context.settings.get("drop_out", 0.0))
    clients = drawn.expected / drawn.rate
    chance = (1 - there + clients * there) * (1 - there) ** (clients - 1)
    fix = f"under a secure sum and sampling='poisson' at most one client is there in {chance:.0e} "
    fix += f"of rounds, which epsilon does not count; choose more, so that it is below {RARELY:g}, "
    fix += "or sampling='fixed'"
    require(chance <= RARELY, "cohort", drawn.expected, fix)


def numbers(context: RoundContext) -> int:
    """D: how many numbers a client sends."""
    return sum(value.numel() for value in context.server.values())


def summed(
    vectors: dict[int, Words], needed: int, context: RoundContext, gone: Iterable[int] = ()
) -> Words:
    """The sum (D,) by `secure_sum`, with its bytes and its seconds noted.

    A vector that is alone, as noise of the client's own lets it be, has nothing to hide in.
    """
    began = time.perf_counter()
    if len(vectors) == 1:
        (alone,) = vectors.values()
        told = SecureSumResult(alone, alone.nbytes)
    else:
        told = secure_sum(vectors, needed, dropped_before=gone)
    context.notes["bytes_up"] = told.bytes_up
    context.metrics["secure_s"] = time.perf_counter() - began
    return told.total


def flat_rows(updates: Iterable[Update], context: RoundContext) -> dict[int, NDArray[np.float64]]:
    """Client -> its update as one vector (D,), by name in the server's order."""
    check_room(len(context.plan.start), context.server)
    found: dict[int, NDArray[np.float64]] = {}
    for update in updates:
        every = [value.flatten(1) for value in dense(update, context.server).values()]
        rows = torch.cat(every, 1).double().cpu().numpy()
        found |= dict(zip(update.cohort.tolist(), rows, strict=True))
    return found


def unflattened(flat: NDArray[np.float64], context: RoundContext) -> Tree:
    """A vector (D,) as tensors by name."""
    sizes = [value.numel() for value in context.server.values()]
    return {
        name: part.view_as(like).to(like.device)
        for (name, like), part in zip(
            context.server.items(), torch.from_numpy(flat).split(sizes), strict=True
        )
    }
