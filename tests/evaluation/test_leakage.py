"""The check for leaks: it catches what avoids held-out items, and nothing else."""

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import binom

from fedlab.core import DataError, ParameterError
from fedlab.data import Federation, one_per_user
from fedlab.evaluation import Candidates, candidates, leak_check, leaky
from fedlab.evaluation.leakage import Avoidance

TRAIN, HELD = {0: [0, 1], 1: [2, 3]}, {0: [2], 1: [0]}


@dataclass(frozen=True)
class Without(Federation):
    """A federation whose negatives leave out some pairs, user * I + item and growing."""

    banned: torch.Tensor | None = None

    def draw(self, cohort, epochs, negatives, key):
        drawn = super().draw(cohort, epochs, negatives, key)
        pairs = drawn["user"] * self.train.item_count + drawn["item"]
        kept = ~torch.isin(pairs, self.banned) | (drawn["target"] > 0.5)
        return {name: column[kept] for name, column in drawn.items()}


def without(split, *columns):
    """A `Without` of pairs (users, items)."""
    banned = torch.cat(
        [(users * split.train.item_count + items).flatten() for users, items in columns]
    )
    return Without(split.train, one_per_user(split.train), "clicks", banned)


def test_leaky_is_caught_and_a_federation_is_not(split):
    owner = one_per_user(split.train)
    caught = leak_check(leaky(split, owner), split.train, split.test)
    assert caught.verdict == "leak"
    assert int(caught.held.drawn.sum()) == 0
    assert caught.held.p_value < 1e-100
    assert caught.lift > 0.02  # at 10 epochs: most items are never drawn, either
    assert str(caught).startswith("LEAK")
    for seed in range(3):
        clean = leak_check(Federation(split.train, owner), split.train, split.test, seed=seed)
        assert clean.verdict == "clean"
        low, high = clean.held.interval
        assert low < 1 < high or abs(clean.held.ratio - 1) < 0.2
        assert abs(clean.lift) < 0.02


def test_more_epochs_lift_the_score_of_who_avoids(split):
    source = leaky(split, one_per_user(split.train))
    few, many = (leak_check(source, split.train, split.test, epochs=e).lift for e in (2, 20))
    assert many > 2 * few > 0


def test_avoiding_the_test_item_alone_or_with_its_candidates_is_caught(split):
    ranked = candidates(split)
    test = ranked.users, ranked.positives
    others = ranked.users[:, None].expand_as(ranked.negatives), ranked.negatives
    for banned, one, many in (([test], 1, 0), ([test, others], 1, 1), ([others], 0, 1)):
        found = leak_check(without(split, *banned), split.train, ranked)
        assert found.verdict == "leak"
        assert (found.held.avoided, found.against.avoided) == (one, many)
    clean = leak_check(without(split, (torch.tensor([0]), torch.tensor([0]))), split.train, ranked)
    assert clean.verdict == "clean"
    # nobody in the list of candidates was ever drawn, so their order is that of chance
    both = leak_check(without(split, test, others), split.train, ranked)
    assert both.hit_rate == pytest.approx(both.chance) == pytest.approx(0.1)


def test_half_of_the_users_leaking_is_caught(split):
    ranked = candidates(split)
    half = ranked.users < 335
    found = leak_check(
        without(split, (ranked.users[half], ranked.positives[half])), split.train, split.test
    )
    assert found.verdict == "leak"
    assert 0.1 < found.held.ratio < 0.9
    silent = found.held.users < 335
    assert int(found.held.drawn[silent].sum()) == 0 < int(found.held.drawn[~silent].sum())


def test_counts_chances_and_the_bound_by_hand():
    # user 0 may draw 4 of 6 items, one of them held out: 8 draws expect 2; user 1 likewise
    draws = {0: [2, 3, 4, 5, 3, 4, 5, 3], 1: [1, 4, 5, 1, 4, 5, 1, 4]}
    found = leak_check(draws, TRAIN, HELD, items=6).held
    assert found.drawn.tolist() == [1, 0]
    assert found.expected.tolist() == [2.0, 2.0]
    assert found.draws == 16
    assert found.ratio == 0.25
    assert found.p_value == pytest.approx(binom.cdf(1, 16, 0.25))
    # popular items are drawn more: item 2 has half of the chance of user 0's four
    weights = torch.tensor([3.0, 1, 3, 1, 1, 1])
    turned = leak_check(draws, TRAIN, HELD, items=6, popularity=weights).held
    assert turned.expected.tolist() == [8 * 3 / 6, 8 * 3 / 6]


def test_the_binomial_bounds_unequal_chances_from_above():
    chances = torch.tensor([0.01, 0.02, 0.3, 0.4], dtype=torch.float64).repeat(5)
    exact = torch.ones(1, dtype=torch.float64)
    for p in chances:
        exact = torch.cat([exact * (1 - p), exact[:0], torch.zeros(1)]) + torch.cat(
            [torch.zeros(1, dtype=torch.float64), exact * p]
        )
    for count in range(3):
        seen = Avoidance("they", torch.tensor([0]), torch.tensor([count]), chances.sum()[None], 20)
        assert float(exact[: count + 1].sum()) <= seen.p_value


def test_the_score_that_knows_only_the_negatives_by_hand():
    # user 0: its item never drawn, of 3 others one tied, so first or second place of four
    ranked = Candidates(torch.tensor([0]), torch.tensor([2]), torch.tensor([[3, 4, 5]]))
    found = leak_check({0: [4, 5, 5]}, {0: [0, 1]}, ranked, items=6)
    assert found.hit_rate == found.chance == 1.0  # four places are among ten
    many = Candidates(torch.tensor([0]), torch.tensor([2]), torch.arange(3, 42)[None])
    drawn = {0: [*range(3, 23)]}  # 20 of 39 others drawn once, 19 never
    found = leak_check(drawn, {0: [0, 1]}, many, items=42)
    assert found.hit_rate == pytest.approx(10 / 20)
    assert found.chance == 10 / 40


def test_samplers_that_draw_train_items_too_are_judged_among_all():
    draws = {0: [0, 1, 2, 3, 4, 5] * 20, 1: [0, 1, 2, 3, 4, 5] * 20}
    found = leak_check(draws, TRAIN, HELD, items=6)
    assert found.held.ratio == pytest.approx(1.0)
    assert found.verdict == "clean"


def test_a_foreign_loader_is_read_as_triples_batches_or_a_function():
    users, items = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 0, 4, 2])
    targets = torch.tensor([0.0, 1.0, 0.0, 1.0])
    batches = [(users, items, targets)] * 30
    singles = [
        triple
        for _ in range(30)
        for triple in zip(users.tolist(), items.tolist(), targets.tolist(), strict=True)
    ]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(users.repeat(30), items.repeat(30), targets.repeat(30)), 16
    )
    found = [
        leak_check(draws, TRAIN, HELD, items=6, epochs=30)
        for draws in (batches, singles, loader, lambda: iter(batches[:1]))
    ]
    assert {(int(each.held.drawn.sum()), each.held.draws) for each in found} == {(0, 60)}
    assert {each.verdict for each in found} == {"leak"}


def test_few_draws_are_undecided():
    found = leak_check({0: [3], 1: [4]}, TRAIN, HELD, items=6)
    assert found.verdict == "undecided"
    assert "draw more" in str(found)


@pytest.mark.parametrize(
    ("draws", "train", "held", "more", "said"),
    [
        ({0: []}, TRAIN, HELD, {}, "draws: 0 users"),
        ({7: [3]}, TRAIN, HELD, {}, "no negatives"),
        ([(0, 3, 1.0)], TRAIN, HELD, {}, "no example has target 0"),
        ([(0, 3)], TRAIN, HELD, {}, "part 0 is no (user, item, target)"),
        ([([0, 1], [3], [0.0])], TRAIN, HELD, {}, "columns of (2, 1, 1)"),
        ([], TRAIN, HELD, {}, "no (user, item, target) at all"),
        (7, TRAIN, HELD, {}, "int is no Source"),
        ({0: [3]}, 7, HELD, {}, "train: give Interactions"),
        ({0: [3]}, TRAIN, {0: [1]}, {}, "item 1 of user 0 is in train and held out"),
        ({0: [-3]}, TRAIN, HELD, {}, "draws: a negative number"),
        ({0: [3]}, TRAIN, ([0, 1], [2]), {}, "held: 2 users and 1 items"),
    ],
)
def test_what_is_no_list_of_negatives_is_refused(draws, train, held, more, said):
    with pytest.raises(DataError) as error:
        leak_check(draws, train, held, **more)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"items": 3}, "items=3: there is an item 3; count from 0"),
        ({"epochs": 0}, "epochs=0"),
        ({"negatives": 1.5}, "negatives=1.5"),
        ({"popularity": torch.ones(2)}, "give 4 numbers above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(more, said):
    with pytest.raises(ParameterError) as error:
        leak_check({0: [3], 1: [1]}, TRAIN, HELD, **more)
    assert said in str(error.value)


def test_the_same_seed_gives_the_same_report(split):
    source = Federation(split.train, one_per_user(split.train))
    first, again = (leak_check(source, split.train, split.test, epochs=2) for _ in range(2))
    other = leak_check(source, split.train, split.test, epochs=2, seed=1)
    assert torch.equal(first.held.drawn, again.held.drawn)
    assert str(first) == str(again) != str(other)
    assert replace(first, hit_rate=0.3).lift == pytest.approx(0.3 - first.chance)
