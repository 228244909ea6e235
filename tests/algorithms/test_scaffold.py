"""SCAFFOLD: control variates by hand, and the drift that they remove."""

import pytest
import torch
from conftest import context

from fedlab.aggregation import WeightedMean
from fedlab.algorithms import Buffered, Control, Scaffold, federate
from fedlab.core import ParameterError, Rows, Settings, Update
from fedlab.data import Columns
from fedlab.models import Model
from fedlab.privacy import Clip

# y = w x, two clients with one example each; the best w of client 0 is 1, of client 1 it is 2
TWO = Columns(
    {"x": torch.tensor([1.0, 3.0]), "target": torch.tensor([1.0, 6.0])},
    torch.tensor([0, 1]),
    "ratings",
)
LINE = Model(
    "line",
    "ratings",
    lambda seed: {"w": torch.zeros(1, 1)},
    lambda p, b: p["w"] * b["x"],
    {"w": "one"},
)
LONG = Settings(rounds=300, cohort=2, local_epochs=10, local_lr=0.02, batch_size=0)


def test_control_variates_by_hand():
    shared = {"w": torch.tensor([[1.0], [2.0]])}
    control = Control(shared, Control.of(shared).clients)
    delta = Rows(
        torch.tensor([[-3.0], [4.0], [6.0]]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    )
    weights, steps = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    sent = Update({"w": delta}, weights, torch.zeros(2), torch.tensor([2, 0]), steps)
    after, changes = control.moved(sent, 0.5)
    # client 2, K lr = 1.5: row 0 changes by 3 / 1.5 - 1 = 1, row 1 by -4 / 1.5 - 2
    # client 0, K lr = 0.5: row 1 changes by -12 - 2
    expected = [1.0, -4 / 1.5 - 2, -14.0]
    assert changes["w"].values.flatten().tolist() == pytest.approx(expected)
    kept = {
        k: (ids.tolist(), values.flatten().tolist())
        for k, (ids, values) in after.clients["w"].items()
    }
    assert kept == {2: ([0, 1], pytest.approx(expected[:2])), 0: ([1], [-14.0])}
    assert after.server["w"] is shared["w"]  # it moves when a round is aggregated
    ids, client, cohort = torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]), torch.tensor([0, 2])
    torch.testing.assert_close(
        after.shift("w", ids, client, cohort),
        shared["w"][ids] + torch.tensor([[14.0], [0.0], [-1.0]]),
    )


def test_the_servers_variate_follows_the_share_of_the_mean_change():
    part, round_ = Scaffold(), context(LINE, TWO)
    server = {"w": torch.zeros(1, 1), "control of w": torch.zeros(1, 1)}
    ids, client = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    sent = Update(
        {
            "w": Rows(torch.tensor([[1.0], [5.0]]), ids, client),
            "control of w": Rows(torch.tensor([[2.0], [-6.0]]), ids, client),
        },
        torch.tensor([1.0, 3.0]),
        torch.zeros(2),
        torch.arange(2),
        torch.ones(2),
    )
    round_.memory(part)["control"] = Control({"w": torch.tensor([[1.0]])}, {"w": {}})
    round_.share = 0.5  # the cohort holds half of all examples
    delta = part.finish(WeightedMean().delta([sent], server), round_)
    assert {name: float(d) for name, d in delta.items()} == {"w": 4.0}
    assert float(round_.memory(part)["control"].server["w"]) == 1 + 0.5 * (2 - 3 * 6) / 4


def test_scaffold_finds_the_optimum_that_fedavg_drifts_from():
    # mean loss ((w - 1)^2 + (3w - 6)^2) / 2 is least at w = (1 + 18) / (1 + 9) = 1.9
    *_, drifted = federate(LINE, TWO, LONG)
    *_, end = federate(LINE, TWO, LONG, local=Scaffold())
    assert float(end.params["w"]) == pytest.approx(1.9, abs=1e-4)
    assert abs(float(drifted.params["w"]) - 1.9) > 0.05
    # at the optimum c is 0 and c_i the client's own gradient
    control = end.state["scaffold"]["control"]
    assert float(control.server["w"]) == pytest.approx(0, abs=1e-3)
    assert [float(control.clients["w"][k][1]) for k in (0, 1)] == pytest.approx(
        [1.8, -1.8], abs=1e-2
    )


@pytest.mark.parametrize(("weighting", "best"), [("equal", 1.9), ("examples", (2 + 18) / (2 + 9))])
def test_the_optimum_is_the_one_that_the_weights_say(weighting, best):
    three = Columns(
        {"x": torch.tensor([1.0, 1.0, 3.0]), "target": torch.tensor([1.0, 1.0, 6.0])},
        torch.tensor([0, 0, 1]),
        "ratings",
    )
    *_, end = federate(LINE, three, LONG.replace(weighting=weighting), local=Scaffold())
    assert float(end.params["w"]) == pytest.approx(best, abs=1e-4)


def test_a_client_sends_its_control_beside_its_delta_and_it_is_clipped_with_it(build, clicks):
    model = build("matrix factorisation", clicks.train)
    few = Settings(rounds=1, cohort=5)
    plain = next(federate(model, clicks, few))
    done = next(federate(model, clicks, few, local=Scaffold()))
    floats = plain.bytes_down
    assert done.bytes_down == 2 * floats
    assert done.bytes_up - plain.bytes_up == floats  # the same rows, so no more row numbers
    bounded = next(
        federate(model, clicks, few.replace(clip=0.01), local=Scaffold(), uplink=[Clip()])
    )
    assert bool((bounded.norms <= 0.01 * (1 + 1e-5)).all())
    assert not bounded.rejected


def test_a_resumed_run_keeps_the_control_variates(build, clicks):
    model = build("matrix factorisation", clicks.train)
    settings = Settings(rounds=4, cohort=8)
    whole = list(federate(model, clicks, settings, local=Scaffold()))
    resumed = list(federate(model, clicks, settings, start=whole[1], local=Scaffold()))
    assert all(torch.equal(whole[-1].params[n], resumed[-1].params[n]) for n in whole[-1].params)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer='adamw': SCAFFOLD's control .* set optimizer='sgd'"),
        ({"local_lr": 0.0}, "local_lr=0.0: SCAFFOLD divides by it"),
    ],
)
def test_what_has_no_control_variates_is_refused(wrong, message):
    with pytest.raises(ParameterError, match=message):
        next(federate(LINE, TWO, Settings(cohort=2, **wrong), local=Scaffold()))


def test_stale_updates_are_refused():
    with pytest.raises(
        ParameterError,
        match="scaffold: needs updates of this very round, which buffered takes away; leave one "
        "of them out",
    ):
        next(
            federate(LINE, TWO, Settings(cohort=2, buffer=1), local=Scaffold(), schedule=Buffered())
        )
