"""Asynchronous federations: against one client after another, and against the synchronous round."""

from functools import partial

import pytest
import torch
from conftest import context

from fedlab.algorithms import Buffered, Membership, Participation, Scaffold, federate
from fedlab.core import ParameterError, Settings, moved, stream, turned
from fedlab.engine import SGD, updates
from fedlab.models import item_features, linear, user_features

USUAL = Settings(
    rounds=6,
    cohort=12,
    buffer=4,
    batch_size=0,
    local_lr=0.05,
    local_epochs=2,
    weighting="equal",
    delay=1.0,
)
buffered = partial(federate, schedule=Buffered())


@pytest.fixture(scope="module")
def model(stars):
    return linear(item_features(stars.train.catalogue), user_features(stars.train))


@pytest.fixture(scope="module")
def factors(build, clicks):
    return build("matrix factorisation", clicks.train)


def simulate(model, data, settings):
    """The parameters and times of each step.

    Clients train by themselves, from a copy of the parameters at their start.
    """
    local = turned(SGD(), settings)
    who, round_ = turned(Participation(), settings), context(model, data, local=local, **settings)
    params, clock, begun, training, history = model.init(settings.seed), 0.0, 0, [], []
    needed = 1 if settings.method == "fedasync" else settings.buffer
    for step in range(settings.rounds):
        came, busy = [], {c for _, c, *_ in training}
        while len(came) < needed:
            while len(training) < settings.cohort:
                generator = stream(settings.seed, "start", begun)
                client = next(
                    c
                    for c in iter(
                        lambda g=generator: int(torch.randint(len(data), (), generator=g)), None
                    )
                    if c not in busy
                )
                took = float(who.seconds(round_, torch.tensor([client]), f"start {begun}"))
                copy = {n: p.clone() for n, p in params.items()}
                training.append((clock + took, client, step, copy))
                busy.add(client)
                begun += 1
            first = min(training, key=lambda job: job[0])
            training.remove(first)
            came.append(first)
            clock = first[0]
        total = {n: torch.zeros_like(p) for n, p in params.items()}
        for _, client, at, copy in came:
            (sent,) = updates(model, data, copy, torch.tensor([client]), local)
            late, a, b = step - at, settings.staleness_a, settings.staleness_b
            weight = {
                "constant": 1.0,
                "polynomial": (1 + late) ** -a,
                "hinge": 1.0 if late <= b else 1 / (a * (late - b) + 1),
            }[settings.staleness]
            for n, rows in sent.deltas.items():
                own = moved(copy[n], rows, 1.0)
                change = own - params[n] if settings.method == "fedasync" else own - copy[n]
                total[n] += weight * change / len(came)
        params = {n: p + settings.server_lr * total[n] for n, p in params.items()}
        history.append((clock, params))
    return history


MIXED = {"method": "fedasync", "buffer": 10, "server_lr": 0.6, "rounds": 15}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"staleness": "constant"},
        {"buffer": 1},
        MIXED,
        {"staleness": "hinge", "staleness_a": 2.0, "staleness_b": 1.0},
        {**MIXED, "staleness": "hinge", "staleness_b": 2.0},
    ],
)
def test_stacked_clients_equal_one_after_another(model, stars, changed):
    settings = USUAL.replace(**changed)
    rounds = list(buffered(model, stars, settings))
    expected = simulate(model, stars, settings)
    assert [r.clock for r in rounds] == pytest.approx([clock for clock, _ in expected])
    for done, (_, params) in zip(rounds, expected, strict=True):
        torch.testing.assert_close(done.params["theta"], params["theta"], atol=1e-5, rtol=1e-4)
    assert max(r.metrics["staleness"] for r in rounds) > 1


def test_when_all_start_at_once_and_all_are_waited_for_it_is_the_synchronous_round(stars, build):
    model = build("matrix factorisation", stars.train, "ratings")
    settings = Settings(rounds=1, cohort=671, batch_size=0)
    one = next(buffered(model, stars, settings.replace(buffer=671)))
    same = next(federate(model, stars, settings))
    assert one.metrics == {"staleness": 0.0}
    for name in model.rows:
        torch.testing.assert_close(one.params[name], same.params[name], atol=1e-6, rtol=1e-5)
    assert sorted(one.cohort.tolist()) == list(range(671))
    assert (one.bytes_up, one.bytes_down) == (same.bytes_up, same.bytes_down)


def test_the_weights_of_staleness_by_hand():
    late = torch.tensor([0.0, 1.0, 3.0, 8.0])
    hinge = Buffered(staleness="hinge", staleness_a=2.0, staleness_b=3.0)
    assert Buffered().weight(late).tolist() == pytest.approx([1, 2**-0.5, 0.5, 1 / 3])
    assert hinge.weight(late).tolist() == pytest.approx([1, 1, 1, 1 / 11])
    assert Buffered(staleness="constant").weight(late).tolist() == [1, 1, 1, 1]


def test_private_rows_come_with_their_clients(factors, clicks):
    settings = Settings(rounds=5, cohort=30)
    start, moved_by = factors.init(0)["user"], torch.zeros(671, dtype=torch.bool)
    for done in buffered(factors, clicks, settings):
        assert len(done.cohort) == 10
        moved_by[done.cohort] = True
        changed = (done.params["user"] != start).any(1)
        assert torch.equal(changed, moved_by)


def test_the_same_seed_is_the_same_run_and_a_resumed_one_too(factors, clicks):
    settings = Settings(rounds=6, cohort=20, buffer=5, server_optimizer="adam", drop_out=0.2)
    whole, again = (list(buffered(factors, clicks, settings)) for _ in range(2))
    resumed = list(buffered(factors, clicks, settings, start=whole[2]))
    other = list(buffered(factors, clicks, settings.replace(seed=1)))
    for a, b in (*zip(whole, again, strict=True), *zip(whole[3:], resumed, strict=True)):
        assert (a.number, a.clock) == (b.number, b.clock)
        assert torch.equal(a.cohort, b.cohort)
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert other[0].clock != whole[0].clock
    assert any("dropped out" in r.rejected.values() for r in whole)


def test_when_everybody_drops_out_the_step_is_skipped(factors, clicks):
    done = list(buffered(factors, clicks, USUAL.replace(rounds=2, drop_out=1.0)))
    assert all(r.skipped.startswith("no client is left") for r in done)
    assert all(len(r.rejected) == 671 for r in done)
    assert done[1].clock > done[0].clock > 0


def test_a_resumed_fedasync_run_keeps_where_clients_started(factors, clicks):
    settings = Settings(rounds=8, cohort=20, method="fedasync", server_lr=0.5)
    whole = list(buffered(factors, clicks, settings))
    resumed = list(buffered(factors, clicks, settings, start=whole[4]))
    for a, b in zip(whole[5:], resumed, strict=True):
        assert (a.number, a.clock, a.metrics) == (b.number, b.clock, b.metrics)
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)


def test_an_earlier_round_can_be_gone_on_from_twice(factors, clicks):
    settings = Settings(rounds=6, cohort=20, buffer=5)
    whole = list(buffered(factors, clicks, settings))
    first, second = (list(buffered(factors, clicks, settings, start=whole[1])) for _ in range(2))
    for a, b, c in zip(whole[2:], first, second, strict=True):
        assert a.clock == b.clock == c.clock
        assert all(
            torch.equal(a.params[n], b.params[n]) and torch.equal(a.params[n], c.params[n])
            for n in a.params
        )


def test_nobody_trains_twice_at_a_time_and_old_updates_are_forgotten(factors, clicks):
    for done in buffered(factors, clicks, Settings(rounds=6, cohort=20, buffer=5)):
        flight = done.state["buffered"]["flight"]
        training = [client for _, _, client, _ in flight.under_way]
        assert len(training) == len(set(training)) == 19
        assert set(flight.trained) == {step for *_, step in flight.under_way}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"deadline": 1.0},
            "deadline=1.0: nothing in this run reads it beside buffered; synchronous would",
        ),
        ({"cohort": 700}, "cohort=700: the federation has 671"),
        ({"buffer": 700}, "buffer=700"),
        (
            {"method": "fedasync", "buffer": 10, "server_lr": 1.5},
            "server_lr=1.5: FedAsync mixes models",
        ),
        ({"method": "fedasync"}, "buffer=4: buffered does not read it in this combination"),
        ({"staleness_b": 3.0}, "staleness_b=3.0: buffered does not read it"),
        (
            {"staleness": "constant", "staleness_a": 3.0},
            "staleness_a=3.0: buffered does not read it",
        ),
        (
            {"pace": 0.0, "delay": 0.0},
            "pace=0.0: nobody would ever be stale; choose a pace or a delay",
        ),
        (
            {"late": 0.5},
            "buffered: needs the same clients in every round .*, which participation takes",
        ),
        ({"sampling": "poisson"}, "buffered: needs a cohort of fixed size .*, which participation"),
    ],
)
def test_settings_without_meaning_are_refused(factors, clicks, wrong, message):
    with pytest.raises(ParameterError, match=message):
        next(buffered(factors, clicks, USUAL.replace(**wrong)))


def test_members_and_methods_of_one_round_are_refused(factors, clicks):
    there = Participation(members=Membership.drawn(671, 5))
    with pytest.raises(ParameterError, match="buffered: needs the same clients in every round"):
        next(buffered(factors, clicks, USUAL, participation=there))
    with pytest.raises(
        ParameterError, match="scaffold: needs updates of this very round, which buffered"
    ):
        next(buffered(factors, clicks, USUAL, local=Scaffold()))


def test_knobs_of_the_schedule_need_the_schedule(factors, clicks):
    with pytest.raises(
        ParameterError, match="buffer=4: nothing in this run reads it beside synchronous"
    ):
        next(federate(factors, clicks, Settings(cohort=8, buffer=4)))
