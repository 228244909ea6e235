"""What an epsilon means for one client, as a bet.

Somebody bets on whether a given client took part, at even odds before, and has seen all that was
released since. Let a be the chance to bet on it where it did not take part, b to bet against it
where it did. For an (epsilon, delta)-private release no way of betting escapes

    a + e^epsilon b >= 1 - delta   and   e^epsilon a + b >= 1 - delta,

so the bet is wrong with probability (a + b) / 2 of at least (1 - delta) / (1 + e^epsilon). The same
holds of a bet on which of two data sets a client has, where neighbours differ in that.

Sources: Wasserman, Zhou 2010, "A statistical framework for differential privacy", theorem 2.4;
Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy", theorem 2.1.
"""

import math

from fedlab.core import require

MANY = 1_000_000  # times right for each time wrong, beyond which nobody counts


def bet(epsilon: float, delta: float = 0.0) -> float:
    """How often a bet on one client is right at most, after all that was released: 0.5 to 1.

    It is (e^epsilon + delta) / (1 + e^epsilon); see above. epsilon: 0 or more, infinite where
    nothing is proven. delta: from 0 to 1. Raises `ParameterError` for others.

    >>> round(bet(1.0), 3), round(bet(4.0, delta=1e-3), 3), bet(0.0)
    (0.731, 0.982, 0.5)
    """
    return 1.0 - _wrong(epsilon, delta)


def bet_in_words(epsilon: float, delta: float = 0.0) -> str:
    """The same as people say it, never less than it is.

    >>> bet_in_words(1.0), bet_in_words(8.0)
    ('at most 74 of 100 times', 'at most 2,981 times for each time that it is wrong')
    """
    wrong = _wrong(epsilon, delta)
    right = math.ceil(100 * (1 - wrong))
    if right < 100:
        return f"at most {right} of 100 times"
    if wrong * MANY < 1:
        return f"over {MANY:,} times for each time that it is wrong, if not always"
    return f"at most {math.ceil((1 - wrong) / wrong):,} times for each time that it is wrong"


def _wrong(epsilon: float, delta: float) -> float:
    """How often a bet is wrong at least."""
    require(epsilon >= 0, "epsilon", epsilon, "choose a number from 0")
    require(0 <= delta <= 1, "delta", delta, "choose a number from 0 to 1")
    return (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))
