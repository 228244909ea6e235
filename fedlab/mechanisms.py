"""What happens to deltas between a client and the server's step: mechanisms with a half on either side.

Client halves act in the order of the list on what each client sends, server halves in reverse on the sum. The sum is
dense: noise goes on all rows, as rows without noise would tell that nobody sent them.

Letters: N clients in all, C in a cohort, R rows.
Sources: McMahan et al. 2018, "Learning differentially private recurrent language models", algorithm 1 (the sum over the
fixed denominator qN); Andrew et al. 2021, "Differentially private learning with adaptive clipping", algorithm 1.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.accounting import adaptive_clip_noise
from fedlab.core import Rows, Tree, Update, norms, require


class Chance:
    """Random numbers that noise and cohorts are drawn from: the operating system's, or a teaching seed's.

    Who knows the seed can subtract the noise: with one, no epsilon holds.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        """generator: of a teaching seed."""
        self.generator = generator

    def uniform(self, *shape: int) -> Tensor:
        """Float64 numbers strictly between 0 and 1."""
        if self.generator is not None:
            return torch.rand(*shape, generator=self.generator, dtype=torch.float64).clamp(min=2.0**-54)
        count = torch.Size(shape).numel()
        bits = torch.frombuffer(bytearray(os.urandom(8 * count) or bytes(8)), dtype=torch.int64)[:count]
        return ((bits >> 11 & 2**53 - 1).double() + 0.5).mul_(2.0**-53).view(shape)

    def normal(self, like: Tensor, deviation: float) -> Tensor:
        """Noise of a tensor's shape, kind and device."""
        return (torch.special.ndtri(self.uniform(*like.shape)) * deviation).to(like)


@dataclass(frozen=True)
class Scene:
    """What both halves know of a round.

    clip: C, the longest delta. noise: z, the deviation of noise over C. quantile: where the clip goes to, 0 to keep it.
    expected: qN clients in a sum, on average. server: its shared parameters. state: what stays for the next round.
    """

    clip: float
    noise: float
    quantile: float
    expected: float
    server: Tree
    chance: Chance
    state: dict[str, Any]


class Mechanism:
    """Two halves that do nothing; one overrides what it needs."""

    def client(self, update: Update, scene: Scene) -> Update:
        """What leaves the clients of a chunk."""
        return update

    def server(self, total: Tree, scene: Scene) -> Tree:
        """The sum over the cohort, undone or noised."""
        return total


class Clip(Mechanism):
    """A delta longer than C, over all parameters, is scaled down to it, and all clients weigh alike.

    Not-finite deltas stay so, that the server may reject them: scaled they would pass.
    """

    def client(self, update: Update, scene: Scene) -> Update:
        """Scaled deltas, weights 1."""
        length = norms({n: replace(d, values=d.values.double()) for n, d in update.deltas.items()}, len(update.cohort))
        factor = (scene.clip / length).clamp(max=1).to(update.weights)
        return replace(update, deltas={name: d.scaled(factor) for name, d in update.deltas.items()},
                       weights=torch.ones_like(update.weights))


class CentralNoise(Mechanism):
    """The server adds normal noise of deviation z C to the sum: clients trust it with their deltas."""

    def server(self, total: Tree, scene: Scene) -> Tree:
        """The sum with noise."""
        return {name: value + scene.chance.normal(value, scene.noise * scene.clip) for name, value in total.items()}


class LocalNoise(Mechanism):
    """Each client adds noise of deviation z C to its own delta, of all rows: it trusts nobody."""

    def client(self, update: Update, scene: Scene) -> Update:
        """Dense deltas with noise."""
        clients, found = len(update.cohort), {}
        for name, rows in update.deltas.items():
            like = scene.server[name]
            dense = like.new_zeros(clients, *like.shape)
            dense[rows.client, rows.ids] = rows.values
            who = torch.arange(clients, device=like.device).repeat_interleave(len(like))
            ids = torch.arange(len(like), device=like.device).repeat(clients)
            noisy = dense + scene.chance.normal(dense, scene.noise * scene.clip)
            found[name] = Rows(noisy.flatten(0, 1), ids, who)
        return replace(update, deltas=found)


class AdaptiveClip(Clip):
    """C follows a quantile of the lengths, by a noisy share b of those below it: C <- C exp(-0.2 (b - quantile)).

    The count has noise of qN / 20 and takes a part of the round's privacy; the deltas' own noise grows for it. One for
    each round.
    """

    def __init__(self) -> None:
        """Nobody counted yet."""
        self.below = 0.0

    def client(self, update: Update, scene: Scene) -> Update:
        """As `Clip`; whether a delta was short is counted as +-1/2."""
        length = norms(update.deltas, len(update.cohort))
        self.below += float(torch.where(length <= scene.clip, 0.5, -0.5)[length.isfinite()].sum())
        return super().client(update, scene)

    def server(self, total: Tree, scene: Scene) -> Tree:
        """The sum as it is; the next round's clip is in the state."""
        noisy = self.below + float(scene.chance.normal(torch.zeros(1), bit_noise(scene.expected)))
        scene.state["clip"] = scene.clip * float(torch.tensor(
            -0.2 * (noisy / scene.expected + 0.5 - scene.quantile)).exp())
        return total


def bit_noise(expected: float) -> float:
    """Deviation of the noise on the count of short deltas. Andrew et al., section 3.1."""
    return max(expected / 20, 1.0)


def summed(mechanisms: Sequence[Mechanism], updates: Iterable[Update], scene: Scene) -> Tree:
    """The sum of the weighted deltas, in float64, after all server halves, over the fixed denominator qN."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in scene.server.items()}
    for update in updates:
        for name, rows in update.deltas.items():
            replace(rows, values=rows.values.double()).add_to(total[name], update.weights.double())
    for mechanism in reversed(mechanisms):
        total = mechanism.server(total, scene)
    return {name: (value / scene.expected).to(scene.server[name]) for name, value in total.items()}


def noise_of_deltas(noise: float, adaptive: bool, expected: float) -> float:
    """The z of deltas, where a count of the short ones goes along: both together prove as much as `noise`."""
    bits = bit_noise(expected)
    require(not adaptive or noise < 2 * bits, "noise", noise, f"the clip can follow a quantile below {2 * bits:g}; set "
            "quantile=0, or choose a larger cohort")
    return adaptive_clip_noise(noise, bits) if adaptive else noise
