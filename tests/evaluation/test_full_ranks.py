"""The full ranking by one product, against a plain twin that scores pair by pair."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from conftest import tiny

from fedlab.algorithms import federate
from fedlab.algorithms.personalisation import fine_tuned
from fedlab.core import Settings, arranged
from fedlab.data import Federation, leave_one_out
from fedlab.engine import SGD
from fedlab.evaluation import at_k, dot, full_ranks, popularity, scorer, seen, unmet
from fedlab.models import ByUser, Factored, factored, interaction, matrix_factorisation
from fedlab.models.model import hybrid
from fedlab.workbench.experiment import Experiment, stream

PARTS = ("validation", "test")
RANKING = import_module("fedlab.evaluation.ranking")


def plain_ranks(split, score, part="test"):
    """User by user: who is not behind the held-out item, of what the user has not met?"""
    held = getattr(split, part)
    earlier = (split.train,) if part == "validation" else (split.train, split.validation)
    every, ranks = torch.arange(held.item_count), []
    for user, positive in zip(held.users, held.items, strict=True):
        scores = score(user.expand(len(every)), every)
        others = scores.masked_fill(seen(earlier, user[None])[0], -torch.inf)
        others[positive] = -torch.inf
        ranks.append(1 + int((~(others < scores[positive])).sum()))
    return torch.tensor(ranks)


def product_ranks(split, score):
    """What a product alone would say: right but for rounding."""
    every = score.users @ score.items.T + score.bias
    return full_ranks(split, lambda users, items: every[users, items])


def chance(seed, users=9, items=40):
    """A random split of few users and items; some users have no held-out item."""
    draw = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(users * items, generator=draw)[: users * items // 3]
    times = torch.randperm(len(pairs), generator=draw).tolist()
    split = leave_one_out(
        tiny((pairs // items).tolist(), (pairs % items).tolist(), None, times, users, items)
    )
    kept = torch.rand(len(split.test), generator=draw) < 0.8
    kept[0] = True
    order = torch.randperm(int(kept.sum()), generator=draw)
    return replace(split, test=split.test.take(kept.nonzero()[:, 0][order])), draw


def same(split, score, size=None):
    """Whether ranks are those of the twin, with `size` numbers at a time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PAIRS", "PRODUCTS") if size else ():
            patch.setattr(RANKING, name, size)
        for part in PARTS:
            plain = plain_ranks(split, score.pairs if isinstance(score, Factored) else score, part)
            assert torch.equal(full_ranks(split, score, part), plain), part


@pytest.mark.parametrize("seed", range(40))
def test_ties_by_the_dozen_rank_as_pairs_do(seed):
    split, draw = chance(seed)
    dim = seed % 7
    users, items = (torch.randint(-1, 2, (n, dim), generator=draw) * 0.1 for n in (9, 40))
    bias = torch.randint(2, (40,), generator=draw) * 0.3
    same(split, factored(users, items, bias), size=1 + 40 * (seed % 11))


@pytest.mark.parametrize("seed", range(20))
def test_what_a_product_rounds_otherwise_ranks_as_pairs_do(seed):
    split, draw = chance(seed)
    users = torch.randn(9, 33, generator=draw)
    turned = torch.stack([torch.randperm(33, generator=draw) for _ in range(40)])
    items = torch.ones(40, 33) + turned * 1e-7  # the same sums but for a few last bits
    score = factored(users, items, torch.zeros(40))
    same(split, score, size=1 + 40 * (seed % 11))


def test_a_product_alone_would_rank_otherwise():
    """So the tests above can fail."""
    wrong = 0
    for seed in range(20):
        split, draw = chance(seed)
        items = torch.ones(40, 33) + 1e-7 * torch.rand(40, 33, generator=draw)
        score = factored(torch.randn(9, 33, generator=draw), items)
        wrong += not torch.equal(product_ranks(split, score), plain_ranks(split, score.pairs))
        same(split, score)
    assert wrong


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("where", ["users", "items", "bias"])
def test_numbers_that_are_none_count_against_the_model(wrong, where):
    split, draw = chance(1)
    score = factored(*(torch.randn(size, generator=draw) for size in ((9, 4), (40, 4), (40,))))
    table = getattr(score, where)
    table[torch.randint(len(table), (3,), generator=draw)] = wrong
    same(split, score)


def test_a_block_is_as_near_to_the_pairs_as_it_says():
    draw = torch.Generator().manual_seed(0)
    for dim in (1, 8, 32, 200):
        users, items, bias = (
            torch.randn(size, generator=draw) for size in ((5, dim), (3000, dim), (3000,))
        )
        score = factored(users, items, bias)
        scores, slack = score.every(torch.tensor([3, 0, 4]))
        exact = users[[3, 0, 4]].double() @ items.T.double() + bias
        assert bool(((scores - exact).abs() <= slack[:, None] / 2).all())
        assert float(slack.max()) < 2e-5 * dim**1.5  # and this is not for free


def test_no_rank_of_movielens_differs(clicks, split):
    model = matrix_factorisation(671, 9066, 32)
    settings = Settings(rounds=8, cohort=64, local_lr=1.0, server_lr=50.0, weighting="equal")
    (*_, done) = federate(model, clicks, settings)
    for params in (done.params, {n: (v * 20).round() / 20 for n, v in done.params.items()}):
        same(split, scorer(model, params))
    same(split, popularity(split.train))
    assert at_k(full_ranks(split, scorer(model, done.params)))["hr@10"] > 10 / 9066


def test_what_factorises_says_so(split):
    draw = torch.Generator().manual_seed(0)
    known = torch.randn(40, 6, generator=draw)
    users, items = (
        torch.randint(9, (200,), generator=draw),
        torch.randint(40, (200,), generator=draw),
    )
    models = matrix_factorisation(9, 40, 5), interaction(9, 40, 5), hybrid(9, known, 5)
    for model in models:
        params = {n: torch.randn(p.shape, generator=draw) for n, p in model.init(0).items()}
        score = scorer(model, params)
        assert isinstance(score, Factored), model.name
        rows = {"user": users, "item": items, "one": torch.zeros_like(users)}
        leaves = {n: arranged(params[n], rows[kind])[None] for n, kind in model.rows.items()}
        leaves |= {n: params[n] for n, kind in model.rows.items() if kind == "one"}
        batch = {"user": users[None], "item": items[None]}
        expected = model.predict(leaves | model.constants, batch)[0]
        torch.testing.assert_close(score(users, items), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            score.every(users)[0][torch.arange(200), items], expected, rtol=1e-4, atol=1e-5
        )
    same(chance(3)[0], dot(torch.randn(9, 5, generator=draw), torch.randn(40, 5, generator=draw)))


@pytest.mark.parametrize("owner", ["each", "platforms"])
def test_users_with_rows_of_their_own_rank_by_those(owner):
    split, draw = chance(5)
    who = torch.arange(9) if owner == "each" else torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    data, model = Federation(split.train, who), matrix_factorisation(9, 40, 5)
    params = {n: torch.randn(p.shape, generator=draw) for n, p in model.init(0).items()}
    score = fine_tuned(model, data, params, SGD(local_lr=0.5, negatives=1))
    assert isinstance(score, Factored)
    same(split, score, size=160)
    server = full_ranks(split, scorer(model, params))
    assert not torch.equal(server, full_ranks(split, score))
    every = torch.arange(9)
    scores, slack = score.every(every)
    pairs = score(every[:, None].expand(9, 40), torch.arange(40).expand(9, 40))
    assert bool(((scores - pairs).abs() <= slack[:, None]).all())


@pytest.mark.parametrize("seed", range(5))
def test_scores_by_user_rank_as_pairs_do(seed):
    split, draw = chance(seed)
    table = torch.randint(-2, 3, (9, 40), generator=draw) * 0.1
    score = ByUser(lambda users: table[users], 40)
    for part in PARTS:
        plain = plain_ranks(split, lambda users, items: table[users, items], part)
        for size in (1, 90, 10_000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RANKING, "PRODUCTS", size)
                assert torch.equal(full_ranks(split, score, part), plain)


def test_a_shared_row_that_a_client_moves_leaves_no_product():
    split, _ = chance(6)
    data, model = Federation(split.train, torch.arange(9)), interaction(9, 40, 5)
    score = fine_tuned(model, data, model.init(0), SGD(local_lr=0.5, negatives=1))
    assert not isinstance(score, Factored)
    same(split, score)


def test_the_tables_of_a_score_stay_as_they_are():
    split, draw = chance(7)
    table = torch.randn(9, 40, generator=draw)
    before, score = table.clone(), factored(table, torch.eye(40))
    full_ranks(split, lambda users, items: table[users[:, 0]])
    full_ranks(split, score)
    assert torch.equal(table, before)


def test_the_full_ranking_is_measured_beside_the_sampled_one_when_asked_for(tiny_settings):
    asked = Settings(**tiny_settings)
    found = {}
    for turned in ("off", "on"):
        now = asked.replace(full_ranking=turned)
        (*_, done) = stream(lambda now=now: now)
        found[turned], made = done.metrics, Experiment(now)
        full = full_ranks(made.split, made.score(done), "validation")
    assert set(found["off"]) == {"hr@10", "ndcg@10"}
    assert found["on"] == found["off"] | at_k(full, prefix="full ")
    assert torch.equal(full, plain_ranks(made.split, made.score(done), "validation"))


def test_only_the_items_of_earlier_parts_are_met(split):
    first = unmet(split, "validation")
    assert len(first.met) == len(split.train) + len(split.validation)
    assert len(unmet(split).met) == len(split.train) + len(split.validation) + len(split.test)
