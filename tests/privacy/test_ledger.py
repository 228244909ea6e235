"""The ledger of a data set: what it adds up, by hand; and that it cannot shrink or be edited."""

import errno
import json
import math
import os
from dataclasses import replace

import ledger as ledger_cases
import pytest
import torch

from fedlab.algorithms import Membership, Participation, federate
from fedlab.core import ParameterError, Round, Settings
from fedlab.data import Columns, Federation, of_users, one_per_user
from fedlab.models import matrix_factorisation
from fedlab.privacy import (
    DPSGD,
    Clip,
    GaussianNoise,
    Ledger,
    LocalNoise,
    People,
    Release,
    Spent,
    booked,
    epsilon,
    proven,
    proven_for_examples,
)

CENTRAL, LOCAL = (Clip(), GaussianNoise()), (Clip(), LocalNoise())
POISSON = Settings(rounds=3, cohort=20, sampling="poisson", noise=2.0, local_lr=0.5)
FIXED = POISSON.without(["sampling"])
DELTA = 1e-4


@pytest.fixture(scope="module")
def people(clicks):
    """116 users, a client each, and a model for them."""
    few = of_users(clicks.train, torch.arange(671) < 116)
    return matrix_factorisation(116, few.item_count, 4), Federation(few, one_per_user(few))


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "owner.ledger")


def last(people, asked, uplink=CENTRAL, **more):
    *_, done = federate(*people, asked, uplink=list(uplink), **more)
    return done.metrics["epsilon"]


def by_hand(*releases, relation="add-remove", delta=DELTA):
    method = "tight" if relation == "add-remove" else "rdp"
    return pytest.approx(epsilon(list(releases), delta, relation=relation, method=method))


def test_runs_of_the_same_people_add_up(people, ledger):
    q = 20 / 116
    assert last(people, POISSON) == by_hand(Release(2.0, q, 3))  # alone
    for runs in (1, 2, 3):
        assert last(people, POISSON, ledger=ledger) == by_hand(Release(2.0, q, 3 * runs))
    other = POISSON.replace(noise=1.5, rounds=2)
    assert last(people, other, ledger=ledger) == by_hand(Release(2.0, q, 9), Release(1.5, q, 2))


def test_a_restart_forgets_nothing(people, ledger):
    last(people, POISSON, ledger=ledger)
    again = Ledger(ledger.path)  # another process, another day
    assert last(people, POISSON, ledger=again) == by_hand(Release(2.0, 20 / 116, 6))
    assert last(people, POISSON, ledger=ledger) == by_hand(Release(2.0, 20 / 116, 9))


def test_five_runs_of_budget_2_are_one_of_budget_2(people, ledger):
    asked = POISSON.replace(budget=2.0, rounds=100, noise=1.0, cohort=6)
    few, spent = asked.replace(rounds=2), 0.0
    rounds = len(list(federate(*people, few, uplink=list(CENTRAL), ledger=ledger)))
    for done in federate(*people, asked, uplink=list(CENTRAL), ledger=ledger):
        rounds, spent = rounds + 1, done.metrics["epsilon"]
    for _ in range(3):
        with pytest.raises(ParameterError, match=r"budget=2\.0: a round would bring epsilon from"):
            last(people, asked, ledger=ledger)
    one = [Release(1.0, 6 / 116, rounds)]
    assert spent == by_hand(*one)
    assert epsilon(one, DELTA) <= 2.0 < epsilon([Release(1.0, 6 / 116, rounds + 1)], DELTA)


def test_budget_2_lets_more_rounds_run_than_renyi_divergences_would(people, ledger):
    kind = [Release(1.0, 0.05, times) for times in range(1, 60)]
    tight = sum(epsilon([one], DELTA) <= 2.0 for one in kind)
    loose = sum(epsilon([one], DELTA, method="rdp") <= 2.0 for one in kind)
    assert tight > 36 > loose
    assert sum(epsilon([one], 1e-5) <= 2.0 for one in kind) >= 20


def test_central_then_local_then_central_never_falls(people, ledger):
    spent = [last(people, FIXED, uplink, ledger=ledger) for uplink in (CENTRAL, LOCAL, CENTRAL)]
    assert spent == sorted(spent)
    drift = ledger.spent(People.of(people[1]))["drift"]
    own = Release(float(drift.max()) ** -0.5, 1.0, 1, "all")
    fixed = Release(2.0, 20 / 116, 6, "fixed")
    assert spent[-1] == by_hand(fixed, own, relation="replace-one")


def test_poisson_and_fixed_cohorts_add_up_where_one_client_is_replaced(people, ledger):
    first = last(people, POISSON, ledger=ledger)
    both = last(people, FIXED, ledger=ledger)
    q = 20 / 116
    half = DELTA / 2
    fixed = epsilon([Release(2.0, q, 3, "fixed")], half, relation="replace-one", method="rdp")
    single = epsilon([Release(2.0, q, 3)], half / 10, method="rdp")
    assert (1 + math.exp(single)) / 10 < 1  # so half / 10 is small enough for the group
    assert first < both <= fixed + 2 * single
    assert both > fixed + 2 * epsilon([Release(2.0, q, 3)], half)


def test_only_data_that_share_a_person_are_joined(clicks, ledger):
    def some(low, high):
        chosen = (torch.arange(671) >= low) & (torch.arange(671) < high)
        few = of_users(clicks.train, chosen)
        data = Federation(few, one_per_user(few))
        return matrix_factorisation(len(data), few.item_count, 4), data

    first, apart, across = some(0, 60), some(60, 120), some(59, 119)
    alone = by_hand(Release(2.0, 20 / 60, 3))
    assert last(first, POISSON, ledger=ledger) == alone
    assert last(apart, POISSON, ledger=ledger) == alone
    # user 60, the last of the first, is in it, and so are all but one of the others
    assert last(across, POISSON, ledger=ledger) == by_hand(Release(2.0, 20 / 60, 9))
    assert last(first, POISSON, ledger=ledger) == by_hand(Release(2.0, 20 / 60, 9))


def test_names_are_the_users_whoever_holds_them(clicks, ledger):
    few = of_users(clicks.train, torch.arange(671) < 60)
    alone, platforms = Federation(few, one_per_user(few)), Federation(few, torch.arange(60) % 5)
    model = matrix_factorisation(60, few.item_count, 4)
    asked = FIXED.replace(cohort=5, rounds=1)
    last((model, platforms), asked, LOCAL, ledger=ledger)
    spent = ledger.spent(People.of(alone))["drift"]
    assert torch.equal(spent, torch.full((60,), 0.25, dtype=torch.float64))  # all were released
    last((model, alone), asked, LOCAL, ledger=ledger)
    spent = ledger.spent(People.of(platforms))["drift"]
    assert float(spent.max()) == 0.5  # of the person of a platform that released most
    assert len(spent) == 5


def test_data_without_names_are_told_apart_by_number():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = Columns({"x": x, "target": (x[:, 0] > 0).float()}, torch.arange(40) % 4)
    assert People.of(data).names == ("0", "1", "2", "3")


def test_ratings_hidden_one_by_one_are_booked_as_well(ratings, ledger):
    few = ratings.take((ratings.users < 60) & (ratings.items < 300))
    data = Federation(few, torch.arange(few.user_count) % 3, "ratings")
    model = matrix_factorisation(
        few.user_count, few.item_count, 3, task="ratings", private_users=False
    )
    asked = Settings(rounds=1, cohort=3, batch_size=64, example_noise=1.5)
    for runs in (1, 2):
        (done,) = federate(model, data, asked, local=DPSGD(), ledger=ledger)
        found = proven_for_examples(done.state["ledger"], 1e-5)
        for client, count in enumerate(data.counts.tolist()):
            rate = 64 / count
            one = Release(1.5, rate, runs * math.ceil(1 / rate))
            assert found[client] == pytest.approx(epsilon([one], 1e-5))
    assert proven(done.state["ledger"], 1e-5) == 0  # nothing of a whole platform is hidden


def test_a_line_is_on_disk_before_its_release(people, ledger):
    seen = []

    class Watching(Clip):
        """Looks at the ledger while a client sends."""

        name = "watching"

        def each(self, update, context):
            seen.append(Ledger(ledger.path).spent(People.of(people[1]))["releases"])
            return super().each(update, context)

    last(people, POISSON, [Watching(), GaussianNoise()], ledger=ledger)
    assert [each[2.0, 20 / 116, "poisson"] for each in seen] == [1, 2, 3]


def test_an_edit_is_found_wherever_it_is(people, ledger):
    last(people, POISSON, ledger=ledger)
    whole = ledger.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    edits = [
        whole.replace(b'"noise": 2.0', b'"noise": 9.0'),
        b"".join([*lines[:1], *lines[2:]]),
        b"".join([lines[0], lines[2], lines[1], lines[3]]),
        b"".join([*lines, lines[3]]),
        whole.replace(b'"times": 1', b'"times": 0', 1),
        whole[:10] + b"x" + whole[11:],
    ]
    for edited in edits:
        ledger.path.write_bytes(edited)
        with pytest.raises(
            ParameterError, match=r"ledger=.*owner.ledger:\d+': this line.*was changed"
        ):
            Ledger(ledger.path)


def test_a_ledger_that_became_shorter_is_refused(people, ledger):
    rounds = list(federate(*people, POISSON, uplink=list(CENTRAL), ledger=ledger))
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ParameterError, match="it has become shorter; put it back"):
        last(people, POISSON, ledger=ledger)
    with pytest.raises(ParameterError, match=r"shorter, or is another one than owner.ledger.head"):
        Ledger(ledger.path)
    more = POISSON.replace(rounds=5)
    head = ledger.head.read_bytes()
    ledger.head.unlink()  # whoever removes both hides lines, but not from a Round
    with pytest.raises(ParameterError, match="lacks releases of the Round to start from"):
        last(people, more, start=rounds[-1], ledger=Ledger(ledger.path))
    ledger.path.write_bytes(b"".join(lines))
    ledger.head.write_bytes(head)
    assert last(people, more, start=rounds[-1], ledger=ledger) == by_hand(Release(2.0, 20 / 116, 5))
    ledger.path.unlink()
    with pytest.raises(ParameterError, match="the file is gone; put it back"):
        last(people, POISSON, ledger=ledger)


def test_a_line_that_a_crash_cut_is_dropped_and_the_next_one_stands(people, ledger):
    last(people, POISSON, ledger=ledger)
    with ledger.path.open("ab") as file:
        file.write(b'3f0c {"noise": 2.0, "of')
    again = Ledger(ledger.path)
    assert last(people, POISSON, ledger=again) == by_hand(Release(2.0, 20 / 116, 6))
    assert (
        Ledger(ledger.path).spent(People.of(people[1]))["releases"][2.0, 20 / 116, "poisson"] == 6
    )


def test_repeated_rounds_are_new_releases(people, ledger):
    rounds = list(federate(*people, POISSON, uplink=list(CENTRAL), ledger=ledger))
    asked = POISSON.replace(rounds=3)
    again = last(people, asked, start=rounds[0], ledger=ledger)  # rounds 2 and 3 once more
    assert again == by_hand(Release(2.0, 20 / 116, 5))


def test_two_who_book_at_once_lose_nothing(people, ledger):
    other = Ledger(ledger.path)
    streams = [
        federate(*people, POISSON, uplink=list(CENTRAL), ledger=each) for each in (ledger, other)
    ]
    for _ in range(3):
        found = [next(stream).metrics["epsilon"] for stream in streams]
    assert found[1] == by_hand(Release(2.0, 20 / 116, 6))


def test_noise_that_can_be_drawn_again_is_not_booked(people, ledger):
    with pytest.raises(ParameterError, match="teaching_seed=0: noise that can be drawn again"):
        last(people, POISSON.replace(teaching_seed=0), ledger=ledger)
    assert not ledger.path.exists()


def test_a_start_whose_past_is_not_known_is_refused(people):
    model, _ = people
    start = Round(0, POISSON, model.init(1))
    with pytest.raises(ParameterError, match="what its parameters tell of these people"):
        last(people, POISSON, start=start)
    public = replace(start, state={"ledger": {}})  # made without these people
    assert last(people, POISSON, start=public) == by_hand(Release(2.0, 20 / 116, 3))


def test_what_does_not_fit_the_budget_is_not_booked(people, ledger):
    asked = POISSON.replace(budget=0.1)
    with pytest.raises(ParameterError, match=r"budget=0\.1: a round would bring epsilon from 0 to"):
        last(people, asked, ledger=ledger)
    assert ledger.spent(People.of(people[1])) == {}


def test_the_file_holds_no_names(people, ledger):
    last(people, FIXED, LOCAL, ledger=ledger)
    for text in ledger.path.read_text().splitlines():
        line = json.loads(text.partition(" ")[2])
        assert set(line) <= {
            "people",
            "marks",
            "of",
            "unit",
            "normal",
            "noise",
            "rate",
            "times",
            "sampling",
            "who",
        }


def test_booked_by_hand():
    two = Spent(Release(2.0, 1.0, 1, "all"), torch.tensor([1, 2]))
    one = Spent(Release(1.0, 1.0, 3, "all"), torch.tensor([1]))
    ledger = booked(booked({}, [two], 4), [one], 4)
    assert ledger["drift"].tolist() == [0, 0.25 + 3, 0.25, 0]
    assert proven(ledger, 1e-5) == pytest.approx(
        epsilon([Release(3.25**-0.5, 1.0, 1, "all")], 1e-5, relation="replace-one")
    )
    assert booked({}, [], 4, teaching_seed=3)["no guarantee"] == (
        "the noise comes from teaching_seed=3"
    )


def test_a_ledger_that_is_gone_is_not_begun_anew(people, ledger):
    last(people, POISSON, ledger=ledger)
    ledger.path.unlink()
    with pytest.raises(ParameterError, match="the file is gone; put it back"):
        Ledger(ledger.path)


def test_a_full_disk_leaves_a_ledger_that_can_be_read(people, ledger, monkeypatch):
    last(people, POISSON, ledger=ledger)
    real = os.fsync

    def full(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        last(people, POISSON, ledger=ledger)
    monkeypatch.setattr(os, "fsync", real)
    q = 20 / 116
    # what may have reached the disk counts, though its round never came
    assert last(people, POISSON, ledger=ledger) == by_hand(Release(2.0, q, 7))
    assert Ledger(ledger.path).spent(People.of(people[1]))["releases"] == {(2.0, q, "poisson"): 7}


def test_a_link_leads_to_the_one_ledger_and_its_lock(people, ledger, tmp_path):
    (tmp_path / "link").symlink_to(ledger.path)
    other = Ledger(tmp_path / "link")
    assert other.path == ledger.path
    streams = [
        federate(*people, POISSON, uplink=list(CENTRAL), ledger=each) for each in (ledger, other)
    ]
    for _ in range(3):
        for each in streams:
            next(each)
    assert Ledger(ledger.path).spent(People.of(people[1]))["releases"] == {
        (2.0, 20 / 116, "poisson"): 6
    }


def test_a_run_without_noise_cannot_be_booked(people, ledger):
    with pytest.raises(ParameterError, match="nothing in this run adds noise"):
        next(federate(*people, Settings(rounds=1, cohort=5), ledger=ledger))


def test_noise_that_hides_ratings_is_no_start_for_noise_that_hides_people(ratings):
    few = ratings.take((ratings.users < 60) & (ratings.items < 300))
    data = Federation(few, torch.arange(few.user_count) % 3, "ratings")
    model = matrix_factorisation(
        few.user_count, few.item_count, 3, task="ratings", private_users=False
    )
    asked = Settings(rounds=1, cohort=3, batch_size=64)
    (done,) = federate(model, data, asked, local=DPSGD())
    start = replace(done, number=0, state={"ledger": done.state["ledger"]})
    with pytest.raises(ParameterError, match="that bounds nothing of a whole client"):
        next(federate(model, data, Settings(rounds=1, cohort=3), uplink=list(CENTRAL), start=start))


def test_two_parts_that_draw_otherwise_are_refused(ratings, ledger):
    few = ratings.take((ratings.users < 60) & (ratings.items < 300))
    data = Federation(few, torch.arange(few.user_count) % 3, "ratings")
    model = matrix_factorisation(
        few.user_count, few.item_count, 3, task="ratings", private_users=False
    )
    with pytest.raises(ParameterError, match="teaching_seed=-1: gaussian noise has it so, and dp"):
        next(
            federate(
                model,
                data,
                Settings(rounds=1, cohort=3, batch_size=64),
                local=DPSGD(teaching_seed=7),
                uplink=list(CENTRAL),
                ledger=ledger,
            )
        )


def test_one_person_moves_a_sum_by_two_clips_at_most_whoever_joins_late(clicks):
    few = of_users(clicks.train, torch.arange(671) < 60)
    owner = one_per_user(few)
    model = matrix_factorisation(60, few.item_count, 4)
    first = torch.full((60,), 2)
    first[:2] = 1
    members = Membership(first, torch.full((60,), 99))
    asked = Settings(
        rounds=2,
        cohort=60,
        sampling="poisson",
        noise=1e-6,
        clip=1.0,
        local_lr=5.0,
        teaching_seed=0,
        server_lr=1.0,
    )

    def moved(train):
        one, two = federate(
            model,
            Federation(train, owner),
            asked,
            uplink=list(CENTRAL),
            participation=Participation(members=members),
        )
        return two.params["item"] - one.params["item"]

    other = few.items.clone()
    mine = few.users == 0
    other[mine] = (other[mine] + 1) % few.item_count
    theirs = replace(few, items=other)
    changed = (moved(few) - moved(theirs)) * 60  # the sum over everybody
    assert float(changed.norm()) <= 4 + 1e-3  # of two rounds: one client's data, and its start


@pytest.mark.parametrize("name", ledger_cases.CASES)
def test_case_by_hand(name):
    assert not ledger_cases.wrong(name)
