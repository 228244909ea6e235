"""Asynchronous federations against a plain simulation, one client after another.

And against the synchronous round.
"""

from dataclasses import replace

import pytest
import torch

from fedlab.aggregation import moved
from fedlab.algorithms import (
    Asynchronous,
    Membership,
    World,
    federate,
    federate_async,
    staleness_weight,
)
from fedlab.core import Config, ParameterError, stream
from fedlab.engine import updates
from fedlab.models import item_features, linear, user_features

WORLD = World(pace=0.01, spread=1.0, delay=1.0)
CONFIG = Asynchronous(rounds=6, cohort=12, buffer=4, batch_size=0, local_lr=0.05, local_epochs=2,
                      weighting="equal")


@pytest.fixture(scope="module")
def model(stars):
    return linear(item_features(stars.train.catalogue), user_features(stars.train))


@pytest.fixture(scope="module")
def factors(build, clicks):
    return build("matrix factorisation", clicks.train)


def simulate(model, data, config, world):
    """Parameters and times of each step.

    Clients train by themselves, from a copy of the parameters at their start.
    """
    params, clock, begun, training, history = model.init(config.seed), 0.0, 0, [], []
    needed = 1 if config.method == "fedasync" else config.buffer
    for step in range(config.rounds):
        came, busy = [], {c for _, c, *_ in training}
        while len(came) < needed:
            while len(training) < config.cohort:
                generator = stream(config.seed, "start", begun)
                client = next(c for c in iter(lambda g=generator: int(torch.randint(len(data), (),
                                                                                    generator=g)),
                                              None) if c not in busy)
                took = float(world.seconds(data, torch.tensor([client]), config, f"start {begun}"))
                training.append((clock + took, client, step, {n: p.clone() for n,
                                                              p in params.items()}))
                busy.add(client)
                begun += 1
            first = min(training, key=lambda job: job[0])
            training.remove(first)
            came.append(first)
            clock = first[0]
        total = {n: torch.zeros_like(p) for n, p in params.items()}
        for _, client, at, copy in came:
            (sent,) = updates(model, data, copy, torch.tensor([client]), config)
            late = step - at
            weight = {"constant": 1.0, "polynomial": (1 + late) ** -config.staleness_a,
                      "hinge": 1.0 if late <= config.staleness_b else
                      1 / (config.staleness_a * (late - config.staleness_b) + 1)}[config.staleness]
            for n, rows in sent.deltas.items():
                own = moved(copy[n], rows, 1.0)
                change = own - params[n] if config.method == "fedasync" else own - copy[n]
                total[n] += weight * change / len(came)
        params = {n: p + config.server_lr * total[n] for n, p in params.items()}
        history.append((clock, params))
    return history


@pytest.mark.parametrize("changed", [{}, {"staleness": "constant"}, {"staleness": "hinge",
                                                                     "staleness_a": 2.0,
                                                                     "staleness_b": 1.0},
                                     {"buffer": 1}, {"method": "fedasync", "server_lr": 0.6,
                                                     "rounds": 15}, {"method": "fedasync",
                                                                     "server_lr": 0.6, "rounds": 15,
                                                                     "staleness": "hinge",
                                                                     "staleness_b": 2.0},])
def test_stacked_clients_equal_one_after_another(model, stars, changed):
    config = replace(CONFIG, **changed)
    rounds = list(federate_async(model, stars, config, world=WORLD))
    expected = simulate(model, stars, config, WORLD)
    assert [r.clock for r in rounds] == pytest.approx([clock for clock, _ in expected])
    for done, (_, params) in zip(rounds, expected, strict=True):
        torch.testing.assert_close(done.params["theta"], params["theta"], atol=1e-5, rtol=1e-4)
    assert max(r.metrics["staleness"] for r in rounds) > 1


def test_when_all_start_at_once_and_all_are_waited_for_it_is_the_synchronous_round(stars, build):
    model = build("matrix factorisation", stars.train, "ratings")
    config = Asynchronous(rounds=1, cohort=671, buffer=671, batch_size=0)
    one = next(federate_async(model, stars, config, world=WORLD))
    same = next(federate(model, stars, config, world=WORLD))
    assert one.metrics == {"staleness": 0.0}
    for name in model.rows:
        torch.testing.assert_close(one.params[name], same.params[name], atol=1e-6, rtol=1e-5)
    assert sorted(one.cohort.tolist()) == list(range(671))
    assert (one.bytes_up, one.bytes_down) == (same.bytes_up, same.bytes_down)


def test_the_weights_of_staleness_by_hand():
    late = torch.tensor([0.0, 1.0, 3.0, 8.0])
    polynomial, hinge = CONFIG, replace(CONFIG, staleness="hinge", staleness_a=2.0, staleness_b=3.0)
    assert staleness_weight(polynomial, late).tolist() == pytest.approx([1, 2**-0.5, 0.5, 1 / 3])
    assert staleness_weight(hinge, late).tolist() == pytest.approx([1, 1, 1, 1 / 11])
    assert staleness_weight(replace(CONFIG, staleness="constant"), late).tolist() == [1, 1, 1, 1]


def test_private_rows_come_with_their_clients(factors, clicks):
    config = Asynchronous(rounds=5, cohort=30, buffer=10)
    start, moved_by = factors.init(0)["user"], torch.zeros(671, dtype=torch.bool)
    for done in federate_async(factors, clicks, config, world=WORLD):
        assert len(done.cohort) == 10
        moved_by[done.cohort] = True
        changed = (done.params["user"] != start).any(1)
        assert torch.equal(changed, moved_by)


def test_the_same_seed_is_the_same_run_and_a_resumed_one_too(factors, clicks):
    config = Asynchronous(rounds=6, cohort=20, buffer=5, server_optimizer="adam", drop_out=0.2)
    whole, again = (list(federate_async(factors, clicks, config, world=WORLD)) for _ in range(2))
    resumed = list(federate_async(factors, clicks, config, world=WORLD, start=whole[2]))
    other = list(federate_async(factors, clicks, replace(config, seed=1), world=WORLD))
    for a, b in (*zip(whole, again, strict=True), *zip(whole[3:], resumed, strict=True)):
        assert (a.number, a.clock) == (b.number, b.clock)
        assert torch.equal(a.cohort, b.cohort)
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert other[0].clock != whole[0].clock
    assert any("dropped out" in r.rejected.values() for r in whole)


def test_when_everybody_drops_out_the_step_is_skipped(factors, clicks):
    done = list(federate_async(factors, clicks, replace(CONFIG, rounds=2, drop_out=1.0),
                               world=WORLD))
    assert all(r.skipped.startswith("no client is left") for r in done)
    assert all(len(r.rejected) == 671 for r in done)
    assert done[1].clock > done[0].clock > 0


@pytest.mark.parametrize(("wrong", "message"), [
    ({"deadline": 1.0}, "deadline=1.0: nobody is waited for"), ({"correction": "scaffold"}, "correction='scaffold'"),
    ({"cohort": 700}, "cohort=700: the federation has 671"), ({"buffer": 700}, "buffer=700"),
    ({"method": "fedasync", "server_lr": 1.5}, "server_lr=1.5: FedAsync mixes models"),
])
def test_settings_without_meaning_are_refused(factors, clicks, wrong, message):
    with pytest.raises(ParameterError, match=message):
        next(federate_async(factors, clicks, replace(CONFIG, **wrong), world=WORLD))


def test_worlds_without_a_clock_or_with_members_are_refused(factors, clicks):
    there = replace(WORLD, members=Membership.drawn(671, 5))
    with pytest.raises(ParameterError, match="nobody would ever be stale"):
        federate_async(factors, clicks, CONFIG, world=World())
    with pytest.raises(ParameterError, match="use drop_out here"):
        federate_async(factors, clicks, CONFIG, world=there)


def test_settings_of_a_synchronous_run_are_refused(factors, clicks):
    with pytest.raises(ParameterError, match="config=Config: asynchronous runs need"):
        next(federate_async(factors, clicks, Config(cohort=8), world=WORLD))
