"""Solutions of lesson 9. Try first: the checks in the notebook give hints."""

import math


def opened(masked, mask):
    """The sum of words, without the mask that somebody who dropped out left in it."""
    return (masked.sum(0) - mask) % 2**32


def bound(epsilon, false):
    """The largest share of members that any attack finds under (epsilon, 0)."""
    return min(math.exp(epsilon) * false, 1 - math.exp(-epsilon) * (1 - false))
