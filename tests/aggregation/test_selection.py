"""Model selection, quality weights, ensembles and distillation.

By hand, and on platforms of which one is broken.
"""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

from fedlab.aggregation import (
    HeldOut,
    as_update,
    by_quality,
    distil,
    distilled,
    ensemble,
    judge,
    local_models,
    select,
    weighted_mean,
    whole,
)
from fedlab.core import Config, ParameterError, Rows, Update
from fedlab.evaluation import Candidates
from fedlab.models import Model, content, genre_profile, linear

# y = w x_item; the features of items 0, 1, 2
LINE = linear(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(4, 0))
SERVER = {"theta": torch.tensor([[[1.0], [0.0]]])}
DELTAS = torch.tensor([[[1.0], [0.0]], [[4.0], [0.0]], [[2.0], [0.0]]])  # models w = 2, 5, 3
SENT = Update({"theta": Rows(DELTAS, torch.zeros(3).long(), torch.arange(3))},
              torch.tensor([1.0, 1.0, 2.0]), torch.zeros(3), torch.tensor([0, 1, 2]), torch.ones(3))
OWNER = torch.tensor([0, 1, 2, 2])
# user 0 and 1 hold w = 2, user 2 and 3 hold w = 3
HELD = HeldOut.ratings(tiny([0, 1, 2, 3], [1, 1, 1, 2], [4.0, 4.0, 6.0, 9.0]))
SHARED, OWN = judge(LINE, HELD, OWNER), judge(LINE, HELD, OWNER, own=True)


def value(delta):
    return float(whole(delta["theta"], SERVER["theta"])[0, 0, 0])


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
    assert value(select(SHARED)([SENT], SERVER)) == 2.0                            # w = 3
    assert value(select(SHARED, keep=2)([SENT], SERVER)) == pytest.approx((1 + 2 * 2) / 3)
    assert value(select(OWN)([SENT], SERVER)) == 1.0  # a tie: the first
    assert value(select(SHARED, keep=9)([SENT], SERVER)) == value(weighted_mean([SENT], SERVER))
    parts = [SENT.only(torch.tensor([True, False, False])),
             SENT.only(torch.tensor([False, True, True]))]
    assert value(select(SHARED)(parts, SERVER)) == 2.0


def test_quality_weights_by_hand():
    trust = torch.tensor([-13 / 4, -31.0, -2.0]).softmax(0) * torch.tensor([1.0, 1.0, 2.0])
    expected = float((trust / trust.sum() * torch.tensor([1.0, 4.0, 2.0])).sum())
    assert value(by_quality(SHARED, temperature=1.0)([SENT], SERVER)) == pytest.approx(expected)
    alike = value(by_quality(SHARED, temperature=1e9)([SENT], SERVER))
    assert alike == pytest.approx(value(weighted_mean([SENT], SERVER)))


def test_models_from_elsewhere_are_an_update():
    models = list(local_models(SENT, SERVER))
    assert [float(m["theta"][0, 0, 0]) for m in models] == [2.0, 5.0, 3.0]
    again = as_update(models, SERVER, torch.tensor([1.0, 1.0, 2.0]))
    assert torch.equal(again.deltas["theta"].values, DELTAS)
    assert value(weighted_mean([again], SERVER)) == value(weighted_mean([SENT], SERVER))


def test_an_ensemble_by_hand():
    models = list(local_models(SENT, SERVER))
    users, items = torch.tensor([0, 1]), torch.tensor([1, 2])
    assert ensemble(LINE, models)(users, items).tolist() == pytest.approx([20 / 3, 10.0])
    assert ensemble(LINE, models, [0, 1, 3])(users, items).tolist() == pytest.approx([7.0, 10.5])
    clicks = replace(LINE, task="clicks")
    mean = (2 * torch.tensor([2.0, 5.0, 3.0])).sigmoid().mean()
    assert float(ensemble(clicks, models)(users, items)[0].sigmoid()) == pytest.approx(float(mean))


def test_distilling_finds_the_model_that_predicts_as_the_ensemble():
    models = list(local_models(SENT, SERVER))
    users, items = torch.zeros(3).long(), torch.tensor([0, 1, 2])
    model = linear(torch.tensor([[-2.0], [0.0], [2.0]]), torch.zeros(4, 0))
    config = Config(cohort=1, local_epochs=100, batch_size=0, local_lr=0.1)
    student = distil(model, SERVER, ensemble(model, models), users, items, config)
    assert student["theta"].flatten().tolist() == pytest.approx([10 / 3, 0.0], abs=1e-3)
    weights = distilled(model, users, items, config, pick=lambda u,
                        s: torch.tensor([0.0, 1.0, 0.0]))
    assert value(weights([SENT], SERVER)) == pytest.approx(4.0, abs=1e-2)
    assert value(distilled(model, users, items, config)([SENT], SERVER)) == pytest.approx(7 / 3,
                                                                                          abs=1e-2)


def test_a_broken_platform_harms_the_mean_and_not_the_selection():
    good = [{"theta": torch.tensor([[[3.0], [0.0]]])} for _ in range(4)]
    models = as_update([*good, {"theta": torch.tensor([[[-50.0], [0.0]]])}], SERVER)
    losses = judge(LINE, HELD, OWNER)
    assert value(weighted_mean([models], SERVER)) < -5
    assert value(select(losses)([models], SERVER)) == 2.0
    assert value(by_quality(losses)([models], SERVER)) == pytest.approx(2.0)


def test_content_predicts_from_shared_parameters_only(split, clicks):
    genres = split.train.catalogue.genres.float()
    profile = genre_profile(split.train)
    assert profile.shape == (671, genres.shape[1])
    model = content(genres, profile, hidden=8)
    assert not model.private
    x = torch.cat([genres[5], profile[7], genres[5] * profile[7]])
    p = model.init(0)
    p["bias"][5] = 0.5
    by_hand = (x @ p["w1"][0] + p["b1"][0]).relu() @ p["w2"][0] + p["b2"][0, 0] + 0.5
    rows = {n: v[torch.tensor([[5]])] if n == "bias" else v for n, v in p.items()}
    torch.testing.assert_close(model.predict(rows | model.constants, {"user": torch.tensor([[7]]),
                                                                      "item": torch.tensor([[5]])})[
        0, 0], by_hand)


@pytest.mark.parametrize(("call", "message"), [(lambda: select(SHARED, 0), "keep=0"),
                                               (lambda: by_quality(SHARED, 0.0), "temperature=0.0"),
                                               (lambda: ensemble(LINE, [SERVER], [-1.0]),
                                                "weights=.*give 1 weights of 0 or more"),
                                               (lambda: ensemble(LINE, [], []), "weights="),
                                               (lambda: ensemble(LINE, [SERVER], [0.0]),
                                                "not all 0"),
                                               (lambda: ensemble(Model("x", "clicks", dict, dict,
                                                                       {"user": "user"},
                                                                       frozenset({"user"})),
                                                                 [SERVER]), "private rows"),
                                               (lambda: content(torch.zeros(3, 4), torch.zeros(2,
                                                                                               3)),
                                                "give 4 columns or more"),])
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
