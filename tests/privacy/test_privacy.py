"""DP-FedAvg.

One client moves the sum by the clip at most, the noise is what it says, the ledger ends the run.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.algorithms import Private, Sent, World, federate, federate_privately
from fedlab.core import Config, ParameterError, Rows, Update
from fedlab.engine import updates
from fedlab.models import matrix_factorisation
from fedlab.privacy import (
    AdaptiveClip,
    CentralNoise,
    Clip,
    LocalNoise,
    NoiseSource,
    Release,
    RoundContext,
    SecureSum,
    epsilon,
    gaussian_epsilon,
    summed,
)

SHAPES = {"item": (5, 3), "bias": (5,)}
QUICK = {"cohort": 100, "local_lr": 0.5, "clip": 0.5, "noise": 1.0}


def scene(expected=4.0, clip=1.0, noise=1.0, quantile=0.0, seed=0, shapes=SHAPES):
    server = {name: torch.zeros(shape) for name, shape in shapes.items()}
    chance = NoiseSource(torch.Generator().manual_seed(seed)) if seed is not None else NoiseSource()
    return RoundContext(clip, noise, quantile, expected, server, chance, {})


def sent(values, weights=None):
    """An Update in which client k has one row of each table: values (C, 4)."""
    values = torch.as_tensor(values, dtype=torch.float32).view(-1, 4)
    clients = len(values)
    ids = torch.arange(clients) % 5
    deltas = {"item": Rows(values[:, :3], ids, torch.arange(clients)), "bias": Rows(values[:, 3],
                                                                                    ids,
                                                                                    torch.arange(
        clients))}
    weights = torch.ones(clients) if weights is None else torch.as_tensor(weights,
                                                                          dtype=torch.float32)
    return Update(deltas, weights, torch.zeros(clients), torch.arange(clients), torch.ones(clients))


class Items:
    """What `Sent` reads of a model."""

    rows, private = {"item": "item", "bias": "item"}, frozenset()


def total(update):
    """The sum as the server has it: clipped, screened, without noise."""
    seen, everything = Sent(Items, scene().server, {}, keep=False), scene(expected=1.0)
    return summed([Clip()], seen.noted(iter([Clip().client(update, everything)])),
                  everything), seen.rejected


ODD = [0.0, -0.0, 1e-45, 1e-30, 1e-8, 1.0, -1.0, 1e8, 1e19, 1e30, 3e38, math.nan, math.inf,
       -math.inf]
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from(ODD)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(NUMBERS, min_size=4, max_size=4), st.floats(0, 1e6), st.integers(0, 2**16))
def test_adding_one_client_moves_the_sum_by_the_clip_at_most(mine, weight, seed):
    others = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * 10
    both = sent(torch.cat([torch.tensor([mine]), others]), [weight, 1.0, 5.0, 0.1])
    without = both.only(torch.tensor([False, True, True, True]))
    (here, rejected), (gone, _) = total(both), total(without)
    moved = math.sqrt(sum(float((here[n].double() - gone[n].double()).square().sum())
                          for n in here))
    assert moved <= 1 + 1e-6
    assert (0 in rejected) == (not all(map(math.isfinite, torch.tensor(mine).tolist())))


def test_ten_thousand_clients_each_within_the_clip():
    torch.manual_seed(0)
    values = torch.randn(10_000, 4) * 10.0 ** torch.randint(-30, 30, (10_000, 1))
    values = torch.where(torch.rand(10_000, 4) < 0.1, torch.tensor(ODD)[torch.randint(len(ODD),
                                                                                      (10_000, 4))],
                         values)
    weights = 10.0 ** torch.randint(-6, 6, (10_000,))
    clipped = Clip().client(sent(values, weights), scene(clip=0.3))
    (kept,) = Sent(Items, scene().server, {}, keep=False).noted(iter([clipped]))
    lengths = torch.cat([kept.deltas["item"].values, kept.deltas["bias"].values[:, None]],
                        1).double().norm(dim=1)
    assert float(lengths.max()) <= 0.3 * (1 + 1e-6)
    assert bool((kept.weights == 1).all())
    finite = values.isfinite().all(1)
    assert torch.equal(kept.cohort, finite.nonzero()[:, 0])
    long = values[finite].double().norm(dim=1) > 0.3
    torch.testing.assert_close(lengths[long], torch.full_like(lengths[long], 0.3), rtol=1e-6,
                               atol=0)


def test_a_sum_by_hand():
    # norms 5 and .5: the first is cut to a fifth
    update = sent([[3.0, 0, 0, 4.0], [0.3, 0, 0, 0.4]], [7.0, 1.0])
    found = summed([Clip()], [Clip().client(update, scene())], scene(expected=4.0))
    torch.testing.assert_close(found["item"][:2, 0], torch.tensor([0.6 / 4, 0.3 / 4]))
    torch.testing.assert_close(found["bias"][:2], torch.tensor([0.8 / 4, 0.4 / 4]))
    longer = summed([Clip()], [Clip().client(update, scene())], scene(expected=8.0))
    # whoever is missing does not count less
    torch.testing.assert_close(longer["bias"] * 2, found["bias"])


@pytest.mark.parametrize("seed", [0, None])
def test_noise_has_the_deviation_that_is_accounted(seed):
    here = scene(clip=0.5, noise=3.0, seed=seed, shapes={"item": (1000, 1000)})
    noise = CentralNoise().server({"item": torch.zeros(1000, 1000, dtype=torch.float64)},
                                  here)["item"]
    assert float(noise.std()) == pytest.approx(1.5, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float((noise.abs() > 3.0).double().mean()) == pytest.approx(math.erfc(math.sqrt(2)),
                                                                       rel=0.05)


def test_noise_is_on_every_row_and_fresh_without_a_teaching_seed():
    one, again = (summed([CentralNoise()], [], scene(seed=None)) for _ in range(2))
    assert bool((one["item"] != 0).all())
    assert not torch.equal(one["item"], again["item"])
    fixed = [summed([CentralNoise()], [], scene(seed=4))["item"] for _ in range(2)]
    assert torch.equal(*fixed)


def test_local_noise_is_on_all_rows_of_every_client():
    noisy = LocalNoise().client(sent([[3.0, 0, 0, 4.0], [0, 0, 0, 0]]), scene(noise=0.1))
    assert noisy.deltas["item"].values.shape == (10, 3)
    assert noisy.deltas["item"].ids.tolist() == [*range(5)] * 2
    assert bool((noisy.deltas["bias"].values != 0).all())
    assert float(noisy.deltas["bias"].values[0]) == pytest.approx(4.0, abs=0.5)
    many = LocalNoise().client(sent(torch.zeros(2000, 4)), scene(noise=2.0, clip=0.5))
    assert float(many.deltas["item"].values.std()) == pytest.approx(1.0, rel=0.02)


def test_the_clip_follows_its_quantile():
    lengths = torch.arange(1, 101) / 10.0  # 0.1 to 10: the median is 5
    here = scene(expected=100.0, clip=0.5, quantile=0.5)
    for number in range(150):
        rule, now = AdaptiveClip(), RoundContext(here.state.get("clip", 0.5), 1.0, 0.5, 100.0,
                                                 here.server,
                                                 NoiseSource(torch.Generator().manual_seed(number)),
                                                 here.state)
        rule.client(sent(torch.stack([lengths, *[torch.zeros(100)] * 3], 1)), now)
        rule.server({}, now)
    assert here.state["clip"] == pytest.approx(5.0, abs=1.0)


@pytest.fixture(scope="module")
def films(split):
    return matrix_factorisation(split.train.user_count, split.train.item_count, 4)


def test_with_a_wide_clip_and_hardly_noise_it_is_fedavg(films, clicks):
    config = {"rounds": 2, "cohort": len(clicks), "local_lr": 0.5, "weighting": "equal"}
    order = clicks.counts.argsort(descending=True, stable=True)
    *_, plain = federate(films, clicks, Config(**config), world=World(sampler=lambda *given: order))
    *_, quiet = federate_privately(films, clicks, Private(**config, clip=1e3, noise=1e-6,
                                                          sampling="fixed"))
    torch.testing.assert_close(quiet.params["item"], plain.params["item"], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(quiet.params["user"], plain.params["user"], atol=1e-5, rtol=1e-3)


def test_the_ledger_counts_and_the_budget_ends_the_run(films, clicks):
    config = Private(rounds=30, budget=3.0, **QUICK)
    rounds = list(federate_privately(films, clicks, config))
    spent = [done.metrics["epsilon"] for done in rounds]
    assert 1 <= len(rounds) < 30
    assert spent == sorted(spent)
    assert spent[-1] <= 3.0 < epsilon([Release(1.0, 100 / 671, len(rounds) + 1)], 1e-4,
                                      method="rdp")
    assert spent[-1] == pytest.approx(epsilon([Release(1.0, 100 / 671, len(rounds))], 1e-4,
                                              method="rdp"))
    more = list(federate_privately(films, clicks, Private(rounds=30, budget=4.0, **QUICK),
                                   start=rounds[-1]))
    assert more[0].number == len(rounds) + 1
    assert more[0].metrics["epsilon"] > spent[-1]
    with pytest.raises(ParameterError,
                       match=r"budget=3.0: a round would bring epsilon to 3\.\d+; choose more"):
        next(federate_privately(films, clicks, config, start=rounds[-1]))


def test_turned_knobs_are_accounted_as_they_were(films, clicks):
    noises = iter([1.0, 2.0, 2.0])
    turned = {"now": 1.0}

    def ask():
        return Private(rounds=3, **(QUICK | {"noise": turned["now"]}))
    *_, last = (turned.update(now=next(noises)) or done for done in federate_privately(films,
                                                                                       clicks, ask))
    q = 100 / 671
    assert last.metrics["epsilon"] == pytest.approx(
        epsilon([Release(1.0, q, 2), Release(2.0, q, 1)], 1e-4, method="rdp"))


def test_fixed_cohorts_are_accounted_as_such(films, clicks):
    *_, last = federate_privately(films, clicks, Private(rounds=2, sampling="fixed", **QUICK))
    assert len(last.cohort) == 100
    assert last.metrics["epsilon"] == pytest.approx(epsilon(
        [Release(1.0, 100 / 671, 2, "fixed")], 1e-4, relation="replace-one", method="rdp"))


def test_sums_over_everybody_are_accounted_exactly(films, clicks):
    *_, last = federate_privately(films, clicks, Private(rounds=2,
                                                         **(QUICK | {"cohort": 671, "noise": 3.0})))
    assert last.metrics["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(2) / 3, 1e-4))


def test_a_secure_sum_is_the_plain_one_and_sends_every_row(films, clicks):
    config = Private(rounds=2, **(QUICK | {"cohort": 12}))
    plain, sealed = ([*federate_privately(films, clicks, config, teaching_seed=0, between=between)]
                     for between in ([], [SecureSum(most=50)]))
    for name, value in plain[-1].params.items():
        torch.testing.assert_close(value, sealed[-1].params[name], atol=1e-6, rtol=1e-5)
    rows = sum(value.numel() for name, value in plain[0].params.items() if name != "user")
    for done in sealed:
        assert done.bytes_up > 4 * rows * len(done.cohort)
        assert done.metrics["secure_s"] > 0
    with pytest.raises(ParameterError, match="placement='local': local noise leaves the bounds"):
        next(federate_privately(films, clicks, replace(config, placement="local"),
                                between=[SecureSum()]))
    with pytest.raises(ParameterError, match=r"most=2: .* clients came; choose as many"):
        next(federate_privately(films, clicks, config, teaching_seed=0,
                                between=[SecureSum(most=2)]))
    with pytest.raises(ParameterError, match=r"share=0\.5: choose more than half"):
        SecureSum(0.5)
    rare = Private(rounds=3, **(QUICK | {"cohort": 1}))
    assert len(list(federate_privately(films, clicks, rare, teaching_seed=0,
                                       between=[SecureSum()]))) == 3


def test_a_secure_sum_keeps_tables_apart_whatever_their_order(films, clicks):
    model = replace(films, rows=dict(reversed(films.rows.items())))
    config = Private(rounds=1, **(QUICK | {"cohort": 6, "noise": 1e-6}))
    plain, sealed = (next(federate_privately(model, clicks, config, teaching_seed=0,
                                             between=between)).params for between in ([],
                                                                                      [
        SecureSum(most=50)]))
    for name, value in plain.items():
        torch.testing.assert_close(value, sealed[name], atol=1e-6, rtol=1e-5)


def test_local_noise_is_accounted_for_the_client_that_sent_most(films, clicks):
    rounds = list(federate_privately(films, clicks, Private(rounds=3, placement="local",
                                                            **(QUICK | {"noise": 50.0}))))
    most = int(torch.bincount(torch.cat([done.cohort for done in rounds])).max())
    assert rounds[-1].metrics["epsilon"] == pytest.approx(gaussian_epsilon(2 * math.sqrt(most) / 50,
                                                                           1e-4))
    rows = sum(value.numel() for name, value in rounds[0].params.items() if name != "user")
    assert rounds[0].bytes_up >= 4 * rows * len(rounds[0].cohort)  # every row of every client


def test_poisson_cohorts_have_the_size_of_chance_and_may_be_empty(films, clicks):
    sizes = [len(done.cohort) for done in federate_privately(films, clicks, Private(
        rounds=12, **QUICK), teaching_seed=1)]
    assert len(set(sizes)) > 3
    assert 80 < sum(sizes) / 12 < 120
    rounds = list(federate_privately(films, clicks, Private(rounds=6, cohort=1, noise=0.5),
                                     teaching_seed=0))
    empty = [done for done in rounds if not len(done.cohort)]
    assert empty
    for done in empty:  # noise alone, as large as ever
        assert not done.skipped
        before = rounds[done.number - 2].params["item"] if done.number > 1 else films.init(0)["item"]
        assert float((done.params["item"] - before).std()) == pytest.approx(0.5, rel=0.1)


def test_missing_clients_leave_the_denominator_as_it_is(films, clicks):
    fixed = {"rounds": 1, "sampling": "fixed", **QUICK} | {"noise": 1e-6}
    (whole,) = federate_privately(films, clicks, Private(**fixed), teaching_seed=0)
    (half,) = federate_privately(films, clicks, Private(**fixed, drop_out=0.5), teaching_seed=0)
    (late,) = federate_privately(films, clicks, Private(**fixed, deadline=5.0), teaching_seed=0,
                                 world=World(pace=0.01, spread=1.0))
    start = films.init(0)["item"]
    lengths = [float((done.params["item"] - start).norm()) for done in (whole, half, late)]
    assert 30 < len(half.cohort) < 70
    assert len(late.rejected) > 0
    assert all("deadline" in reason for reason in late.rejected.values())
    assert lengths[1] < lengths[0]
    assert lengths[2] < lengths[0]


def test_the_same_teaching_seed_gives_the_same_bits_and_none_gives_others(films, clicks):
    config = Private(rounds=2, **QUICK)
    last = [list(federate_privately(films, clicks, config, teaching_seed=seed))[-1] for seed in (3, 3, None, None)]
    ends = [done.params["item"] for done in last]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[2], ends[3])
    assert last[0].state["privacy"]["no guarantee"] == "the noise comes from teaching_seed=3"
    assert "no guarantee" not in last[2].state["privacy"]


def test_a_client_that_sends_no_number_is_rejected_and_noise_stays(films, clicks):
    def broken(*args, **kwargs):
        for update in updates(*args, **kwargs):
            update.deltas["item"].values[update.deltas["item"].client == 0] = math.nan
            yield update
    (done,) = federate_privately(films, clicks, Private(rounds=1, **QUICK), update=broken)
    assert any("not finite" in reason for reason in done.rejected.values())
    assert bool(done.params["item"].isfinite().all())


@pytest.mark.parametrize(("settings_", "message"), [
    ({"noise": 0.0}, "noise=0.0: choose a number from 1e-06"), ({"noise": -1.0}, "noise=-1.0"),
    ({"noise": math.nan}, "noise=nan"), ({"clip": 0.0}, "clip=0.0"), ({"clip": math.nan}, "clip=nan"),
    ({"clip": -1.0}, "clip=-1.0"), ({"delta": 0.0}, "delta=0.0"), ({"budget": -1.0}, "budget=-1.0"),
    ({"sampling": "shuffle"}, "sampling='shuffle'"), ({"cohort": 10_000}, "cohort=10000: choose from 1 to the 671"),
    ({"correction": "scaffold"}, "control variates leave a client without noise"),
    ({"quantile": 0.5, "placement": "local"}, "only the server's noise covers a count"),
    ({"quantile": 0.5, "noise": 50.0}, "noise=50.0: the clip can follow a quantile below"),
    ({"budget": 0.01}, "budget=0.01: a round would bring epsilon to")])
def test_bad_settings_are_refused(settings_, message, films, clicks):
    with pytest.raises(ParameterError, match=message):
        next(federate_privately(films, clicks, Private(**(QUICK | settings_))))


def test_a_config_without_noise_is_refused(films, clicks):
    for config in (Config(cohort=10), lambda: Config(cohort=10)):
        with pytest.raises(ParameterError,
                           match="config='Config': give a Private, which has clip and noise"):
            next(federate_privately(films, clicks, config))


def test_a_delta_as_large_as_one_client_is_warned_of(films, clicks):
    with pytest.warns(UserWarning, match="delta=0.01 is one over the 671 clients or more"):
        next(federate_privately(films, clicks, Private(rounds=1, **QUICK, **{"delta": 0.01})))
