"""Meta-learning: gradients, stacked clients against one at a time, methods by their definitions.

Gradients are checked against finite differences.
"""

import warnings

import pytest
import torch
from conftest import context
from torch import nn

from fedlab.algorithms import METHODS, Meta, federate, newcomers, with_rates
from fedlab.core import Key, ParameterError, Rows, Settings, stream
from fedlab.data import Curves, Episodes, Federation, one_per_user
from fedlab.engine import SGD
from fedlab.evaluation import new_users
from fedlab.models import from_module, matrix_factorisation, perceptron, user_factor_model

# it is of 2021, and warns of an escape in a docstring and of a module of packaging
with warnings.catch_warnings(action="ignore"):
    import higher

SINES = Curves(20, 5, 7)


def of(rows: Rows, client: int) -> torch.Tensor:
    return rows.values[rows.client == client]


def sent(meta, model, params, data=SINES, cohort=None):
    """The deltas of one round's clients."""
    cohort = torch.arange(4) if cohort is None else cohort
    (update,) = meta.train(context(model, data, local=meta, params=params), cohort)
    return update


def outer(model, params, examples, meta, client):
    """The query loss of one client after it adapted, written out again in plain tensors."""
    mine = {n: c[examples["client"] == client][None] for n, c in examples.items()}
    support, query = (
        {n: c[:, mine["query"][0] == part] for n, c in mine.items()} for part in (0, 1)
    )
    now = dict(params)
    for _ in range(meta.local_epochs):
        loss = (model.predict(now, support) - support["target"]).square().mean()
        grads = torch.autograd.grad(loss, [now[n] for n in model.rows], create_graph=True)
        keep = (lambda g: g.detach()) if meta.adaptation == "fomaml" else (lambda g: g)
        now |= {n: now[n] - meta.local_lr * keep(g) for n, g in zip(model.rows, grads, strict=True)}
    return (model.predict(now, query) - query["target"]).square().mean()


@pytest.mark.parametrize("method", ["maml", "fomaml"])
def test_stacked_clients_equal_one_at_a_time(method):
    model, meta = (
        perceptron(1, 8, task="ratings"),
        Meta(adaptation=method, local_epochs=3, local_lr=0.02),
    )
    params = model.init(1)
    update = sent(meta, model, params)
    examples = SINES.draw(torch.arange(4), 1, 4, Key(0, "examples", 1))
    for client in range(4):
        own = {n: v.clone().requires_grad_() for n, v in params.items()}
        loss = outer(model, own, examples, meta, client)
        grads = torch.autograd.grad(loss, list(own.values()))
        assert float(update.losses[client]) == pytest.approx(loss.item(), rel=1e-5)
        for (name, value), grad in zip(own.items(), grads, strict=True):
            assert value.shape[0] == 1
            torch.testing.assert_close(of(update.deltas[name], client), -grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("learned_rates", [False, True])
def test_second_order_gradients_are_those_of_finite_differences(learned_rates):
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    points = {"x": torch.zeros(3, 1, dtype=torch.float64)}
    model, data = from_module(net, points, task="ratings"), Double(SINES)
    model = with_rates(model, 0.05) if learned_rates else model
    params, cohort, steps = model.init(0), torch.tensor([3]), {"local_epochs": 2, "local_lr": 0.05}
    meta = Meta(adaptation="meta-sgd" if learned_rates else "maml", **steps)

    def loss(name, at, change):
        moved = params | {name: params[name].clone()}
        moved[name].view(-1)[at] += change
        return float(sent(meta, model, moved, data, cohort).losses[0])

    update = sent(meta, model, params, data, cohort)
    for name, delta in update.deltas.items():
        for at in range(0, delta.values.numel(), 2):
            slope = (loss(name, at, 1e-5) - loss(name, at, -1e-5)) / 2e-5
            assert -float(delta.values.view(-1)[at]) == pytest.approx(slope, rel=1e-4, abs=1e-7)
    if not learned_rates:  # it is another gradient
        first = sent(Meta(adaptation="fomaml", **steps), model, params, data, cohort)
        assert not all(
            torch.allclose(first.deltas[n].values, d.values, rtol=1e-3)
            for n, d in update.deltas.items()
        )


@pytest.mark.parametrize("order", ["maml", "fomaml"])
def test_the_gradient_is_that_of_an_independent_library(order):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    model = from_module(net, {"x": torch.zeros(3, 1)}, task="ratings")
    meta = Meta(adaptation=order, local_epochs=3, local_lr=0.05)
    update = sent(meta, model, model.init(0))
    examples = SINES.draw(torch.arange(4), 1, 4, Key(0, "examples", 1))
    plain = torch.optim.SGD(net.parameters(), lr=meta.local_lr)
    for client in range(4):
        mine = {n: c[examples["client"] == client] for n, c in examples.items()}
        support, query = ({n: c[mine["query"] == part] for n, c in mine.items()} for part in (0, 1))
        with higher.innerloop_ctx(net, plain) as (adapting, inner):
            for _ in range(meta.local_epochs):
                inner.step((adapting(support["x"])[:, 0] - support["target"]).square().mean())
            loss = (adapting(query["x"])[:, 0] - query["target"]).square().mean()
            grads = torch.autograd.grad(
                loss, list(adapting.parameters(time=0 if order == "maml" else -1))
            )
        for (name, _), grad in zip(net.named_parameters(), grads, strict=True):
            torch.testing.assert_close(
                of(update.deltas[name], client)[0], -grad, atol=1e-5, rtol=1e-4
            )


class Double:
    """A Source in float64."""

    def __init__(self, data):
        self.data, self.task, self.counts = data, data.task, data.counts

    def __len__(self):
        return len(self.data)

    def draw(self, *given):
        return {
            n: c.double() if c.is_floating_point() else c for n, c in self.data.draw(*given).items()
        }


def test_one_step_of_a_line_by_hand():
    model = from_module(nn.Linear(1, 1, bias=False), {"x": torch.zeros(2, 1)}, task="ratings")
    params, only = {"weight": torch.tensor([[[2.0]]])}, torch.tensor([0])

    class One:
        task, counts = "ratings", torch.tensor([2])

        def __len__(self):
            return 1

        def draw(self, *given):
            return {
                "client": torch.zeros(2).long(),
                "epoch": torch.zeros(2).long(),
                "x": torch.tensor([[1.0], [3.0]]),
                "target": torch.tensor([4.0, 5.0]),
                "query": torch.tensor([0.0, 1.0]),
            }

    # phi = 2 + 0.1 * 2 * (4 - 2) = 2.4; d phi / d w = 1 - 0.1 * 2
    # query: 2 * (7.2 - 5) * 3 * d phi / d w
    for method, chain in (("maml", 0.8), ("fomaml", 1.0)):
        update = sent(Meta(adaptation=method, local_lr=0.1), model, params, One(), only)
        assert float(update.deltas["weight"].values) == pytest.approx(-13.2 * chain, rel=1e-5)
        assert float(update.losses[0]) == pytest.approx(2.2**2, rel=1e-5)
    update = sent(Meta(adaptation="reptile", local_lr=0.1), model, params, One(), only)
    step = 0.1 * (2 * 2 * 1 + 2 * -1 * 3) / 2
    assert float(update.deltas["weight"].values) == pytest.approx(step, rel=1e-5)


def test_reptile_at_rate_one_is_the_mean_of_locally_trained_models():
    model = perceptron(1, 8, task="ratings")
    settings = Settings(rounds=2, cohort=20, local_epochs=3, local_lr=0.02, weighting="equal")
    averaged = list(federate(model, SINES, settings, local=SGD(batch_size=0)))
    meta = list(federate(model, SINES, settings, local=Meta(adaptation="reptile")))
    for name, value in averaged[-1].params.items():
        assert torch.equal(value, meta[-1].params[name])


@pytest.fixture(scope="module")
def stars(ratings):
    few = ratings.take((ratings.users < 40) & (ratings.items < 2000))
    found = new_users(few, 0, 3, 5)
    return found, Episodes(
        Federation(found.train, one_per_user(found.train), "ratings"), (2, 6), 20
    )


def filmed(items, dim=3):
    model = user_factor_model(
        items, dim, torch.randn(items, 4, generator=torch.Generator().manual_seed(0))
    )
    params = model.init(0)
    return model, params | {
        "told": torch.randn(params["told"].shape, generator=stream(0, "told")) * 0.1
    }


def test_ridge_is_least_squares_with_a_pull(stars):
    found, _ = stars
    model, params = filmed(found.train.item_count)
    params["user"] = torch.randn(1, 4, generator=stream(1, "start"))
    meta, given = Meta(adaptation="ridge", adapts="user", strength=2.0), found.first(5)
    delta = meta.adapt(model, params, given)["user"]
    told = model.constants["known"] @ params["told"][0]
    for client in range(int(given["client"].max()) + 1):
        mine, target = (
            given["item"][given["client"] == client],
            given["target"][given["client"] == client],
        )
        design = torch.cat(
            [params["scale"].expand(len(mine), 1), params["item"][mine] + told[mine, 1:]], 1
        )
        base = params["offset"][0, 0] + params["bias"][mine] + told[mine, 0]
        grown = torch.cat([design, 2.0**0.5 * torch.eye(4)])
        right = torch.cat([target - base, 2.0**0.5 * params["user"][0]])
        expected = torch.linalg.lstsq(grown, right[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(
            of(delta, client)[0] + params["user"][0], expected, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("method", ["maml", "ridge"])
def test_a_thousand_adapt_as_one_by_one(method, stars):
    found, _ = stars
    model, params = filmed(found.train.item_count)
    meta = Meta(
        adaptation=method,
        adapts="user" if method == "ridge" else "all",
        local_epochs=4,
        local_lr=0.1,
    )
    given = found.first(5)
    every = meta.adapt(model, params, given)
    for client in range(int(given["client"].max()) + 1):
        mine = {n: c[given["client"] == client] for n, c in given.items()}
        alone = meta.adapt(model, params, mine | {"client": torch.zeros_like(mine["client"])})
        for name, rows in alone.items():
            torch.testing.assert_close(of(every[name], client), rows.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_films_that_new_users_gain_from(method, stars):
    found, tasks = stars
    model = user_factor_model(found.train.item_count, 2)
    model = with_rates(model, 0.1) if method == "meta-sgd" else model
    meta = Meta(
        adaptation=method,
        adapts="user" if method == "ridge" else "all",
        local_epochs=2,
        local_lr=0.1,
    )
    rate = {} if method == "reptile" else {"server_lr": 0.05, "server_optimizer": "adam"}
    settings = Settings(rounds=12, cohort=len(tasks), **rate)
    rounds = list(federate(model, tasks, settings, local=meta))
    assert float(rounds[-1].losses.mean()) < 0.5 * float(rounds[0].losses.mean())
    *_, again = federate(model, tasks, settings, local=meta)
    assert torch.equal(rounds[-1].params["bias"], again.params["bias"])


def test_only_some_names_adapt_and_a_start_may_stay(stars):
    found, tasks = stars
    model, params = filmed(found.train.item_count)
    inner = {"local_lr": 0.1, "local_epochs": 2}
    learned = Meta(adapts="user", **inner).adapt(model, params, found.first(5))
    assert {n for n, rows in learned.items() if bool(rows.values.any())} == {"user"}
    both = Meta(adapts="user + bias", **inner).adapt(model, params, found.first(5))
    assert {n for n, rows in both.items() if bool(rows.values.any())} == {"user", "bias"}
    recon = Meta(adaptation="fomaml", adapts="user", learn_start="no", **inner)
    update = sent(recon, model, params, tasks, torch.arange(3))
    assert set(update.deltas) == set(model.rows) - {"user"}
    assert set(recon.asks(context(model, tasks, local=recon))) == set(update.deltas)


def test_a_pull_to_the_start_gives_the_minimum_of_the_moreau_envelope(stars):
    found, _ = stars
    model, params = filmed(found.train.item_count)
    given, mu = found.first(5), 0.5
    pulled = Meta(adapts="user", local_lr=0.3, proximal=mu)
    near = pulled.adapt(model, params, given, 400)["user"]
    # (1/5) |A d - r|^2 + mu/2 |d|^2 has its minimum where (A'A + 5 mu / 2) d = A'r, which is ridge
    ridge = Meta(adaptation="ridge", adapts="user", strength=5 * mu / 2)
    exact = ridge.adapt(model, params, given)["user"]
    torch.testing.assert_close(near.values, exact.values, atol=1e-4, rtol=1e-3)


def test_pfedme_of_one_local_round_sends_the_gradient_of_the_envelope():
    model, rate = perceptron(1, 8, task="ratings"), 0.01
    meta = Meta(adaptation="reptile", local_epochs=100, local_lr=rate, proximal=20.0)
    params, data = model.init(1), Fixed(20, 5, 7)
    update = sent(meta, model, params, data, torch.tensor([5]))
    examples = data.draw(torch.tensor([5]), 1, 4, Key(0, "any"))
    theta = {
        n: (v + update.deltas[n].values.view_as(v)).requires_grad_() for n, v in params.items()
    }
    loss = (model.predict(theta, {"x": examples["x"][None]}) - examples["target"]).square().mean()
    for (name, value), grad in zip(
        theta.items(), torch.autograd.grad(loss, list(theta.values())), strict=True
    ):
        torch.testing.assert_close(
            grad, -20.0 * (value - params[name]).detach(), atol=2e-3, rtol=2e-3
        )


class Fixed(Curves):
    """The same points in each epoch."""

    def draw(self, cohort, epochs, negatives, key):
        one = SINES.draw(cohort, 1, negatives, Key(0, "fixed"))
        many = {n: c.repeat(epochs, *[1] * (c.dim() - 1)) for n, c in one.items()}
        return many | {"epoch": torch.arange(epochs).repeat_interleave(len(one["client"]))}


def test_fedper_keeps_what_reptile_would_average(stars):
    found, tasks = stars
    items, settings = found.train.item_count, Settings(rounds=2, cohort=len(tasks), local_lr=0.1)
    first, last = federate(user_factor_model(items, 2, clients=len(tasks)), tasks.data, settings)
    assert last.params["user"].shape == (len(tasks), 3)
    assert bool(last.params["user"].any(1).all())  # each client has a vector of its own by now
    alone, _ = federate(user_factor_model(items, 2), tasks.data, settings)
    # in the first round the private vectors start as the shared one does
    torch.testing.assert_close(first.params["bias"], alone.params["bias"])
    assert not torch.equal(first.params["user"][:1], alone.params["user"])
    assert last.bytes_up < 2 * alone.bytes_up


def test_items_that_nobody_rated_yet_are_taken_and_those_of_no_catalogue_refused(stars):
    found, tasks = stars
    model = user_factor_model(
        found.train.item_count, 3, torch.randn(found.train.item_count, 4), spread=0.1
    )
    ridge = Meta(adaptation="ridge", adapts="user")
    settings = Settings(rounds=3, cohort=len(tasks), server_lr=0.05, server_optimizer="adam")
    *_, last = federate(model, tasks, settings, local=ridge)
    fresh = (found.train.item_counts() == 0).nonzero()[:2, 0]
    assert len(fresh) == 2
    given = {
        "client": torch.tensor([0, 0]),
        "user": torch.tensor([0, 0]),
        "item": fresh,
        "target": torch.tensor([2.0, 2.0]),
    }
    for meta in (ridge, Meta(local_lr=0.1)):
        before, after = (
            newcomers(meta, model, last.params, given, 1, steps)(torch.zeros(2).long(), fresh)
            for steps in (0, 5)
        )
        assert bool(after.isfinite().all())
        assert bool((after > before).all())  # it heard that they are liked
        with pytest.raises(
            ParameterError, match="item=2000: 'item' has rows 0 to 1999; leave out what the model"
        ):
            meta.adapt(
                model,
                {**last.params, **{n: last.params[n][:2000] for n in ("item", "bias")}},
                given | {"item": torch.tensor([3, 2000])},
            )


def test_memory_is_planned_for_the_steps_that_second_order_keeps(monkeypatch):
    monkeypatch.setattr("fedlab.engine.cohort.USUAL_MB", 10)
    many = Curves(600, 10, 10)

    def chunks(method, steps):
        meta = Meta(adaptation=method, local_epochs=steps, local_lr=0.01)
        round_ = context(perceptron(1, 40, task="ratings"), many, local=meta)
        return len(list(meta.train(round_, torch.arange(600))))

    assert chunks("maml", 8) > 2 * chunks("maml", 1)
    assert chunks("fomaml", 8) == chunks("fomaml", 1) <= chunks("maml", 1)


def test_nothing_to_learn_from_changes_nothing(stars):
    found, _ = stars
    model, params = filmed(found.train.item_count)
    for method, k, steps in (("maml", 5, 0), ("maml", 0, 3), ("ridge", 0, 1)):
        meta = Meta(adaptation=method, adapts="user", local_lr=0.1)
        delta = meta.adapt(model, params, found.first(k), steps)
        assert not any(bool(rows.values.any()) for rows in delta.values())


def test_a_client_that_diverges_is_rejected_and_the_run_goes_on():
    model = perceptron(1, 8, task="ratings")
    settings = Settings(rounds=3, cohort=20, local_epochs=40, local_lr=3.0, server_lr=0.001)
    rounds = list(federate(model, SINES, settings, local=Meta()))
    assert len(rounds) == 3
    assert any(done.rejected for done in rounds)
    assert all(bool(value.isfinite().all()) for value in rounds[-1].params.values())


def test_a_user_is_scored_by_what_its_client_learns_from_all_it_has(stars):
    found, tasks = stars
    model, _ = filmed(found.train.item_count)
    meta = Meta(adaptation="ridge", adapts="user")
    (done,) = federate(model, tasks, Settings(rounds=1, cohort=3), local=meta)
    score, everyone = meta.score(model, tasks.data, done), torch.arange(len(tasks))
    given = {
        "client": tasks.data.owner[found.train.users],
        "user": found.train.users,
        "item": found.train.items,
        "target": found.train.values,
    }
    order = given["client"].argsort(stable=True)
    alone = newcomers(meta, model, done.params, {n: c[order] for n, c in given.items()}, len(tasks))
    films = torch.arange(20).expand(len(tasks), -1)
    torch.testing.assert_close(
        score(everyone[:, None].expand_as(films), films),
        alone(everyone[:, None].expand_as(films), films),
        atol=1e-4,
        rtol=1e-3,
    )


def test_what_does_not_fit_is_refused(stars):
    found, tasks = stars
    model = filmed(found.train.item_count)[0]

    def run(meta, model=model, data=tasks, **turned):
        return lambda: next(federate(model, data, Settings(cohort=2, **turned), local=meta))

    rates = "adaptation='{}': rates are learned by 'meta-sgd' of a model from `with_rates`"
    for call, message in [
        (
            lambda: Meta(adaptation="mamal"),
            "adaptation='mamal': choose one of maml, fomaml, meta-sgd, ridge, reptile",
        ),
        (lambda: Meta(adaptation="ridge"), "adapts='all': name the parameters to solve for"),
        (
            lambda: Meta(adaptation="ridge", adapts="user", strength=0.0),
            "strength=0.0: choose a number",
        ),
        (
            lambda: Meta(adaptation="reptile", adapts="user"),
            "adapts='user': all of a model adapts in",
        ),
        (lambda: Meta(learn_start="no"), "adapts='all': name what starts anew at each client"),
        (lambda: Meta(learn_start="never"), "learn_start='never': choose one of yes, no"),
        (
            run(Meta(), matrix_factorisation(3, 2000, 2, task="ratings")),
            "private={'user'}: meta keeps nothing from round to round",
        ),
        (run(Meta(adapts="head")), "head=None: no such parameter"),
        (
            run(Meta(adaptation="ridge", adapts="item")),
            r"adapts=\['item'\]: ridge solves for what a client has one",
        ),
        (run(Meta(adaptation="meta-sgd")), rates.format("meta-sgd")),
        (run(Meta(), with_rates(model)), rates.format("maml")),
        (
            run(Meta(), optimizer="adamw"),
            "optimizer='adamw': nothing in this run reads it beside meta",
        ),
        (run(Meta(), batch_size=4), "batch_size=4: nothing in this run reads it"),
        (run(Meta(), strength=4.0), "strength=4.0: meta does not read it in this combination"),
        (
            run(Meta(adaptation="ridge", adapts="user"), local_lr=0.1),
            "local_lr=0.1: meta does not read",
        ),
        (
            run(Meta(adaptation="meta-sgd"), with_rates(model), local_lr=0.1),
            "local_lr=0.1: meta does not",
        ),
        (run(Meta(), negatives=2), "negatives=2: meta does not read it"),
        (run(Meta(), data=tasks.data), "examples need a column `query`; see fedlab.data.Episodes"),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()
