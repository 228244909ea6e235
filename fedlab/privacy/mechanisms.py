"""Stages of user-level differential privacy: clip and noise.

    what leaves the round = (sum over the cohort of delta_k min(1, C / |delta_k|)
                             + normal noise of deviation z C) / (q N)

`[Clip(), GaussianNoise()]` is DP-FedAvg; `SecureSum()` between them hides single updates from the
server as well; `DistributedGaussian()` behind the clip the sum, too; `LocalNoise()` trusts nobody.
The sum is dense: noise goes on all rows, as rows without noise would tell that nobody sent them.

Neighbours differ in one client with all its data. Losses, norms and cohorts in a Round are for the
simulation alone: to publish them, or to choose by a metric of private data, is a release of its
own. The noise consists of floating point numbers, whose last digits can give values away (Mironov
2012): this is a lesson, not a product.

Letters: C the clip, the longest update; z noise over C; N clients in all; q the share or chance of
a client to be in a sum; n clients in a chunk.

Sources: McMahan et al. 2018, "Learning differentially private recurrent language models",
algorithm 1 (the sum over the fixed denominator q N); Andrew et al. 2021, "Differentially private
learning with adaptive clipping", algorithm 1.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Key, RoundContext, Rows, Stage, Tree, Update, knob, norms, register, require
from fedlab.privacy.accounting import Release, adaptive_clip_noise
from fedlab.privacy.ledger import Spending, Spent, noise_multiplier
from fedlab.privacy.noise_source import NoiseSource

GROUP = "privacy"
ROOM = 10**9  # numbers of dense updates that are held at once


@register
class Clip(Stage):
    """Scales each update that is longer than C, over all that it holds, down to C.

    All clients weigh alike. Each client clips itself, and the gate refuses what is longer. With a
    quantile, C follows it from round to round:

        C <- C exp(-0.2 (b - quantile)),    b the share of the updates that were shorter

    Where there is noise, b gets noise of q N / 20, which takes a part of the round's privacy; the
    updates' own noise grows for it.
    """

    clip: float = knob(
        1.0,
        1e-9,
        1e9,
        "L2 norm",
        "longest update that counts in full (C)",
        log=True,
        usual=(0.01, 10.0),
        group=GROUP,
    )
    quantile: float = knob(
        0.0,
        0.0,
        0.99,
        "of clients",
        "whose updates the clip shall not shorten; 0 keeps it",
        usual=(0.0, 0.9),
        group=GROUP,
    )

    def adds(self) -> dict[str, Any]:
        """The facts of the bound and of equal weights; with a quantile, a count to add noise to."""
        counted = {"counted": self.quantile} if self.quantile else {}
        return {"clipped": self.clip, "equal": True} | counted

    def begin(self, context: RoundContext) -> None:
        """Tell the others how long an update may be in this round."""
        kept = context.memory(self).get("clip", self.clip) if self.quantile else self.clip
        context.notes |= {"clipped": float(kept), "short": 0.0}

    def each(self, update: Update, context: RoundContext) -> Update:
        """The scaled updates, with weights of 1."""
        clip = context.notes["clipped"]
        length = norms(update.deltas, len(update.cohort))
        context.notes["short"] += float(torch.where(length <= clip, 0.5, -0.5).sum())
        factor = (clip / length).clamp(max=1).to(update.weights)
        return replace(
            update,
            deltas={name: d.scaled(factor) for name, d in update.deltas.items()},
            weights=torch.ones_like(update.weights),
        )

    def done(self, context: RoundContext) -> None:
        """Set the clip of the next round."""
        if self.quantile:
            share = context.notes["short"] / context.expected + 0.5
            step = -0.2 * (share - self.quantile)
            context.memory(self)["clip"] = context.notes["clipped"] * math.exp(step)


@register
class GaussianNoise(Stage, Spending):
    """The server adds normal noise of deviation z C to the sum.

    Clients trust it with their updates. Where clients are counted (`Clip` with a quantile), the
    count gets noise as well.
    """

    side = "sum"
    needs = ("clipped", "equal")
    refuses = ("noised", "stale", "own sampler")
    keeps = ("clipped", "equal")
    noise: float = noise_multiplier()

    def adds(self) -> dict[str, Any]:
        """The fact that what follows is private."""
        return {"noised": True}

    def total(self, total: Tree, context: RoundContext) -> Tree:
        """Add noise to the sum.

        An empty cohort gives noise alone, so that nobody learns that it was empty.
        """
        source = NoiseSource.of(self.teaching_seed, "noise on the sum", context.number)
        clip, noise = context.notes["clipped"], self.noise
        if "counted" in context.facts[self.name]:
            bits = bit_noise(context.expected)
            context.notes["short"] += float(source.normal(torch.zeros(1), bits))
            noise = adaptive_clip_noise(noise, bits)
        return {name: value + source.normal(value, noise * clip) for name, value in total.items()}

    def spends(self, context: RoundContext) -> Sequence[Spent]:
        """One noisy sum over the cohort, as it was really drawn.

        Raises `ParameterError` where its noise leaves none for the count of the clip.
        """
        drawn, most = context.plan.drawn, 2 * bit_noise(context.expected)
        require(
            "counted" not in context.facts[self.name] or self.noise < most,
            "noise",
            self.noise,
            f"the clip can follow a quantile below {most:g}; set quantile=0, or choose a larger "
            "cohort",
        )
        assert drawn is not None  # stale updates are refused
        return [Spent(Release(self.noise, drawn.rate, 1, drawn.sampling))]


def bit_noise(expected: float) -> float:
    """The deviation of the noise on the count of short updates; Andrew et al., section 3.1."""
    return max(expected / 20, 1.0)


@register
class LocalNoise(Stage, Spending):
    """Each client adds noise of deviation z C to all rows of its own update: it trusts nobody."""

    needs = ("clipped",)
    refuses = ("noised", "coded", "counted")
    keeps = ("equal",)
    noise: float = noise_multiplier()

    def adds(self) -> dict[str, Any]:
        """The facts that what follows is private, with noise of z C, and of all rows."""
        return {"noised": self.noise, "dense": True}

    def each(self, update: Update, context: RoundContext) -> Update:
        """Make the updates dense and add noise to them."""
        clients, found = len(update.cohort), {}
        deviation = self.noise * context.notes["clipped"]
        for name, every in dense(update, context.server).items():
            who = torch.arange(clients, device=every.device).repeat_interleave(every.shape[1])
            ids = torch.arange(every.shape[1], device=every.device).repeat(clients)
            noisy = every + self._noise(name, every, update.cohort, context) * deviation
            found[name] = Rows(noisy.flatten(0, 1), ids, who)
        return replace(update, deltas=found)

    def _noise(self, name: str, like: Tensor, cohort: Tensor, context: RoundContext) -> Tensor:
        """Standard normal numbers of this shape (n, ...), drawn for each client by itself."""
        if self.teaching_seed < 0:
            return NoiseSource().normal(like, 1.0)
        key = Key(self.teaching_seed, f"local noise {name}", context.number)
        return key.normal(cohort, like[:1].numel()).view_as(like).to(like)

    def spends(self, context: RoundContext) -> Sequence[Spent]:
        """A release of its own for each client that trained, even if its update came late."""
        released = torch.cat([context.plan.start, context.plan.late])
        return [Spent(Release(self.noise, 1.0, 1, "all"), released)]


def check_room(clients: int, server: Tree) -> None:
    """Raise `ParameterError` where dense updates of so many clients are too much at once."""
    numbers = sum(value.numel() for value in server.values())
    require(
        clients * numbers <= ROOM,
        "cohort",
        clients,
        f"each sends all {numbers:,} numbers under a mask or noise, and {ROOM:,} fit at once; take "
        "a smaller cohort or model, such as one of fewer items",
    )


def dense(update: Update, server: Tree) -> Tree:
    """Each client's update (n, ...) by name, in the server's order, 0 where it holds no row.

    Raises `ParameterError` for more numbers than a machine holds.
    """
    check_room(len(update.cohort), server)
    found = {}
    for name, like in server.items():
        found[name] = like.new_zeros(len(update.cohort), *like.shape)
        rows = update.deltas[name]
        found[name][rows.client, rows.ids] = rows.values
    return found


def plain_sum(updates: Iterable[Update], server: Tree) -> Tree:
    """The sum of the weighted updates by name, dense and in float64."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in server.items()}
    for update in updates:
        for name, rows in update.deltas.items():
            wide = replace(rows, values=rows.values.double())
            wide.add_to(total[name], update.weights.double())
    return total
