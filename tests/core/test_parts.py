"""Parts state facts, one walk refuses what is not sound, and a turned knob has a reader."""

import pytest
import torch

from fedlab.aggregation import (
    CoordinateMedian,
    Krum,
    MeanOfHolders,
    ServerStep,
    TrimmedMean,
    WeightedMean,
)
from fedlab.algorithms import Buffered, Implicit, Participation, Scaffold, Synchronous, sample
from fedlab.attacks import Poison
from fedlab.communication import ErrorFeedback
from fedlab.core import (
    Aggregation,
    ParameterError,
    Part,
    Round,
    RoundContext,
    Settings,
    Stage,
    check_read,
    turned,
    walk,
)
from fedlab.engine import SGD
from fedlab.privacy import Clip, GaussianNoise, LocalNoise, SecureSum


class Own(Stage):
    """A stage whose facts a test chooses."""

    def __init__(self, name, needs=(), refuses=(), adds=None, side="client", keeps=()):
        self.name, self.needs, self.refuses = name, needs, refuses
        self.added, self.side, self.keeps = adds or {}, side, keeps

    def adds(self):
        return self.added


def facts_behind(*parts, **facts):
    """What a last part finds in front of it."""
    return walk([*parts, Own("the last")], facts)["the last"]


def test_each_part_finds_the_facts_in_front_of_it_with_their_values():
    found = walk(
        [
            Participation(late=0.5),
            Synchronous(),
            SGD(),
            Clip(clip=2.0),
            GaussianNoise(),
            WeightedMean(),
        ],
        {"negatives": True},
    )
    assert found["participation"] == {"negatives": True}
    assert found["sgd"] == {"negatives": True, "members": 0.5}
    assert found["gaussian noise"]["clipped"] == 2.0
    assert found["gaussian noise"]["equal"]
    behind = found["weighted mean"]
    assert behind["clipped"] == 2.0  # noise keeps it
    assert behind["noised"]
    assert behind["summed"]


def test_a_stage_takes_fragile_facts_away_unless_it_keeps_them():
    clipped = Own("clipping", adds={"clipped": 1.0, "equal": True})
    assert "clipped" not in facts_behind(clipped, Own("other"))
    assert "equal" not in facts_behind(clipped, Own("other"))
    kept = facts_behind(clipped, Own("other", keeps=("equal",)))
    assert "equal" in kept
    assert "clipped" not in kept
    assert facts_behind(clipped, Own("other", adds={"clipped": 3.0}))["clipped"] == 3.0
    assert facts_behind(Own("coding", adds={"coded": True}), Own("other"))["coded"]


def test_a_missing_fact_is_named_with_the_parts_that_give_it():
    with pytest.raises(
        ParameterError,
        match=r"^gaussian noise: needs a bound on the length of every update; put clip in front of "
        r"it$",
    ):
        walk([GaussianNoise()], {})
    with pytest.raises(
        ParameterError, match="own: needs a moon; no registered part adds 'a moon'; known"
    ):
        walk([Own("own", needs=("a moon",))], {})


def test_a_fact_that_another_part_took_away_is_named_with_that_part():
    with pytest.raises(
        ParameterError,
        match=r"^gaussian noise: needs a bound on the length of every update; error feedback took "
        r"it away: put them in the order error feedback, clip, gaussian noise, or leave one of "
        r"them out$",
    ):
        walk([Clip(), ErrorFeedback(), GaussianNoise()], {})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [Clip(), SecureSum(), CoordinateMedian()],
            "coordinate median: needs every client's own update, which secure sum takes away;",
        ),
        ([Clip(), SecureSum(), Krum()], "krum: needs every client's own update, which secure sum"),
        (
            [Clip(), GaussianNoise(), TrimmedMean()],
            "trimmed mean: needs every client's own update, which gaussian noise",
        ),
        (
            [Clip(), GaussianNoise(), MeanOfHolders()],
            "mean of holders: needs every client's own update",
        ),
        (
            [Clip(), GaussianNoise(), LocalNoise()],
            "local noise: needs updates without noise, which gaussian noise",
        ),
        (
            [ErrorFeedback(), Clip(), LocalNoise()],
            "local noise: needs updates whose every number is sent in full, which error feedback",
        ),
        (
            [ErrorFeedback(), Clip(), SecureSum()],
            "secure sum: needs updates whose every number is sent in full",
        ),
        (
            [Clip(quantile=0.5), LocalNoise()],
            "local noise: needs nobody's length counted, which clip",
        ),
        (
            [Clip(), LocalNoise(), SecureSum()],
            "secure sum: needs a bound on the length .*; local noise took it away",
        ),
        (
            [Clip(), GaussianNoise(), SecureSum()],
            "secure sum: needs every client's own update, which gaussian noise",
        ),
        (
            [Buffered(), Clip(), GaussianNoise()],
            "gaussian noise: needs updates of this very round, which buffered",
        ),
        ([Buffered(), Scaffold()], "scaffold: needs updates of this very round, which buffered"),
        (
            [Participation(early=0.1), Buffered()],
            r"buffered: needs the same clients in every round \(late=0 and early=0\), which "
            r"participation",
        ),
        (
            [Participation(sampler=sample), Buffered()],
            "buffered: needs cohorts whose chances are known, as of no sampler of your own, which",
        ),
        (
            [Participation(sampler=sample), Clip(), GaussianNoise()],
            "gaussian noise: needs cohorts whose chances are known",
        ),
        (
            [Participation(sampling="poisson"), Buffered()],
            r"buffered: needs a cohort of fixed size \(sampling='fixed'\), which participation",
        ),
        (
            [Implicit(), Krum()],
            "krum: needs updates that are right number by number, not as a Gram matrix is, which "
            "implicit",
        ),
        (
            [Own("kept", side="server"), Own("late")],
            "late: needs updates that are still with their clients, which kept",
        ),
        (
            [Own("sum", side="sum"), Own("late")],
            "late: needs updates that are still with their clients, which sum",
        ),
        (
            [Own("sum", side="sum"), Own("late", side="server")],
            "late: needs every client's own update, which sum",
        ),
        ([Clip(), Clip()], "parts='clip': it is there twice; leave one of them out"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name_with_a_way_out(parts, message):
    with pytest.raises(ParameterError, match=message):
        walk(parts, {})


@pytest.mark.parametrize(
    "parts",
    [
        [Poison(), ErrorFeedback(), Clip(), GaussianNoise(), WeightedMean()],
        [Clip(), SecureSum(), GaussianNoise(), WeightedMean()],
        [Clip(), LocalNoise(), CoordinateMedian()],
        [Clip(quantile=0.5), GaussianNoise(), WeightedMean()],
        [Buffered(), ErrorFeedback(), Krum()],
        [Implicit(), Clip(), WeightedMean()],
        [Participation(sampling="poisson"), Synchronous(), Scaffold(), Clip(), GaussianNoise()],
    ],
)
def test_what_goes_together_passes(parts):
    assert list(walk(parts, {})) == [part.name for part in parts]


def test_a_fact_of_the_data_can_be_refused():
    with pytest.raises(ParameterError, match="own: needs to be without negatives, which the data"):
        walk([Own("own", refuses=("negatives",))], {"negatives": True})


def read(parts, facts=None, **settings):
    """Check that something in these parts reads the turned knobs."""
    parts = [turned(part, Settings(**settings)) for part in parts]
    check_read(parts, walk(parts, facts or {}), Settings(**settings))


def test_a_turned_knob_needs_a_reader():
    read([SGD(), WeightedMean()], local_lr=0.1, weighting="equal")
    with pytest.raises(
        ParameterError, match=r"clip=2\.0: nothing in this run reads it; clip would"
    ):
        read([SGD(), WeightedMean()], clip=2.0)
    with pytest.raises(
        ParameterError,
        match=r"noise=2\.0: nothing in this run reads it beside clip; gaussian noise, local noise, "
        r"distributed gaussian would",
    ):
        read([SGD(), Clip()], noise=2.0)


@pytest.mark.parametrize(
    ("parts", "knob", "message"),
    [
        (
            [ServerStep()],
            {"server_momentum": 0.5},
            "server_momentum=0.5: server step does not read it in this combination; leave",
        ),
        (
            [Clip(), WeightedMean()],
            {"weighting": "equal"},
            "weighting='equal': weighted mean does not read it",
        ),
        ([SGD()], {"negatives": 2}, "negatives=2: sgd does not read it in this combination"),
        ([Buffered()], {"staleness_b": 2.0}, "staleness_b=2.0: buffered does not read it"),
        ([Buffered(method="fedasync")], {"buffer": 4}, "buffer=4: buffered does not read it"),
        ([Poison()], {"deviation": 2.0}, "deviation=2.0: poison does not read it"),
        ([Poison(attack="noisy")], {"factor": 2.0}, "factor=2.0: poison does not read it"),
    ],
)
def test_a_knob_without_effect_in_a_combination_is_refused(parts, knob, message):
    with pytest.raises(ParameterError, match=message):
        read(parts, **knob)


def test_one_reader_is_enough():
    read([SGD()], {"negatives": True}, negatives=2)
    read([ServerStep(server_optimizer="adam")], server_momentum=0.5)
    read([Buffered(staleness="hinge")], staleness_b=2.0)

    class Sum(Aggregation):
        """Reads a knob that the other part leaves alone."""

        name = "sum"

    with pytest.raises(
        ParameterError,
        match="weighting='equal': nothing in this run reads it beside sum; weighted mean, ",
    ):
        read([Sum()], weighting="equal")


def test_a_part_is_turned_by_its_own_knobs_alone():
    part = Clip(quantile=0.5)
    settings = Settings(clip=3.0, rounds=2)
    assert (turned(part, settings).clip, turned(part, settings).quantile) == (3.0, 0.5)
    assert turned(part, Settings(rounds=2)) is part
    assert part.clip == 1.0


def test_a_context_keeps_a_parts_memory_under_its_name_and_hands_out_facts():
    before = Round(4, Settings(seed=3), {})
    state = {}
    round_ = RoundContext(
        None,
        None,
        before.settings,
        before,
        {},
        state,
        3,
        {"clip": {"coded": True}},
        asked={"w": (torch.zeros(2, 1), "item")},
    )
    round_.memory(Clip())["clip"] = 2.0
    assert state == {"clip": {"clip": 2.0}}
    assert round_.fact(Clip(), "coded")
    assert (round_.number, round_.seed, list(round_.server)) == (5, 3, ["w"])
    assert round_.expected == 1.0  # nobody was drawn


def test_a_part_says_little_by_itself():
    assert Part().adds() == {}
    assert Part().idle({}) == ()
    part = Clip()
    assert part.ready(None) is part
    assert Stage().spends(None) == ()
