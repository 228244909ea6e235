"""Support and query: cut by hand, disjoint, fresh each round; new users; made-up curves."""

import pytest
import torch
from conftest import tiny

from fedlab.core import Key, ParameterError
from fedlab.data import Curves, Episodes, Federation, one_per_user
from fedlab.evaluation import NewUsers, item_means, new_users

USERS = [0] * 12 + [1] * 3 + [2]
SMALL = tiny(USERS, [*range(12), 0, 1, 2, 5], item_count=40)


def drawn(data, epochs=1, negatives=2, number=0):
    return data.draw(torch.arange(len(data)), epochs, negatives, Key(0, "examples", number))


@pytest.mark.parametrize("task", ["ratings", "clicks"])
def test_a_client_with_few_keeps_half_for_the_query(task):
    data = Episodes(Federation(SMALL, one_per_user(SMALL), task), (4, 4), 6)
    columns, each = drawn(data), 3 if task == "clicks" else 1
    found = [
        [int(((columns["client"] == c) & (columns["query"] == q)).sum()) for q in (0, 1)]
        for c in range(3)
    ]
    assert found == [[4 * each, 6 * each], [1 * each, 2 * each], [0, 1 * each]]
    assert data.counts.tolist() == [10, 3, 1]
    if task == "clicks":
        clicked = columns["target"] > 0
        assert [int((clicked & (columns["query"] == q)).sum()) for q in (0, 1)] == [5, 9]


def test_no_rating_is_in_both_and_each_round_cuts_anew():
    many = tiny([0] * 30, range(30), item_count=40)  # more cuts than would repeat by chance
    data = Episodes(Federation(many, one_per_user(many), "ratings"), (1, 20), 10)
    seen, sizes = set(), set()
    for number in range(20):
        columns = drawn(data, number=number)
        pairs = list(zip(columns["item"].tolist(), columns["query"].tolist(), strict=True))
        assert len({item for item, _ in pairs}) == len(pairs) == 30
        support = sum(1 for _, query in pairs if not query)
        sizes.add(support)
        if support > 3:
            seen.add((number, tuple(sorted(pairs))))
    assert len({pairs for _, pairs in seen}) == len(seen) > 8
    assert sizes <= set(range(1, 16))  # half of thirty at most
    assert len(sizes) > 3


def test_epochs_of_a_plain_client_update_are_alike_in_size():
    columns = drawn(Episodes(Federation(SMALL, one_per_user(SMALL)), (1, 4), 3), epochs=3)
    sizes = torch.bincount(columns["client"] * 3 + columns["epoch"]).view(3, 3)
    assert sizes.tolist() == [[21] * 3, [9] * 3, [3] * 3]


def test_new_users_are_nobody_the_federation_knows(ratings):
    parts = [new_users(ratings, fold, support=20, seed=3) for fold in range(5)]
    ids = [set(p.query.catalogue.user_ids) for p in parts]
    assert not set.intersection(*ids)
    assert sum(len(p.query.catalogue.user_ids) + p.left_out for p in parts) == 671
    for part, mine in zip(parts, ids, strict=True):
        assert not mine & set(part.train.catalogue.user_ids)
        assert torch.bincount(part.given.users).tolist() == [20] * len(mine)
        assert not set(part.given.pairs().tolist()) & set(part.query.pairs().tolist())
        assert len(part.first(7)["item"]) == 7 * len(mine)
    part, first = parts[0], parts[0].first(3)
    assert torch.equal(first["item"][:3], part.given.items[:3])  # in the order of arrival
    original = ratings.users == ratings.catalogue.user_ids.index(part.query.catalogue.user_ids[4])
    mine = [
        item for half in (part.given, part.query) for item in half.items[half.users == 4].tolist()
    ]
    assert sorted(mine) == sorted(ratings.items[original].tolist())


def test_users_with_too_few_ratings_are_counted():
    found = [new_users(SMALL, fold, 3, support=3) for fold in range(3)]
    assert sum(part.left_out for part in found) == 2
    assert sum(len(part.query.catalogue.user_ids) for part in found) == 1


def test_curves_are_each_clients_own_and_the_same_every_round():
    data = Curves(6, 3, 4)
    columns = drawn(data, number=1)
    assert columns["query"].view(6, 7).tolist() == [[0] * 3 + [1] * 4] * 6
    amplitude, phase = data._own[2]
    x = columns["x"][columns["client"] == 2][:, 0]
    torch.testing.assert_close(
        columns["target"][columns["client"] == 2], amplitude * (x - phase).sin()
    )
    assert x.abs().max() <= 5
    assert not torch.equal(columns["x"], drawn(data, number=2)["x"])
    line = drawn(Curves(4, 2, 2, "linear"))
    assert line["x"].shape == (16, 10)
    mine = line["client"] == 1
    torch.testing.assert_close(
        line["target"][mine], line["x"][mine] @ Curves(4, 2, 2, "linear")._own[1]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Episodes(None, (0, 3)),
            r"support=\(0, 3\): choose \(least, most\), 1 or more each",
        ),
        (lambda: Episodes(None, (4, 3)), r"support=\(4, 3\)"),
        (lambda: Episodes(None, query=0), "query=0: choose 1 example or more"),
        (lambda: new_users(SMALL, 5), "folds=5: choose from 2 to 3"),
        (lambda: new_users(SMALL, 3, 3), "fold=3: choose from 0 to 2"),
        (lambda: new_users(SMALL, 0, 3, 0), "support=0: choose 1 rating or more"),
        (lambda: Curves(kind="cosine"), "kind='cosine': choose one of sine, linear"),
        (lambda: Curves(clients=0), "clients=0"),
        (lambda: Curves(support=-1), "support=-1"),
    ],
)
def test_what_makes_no_task_is_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()


def test_counting_by_hand():
    ratings = tiny([0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 2, 0], [4.0, 2.0, 5.0, 1.0, 3.0, 3.0])
    part = NewUsers(
        ratings, ratings.take(torch.tensor([0, 3])), ratings.take(torch.tensor([2, 4])), 0
    )
    found, mean = part.centred()
    assert mean == 3.0
    means = [3 / (3 + 5), -3 / (2 + 5), 0.0]  # of film 0: +1, +2 and 0 stars over the mean
    torch.testing.assert_close(item_means(found.train), torch.tensor(means))
    above = (-2.0 - means[1]) / (1 + 5)  # user 1 gave film 1 a star, 2 below the mean
    expected = [(2.0 - means[0] - above) ** 2, (0.0 - means[2] - above) ** 2]
    error = found.error(found.mean_baseline(1))
    assert error == pytest.approx((sum(expected) / 2) ** 0.5, rel=1e-5)
