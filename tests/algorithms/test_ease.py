"""Federated EASE against EASE on pooled data, its sums and bytes against numbers by hand."""

import pytest
import torch
from conftest import context, tiny

from fedlab.aggregation import Krum
from fedlab.algorithms import Ease, Implicit, federate, item_item
from fedlab.algorithms.ease import co_clicks
from fedlab.communication import ErrorFeedback
from fedlab.core import ParameterError, Settings
from fedlab.data import Columns, Federation, by_activity, one_per_user
from fedlab.engine import SGD
from fedlab.evaluation import clicked, ease, full_ranks
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, SecureSum
from fedlab.workbench import Experiment, stream

EVERY = torch.arange(15)


def three():
    """Three users and three items, as in the numbers by hand."""
    return tiny([0, 0, 1, 2, 2], [0, 1, 0, 1, 2])


def each(train):
    """A federation in which every user is a client."""
    return Federation(train, one_per_user(train))


def one_round(data, local, model=None, uplink=(), **turned):
    """The Round after everybody took part."""
    model = model or item_item(data.train.item_count)
    settings = Settings(rounds=1, cohort=len(data), **turned)
    (done,) = federate(model, data, settings, local=local, uplink=uplink)
    return done


def test_three_users_and_three_items_by_hand():
    done = one_round(each(three()), Ease(ridge=1.0))
    # X'X + I = [[3, 1, 0], [1, 3, 1], [0, 1, 2]], whose inverse times 13 is
    # [[5, -2, 1], [-2, 6, -3], [1, -3, 8]]; each column over minus its diagonal
    want = torch.tensor([[0, 2 / 6, -1 / 8], [2 / 5, 0, 3 / 8], [-1 / 5, 3 / 6, 0]])
    torch.testing.assert_close(done.params["item_item"], want)
    # two users of 3 pairs and one of 1, each pair with its number; nothing is needed to count
    assert (done.bytes_up, done.bytes_down) == (8 * 7, 0)
    data, model = each(three()), item_item(3)
    score = Ease(ridge=1.0).score(model, data, done)
    found = score(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(found, torch.tensor([2 / 5, 1 / 3, 1 / 4, 1 / 5]))


def test_pairs_have_the_numbers_that_they_are_said_to_have(small):
    data, kept = each(small), torch.tensor([0, 2, 3, 5, 7, 10])
    told, pair, client = co_clicks(data, torch.tensor([4, 1, 14]), kept)
    table = clicked(small)[:, kept]
    numbers = {ab: place for place, ab in enumerate((a, b) for a in range(6) for b in range(a, 6))}
    for place, user in enumerate((4, 1, 14)):
        own = table[user].nonzero()[:, 0].tolist()
        want = [numbers[a, b] for a in own for b in own if a <= b] or [0]
        assert pair[client == place].tolist() == sorted(want)
        assert told[client == place].tolist() == [float(bool(own))] * len(want)


@pytest.mark.parametrize("recency", [0.0, 1.0])
def test_everybody_together_is_ease_on_pooled_data(small, recency):
    local = Ease(ridge=2.0, recency=recency)
    done = one_round(each(small), local)
    score, pooled = local.score(item_item(11), each(small), done), ease(small, 2.0, recency)
    torch.testing.assert_close(score.rows(EVERY), pooled.rows(EVERY), atol=1e-6, rtol=1e-5)


def test_a_secure_sum_gives_the_same_and_says_what_it_costs(small):
    data = each(small)
    plain = one_round(data, Ease(ridge=2.0))
    longest = float(plain.norms.max())
    most = int(small.user_counts().max())
    assert longest == pytest.approx((most * (most + 1) / 2) ** 0.5)
    summed = one_round(data, Ease(ridge=2.0), uplink=[Clip(), SecureSum()], clip=longest)
    torch.testing.assert_close(
        summed.params["item_item"], plain.params["item_item"], atol=1e-4, rtol=0
    )
    assert summed.bytes_up > 15 * 66 * 4  # all pairs of all clients, masked
    short = one_round(data, Ease(ridge=2.0), uplink=[Clip(), SecureSum()], clip=1.0)
    assert not torch.allclose(short.params["item_item"], plain.params["item_item"], atol=1e-2)


def test_a_platform_sends_the_sum_over_its_users(small):
    data = Federation(small, torch.arange(15) % 4)
    done, alone = (one_round(d, Ease(ridge=2.0)) for d in (data, each(small)))
    torch.testing.assert_close(
        done.params["item_item"], alone.params["item_item"], atol=1e-6, rtol=1e-5
    )
    assert done.bytes_up < alone.bytes_up


def test_a_cohort_is_an_unbiased_part_and_rounds_come_near_to_all(small):
    data, local = each(small), Ease(ridge=2.0)
    whole = one_round(data, local).state["ease"]["pairs"] * 15
    parts = []
    for k in range(15):
        only = Federation(small, one_per_user(small))
        told, pair, _ = co_clicks(only, torch.tensor([k]), torch.arange(11))
        parts.append(torch.zeros(66).index_add_(0, pair, told) * 15)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)
    settings = Settings(rounds=60, cohort=5)
    rounds = [
        done.state["ease"]["pairs"] * 15
        for done in federate(item_item(11), data, settings, local=local)
    ]
    first, last = (float((r - whole).norm()) for r in (rounds[0], rounds[-1]))
    assert last < first / 3
    # the second is the mean of two cohorts
    second = rounds[1] * 2 - rounds[0]
    torch.testing.assert_close(second / 3, (second / 3).round(), atol=1e-4, rtol=0)


def test_chunks_leave_no_trace(small, monkeypatch):
    whole = one_round(each(small), Ease())
    monkeypatch.setattr("fedlab.algorithms.ease.PAIRS", 3)
    pieces = one_round(each(small), Ease())
    assert torch.equal(whole.params["item_item"], pieces.params["item_item"])
    assert whole.bytes_up == pieces.bytes_up


def test_rare_items_are_left_out_of_table_and_scores():
    train = tiny([0, 0, 1, 2, 2, 3], [0, 1, 0, 1, 2, 3])
    kept = torch.tensor([0, 1])
    done = one_round(each(train), Ease(ridge=1.0), item_item(4, kept))
    assert not done.rejected  # user 3, who has none of the items, is there and counts
    # X'X of the two items is [[2, 1], [1, 2]], so B is 1 / 3 beside the diagonal
    torch.testing.assert_close(done.params["item_item"], torch.tensor([[0, 1 / 3], [1 / 3, 0]]))
    score = Ease().score(item_item(4, kept), each(train), done)
    want = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]) / 3
    torch.testing.assert_close(score.rows(torch.arange(4)), want)
    pooled = ease(train, 1.0, least_clicks=2)
    torch.testing.assert_close(pooled.rows(torch.arange(4)), want)


@pytest.mark.parametrize(
    "train", [tiny([0, 0, 0], [0, 1, 3], item_count=5), tiny([0, 1, 2], [0, 0, 2], item_count=4)]
)
def test_one_user_single_clicks_and_items_that_nobody_rated(train):
    done = one_round(each(train), Ease(ridge=1.0))
    score = Ease(ridge=1.0).score(item_item(train.item_count), each(train), done)
    users = torch.arange(train.user_count)
    torch.testing.assert_close(score.rows(users), ease(train, 1.0).rows(users))
    never = train.item_counts() == 0
    assert bool((done.params["item_item"][never] == 0).all())
    assert bool((done.params["item_item"][:, never] == 0).all())


def test_noise_that_makes_the_sum_indefinite_is_survived(small):
    uplink = [Clip(), GaussianNoise()]
    turned = {"clip": 1.0, "noise": 50.0, "teaching_seed": 0, "delta": 0.01}
    done = one_round(each(small), Ease(ridge=1e-3), uplink=uplink, **turned)
    assert bool(done.params["item_item"].isfinite().all())
    assert bool((done.params["item_item"].diagonal() == 0).all())
    assert done.metrics["epsilon"] > 0


def test_every_source_of_clicks_is_read_alike(small):
    mixed = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    columns = {"item": small.items[mixed], "target": torch.ones(len(small))}
    (want,) = Ease().train(context(item_item(11), each(small), local=Ease()), EVERY)
    for extra in ({}, {"user": small.users[mixed]}):
        data = Columns(columns | extra, small.users[mixed])
        (found,) = Ease().train(context(item_item(11), data, local=Ease()), EVERY)
        for part in ("values", "ids", "client"):
            one, other = (getattr(u.deltas["pairs"], part) for u in (want, found))
            assert torch.equal(one, other)


def test_what_does_not_go_together_is_refused(small):
    data, settings = each(small), Settings(rounds=1, cohort=3)
    mf = matrix_factorisation(15, 11, 4)

    def run(model, local, aggregate=None, uplink=(), **turned):
        asked = settings.replace(**turned)
        return lambda: next(
            federate(model, data, asked, local=local, aggregate=aggregate, uplink=uplink)
        )

    for call, said in (
        (run(mf, Ease()), "model='matrix factorisation': ease needs its own, on clicks; set model"),
        (run(item_item(11), SGD()), "model='item-item': it is solved for .*; set local='ease'"),
        (run(item_item(11), Implicit()), "implicit needs vectors"),
        (run(item_item(11), Ease(), Krum()), "krum: needs updates that are right number by number"),
        (
            run(item_item(11), Ease(), unseen=0.5),
            "unseen=0.5: nothing in this run reads it beside ease",
        ),
        (run(item_item(11), Ease(), uplink=[SecureSum()]), "secure sum: needs a bound"),
    ):
        with pytest.raises(ParameterError, match=said):
            call()
    for made in (Ease, Settings):
        with pytest.raises(ParameterError, match=r"ridge=0.0"):
            made(ridge=0.0)


def test_more_than_memory_holds_is_refused_before_anybody_trains(small, monkeypatch):
    monkeypatch.setattr("fedlab.privacy.mechanisms.ROOM", 15 * 66 - 1)
    with pytest.raises(ParameterError, match=r"cohort=15: each sends all 66 numbers .*; take a s"):
        one_round(each(small), Ease(), uplink=[Clip(), SecureSum()])


def test_it_runs_as_an_experiment(tiny_settings):
    asked = Settings(**tiny_settings | {"cohort": 24, "rounds": 1, "ridge": 5.0}).replace(
        local="ease", model="item-item"
    )
    (done,) = stream(lambda: asked)
    experiment = Experiment(asked)
    pooled = ease(experiment.split.train, 5.0)
    everybody = torch.arange(24)
    found = experiment.score(done).rows(everybody)
    torch.testing.assert_close(found, pooled.rows(everybody), atol=1e-6, rtol=1e-5)
    split = experiment.split
    assert torch.equal(full_ranks(split, experiment.score(done)), full_ranks(split, pooled))
    assert done.metrics["ndcg@10"] > 0
    for change, said in (
        ({"memory_gb": 1e-5}, r"memory_gb=1e-05: the pairs of 40 items take 6.4e-05 GB; allow so"),
        ({"least_clicks": 1000}, "least_clicks=1000: no item has so many; the most popular one"),
        ({"task": "ratings"}, "task='ratings': the model item-item ranks"),
    ):
        left = asked if "task" not in change else asked.without(["against"])
        wrong = left.replace(**change)
        with pytest.raises(ParameterError, match=said):
            next(stream(lambda wrong=wrong: wrong))


def test_codes_and_platforms_by_activity_go_along(small):
    data = Federation(small, by_activity(small, 3))
    done = one_round(data, Ease(), uplink=[ErrorFeedback()], codec="4 bits")
    assert bool(done.params["item_item"].isfinite().all())
    assert done.bytes_up < one_round(data, Ease()).bytes_up
