"""Federated implicit factorisation against autograd on the whole loss."""

from dataclasses import replace

import pytest
import torch
from conftest import context
from oracle import implicit_loss, weighed

from fedlab.aggregation import Krum, WeightedMean
from fedlab.algorithms import Implicit, federate
from fedlab.core import ParameterError, Settings
from fedlab.data import Federation, by_activity, one_per_user
from fedlab.evaluation import candidates, clicked, ranking, scorer
from fedlab.models import linear, matrix_factorisation


def test_a_round_is_a_solve_and_the_gradient_of_the_whole_loss(small):
    model, data = matrix_factorisation(15, 11, 4), Federation(small, one_per_user(small))
    way, start = Implicit(w0=0.2, reg=0.05), model.init(0)
    (done,) = federate(model, data, Settings(rounds=1, cohort=15, server_lr=0.3), local=way)
    table = clicked(small).double()
    users, items = (
        done.params["user"].double().requires_grad_(),
        start["item"].double().requires_grad_(),
    )
    by_user, by_item = torch.autograd.grad(
        implicit_loss(table, users, items, 0.2, 0.05), [users, items]
    )
    assert float(by_user.abs().max()) < 1e-4  # solved
    moved = start["item"] - 0.3 * by_item.float() / 2 / 15
    torch.testing.assert_close(done.params["item"], moved, atol=1e-6, rtol=1e-5)
    assert torch.equal(done.params["bias"], start["bias"])
    fresh = way.personal(data, done.params)["user"].double().requires_grad_()
    value = implicit_loss(table, fresh, done.params["item"].double(), 0.2, 0.05)
    (slope,) = torch.autograd.grad(value, [fresh])
    assert float(slope.abs().max()) < 1e-4
    # rows of D floats and D x D both ways, and a number for each row up
    floats = 4 * (len(small) * 4 + 15 * 16)
    assert (done.bytes_down, done.bytes_up) == (floats, floats + 4 * len(small))


def test_some_clients_are_an_unbiased_part_of_all(small):
    data, way = Federation(small, one_per_user(small)), Implicit()
    round_ = context(matrix_factorisation(15, 11, 4), data, local=way)

    def delta(cohort):
        sent = [
            replace(u, deltas={n: u.deltas[n] for n in round_.asked})
            for u in way.train(round_, cohort)
        ]
        return way.finish(WeightedMean().delta(sent, round_.server), round_)["item"]

    one = [delta(torch.tensor([k])) for k in range(15)]
    torch.testing.assert_close(
        torch.stack(one).mean(0), delta(torch.arange(15)), atol=1e-6, rtol=1e-5
    )


def test_a_client_that_recommends_weighs_its_last_clicks_more(small):
    model, data = matrix_factorisation(15, 11, 4), Federation(small, one_per_user(small))
    way = Implicit(w0=0.2, reg=0.05, recency=1.0)
    items = model.init(0)["item"].double()
    found = way.personal(data, model.init(0))["user"].double().requires_grad_()
    table = weighed(small).double()
    scores = found @ items.T
    own = table.sum(1) + 0.2 * 11
    value = (
        (table * (1 - scores).square()).sum()
        + 0.2 * scores.square().sum()
        + 0.05 * (own * found.square().sum(1)).sum()
    )
    (slope,) = torch.autograd.grad(value, [found])
    assert float(slope.detach().abs().max()) < 1e-5
    plain = Implicit(w0=0.2, reg=0.05).personal(data, model.init(0))["user"]
    assert not torch.allclose(found.float(), plain)


def test_federated_films_rank_better_than_before(split, clicks):
    model = matrix_factorisation(671, split.train.item_count, 16)
    settings = Settings(rounds=10, cohort=671, server_optimizer="adam", server_lr=0.1)
    (*_, done) = federate(model, clicks, settings, local=Implicit())
    assert ranking(scorer(model, done.params), candidates(split, "validation"))["ndcg@10"] > 0.35


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"w0": 0.0}, "w0=0.0"), ({"reg": -1.0}, "reg=-1.0"), ({"recency": -1.0}, "recency=-1.0")],
)
def test_settings_without_meaning_are_refused(wrong, message):
    for made in (Implicit, Settings):
        with pytest.raises(ParameterError, match=message):
            made(**wrong)


def test_what_the_method_cannot_train_is_refused(split, clicks):
    model = matrix_factorisation(671, split.train.item_count, 4)

    def run(data=clicks, model=model, aggregate=None, **turned):
        settings = Settings(rounds=1, cohort=2, **turned)
        return lambda: next(federate(model, data, settings, local=Implicit(), aggregate=aggregate))

    for call, message in [
        (
            run(Federation(split.train, by_activity(split.train, 5))),
            "implicit solves one user at each client; set partition",
        ),
        (
            run(model=linear(torch.zeros(9066, 1), torch.zeros(671, 1), task="clicks")),
            "model='linear': implicit needs vectors `user` and `item`, on clicks",
        ),
        (run(proximal=0.1), "proximal=0.1: nothing in this run reads it beside implicit; sgd"),
        (run(weighting="equal"), "weighting='equal': weighted mean does not read it in this"),
        (
            run(aggregate=Krum()),
            "krum: needs updates that are right number by number, not as a Gram matrix is, which "
            "implicit",
        ),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()
