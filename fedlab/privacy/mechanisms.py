"""What happens to deltas between a client and the server's step.

Mechanisms with a half on either side.

Client halves act in the order of the list on what each client sends, server halves in reverse on
the sum. The sum is dense: noise goes on all rows, as rows without noise would tell that nobody sent
them.

Letters: N clients in all, C in a cohort, R rows. Sources: McMahan et al. 2018, "Learning
differentially private recurrent language models", algorithm 1 (the sum over the fixed denominator
qN); Andrew et al. 2021, "Differentially private learning with adaptive clipping", algorithm 1.
"""

import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Round, Rows, Tree, Update, norms, require
from fedlab.privacy.accounting import adaptive_clip_noise
from fedlab.privacy.secure_aggregation import FixedPoint, secure_sum


class NoiseSource:
    """Random numbers that noise and cohorts are drawn from.

    The operating system's, or a teaching seed's.

    Who knows the seed can subtract the noise: with one, no epsilon holds.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        """generator: of a teaching seed."""
        self.generator = generator

    def uniform(self, *shape: int) -> Tensor:
        """Float64 numbers strictly between 0 and 1."""
        if self.generator is not None:
            return torch.rand(*shape, generator=self.generator,
                              dtype=torch.float64).clamp(min=2.0**-54)
        count = torch.Size(shape).numel()
        bits = torch.frombuffer(bytearray(os.urandom(8 * count) or bytes(8)),
                                dtype=torch.int64)[:count]
        return ((bits >> 11 & 2**53 - 1).double() + 0.5).mul_(2.0**-53).view(shape)

    def normal(self, like: Tensor, deviation: float) -> Tensor:
        """Noise of a tensor's shape, kind and device."""
        return (torch.special.ndtri(self.uniform(*like.shape)) * deviation).to(like)


@dataclass(frozen=True)
class RoundContext:
    """What both halves know of a round.

    clip: C, the longest delta. noise: z, the deviation of noise over C. quantile: where the clip
    goes to, 0 to keep it. expected: qN clients in a sum, on average. server: its shared parameters.
    state: what stays for the next round.
    """

    clip: float
    noise: float
    quantile: float
    expected: float
    server: Tree
    chance: NoiseSource
    state: dict[str, Any]


class Mechanism:
    """Two halves that do nothing; one overrides what it needs."""

    def client(self, update: Update, scene: RoundContext) -> Update:
        """What leaves the clients of a chunk."""
        return update

    def total(self, updates: Iterable[Update], scene: RoundContext) -> Tree | None:
        """The sum over the cohort in float64, by a mechanism that adds up in its own way."""
        return None

    def server(self, total: Tree, scene: RoundContext) -> Tree:
        """The sum over the cohort, undone or noised."""
        return total

    def noted(self, done: Round) -> Round:
        """The Round with what it took."""
        return done


class Clip(Mechanism):
    """A delta longer than C, over all parameters, is scaled down to it.

    And all clients weigh alike.

    Not-finite deltas stay so, that the server may reject them: scaled they would pass.
    """

    def client(self, update: Update, scene: RoundContext) -> Update:
        """Scaled deltas, weights 1."""
        length = norms({n: replace(d, values=d.values.double()) for n, d in update.deltas.items()},
                       len(update.cohort))
        self.measured(length, scene)
        factor = (scene.clip / length).clamp(max=1).to(update.weights)
        return replace(update, deltas={name: d.scaled(factor) for name, d in update.deltas.items()},
                       weights=torch.ones_like(update.weights))

    def measured(self, length: Tensor, scene: RoundContext) -> None:
        """See how long the deltas are, (C,), before they are cut."""


class CentralNoise(Mechanism):
    """The server adds normal noise of deviation z C to the sum.

    Clients trust it with their deltas.
    """

    def server(self, total: Tree, scene: RoundContext) -> Tree:
        """The sum with noise."""
        return {name: value + scene.chance.normal(value, scene.noise * scene.clip) for name,
                value in total.items()}


class LocalNoise(Mechanism):
    """Each client adds noise of deviation z C to its own delta, of all rows: it trusts nobody."""

    def client(self, update: Update, scene: RoundContext) -> Update:
        """Dense deltas with noise."""
        uncoded(update, "noise at each client")
        clients, found = len(update.cohort), {}
        for name, every in dense(update, scene).items():
            who = torch.arange(clients, device=every.device).repeat_interleave(every.shape[1])
            ids = torch.arange(every.shape[1], device=every.device).repeat(clients)
            noisy = every + scene.chance.normal(every, scene.noise * scene.clip)
            found[name] = Rows(noisy.flatten(0, 1), ids, who)
        return replace(update, deltas=found)


class AdaptiveClip(Clip):
    """C follows a quantile of the lengths, by a noisy share b of those below it.

    C <- C exp(-0.2 (b - quantile)).

    The count has noise of qN / 20 and takes a part of the round's privacy; the deltas' own noise
    grows for it. One for each round.
    """

    def __init__(self) -> None:
        """Nobody counted yet."""
        self.below = 0.0

    def measured(self, length: Tensor, scene: RoundContext) -> None:
        """Count whether each delta is short, as +-1/2."""
        self.below += float(torch.where(length <= scene.clip, 0.5, -0.5)[length.isfinite()].sum())

    def server(self, total: Tree, scene: RoundContext) -> Tree:
        """The sum as it is; the next round's clip is in the state."""
        noisy = self.below + float(scene.chance.normal(torch.zeros(1), bit_noise(scene.expected)))
        scene.state["clip"] = scene.clip * float(torch.tensor(
            -0.2 * (noisy / scene.expected + 0.5 - scene.quantile)).exp())
        return total


def bit_noise(expected: float) -> float:
    """Deviation of the noise on the count of short deltas. Andrew et al., section 3.1."""
    return max(expected / 20, 1.0)


def summed(mechanisms: Sequence[Mechanism], updates: Iterable[Update], scene: RoundContext) -> Tree:
    """The sum of the weighted deltas, in float64, after all server halves.

    Over the fixed denominator qN.
    """
    own = (mechanism.total(updates, scene) for mechanism in mechanisms)
    total = next((found for found in own if found is not None), None) or plain_sum(updates, scene)
    for mechanism in reversed(mechanisms):
        total = mechanism.server(total, scene)
    return {name: (value / scene.expected).to(scene.server[name]) for name, value in total.items()}


def uncoded(update: Update, what: str) -> None:
    """Raise `ParameterError` for deltas in a code, where every number is sent in 4 bytes anyway."""
    require(update.bytes_up is None, "update", "coded deltas",
            f"{what} sends 4 bytes for every number, so a code only costs quality; leave out `ErrorFeedback`")


def plain_sum(updates: Iterable[Update], scene: RoundContext) -> Tree:
    """Each parameter's sum of weighted deltas, dense."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name,
             value in scene.server.items()}
    for update in updates:
        for name, rows in update.deltas.items():
            replace(rows, values=rows.values.double()).add_to(total[name], update.weights.double())
    return total


def dense(update: Update, scene: RoundContext) -> Tree:
    """Each client's deltas (C, ...) of all shared parameters, in the server's order.

    With zeros where it holds none.
    """
    found = {}
    for name, like in scene.server.items():
        found[name] = like.new_zeros(len(update.cohort), *like.shape)
        if name in update.deltas:
            rows = update.deltas[name]
            found[name][rows.client, rows.ids] = rows.values
    return found


class SecureSum(Mechanism):
    """The server gets the sum by `fedlab.secure` and no client's delta.

    Each sends all rows, under masks.

    Deltas must be clipped before. Noise of the server's comes on top of a sum that it has seen, and
    the sum over a cohort of one is that one's delta.
    """

    def __init__(self, share: float = 0.6, most: int = 1000) -> None:
        """share: of the cohort that must answer. most.

        Clients in a cohort, so that their sum cannot overflow.
        """
        require(0.5 < share <= 1, "share", share,
                "choose more than half, so that no two halves can open a vector")
        self.share, self.most, self.bytes, self.seconds = share, most, 0, 0.0

    def total(self, updates: Iterable[Update], scene: RoundContext) -> Tree:
        """The sum of deltas in fixed point, exact to a unit of it for each client."""
        fixed, vectors = FixedPoint(scene.clip * (1 + 1e-6), self.most), []
        for update in updates:
            uncoded(update, "a secure sum")
            whole = torch.cat([value.flatten(1) for value in dense(update, scene).values()], 1)
            vectors += [fixed.encode(row) for row in whole.double().cpu().numpy()]
        require(len(vectors) <= self.most, "most", self.most,
                f"{len(vectors)} clients came; choose as many")
        names, began = list(scene.server), time.perf_counter()
        told = secure_sum(dict(enumerate(vectors, 1)),
                          math.floor(self.share * len(vectors)) + 1) if vectors else None
        self.seconds, self.bytes = time.perf_counter() - began, told.bytes_up if told else 0
        sizes = [scene.server[name].numel() for name in names]
        flat = torch.from_numpy(fixed.decode(told.total)) if told else torch.zeros(sum(sizes), dtype=torch.float64)
        return {name: part.view_as(scene.server[name]).to(scene.server[name].device)
                for name, part in zip(names, flat.split(sizes), strict=True)}

    def noted(self, done: Round) -> Round:
        """The Round with the bytes of letters, masked vectors and answers.

        And the seconds of all parties.
        """
        return replace(done, bytes_up=self.bytes, metrics={**done.metrics,
                                                           "secure_s": self.seconds})


def noise_of_deltas(noise: float, adaptive: bool, expected: float) -> float:
    """The z of deltas, where a count of the short ones goes along.

    Both together prove as much as `noise`.
    """
    bits = bit_noise(expected)
    require(not adaptive or noise < 2 * bits, "noise", noise,
            f"the clip can follow a quantile below {2 * bits:g}; set "
            "quantile=0, or choose a larger cohort")
    return adaptive_clip_noise(noise, bits) if adaptive else noise
