"""What edition 0.5.0 said or ignored without a word, and no longer does.

The letters and numbers of the tests are those of the list of defects: S1 says something false of
privacy or of a result, S2 ignores what was asked for, S3 is a trap for those who extend it, L is of
the ledger, X was found on the way. Each epsilon was worked out by hand; the call beside it proves
it.
"""

import copy
import inspect
import random
import re
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import tiny

import fedlab
from fedlab import Settings, federate
from fedlab.aggregation import (
    BestModels,
    ByQuality,
    CoordinateMedian,
    HeldOut,
    Hierarchical,
    Krum,
    MeanOfHolders,
    NormBound,
    OwnWeights,
    TrimmedMean,
    WeightedMean,
    joined_updates,
    judge,
)
from fedlab.algorithms import (
    Buffered,
    Ease,
    Implicit,
    Membership,
    Meta,
    Participation,
    Scaffold,
    alone,
    fine_tuned,
    item_item,
    sample,
)
from fedlab.algorithms.participation import longest_first
from fedlab.attacks import Poison, scaled
from fedlab.communication import ErrorFeedback, Plain
from fedlab.core import REGISTRY, Key, Local, ParameterError, Round, Rows, Stage, described, whole
from fedlab.data import Episodes, Federation
from fedlab.engine import SGD, LocalSettings, updates
from fedlab.models import matrix_factorisation, user_factor_model
from fedlab.privacy import (
    DPSGD,
    Clip,
    GaussianNoise,
    LocalNoise,
    Release,
    SecureSum,
    Spending,
    Spent,
    epsilon,
    proven,
    proven_for_examples,
)
from fedlab.workbench import Experiment, stream

PACKAGE = Path(fedlab.__file__).parent
QUICK = Settings(rounds=4, cohort=20, local_lr=0.5, negatives=2, batch_size=8)
PRIVATE = QUICK.replace(batch_size=32, noise=2.0)
CENTRAL = (Clip(), GaussianNoise())
SEALED = (Clip(), SecureSum(), GaussianNoise())
LOCAL = (Clip(), LocalNoise())
MEDIANS = {
    "coordinate median": CoordinateMedian(),
    "trimmed mean": TrimmedMean(),
    "krum": Krum(byzantine=2, keep=3),
}
PLATFORM = 3 - torch.arange(20) % 4  # client 0 is of platform 3, none of 0..3 is of its own number


@cache
def films(users):
    """8 to 23 ratings of 40 films by each user; who likes the even films, who the odd ones."""
    generator = torch.Generator().manual_seed(users)
    rows = []
    for user in range(users):
        count = 8 + user * 7 % 16
        odds = torch.ones(40) + 3 * (torch.arange(40) % 2 == user % 2)
        rows += [(user, item) for item in odds.multinomial(count, generator=generator).tolist()]
    return tiny(
        [u for u, _ in rows], [i for _, i in rows], [(u + i) % 5 for u, i in rows], item_count=40
    )


@cache
def people(users=20, private=True):
    """A model and a federation in which every user is a client.

    private: whether its vector stays with it.
    """
    model = matrix_factorisation(users, 40, 4, private_users=private)
    return model, Federation(films(users), torch.arange(users))


@cache
def platforms(ratings=40):
    """A model and a federation of two platforms of five users, with so many ratings of 30 films."""
    every = torch.arange(40)[:ratings]
    table = tiny(
        (every // 4).tolist(),
        (every * 7 % 30).tolist(),
        (every * 7 % 30 % 5).tolist(),
        every.tolist(),
        user_count=10,
        item_count=30,
    )
    return user_factor_model(30, 3), Federation(table, torch.arange(10) // 5, "ratings")


def last(*args, **named):
    """The last Round of a run."""
    *_, done = federate(*args, **named)
    return done


def equal(one, other):
    """Whether two Rounds hold the same bits."""
    return all(torch.equal(value, other.params[name]) for name, value in one.params.items())


def eps(done):
    """The epsilon that a Round shows."""
    return done.metrics["epsilon"]


class Never:
    """Beside a local method: nobody may train with it."""

    def train(self, context, cohort):
        raise AssertionError("somebody trained")


class NeverSGD(Never, SGD):
    title = "sgd"


class NeverMeta(Never, Meta):
    title = "meta"


class NeverImplicit(Never, Implicit):
    title = "implicit"


def refused(match, model_data=None, settings=QUICK, **how):
    """Assert that a run is refused before anybody trains, in these words."""
    model, data = model_data or people()
    with pytest.raises(ParameterError, match=match):
        list(federate(model, data, settings, **{"local": NeverSGD()} | how))


# ------------------------------------------------------------------ S1: false without a word


def test_s1_1a_fixed_cohorts_of_few_members_are_booked_as_drawn():
    model, data = people(116)
    who = Participation(members=Membership.only(torch.arange(116) < 20))
    done = last(model, data, PRIVATE, participation=who, uplink=CENTRAL)
    assert sorted(done.cohort.tolist()) == list(range(20))
    by_hand = epsilon([Release(2.0, 1.0, 4, "fixed")], 1e-4, relation="replace-one")
    assert eps(done) == pytest.approx(by_hand) == pytest.approx(8.877, abs=1e-3)
    assert eps(done) == eps(last(*people(20), PRIVATE, uplink=CENTRAL))


def test_s1_1b_members_that_come_are_booked_by_the_rates_that_were_used():
    who = Participation(members=Membership.drawn(116, 4, late=0.6, early=0.0))
    assert [len(who.members(k)) for k in (1, 2, 3, 4)] == [45, 67, 92, 116]
    done = last(*people(116), PRIVATE, participation=who, uplink=CENTRAL)
    drawn = [Release(2.0, 20 / n, 1, "fixed") for n in (45, 67, 92, 116)]
    by_hand = epsilon(drawn, 1e-4, relation="replace-one", method="rdp")
    assert eps(done) == pytest.approx(by_hand) == pytest.approx(5.552, abs=1e-3)
    assert done.state["ledger"]["releases"] == {
        (2.0, 20 / n, "fixed"): 1 for n in (45, 67, 92, 116)
    }


def test_s1_1c_a_poisson_cohort_is_booked_by_its_chance():
    poisson = PRIVATE.replace(sampling="poisson")
    everybody = last(*people(116), poisson, uplink=CENTRAL)
    by_hand = epsilon([Release(2.0, 20 / 116, 4)], 1e-4)
    assert eps(everybody) == pytest.approx(by_hand) == pytest.approx(0.759, abs=1e-3)
    who = Participation(members=Membership.only(torch.arange(116) < 45))
    some = last(*people(116), poisson, participation=who, uplink=CENTRAL)
    assert eps(some) == pytest.approx(epsilon([Release(2.0, 20 / 45, 4)], 1e-4))


@pytest.mark.parametrize("asked", [{"clip": 0.01}, {"noise": 100.0}, {"budget": 0.001}])
def test_s1_2a_privacy_without_its_stages_is_refused(asked):
    (name,) = asked
    refused(
        rf"{name}=.*nothing in this run reads it.*(clip|gaussian noise)",
        settings=QUICK.replace(**asked),
    )
    done = list(federate(*people(), QUICK.replace(clip=0.01, noise=100.0), uplink=CENTRAL))
    assert not equal(done[-1], last(*people(), QUICK))
    assert all(eps(each) > 0 for each in done)


@pytest.mark.parametrize(
    ("asked", "owner"),
    [
        ({"buffer": 3}, "buffered"),
        ({"method": "fedasync"}, "buffered"),
        ({"liars": 0.5}, "poison"),
        ({"codec": "signs"}, "error feedback"),
        ({"aggregation": "krum"}, "experiment"),
        ({"schedule": "buffered"}, "experiment"),
        ({"uplink": "poison"}, "experiment"),
        ({"byzantine": 3}, "krum"),
        ({"quantile": 0.5}, "clip"),
    ],
)
def test_s1_2b_a_knob_of_another_part_is_refused(asked, owner):
    (name,) = asked
    refused(rf"{name}=.*nothing in this run reads it.*{owner}", settings=QUICK.replace(**asked))


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ({}, {"aggregate": Krum(byzantine=2)}),
        ({"liars": 0.5}, {"uplink": [Poison()]}),
        ({}, {"uplink": [ErrorFeedback()]}),
        ({}, {"schedule": Buffered()}),
        ({"late": 0.5}, {}),
    ],
)
def test_s1_2c_with_its_part_it_acts(asked, how):
    plain, done = last(*people(), QUICK), last(*people(), QUICK.replace(**asked), **how)
    assert not equal(plain, done)


def test_s1_2d_a_private_run_does_not_go_on_without_noise():
    poisson = PRIVATE.replace(sampling="poisson", rounds=2)
    before = last(*people(), poisson, uplink=CENTRAL)
    assert eps(before) == pytest.approx(2.533, abs=1e-3)
    for start in (before, replace(before, number=0)):
        refused(
            r"start=.*epsilon of 2\.53.*noise",
            start=start,
            settings=QUICK.replace(sampling="poisson"),
        )


# name -> settings, and how: made anew for each run, as a new process would
ROADS = {
    "plain": (QUICK, dict),
    "adam": (QUICK.replace(server_optimizer="adam"), dict),
    "krum": (QUICK, lambda: {"aggregate": Krum(byzantine=2)}),
    "hierarchical": (QUICK, lambda: {"aggregate": Hierarchical(torch.arange(20) % 4)}),
    "scaffold": (QUICK, lambda: {"local": Scaffold()}),
    "members": (QUICK.replace(late=0.5, cohort=5), dict),
    "meta": (Settings(rounds=4, cohort=20, negatives=2), lambda: {"local": Meta()}),
    "implicit": (Settings(rounds=4, cohort=10), lambda: {"local": Implicit()}),
    "ease": (Settings(rounds=4, cohort=10), lambda: {"local": Ease()}),
    "buffered": (QUICK.replace(cohort=10, buffer=5), lambda: {"schedule": Buffered()}),
    "private": (
        PRIVATE.replace(teaching_seed=0, cohort=9),
        lambda: {"uplink": [Clip(), GaussianNoise()]},
    ),
    "adaptive clip": (
        PRIVATE.replace(teaching_seed=0, quantile=0.5, noise=1.0),
        lambda: {"uplink": [Clip(), GaussianNoise()]},
    ),
    "secure sum": (
        PRIVATE.replace(teaching_seed=0, cohort=5),
        lambda: {"uplink": [Clip(), SecureSum(), GaussianNoise()]},
    ),
    "local noise": (
        PRIVATE.replace(teaching_seed=0, cohort=5),
        lambda: {"uplink": [Clip(), LocalNoise()]},
    ),
    "noisy attack": (
        QUICK.replace(attack="noisy", liars=0.25, cohort=10),
        lambda: {"uplink": [Poison()]},
    ),
} | {
    codec: (QUICK.replace(codec=codec), lambda: {"uplink": [ErrorFeedback()]})
    for codec in ("signs", "4 bits", "largest tenth")
}


@pytest.mark.parametrize("road", ROADS)
def test_s1_3_a_resumed_run_is_the_uninterrupted_one(road):
    model, data = people(private=road != "meta")
    model = item_item(40) if road == "ease" else model
    source = (model, Episodes(data, (1, 2), 3)) if road == "meta" else (model, data)
    asked, made = ROADS[road]
    how = made()
    whole = list(federate(*source, asked, **how))
    kept = copy.deepcopy(whole[1].state)
    assert equal(whole[-1], last(*source, asked, **made(), start=whole[1]))
    assert equal(whole[-1], last(*source, asked, **how))  # 3c: the same objects, another run
    assert same_state(kept, whole[1].state)  # what a Round holds is not changed by later ones


def same_state(one, other):
    """Whether two states hold the same numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(v, other[n]) for n, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    if hasattr(one, "__dict__"):
        return same_state(vars(one), vars(other))
    return one == other


def test_s1_3b_the_ledger_of_dp_sgd_is_in_the_round():
    asked = Settings(
        rounds=4, cohort=2, batch_size=4, local_lr=0.1, example_noise=1.5, teaching_seed=0
    )
    whole = list(federate(*platforms(), asked, local=DPSGD()))
    again = last(*platforms(), asked, local=DPSGD(), start=whole[1])
    by_hand = epsilon([Release(1.5, 0.2, 20)], 1e-3)
    assert by_hand == pytest.approx(2.191, abs=1e-3)
    for done in (whole[-1], again):
        assert proven_for_examples(done.state["ledger"], 1e-3) == pytest.approx(
            {0: by_hand, 1: by_hand}
        )
    assert proven_for_examples(whole[1].state["ledger"], 1e-3)[0] == pytest.approx(1.539, abs=1e-3)
    assert equal(whole[-1], again)


def item_step(uplink, **turned):
    """What one round of implicit factorisation adds to the items."""
    model, data = people()
    asked = Settings(rounds=1, cohort=20, mean_clicks=10.0, **turned)
    done = last(model, data, asked, local=Implicit(), uplink=uplink)
    return done.params["item"] - model.init(0)["item"]


@pytest.mark.parametrize("uplink", [SEALED, CENTRAL], ids=["secure sum", "plain sum"])
def test_s1_4_second_moments_go_through_the_sum(uplink):
    own = item_step([])
    step = item_step(uplink, clip=100.0, noise=1e-6)
    assert float((step - own).norm() / own.norm()) < 1e-3
    cut = item_step(uplink, clip=0.01, noise=1e-6)  # p p' is a part of what is clipped
    sent = joined_updates(Implicit().train(context_of(), torch.arange(20)))
    assert set(sent.deltas) == {"item", "clicks", "gram", "user"}
    assert float((cut - own).norm()) > 0.5 * float(own.norm())


def context_of():
    """What a local method may know of the first round of everybody."""
    model, data = people()
    asked = Settings()
    return fedlab.core.RoundContext(model, data, asked, Round(0, asked, {}), model.init(0), {})


# ------------------------------------------------------------------ S2: ignored without a word


def test_s2_5a_warm_up_acts_beside_a_buffer():
    asked = QUICK.replace(cohort=10, buffer=5)
    plain, warm = (
        last(*people(), asked.replace(warm_up=wait), schedule=Buffered()) for wait in (0, 100)
    )
    assert not equal(plain, warm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 users and 130 films as files, for the workbench."""
    where = tmp_path_factory.mktemp("films")
    films_ = [f"{i},Film {i} (19{i % 90 + 10}),{('Comedy', 'Drama')[i % 2]}" for i in range(130)]
    (where / "movies.csv").write_text("\n".join(["movieId,title,genres", *films_]))
    rated = [
        f"{u},{(u * 13 + k * (u % 5 + 3)) % 130},{(u + k) % 5 + 1},{k}"
        for u in range(24)
        for k in range(8 + u % 4)
    ]
    (where / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rated]))
    return str(where)


@pytest.mark.parametrize("asked", [{"late": 0.5}, {"early": 0.5}])
def test_s2_5b_the_workbench_refuses_members_beside_a_buffer(asked, folder):
    settings = Settings(
        data=folder,
        rounds=2,
        schedule="buffered",
        buffer=3,
        cohort=6,
        dim=4,
        measure_every=9,
        **asked,
    )
    said = r"buffered: needs .*late=0 and early=0.*participation"
    with pytest.raises(ParameterError, match=said):
        list(stream(lambda: settings))


def test_s2_5b_the_workbench_warms_up_beside_a_buffer(folder):
    base = Settings(
        data=folder, rounds=2, schedule="buffered", buffer=3, cohort=6, dim=4, measure_every=9
    )
    one, other = (
        list(stream(lambda asked=asked: asked))[-1] for asked in (base, base.replace(warm_up=9))
    )
    assert not equal(one, other)


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 2},
        {"precision": "bf16"},
        {"engine": "compiled"},
        {"micro_batch": 4},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"local_epochs": 3},
        {"local_lr": 0.01},
        {"negatives": 0},
        {"proximal": 1.0},
    ],
)
def test_s2_5c_implicit_refuses_what_it_does_not_read(asked):
    (name,) = asked
    refused(
        rf"{name}=.*nothing in this run reads it beside .*implicit.*sgd",
        local=NeverImplicit(),
        settings=Settings(cohort=20, **asked),
    )
    assert last(*people(), Settings(rounds=1, cohort=20), local=Implicit()).number == 1


def test_s2_5c_implicit_refuses_another_weighting():
    refused(
        r"weighting='equal': weighted mean does not read it in this combination",
        local=NeverImplicit(),
        settings=Settings(cohort=20, weighting="equal"),
    )


@pytest.mark.parametrize(
    "asked", [{"batch_size": 2}, {"precision": "bf16"}, {"engine": "compiled"}, {"micro_batch": 4}]
)
def test_s2_5d_meta_refuses_what_it_does_not_read(asked):
    (name,) = asked
    model, data = people(private=False)
    refused(
        rf"{name}=.*nothing in this run reads it beside .*meta.*sgd",
        (model, Episodes(data, (1, 2), 3)),
        Settings(cohort=20, **asked),
        local=NeverMeta(),
    )


def test_s2_5e_weighting_acts_beside_dp_sgd():
    asked = Settings(rounds=2, cohort=2, batch_size=4, local_lr=0.1, teaching_seed=0)
    uneven = platforms(30)
    assert uneven[1].counts.tolist() == [20, 10]
    one, other = (
        last(*uneven, asked.replace(weighting=how), local=DPSGD()) for how in ("examples", "equal")
    )
    assert not equal(one, other)


def test_s2_5f_alone_refuses_control_variates():
    with pytest.raises(ParameterError, match=r"local='scaffold': a client that is alone"):
        next(alone(*people(), Scaffold(local_lr=0.5)))
    model, data = people()
    with pytest.raises(ParameterError, match=r"local='scaffold': a client that is alone"):
        fine_tuned(model, data, model.init(0), Scaffold(local_lr=0.5))


def test_s2_5g_an_engine_that_is_not_there_is_refused_everywhere():
    model, data = people()
    local, params = SGD(engine="captured"), model.init(0)
    for run in (
        lambda: next(federate(model, data, QUICK, local=local)),
        lambda: next(alone(model, data, local)),
        lambda: fine_tuned(model, data, params, local),
    ):
        with pytest.raises(ParameterError, match=r"engine='captured'"):
            run()


@pytest.mark.parametrize("name", MEDIANS)
def test_s2_5h_rules_without_weights_refuse_weighting(name):
    refused(
        rf"weighting='equal': nothing in this run reads it beside .*{name}.*weighted mean",
        aggregate=MEDIANS[name],
        settings=QUICK.replace(weighting="equal"),
    )
    refused(
        r"weighting='equal': norm bound does not read it",
        settings=QUICK.replace(weighting="equal"),
        aggregate=NormBound(then=MEDIANS[name]),
    )


@pytest.mark.parametrize("name", MEDIANS)
def test_s2_5i_rules_without_weights_refuse_weights_of_ones_own(name):
    with pytest.raises(ParameterError, match=rf"own weights.*{name}"):
        OwnWeights(torch.ones(20), MEDIANS[name])
    with pytest.raises(ParameterError, match=rf"by quality.*{name}"):
        ByQuality(then=MEDIANS[name])


def test_s2_5j_a_sampler_of_ones_own_is_asked_or_refused():
    calls = []

    def mine(data, count, number, members, *, seed):
        calls.append(number)
        return sample(data, 5, 1, members)

    who = Participation(sampler=mine)
    done = last(*people(), PRIVATE, participation=who, uplink=LOCAL)
    assert calls == [1, 2, 3, 4]
    by_hand = epsilon([Release(2.0, 1.0, 4, "all")], 1e-4, relation="replace-one")
    assert eps(done) == pytest.approx(by_hand)
    assert int((done.state["ledger"]["drift"] > 0).sum()) == 5
    refused(
        r"gaussian noise: needs .*sampler.*participation",
        participation=who,
        uplink=CENTRAL,
        settings=PRIVATE,
    )
    refused(r"buffered: needs .*sampler.*participation", participation=who, schedule=Buffered())
    with pytest.raises(ParameterError, match=r"sampling='poisson': a sampler of your own decides"):
        Participation(sampler=mine, sampling="poisson")


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 2},
        {"precision": "bf16"},
        {"micro_batch": 4},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"local_epochs": 3},
        {"local_lr": 0.01},
        {"weighting": "equal"},
        {"negatives": 0},
        {"warm_up": 100},
    ],
)
def test_s2_5k_these_knobs_act_in_plain_training(asked):
    assert not equal(last(*people(), QUICK), last(*people(), QUICK.replace(**asked)))


SENT, TRAINED = [], []


class Seen(Scaffold):
    """Scaffold that keeps what was sent."""

    def train(self, context, cohort):
        for update in super().train(context, cohort):
            SENT.append(update)
            yield update


def control(rounds, local=None, users=116, **how):
    """SCAFFOLD's c of the items after so many rounds."""
    asked = QUICK.replace(rounds=rounds)
    done = last(*people(users), asked, local=local or Scaffold(), **how)
    return done.state[done_name(local)]["control"].server["item"]


def done_name(local):
    """The name under which a local method keeps its memory."""
    return (local or Scaffold()).name


def test_s2_6a_the_control_follows_what_the_rule_kept():
    SENT.clear()
    mean, krum = control(1), control(1, Seen(), aggregate=Krum(byzantine=2))
    assert not torch.equal(mean, krum)
    every = joined_updates(SENT)
    model, data = people(116)
    every = replace(every, deltas={n: r for n, r in every.deltas.items() if n != "user"})
    shared = model.init(0)
    server = {n: torch.zeros_like(shared[n.removeprefix("control of ")]) for n in every.deltas}
    kept = Krum(byzantine=2)([every], server)["control of item"]
    share = float(every.weights.sum() / data.counts.sum())
    torch.testing.assert_close(krum, share * whole(kept, shared["item"]))


def test_s2_6b_liars_do_not_move_the_control_under_a_robust_rule():
    lies = Poison(clients=torch.arange(0, 116, 10), craft=scaled(-50.0))
    honest, lied = (
        float(control(3, aggregate=Krum(byzantine=2), uplink=uplink).norm())
        for uplink in ([], [lies])
    )
    assert honest > 0
    assert lied < 2 * honest


def test_s2_6c_the_control_is_made_of_what_arrives():
    plain = control(2, users=20)
    assert torch.equal(plain, control(2, users=20, uplink=[ErrorFeedback(own=Plain())]))
    assert not torch.equal(plain, control(2, users=20, uplink=[ErrorFeedback(codec="signs")]))
    asked = QUICK.replace(codec="signs")
    whole_run = list(federate(*people(), asked, local=Scaffold(), uplink=[ErrorFeedback()]))
    again = last(*people(), asked, local=Scaffold(), uplink=[ErrorFeedback()], start=whole_run[1])
    one, other = (
        done.state["scaffold"]["control"].server["item"] for done in (whole_run[-1], again)
    )
    assert torch.equal(one, other)


def test_s2_7a_platforms_are_judged_on_their_own_users():
    model, data = people()
    asked = []

    class Asked(HeldOut):
        def of(self, users):
            asked.append(users.tolist())
            return super().of(users)

    ones = torch.ones(len(data.train))
    held = Asked(data.train.users, data.train.items, ones, ones)
    rule = Hierarchical(PLATFORM, outer=BestModels(judge=judge(model, held, data.owner, own=True)))
    last(model, data, QUICK.replace(rounds=1), aggregate=rule)
    assert asked == [(k == PLATFORM).nonzero()[:, 0].tolist() for k in range(4)]


def test_s2_7b_weights_by_client_are_not_taken_for_weights_by_platform():
    alpha = torch.ones(20)
    with pytest.raises(ParameterError, match=r"alpha='platforms': weights are by client; .*inner"):
        last(
            *people(),
            QUICK.replace(rounds=1),
            aggregate=Hierarchical(PLATFORM, outer=OwnWeights(alpha)),
        )
    heavy = alpha.index_fill(0, torch.tensor([0]), 1e6)
    one, other = (
        last(
            *people(),
            QUICK.replace(rounds=1),
            aggregate=Hierarchical(PLATFORM, inner=OwnWeights(weights)),
        )
        for weights in (alpha, heavy)
    )
    assert not equal(one, other)


# ------------------------------------------------------------------ S3: traps for who extends


def twice(sent, server):
    """A weighted mean as anybody writes it first: the sum of the weights, then that of deltas."""
    total = sum(float(u.weights.sum()) for u in sent)
    out = {name: torch.zeros_like(server[name]) for name in ("item", "bias")}
    for update in sent:
        for name, rows in update.deltas.items():
            rows.add_to(out[name], update.weights / total)
    return out


def test_s3_8a_a_rule_may_walk_twice():
    one = QUICK.replace(rounds=1)
    mean, own = last(*people(), one), last(*people(), one, aggregate=twice)
    torch.testing.assert_close(own.params["item"], mean.params["item"])
    assert len(own.cohort) == 20


class Chunks(SGD):
    """Six clients at a time, as a memory budget would cut them."""

    def train(self, context, cohort):
        for sent in super().train(context, cohort):
            for some in torch.arange(len(sent.cohort)).split(6):
                yield sent.only(torch.isin(torch.arange(len(sent.cohort)), some))


def test_s3_8b_a_rule_may_stop_early():
    def first(sent, server):
        return WeightedMean()([next(iter(sent))], server)

    one = QUICK.replace(rounds=1)
    mean, own = (
        last(*people(116), one, local=Chunks(), aggregate=rule) for rule in (WeightedMean(), first)
    )
    assert not equal(mean, own)
    assert len(own.cohort) == 20
    for name in ("cohort", "losses", "norms"):
        assert torch.equal(getattr(mean, name), getattr(own, name))
    assert (mean.bytes_up, mean.bytes_down) == (own.bytes_up, own.bytes_down)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda item: {"item": item * torch.nan}, r"mine='item': its delta is not finite"),
        (lambda item: {"item": torch.zeros(7, 3)}, r"mine='item \(7, 3\)': .*item"),
        (lambda item: {"film": item}, r"mine='film \(40, 4\)': .*item"),
        (lambda item: {"item": item.long()}, r"mine='item torch.int64': .*float32"),
        (lambda item: {"item": torch.zeros(4, 40).T.double()}, r"mine='item torch.float64'"),
        (lambda item: item, r"mine=.*a delta by name"),
        (lambda item: None, r"mine=.*a delta by name"),
    ],
)
def test_s3_8c_what_is_no_delta_is_said(made, match):
    def mine(sent, server):
        return made(server["item"])

    model, data = people()
    with pytest.raises(ParameterError, match=match):
        last(model, data, QUICK.replace(rounds=1), aggregate=mine)


def shared(count):
    """The updates of the first clients, without private rows, and the server's parameters."""
    model, data = people()
    start = model.init(0)
    cohort = longest_first(data, torch.arange(count))
    sent = list(updates(model, data, start, cohort, LocalSettings()))
    server = {name: start[name] for name in ("item", "bias")}
    return [replace(each, deltas={n: each.deltas[n] for n in server}) for each in sent], server


@pytest.mark.parametrize(
    "rule",
    [WeightedMean(), MeanOfHolders(), CoordinateMedian(), TrimmedMean(), NormBound()],
    ids=lambda rule: rule.name,
)
def test_s3_9a_a_delta_is_of_one_kind(rule):
    for count in (1, 20):
        sent, server = shared(count)
        delta = rule(sent, server)
        assert {name: value.shape for name, value in delta.items()} == {
            name: value.shape for name, value in server.items()
        }


def geometric_median(sent, server):
    """RFA, Pillutla et al. 2022, as somebody writes it who has seen tensors come back."""
    every = joined_updates(sent)
    weights = torch.ones(len(every.cohort))
    for _ in range(3):
        centre = WeightedMean()([replace(every, weights=weights)], server)
        far = torch.zeros(len(weights))
        for name, rows in every.deltas.items():
            away = (rows.values - centre[name][rows.ids]).reshape(len(rows.ids), -1)
            far = far.index_add(0, rows.client, away.square().sum(1))
        weights = 1 / far.sqrt().clamp(min=1e-6)
    return centre


def test_s3_9b_a_geometric_median_of_ones_own():
    assert len(last(*people(), QUICK, aggregate=geometric_median).cohort) == 20
    one = QUICK.replace(rounds=1, cohort=1)
    plain, own = last(*people(), one), last(*people(), one, aggregate=geometric_median)
    torch.testing.assert_close(own.params["item"], plain.params["item"])


class Mine(Local):
    """A local method of one's own, without a word of anything else."""

    def train(self, context, cohort):
        local = LocalSettings(local_lr=0.5, negatives=2, batch_size=8)
        yield from updates(
            context.model,
            context.data,
            context.params,
            cohort,
            local,
            seed=context.seed,
            number=context.number,
        )


def test_s3_10a_a_local_method_of_ones_own_is_a_few_lines():
    asked = Settings(rounds=4, cohort=20)
    usual, mine = last(*people(), QUICK), last(*people(), asked, local=Mine())
    for name, value in usual.params.items():  # but for the order in which updates are added up
        torch.testing.assert_close(value, mine.params[name], atol=1e-6, rtol=1e-5)


def test_s3_10b_control_variates_are_named_in_their_own_file_alone():
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"control\s*:|\bControl\b", path.read_text())
    ]
    assert sorted(found) == ["__init__.py", "scaffold.py"]


def test_s3_11a_noise_beside_a_buffer_names_both_parts():
    refused(
        r"gaussian noise: .*buffered",
        uplink=CENTRAL,
        schedule=Buffered(),
        settings=PRIVATE.replace(cohort=10),
    )
    assert {"clip", "noise", "budget", "delta", "quantile"} <= set(described())
    unread = Experiment(Settings(uplink="clip + gaussian noise")).unread()
    assert not {"clip", "noise", "budget", "delta"} & set(unread)


@pytest.mark.parametrize(
    ("asked", "how"),
    [({"codec": "signs"}, {"uplink": [ErrorFeedback()]}), ({"liars": 0.5}, {"uplink": [Poison()]})],
)
def test_s3_11b_codes_and_attacks_act_beside_a_buffer(asked, how):
    base = QUICK.replace(cohort=10, buffer=5)
    plain = last(*people(), base, schedule=Buffered())
    done = last(*people(), base.replace(**asked), schedule=Buffered(), **how)
    assert not equal(plain, done)
    assert not equal(done, last(*people(), QUICK.replace(cohort=10, **asked), **how))


def test_s3_11b_meta_learning_beside_a_buffer():
    model, data = people(private=False)
    episodes = Episodes(data, (1, 2), 3)
    base = Settings(rounds=4, cohort=10, buffer=5, negatives=2)
    plain, meta = (
        last(model, source, base, schedule=Buffered(), local=local)
        for source, local in ((data, SGD()), (episodes, Meta()))
    )
    assert not equal(plain, meta)
    assert "staleness" in meta.metrics


@pytest.mark.parametrize(
    ("rule", "name"), [(Krum(), "krum"), (Hierarchical(PLATFORM), "hierarchical")]
)
def test_s3_11b_rules_over_clients_beside_a_noisy_sum_name_both(rule, name):
    refused(
        rf"{name}: needs every client's own update, which gaussian noise takes away",
        uplink=CENTRAL,
        aggregate=rule,
        settings=PRIVATE,
    )
    assert eps(last(*people(), PRIVATE, uplink=LOCAL, aggregate=rule)) > 0  # with their own noise


def test_s3_11c_every_method_is_a_choice_of_the_workbench():
    assert {"meta", "implicit", "scaffold", "dp-sgd"} <= set(REGISTRY["local"])
    assert described()["local"].knob.options == tuple(REGISTRY["local"])


class Louder(Stage):
    """Sends ten times what the clip let through."""

    def each(self, update, context):
        ten = torch.full((len(update.cohort),), 10.0)
        return replace(update, deltas={n: r.scaled(ten) for n, r in update.deltas.items()})


class Liar(Louder):
    """Does the same, and says that it keeps the clip."""

    keeps = ("clipped", "equal")


class Laplace(Stage, Spending):
    """Laplace noise of the clip on the sum; it books what it says that it costs."""

    side = "sum"
    needs = ("clipped", "equal")

    def total(self, total, context):
        spread = torch.distributions.Laplace(0, context.notes["clipped"])
        return {name: value + spread.sample(value.shape) for name, value in total.items()}

    def spends(self, context):
        return [Spent(Release(0.7, context.plan.drawn.rate, 1, context.plan.drawn.sampling))]


def test_s3_12a_a_stage_between_clip_and_noise_has_a_say():
    refused(
        r"gaussian noise: needs a bound on the length of every update; louder took it away",
        uplink=[Clip(), Louder(), GaussianNoise()],
        settings=PRIVATE,
    )
    done = last(*people(), PRIVATE.replace(rounds=1), uplink=[Clip(), Liar(), GaussianNoise()])
    assert len(done.rejected) > 5  # the gate believes no one
    assert all("longer than the clip" in reason for reason in done.rejected.values())
    assert float(done.norms.max()) <= 1 + 1e-5
    refused(
        r"gaussian noise: needs .*laplace took it away",
        uplink=[Clip(), Laplace(), GaussianNoise()],
        settings=PRIVATE,
    )


def test_s3_12b_the_noise_is_a_stage_like_any_other():
    torch.manual_seed(0)
    asked = PRIVATE.replace(noise=1.0)
    done = last(*people(), asked, uplink=[Clip(), Laplace()])
    by_hand = epsilon([Release(0.7, 1.0, 4, "fixed")], 1e-4, relation="replace-one")
    assert eps(done) == pytest.approx(by_hand)


def test_s3_12c_a_secure_sum_stands_behind_a_clip_or_is_refused():
    one = Settings(rounds=1, cohort=5)
    plain, sealed = (
        last(*people(), one, uplink=uplink) for uplink in ([Clip()], [Clip(), SecureSum()])
    )
    torch.testing.assert_close(sealed.params["item"], plain.params["item"], atol=1e-6, rtol=1e-5)
    assert "epsilon" not in sealed.metrics
    refused(
        r"secure sum: needs a bound on the length of every update; put clip", uplink=[SecureSum()]
    )
    for wrong in ({"inner": SecureSum()}, {"outer": SecureSum()}):
        with pytest.raises(ParameterError, match=r"aggregate=.*[Ss]ecure ?[Ss]um"):
            Hierarchical(PLATFORM, **wrong)
    refused(r"aggregate=.*[Ss]ecure ?[Ss]um", aggregate=SecureSum())


def test_s3_12d_two_secure_sums_are_refused():
    refused(r"parts='secure sum': it is there twice", uplink=[Clip(), SecureSum(), SecureSum()])


@pytest.mark.parametrize("name", MEDIANS)
def test_s3_13a_a_bound_holds_before_any_rule(name):
    model, data = people()
    start, one = model.init(0)["item"], QUICK.replace(rounds=1)
    for how in (
        {"aggregate": NormBound(bound=1e-3, then=MEDIANS[name])},
        {"aggregate": MEDIANS[name], "uplink": [Clip(clip=1e-3)]},
    ):
        step = last(model, data, one, **how).params["item"] - start
        assert 0 < float(step.abs().max()) <= 1e-3 + 1e-7
    assert (
        float((last(model, data, one, aggregate=MEDIANS[name]).params["item"] - start).abs().max())
        > 2e-3
    )


def test_s3_13b_one_word_for_and_then():
    words = {}
    for folder_ in ("aggregation", "algorithms", "attacks", "communication", "privacy"):
        module = getattr(fedlab, folder_)
        made = [getattr(module, name) for name in module.__all__]
        for each in made:
            if is_dataclass(each):
                words |= {field.name: each for field in fields(each)}
            elif inspect.isfunction(each):
                words |= dict.fromkeys(inspect.signature(each).parameters, each)
    assert "then" in words
    del words["rule"]  # of `as_aggregation`, which makes one of a function
    assert not words.keys() & {"rule", "trained", "between"}


def test_s3_14_errors_name_the_right_knob():
    with pytest.raises(ParameterError, match=r"correction='scaffold': no such parameter"):
        Settings(correction="scaffold")
    refused(
        r"proximal=1.0: nothing in this run reads it beside .*implicit",
        local=NeverImplicit(),
        settings=Settings(cohort=20, proximal=1.0),
    )


@pytest.mark.parametrize(
    "rule",
    [WeightedMean(), MeanOfHolders(), *MEDIANS.values(), NormBound()],
    ids=lambda rule: rule.name,
)
def test_s3_14c_implicit_beside_a_rule_runs_or_names_both(rule):
    asked = Settings(rounds=2, cohort=20)
    if isinstance(rule, WeightedMean):
        assert len(last(*people(), asked, local=Implicit(), aggregate=rule).cohort) == 20
    else:
        refused(
            rf"{rule.name}: needs .*Gram.*implicit",
            local=NeverImplicit(),
            aggregate=rule,
            settings=asked,
        )


def test_s3_14d_implicit_beside_a_code_runs():
    asked = Settings(rounds=2, cohort=20)
    plain, coded = (
        last(*people(), asked, local=Implicit(), uplink=uplink)
        for uplink in ([], [ErrorFeedback()])
    )
    assert not equal(plain, coded)
    assert coded.bytes_up < plain.bytes_up / 2


# ------------------------------------------------------------------ the ledger


def together(central, local):
    """The epsilon of so many sums over everybody and so many releases of each one, by hand."""
    return epsilon([Release(2.0, 1.0, central + local, "all")], 1e-4, relation="replace-one")


def begin_with(done):
    """A start for another kind of run: parameters and ledger, and nothing else."""
    return Round(0, done.settings, done.params, state={"ledger": done.state["ledger"]})


def test_l1_central_then_local_noise_add_up():
    before = last(*people(), PRIVATE, uplink=CENTRAL)
    assert eps(before) == pytest.approx(together(4, 0)) == pytest.approx(8.877, abs=1e-3)
    refused(
        r"start=.*gaussian noise.*local noise",
        start=before,
        uplink=LOCAL,
        settings=PRIVATE.replace(rounds=5),
    )
    done = last(*people(), PRIVATE.replace(rounds=1), uplink=LOCAL, start=begin_with(before))
    assert eps(done) == pytest.approx(together(4, 1)) == pytest.approx(10.231, abs=1e-3)


def test_l2_a_budget_holds_over_placements_in_turn():
    asked, shown, done = PRIVATE.replace(rounds=1, budget=9.0), [], None
    for number in range(4):
        start = begin_with(done) if done else None
        done = last(*people(), asked, uplink=(LOCAL, CENTRAL)[number % 2], start=start)
        shown.append(eps(done))
    assert shown == pytest.approx([3.804, 5.773, 7.411, 8.877], abs=1e-3)
    refused(
        r"budget=9.0: a round would bring epsilon from 8.88 to 10.2",
        settings=asked,
        uplink=LOCAL,
        start=begin_with(done),
    )
    assert together(4, 4) == pytest.approx(13.884, abs=1e-3)


def test_l3_placement_is_no_knob_that_could_turn():
    with pytest.raises(ParameterError, match=r"placement='local': no such parameter"):
        PRIVATE.replace(placement="local")


def test_l4_a_private_run_does_not_go_on_from_rounds_without_noise():
    before = last(*people(), QUICK.replace(rounds=2))
    refused(r"start=.*parts", start=before, uplink=CENTRAL, settings=QUICK)


def test_l5_who_had_a_teaching_seed_proves_nothing_for_good():
    taught = PRIVATE.replace(rounds=2, teaching_seed=0)
    before = last(*people(), taught, uplink=CENTRAL)
    said = before.state["ledger"]["no guarantee"]
    assert said == "the noise comes from teaching_seed=0"
    refused(r"start=.*fixed", start=before, uplink=CENTRAL, settings=PRIVATE)
    done = last(*people(), PRIVATE.replace(rounds=1), uplink=CENTRAL, start=begin_with(before))
    assert done.state["ledger"]["no guarantee"] == said
    assert (
        "no guarantee"
        not in last(*people(), PRIVATE.replace(rounds=1), uplink=CENTRAL).state["ledger"]
    )


def turning(*by_round):
    """Settings that turn: those of each round, then the last."""
    calls = iter(range(10**6))
    return lambda: by_round[min(next(calls), len(by_round) - 1)]


class Counting(SGD):
    """Which rounds were trained."""

    def train(self, context, cohort):
        TRAINED.append(context.number)
        yield from super().train(context, cohort)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("delta", 0.01, 0.4), ("sampling", "poisson", "fixed")]
)
def test_l6_l7_what_epsilon_is_of_does_not_turn(name, before, after):
    TRAINED.clear()
    one, other = (PRIVATE.replace(**{name: value}) for value in (before, after))
    rounds = []
    run = federate(*people(), turning(one, one, other), local=Counting(), uplink=CENTRAL)
    with pytest.raises(ParameterError, match=rf"{name}={after!r}: it is fixed while a run lasts"):
        rounds.extend(done.number for done in run)
    assert TRAINED == rounds == [1, 2]
    if name == "delta":
        poisson = PRIVATE.replace(delta=0.01, sampling="poisson")
        shown = [eps(done) for done in federate(*people(), poisson, uplink=CENTRAL)]
        assert shown[1::2] == pytest.approx([1.459, 2.318], abs=1e-3)


class Odd(SGD):
    """Local training in which `lie` changes the first client's update."""

    lie = None

    def train(self, context, cohort):
        for sent in super().train(context, cohort):
            first = sent.cohort == 0
            yield sent.only(~first)
            yield from type(self).lie(sent.only(first))


def moved_sum(lie):
    """How far client 0 moves the private sum where it lies, in clips of 1, and the Round."""
    model, data = people()
    asked = PRIVATE.replace(rounds=1, noise=1e-6)

    def run(how):
        made = type("Odd", (Odd,), {"lie": staticmethod(how)})
        return last(model, data, asked, local=made(), uplink=CENTRAL)

    with_it, without = run(lie), run(lambda mine: [])
    difference = [20 * (with_it.params[n] - without.params[n]).flatten() for n in ("item", "bias")]
    return float(torch.cat(difference).norm()), with_it


def test_l11_a_client_counts_once_however_often_it_sends():
    def fifty(mine):
        long = {n: replace(r, values=r.values * 1e3) for n, r in mine.deltas.items()}
        return [replace(mine, deltas=long)] * 50

    far, done = moved_sum(fifty)
    assert far <= 1 + 1e-3
    assert done.cohort.tolist().count(0) == 1
    assert done.rejected[0] == "it has already sent an update, which counts"


def test_l12_copies_of_a_row_are_refused():
    def copies(mine):
        zeros = torch.zeros(10_000, dtype=torch.int64)
        item = Rows(torch.full((10_000, 4), 9.0), zeros, zeros)
        return [replace(mine, deltas=mine.deltas | {"item": item})]

    far, done = moved_sum(copies)
    assert far < 1e-3
    assert "do not grow" in done.rejected[0]


@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        ("noise and cohort", 3.289),
        ("cohort, fixed", 5.499),
        ("clip", 0.759),
        ("adaptive clip", 2.560),
        ("drop-outs", 0.759),
        ("deadline", 0.759),
    ],
)
def test_l14_what_the_ledger_did_right_stays_right(turn, shown):
    poisson, fixed, q = PRIVATE.replace(sampling="poisson"), PRIVATE, 20 / 116
    four = [Release(2.0, q, 4)]
    ask, by_hand, relation = {
        "noise and cohort": (
            turning(poisson, poisson, poisson.replace(noise=1.0, cohort=40)),
            [Release(2.0, q, 2), Release(1.0, 40 / 116, 2)],
            "add-remove",
        ),
        "cohort, fixed": (
            turning(fixed, fixed, fixed.replace(cohort=45)),
            [Release(2.0, q, 2, "fixed"), Release(2.0, 45 / 116, 2, "fixed")],
            "replace-one",
        ),
        "clip": (turning(poisson, poisson, poisson.replace(clip=0.1)), four, "add-remove"),
        "adaptive clip": (
            poisson.replace(noise=1.0, quantile=0.5),
            [Release(1.0, q, 4)],
            "add-remove",
        ),
        "drop-outs": (poisson.replace(drop_out=0.5), four, "add-remove"),
        "deadline": (poisson.replace(deadline=1.0), four, "add-remove"),
    }[turn]
    done = last(*people(116), ask, uplink=CENTRAL)
    method = "tight" if relation == "add-remove" else "rdp"
    by_hand = epsilon(by_hand, 1e-4, relation=relation, method=method)
    assert eps(done) == pytest.approx(by_hand) == pytest.approx(shown, abs=1e-3)


def test_epsilon_never_falls_whatever_turns():
    luck = random.Random(0)
    for _ in range(6):
        uplink = luck.choice([CENTRAL, LOCAL])
        base = PRIVATE.replace(rounds=3, sampling=luck.choice(["fixed", "poisson"]))
        asked = [
            base.replace(
                noise=luck.choice([0.5, 2.0, 50.0]),
                clip=luck.choice([0.1, 9.0]),
                cohort=luck.choice([5, 20]),
                drop_out=luck.choice([0.0, 0.9]),
            )
            for _ in range(3)
        ]
        rounds = list(federate(*people(), turning(*asked), uplink=uplink))
        more = list(federate(*people(), base.replace(rounds=5), uplink=uplink, start=rounds[-1]))
        shown = [eps(done) for done in [*rounds, *more]]
        assert all(one <= other for one, other in pairwise(shown))
        assert eps(more[-1]) == proven(more[-1].state["ledger"], 1e-4)


# ------------------------------------------------------------------ found on the way


def test_x1_who_comes_too_late_has_sent_its_noise():
    done = last(*people(), PRIVATE.replace(rounds=2, deadline=1e-9), uplink=LOCAL)
    assert len(done.rejected) == 20
    by_hand = epsilon([Release(2.0, 1.0, 2, "all")], 1e-4, relation="replace-one")
    assert eps(done) == pytest.approx(by_hand) == pytest.approx(5.773, abs=1e-3)


def test_x2_a_sampler_may_name_its_clients_in_any_order():
    def drawn(flip):
        def mine(data, count, number, members, *, seed):
            cohort = sample(data, 5, number, members, seed=seed)
            return cohort.flip(0) if flip else cohort

        return last(*people(), QUICK, participation=Participation(sampler=mine))

    assert equal(drawn(False), drawn(True))


def test_draws_hang_on_the_client_alone():
    _, data = people()
    key = Key(0, "examples", 1)
    alone_, both = (data.draw(torch.tensor(who), 1, 2, key) for who in ([3], [7, 3]))
    mine = both["client"] == 1
    assert torch.equal(alone_["item"], both["item"][mine])
