"""Who is there: cohorts, members that come and go, drop-outs, stragglers, skipped rounds."""

import pytest
import torch
from conftest import context

from fedlab.aggregation import Krum, NoDeltaError
from fedlab.algorithms import Membership, Participation, Synchronous, federate, sample
from fedlab.core import ParameterError, Settings
from fedlab.data import Columns, Curves, Federation, by_activity
from fedlab.engine import SGD
from fedlab.models import perceptron

FEW = Settings(rounds=3, cohort=12)


@pytest.fixture(scope="module")
def model(build, clicks):
    return build("matrix factorisation", clicks.train)


def took(model, data, cohort, when="1", local=None, **world):
    """The simulated seconds (C,) of these clients."""
    seed = world.pop("seed", 0)
    round_ = context(model, data, local=local, seed=seed)
    return Participation(**world).seconds(round_, cohort, when)


def test_a_cohort_is_of_different_clients_the_busiest_first_and_drawn_anew(clicks):
    draws = [sample(clicks, 30, number) for number in (1, 2)]
    assert not torch.equal(*draws)
    for cohort in (*draws, sample(clicks, 5, 1), sample(clicks, 671, 1)):
        assert len(cohort.unique()) == len(cohort)
        assert bool((clicks.counts[cohort].diff() <= 0).all())
    assert torch.equal(sample(clicks, 30, 1), draws[0])
    assert not torch.equal(sample(clicks, 30, 1, seed=1), draws[0])
    some = torch.tensor([4, 8, 15])
    assert sorted(sample(clicks, 30, 1, some).tolist()) == [4, 8, 15]


def test_every_client_is_as_likely_as_another():
    data = Columns({"target": torch.zeros(300)}, torch.arange(300))
    for count in (3, 20):  # drawn by number, and by a whole order
        drawn = torch.cat([sample(data, count, number) for number in range(6000 // count)])
        times = torch.bincount(drawn, minlength=300)
        assert float(times.float().std()) == pytest.approx(20**0.5, rel=0.2)


def test_a_poisson_cohort_takes_each_client_by_its_own_chance(clicks):
    who, sizes, times = Participation(cohort=100, sampling="poisson"), [], torch.zeros(671)
    for number in range(1, 201):
        round_ = context(None, clicks, params={}, number=number, local=Nobody())
        drawn = who.draw(round_)
        sizes.append(len(drawn.cohort))
        times[drawn.cohort] += 1
        assert (drawn.sampling, drawn.expected, drawn.rate) == ("poisson", 100.0, 100 / 671)
        assert bool((clicks.counts[drawn.cohort].diff() <= 0).all())
    assert torch.tensor(sizes).float().mean() == pytest.approx(100, rel=0.03)
    spread = float(torch.tensor(sizes).float().std())
    assert spread == pytest.approx((100 * 571 / 671) ** 0.5, rel=0.2)
    assert float(times.std()) == pytest.approx((200 * 100 / 671 * 571 / 671) ** 0.5, rel=0.2)
    fixed = Participation(cohort=100).draw(context(None, clicks, params={}, local=Nobody()))
    assert (fixed.sampling, fixed.expected, fixed.rate, len(fixed.cohort)) == (
        "fixed",
        100.0,
        100 / 671,
        100,
    )


class Nobody(SGD):
    """Trains no model."""

    def asks(self, context):
        return {}


def test_an_own_sampler_draws_in_the_place_of_the_usual(model, clicks):
    def evens(data, count, number, members=None, *, seed=0):
        return torch.arange(0, 2 * count, 2)

    done = next(federate(model, clicks, FEW, participation=Participation(sampler=evens)))
    assert sorted(done.cohort.tolist()) == list(range(0, 24, 2))
    with pytest.raises(
        ParameterError, match="sampling='poisson': a sampler of your own decides how"
    ):
        next(
            federate(
                model,
                clicks,
                FEW.replace(sampling="poisson"),
                participation=Participation(sampler=evens),
            )
        )


def test_time_follows_speed_examples_and_delay(model, clicks):
    cohort, local = torch.arange(671), SGD(local_epochs=2, negatives=3)
    plain = took(model, clicks, cohort, local=local, pace=0.5, spread=0.0, delay=0.0)
    assert torch.equal(plain, 0.5 * clicks.counts.double() * 2 * 4)
    own = {"local": local, "pace": 0.5, "spread": 1.2, "delay": 0.0, "seed": 1}
    spread = took(model, clicks, cohort, **own)
    logs = (spread / plain).log()
    assert float(logs.std()) == pytest.approx(1.2, rel=0.1)
    assert float(logs.mean()) == pytest.approx(0, abs=0.15)
    # speeds are drawn once
    assert torch.equal(took(model, clicks, cohort, "2", **own), spread)
    assert not torch.equal(took(model, clicks, cohort, **own | {"seed": 2}), spread)
    waits = [took(model, clicks, cohort, when, pace=0.0, delay=3.0) for when in "12"]
    assert float(waits[0].mean()) == pytest.approx(3.0, rel=0.15)
    assert not torch.equal(*waits)
    # a client's time depends on nobody else
    assert torch.equal(took(model, clicks, cohort[40:50], pace=0.0, delay=3.0), waits[0][40:50])


def test_a_round_lasts_as_long_as_its_slowest_client_or_the_deadline(model, clicks):
    settings, world = FEW.replace(pace=1.0, delay=0.0), {"pace": 1.0, "delay": 0.0}
    free = list(federate(model, clicks, settings))
    slowest = [float(took(model, clicks, r.cohort, **world).max()) for r in free]
    assert [r.clock for r in free] == pytest.approx([sum(slowest[:n]) for n in (1, 2, 3)])
    limit = min(slowest) / 4
    (first, *_) = federate(model, clicks, settings.replace(deadline=limit))
    assert first.clock == limit
    late = [c for c, why in first.rejected.items() if why.startswith("late")]
    assert late
    assert sorted([*late, *first.cohort.tolist()]) == sorted(free[0].cohort.tolist())
    assert all(float(took(model, clicks, torch.tensor([c]), **world)) > limit for c in late)


def test_who_drops_out_is_not_waited_for_and_who_is_late_is_told_apart(model, clicks):
    who = Participation(cohort=100, drop_out=0.5, pace=0.0, delay=1.0)
    plan = Synchronous(deadline=0.5).plan(context(model, clicks), who)
    reasons = {
        why: {c for c, reason in plan.rejected.items() if reason == why}
        for why in plan.rejected.values()
    }
    late, gone = reasons["late: its update came after the deadline"], reasons["dropped out"]
    assert set(plan.late.tolist()) == late
    assert not late & gone
    assert sorted([*plan.invited, *late, *gone]) == sorted(plan.drawn.cohort.tolist())
    patient = Synchronous().plan(context(model, clicks), who)
    there = who.seconds(context(model, clicks), patient.start, "1")
    assert patient.clock == float(there.max())


def test_clients_that_drop_out_change_nothing(model, clicks):
    (done,) = federate(model, clicks, FEW.replace(rounds=1, drop_out=0.5))
    assert 0 < len(done.cohort) < 12
    assert len(done.cohort) + len(done.rejected) == 12
    assert set(done.rejected.values()) == {"dropped out"}
    start = next(federate(model, clicks, FEW.replace(rounds=1, drop_out=1.0))).params
    for client in done.rejected:
        assert torch.equal(done.params["user"][client], start["user"][client])


def test_a_round_that_loses_everybody_is_skipped(model, clicks):
    settings = FEW.replace(drop_out=1.0, server_optimizer="adam")
    rounds = list(federate(model, clicks, settings))
    for done in rounds:
        assert done.skipped.startswith("no client is left")
        assert len(done.cohort) == 0
        assert done.loss != done.loss
        assert done.bytes_up == 0
    assert all(torch.equal(rounds[0].params[n], rounds[-1].params[n]) for n in model.rows)
    on = list(federate(model, clicks, settings.replace(drop_out=0.0, rounds=4), start=rounds[-1]))
    assert on[-1].skipped == ""
    assert not torch.equal(on[-1].params["item"], rounds[-1].params["item"])


def test_wrong_settings_stop_a_run_and_lost_clients_do_not(model, clicks):
    settings = FEW.replace(cohort=8)
    with pytest.raises(NoDeltaError, match="byzantine=3: Krum needs 9 clients and has 8"):
        next(federate(model, clicks, settings, aggregate=Krum(byzantine=3)))
    done = list(
        federate(
            model, clicks, settings.replace(cohort=10, drop_out=0.3), aggregate=Krum(byzantine=3)
        )
    )
    assert any("Krum needs 9 clients" in r.skipped for r in done)


def test_members_come_and_go_and_only_they_train(model, clicks):
    members = Membership.drawn(671, 6, late=0.5, early=0.4, seed=3)
    assert 0.4 < float((members.first > 1).float().mean()) < 0.6
    assert 0.3 < float((members.last < 6).float().mean()) < 0.5
    assert bool((members.first <= members.last).all())
    for done in federate(
        model, clicks, Settings(rounds=6, cohort=300), participation=Participation(members=members)
    ):
        here = members(done.number)
        assert bool(torch.isin(done.cohort, here).all())
        assert len(done.cohort) == min(300, len(here))
    nobody = Membership(torch.full((671,), 2), torch.full((671,), 2))
    first, second, third = federate(model, clicks, FEW, participation=Participation(members=nobody))
    assert first.skipped
    assert not second.skipped
    assert third.skipped


def test_newcomers_start_at_the_mean_of_the_members(model, clicks):
    first = torch.ones(671, dtype=torch.int64)
    first[100:110] = 3
    members = Membership(first, torch.full((671,), 9))
    runs = {
        warm: list(
            federate(model, clicks, FEW, participation=Participation(members=members, warm=warm))
        )
        for warm in (True, False)
    }
    before = runs[True][1].params["user"]
    mean = before[first == 1].mean(0)
    resting = [u for u in range(100, 110) if u not in runs[True][2].cohort.tolist()]
    torch.testing.assert_close(runs[True][2].params["user"][resting], mean.expand(len(resting), -1))
    assert torch.equal(runs[False][2].params["user"][resting], before[resting])
    again = list(
        federate(
            model,
            clicks,
            FEW.replace(rounds=4),
            start=runs[True][2],
            participation=Participation(members=members),
        )
    )
    assert torch.equal(
        again[0].params["user"][resting[:1]], runs[True][2].params["user"][resting[:1]]
    )


def test_members_may_be_drawn_by_the_settings(model, clicks):
    settings = Settings(rounds=4, cohort=671, late=0.5, early=0.4, seed=3)
    members = Membership.drawn(671, 4, late=0.5, early=0.4, seed=3)
    for done in federate(model, clicks, settings):
        assert sorted(done.cohort.tolist()) == members(done.number).tolist()
    chosen = torch.arange(671) % 5 == 0
    only = next(
        federate(
            model,
            clicks,
            FEW.replace(cohort=671),
            participation=Participation(members=Membership.only(chosen)),
        )
    )
    assert sorted(only.cohort.tolist()) == chosen.nonzero()[:, 0].tolist()


def test_platforms_bring_all_their_users(split, build):
    data = Federation(split.train, by_activity(split.train, 5))
    members = Membership(torch.tensor([1, 1, 2, 1, 1]), torch.full((5,), 9))
    round_ = context(build("matrix factorisation", split.train), data, number=2)
    params = round_.params["user"]
    warm = Participation(members=members).welcome(round_)["user"]
    mine = data.owner == 2
    torch.testing.assert_close(warm[mine], params[~mine].mean(0).expand(int(mine.sum()), -1))
    assert torch.equal(warm[~mine], params[~mine])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Participation(pace=-1.0), "pace=-1.0"),
        (lambda: Participation(delay=float("inf")), "delay=inf"),
        (lambda: Membership.drawn(3, 1), "rounds=1"),
        (lambda: Membership.drawn(3, 5, late=2.0), "late=2.0"),
        (lambda: Settings(drop_out=1.5), "drop_out=1.5"),
        (lambda: Settings(deadline=-1.0), "deadline=-1.0"),
        (lambda: Participation(chort=3), "chort=3: no such parameter; did you mean cohort?"),
    ],
)
def test_settings_without_meaning_are_refused(wrong, message):
    with pytest.raises(ParameterError, match=message):
        wrong()


def test_a_deadline_needs_a_clock(model, clicks):
    with pytest.raises(ParameterError, match=r"deadline=2.0: there is no clock; choose a pace or"):
        next(federate(model, clicks, FEW.replace(deadline=2.0, pace=0.0, delay=0.0)))


def test_newcomers_without_users_of_their_own_are_refused(build, clicks):
    class Hidden:
        """Says nothing of who holds which user."""

        task, counts = "clicks", clicks.counts

        def __len__(self):
            return len(clicks)

        def draw(self, *given):
            return clicks.draw(*given)

    members = Membership(torch.tensor([1] * 670 + [2]), torch.full((671,), 9))
    with pytest.raises(
        ParameterError, match="members='Hidden': private user rows need to know who"
    ):
        list(
            federate(
                build("matrix factorisation", clicks.train),
                Hidden(),
                FEW,
                participation=Participation(members=members),
            )
        )


def test_members_need_no_private_rows():
    members = Membership(torch.tensor([1, 1, 2, 1]), torch.full((4,), 9))
    rounds = list(
        federate(
            perceptron(1, 4, task="ratings"),
            Curves(4, 3, 3),
            Settings(rounds=2, cohort=4),
            participation=Participation(members=members),
        )
    )
    assert [len(done.cohort) for done in rounds] == [3, 4]
