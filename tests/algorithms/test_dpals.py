"""DPALS against plain least squares, one item after another; its bound, epsilon and refusals."""

from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from conftest import context, tiny
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from oracle import implicit_loss

from fedlab import Settings, federate
from fedlab.aggregation import Krum
from fedlab.algorithms import DPALS, personal_scores
from fedlab.algorithms.published.dpals import packed, pairs, second_moments
from fedlab.core import ParameterError
from fedlab.data import Federation, by_activity, one_per_user
from fedlab.evaluation import candidates, clicked, popularity, ranking
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, Ledger, SecureSum, plain_sum
from fedlab.workbench import stream

STRONG = {"unseen": 1.0, "regularisation": 0.5}  # for so few users
NOISY = {"mean_clicks": 4.0, "delta": 0.01, "teaching_seed": 0, "sampling": "poisson"}


def rounds(data, dim=3, uplink=(), **turned):
    """The Rounds of a run in which all take part."""
    model = matrix_factorisation(data.train.user_count, data.train.item_count, dim)
    asked = Settings(cohort=len(data), **turned)
    return list(federate(model, data, asked, local=DPALS(), uplink=uplink))


@pytest.fixture(scope="module")
def data(small):
    return Federation(small, one_per_user(small))


def test_without_noise_and_bounds_it_is_alternating_least_squares(small, data):
    """What the first round counts is exact where nobody has more items than are sent."""
    done = rounds(data, rounds=3, user_length=0.0, items_each=11, **STRONG)
    table = clicked(small).double()
    for before, after in pairwise(done):
        users = after.params["user"].double().requires_grad_()
        fixed, items = (r.params["item"].double().requires_grad_() for r in (before, after))
        for free, value in (
            (users, implicit_loss(table, users, fixed, **STRONG)),
            (items, implicit_loss(table, users, items, **STRONG)),
        ):
            (slope,) = torch.autograd.grad(value, [free])
            assert float(slope.abs().max()) < 1e-4
    assert not torch.equal(done[1].params["item"], done[2].params["item"])


@pytest.mark.parametrize(
    ("each", "kept"), [(0, 0), (0, 6), (2, 0), (2, 6)], ids=["all", "top", "rarest", "rarest top"]
)
def test_a_round_is_that_of_loops_over_items_and_users(small, data, each, kept):
    turned = {"items_each": each, "kept_items": kept, "user_length": 0.4, **STRONG}
    turned |= {} if each else {"rarity": 0.5}
    way = DPALS(**turned)
    counted, solved = rounds(data, rounds=2, **turned)
    own = [small.items[small.users == u].tolist() for u in range(15)]
    count = torch.zeros(11, dtype=torch.float64)
    for mine in own:
        for item in mine:
            count[item] += max(each, len(mine)) ** -0.5
    order = sorted(range(11), key=lambda item: -float(count[item].float()))
    top = set(order[: kept or 11])
    start = counted.params["item"].double()
    for item in range(11):
        assert float(start[item].norm()) == pytest.approx(float(item in top), abs=1e-6)
    w0, reg = way.strength(data, 11)
    floor = 0.2 * sum(float(count[item]) for item in top) / len(top)
    left, first, gram = torch.zeros(11, 3, 3).double(), torch.zeros(11, 3).double(), 0
    for mine in own:
        near = start[mine]
        system = near.T @ near + w0 * start.T @ start
        system += reg * (len(mine) + w0 * 11) * torch.eye(3)
        p = torch.linalg.solve(system, near.sum(0))
        p = 0.4 * p / p.norm() if p.norm() else p
        sent = [item for item in mine if item in top]
        if each:
            sent = sorted(sent, key=lambda item: float(count[item].float()))[:each]
            weights = [each**-0.5] * len(sent)
        else:
            weights = [max(floor, float(count[item])) ** -0.5 for item in sent]
            weights = [w / sum(v * v for v in weights) ** 0.5 for w in weights]
        gram = gram + p[:, None] * p / 15
        for item, weight in zip(sent, weights, strict=True):
            left[item] += weight * p[:, None] * p / 15
            first[item] += weight * p / 15
    here = sorted(top)
    some = count[here]
    loud = some.clamp(min=floor) ** -0.5
    mass = some / 15
    if not each:
        mass = mass * loud / ((some * loud**2).sum() / some.sum()) ** 0.5
    share = float(mass.sum()) / (len(small) / 15)
    expected = torch.zeros(11, 3, dtype=torch.float64)
    for item, m in zip(here, mass.tolist(), strict=True):
        system = left[item] + w0 * share * gram + reg * (m + w0 * share) * torch.eye(3)
        expected[item] = torch.linalg.solve(system, first[item])
    torch.testing.assert_close(solved.params["item"].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("number", [1, 2])
@given(seed=st.integers(0, 2**31 - 1), each=st.sampled_from([0, 1, 3]), length=st.floats(0.05, 5))
def test_one_person_moves_all_that_is_released_by_one_at_most(number, seed, each, length):
    """Remove one user, and compare the sums before any noise."""
    luck = torch.Generator().manual_seed(seed)
    table = torch.rand(6, 9, generator=luck) < 0.4
    table[torch.arange(6), torch.arange(6)] = True
    model = matrix_factorisation(6, 9, 3, spread=10.0)
    way = DPALS(items_each=each, user_length=length, kept_items=7, mean_clicks=4.0)
    params = {
        "user": torch.zeros(6, 3),
        "item": torch.randn(9, 3, generator=luck) * 10,
        "bias": torch.zeros(9),
    }
    count = torch.randn(9, generator=luck) * 10

    def released(users):
        own, items = table[users].nonzero(as_tuple=True)
        here = tiny(own.tolist(), items.tolist(), item_count=9)
        round_ = context(model, Federation(here, one_per_user(here)), params=params)
        round_.state["dpals"] = {"count": count} if number > 1 else {}
        round_.asked = way.asks(round_)
        updates = [
            replace(u, deltas={n: u.deltas[n] for n in round_.asked})
            for u in way.train(round_, torch.arange(len(users)))
        ]
        return plain_sum(updates, round_.server)

    everybody, gone = list(range(6)), seed % 6
    full, rest = released(everybody), released([u for u in everybody if u != gone])
    alone = released([gone])
    moved = sum(float((full[n] - rest[n]).square().sum()) for n in full)
    assert moved <= 1 + 1e-5
    assert moved == pytest.approx(sum(float(v.square().sum()) for v in alone.values()), abs=1e-5)
    learned = table[gone][count.argsort(descending=True)[:7]]
    if not each and (number == 1 or bool(learned.any())):
        assert moved == pytest.approx(1, abs=1e-5)  # the bound is no larger than it must be


def test_epsilon_is_that_of_as_many_normal_noises(data):
    noise, uplink = 2.5, [Clip(), GaussianNoise()]
    done = rounds(data, uplink=uplink, rounds=4, noise=noise, **NOISY)
    assert done[-1].state["ledger"]["releases"] == {(noise, 1.0, "poisson"): 4}
    found = done[-1].metrics["epsilon"]
    drift, normal = 4**0.5 / noise, NormalDist()
    ends = drift / 2 - found / drift, -drift / 2 - found / drift
    proven = normal.cdf(ends[0]) - 2.718281828459045**found * normal.cdf(ends[1])
    assert proven == pytest.approx(0.01, rel=1e-4)  # Balle, Wang 2018, theorem 8
    orders = [1 + tenth / 10 for tenth in range(1, 400)]
    divergences = compute_rdp(q=1.0, noise_multiplier=noise, steps=4, orders=orders)
    loose, _ = get_privacy_spent(orders=orders, rdp=divergences, delta=0.01)
    assert found < loose < 1.3 * found
    assert all(float(r.norms.max()) <= 1 + 1e-5 for r in done)
    assert not any(r.rejected for r in done)


def test_a_clip_of_one_shortens_nobody(data):
    free = rounds(data, rounds=3, **STRONG)
    bound = rounds(data, uplink=[Clip()], rounds=3, clip=1.00001, **STRONG)
    for one, other in zip(free, bound, strict=True):
        torch.testing.assert_close(one.params["item"], other.params["item"], rtol=1e-5, atol=1e-6)


def test_the_ledger_books_each_sum_and_ends_the_run(data, tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    model, uplink = matrix_factorisation(15, 11, 3), [Clip(), GaussianNoise()]
    asked = Settings(cohort=15, noise=2.0, budget=4.0, **NOISY | {"teaching_seed": -1})
    done = list(federate(model, data, asked, local=DPALS(), uplink=uplink, ledger=ledger))
    assert 1 < len(done) < 40
    assert done[-1].metrics["epsilon"] <= 4.0
    lines = ledger.path.read_text().splitlines()
    assert sum('"noise": 2.0' in line for line in lines) == len(done)


@pytest.mark.parametrize("uplink", [[], [Clip(), GaussianNoise()]], ids=["plain", "private"])
def test_a_run_goes_on_from_any_round(data, uplink):
    asked = Settings(cohort=15, rounds=3, **(NOISY if uplink else {}))
    model = matrix_factorisation(15, 11, 3)
    whole = list(federate(model, data, asked, local=DPALS(), uplink=uplink))
    for start in whole[:2]:
        *_, last = federate(model, data, asked, local=DPALS(), uplink=uplink, start=start)
        assert torch.equal(last.params["item"], whole[-1].params["item"])


def test_bytes_by_hand(small, data):
    """Rows of numbers and their row's number; back down, items, counts and Q'Q."""
    counted, solved = rounds(data, rounds=2, **STRONG)
    assert (counted.bytes_down, counted.bytes_up) == (0, 8 * len(small))
    up = 4 * (len(small) * (6 + 3) + 15 * 6) + 4 * len(small)
    assert (solved.bytes_down, solved.bytes_up) == (4 * (len(small) * 4 + 15 * 6), up)


@given(seed=st.integers(0, 2**31 - 1), dim=st.integers(1, 5))
def test_the_nearest_second_moments(seed, dim):
    luck = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4, dim, generator=luck, dtype=torch.float64)
    outer = vectors[:, :, None] * vectors[:, None]
    assert packed(vectors).shape == (4, pairs(dim))
    torch.testing.assert_close(packed(vectors).norm(dim=1), outer.flatten(1).norm(dim=1))
    torch.testing.assert_close(second_moments(packed(vectors), dim), outer)
    noisy = torch.randn(4, pairs(dim), generator=luck, dtype=torch.float64)
    found = second_moments(noisy, dim)
    assert bool((torch.linalg.eigvalsh(found) > -1e-9).all())
    left = second_moments(-noisy, dim)  # what the projection took away: the two are orthogonal
    assert float((found * left).sum().abs()) < 1e-9
    first, second = torch.triu_indices(dim, dim)
    size = torch.where(first == second, 1.0, 2**0.5)
    torch.testing.assert_close((found - left)[:, first, second] * size, noisy)


def test_a_budget_of_twenty_learns_what_people_like(split, clicks):
    """The settings of benchmarks/privacy.py beat chance by far, and no noise popularity."""
    model = matrix_factorisation(671, split.train.item_count, 4)
    asked = {"unseen": 3.0, "regularisation": 3.0, "kept_items": 1500, "rounds": 3, "cohort": 671}
    against = candidates(split, "validation")

    def hits(uplink, **turned):
        *_, last = federate(model, clicks, asked | turned, local=DPALS(), uplink=uplink)
        way = DPALS(**{n: asked[n] for n in STRONG}, mean_clicks=20.0, recency=1.0)
        return ranking(way.score(model, clicks, last), against)["hr@10"]

    plain = hits([], mean_clicks=20.0)
    noisy = hits(
        [Clip(), GaussianNoise()], **NOISY | {"mean_clicks": 20.0, "delta": 1e-4}, noise=0.75
    )
    known = ranking(popularity(split.train), against)["hr@10"]
    assert plain > known + 0.01
    assert plain > noisy > 0.5


def test_what_cannot_be_is_refused(small, data):
    model, noise = matrix_factorisation(15, 11, 3), [Clip(), GaussianNoise()]
    private = {k: v for k, v in NOISY.items() if k != "mean_clicks"}
    platforms = Federation(small, by_activity(small, 5))

    def run(model=model, data=data, uplink=(), aggregate=None, **turned):
        asked = {"cohort": len(data), **turned}
        return federate(model, data, asked, local=DPALS(), uplink=uplink, aggregate=aggregate)

    for refused, said in (
        (run(uplink=noise, **private), r"mean_clicks=0\.0: dpals would take the mean.*say 20"),
        (run(personal_scores(15, 11, 3)), "dpals needs vectors `user` and `item`"),
        (run(data=platforms), "data='platforms': implicit solves one user at each client"),
        (run(aggregate=Krum()), "krum: needs updates that are right number by number"),
        (run(uplink=[GaussianNoise()], **NOISY), "gaussian noise: needs a bound on the length"),
        (run(uplink=[SecureSum()]), "secure sum: needs a bound"),
        (run(rarity=0.5, items_each=3), "rarity=0.5: dpals does not read it"),
        (run(local_lr=0.3), "local_lr=0.3: nothing in this run reads it"),
        (run(items_each=-1), "items_each=-1"),
        (run(moments=0.99), "moments=0.99"),
    ):
        with pytest.raises(ParameterError, match=said):
            next(refused)


def test_the_workbench_offers_it_with_its_account(tiny_settings):
    turned = {"mean_clicks": 12.0, "delta": 0.01, "noise": 2.0, "teaching_seed": 0}
    asked = Settings(
        **tiny_settings | {"cohort": 24, "rounds": 3},
        **turned,
        local="dpals",
        uplink="clip + gaussian noise",
        sampling="poisson",
    )
    *_, last = stream(lambda: asked)
    assert {"epsilon", "hr@10"} <= last.metrics.keys()
    assert last.state["ledger"]["releases"] == {(2.0, 1.0, "poisson"): 3}


def test_users_of_one_item_and_items_of_nobody():
    """Nobody's vector is undefined: of items that are not learned, or that nobody clicked."""
    train = tiny([0, 1, 2], [0, 0, 1], item_count=5)
    done = rounds(Federation(train, one_per_user(train)), rounds=3, kept_items=1, **STRONG)
    assert all(bool(v.isfinite().all()) for v in done[-1].params.values())
    assert done[-1].params["item"].norm(dim=1).nonzero()[:, 0].tolist() == [0]
