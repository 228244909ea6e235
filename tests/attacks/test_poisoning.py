"""Clients that lie: only they, only as told; what lifts a film, and which rules let it."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

from fedlab.aggregation import Krum, MeanOfHolders, NormBound, RowBound, TrimmedMean, WeightedMean
from fedlab.algorithms import Buffered, federate, sample
from fedlab.attacks import Poison, aimed, exposure, noisy, scaled, with_clicks
from fedlab.core import ParameterError, Round, RoundContext, Rows, Settings, Update
from fedlab.data import Federation, one_per_user
from fedlab.engine import SGD, updates
from fedlab.evaluation import scorer
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise


@pytest.fixture(scope="module")
def model(split):
    return matrix_factorisation(split.train.user_count, split.train.item_count, 8)


def scene(server, number=1, seed=0):
    """What a stage knows of a round."""
    asked = {name: (value, "item") for name, value in server.items()}
    start = Settings(seed=seed)
    return RoundContext(
        None, None, start, Round(number - 1, start, {}), {}, {}, seed=seed, asked=asked
    )


@pytest.mark.parametrize("craft", [scaled(-3.0), noisy(0.5), aimed(7, 2.0)])
def test_the_others_send_what_they_learned(craft, model, clicks):
    params, cohort = model.init(0), sample(clicks, 200, 1)
    liars = cohort[torch.tensor([0, 3, 39])]
    shared = {name: params[name] for name in ("item", "bias")}
    poison, chunks, touched = Poison(clients=liars, craft=craft), 0, 0
    for sent in updates(model, clicks, params, cohort, SGD(memory_mb=2)):  # some without attackers
        was = replace(sent, deltas={name: sent.deltas[name] for name in shared})
        now, bad = poison.each(was, scene(shared)), torch.isin(was.cohort, liars)
        chunks, touched = chunks + 1, touched + int(bad.sum())
        for name, rows in now.deltas.items():
            assert (rows.client.diff() >= 0).all()
            kept, before = rows.only(~bad), was.deltas[name].only(~bad)
            assert all(
                torch.equal(getattr(kept, f), getattr(before, f))
                for f in ("values", "ids", "client")
            )
            assert torch.equal(rows.values, was.deltas[name].values) == (not bad.any())
        assert torch.equal(was.losses, now.losses)
    assert chunks > 2
    assert touched == 3


def test_private_rows_stay_with_their_users(model, clicks):
    asked = Settings(rounds=1, cohort=40)
    (honest,) = federate(model, clicks, asked)
    (lied,) = federate(model, clicks, asked, uplink=[Poison(liars=0.5)])
    assert torch.equal(honest.params["user"], lied.params["user"])
    assert not torch.equal(honest.params["item"], lied.params["item"])
    assert torch.equal(honest.losses, lied.losses)


def test_crafts_by_hand():
    deltas = {
        "item": Rows(
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 2]), torch.tensor([0, 1])
        ),
        "bias": Rows(torch.tensor([0.5, 0.25]), torch.tensor([0, 2]), torch.tensor([0, 1])),
    }
    context = scene({"item": torch.zeros(3, 2), "bias": torch.zeros(3)})
    one = torch.ones(2)
    mine = Update(deltas, one, one, torch.tensor([4, 9]), one)
    assert scaled(-2.0)(mine, context)["item"].values.tolist() == [[-2, -4], [-6, -8]]
    pushed = aimed(1, 9.0)(mine, context)
    assert len(pushed["item"].ids) == 0
    bias = pushed["bias"]
    assert (bias.values.tolist(), bias.ids.tolist(), bias.client.tolist()) == (
        [9, 9],
        [1, 1],
        [0, 1],
    )


def test_made_up_numbers_hang_on_seed_round_client_and_name_alone():
    def drawn(clients, number=1, seed=0):
        rows = Rows(
            torch.zeros(len(clients), 3), torch.arange(len(clients)), torch.arange(len(clients))
        )
        one = torch.ones(len(clients))
        mine = Update({"item": rows, "bias": rows}, one, one, torch.tensor(clients), one)
        return noisy(2.0)(mine, scene({"item": torch.zeros(9, 3)}, number, seed))

    both = drawn([4, 9])
    assert torch.equal(both["item"].values[1:], drawn([9])["item"].values)  # whoever else is there
    assert not torch.equal(both["item"].values[0], both["item"].values[1])
    assert not torch.equal(both["item"].values, both["bias"].values)
    assert not torch.equal(both["item"].values, drawn([4, 9], number=2)["item"].values)
    assert not torch.equal(both["item"].values, drawn([4, 9], seed=1)["item"].values)
    assert float(drawn(list(range(500)))["item"].values.std()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("schedule", [None, Buffered(buffer=5)], ids=["synchronous", "buffered"])
@pytest.mark.parametrize("attack", ["flipped", "noisy"])
def test_a_resumed_attack_is_the_uninterrupted_one(attack, schedule, model, clicks):
    asked = Settings(rounds=4, cohort=10, attack=attack, liars=0.5)

    def run(settings, uplink, start=None):
        return list(
            federate(model, clicks, settings, uplink=uplink, schedule=schedule, start=start)
        )

    whole = run(asked, [Poison()])
    end = whole[-1].params["item"]
    assert torch.equal(end, run(asked, [Poison()], whole[1])[-1].params["item"])
    plain = run(Settings(rounds=4, cohort=10), [])
    assert not torch.equal(end, plain[-1].params["item"])


def test_exposure_by_hand():
    train = tiny([0, 0, 1, 2], [0, 1, 2, 3], item_count=4)
    # user 0 has not seen 2 and 3
    table = torch.tensor([[9.0, 9, 1, 2], [1, 2, 9, 3], [3, 2, 1, 9]])

    def score(users, items):
        return table[users, items]

    assert exposure(score, train, 3, k=1) == 1.0  # users 0 and 1; user 2 has seen it
    assert exposure(score, train, 2, k=1) == 0.0
    assert exposure(score, train, 2, k=2) == 0.5  # all that user 0 has left; not user 2's two
    with pytest.raises(ParameterError, match=r"target=0: every user has seen it"):
        exposure(score, tiny([0, 1], [0, 0], item_count=2), 0)


def test_profiles_with_one_click_more():
    train = tiny([0, 0, 1], [0, 1, 1], values=[1.0, 4.0, 2.0])
    found = with_clicks(train, torch.tensor([0, 1]), 0)  # user 0 has seen it already
    assert found.users.tolist() == [0, 0, 1, 1]
    assert found.items.tolist() == [0, 1, 1, 0]
    assert found.values.tolist()[-1] == 4.0


def attacked(model, clicks, split, craft, rule, share=0.02, seed=0):
    """ER@10 of a rare film that a share of the clients pushes for twelve rounds."""
    order = torch.randperm(len(clicks), generator=torch.Generator().manual_seed(seed))
    target = int((split.train.item_counts() == 2).nonzero()[seed])
    poison = Poison(clients=order[: round(share * len(clicks))], craft=craft(target))
    asked = Settings(rounds=12, cohort=100, local_lr=1.0, server_lr=50.0, seed=seed)
    if hasattr(rule, "weighting"):
        asked = asked.replace(weighting="equal")
    *_, last = federate(model, clicks, asked, uplink=[poison], aggregate=rule)
    return exposure(scorer(model, last.params), split.train, target)


def test_a_push_at_one_film_passes_a_bound_on_the_whole_and_no_bound_by_row(model, clicks, split):
    def push(target):
        return aimed(target, 100.0)

    shown = {
        name: attacked(model, clicks, split, push, rule)
        for name, rule in {
            "mean": WeightedMean(),
            "norm bound": NormBound(bound=1.0),
            "row bound": RowBound(bound=0.05),
            "holders": MeanOfHolders(),
            "trimmed": TrimmedMean(trim=0.1),
            "krum": Krum(byzantine=4, keep=40),
        }.items()
    }
    assert min(shown[name] for name in ("mean", "norm bound", "holders", "trimmed")) > 0.5
    assert max(shown["row bound"], shown["krum"]) <= 0.01


def test_a_gate_that_looks_for_outliers_stops_a_push_that_is_far_longer_than_others(model, clicks):
    poison = Poison(clients=torch.arange(13), craft=aimed(3, 100.0))
    asked = Settings(rounds=3, cohort=len(clicks), local_lr=1.0, outlier=100.0)
    first, *later = federate(model, clicks, asked, uplink=[poison])
    assert not first.rejected  # nothing is known of lengths yet
    for done in later:
        assert set(done.rejected) == set(range(13))
        assert all("times" in why and "median" in why for why in done.rejected.values())


def test_without_liars_nobody_is_shown_it(model, clicks, split):
    assert attacked(model, clicks, split, lambda _: scaled(1.0), WeightedMean()) == 0


def test_an_attack_goes_through_privacy_as_well(model, clicks):
    asked = Settings(
        rounds=1,
        cohort=len(clicks),
        clip=1.0,
        noise=1e-3,
        local_lr=0.1,
        teaching_seed=0,
        sampling="poisson",
    )
    poison = Poison(clients=torch.arange(len(clicks)), craft=aimed(3, 50.0))
    (done,) = federate(model, clicks, asked, uplink=[poison, Clip(), GaussianNoise()])
    start = model.init(0)["bias"]
    # clipped to C, from everybody
    assert float(done.params["bias"][3] - start[3]) == pytest.approx(1.0, abs=0.01)


def test_more_clients_lie_from_the_next_round_on_those_before_among_them(model, clicks):
    everybody = Settings(rounds=3, cohort=len(clicks), local_lr=0.1)
    shares, pushed = iter([0.0, 0.1, 0.3]), []

    def craft(mine, context):
        pushed.append((context.number, set(mine.cohort.tolist())))
        return aimed(3, 50.0)(mine, context)

    rounds = federate(
        model,
        clicks,
        lambda: everybody.replace(liars=next(shares, 0.3)),
        uplink=[Poison(craft=craft)],
    )
    assert [done.settings.liars for done in rounds] == [0.0, 0.1, 0.3]
    second, third = (set().union(*(who for at, who in pushed if at == number)) for number in (2, 3))
    assert {number for number, _ in pushed} == {2, 3}
    assert (len(second), len(third)) == (round(0.1 * len(clicks)), round(0.3 * len(clicks)))
    assert second < third


def test_who_lies_behind_the_clip_is_found_at_the_gate(model, clicks):
    asked = Settings(rounds=1, cohort=20, clip=0.1, factor=1000.0, weighting="examples", liars=0.5)
    (done,) = federate(model, clicks, asked, uplink=[Clip(), Poison()])
    assert len(done.cohort) == 20  # without noise the clip is only the clients' own
    with pytest.raises(
        ParameterError,
        match="gaussian noise: needs a bound on the length of every update; poison took it away",
    ):
        next(federate(model, clicks, asked, uplink=[Clip(), Poison(), GaussianNoise()]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attack": "noisy", "factor": 3.0}, "factor=3.0: poison does not read it"),
        ({"deviation": 0.5}, "deviation=0.5: poison does not read it"),
        ({"liars": 1.5}, "liars=1.5: choose a number from 0 to 1"),
        ({"attack": "loud"}, "attack='loud': choose one of flipped, noisy"),
    ],
)
def test_knobs_that_an_attack_does_not_read_are_refused(asked, message, model, clicks):
    with pytest.raises(ParameterError, match=message):
        next(federate(model, clicks, Settings(cohort=5, **asked), uplink=[Poison()]))


def pushed(target, server):
    """One row of a table, crafted by `aimed`."""
    rows = Rows(torch.zeros(1), torch.tensor([0]), torch.tensor([0]))
    one = torch.ones(1)
    update = Update(dict.fromkeys(server, rows), one, one, torch.tensor([0]), one)
    return aimed(target, 1.0)(update, scene(server))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: scaled(float("nan")), "factor=nan: choose a finite number"),
        (lambda: noisy(0.0), "deviation=0.0: choose a positive number"),
        (lambda: aimed(1, -1.0), "size=-1.0: choose a positive number"),
        (lambda: pushed(9, {"bias": torch.zeros(3)}), "target=9: choose from 0 to 2"),
        (
            lambda: pushed(0, {"item": torch.zeros(3)}),
            "bias=0: no such parameter; choose from item",
        ),
        (lambda: with_clicks(tiny([0], [0]), torch.tensor([0]), 5), "target=5: choose from 0 to 0"),
        (lambda: RowBound(bound=0.0), r"bound=0.0: choose a number from 1e-06"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ParameterError, match=message):
        build()


def test_a_federation_of_made_up_profiles_trains(split, model):
    train = with_clicks(split.train, torch.arange(5), 3)
    data = replace(Federation(split.train, one_per_user(split.train)), train=train)
    poison = Poison(clients=torch.arange(5), craft=scaled(50.0))
    (done,) = federate(model, data, Settings(rounds=1, cohort=8), uplink=[poison])
    assert len(done.cohort) == 8
