"""SCAFFOLD: control variates by hand, and the drift that they remove."""

from dataclasses import replace

import pytest
import torch

from fedlab.algorithms import Control, federate
from fedlab.core import Config, ParameterError, Rows, Update, norms
from fedlab.data import Columns
from fedlab.models import Model

# y = w x, two clients with one example each; the best w of client 0 is 1, of client 1 it is 2
TWO = Columns({"x": torch.tensor([1.0, 3.0]), "target": torch.tensor([1.0, 6.0])},
              torch.tensor([0, 1]), "ratings")
LINE = Model("line", "ratings", lambda g: {"w": torch.zeros(1, 1)}, lambda p, b: p["w"] * b["x"],
             {"w": "one"})


def test_control_variates_by_hand():
    control = Control({"w": torch.tensor([[1.0], [2.0]])}, Control.of(
        {}, replace(LINE, rows={"w": "item"}), {"w": torch.zeros(2, 1)}).clients)
    delta = Rows(torch.tensor([[-3.0], [4.0], [6.0]]), torch.tensor([0, 1, 1]),
                 torch.tensor([0, 0, 1]))
    weights, steps = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    sent = Update({"w": delta}, weights, torch.zeros(2), torch.tensor([2, 0]), steps)
    after = control.after([sent], Config(local_lr=0.5), total=8.0)
    # client 2, K lr = 1.5: row 0 changes by 3 / 1.5 - 1 = 1, row 1 by -4 / 1.5 - 2; client 0, K lr
    # = 0.5: -12 - 2
    kept = {k: (ids.tolist(), values.flatten().tolist()) for k,
            (ids, values) in after.clients["w"].items()}
    assert kept == {2: ([0, 1], pytest.approx([1.0, -4 / 1.5 - 2])), 0: ([1], [-14.0])}
    torch.testing.assert_close(after.server["w"][:, 0],
                               torch.tensor([1 + 1 / 8, 2 + (-4 / 1.5 - 2 - 3 * 14) / 8]))
    ids, client, cohort = torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]), torch.tensor([0, 2])
    torch.testing.assert_close(after.shift("w", ids, client, cohort),
                               after.server["w"][ids] + torch.tensor([[14.0], [0.0], [-1.0]]))


def test_scaffold_finds_the_optimum_that_fedavg_drifts_from():
    # mean loss ((w - 1)^2 + (3w - 6)^2) / 2 is least at w = (1 + 18) / (1 + 9) = 1.9
    config = Config(rounds=300, cohort=2, local_epochs=10, local_lr=0.02, batch_size=0)
    ends = {name: list(federate(LINE, TWO, replace(config, correction=name)))[-1]
            for name in ("none", "scaffold")}
    assert float(ends["scaffold"].params["w"]) == pytest.approx(1.9, abs=1e-4)
    assert abs(float(ends["none"].params["w"]) - 1.9) > 0.05
    # at the optimum c is 0 and c_i the client's own gradient
    control = ends["scaffold"].state["control"]
    assert float(control.server["w"]) == pytest.approx(0, abs=1e-3)
    assert [float(control.clients["w"][k][1]) for k in (0, 1)] == pytest.approx([1.8, -1.8],
                                                                                abs=1e-2)


@pytest.mark.parametrize(("weighting", "best"), [("equal", 1.9), ("examples", (2 + 18) / (2 + 9))])
def test_the_optimum_is_the_one_that_the_weights_say(weighting, best):
    three = Columns({"x": torch.tensor([1.0, 1.0, 3.0]), "target": torch.tensor([1.0, 1.0, 6.0])},
                    torch.tensor([0, 0, 1]), "ratings")
    config = Config(rounds=300, cohort=2, local_epochs=10, local_lr=0.02, batch_size=0,
                    correction="scaffold", weighting=weighting)
    *_, end = federate(LINE, three, config)
    assert float(end.params["w"]) == pytest.approx(best, abs=1e-4)


def test_fedprox_holds_clients_back():
    config = Config(rounds=1, cohort=2, local_epochs=20, local_lr=0.02, batch_size=0)
    (free,), (held,) = (list(federate(LINE, TWO, replace(config, proximal=mu))) for mu in (0.0,
                                                                                           10.0))
    assert (held.norms < free.norms).all()
    assert float(norms({"w": Rows(torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]))}, 1)) == 1


def test_a_resumed_run_keeps_the_control_variates(build, clicks):
    model = build("matrix factorisation", clicks.train)
    config = Config(rounds=4, cohort=8, correction="scaffold")
    whole = list(federate(model, clicks, config))
    resumed = list(federate(model, clicks, config, start=whole[1]))
    assert all(torch.equal(whole[-1].params[n], resumed[-1].params[n]) for n in whole[-1].params)


@pytest.mark.parametrize(("wrong", "message"),
                         [({"optimizer": "adamw"}, "correction='scaffold'.*optimizer='sgd'"),
                          ({"local_lr": 0.0}, "local_lr=0.0: SCAFFOLD divides by it")])
def test_what_has_no_control_variates_is_refused(wrong, message):
    with pytest.raises(ParameterError, match=message):
        next(federate(LINE, TWO, Config(cohort=2, correction="scaffold", **wrong)))
