"""Who is there.

Members that come and go, drop-outs, stragglers, deltas that are none, rounds that are skipped.
"""

from dataclasses import replace

import pytest
import torch

from fedlab.aggregation import NoDeltaError, krum
from fedlab.algorithms import Membership, World, federate
from fedlab.core import Config, ParameterError, Rows
from fedlab.data import Federation, by_activity
from fedlab.engine import updates

FEW = Config(rounds=3, cohort=12)


@pytest.fixture(scope="module")
def model(build, clicks):
    return build("matrix factorisation", clicks.train)


def test_time_follows_speed_examples_and_delay(clicks):
    config, cohort = replace(FEW, local_epochs=2, negatives=3), torch.arange(671)
    took = World(pace=0.5).seconds(clicks, cohort, config, "1")
    assert torch.equal(took, 0.5 * clicks.counts.double() * 2 * 4)
    spread = World(pace=0.5, spread=1.2, seed=1).seconds(clicks, cohort, config, "1")
    logs = (spread / took).log()
    assert float(logs.std()) == pytest.approx(1.2, rel=0.1)
    assert float(logs.mean()) == pytest.approx(0, abs=0.15)
    # drawn once
    assert torch.equal(World(pace=0.5, spread=1.2, seed=1).seconds(clicks, cohort, config, "2"),
                       spread)
    assert not torch.equal(World(pace=0.5, spread=1.2, seed=2).seconds(clicks, cohort, config, "1"),
                           spread)
    waits = [World(delay=3.0).seconds(clicks, cohort, config, when) for when in "12"]
    assert float(waits[0].mean()) == pytest.approx(3.0, rel=0.15)
    assert not torch.equal(*waits)


def test_a_round_lasts_as_long_as_its_slowest_client_or_the_deadline(model, clicks):
    world = World(pace=1.0, spread=1.0)
    free = list(federate(model, clicks, FEW, world=world))
    took = [float(world.seconds(clicks, r.cohort, FEW, "1").max()) for r in free]
    assert [r.clock for r in free] == pytest.approx([sum(took[:n]) for n in (1, 2, 3)])
    limit = min(took) / 4
    (first, *_) = federate(model, clicks, replace(FEW, deadline=limit), world=world)
    assert first.clock == limit
    late = [c for c, why in first.rejected.items() if why.startswith("late")]
    assert late
    assert sorted([*late, *first.cohort.tolist()]) == sorted(free[0].cohort.tolist())
    assert all(float(world.seconds(clicks, torch.tensor([c]), FEW, "1")) > limit for c in late)


def test_clients_that_drop_out_change_nothing(model, clicks):
    (done,) = federate(model, clicks, replace(FEW, rounds=1, drop_out=0.5))
    assert 0 < len(done.cohort) < 12
    assert len(done.cohort) + len(done.rejected) == 12
    assert set(done.rejected.values()) == {"dropped out"}
    start = next(federate(model, clicks, replace(FEW, rounds=1, drop_out=1.0))).params
    for client in done.rejected:
        assert torch.equal(done.params["user"][client], start["user"][client])


def test_a_round_that_loses_everybody_is_skipped(model, clicks):
    config = replace(FEW, drop_out=1.0, server_optimizer="adam")
    rounds = list(federate(model, clicks, config))
    for done in rounds:
        assert done.skipped.startswith("no client is left")
        assert len(done.cohort) == 0
        assert done.loss != done.loss
        assert done.bytes_up == 0
    assert all(torch.equal(rounds[0].params[n], rounds[-1].params[n]) for n in model.rows)
    on = list(federate(model, clicks, replace(config, drop_out=0.0, rounds=4), start=rounds[-1]))
    assert on[-1].skipped == ""
    assert not torch.equal(on[-1].params["item"], rounds[-1].params["item"])


def test_wrong_settings_stop_a_run_and_lost_clients_do_not(model, clicks):
    config = replace(FEW, cohort=8)
    with pytest.raises(NoDeltaError, match="byzantine=3: Krum needs 9 clients and has 8"):
        next(federate(model, clicks, config, aggregate=krum(3)))
    done = list(federate(model, clicks, replace(config, cohort=10, drop_out=0.3),
                         aggregate=krum(3)))
    assert any("Krum needs 9 clients" in r.skipped for r in done)


def corrupt(change):
    """The usual update, of which `change(name, rows)` makes another."""
    def update(*args, **kwargs):
        for sent in updates(*args, **kwargs):
            yield replace(sent, deltas={n: change(n, rows) for n, rows in sent.deltas.items()})
    return update


def poisoned(name, rows, value):
    values = rows.values.clone()
    values[rows.client == 2] = value
    return replace(rows, values=values) if name == "item" else rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_delta_that_is_not_finite_is_rejected_and_the_run_goes_on(model, clicks, value):
    clean = next(federate(model, clicks, FEW))
    bad = list(federate(model, clicks, FEW, update=corrupt(lambda n, r: poisoned(n, r, value))))
    victim = int(clean.cohort[2])
    for done in bad:
        assert len(done.cohort) == 11
        assert all(bool(p.isfinite().all()) for p in done.params.values())
    assert list(bad[0].rejected) == [victim]
    assert "not finite" in bad[0].rejected[victim]
    assert victim not in bad[0].cohort.tolist()
    # the others count as if it had not been there
    keep = clean.cohort != victim

    def without(*args, **kwargs):
        for sent in updates(*args, **kwargs):
            yield sent.only(keep)
    fewer = next(federate(model, clicks, FEW, update=without))
    assert all(torch.equal(bad[0].params[n], fewer.params[n]) for n in model.rows)


@pytest.mark.parametrize(("change", "reason"), [(lambda n, r: Rows(r.values[:, :1], r.ids,
                                                                   r.client) if n == "item" else r,
                                                 "rows of shape (1,), the server's"),
                                                (lambda n, r: replace(r,
                                                                      ids=r.ids + 9000)
                                                 if n == "bias" else r,
                                                 "a row that is none of the server's 9066"),])
def test_a_delta_of_another_shape_is_rejected(model, clicks, change, reason):
    done = next(federate(model, clicks, FEW, update=corrupt(change)))
    assert done.rejected
    assert all(reason in why for why in done.rejected.values())
    assert done.skipped or len(done.cohort) < 12


def test_members_come_and_go_and_only_they_train(model, clicks):
    members = Membership.drawn(671, 6, late=0.5, early=0.4, seed=3)
    assert 0.4 < float((members.first > 1).float().mean()) < 0.6
    assert 0.3 < float((members.last < 6).float().mean()) < 0.5
    assert bool((members.first <= members.last).all())
    for done in federate(model, clicks, Config(rounds=6, cohort=300), world=World(members=members)):
        here = members(done.number)
        assert bool(torch.isin(done.cohort, here).all())
        assert len(done.cohort) == min(300, len(here))
    nobody = Membership(torch.full((671,), 2), torch.full((671,), 2))
    first, second, third = federate(model, clicks, FEW, world=World(members=nobody))
    assert first.skipped
    assert not second.skipped
    assert third.skipped


def test_newcomers_start_at_the_mean_of_the_members(model, clicks):
    first = torch.ones(671, dtype=torch.int64)
    first[100:110] = 3
    members = Membership(first, torch.full((671,), 9))
    runs = {warm: list(federate(model, clicks, FEW, world=World(members=members, warm=warm)))
            for warm in (True, False)}
    before = runs[True][1].params["user"]
    mean = before[first == 1].mean(0)
    resting = [u for u in range(100, 110) if u not in runs[True][2].cohort.tolist()]
    torch.testing.assert_close(runs[True][2].params["user"][resting], mean.expand(len(resting), -1))
    assert torch.equal(runs[False][2].params["user"][resting], before[resting])
    again = list(federate(model, clicks, replace(FEW, rounds=4), start=runs[True][2],
                          world=World(members=members)))
    assert torch.equal(again[0].params["user"][resting[:1]],
                       runs[True][2].params["user"][resting[:1]])


def test_platforms_bring_all_their_users(split, build):
    data = Federation(split.train, by_activity(split.train, 5))
    members = Membership(torch.tensor([1, 1, 2, 1, 1]), torch.full((5,), 9))
    model = build("matrix factorisation", split.train)
    world = World(members=members)
    params = model.init(0)
    warm = world.welcome(model, data, params, 2)["user"]
    mine = data.owner == 2
    torch.testing.assert_close(warm[mine], params["user"][~mine].mean(0).expand(int(mine.sum()),
                                                                                -1))
    assert torch.equal(warm[~mine], params["user"][~mine])


@pytest.mark.parametrize(("wrong", "message"), [(lambda: World(pace=-1.0), "pace=-1.0"),
                                                (lambda: World(delay=float("inf")), "delay=inf"),
                                                (lambda: Membership.drawn(3, 1), "rounds=1"),
                                                (lambda: Membership.drawn(3, 5, late=2.0),
                                                 "late=2.0"), (lambda: Config(drop_out=1.5),
                                                               "drop_out=1.5"),
                                                (lambda: Config(deadline=-1.0), "deadline=-1.0"),])
def test_settings_without_meaning_are_refused(wrong, message):
    with pytest.raises(ParameterError, match=message):
        wrong()


def test_a_deadline_needs_a_clock(model, clicks):
    with pytest.raises(ParameterError, match=r"deadline=2.0: there is no clock"):
        next(federate(model, clicks, replace(FEW, deadline=2.0)))
