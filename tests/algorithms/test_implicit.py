"""Federated and central iALS against autograd on the whole loss.

And EASE against its definition.
"""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

from fedlab.algorithms import Implicit, federate
from fedlab.core import Config, ParameterError
from fedlab.data import Federation, by_activity, one_per_user
from fedlab.evaluation import candidates, clicked, dot, ease, ials, ranking, scorer
from fedlab.models import matrix_factorisation


def loss(table, users, items, w0, reg):
    """The loss of fedlab.implicit, term by term."""
    scores = users @ items.T
    own, others = table.sum(1) + w0 * table.shape[1], table.sum(0) + w0 * table.shape[0]
    return ((table * (1 - scores).square()).sum() + w0 * scores.square().sum()
            + reg * ((own * users.square().sum(1)).sum() + (others * items.square().sum(1)).sum()))


def weighed(train):
    """(U, I) 1 / (1 + the user's clicks since) where a user clicked, row by row."""
    table = torch.zeros(train.user_count, train.item_count)
    for user, item, time in zip(train.users, train.items, train.times, strict=True):
        table[user, item] = 1 / (1 + int(((train.users == user) & (train.times > time)).sum()))
    return table


@pytest.fixture(scope="module")
def small():
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(15, 11, generator=generator) < 0.3
    table[torch.arange(15), torch.arange(15) % 11] = True
    users, items = table.nonzero().T
    return tiny(users.tolist(), items.tolist())


def test_a_round_is_a_solve_and_the_gradient_of_the_whole_loss(small):
    model, data = matrix_factorisation(15, 11, 4), Federation(small, one_per_user(small))
    way, config = Implicit(w0=0.2, reg=0.05), Config(rounds=1, cohort=15, server_lr=0.3)
    start = model.init(0)
    (done,) = federate(model, data, config, update=way.update, aggregate=way.aggregate)
    table = clicked(small).double()
    users, items = done.params["user"].double().requires_grad_(), start[
        "item"].double().requires_grad_()
    by_user, by_item = torch.autograd.grad(loss(table, users, items, 0.2, 0.05), [users, items])
    assert float(by_user.abs().max()) < 1e-4                             # solved
    moved = start["item"] - 0.3 * by_item.float() / 2 / 15
    torch.testing.assert_close(done.params["item"], moved, atol=1e-6, rtol=1e-5)
    assert torch.equal(done.params["bias"], start["bias"])
    fresh = way.personal(data, done.params)["user"].double().requires_grad_()
    (slope,) = torch.autograd.grad(loss(table, fresh, done.params["item"].double(), 0.2, 0.05),
                                   [fresh])
    assert float(slope.abs().max()) < 1e-4
    # rows of D floats and D x D both ways, and a number for each row up
    floats = 4 * (len(small) * 4 + 15 * 16)
    assert (done.bytes_down, done.bytes_up) == (floats, floats + 4 * len(small))


def test_some_clients_are_an_unbiased_part_of_all(small):
    model, data, way = matrix_factorisation(15, 11, 4), Federation(small,
                                                                   one_per_user(small)), Implicit()
    server = model.init(0)
    every = way.aggregate(way.update(model, data, server, torch.arange(15), Config(cohort=15)),
                          server)["item"]
    one = [way.aggregate(way.update(model, data, server, torch.tensor([k]), Config(cohort=1)),
                         server)["item"] for k in range(15)]
    torch.testing.assert_close(torch.stack(one).mean(0), every, atol=1e-6, rtol=1e-5)


def test_a_client_that_recommends_weighs_its_last_clicks_more(small):
    model, data, way = matrix_factorisation(15, 11, 4), Federation(small,
                                                                   one_per_user(small)), Implicit(
        0.2, 0.05, 1.0)
    items = model.init(0)["item"].double()
    found = way.personal(data, model.init(0))["user"].double().requires_grad_()
    table = weighed(small).double()
    scores = found @ items.T
    own = table.sum(1) + 0.2 * 11
    value = ((table * (1 - scores).square()).sum() + 0.2 * scores.square().sum()
             + 0.05 * (own * found.square().sum(1)).sum())
    (slope,) = torch.autograd.grad(value, [found])
    assert float(slope.detach().abs().max()) < 1e-5
    assert not torch.allclose(found.float(), Implicit(0.2, 0.05).personal(data, model.init(0))["user"])


def test_central_ials_reaches_a_point_without_slope(small):
    users, items = ials(small, 3, w0=0.2, reg=0.05, epochs=200)
    u, i = users.double().requires_grad_(), items.double().requires_grad_()
    slopes = torch.autograd.grad(loss(clicked(small).double(), u, i, 0.2, 0.05), [u, i])
    assert max(float(s.abs().max()) for s in slopes) < 1e-3
    assert dot(users, items)(torch.tensor([[2, 3]]), torch.tensor([[5, 1]])).tolist() == [
        pytest.approx([float(users[2] @ items[5]), float(users[3] @ items[1])])]


def test_ease_is_the_least_squares_without_the_diagonal(small):
    table = clicked(small).double()
    score = ease(small, 2.0)
    users, items = (t.flatten() for t in torch.meshgrid(torch.arange(15), torch.arange(11),
                                                        indexing="ij"))
    found, late = (s(users, items).view(15, 11).double() for s in (score, ease(small, 2.0,
                                                                               recency=1.0)))
    weighted = weighed(small).double()
    for item in range(11):  # a ridge regression on the other films, one film at a time
        others = torch.arange(11) != item
        x = table[:, others]
        b = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(10).double(), x.T @ table[:, item])
        torch.testing.assert_close(found[:, item], x @ b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(late[:, item], weighted[:, others] @ b, atol=1e-5, rtol=1e-4)


def test_federated_films_rank_better_than_before(split, clicks):
    model, way = matrix_factorisation(671, split.train.item_count, 16), Implicit()
    config = Config(rounds=10, cohort=671, server_optimizer="adam", server_lr=0.1)
    (*_, done) = federate(model, clicks, config, update=way.update, aggregate=way.aggregate)
    assert ranking(scorer(model, done.params), candidates(split, "validation"))["ndcg@10"] > 0.35


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Implicit(w0=0.0), "w0=0.0"), (lambda: Implicit(reg=-1.0), "reg=-1.0"),
    (lambda: Implicit(recency=-1.0), "recency=-1.0"),
    (lambda: ease(None, 0.0), "strength=0.0"), (lambda: ials(None, reg=0.0), "reg=0.0"),
])
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()


def test_what_the_method_cannot_train_is_refused(split, clicks):
    model, way = matrix_factorisation(671, split.train.item_count, 4), Implicit()

    def run(data, **changed):
        config = replace(Config(rounds=1, cohort=2), **changed)
        return next(federate(model, data, config, update=way.update, aggregate=way.aggregate))
    with pytest.raises(ParameterError, match="each client must be one user"):
        run(Federation(split.train, by_activity(split.train, 5)))
    with pytest.raises(ParameterError, match="no local steps to correct"):
        run(clicks, proximal=0.1)
