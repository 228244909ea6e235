"""The engine does what the papers say: each method against its plain twin, to 1e-6."""

import pytest
import torch
from plain import dp_fedavg, fedprox, ials, maml, scaffold
from torch import nn

from fedlab import (
    SGD,
    Clip,
    Columns,
    Curves,
    Federation,
    GaussianNoise,
    Implicit,
    Meta,
    Scaffold,
    Settings,
    federate,
    from_module,
    matrix_factorisation,
    one_per_user,
    perceptron,
)
from fedlab.core import Key, as_tensor
from fedlab.data import at_least, of_users
from fedlab.fedavg import federated_averaging
from fedlab.privacy import NoiseSource

CLIENTS, ROUNDS = 9, 3
DRAW = torch.Generator().manual_seed(1)
X = torch.randn(90, 4, generator=DRAW)
TABLE = Columns(
    {"x": X, "target": (X[:, 0] + X[:, 1].square() > 0.5).float()},
    torch.randint(CLIENTS, (90,), generator=DRAW),
)


class Net(nn.Module):
    """Two layers, and nothing that draws."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x):
        return self.layers(x)[:, 0]


@pytest.fixture(scope="module")
def films(ratings):
    few, *_ = at_least(ratings, items=100)
    busy = torch.bincount(few.users, minlength=few.user_count) >= 8
    few = of_users(few, busy & (busy.cumsum(0) <= CLIENTS))
    return Federation(few, one_per_user(few))


def loss_of(model):
    """loss(w, batch) by the model's own formula, over whole tables."""

    def loss(w, batch):
        rows = {
            name: w[name][batch[kind][None]] if kind in batch else w[name]
            for name, kind in model.rows.items()
        }
        columns = {name: column[None] for name, column in batch.items()}
        return model.loss(model.predict(rows | model.constants, columns), columns["target"]).mean()

    return loss


def batches_of(data, settings):
    """batches(t, k): a client's examples of a round, cut into epochs and batches."""

    def batches(t, k):
        drawn = data.draw(
            torch.tensor([k]),
            settings.local_epochs,
            settings.negatives,
            Key(settings.seed, "examples", t),
        )
        for epoch in range(settings.local_epochs):
            mine = {n: as_tensor(c)[drawn["epoch"] == epoch] for n, c in drawn.items()}
            for cut in torch.arange(len(mine["target"])).split(settings.batch_size):
                yield {n: c[cut] for n, c in mine.items()}

    return batches


def check(rounds, twin, names):
    """Assert that the parameters of every round agree."""
    for done, plain in zip(rounds, twin, strict=True):
        for name in names:
            assert torch.allclose(done.params[name], plain[name], rtol=0, atol=1e-6), name


def setting(kind, films):
    """The model and the data of each kind."""
    if kind == "factors":
        train = films.train
        return matrix_factorisation(
            train.user_count, train.item_count, 6, private_users=False
        ), films
    return (perceptron(4, 5) if kind == "perceptron" else from_module(Net(), {"x": X[:3]})), TABLE


def start(rounds, model, settings):
    """S of each round, and w at the start."""
    return [done.cohort.tolist() for done in rounds], model.init(settings.seed)


@pytest.mark.parametrize("kind", ["factors", "perceptron", "module"])
def test_fedavg_is_the_papers(kind, films):
    model, data = setting(kind, films)
    settings = Settings(rounds=ROUNDS, cohort=5, local_epochs=2, batch_size=7, local_lr=0.3, seed=4)
    rounds = list(federate(model, data, settings))
    cohorts, w = start(rounds, model, settings)
    twin = federated_averaging(
        w,
        cohorts,
        data.counts.tolist(),
        batches_of(data, settings),
        loss_of(model),
        settings.local_lr,
    )
    check(rounds, twin, model.rows)


@pytest.mark.parametrize("kind", ["factors", "perceptron", "module"])
def test_fedprox_is_the_papers(kind, films):
    model, data = setting(kind, films)
    settings = Settings(
        rounds=ROUNDS, cohort=5, local_epochs=2, batch_size=7, local_lr=0.3, proximal=0.4
    )
    rounds = list(federate(model, data, settings))
    cohorts, w = start(rounds, model, settings)
    twin = fedprox(
        w,
        cohorts,
        data.counts.tolist(),
        batches_of(data, settings),
        loss_of(model),
        settings.local_lr,
        settings.proximal,
    )
    check(rounds, twin, model.rows)


@pytest.mark.parametrize("kind", ["perceptron", "module"])
def test_scaffold_is_the_papers(kind, films):
    model, data = setting(kind, films)
    settings = Settings(rounds=5, cohort=4, local_epochs=2, batch_size=7, local_lr=0.3)
    rounds = list(federate(model, data, settings, local=Scaffold()))
    cohorts, w = start(rounds, model, settings)
    twin = scaffold(
        w,
        cohorts,
        data.counts.tolist(),
        batches_of(data, settings),
        loss_of(model),
        settings.local_lr,
    )
    check(rounds, twin, model.rows)


def test_maml_is_the_papers():
    data, model = Curves(clients=12, support=5, query=6, seed=3), perceptron(1, 8, task="ratings")
    settings = Settings(rounds=ROUNDS, cohort=4, local_epochs=2, local_lr=0.02, server_lr=0.05)
    rounds = list(federate(model, data, settings, local=Meta(adaptation="maml")))
    cohorts, w = start(rounds, model, settings)

    def tasks(t, k):
        drawn = data.draw(
            torch.tensor([k]), 1, settings.negatives, Key(settings.seed, "examples", t)
        )
        return [{n: c[drawn["query"] == part] for n, c in drawn.items()} for part in (0, 1)]

    twin = maml(
        w,
        cohorts,
        data.counts.tolist(),
        tasks,
        loss_of(model),
        settings.local_lr,
        2,
        settings.server_lr,
    )
    check(rounds, twin, model.rows)


def test_dp_fedavg_is_the_papers(films):
    model, data = setting("perceptron", films)
    settings = Settings(
        rounds=ROUNDS,
        cohort=5,
        batch_size=7,
        local_lr=0.3,
        clip=0.2,
        noise=0.5,
        delta=0.05,
        teaching_seed=7,
    )
    rounds = list(federate(model, data, settings, uplink=[Clip(), GaussianNoise()]))
    cohorts, w = start(rounds, model, settings)
    sources = {}

    def noise(t, name):
        source = sources.setdefault(t, NoiseSource.of(7, "noise on the sum", t))
        return source.normal(w[name].double(), 0.5 * 0.2).float()

    twin = dp_fedavg(
        w, cohorts, 5.0, batches_of(data, settings), loss_of(model), settings.local_lr, 0.2, noise
    )
    check(rounds, twin, model.rows)


def test_ials_is_the_papers(films):
    train = films.train
    model = matrix_factorisation(train.user_count, train.item_count, 6)
    settings = Settings(rounds=ROUNDS, cohort=6, server_lr=0.5, unseen=4.0, regularisation=0.7)
    rounds = list(federate(model, films, settings, local=Implicit()))
    cohorts, w = start(rounds, model, settings)
    clicks = [train.items[train.users == k] for k in range(train.user_count)]
    n = len(train) / train.user_count
    w0, reg = 4.0 * n / train.item_count, 0.7 * n**-0.5 / (1 + 4.0)
    for done, q in zip(rounds, ials(w["item"], cohorts, clicks, w0, reg, 0.5), strict=True):
        assert torch.allclose(done.params["item"], q, rtol=0, atol=2e-6)


def test_the_twins_see_a_wrong_step(films):
    model, data = setting("perceptron", films)
    settings = Settings(rounds=1, cohort=5, batch_size=7, local_lr=0.3)
    rounds = list(
        federate(
            model,
            data,
            settings,
            local=SGD(),
            aggregate=lambda updates, server: {
                name: 1.001
                * sum(
                    rows.add_to(torch.zeros_like(server[name]), u.weights)
                    for u in updates
                    for n, rows in u.deltas.items()
                    if n == name
                )
                / sum(float(u.weights.sum()) for u in updates)
                for name in server
            },
        )
    )
    cohorts, w = start(rounds, model, settings)
    (plain,) = federated_averaging(
        w,
        cohorts,
        data.counts.tolist(),
        batches_of(data, settings),
        loss_of(model),
        settings.local_lr,
    )
    assert not all(torch.allclose(rounds[0].params[n], plain[n], rtol=0, atol=1e-6) for n in w)
