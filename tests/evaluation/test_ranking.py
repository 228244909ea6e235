"""Clean candidates, honest ranks."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from sklearn.metrics import ndcg_score, roc_auc_score

from fedlab.core import ParameterError
from fedlab.data import leave_one_out, split_by_time
from fedlab.evaluation import (
    candidates,
    cold_ranking,
    dot,
    full_ranks,
    hide_items,
    popularity,
    ranking,
    seen,
)

RANKING = sys.modules["fedlab.evaluation.ranking"]  # its name is also that of a function


def test_candidates_are_99_different_items_never_rated(split):
    for part in ("validation", "test"):
        drawn = candidates(split, part)
        assert drawn.negatives.shape == (671, 99)
        assert all(len(row.unique()) == 99 for row in drawn.negatives)
        rated = seen((split.train, split.validation, split.test), drawn.users)
        assert not bool(rated.gather(1, drawn.negatives).any())
        assert bool(rated.gather(1, drawn.positives[:, None]).all())
    again, other = candidates(split, "test"), candidates(split, "test", seed=1)
    assert torch.equal(again.negatives, drawn.negatives)
    assert not torch.equal(other.negatives, drawn.negatives)


def test_of_a_large_catalogue_items_are_drawn_without_a_number_for_each(split, monkeypatch):
    plain = candidates(split, against=50)
    monkeypatch.setattr(RANKING, "MANY", 0)
    monkeypatch.setattr(RANKING, "seen", None)  # a row of all items
    drawn, again, other = (candidates(split, against=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(drawn.positives, plain.positives)
    assert drawn.negatives.shape == (671, 50)
    assert all(len(row.unique()) == 50 for row in drawn.negatives)
    assert torch.equal(drawn.negatives, again.negatives)
    assert not torch.equal(drawn.negatives, other.negatives)
    monkeypatch.undo()
    rated = seen((split.train, split.validation, split.test), drawn.users)
    assert not bool(rated.gather(1, drawn.negatives).any())


def test_each_unmet_item_is_drawn_as_often_as_any_other(monkeypatch):
    monkeypatch.setattr(RANKING, "MANY", 0)
    users, items = 3_000, 12  # each has met 3 of 12 items, and 4 of the other 9 are drawn
    rows = torch.arange(users).repeat_interleave(3)
    data = tiny(rows.tolist(), [0, 1, 2] * users, item_count=items)
    found = torch.bincount(candidates(leave_one_out(data), against=4).negatives.flatten())
    assert found[:3].tolist() == [0, 0, 0]
    share = found[3:] / users
    spread = (4 / 9 * 5 / 9 / users) ** 0.5
    assert float((share - 4 / 9).abs().max()) < 5 * spread


def test_users_that_are_scored_together_change_no_rank(split, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, 4, generator=draw) for n in (671, split.train.item_count))
    found = full_ranks(split, dot(users, items))
    for together, products in ((1, 1), (7, 1), (671, 1 << 30)):
        monkeypatch.setattr(RANKING, "TOGETHER", together)
        monkeypatch.setattr(RANKING, "PRODUCTS", products)
        assert torch.equal(full_ranks(split, dot(users, items)), found)


def test_short_vectors_are_told_apart_without_asking_pair_by_pair(split):
    draw, asked = torch.Generator().manual_seed(0), []
    users, items = (torch.randn(n, 4, generator=draw) for n in (671, split.train.item_count))
    plain = dot(users, torch.cat([items[:1], items[1:] * 1e-5]))

    def counted(who, what):
        asked.append(what.numel())
        return plain(who, what)

    found = full_ranks(split, replace(plain, pairs=counted))
    assert sum(asked) < 20 * 671  # of 9,066 each
    assert torch.equal(found, full_ranks(split, plain.pairs))


def test_an_ignorant_score_ranks_last_and_an_oracle_first(split):
    drawn = candidates(split)
    held = torch.full((671,), -1).index_copy(0, drawn.users, drawn.positives)
    assert ranking(lambda u, i: torch.zeros(i.shape), drawn) == {"hr@10": 0.0, "ndcg@10": 0.0}
    assert ranking(lambda u, i: (i == held[u]).float(), drawn) == {"hr@10": 1.0, "ndcg@10": 1.0}
    chance = ranking(
        lambda u, i: torch.rand(i.shape, generator=torch.Generator().manual_seed(0)), drawn
    )
    assert chance["hr@10"] == pytest.approx(0.1, abs=0.035)


def test_full_ranks_by_hand():
    # user 0: train 0, 1; validation 2; test 3; items 4, 5 unseen
    split = leave_one_out(tiny([0, 0, 0, 0], [0, 1, 2, 3], item_count=6))
    scores = torch.tensor([9.0, 8.0, 7.0, 2.0, 3.0, 2.0])
    assert full_ranks(split, lambda u, i: scores[i]).tolist() == [3]  # behind 4, tied with 5
    assert full_ranks(split, lambda u, i: scores[i], "validation").tolist() == [1]


def test_popularity_counts_train_alone(split):
    counts = popularity(split.train)(torch.zeros(9066).long(), torch.arange(9066))
    assert torch.equal(counts, torch.bincount(split.train.items, minlength=9066).float())
    found = ranking(popularity(split.train), candidates(split))
    assert found["hr@10"] == pytest.approx(0.545, abs=0.03)


def test_bad_arguments_are_named(split, ratings):
    with pytest.raises(ParameterError, match="part='train': choose validation or test"):
        candidates(split, "train")
    with pytest.raises(ParameterError, match="against=9000: choose from 1 to"):
        candidates(split, against=9000)
    with pytest.raises(ParameterError, match="split with leave_one_out"):
        candidates(split_by_time(ratings))


def test_a_fifth_of_the_items_becomes_cold(ratings):
    train, cold = hide_items(ratings, 0.2, seed=3)
    assert int(cold.sum()) == round(0.2 * 9066)
    assert not bool(cold[train.items].any())
    assert len(train) + int(cold[ratings.items].sum()) == len(ratings)
    assert torch.equal(hide_items(ratings, 0.2, seed=3)[1], cold)
    assert not torch.equal(hide_items(ratings, 0.2, seed=4)[1], cold)
    with pytest.raises(ParameterError, match=r"share=1\.0"):
        hide_items(ratings, 1.0)


def test_cold_ranking_equals_scikit_learn(ratings):
    few = ratings.take(ratings.users < 25)
    _, cold = hide_items(few, 0.05)
    # with many ties
    table = torch.randint(8, (671, 9066), generator=torch.Generator().manual_seed(0)).float()
    found = cold_ranking(lambda u, i: table[u, i], few, cold)
    mine, items = seen([few], torch.arange(25))[:, cold], cold.nonzero()[:, 0]
    users = [u for u in range(25) if mine[u].any()]
    auc = [roc_auc_score(mine[u], table[u, items]) for u in users]
    own = torch.zeros_like(table).masked_scatter(
        seen([few], torch.arange(671)), torch.ones(len(few))
    )
    nudged = table - 1e-3 * own
    ndcg = [ndcg_score(mine[u].long()[None], nudged[u, items][None], k=10) for u in users]
    assert found == {
        "auc": pytest.approx(sum(auc) / len(auc)),
        "ndcg@10": pytest.approx(sum(ndcg) / len(ndcg)),
    }
    with pytest.raises(ParameterError, match="nobody rated some"):
        cold_ranking(lambda u, i: table[u, i], few, torch.zeros(9066).bool())
