"""Ensembles and what is distilled from them, by hand."""

from dataclasses import replace

import pytest
import torch
from test_selection import LINE, SENT, SERVER, value

from fedlab.aggregation import Distilled, distil, ensemble, local_models
from fedlab.core import ParameterError
from fedlab.engine import LocalSettings
from fedlab.models import Model, linear


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
    local = LocalSettings(local_epochs=100, batch_size=0, local_lr=0.1)
    student = distil(model, SERVER, ensemble(model, models), users, items, local)
    assert student["theta"].flatten().tolist() == pytest.approx([10 / 3, 0.0], abs=1e-3)
    pairs = {"model": model, "users": users, "items": items, "local": local}
    one = Distilled(**pairs, pick=lambda update, server: torch.tensor([0.0, 1.0, 0.0]))
    assert value(one([SENT], SERVER)) == pytest.approx(4.0, abs=1e-2)
    assert value(Distilled(**pairs)([SENT], SERVER)) == pytest.approx(7 / 3, abs=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble(LINE, [SERVER], [-1.0]), "weights=.*give 1 weights of 0 or more"),
        (lambda: ensemble(LINE, [], []), "weights="),
        (lambda: ensemble(LINE, [SERVER], [0.0]), "not all 0"),
        (
            lambda: ensemble(
                Model("x", "clicks", dict, dict, {"user": "user"}, frozenset({"user"})), [SERVER]
            ),
            "private rows",
        ),
    ],
)
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
