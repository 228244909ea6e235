"""Model selection and quality weights: by hand, and on platforms of which one is broken."""

import pytest
import torch
from conftest import tiny

from fedlab.aggregation import (
    BestModels,
    ByQuality,
    HeldOut,
    WeightedMean,
    as_update,
    judge,
    local_models,
)
from fedlab.core import ParameterError, Rows, Update
from fedlab.evaluation import Candidates
from fedlab.models import linear

# y = w x_item; the features of items 0, 1, 2
LINE = linear(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(4, 0))
SERVER = {"theta": torch.tensor([[[1.0], [0.0]]])}
DELTAS = torch.tensor([[[1.0], [0.0]], [[4.0], [0.0]], [[2.0], [0.0]]])  # models w = 2, 5, 3
SENT = Update(
    {"theta": Rows(DELTAS, torch.zeros(3).long(), torch.arange(3))},
    torch.tensor([1.0, 1.0, 2.0]),
    torch.zeros(3),
    torch.tensor([0, 1, 2]),
    torch.ones(3),
)
OWNER = torch.tensor([0, 1, 2, 2])
# user 0 and 1 hold w = 2, user 2 and 3 hold w = 3
HELD = HeldOut.ratings(tiny([0, 1, 2, 3], [1, 1, 1, 2], [4.0, 4.0, 6.0, 9.0]))
SHARED, OWN = judge(LINE, HELD, OWNER), judge(LINE, HELD, OWNER, own=True)


def value(delta):
    return float(delta["theta"][0, 0, 0])


def test_held_out_losses_by_hand():
    # on all: w = 2: 0, 0, 4, 9; w = 5: 36, 36, 16, 36; w = 3: 4, 4, 0, 0
    assert SHARED(SENT, SERVER).tolist() == pytest.approx([13 / 4, 124 / 4, 8 / 4])
    assert OWN(SENT, SERVER).tolist() == pytest.approx([0.0, 36.0, 0.0])
    nobody = judge(LINE, HELD, torch.tensor([0, 2, 2, 2]), own=True)
    assert nobody(SENT, SERVER).tolist()[1] == float("inf")


def test_clicks_weigh_positive_and_negatives_alike():
    held = HeldOut.clicks(Candidates(torch.tensor([3]), torch.tensor([0]), torch.tensor([[1, 2]])))
    assert held.users.tolist() == [3, 3, 3]
    assert (held.items.tolist(), held.targets.tolist()) == ([0, 1, 2], [1.0, 0.0, 0.0])
    assert held.weights.tolist() == [0.5, 0.25, 0.25]


def test_selection_by_hand():
    assert value(BestModels(judge=SHARED)([SENT], SERVER)) == 2.0  # w = 3
    assert value(BestModels(judge=SHARED, keep=2)([SENT], SERVER)) == pytest.approx((1 + 2 * 2) / 3)
    assert value(BestModels(judge=OWN)([SENT], SERVER)) == 1.0  # a tie: the first
    everybody = BestModels(judge=SHARED, keep=9)([SENT], SERVER)
    assert value(everybody) == value(WeightedMean()([SENT], SERVER))
    parts = [
        SENT.only(torch.tensor([True, False, False])),
        SENT.only(torch.tensor([False, True, True])),
    ]
    assert value(BestModels(judge=SHARED)(parts, SERVER)) == 2.0


def test_quality_weights_by_hand():
    trust = torch.tensor([-13 / 4, -31.0, -2.0]).softmax(0) * torch.tensor([1.0, 1.0, 2.0])
    expected = float((trust / trust.sum() * torch.tensor([1.0, 4.0, 2.0])).sum())
    found = ByQuality(judge=SHARED, temperature=1.0)([SENT], SERVER)
    assert value(found) == pytest.approx(expected)
    small = ByQuality(judge=lambda update, server: SHARED(update, server) / 1000, temperature=1e6)
    assert value(small([SENT], SERVER)) == pytest.approx(value(WeightedMean()([SENT], SERVER)))


def test_models_from_elsewhere_are_an_update():
    models = list(local_models(SENT, SERVER))
    assert [float(m["theta"][0, 0, 0]) for m in models] == [2.0, 5.0, 3.0]
    again = as_update(models, SERVER, torch.tensor([1.0, 1.0, 2.0]))
    assert torch.equal(again.deltas["theta"].values, DELTAS)
    assert value(WeightedMean()([again], SERVER)) == value(WeightedMean()([SENT], SERVER))


def test_a_broken_platform_harms_the_mean_and_not_the_selection():
    good = [{"theta": torch.tensor([[[3.0], [0.0]]])} for _ in range(4)]
    models = as_update([*good, {"theta": torch.tensor([[[-50.0], [0.0]]])}], SERVER)
    losses = judge(LINE, HELD, OWNER)
    assert value(WeightedMean()([models], SERVER)) < -5
    assert value(BestModels(judge=losses)([models], SERVER)) == 2.0
    assert value(ByQuality(judge=losses)([models], SERVER)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BestModels(judge=SHARED, keep=0), "keep=0"),
        (lambda: ByQuality(judge=SHARED, temperature=0.0), "temperature=0.0"),
        (
            lambda: BestModels()([SENT], SERVER),
            "judge=None: give the aggregation a judge, say judge",
        ),
        (lambda: ByQuality()([SENT], SERVER), "judge=None"),
    ],
)
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()


def test_an_experiment_brings_the_judge_that_none_was_given():
    class Experiment:
        def judge(self):
            return SHARED

    assert value(BestModels().ready(Experiment())([SENT], SERVER)) == 2.0
    own = BestModels(judge=OWN)
    assert own.ready(Experiment()) is own
