"""Federated implicit factorisation against autograd on the whole loss, and one solve a client."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import context, tiny
from oracle import implicit_loss, weighed

from fedlab.aggregation import Krum, WeightedMean, joined_updates
from fedlab.algorithms import Implicit, federate, implicit
from fedlab.algorithms.implicit import Plain
from fedlab.core import ParameterError, Settings
from fedlab.data import Columns, Federation, Stored, by_activity, one_per_user, synthesise
from fedlab.engine.fused import Strength
from fedlab.engine.fused.least_squares import Compiled
from fedlab.evaluation import candidates, clicked, ranking, scorer
from fedlab.models import linear, matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise

STRONG = {"unseen": 1.0, "regularisation": 0.5}  # for so few users


def test_a_round_is_a_solve_and_a_step_of_newton_on_the_whole_loss(small):
    model, data = matrix_factorisation(15, 11, 4), Federation(small, one_per_user(small))
    way, start = Implicit(**STRONG), model.init(0)
    (done,) = federate(model, data, Settings(rounds=1, cohort=15, server_lr=0.3), local=way)
    table = clicked(small).double()
    users, items = (
        done.params["user"].double().requires_grad_(),
        start["item"].double().requires_grad_(),
    )
    by_user, by_item = torch.autograd.grad(
        implicit_loss(table, users, items, **STRONG), [users, items]
    )
    assert float(by_user.abs().max()) < 1e-4  # solved
    w0, reg = way.strength(data, 11)
    inner = done.params["user"].double()
    inner = inner.T @ inner / 15 + reg * torch.eye(4)
    for item, slope in enumerate(by_item / 2 / 15):
        step = torch.linalg.solve((5 * table[:, item].mean() + w0) * inner, -slope)
        step /= max(1.0, float(step.norm()))
        moved = start["item"][item] + 0.3 * step.float()
        torch.testing.assert_close(done.params["item"][item], moved, atol=1e-6, rtol=1e-5)
    assert torch.equal(done.params["bias"], start["bias"])
    fresh = way.personal(data, done.params)["user"].double().requires_grad_()
    value = implicit_loss(table, fresh, done.params["item"].double(), **STRONG)
    (slope,) = torch.autograd.grad(value, [fresh])
    assert float(slope.abs().max()) < 1e-4
    # rows of D floats and of one, and D x D both ways, and a number for each row up
    floats = 4 * (len(small) * (4 + 1) + 15 * 16)
    assert (done.bytes_down, done.bytes_up) == (floats, floats + 4 * len(small))


def test_some_clients_are_an_unbiased_part_of_all(small):
    data, way = Federation(small, one_per_user(small)), Implicit()
    round_ = context(matrix_factorisation(15, 11, 4), data, local=way)

    def delta(cohort):
        sent = [
            replace(u, deltas={n: u.deltas[n] for n in round_.asked})
            for u in way.train(round_, cohort)
        ]
        return WeightedMean()(sent, round_.server)

    one, all_ = [delta(torch.tensor([k])) for k in range(15)], delta(torch.arange(15))
    for name, mean in all_.items():
        parts = torch.stack([each[name] for each in one])
        torch.testing.assert_close(parts.mean(0), mean, atol=1e-6, rtol=1e-5)


def test_steps_end_where_the_loss_has_no_slope(small):
    model, data = matrix_factorisation(15, 11, 3), Federation(small, one_per_user(small))
    settings = Settings(rounds=300, cohort=15, **STRONG)
    (*_, done) = federate(model, data, settings, local=Implicit())
    users, items = (done.params[name].double().requires_grad_() for name in ("user", "item"))
    value = implicit_loss(clicked(small).double(), users, items, **STRONG)
    slopes = torch.autograd.grad(value, [users, items])
    assert max(float(s.abs().max()) for s in slopes) < 1e-3
    assert float(value.detach()) < 0.95 * len(small)  # at zero it is the number of clicks


@pytest.mark.parametrize("times", [3, 10])
def test_no_strength_knows_a_size(small, times):
    """More users like these, and items like these beside them, change nothing for anybody."""
    way, alike = Implicit(**STRONG), torch.arange(times).repeat_interleave(len(small))
    users, items = small.users.repeat(times), small.items.repeat(times)
    copies = tiny((users + 15 * alike).tolist(), items.tolist(), item_count=11)
    one, more = (Federation(r, one_per_user(r)) for r in (small, copies))
    assert len(more) == 15 * times
    w0, reg = way.strength(one, 11)
    assert way.strength(more, 11) == pytest.approx((w0, reg))
    assert way.strength(more, 11 * times) == pytest.approx((w0 / times, reg))
    assert replace(way, mean_clicks=len(small) / 15).strength(one, 11) == pytest.approx((w0, reg))


def test_a_client_that_recommends_weighs_its_last_clicks_more(small):
    model, data = matrix_factorisation(15, 11, 4), Federation(small, one_per_user(small))
    way = Implicit(recency=1.0, **STRONG)
    w0, reg = way.strength(data, 11)
    items = model.init(0)["item"].double()
    found = way.personal(data, model.init(0))["user"].double().requires_grad_()
    table = weighed(small).double()
    scores = found @ items.T
    own = table.sum(1) + w0 * 11
    value = (
        (table * (1 - scores).square()).sum()
        + w0 * scores.square().sum()
        + reg * (own * found.square().sum(1)).sum()
    )
    (slope,) = torch.autograd.grad(value, [found])
    assert float(slope.detach().abs().max()) < 1e-5
    plain = Implicit(**STRONG).personal(data, model.init(0))["user"]
    assert not torch.allclose(found.float(), plain)


def test_plain_settings_rank_films_well_in_a_few_rounds(split, clicks):
    model = matrix_factorisation(671, split.train.item_count, 16)
    settings, against = Settings(rounds=6, cohort=671), candidates(split, "validation")
    (*_, done) = federate(model, clicks, settings, local=Implicit())
    assert ranking(scorer(model, done.params), against)["ndcg@10"] > 0.5
    (*_, done) = federate(model, clicks, Settings(rounds=20), local=Implicit())
    assert ranking(Implicit().score(model, clicks, done), against)["ndcg@10"] > 0.48


@pytest.mark.parametrize(
    ("turned", "said"),
    [
        ({"regularisation": 50.0}, "regularisation=50: implicit learns next to nothing.*say 1"),
        ({"mean_clicks": 1e6}, "mean_clicks=1e\\+06: implicit.*users have about 1[34]. each"),
        ({"unseen": 1e6}, "unseen=1e\\+06: implicit learns next to nothing.*say 10"),
    ],
)
def test_settings_that_cannot_learn_are_told_once(split, clicks, turned, said):
    model = matrix_factorisation(671, split.train.item_count, 4)
    with pytest.warns(UserWarning, match=said) as warned:
        rounds = list(federate(model, clicks, {"rounds": 12, **turned}, local=Implicit()))
    assert len(warned) == 1
    assert [bool(done.warning) for done in rounds] == [False] * 9 + [True] * 3
    assert re.search(said, rounds[-1].warning)


def test_a_private_run_is_told_the_mean_of_clicks(small):
    data, model = Federation(small, one_per_user(small)), matrix_factorisation(15, 11, 4)
    uplink = [Clip(), GaussianNoise()]
    asked = Settings(rounds=12, cohort=5, delta=0.01, teaching_seed=1)
    with pytest.raises(ParameterError, match=r"mean_clicks=0\.0: implicit would take the mean"):
        next(federate(model, data, asked, local=Implicit(), uplink=uplink))
    told = asked.replace(mean_clicks=4.0)
    (*_, done) = federate(model, data, told, local=Implicit(), uplink=uplink)
    assert bool(done.params["item"].isfinite().all())
    assert float(done.params["item"].norm(dim=1).max()) < 12 + 1  # no step is longer than 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unseen": 0.0}, "unseen=0.0"),
        ({"regularisation": -1.0}, "regularisation=-1.0"),
        ({"recency": -1.0}, "recency=-1.0"),
        ({"mean_clicks": -1.0}, "mean_clicks=-1.0"),
    ],
)
def test_settings_without_meaning_are_refused(wrong, message):
    for made in (Implicit, Settings):
        with pytest.raises(ParameterError, match=message):
            made(**wrong)


def test_what_the_method_cannot_train_is_refused(split, clicks):
    model = matrix_factorisation(671, split.train.item_count, 4)

    def run(data=clicks, model=model, aggregate=None, **turned):
        settings = Settings(rounds=1, cohort=2, **turned)
        return lambda: next(federate(model, data, settings, local=Implicit(), aggregate=aggregate))

    for call, message in [
        (
            run(Federation(split.train, by_activity(split.train, 5))),
            "implicit solves one user at each client; set partition",
        ),
        (
            run(model=linear(torch.zeros(9066, 1), torch.zeros(671, 1), task="clicks")),
            "model='linear': implicit needs vectors `user` and `item`, on clicks",
        ),
        (run(proximal=0.1), "proximal=0.1: nothing in this run reads it beside implicit; sgd"),
        (run(weighting="equal"), "weighting='equal': weighted mean does not read it in this"),
        (
            run(aggregate=Krum()),
            "krum: needs updates that are right number by number, not as a Gram matrix is, which "
            "implicit",
        ),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()


class OneByOne(Implicit):
    """The same, but nobody may add up what it trains."""

    def train(self, context, cohort):
        return super().train(context, cohort)


def solved(items, w0, reg, own, weights):
    """One client alone, in float64: its vector, the gradients of its items, and its loss."""
    items, weights = items.double().numpy(), np.asarray(weights, np.float64)
    rows = items[own]
    strength = reg * (weights.sum() + w0 * len(items))
    left = rows.T @ (weights[:, None] * rows) + w0 * items.T @ items
    p = np.linalg.solve(left + strength * np.eye(items.shape[1]), weights @ rows)
    miss = 1 - rows @ p
    loss = (miss @ miss + w0 * np.square(items @ p).sum()) / len(own)
    return p, miss[:, None] * p - reg * rows, loss


@pytest.mark.parametrize("dim", [1, 5, 16, 33])
@pytest.mark.parametrize(("w0", "reg", "scale"), [(0.1, 0.01, 0.3), (0.01, 0.003, 1.0)])
def test_compiled_clients_and_those_of_torch_solve_as_one_alone(clicks, dim, w0, reg, scale):
    items = torch.randn(clicks.train.item_count, dim, generator=torch.Generator().manual_seed(1))
    items *= scale
    cohort = torch.arange(670, 0, -7)
    own, users = implicit.clicked(clicks, cohort)
    assert torch.equal(users, cohort)
    heavy = own._replace(weights=np.linspace(0.1, 1, len(own.items), dtype=np.float32))
    ways = Compiled(items, Strength(w0, reg)), Plain(items, Strength(w0, reg))
    found = [(*way.gradients(own), way.vectors(heavy)) for way in ways]
    at = 0
    for c, user in enumerate(cohort.tolist()):
        films = clicks.train.items[clicks.train.users == user].sort().values.numpy()
        here, at = slice(at, at + len(films)), at + len(films)
        alone = solved(items, w0, reg, films, np.ones(len(films)))
        first = own.starts[c]
        weighed_, *_ = solved(items, w0, reg, films, heavy.weights[first : first + len(films)])
        for vectors, item, losses, weighted in found:
            parts = vectors[c], item[here], losses[c], weighted[c]
            for part, want in zip(parts, (*alone, weighed_), strict=True):
                size = float(np.abs(want).max())
                np.testing.assert_allclose(part, want, rtol=1e-4, atol=1e-5 * size)
    assert at == len(found[0][1])


def test_no_bit_depends_on_the_order_the_pieces_or_who_adds_up(split, clicks, monkeypatch):
    way, model = Implicit(), matrix_factorisation(671, split.train.item_count, 9)
    round_ = context(model, clicks, local=way)
    cohort = torch.randperm(671, generator=torch.Generator().manual_seed(0))[:300]
    usual = joined_updates(way.train(round_, cohort))
    monkeypatch.setattr(implicit, "GROUP_SIZE", 7)
    pieces = joined_updates(way.train(round_, cohort))
    turned = joined_updates(way.train(round_, cohort.flip(0)))
    for name, rows in usual.deltas.items():
        assert rows.growing(10**6)
        assert torch.equal(rows.values, pieces.deltas[name].values), name
        other = turned.deltas[name]
        back = (299 - other.client).argsort(stable=True)
        assert torch.equal(rows.values, other.values[back]), name
        assert torch.equal(rows.ids, other.ids[back]), name
    assert torch.equal(usual.losses, turned.losses.flip(0))
    weights = torch.rand(300, generator=torch.Generator().manual_seed(1))
    weights[3] = 0
    sent = [usual.deltas[name] for name in ("item", "clicks", "gram")]
    lengths = sum(rows.square_norms(300) for rows in sent).sqrt()
    longest = float(lengths.quantile(0.9))
    summed = way.train_summed(round_, cohort, weights, longest)
    torch.testing.assert_close(summed.lengths, lengths, rtol=1e-12, atol=0)
    kept = weights * (lengths <= longest)
    for name, total in summed.sums.items():
        want = usual.deltas[name].add_to(torch.zeros_like(total), kept)
        assert torch.equal(total, want), name
    for part in ("values", "ids", "client"):
        assert torch.equal(getattr(summed.own["user"], part), getattr(usual.deltas["user"], part))


def test_a_round_tells_the_same_whoever_adds_up(split, clicks):
    model = matrix_factorisation(671, split.train.item_count, 4)
    settings = Settings(rounds=2, cohort=100, server_lr=0.1, longest=1.5)
    for mine, plain in zip(
        federate(model, clicks, settings, local=Implicit()),
        federate(model, clicks, settings, local=OneByOne()),
        strict=True,
    ):
        for name, value in mine.params.items():
            assert torch.equal(value, plain.params[name]), name
        for name in ("cohort", "losses"):
            assert torch.equal(getattr(mine, name), getattr(plain, name)), name
        torch.testing.assert_close(mine.norms, plain.norms)
        assert (mine.bytes_up, mine.bytes_down) == (plain.bytes_up, plain.bytes_down)
        assert mine.rejected == plain.rejected
        assert 0 < len(mine.rejected) < 100  # some are too long


def test_without_numba_torch_solves(split, clicks, monkeypatch):
    model = matrix_factorisation(671, split.train.item_count, 8)
    way, settings = Implicit(recency=1.0), Settings(rounds=2, cohort=50, server_lr=0.1)

    def both():
        (*_, done) = federate(model, clicks, settings, local=way)
        return done.params["item"], done.params["user"], way.personal(clicks, done.params)["user"]

    compiled = both()
    monkeypatch.setattr(implicit, "compiled_loops", lambda: None)
    for one, other in zip(compiled, both(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_source_of_clicks_is_read_alike(small, tmp_path):
    class Drawn(Federation):
        def draw(self, cohort, epochs, negatives, key):
            return super().draw(cohort, epochs, negatives, key)

    made = synthesise(tmp_path / "made", 40, 120, mean=6.0, tastes=5)
    held = torch.arange(40).repeat_interleave(made.counts)
    films = torch.from_numpy(np.array(made.layout.columns["item"])).long()
    ratings = tiny(held.tolist(), films.tolist(), item_count=120)
    mixed = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    columns = {"user": held[mixed], "item": films[mixed], "target": torch.ones(len(held))}
    owner = one_per_user(ratings)
    sources = Stored(made.folder), Columns(columns, held[mixed]), Drawn(ratings, owner)
    cohort, model = torch.tensor([7, 3, 30]), matrix_factorisation(40, 120, 4)
    (want,) = Implicit().train(context(model, Federation(ratings, owner)), cohort)
    for data in sources:
        (found,) = Implicit().train(context(model, data), cohort)
        for name, rows in want.deltas.items():
            for part in ("values", "ids", "client"):
                got = getattr(found.deltas[name], part)
                assert torch.equal(got, getattr(rows, part)), (data, name)


def test_items_that_the_model_has_not_and_numbers_that_are_none_are_named(small):
    data, everybody = Federation(small, one_per_user(small)), Settings(rounds=1, cohort=15)
    with pytest.raises(ParameterError, match=r"item=10.*the model has 9 rows of items"):
        next(federate(matrix_factorisation(15, 9, 4), data, everybody, local=Implicit()))
    model = matrix_factorisation(15, 11, 4)
    params = model.init(0)
    params["item"][3] = torch.nan
    (sent,) = Implicit().train(context(model, data, params=params), torch.arange(15))
    assert bool(sent.losses.isnan().all())  # as all items are in everybody's system
    broken = replace(model, init=lambda seed: params)
    (done,) = federate(broken, data, everybody, local=Implicit())
    assert len(done.rejected) == 15
    assert "not finite" in done.rejected[0]


def test_the_hardest_systems_are_solved_as_well_as_numbers_allow(clicks):
    items = torch.randn(clicks.train.item_count, 32, generator=torch.Generator().manual_seed(0))
    own, _ = implicit.clicked(clicks, torch.arange(0, 671, 50))
    weak = Strength(1e-9, 1e-9)
    vectors, _, losses = Compiled(items, weak).gradients(own)
    assert bool(vectors.isfinite().all())
    _, _, least = Plain(items, weak).gradients(own)
    torch.testing.assert_close(losses, least, rtol=1e-2, atol=1e-4)
    none, _, _ = Compiled(torch.zeros_like(items), Strength(0.1, 0.01)).gradients(own)
    assert torch.equal(none, torch.zeros_like(none))
