"""DP-FedAvg: a client moves the sum by the clip at most, and the noise is what it says.

The ledger ends the run.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.algorithms import Participation, federate
from fedlab.algorithms.gate import Books, Gate, admitted
from fedlab.core import (
    Drawn,
    ParameterError,
    Plan,
    Round,
    RoundContext,
    Rows,
    Sent,
    Settings,
    Update,
)
from fedlab.engine import SGD
from fedlab.models import matrix_factorisation
from fedlab.privacy import (
    Clip,
    GaussianNoise,
    LocalNoise,
    Release,
    SecureSum,
    epsilon,
    gaussian_epsilon,
    plain_sum,
)
from fedlab.privacy.secure import stages

SHAPES = {"item": (5, 3), "bias": (5,)}
QUICK = {"sampling": "poisson", "cohort": 100, "local_lr": 0.5, "clip": 0.5, "noise": 1.0}
CENTRAL = (Clip(), GaussianNoise())


def scene(*stages, expected=4.0, shapes=SHAPES, clients=4, number=1, memory=None, counted=False):
    """What these stages know of a round in which some clients were invited."""
    asked = {name: (torch.zeros(shape), "item") for name, shape in shapes.items()}
    facts = {
        stage.name: {"clipped": 1.0, "equal": True} | ({"counted": 0.5} if counted else {})
        for stage in (*stages, Gate)
    }
    nobody = torch.empty(0, dtype=torch.int64)
    plan = Plan(
        nobody,
        dict.fromkeys(range(clients), number),
        {},
        0.0,
        Drawn(nobody, 0.5, "fixed", expected),
    )
    data, start = SimpleNamespace(counts=torch.full((clients,), 9)), Settings()
    context = RoundContext(
        None,
        data,
        start,
        Round(number - 1, start, {}),
        {},
        {} if memory is None else memory,
        0,
        facts,
        asked,
        plan,
    )
    for stage in stages:
        stage.begin(context)
    context.notes.setdefault("clipped", 1.0)
    return context


def sent(values, weights=None):
    """An Update in which client k has one row of each table: values (C, 4)."""
    values = torch.as_tensor(values, dtype=torch.float32).view(-1, 4)
    clients = len(values)
    ids, who = torch.arange(clients) % 5, torch.arange(clients)
    deltas = {"item": Rows(values[:, :3], ids, who), "bias": Rows(values[:, 3], ids, who)}
    weights = torch.ones(clients) if weights is None else weights
    weights = torch.as_tensor(weights, dtype=torch.float32)
    return Update(deltas, weights, torch.zeros(clients), torch.arange(clients), torch.ones(clients))


def total(update):
    """The sum as the server has it, clipped and without noise, and who was rejected."""
    stage, books = Clip(clip=1.0), Books({})
    context = scene(stage)
    landed = [Sent(stage.each(update, context), {})]
    return plain_sum(admitted(landed, Gate(), context, books), context.server), books.rejected


ODD = [
    0.0,
    -0.0,
    1e-45,
    1e-30,
    1e-8,
    1.0,
    -1.0,
    1e8,
    1e19,
    1e30,
    3e38,
    math.nan,
    math.inf,
    -math.inf,
]
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from(ODD)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(NUMBERS, min_size=4, max_size=4), st.floats(0, 1e6), st.integers(0, 2**16))
def test_adding_one_client_moves_the_sum_by_the_clip_at_most(mine, weight, seed):
    others = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * 10
    both = sent(torch.cat([torch.tensor([mine]), others]), [weight, 1.0, 5.0, 0.1])
    without = both.only(torch.tensor([False, True, True, True]))
    (here, rejected), (gone, _) = total(both), total(without)
    moved = math.sqrt(
        sum(float((here[n].double() - gone[n].double()).square().sum()) for n in here)
    )
    assert moved <= 1 + 1e-6
    assert (0 in rejected) == (not all(map(math.isfinite, torch.tensor(mine).tolist())))


def test_ten_thousand_clients_each_within_the_clip():
    torch.manual_seed(0)
    values = torch.randn(10_000, 4) * 10.0 ** torch.randint(-30, 30, (10_000, 1))
    odd = torch.tensor(ODD)[torch.randint(len(ODD), (10_000, 4))]
    values = torch.where(torch.rand(10_000, 4) < 0.1, odd, values)
    weights, stage = 10.0 ** torch.randint(-6, 6, (10_000,)), Clip(clip=0.3)
    context = scene(stage, clients=10_000)
    clipped = stage.each(sent(values, weights), context)
    (kept,) = admitted([Sent(clipped, {})], Gate(), context, Books({}))
    numbers = torch.cat([kept.deltas["item"].values, kept.deltas["bias"].values[:, None]], 1)
    lengths = numbers.double().norm(dim=1)
    assert float(lengths.max()) <= 0.3 * (1 + 1e-6)
    assert bool((kept.weights == 1).all())
    finite = values.isfinite().all(1)
    assert torch.equal(kept.cohort, finite.nonzero()[:, 0])
    long = values[finite].double().norm(dim=1) > 0.3
    torch.testing.assert_close(
        lengths[long], torch.full_like(lengths[long], 0.3), rtol=1e-6, atol=0
    )


def test_a_sum_by_hand():
    # norms 5 and .5: the first is cut to a fifth, and weights are those of one client each
    update = sent([[3.0, 0, 0, 4.0], [0.3, 0, 0, 0.4]], [7.0, 1.0])
    found, _ = total(update)
    torch.testing.assert_close(found["item"][:2, 0], torch.tensor([0.6, 0.3], dtype=torch.float64))
    torch.testing.assert_close(found["bias"][:2], torch.tensor([0.8, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, -1])
def test_noise_has_the_deviation_that_is_accounted(seed):
    clip, stage = Clip(clip=0.5), GaussianNoise(noise=3.0, teaching_seed=seed)
    zeros = {"item": torch.zeros(1000, 1000, dtype=torch.float64)}
    noise = stage.total(zeros, scene(clip, stage))["item"]
    assert float(noise.std()) == pytest.approx(1.5, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float((noise.abs() > 3.0).double().mean()) == pytest.approx(
        math.erfc(math.sqrt(2)), rel=0.05
    )


def test_noise_is_on_every_row_and_fresh_without_a_teaching_seed():
    def drawn(seed, number=1):
        clip, stage = Clip(), GaussianNoise(teaching_seed=seed)
        return stage.total(plain_sum([], scene().server), scene(clip, stage, number=number))

    one, again = drawn(-1), drawn(-1)
    assert all(bool((value != 0).all()) for value in one.values())
    assert not torch.equal(one["item"], again["item"])
    assert torch.equal(drawn(4)["item"], drawn(4)["item"])
    assert not torch.equal(drawn(4)["item"], drawn(4, number=2)["item"])
    assert not torch.equal(drawn(4)["item"][:, 0], drawn(4)["bias"])


def test_local_noise_is_on_all_rows_of_every_client():
    def noisy(values, clip, noise, seed=-1):
        stage = LocalNoise(noise=noise, teaching_seed=seed)
        update = sent(values)
        return stage.each(update, scene(Clip(clip=clip), stage, clients=len(update.cohort))).deltas

    two = noisy([[3.0, 0, 0, 4.0], [0, 0, 0, 0]], 1.0, 0.1)
    assert two["item"].values.shape == (10, 3)
    assert two["item"].ids.tolist() == [*range(5)] * 2
    assert bool((two["bias"].values != 0).all())
    assert float(two["bias"].values[0]) == pytest.approx(4.0, abs=0.5)
    many = noisy(torch.zeros(2000, 4), 0.5, 2.0)["item"].values
    assert float(many.std()) == pytest.approx(1.0, rel=0.02)
    assert not torch.equal(many, noisy(torch.zeros(2000, 4), 0.5, 2.0)["item"].values)
    fixed = [noisy(torch.zeros(2000, 4), 0.5, 2.0, seed=4)["item"].values for _ in range(2)]
    assert torch.equal(*fixed)
    assert float(fixed[0].std()) == pytest.approx(1.0, rel=0.02)


def test_the_clip_follows_its_quantile():
    lengths = torch.arange(1, 101) / 10.0  # 0.1 to 10: the median is 5
    update, memory = sent(torch.stack([lengths, *[torch.zeros(100)] * 3], 1)), {}
    clip = Clip(clip=0.5, quantile=0.5)
    for number in range(1, 151):
        noise = GaussianNoise(noise=1.0, teaching_seed=number)
        context = scene(clip, noise, expected=100.0, memory=memory, counted=True)
        clip.each(update, context)
        noise.total({}, context)
        clip.done(context)
    assert memory["clip"]["clip"] == pytest.approx(5.0, abs=1.0)


def test_a_step_of_the_clip_by_hand():
    # 3 of 4 are no longer than 2: C <- 2 exp(-.2 (3/4 - 1/2))
    update, memory = sent([[0.5, 0, 0, 0], [1.0, 0, 0, 0], [2.0, 0, 0, 0], [9.0, 0, 0, 0]]), {}
    clip = Clip(clip=2.0, quantile=0.5)
    context = scene(clip, memory=memory)
    clip.each(update, context)
    clip.done(context)
    assert memory["clip"]["clip"] == pytest.approx(2 * math.exp(-0.05))


@pytest.fixture(scope="module")
def films(split):
    return matrix_factorisation(split.train.user_count, split.train.item_count, 4)


def test_with_a_wide_clip_and_hardly_noise_it_is_fedavg(films, clicks):
    plain_settings = Settings(rounds=2, cohort=len(clicks), local_lr=0.5)
    *_, plain = federate(films, clicks, plain_settings.replace(weighting="equal"))
    *_, quiet = federate(
        films, clicks, plain_settings, uplink=[Clip(clip=1e3), GaussianNoise(noise=1e-6)]
    )
    for name in ("item", "user"):
        torch.testing.assert_close(quiet.params[name], plain.params[name], atol=1e-5, rtol=1e-3)


def test_the_ledger_counts_and_the_budget_ends_the_run(films, clicks):
    asked = Settings(rounds=30, budget=3.0, **QUICK)
    rounds = list(federate(films, clicks, asked, uplink=CENTRAL))
    spent = [done.metrics["epsilon"] for done in rounds]
    assert 1 <= len(rounds) < 30
    assert spent == sorted(spent)
    assert spent[-1] <= 3.0 < epsilon([Release(1.0, 100 / 671, len(rounds) + 1)], 1e-4)
    assert spent[-1] == pytest.approx(epsilon([Release(1.0, 100 / 671, len(rounds))], 1e-4))
    more = list(
        federate(films, clicks, asked.replace(budget=3.2), uplink=CENTRAL, start=rounds[-1])
    )
    assert more[0].number == len(rounds) + 1
    assert more[0].metrics["epsilon"] > spent[-1]
    with pytest.raises(
        ParameterError,
        match=r"budget=3.0: a round would bring epsilon from 2\.\d+ to 3\.\d+; choose more",
    ):
        next(federate(films, clicks, asked, uplink=CENTRAL, start=rounds[-1]))


def test_turned_knobs_are_accounted_as_they_were(films, clicks):
    noises = iter([1.0, 2.0, 2.0])
    turned = {"now": 1.0}

    def ask():
        return Settings(rounds=3, **QUICK | {"noise": turned["now"]})

    *_, last = (
        turned.update(now=next(noises)) or done
        for done in federate(films, clicks, ask, uplink=CENTRAL)
    )
    q = 100 / 671
    assert last.metrics["epsilon"] == pytest.approx(
        epsilon([Release(1.0, q, 2), Release(2.0, q, 1)], 1e-4)
    )


def test_fixed_cohorts_are_accounted_as_such(films, clicks):
    asked = Settings(rounds=2, **QUICK | {"sampling": "fixed"})
    *_, last = federate(films, clicks, asked, uplink=CENTRAL)
    assert len(last.cohort) == 100
    assert last.metrics["epsilon"] == pytest.approx(
        epsilon([Release(1.0, 100 / 671, 2, "fixed")], 1e-4, relation="replace-one", method="rdp")
    )


def test_sums_over_everybody_are_accounted_exactly(films, clicks):
    asked = Settings(rounds=2, **QUICK | {"cohort": 671, "noise": 3.0})
    *_, last = federate(films, clicks, asked, uplink=CENTRAL)
    assert last.metrics["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(2) / 3, 1e-4))


def test_a_secure_sum_is_the_plain_one_and_sends_every_row(films, clicks):
    asked = Settings(rounds=2, teaching_seed=0, **QUICK | {"cohort": 20})
    plain, sealed = (
        list(federate(films, clicks, asked, uplink=uplink))
        for uplink in (CENTRAL, [Clip(), SecureSum(), GaussianNoise()])
    )
    for name, value in plain[-1].params.items():
        torch.testing.assert_close(value, sealed[-1].params[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(plain[-1].params["item"], sealed[-1].params["item"])  # it is fixed point
    rows = sum(value.numel() for name, value in plain[0].params.items() if name != "user")
    for done in sealed:
        assert done.bytes_up > 4 * rows * len(done.cohort)
        assert done.metrics["secure_s"] > 0


def test_a_secure_sum_over_one_is_refused_or_not_opened(films, clicks, monkeypatch):
    """At most one client of a cohort of two is left in most rounds: nobody asks for its sum."""
    plain, noisy = [Clip(), SecureSum()], [Clip(), SecureSum(), GaussianNoise()]
    for uplink in (plain, noisy):
        with pytest.raises(ParameterError, match="cohort=1: a sum over one client is that client"):
            next(federate(films, clicks, Settings(cohort=1), uplink=uplink))
    sums, real = [], stages.secure_sum
    monkeypatch.setattr(
        stages, "secure_sum", lambda v, *more, **how: sums.append(len(v)) or real(v, *more, **how)
    )
    rounds = []
    two = Settings(rounds=12, cohort=2, clip=0.5, seed=1)
    for asked in (two.replace(drop_out=0.5), two.replace(sampling="poisson")):
        found = list(federate(films, clicks, asked, uplink=plain))
        lone = [done for done in found if "a sum over one is that one's update" in done.skipped]
        assert lone
        for done in lone:
            before = found[done.number - 2].params if done.number > 1 else films.init(1)
            assert torch.equal(done.params["item"], before["item"])
        rounds += found
    assert len(sums) == sum(len(done.cohort) > 1 for done in rounds)
    assert min(sums) > 1


def test_rounds_with_one_alone_by_chance_are_rare_where_epsilon_is_told(films, clicks):
    asked = Settings(rounds=1, noise=1.0, sampling="poisson", cohort=12)
    uplink = [Clip(), SecureSum(), GaussianNoise()]
    chance = (1 - 12 / 671) ** 671 + 12 * (1 - 12 / 671) ** 670  # nobody, or one of 671
    with pytest.raises(ParameterError, match=rf"cohort=12.*in {chance:.0e} of rounds"):
        next(federate(films, clicks, asked, uplink=uplink))
    with pytest.raises(ParameterError, match=r"cohort=20.*sampling='fixed'"):
        next(federate(films, clicks, asked.replace(cohort=20, drop_out=0.5), uplink=uplink))
    assert not next(federate(films, clicks, asked.replace(cohort=20), uplink=uplink)).skipped
    assert not next(federate(films, clicks, asked.without(["sampling"]), uplink=uplink)).skipped


def test_a_secure_sum_keeps_tables_apart_whatever_their_order(films, clicks):
    model = replace(films, rows=dict(reversed(films.rows.items())))
    asked = Settings(rounds=1, teaching_seed=0, **QUICK | {"cohort": 20, "noise": 1e-6})
    plain, sealed = (
        next(federate(model, clicks, asked, uplink=uplink)).params
        for uplink in (CENTRAL, [Clip(), SecureSum(), GaussianNoise()])
    )
    for name, value in plain.items():
        torch.testing.assert_close(value, sealed[name], atol=1e-6, rtol=1e-5)


def test_local_noise_is_accounted_for_the_client_that_sent_most(films, clicks):
    asked = Settings(rounds=3, **QUICK | {"noise": 50.0})
    rounds = list(federate(films, clicks, asked, uplink=[Clip(), LocalNoise()]))
    most = int(torch.bincount(torch.cat([done.cohort for done in rounds])).max())
    assert rounds[-1].metrics["epsilon"] == pytest.approx(
        gaussian_epsilon(2 * math.sqrt(most) / 50, 1e-4)
    )
    rows = sum(value.numel() for name, value in rounds[0].params.items() if name != "user")
    assert rounds[0].bytes_up >= 4 * rows * len(rounds[0].cohort)  # every row of every client


def test_poisson_cohorts_have_the_size_of_chance_and_may_be_empty(films, clicks):
    asked = Settings(rounds=12, teaching_seed=1, **QUICK)
    sizes = [len(done.cohort) for done in federate(films, clicks, asked, uplink=CENTRAL)]
    assert len(set(sizes)) > 3
    assert 80 < sum(sizes) / 12 < 120
    rare = Settings(rounds=6, sampling="poisson", cohort=1, noise=0.5, teaching_seed=0)
    rounds = list(federate(films, clicks, rare, uplink=CENTRAL))
    empty = [done for done in rounds if not len(done.cohort)]
    assert empty
    for done in empty:  # noise alone, as large as ever
        assert not done.skipped
        before = (rounds[done.number - 2].params if done.number > 1 else films.init(0))["item"]
        assert float((done.params["item"] - before).std()) == pytest.approx(0.5, rel=0.1)


def test_missing_clients_leave_the_denominator_as_it_is(films, clicks):
    fixed = Settings(rounds=1, teaching_seed=0, **QUICK | {"sampling": "fixed", "noise": 1e-6})
    whole, half, late = (
        next(federate(films, clicks, fixed.replace(**more), uplink=CENTRAL))
        for more in ({}, {"drop_out": 0.5}, {"deadline": 5.0})
    )
    start = films.init(0)["item"]
    lengths = [float((done.params["item"] - start).norm()) for done in (whole, half, late)]
    assert 30 < len(half.cohort) < 70
    assert len(late.rejected) > 0
    assert all("deadline" in reason for reason in late.rejected.values())
    assert lengths[1] < lengths[0]
    assert lengths[2] < lengths[0]


def test_a_mean_under_noise_is_over_those_expected(films, clicks):
    # half of the clients dropped out: the sum of the others over 100, by hand
    asked = Settings(
        rounds=1,
        drop_out=0.5,
        teaching_seed=0,
        **QUICK | {"sampling": "fixed", "noise": 1e-6, "clip": 1e3},
    )
    (done,) = federate(films, clicks, asked, uplink=CENTRAL)
    here = done.cohort[clicks.counts[done.cohort].argsort(descending=True, stable=True)]
    plain = asked.replace(
        drop_out=0.0,
        noise=1.0,
        clip=1.0,
        teaching_seed=-1,
        sampling="fixed",
        weighting="equal",
        cohort=len(here),
    )
    who = Participation(sampler=lambda *given, **named: here)
    (mean,) = federate(films, clicks, plain, participation=who)
    start = films.init(0)["bias"]
    torch.testing.assert_close(
        (done.params["bias"] - start) * 100,
        (mean.params["bias"] - start) * len(here),
        atol=2e-2,
        rtol=1e-3,
    )


def test_the_same_teaching_seed_gives_the_same_bits_and_none_gives_others(films, clicks):
    def last(seed, uplink=CENTRAL):
        *_, done = federate(
            films, clicks, Settings(rounds=2, teaching_seed=seed, **QUICK), uplink=uplink
        )
        return done.params["item"], done.cohort.tolist()

    assert torch.equal(last(3)[0], last(3)[0])
    one, other = last(-1), last(-1)
    assert not torch.equal(one[0], other[0])
    assert one[1] != other[1]  # who takes part is not to be foreseen, either
    assert not torch.equal(last(3)[0], last(4)[0])
    local = [Clip(), LocalNoise()]
    assert torch.equal(last(3, local)[0], last(3, local)[0])


@pytest.mark.parametrize(
    "uplink",
    [
        CENTRAL,
        [Clip(quantile=0.5), GaussianNoise()],
        [Clip(), LocalNoise()],
        [Clip(), SecureSum(), GaussianNoise()],
    ],
    ids=["central", "adaptive clip", "local", "secure sum"],
)
def test_a_resumed_run_is_the_uninterrupted_one(uplink, films, clicks):
    asked = Settings(rounds=4, teaching_seed=0, **QUICK | {"cohort": 20})
    whole = list(federate(films, clicks, asked, uplink=uplink))
    rest = list(federate(films, clicks, asked, uplink=uplink, start=whole[1]))
    assert [done.number for done in rest] == [3, 4]
    for done, again in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(value, again.params[name]) for name, value in done.params.items())
        assert done.metrics["epsilon"] == again.metrics["epsilon"]


class Broken(SGD):
    """A client whose first update is not a number."""

    def train(self, context, cohort):
        for update in super().train(context, cohort):
            update.deltas["item"].values[update.deltas["item"].client == 0] = math.nan
            yield update


def test_a_client_that_sends_no_number_is_rejected_and_noise_stays(films, clicks):
    (done,) = federate(films, clicks, Settings(rounds=1, **QUICK), local=Broken(), uplink=CENTRAL)
    assert any("not finite" in reason for reason in done.rejected.values())
    assert bool(done.params["item"].isfinite().all())


class Never(SGD):
    """Nobody may train with it."""

    def train(self, context, cohort):
        raise AssertionError("somebody trained")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"noise": 0.0}, "noise=0.0: choose a number from 1e-06"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"noise": math.nan}, "noise=nan"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": math.nan}, "clip=nan"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"budget": -1.0}, "budget=-1.0"),
        ({"sampling": "shuffle"}, "sampling='shuffle'"),
        ({"answering": 0.5}, r"answering=0\.5"),
        ({"cohort": 10_000}, "cohort=10000: the federation has 671 clients; choose from 1 to 671"),
        ({"quantile": 0.5, "noise": 50.0}, "noise=50.0: the clip can follow a quantile below"),
        ({"budget": 0.01}, "budget=0.01: a round would bring epsilon from 0 to"),
    ],
)
def test_bad_settings_are_refused(asked, message, films, clicks):
    with pytest.raises(ParameterError, match=message):
        next(federate(films, clicks, Settings(**QUICK | asked), local=Never(), uplink=CENTRAL))


@pytest.mark.parametrize(
    ("uplink", "message"),
    [
        (
            [GaussianNoise()],
            "gaussian noise: needs a bound on the length of every update; put clip",
        ),
        ([LocalNoise()], "local noise: needs a bound on the length of every update; put clip"),
        ([SecureSum()], "secure sum: needs a bound on the length of every update; put clip"),
        ([Clip(), LocalNoise(), GaussianNoise()], "gaussian noise: .*; local noise took it away"),
        ([Clip(), LocalNoise(), SecureSum()], "secure sum: .*; local noise took it away"),
        (
            [Clip(quantile=0.5), LocalNoise()],
            "local noise: needs nobody's length counted, which clip",
        ),
        (
            [Clip(), GaussianNoise(), SecureSum()],
            "secure sum: needs .*, which gaussian noise takes away",
        ),
        ([Clip(), GaussianNoise(), Clip()], "parts='clip': it is there twice"),
    ],
)
def test_stages_that_would_prove_nothing_are_refused(uplink, message, films, clicks):
    with pytest.raises(ParameterError, match=message):
        next(federate(films, clicks, Settings(cohort=5), local=Never(), uplink=uplink))


def test_a_delta_as_large_as_one_client_is_warned_of(films, clicks):
    with pytest.warns(UserWarning, match="delta=0.01 is one over the 671 clients or more"):
        next(federate(films, clicks, Settings(rounds=1, delta=0.01, **QUICK), uplink=CENTRAL))
