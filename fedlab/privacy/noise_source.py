"""Where the random numbers of privacy come from: the operating system, or a teaching seed."""

import os

import torch
from torch import Tensor

from fedlab.core import knob, stream
from fedlab.engine import agreed

BITS = 53  # of a whole number that is drawn


class NoiseSource:
    """Random numbers that noise and cohorts are drawn from.

    Whoever knows a teaching seed can subtract the noise: with one, no epsilon holds.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        """generator: that of a teaching seed; by default the operating system's numbers."""
        self.generator = generator

    @classmethod
    def of(cls, seed: int, purpose: str, number: int) -> "NoiseSource":
        """The source of a draw; seed: below 0 for the operating system's numbers."""
        return cls(None if seed < 0 else stream(seed, purpose, number))

    def whole(self, count: int) -> Tensor:
        """Whole numbers (count,) from 0 to 2^53 - 1, each as likely as another, int64."""
        if self.generator is not None:
            return torch.randint(2**BITS, (count,), generator=self.generator)
        words = bytearray(agreed(lambda: os.urandom(8 * count)) or bytes(8))
        return torch.frombuffer(words, dtype=torch.int64)[:count] & 2**BITS - 1

    def uniform(self, *shape: int) -> Tensor:
        """Float64 numbers strictly between 0 and 1.

        >>> NoiseSource().uniform(2, 3).shape
        torch.Size([2, 3])
        """
        if self.generator is not None:
            drawn = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
            return drawn.clamp(min=2.0**-54)
        drawn = (self.whole(torch.Size(shape).numel()).double() + 0.5).mul_(2.0**-BITS)
        return drawn.clamp_(max=1 - 2.0**-BITS).view(shape)  # half of the largest rounds up to 1

    def normal(self, like: Tensor, deviation: float) -> Tensor:
        """Normal noise of a tensor's shape, type and device."""
        return (torch.special.ndtri(self.uniform(*like.shape)) * deviation).to(like)


def teaching_seed() -> int:
    """The knob of all parts that draw what privacy rests on."""
    seed: int = knob(
        -1,
        -1,
        2**31 - 1,
        "",
        "fixes noise and cohorts, so that a lesson can be repeated, and proves nothing; -1 draws "
        "them from the operating system",
        live=False,
        usual=(-1, 100),
        group="privacy",
    )
    return seed
