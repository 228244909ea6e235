"""Parts of somebody's own that derive from shipped ones: asked, or refused by name."""

from dataclasses import replace

import pytest
import torch

from fedlab.aggregation import WeightedMean
from fedlab.algorithms import Buffered, Participation, Synchronous, federate
from fedlab.core import (
    Aggregation,
    Local,
    ParameterError,
    Schedule,
    Settings,
    Stage,
    knob,
    register,
)
from fedlab.data import Columns
from fedlab.engine import SGD
from fedlab.models import perceptron
from fedlab.privacy import Clip, DistributedGaussian, GaussianNoise, LocalNoise, SecureSum

PRIVATE = {"noise": 1.0, "delta": 1e-3, "teaching_seed": 0}


def run(uplink=(), settings=None, **parts):
    """The last Round of a tiny run."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(60) % 8
    data = Columns({"x": x, "target": (x[:, 0] > 0).float()}, owner)
    asked = Settings(rounds=2, cohort=4, **settings or {})
    *_, last = federate(perceptron(3, 2), data, asked, uplink=uplink, **parts)
    return last


class Quickest(Synchronous):
    def plan(self, context, who):
        plan = super().plan(context, who)
        kept = plan.start[:2]
        return replace(plan, start=kept, invited=dict.fromkeys(kept.tolist(), context.number))


class Everybody(Synchronous):
    apart = True

    def plan(self, context, who):
        every = torch.arange(len(context.data))
        invited = dict.fromkeys(every.tolist(), context.number)
        return replace(super().plan(context, who), start=every, invited=invited)


class Undrawn(Everybody):
    apart = True

    def plan(self, context, who):
        return replace(super().plan(context, who), drawn=None)


class Busy(Participation):
    def draw(self, context):
        drawn = super().draw(context)
        return replace(drawn, cohort=torch.arange(4))


@pytest.mark.parametrize("noise", [GaussianNoise, DistributedGaussian])
def test_noise_in_a_sum_goes_with_no_schedule_in_which_clients_hang_on_each_other(noise):
    with pytest.raises(ParameterError, match=r"schedule='quickest'.*apart = True"):
        run([Clip(), noise()], PRIVATE, schedule=Quickest())
    assert run([Clip(), LocalNoise()], PRIVATE, schedule=Quickest()).cohort.tolist()
    assert len(run(schedule=Quickest()).cohort) == 2


@pytest.mark.parametrize("schedule", [Everybody(), Undrawn()])
def test_in_a_private_run_nobody_starts_who_was_not_drawn(schedule):
    with pytest.raises(ParameterError, match=r"plan.start=.*whom participation draws"):
        run([Clip(), GaussianNoise()], PRIVATE, schedule=schedule)
    assert len(run(schedule=schedule).cohort) == 8


def test_a_draw_of_ones_own_has_chances_that_nobody_knows():
    assert sorted(run(participation=Busy()).cohort.tolist()) == [0, 1, 2, 3]
    with pytest.raises(ParameterError, match="gaussian noise: needs cohorts whose chances"):
        run([Clip(), GaussianNoise()], PRIVATE, participation=Busy())
    with pytest.raises(ParameterError, match="needs cohorts whose chances are known"):
        run(participation=Busy(), schedule=Buffered())


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        (torch.tensor([1, 1, 2]), r"sampler=\[1\]: a client is in a cohort once"),
        (torch.tensor([1, 99]), "sampler=99: the federation has 8 clients"),
        ([1, 2], r"sampler=\[1, 2\]: give a tensor"),
        (None, "sampler=None: give a tensor"),
    ],
)
def test_a_sampler_that_draws_no_cohort_is_told_so(cohort, message):
    with pytest.raises(ParameterError, match=message):
        run(participation=Participation(sampler=lambda *given, **more: cohort))


class Seven(WeightedMean):
    def __call__(self, updates, server):
        assert isinstance(updates, list)
        return {name: torch.full_like(value, 7.0) for name, value in server.items()}


class Twice(WeightedMean):
    def delta(self, updates, server):
        assert len(list(updates)) == len(list(updates)) > 0
        return super().delta(updates, server)


class Nothing(WeightedMean):
    def __call__(self, updates, server):
        return None


class Empty(Aggregation):
    pass


def test_a_rule_that_derives_from_another_is_asked_itself():
    last = run(aggregate=Seven(), settings={"server_lr": 1.0})
    assert float(last.params["b2"]) > 13
    assert run(aggregate=Twice()).number == 2
    for rule in (Seven(), Twice()):
        with pytest.raises(ParameterError, match="needs every client's own update"):
            run([Clip(), SecureSum()], aggregate=rule)


def test_a_rule_without_a_rule_or_a_delta_is_told_so():
    with pytest.raises(ParameterError, match="empty: it has no rule; write __call__, or delta"):
        run(aggregate=Empty())
    with pytest.raises(ParameterError, match="nothing=None: return a delta for each name"):
        run(aggregate=Nothing())


class Adder(Stage):
    side = "sum"

    def add_up(self, updates, context):
        raise AssertionError("nobody asks")


class Unregistered(Stage):
    chance: float = knob(0.5, 0.0, 1.0, "", "a knob of a class that is not registered")


class Typo(Stage):
    refuses = ("noisd",)


class Letters(Stage):
    needs = "clipped"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Clip(), SecureSum(), Adder()], "uplink='secure sum and adder': only one stage can add"),
        ([Unregistered()], "unregistered='chance': its knobs have no values; write @register"),
        ([Typo()], "typo.refuses='noisd': no registered part adds it"),
        ([Letters()], "letters.needs='clipped': give a tuple of facts"),
    ],
)
def test_stages_that_would_do_nothing_are_refused(stages, message):
    with pytest.raises(ParameterError, match=message):
        run(stages)


class Unordered(Synchronous):
    def plan(self, context, who):
        plan = super().plan(context, who)
        return replace(plan, start=plan.start.flip(0))


class Listed(Synchronous):
    def plan(self, context, who):
        return replace(super().plan(context, who), start=[0, 1])


class Planless(Synchronous):
    def plan(self, context, who):
        return None


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_a_plan_in_any_order_trains_alike(engine):
    settings = {"engine": engine, "batch_size": 2}
    one, other = run(settings=settings), run(settings=settings, schedule=Unordered())
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [(Planless(), "planless.plan=None: return a Plan"), (Listed(), r"listed.plan.start=\[0, 1\]")],
)
def test_a_plan_that_is_none_is_told_so(schedule, message):
    with pytest.raises(ParameterError, match=message):
        run(schedule=schedule)


class Lazy(SGD):
    def train(self, context, cohort):
        return None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"local": Lazy()}, "lazy.train=None: yield Updates"),
        ({"local": Local()}, "local: write `train`, which each local has"),
        ({"schedule": Schedule()}, "schedule: write `plan`, which each schedule has"),
    ],
)
def test_what_a_part_lacks_is_named(parts, message):
    with pytest.raises(ParameterError, match=message):
        run(**parts)


def test_a_registered_part_of_another_file_states_facts_of_its_own(own_parts):
    @register
    class Marks(Stage):
        title = "marks of a test"

        def adds(self):
            return {"marked": True}

    class Unmarked(Stage):
        refuses = ("marked",)

    assert run([Unmarked()]).number == 2
    with pytest.raises(ParameterError, match="unmarked: needs to be without marked"):
        run([Marks(), Unmarked()])
