"""Clients get their own train ratings and nothing else."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.core import Key, ParameterError
from fedlab.data import (
    Columns,
    DataError,
    Federation,
    by_activity,
    by_catalogue,
    by_genre,
    equal,
    favourite_genre,
    fingerprint,
    main_genres,
    one_per_user,
    unseen,
)


def test_no_held_out_interaction_reaches_training(split, clicks):
    """Every positive of a client is a train rating of one of its users, once an epoch."""
    everyone = torch.arange(len(clicks))
    examples = clicks.draw(everyone, 1, 4, Key(0, "examples"))
    positive = examples["target"] == 1
    pairs = (examples["user"] * split.train.item_count + examples["item"])[positive]
    assert torch.equal(pairs.sort().values, split.train.pairs().sort().values)
    held = torch.cat([split.validation.pairs(), split.test.pairs()])
    assert not bool(torch.isin(pairs, held).any())


def test_negatives_are_drawn_outside_train_only(split, clicks):
    """A negative is never a train item, and a held-out item as often as any other.

    So nothing leaks by avoidance.
    """
    examples = clicks.draw(torch.arange(len(clicks)), 5, 4, Key(0, "examples"))
    negative = examples["target"] == 0
    pairs = (examples["user"] * split.train.item_count + examples["item"])[negative]
    assert not bool(torch.isin(pairs, split.train.pairs()).any())
    held = torch.cat([split.validation.pairs(), split.test.pairs()])
    hits = int(torch.isin(pairs, held).sum())
    free = split.train.item_count - clicks.counts
    # 20 draws for each positive, 2 held-out items
    expected = float((clicks.counts * 20 * 2 / free).sum())
    assert abs(hits - expected) < 5 * expected**0.5


@settings(max_examples=60)
@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.integers(0, 10**6))
def test_unseen_items_are_exactly_the_complement(seen, seed):
    items = torch.tensor(sorted(seen))
    luck = Key(seed, "x").runs(torch.tensor([0]), torch.tensor([800]))
    drawn = unseen(torch.zeros_like(items), items, 12, torch.zeros(800).long(), luck)
    assert set(drawn.tolist()) <= set(range(12)) - seen
    if len(seen) >= 9:
        assert set(drawn.tolist()) == set(range(12)) - seen


def test_unseen_items_are_equally_likely():
    run, items = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 4])
    luck = Key(0, "x").runs(torch.tensor([1]), torch.tensor([60_000]))
    drawn = unseen(run, items, 5, torch.ones(60_000).long(), luck)  # of the second user
    assert torch.bincount(drawn, minlength=5).tolist() == pytest.approx(
        [0, 20_000, 20_000, 20_000, 0], abs=600
    )


def test_draw_shuffles_within_clients_and_epochs(clicks):
    examples = clicks.draw(torch.tensor([5, 2]), 2, 1, Key(0, "x"))
    run = examples["client"] * 2 + examples["epoch"]
    assert torch.equal(run, run.sort().values)
    assert torch.equal(clicks.owner[examples["user"]], torch.tensor([5, 2])[examples["client"]])
    first, second = (examples["item"][run == r] for r in (0, 1))
    assert not torch.equal(first, second)


def test_partitions_cover_all_users_with_no_empty_platform(split):
    train = split.train
    for owner in (
        equal(train, 7),
        by_activity(train, 7),
        by_genre(train, 7, 0.05),
        by_genre(train, 7),
    ):
        assert owner.shape == (671,)
        assert sorted(owner.unique().tolist()) == list(range(7))
        assert len(Federation(split.train, owner)) == 7
    assert torch.bincount(equal(split.train, 7)).max() == 96
    assert torch.equal(one_per_user(split.train), torch.arange(671))


def test_activity_sorts_platforms_and_alpha_sets_their_taste(split):
    counts = Federation(split.train, by_activity(split.train, 5)).counts
    assert torch.equal(counts, counts.sort().values)

    def spread(alpha):
        owner, taste = by_genre(split.train, 5, alpha, seed=3), favourite_genre(split.train)
        table = torch.zeros(5, int(taste.max()) + 1).index_put_(
            (owner, taste), torch.tensor(1.0), accumulate=True
        )
        shares = table / table.sum(1, keepdim=True)
        return float((shares - table.sum(0) / 671).abs().sum(1).mean())

    assert spread(0.05) > 2 * spread(100)
    assert torch.equal(by_genre(split.train, 5, 0.3, 1), by_genre(split.train, 5, 0.3, 1))
    assert not torch.equal(by_genre(split.train, 5, 0.3, 1), by_genre(split.train, 5, 0.3, 2))


def test_people_are_other_users_on_each_platform_of_a_divided_catalogue():
    """Person 0 is on both platforms, 1 on the second alone, 2 too seldom on the first."""
    seen = tiny([0, 0, 0, 1, 1, 2, 2, 2], [0, 2, 1, 1, 3, 0, 1, 3], values=range(8))
    platform = torch.tensor([0, 1, 0, 1])
    found, owner = by_catalogue(seen, platform)
    assert found.catalogue.user_ids == ("u0 on 0", "u0 on 1", "u1 on 1", "u2 on 0", "u2 on 1")
    assert owner.tolist() == [0, 1, 1, 0, 1]
    assert found.users.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    for name in ("items", "values", "times"):
        assert torch.equal(getattr(found, name), getattr(seen, name))
    assert torch.equal(owner[found.users], platform[found.items])  # nobody meets another's items
    often, owner = by_catalogue(seen, platform, least=2)
    assert often.catalogue.user_ids == ("u0 on 0", "u1 on 1", "u2 on 1")
    assert (owner.tolist(), often.values.tolist()) == ([0, 1, 1], [0, 1, 3, 4, 6, 7])
    assert len(Federation(often, owner)) == 2


def test_a_catalogue_is_divided_by_each_items_rarest_genre(split):
    films = tiny([0, 0, 0, 0, 0], [0, 1, 2, 3, 4]).catalogue
    genres = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0]]).bool()
    films = replace(films, columns=films.columns | {"categories": genres})
    # of 5, 2 and 1 films: main ones are 1, 0, 2, 0, 1; two each for the first two, then the third
    assert main_genres(films, 3).tolist() == [1, 0, 2, 0, 1]
    assert main_genres(films, 2).tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ParameterError, match="platforms=4: choose a whole number from 1 to 3"):
        main_genres(films, 4)
    for count in (1, 5, 12):
        assert main_genres(split.train.catalogue, count).unique().tolist() == list(range(count))


def test_what_is_no_division_of_a_catalogue_is_refused():
    seen = tiny([0, 0, 1], [0, 1, 1])
    with pytest.raises(ParameterError, match=r"platform=\(\(3,\), 'torch.int64'\): give the platf"):
        by_catalogue(seen, torch.tensor([0, 1, 1]))
    with pytest.raises(ParameterError, match="platform="):
        by_catalogue(seen, torch.tensor([0, -1]))
    with pytest.raises(ParameterError, match="platform="):
        by_catalogue(seen, torch.tensor([0.0, 1.0]))
    with pytest.raises(ParameterError, match="least=0: choose 1 or more"):
        by_catalogue(seen, torch.tensor([0, 1]), least=0)
    with pytest.raises(ParameterError, match=r"least=2: no user of platform \[0\] has so many"):
        by_catalogue(seen, torch.tensor([0, 1]), least=2)
    with pytest.raises(ParameterError, match=r"least=1: no user of platform \[1\] has so many"):
        by_catalogue(seen, torch.tensor([0, 2]))


def test_bad_federations_are_refused(split):
    train = split.train
    with pytest.raises(DataError, match="an empty federation"):
        Federation(train.take(torch.zeros(len(train), dtype=torch.bool)), one_per_user(train))
    with pytest.raises(DataError, match="client 1 of 3 holds no train ratings"):
        Federation(tiny([0, 1], [0, 0]), torch.tensor([0, 2]))
    with pytest.raises(DataError, match="owner has 1 entries"):
        Federation(tiny([0, 1], [0, 0]), torch.tensor([0]))
    with pytest.raises(ParameterError, match="platforms=0: choose a whole number from 1 to 671"):
        equal(train, 0)
    with pytest.raises(ParameterError, match="alpha=-1"):
        by_genre(train, 3, -1)
    with pytest.raises(ParameterError, match="task='likes'"):
        Federation(train, one_per_user(train), "likes")
    with pytest.raises(
        ParameterError, match="negatives=1: user 0 has seen all 2 items; set negatives=0"
    ):
        Federation(tiny([0, 0], [0, 1]), torch.tensor([0])).draw(
            torch.tensor([0]), 1, 1, Key(0, "x")
        )


def test_the_fingerprint_covers_all_that_is_trained_on(split):
    """Another value, item or owner gives another one; the same data, made again, the same."""
    owner = one_per_user(split.train)
    train = split.train
    first = fingerprint(Federation(train, owner, "ratings"))
    assert fingerprint(Federation(replace(train), owner.clone(), "ratings")) == first
    values, items = train.values.clone(), train.items.clone()
    values[7] += 0.5
    items[[3, 4]] = items[[4, 3]]
    others = [
        Federation(train.having(values=values), owner, "ratings"),
        Federation(replace(train, items=items), owner, "ratings"),
        Federation(train, owner.flip(0), "ratings"),
        Federation(train, owner),
    ]
    assert len({first, *map(fingerprint, others)}) == 5
    columns = {"x": torch.arange(6.0).view(3, 2), "target": torch.ones(3)}
    found = [
        fingerprint(Columns({**columns, "x": columns["x"].to(kind)}, torch.tensor([0, 1, 1])))
        for kind in (torch.float32, torch.float32, torch.bfloat16)
    ]
    assert found[0] == found[1] != found[2]
