"""Server optimisers: each rule by hand, over two rounds, and their state through the stream."""

import pytest
import torch

from fedlab.aggregation import RULES, ServerStep
from fedlab.algorithms import federate
from fedlab.core import ParameterError, Rows, Settings

DELTAS = (torch.tensor([[1.0], [-0.5], [0.0]]), torch.tensor([[-2.0], [0.25], [0.5]]))
START = {"server_lr": 0.1, "server_momentum": 0.9, "server_beta2": 0.99, "server_epsilon": 0.01}


def server(name):
    """The server with this optimizer."""
    return ServerStep(server_optimizer=name, **START)


def by_hand(name, deltas, c):
    """The parameter after the deltas, one number at a time.

    It follows Reddi et al. 2021, algorithm 2.
    """
    found = []
    for row in range(3):
        x, m, v = 0.0, 0.0, c.server_epsilon**2
        for delta in deltas:
            d = float(delta[row])
            if name == "momentum":
                m = c.server_momentum * m + d
                x += c.server_lr * m
                continue
            m = c.server_momentum * m + (1 - c.server_momentum) * d
            sign = (v > d * d) - (v < d * d)
            v = {
                "adagrad": v + d * d,
                "adam": c.server_beta2 * v + (1 - c.server_beta2) * d * d,
                "yogi": v - (1 - c.server_beta2) * d * d * sign,
            }[name]
            x += c.server_lr * m / (v**0.5 + c.server_epsilon)
        found.append([x])
    return torch.tensor(found)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_two_steps_by_hand(name, rows):
    part, params, memory = server(name), {"w": torch.zeros(3, 1)}, {}
    for delta in DELTAS:
        kept = delta[:, 0].nonzero()[:, 0]
        sent = Rows(delta[kept], kept, torch.zeros(len(kept))) if rows else delta
        params = part.step(params, {"w": sent}, memory)
    torch.testing.assert_close(params["w"], by_hand(name, DELTAS, part), atol=1e-7, rtol=1e-6)


def test_sgd_needs_no_memory_and_another_optimizer_starts_afresh():
    params, memory = {"w": torch.zeros(3, 1)}, {}
    moved = server("sgd").step(params, {"w": DELTAS[0]}, memory)
    assert torch.equal(moved["w"], 0.1 * DELTAS[0])
    assert memory == {}
    server("yogi").step(params, {"w": DELTAS[1]}, memory)
    fresh = server("adam").step(params, {"w": DELTAS[0]}, memory)
    torch.testing.assert_close(
        fresh["w"], by_hand("adam", DELTAS[:1], server("adam")), atol=1e-7, rtol=1e-6
    )
    assert list(memory["moments"]) == ["adam w"]
    server("sgd").step(params, {"w": DELTAS[0]}, memory)
    assert memory == {}


@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_keeps_the_moments(name, build, clicks):
    model = build("matrix factorisation", clicks.train)
    settings = Settings(rounds=4, cohort=8, server_optimizer=name, server_lr=0.01)
    whole = list(federate(model, clicks, settings))
    resumed = list(federate(model, clicks, settings, start=whole[1]))
    assert [r.number for r in resumed] == [3, 4]
    for a, b in zip(whole[2:], resumed, strict=True):
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    (other, *_) = federate(model, clicks, settings.replace(server_optimizer="sgd"), start=whole[0])
    assert not torch.equal(other.params["item"], whole[1].params["item"])


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("sgd", "server_momentum"),
        ("sgd", "server_epsilon"),
        ("momentum", "server_beta2"),
        ("adagrad", "server_beta2"),
    ],
)
def test_an_optimizer_refuses_numbers_that_it_does_not_read(name, knob, build, clicks):
    turned = Settings(cohort=2, server_optimizer=name, **{knob: 0.5})
    with pytest.raises(ParameterError, match=f"{knob}=0.5: server step does not read it"):
        next(federate(build("matrix factorisation", clicks.train), clicks, turned))
