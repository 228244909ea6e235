"""What an epsilon means as a bet, against hand calculations and a bet that reaches the bound."""

import math

import pytest

from fedlab.core import ParameterError
from fedlab.privacy import bet, bet_in_words, gaussian_epsilon


def test_a_bet_by_hand():
    # ln 3: odds of 3 to 1; ln 3 with delta 0.2: (3 + 0.2) / 4; nothing released: a coin
    assert bet(math.log(3)) == pytest.approx(0.75)
    assert bet(math.log(3), delta=0.2) == pytest.approx(0.8)
    assert (bet(0.0), bet(0.0, delta=1.0), bet(math.inf)) == (0.5, 1.0, 1.0)


def test_randomised_response_reaches_it():
    # who answers truly with probability 3/4 is ln 3 private, and a bet on the answer right as often
    right, epsilon = 0.75, math.log(0.75 / 0.25)
    assert bet(epsilon) == pytest.approx(right)


@pytest.mark.parametrize("drift", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.05])
def test_no_bet_on_a_gaussian_is_right_more_often(drift, delta):
    # the best bet between two normal numbers is right with probability Phi(drift / 2)
    best = 0.5 * math.erfc(-drift / 2 / math.sqrt(2))
    assert best <= bet(gaussian_epsilon(drift, delta), delta) + 1e-12


def test_the_bound_on_a_gaussian_is_near_where_delta_is_chosen_well():
    # at epsilon 0 the delta of a Gaussian is the total variation, and the bound exact
    best = 0.5 * math.erfc(-0.5 / 2 / math.sqrt(2))
    assert bet(0.0, delta=2 * best - 1) == pytest.approx(best)


def test_in_words_by_hand():
    assert bet_in_words(0.0) == "at most 50 of 100 times"
    assert bet_in_words(math.log(3), 0.2) == "at most 80 of 100 times"
    # e^6 = 403.4 to 1; (e^6 + 0.001) / 0.999 = 403.8 to 1
    assert bet_in_words(6.0, 1e-3) == "at most 404 times for each time that it is wrong"
    assert bet_in_words(16.35).startswith("over 1,000,000 times")
    assert bet_in_words(math.inf).startswith("over 1,000,000 times")


def test_words_never_say_less_than_the_bound():
    for step in range(200):
        words, odds = bet_in_words(step / 20), math.exp(step / 20)
        first = int(words.split()[2].replace(",", ""))
        share = first / 100 if "of 100" in words else first / (first + 1)
        assert share >= odds / (1 + odds) - 1e-12


@pytest.mark.parametrize(("epsilon", "delta"), [(-0.1, 0.0), (math.nan, 0.0), (1.0, 1.1)])
def test_what_cannot_be_is_refused(epsilon, delta):
    with pytest.raises(ParameterError, match=r"epsilon=|delta="):
        bet(epsilon, delta)
