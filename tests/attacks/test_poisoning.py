"""Clients that lie: only they, only as told; what lifts a film, and which rules let it."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

from fedlab.aggregation import (
    krum,
    mean_of_holders,
    norm_bound,
    row_bound,
    trimmed_mean,
    weighted_mean,
)
from fedlab.algorithms import Private, federate, federate_privately, sample
from fedlab.attacks import Poisoned, aimed, exposure, noisy, scaled, with_clicks
from fedlab.core import Config, ParameterError, Rows
from fedlab.data import Federation, one_per_user
from fedlab.engine import updates
from fedlab.evaluation import scorer
from fedlab.models import matrix_factorisation


@pytest.fixture(scope="module")
def model(split):
    return matrix_factorisation(split.train.user_count, split.train.item_count, 8)


@pytest.mark.parametrize("craft", [scaled(-3.0), noisy(0.5), aimed(7, 2.0)])
def test_the_others_send_what_they_learned(craft, model, clicks):
    config = Config(cohort=40, memory_mb=3)  # several chunks, some without attackers
    params, cohort = model.init(0), sample(clicks, config, 1)
    liars = cohort[torch.tensor([0, 3, 39])]
    honest = list(updates(model, clicks, params, cohort, config))
    attacked = list(Poisoned(liars, craft).update(model, clicks, params, cohort, config))
    assert len(honest) > 2
    for was, now in zip(honest, attacked, strict=True):
        bad = torch.isin(was.cohort, liars)
        for name, rows in now.deltas.items():
            assert (rows.client.diff() >= 0).all()
            kept, before = rows.only(~bad), was.deltas[name].only(~bad)
            assert all(torch.equal(getattr(kept, f), getattr(before, f)) for f in ("values", "ids",
                                                                                   "client"))
            same = torch.equal(rows.values, was.deltas[name].values)
            assert same == (name == "user" or not bad.any())  # private rows stay as they are
        assert torch.equal(was.losses, now.losses)


def test_crafts_by_hand():
    deltas = {"item": Rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 2]),
                           torch.tensor([0, 1])), "bias": Rows(torch.tensor([0.5, 0.25]),
                                                               torch.tensor([0, 2]),
                                                               torch.tensor([0, 1]))}
    server = {"item": torch.zeros(3, 2), "bias": torch.zeros(3)}
    assert scaled(-2.0)(deltas, server, 2)["item"].values.tolist() == [[-2, -4], [-6, -8]]
    one = aimed(1, 9.0)(deltas, server, 2)
    assert len(one["item"].ids) == 0
    assert (one["bias"].values.tolist(), one["bias"].ids.tolist(), one["bias"].client.tolist()) == (
        [9, 9], [1, 1], [0, 1])
    first, second = (noisy(2.0, seed=1) for _ in range(2))
    drawn = first(deltas, server, 2)["item"].values
    # the same seed, the same attack
    assert torch.equal(drawn, second(deltas, server, 2)["item"].values)
    assert not torch.equal(drawn, first(deltas, server, 2)["item"].values)


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
    liars = torch.randperm(len(clicks), generator=torch.Generator().manual_seed(seed))[:round(share
                                                                                              * len(
        clicks))]
    target = int((split.train.item_counts() == 2).nonzero()[seed])
    config = Config(rounds=12, cohort=100, local_lr=1.0, server_lr=50.0, weighting="equal",
                    seed=seed)
    *_, last = federate(model, clicks, config, update=Poisoned(liars, craft(target)).update,
                        aggregate=rule)
    return exposure(scorer(model, last.params), split.train, target)


def test_a_push_at_one_film_passes_a_bound_on_the_whole_and_no_bound_by_row(model, clicks, split):
    def push(target):
        return aimed(target, 100.0)
    shown = {name: attacked(model, clicks, split, push, rule) for name, rule in {
        "mean": weighted_mean, "norm bound": norm_bound(1.0), "row bound": row_bound(0.05),
        "holders": mean_of_holders, "trimmed": trimmed_mean(0.1), "krum": krum(4, 40)}.items()}
    assert min(shown[name] for name in ("mean", "norm bound", "holders", "trimmed")) > 0.5
    assert max(shown["row bound"], shown["krum"]) <= 0.01


def test_without_liars_nobody_is_shown_it(model, clicks, split):
    assert attacked(model, clicks, split, lambda _: scaled(1.0), weighted_mean) == 0


def test_an_attack_goes_through_privacy_as_well(model, clicks):
    liars = torch.arange(len(clicks))
    config = Private(rounds=1, cohort=len(clicks), clip=1.0, noise=1e-3, local_lr=0.1)
    (done,) = federate_privately(model, clicks, config, update=Poisoned(liars,
                                                                        aimed(3, 50.0)).update,
                                 teaching_seed=0)
    start = model.init(0)["bias"]
    # clipped to C, from everybody
    assert float(done.params["bias"][3] - start[3]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("build", "message"), [(lambda: scaled(float("nan")),
                                                 "factor=nan: choose a finite number"),
                                                (lambda: noisy(0.0),
                                                 "deviation=0.0: choose a positive number"),
                                                (lambda: aimed(1, -1.0),
                                                 "size=-1.0: choose a positive number"),
                                                (lambda: aimed(9, 1.0)({"bias": None},
                                                                       {"bias": torch.zeros(3)}, 1),
                                                 "target=9: choose from 0 to 2"),
                                                (lambda: aimed(0, 1.0)({"item": None},
                                                                       {"item": torch.zeros(3)}, 1),
                                                 "name='bias': clients send item"),
                                                (lambda: with_clicks(tiny([0], [0]),
                                                                     torch.tensor([0]), 5),
                                                 "target=5: choose from 0 to 0"),
                                                (lambda: row_bound(0.0),
                                                 r"bound=0.0: choose a positive number"),])
def test_bad_input_is_named(build, message):
    with pytest.raises(ParameterError, match=message):
        build()


def test_a_federation_of_made_up_profiles_trains(split, model):
    train = with_clicks(split.train, torch.arange(5), 3)
    data = replace(Federation(split.train, one_per_user(split.train)), train=train)
    (done,) = federate(model, data, Config(rounds=1, cohort=8), update=Poisoned(torch.arange(5),
                                                                                scaled(
        50.0)).update)
    assert len(done.cohort) == 8
