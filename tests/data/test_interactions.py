"""The data that comes along, and splits that let nothing through."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.core import ParameterError
from fedlab.data import (
    DATA,
    DataError,
    at_least,
    leave_one_out,
    load,
    recent,
    split_by_time,
    standardise,
    strictly_later,
)


def test_ml_latest_small_is_whole(ratings):
    assert (len(ratings), ratings.user_count, ratings.item_count) == (100_004, 671, 9_066)
    assert ratings.values.unique().tolist() == [0.5 * k for k in range(1, 11)]
    assert int(torch.bincount(ratings.users).min()) == 20
    toy_story = ratings.catalogue.item_ids.index("1")
    assert ratings.catalogue.titles[toy_story] == "Toy Story"
    assert int(ratings.catalogue.years[toy_story]) == 1995
    assert int((ratings.items == toy_story).sum()) == 247
    named = [
        n
        for n, on in zip(
            ratings.catalogue.category_names, ratings.catalogue.categories[toy_story], strict=True
        )
        if on
    ]
    assert named == ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]


def test_the_file_is_small_and_rebuilt_from_its_source(tmp_path):
    script = Path(__file__).parents[2] / "data" / "build.py"
    spec = importlib.util.spec_from_file_location("build", script)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.build(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again, np.load(DATA / "ml-latest-small.npz") as ours:
        assert again.files == ours.files
        assert all(np.array_equal(again[name], ours[name]) for name in ours.files)
    assert Path(DATA / "ml-latest-small.npz").stat().st_size <= 2_000_000


@pytest.mark.parametrize("cut", [leave_one_out, split_by_time])
def test_a_split_parts_the_ratings_by_time(ratings, cut):
    split = cut(ratings)
    parts = [split.train, split.validation, split.test]
    pairs = torch.cat([p.pairs() for p in parts])
    # each rating in one part only
    assert torch.equal(pairs.sort().values, ratings.pairs().sort().values)
    last = torch.zeros(671).long().scatter_reduce(0, split.train.users, split.train.times, "amax")
    for part in parts[1:]:
        assert bool((part.times >= last[part.users]).all())
    assert all(len(p) for p in parts)


def test_leave_one_out_by_hand():
    split = leave_one_out(tiny([0, 0, 0, 0], [3, 1, 2, 0], times=[5, 9, 5, 1]))
    parts = [p.items.tolist() for p in (split.train, split.validation, split.test)]
    assert parts == [[3, 0], [2], [1]]  # items 3 and 2 at one time: the later row


def test_items_with_few_ratings_go_and_the_rest_is_numbered_anew():
    every = tiny([0, 1, 0, 1, 0], [3, 3, 1, 2, 2], values=[5, 4, 3, 2, 1])
    few, users, kept = at_least(every, items=2)
    assert users.tolist() == [0, 1]
    assert kept.tolist() == [2, 3]
    assert few.catalogue.titles == ("Film 2", "Film 3")
    assert few.users.tolist() == [0, 1, 1, 0]
    assert few.items.tolist() == [1, 1, 0, 0]
    assert few.values.tolist() == [5, 4, 2, 1]
    with pytest.raises(ParameterError, match="nothing is left; the busiest user has 2, the most"):
        at_least(few, items=3)
    with pytest.raises(ParameterError, match="users=-1: choose a whole number"):
        at_least(few, users=-1)


def test_users_and_items_with_few_rows_go_until_nobody_falls_short():
    """User 2 goes for having one row, so item 2 has but one, goes too, and takes user 1 along."""
    every = tiny([0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 3, 0, 2, 2, 0, 1])
    few, users, items = at_least(every, users=2, items=2)
    assert users.tolist() == [0, 3]
    assert items.tolist() == [0, 1]
    assert few.catalogue.user_ids == ("u0", "u3")
    assert (few.users.tolist(), few.items.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])


def test_what_came_last_weighs_most_and_the_same_second_alike():
    train = tiny([0, 1, 0, 0, 0], [3, 1, 2, 0, 1], times=[5, 9, 5, 1, 7])
    assert strictly_later(train).tolist() == [1, 0, 1, 3, 0]
    assert recent(train, 1.0).tolist() == [0.5, 1, 0.5, 0.25, 1]
    assert recent(train, 0.0).tolist() == [1] * 5
    with pytest.raises(ParameterError, match="recency=-1"):
        recent(train, -1)


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=10, unique=False),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
)
def test_fractions_are_kept_for_each_user(times, validation, test):
    split = split_by_time(tiny([0] * 10, list(range(10)), times=times), validation, test)
    assert (len(split.validation), len(split.test)) == (int(10 * validation), int(10 * test))
    assert len(split.train) == 10 - len(split.validation) - len(split.test)


def test_standardise_learns_from_train_alone(ratings):
    split = split_by_time(ratings)
    scaled = standardise(split)
    assert float(scaled.train.values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scaled.train.values.std()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scaled.test.values * scaled.std + scaled.mean, split.test.values)
    assert scaled.mean == pytest.approx(float(split.train.values.mean()))
    with pytest.raises(ParameterError, match="all train ratings are equal"):
        standardise(split_by_time(tiny([0] * 9, range(9))))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 1], [0]), "lengths"),
        (([0, 7], [0, 0], None, None, 2, 2), r"users\[1\]=7 is unknown; use 0 to 1"),
        (([0, 0], [0, 9], None, None, 2, 2), r"items\[1\]=9 is unknown"),
        (([0, 0], [0, -1], None, None, 2, 2), r"items\[1\]=-1 is unknown"),
        (([0, 0], [0, 1], [1.0, float("nan")]), r"values\[1\]=nan is not finite"),
        (([0, 1, 0], [1, 0, 1]), "user 0 met item 1 more than once"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(DataError, match=message):
        tiny(*columns)


def test_long_tables_are_looked_through_in_parts_without_a_warning(monkeypatch):
    monkeypatch.setattr("fedlab.data.interactions.PART", 2)
    users, items = [0, 0, 0, 1, 2, 2, 3, 3], [0, 1, 2, 0, 0, 1, 3, 4]
    assert len(tiny(users, items)) == 8
    with pytest.raises(DataError, match="user 2 met item 0 more than once"):
        tiny(users, [0, 1, 2, 0, 0, 0, 3, 4])


def test_bad_shares_and_names_are_refused(ratings):
    with pytest.raises(ParameterError, match=r"test=1\.0"):
        split_by_time(ratings, 0.1, 1.0)
    with pytest.raises(ParameterError, match="leave something to train on"):
        split_by_time(ratings, 0.5, 0.5)
    with pytest.raises(ParameterError, match="name='ml-1m'"):
        load("ml-1m")
    with pytest.raises(DataError, match="user 'u0' and 0 others have fewer than 3 interactions"):
        leave_one_out(tiny([0, 0], [0, 1]))


def test_who_takes_three_things_for_one_is_told(ratings):
    kept = at_least(ratings, items=300)
    assert kept.interactions.item_count == len(kept.items)
    with pytest.raises(
        AttributeError, match=r"'user_count'; .*few, users, items = at_least\(\.\.\."
    ):
        _ = kept.user_count
    with pytest.raises(AttributeError, match="at_least gives three things"):
        leave_one_out(kept)
