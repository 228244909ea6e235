"""What the view says beyond numbers: epsilon as a bet, cards of presets."""

import pytest
from waiting import until

from fedlab.core import ParameterError, Settings
from fedlab.privacy import bet_in_words
from fedlab.workbench import CARDS, PRESETS, Card, Workbench, better, stream

TINY = Settings(rounds=2, cohort=8, dim=4, local_lr=1.0, server_lr=50.0)
DELTA = 1e-3
NOISY = TINY.replace(uplink="clip + gaussian noise", sampling="poisson", teaching_seed=1)


def tell(bench, command, *given):
    """Send what a button sends."""
    bench._told(None, {"command": command, "given": list(given)}, None)
    return bench.notice


@pytest.fixture
def opened():
    """Make a workbench over experiments, and close it."""
    made = []

    def open_(settings, **more):
        made.append(Workbench(stream, settings, metrics=better(), **more))
        return made[-1]

    yield open_
    for bench in made:
        bench.session.runner.stop()
        bench.close()


def trained(bench):
    tell(bench, "start")
    until(lambda: bench.state in ("done", "failed"))
    assert bench.state == "done", bench.message
    return bench


@pytest.mark.parametrize(
    ("more", "who"), [({}, "person"), ({"partition": "by genre", "cohort": 4}, "client")]
)
def test_epsilon_is_told_as_a_bet_on_one_person_or_client(opened, more, who):
    bench = trained(opened(NOISY.replace(noise=2.0, delta=DELTA, **more)))
    spent = bench.rounds[-1].metrics["epsilon"]
    often = bet_in_words(spent, DELTA)
    assert f"ε {spent:.2f} spent: a bet on whether one {who}'s data are in it" in bench.message
    assert f"is right {often}" in bench.message
    assert "e^ε / (1 + e^ε)" in bench.spec["meanings"]["epsilon"]


def test_without_noise_no_bet_is_told(opened):
    assert "spent" not in trained(opened(TINY)).message


def test_a_preset_has_its_card_in_the_view(opened):
    bench = opened(TINY, presets=PRESETS)
    assert list(bench.spec["cards"]) == list(PRESETS)
    assert set(bench.spec["cards"]["stars, not clicks"]) == {"look", "ask", "answer", "turn"}


def test_presets_of_others_bring_cards_or_have_none(opened):
    mine = {"mine": TINY, "plain": TINY.replace(cohort=4)}
    card = Card("Look here.", "What is it?", "That.", "Turn the cohort.")
    assert opened(TINY, presets=mine).spec["cards"] == {}
    bench = opened(TINY, presets=mine, cards={"mine": card})
    assert bench.spec["cards"] == {
        "mine": {
            "look": "Look here.",
            "ask": "What is it?",
            "answer": "That.",
            "turn": "Turn the cohort.",
        }
    }


def test_a_card_of_nothing_is_refused(opened):
    with pytest.raises(ParameterError, match="another"):
        opened(TINY, presets={"mine": TINY}, cards={"another": next(iter(CARDS.values()))})
    with pytest.raises(ParameterError, match=r"ask=' ': write a short sentence"):
        Card("Look.", " ", "Yes.", "Turn.")
