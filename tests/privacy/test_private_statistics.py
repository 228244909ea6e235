"""One noisy release and public texts: what is sent, what smoothing does, who learns nothing."""

import pytest
import torch
from conftest import tiny

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Settings
from fedlab.data import Federation, at_least, leave_one_out, one_per_user
from fedlab.evaluation import candidates, popularity, ranking
from fedlab.models.text import item_texts, text_kernel, vectors
from fedlab.privacy import (
    Clip,
    GaussianNoise,
    ItemCounts,
    PairCounts,
    Release,
    epsilon,
    item_counts,
    own_taste,
    pair_counts,
    public_basis,
    smoothed,
    standard,
    table_score,
    together,
)


@pytest.fixture
def three():
    train = tiny([0, 0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 1, 1, 4])
    return Federation(train, one_per_user(train))


def everybody(model, data, local, noise=1e-6):
    asked = Settings(
        rounds=1,
        sampling="poisson",
        cohort=len(data),
        noise=noise,
        server_lr=float(len(data)),
        teaching_seed=0,
    )
    (done,) = federate(model, data, asked, local=local, uplink=[Clip(), GaussianNoise()])
    assert done.metrics["epsilon"] == pytest.approx(epsilon([Release(noise)], 1e-4))
    return done


def test_counts_by_hand(three):
    done = everybody(item_counts(three.train.item_count), three, ItemCounts())
    root = 0.5**0.5
    # each user's films together have length 1
    expected = torch.tensor([0.5, 0.5 + 1 + root, 0.5, 0.5, root])
    torch.testing.assert_close(done.params["count"][:5], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(done.norms.max(), torch.tensor(1.0))


def test_pairs_by_hand(three):
    basis = torch.eye(three.train.item_count)[:, :5]
    model = pair_counts(basis)
    done = everybody(model, three, PairCounts())
    h = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0], [0, 1, 0, 0, 0], [0, 0.5**0.5, 0, 0, 0.5**0.5]])
    torch.testing.assert_close(done.params["pairs"][0], h.T @ h, atol=1e-4, rtol=0)
    lengths = model.predict({**done.params, "basis": basis}, {"item": torch.arange(5)[None]})
    torch.testing.assert_close(lengths[0], (h.T @ h).diagonal(), atol=1e-4, rtol=0)


def test_an_empty_cohort_sends_nothing(three):
    for model, local in ((item_counts(5), ItemCounts()), (pair_counts(torch.eye(5)), PairCounts())):
        asked = Settings(rounds=1, cohort=3, drop_out=1.0, server_lr=2.0)
        (done,) = federate(model, three, asked, local=local)
        assert (len(done.cohort), done.bytes_up, len(done.rejected)) == (0, 0, 3)
        assert all(torch.equal(value, model.init(0)[name]) for name, value in done.params.items())


def test_counts_want_their_own_model(three):
    for model, local, message in (
        (item_counts(5), PairCounts(), "pair counts need their own"),
        (pair_counts(torch.eye(5)), ItemCounts(), "item counts need"),
    ):
        with pytest.raises(ParameterError, match=message):
            next(federate(model, three, Settings(cohort=3), local=local))


def test_smoothing_is_the_mean_of_a_gaussian_process():
    torch.manual_seed(0)
    kernel = text_kernel(torch.randn(30, 8), 0.7)
    truth = (
        torch.distributions.MultivariateNormal(
            torch.zeros(30), 30 * kernel + 1e-4 * torch.eye(30)
        ).sample()
        + 20
    )
    noisy = truth + 3 * torch.randn(30)
    found = smoothed(noisy, kernel, 3.0, variance=30.0, least=1e-9)
    joint = torch.linalg.inv(
        torch.linalg.inv(30 * kernel.double()) + torch.eye(30, dtype=torch.float64) / 9
    )
    torch.testing.assert_close(
        found.double(), (joint @ noisy.double() / 9).clamp(min=1e-9), atol=1e-2, rtol=1e-3
    )
    torch.testing.assert_close(smoothed(truth, kernel, 1e-3, least=1e-9), truth, atol=1e-2, rtol=0)
    assert float(smoothed(-truth, kernel, 3.0).max()) == pytest.approx(0.2)
    for bad in ({"noise": 0.0}, {"noise": 1.0, "variance": 0.0}, {"noise": 1.0, "least": 0.0}):
        with pytest.raises(ParameterError, match=r"=0.0: choose a positive number"):
            smoothed(truth, kernel, **bad)


def test_directions_that_are_noise_are_left_out():
    torch.manual_seed(0)
    basis, flat = torch.linalg.qr(torch.randn(50, 20)).Q, torch.ones(50)
    strong = torch.zeros(20, 20)
    strong[0, 0], strong[1, 1] = 90.0, 70.0
    found = together(strong + torch.randn(20, 20), basis, flat, 1.0)
    rows = basis[:, :2] * torch.tensor([90.0, 70.0]).sqrt()
    rows = torch.nn.functional.normalize(rows)
    assert float((found - rows @ rows.T).abs().mean()) < 0.1
    # nothing stands out: one direction, all +1 or -1
    alone = together(torch.randn(20, 20), basis, flat, 1.0)
    torch.testing.assert_close(alone.abs(), torch.ones(50, 50))


def test_the_basis_is_orthonormal_and_public():
    torch.manual_seed(0)
    kernel = text_kernel(torch.randn(40, 8), 0.7)
    basis = public_basis(kernel, torch.rand(40) + 0.1, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), atol=1e-5, rtol=0)
    with pytest.raises(ParameterError, match="dim=41: choose from 1 to 40"):
        public_basis(kernel, torch.ones(40), 41)


def test_taste_weighs_the_last_films_most():
    train = tiny([0, 0], [0, 1], times=[0, 1], item_count=3)
    kind = torch.eye(3)
    (found,) = own_taste(train, [(2.0, kind)], recency=1.0)
    # weights of 1/2 and 1, over their sum
    torch.testing.assert_close(found, 2 * standard(torch.tensor([[1 / 3, 2 / 3, 0.0]]))[0])
    assert float(found[1]) > float(found[0]) > float(found[2])


def test_noise_that_proves_two_leaves_more_than_popularity(ratings):
    split = leave_one_out(at_least(ratings, items=20)[0])
    data, test = Federation(split.train, one_per_user(split.train)), candidates(split)
    text = text_kernel(vectors(item_texts(split.train.catalogue), progress=False), 0.35)
    noisy = everybody(item_counts(len(text)), data, ItemCounts(), 1.735).params["count"]
    popular = smoothed(noisy, text, 1.735)
    hits = [
        ranking(score, test)["hr@10"]
        for score in (
            popularity(split.train),
            table_score(popular.log() + standard(own_taste(split.train, [(1.0, text)]))),
        )
    ]
    assert hits[1] > hits[0] + 0.02
