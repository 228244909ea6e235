"""Real numbers as words, so that they can be added under masks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlab.core import require
from fedlab.privacy.secure.keys import Words


@dataclass(frozen=True)
class FixedPoint:
    """Numbers from -bound to bound as words mod 2^32, such that a sum of `clients` cannot overflow.

    One unit is about bound * clients / 2^31; a sum is off by at most half a unit for each client.
    Raises `ParameterError` for a bound that is not positive and for less than one client.

    >>> fixed = FixedPoint(bound=1.0, clients=2)
    >>> total = fixed.encode(np.array([0.5])) + fixed.encode(np.array([-0.25]))
    >>> round(float(fixed.decode(total)[0]), 6)
    0.25
    """

    bound: float
    clients: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.bound < float("inf"), "bound", self.bound, "choose a positive number")
        require(1 <= self.clients < 2**20, "clients", self.clients, "choose from 1 to a million")

    @property
    def unit(self) -> float:
        """The value of one unit."""
        return self.bound * self.clients / (2**31 - self.clients)

    def encode(self, values: NDArray[np.float64]) -> Words:
        """Words of values; `ParameterError` for one beyond the bound, which could wrap around."""
        worst = float(np.abs(values).max(initial=0.0))
        require(
            worst <= self.bound,
            "values",
            worst,
            f"beyond the bound {self.bound:g} sums overflow; clip first",
        )
        return np.rint(values / self.unit).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> NDArray[np.float64]:
        """The sum that words (D,) stand for."""
        return total.astype(np.int32).astype(np.float64) * self.unit
