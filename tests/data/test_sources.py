"""Federations besides rated films: any columns, and clicks on disk."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny

from fedlab.algorithms import federate
from fedlab.core import Key, ParameterError, Settings, as_tensor
from fedlab.data import Columns, DataError, Federation, Stored, one_per_user, synthesise
from fedlab.models import matrix_factorisation, perceptron

OWNER = torch.tensor([1, 0, 1, 2, 1])
X, TARGET = torch.arange(10.0).view(5, 2), torch.tensor([1.0, 0, 1, 0, 1])


def test_columns_hand_each_client_its_own_rows_each_epoch():
    data = Columns({"x": X, "target": TARGET}, OWNER)
    assert (len(data), data.counts.tolist()) == (3, [1, 3, 1])
    examples = data.draw(torch.tensor([1, 2]), 2, 0, Key(0, "x"))
    assert examples["client"].tolist() == [0] * 6 + [1] * 2
    assert examples["epoch"].tolist() == [0] * 3 + [1] * 3 + [0, 1]
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(as_tensor(examples["x"])[epoch, 0].tolist()) == [0, 4, 8]
    assert as_tensor(examples["x"])[6:].tolist() == [[6, 7]] * 2
    assert torch.equal(
        as_tensor(examples["target"]), TARGET[(as_tensor(examples["x"])[:, 0] / 2).long()]
    )


def test_columns_train_a_perceptron():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator)
    data = Columns({"x": x, "target": (x[:, 0] > x[:, 1]).float()}, torch.arange(2000) % 40)
    rounds = list(federate(perceptron(8, 16), data, Settings(rounds=15, cohort=20, local_lr=1.0)))
    assert rounds[-1].loss < 0.4 * rounds[0].loss


@pytest.mark.parametrize(
    ("columns", "owner", "message"),
    [
        ({"x": X}, OWNER, "columns=.*add the column 'target'"),
        ({"x": X[:3], "target": TARGET}, OWNER, "columns\\['x'\\]=.*give 5 rows, as owner has"),
        ({"epoch": TARGET, "target": TARGET}, OWNER, "columns='epoch': the engine uses this name"),
        ({"target": TARGET / 0}, OWNER, "columns\\['target'\\]='not finite': remove rows with NaN"),
        ({"target": TARGET}, OWNER - 1, "owner=-1: clients are numbered from 0"),
        ({"target": TARGET}, OWNER + (OWNER > 1), "client 2 of 4 holds no rows"),
        ({"target": TARGET[:0]}, OWNER[:0], "columns"),
    ],
)
def test_bad_columns_are_refused(columns, owner, message):
    with pytest.raises((ParameterError, DataError), match=message):
        Columns(columns, owner)


def test_a_folder_trains_as_the_same_clicks_in_memory(tmp_path):
    stored = synthesise(tmp_path / "clicks", 30, 200, mean=12, tastes=4)
    users = torch.arange(30).repeat_interleave(stored.counts)
    items = torch.from_numpy(np.load(tmp_path / "clicks" / "items.npy").astype(np.int64))
    train = tiny(users.tolist(), items.tolist(), user_count=30, item_count=200)
    memory = Federation(train, one_per_user(train))
    model, few = matrix_factorisation(30, 200, 4), Settings(rounds=3, cohort=10)
    for a, b in zip(federate(model, stored, few), federate(model, memory, few), strict=True):
        assert torch.equal(a.cohort, b.cohort)
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)


def test_sparse_users_train_as_whole_ones(tmp_path):
    """With as many first vectors as users, only the storage differs."""
    stored = synthesise(tmp_path / "clicks", 30, 200, mean=12, tastes=4)
    few = Settings(rounds=3, cohort=10)
    sparse, dense = (
        list(federate(matrix_factorisation(30, 200, 4, sparse_users=s), stored, few))[-1].params
        for s in (True, False)
    )
    assert torch.equal(sparse["item"], dense["item"])
    assert torch.equal(sparse["user"][torch.arange(30)], dense["user"])
    with pytest.raises(ParameterError, match="sparse_users=True: only private users"):
        matrix_factorisation(3, 3, private_users=False, sparse_users=True)


def test_synthesised_clicks_have_tastes_popularity_and_busy_users(tmp_path):
    stored = synthesise(tmp_path / "clicks", 2000, 1000, mean=40, tastes=10, block=700)
    items = np.load(tmp_path / "clicks" / "items.npy")
    user = np.repeat(np.arange(2000), stored.counts.numpy())
    assert len(np.unique(user * 1000 + items)) == len(items)  # an item once for each user
    assert (np.diff(items)[user[1:] == user[:-1]] > 0).all()  # growing within each
    counts = np.bincount(items, minlength=1000)
    assert counts[:50].sum() > 5 * counts[-50:].sum()  # popular items come first
    own = np.array([np.bincount(items[user == u] % 10, minlength=10).max() for u in range(100)])
    assert np.median(own / stored.counts.numpy()[:100]) > 0.4  # a tenth if there were no taste
    assert stored.counts.max() > 3 * stored.counts.double().median()
    again = synthesise(tmp_path / "again", 2000, 1000, mean=40, tastes=10, block=700)
    assert torch.equal(stored.counts, again.counts)
    assert not list(tmp_path.glob(".*"))  # no draft stays


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"counts\.npy: no such file; a folder needs"):
        Stored(tmp_path)
    synthesise(tmp_path / "ok", 10, 200, mean=10, tastes=2)
    with pytest.raises(ParameterError, match="it exists; choose a new one"):
        synthesise(tmp_path / "ok", 10, 200, mean=10, tastes=2)
    for name, bad in (("users", 0), ("items", 3), ("mean", 500.0)):
        with pytest.raises(ParameterError, match=f"{name}={bad}"):
            synthesise(
                tmp_path / "new",
                **({"users": 10, "items": 200, "mean": 10, "tastes": 2} | {name: bad}),
            )
    with pytest.raises(ParameterError, match="task='ratings'"):
        Stored(tmp_path / "ok", "ratings")
    (tmp_path / "ok" / "about.json").write_text(json.dumps({"items": 3}))
    with pytest.raises(DataError, match=r"items\.npy: an item is not in 0 to 2"):
        Stored(tmp_path / "ok").draw(torch.arange(10), 1, 1, Key(0, "x"))
    np.save(tmp_path / "ok" / "counts.npy", np.array([1, 2]))
    with pytest.raises(DataError, match=r"counts\.npy adds up to 3 clicks"):
        Stored(tmp_path / "ok")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": torch.tensor([1.0, 5.0])},
            r"columns\['target'\]=\(1.0, 5.0\): targets of clicks",
        ),
        ({"target": torch.tensor([1, 0])}, "give float32, with .float()"),
        ({"target": torch.ones(2, 1)}, r"columns\['target'\]=\(2, 1\): give one number a row"),
        ({"x": [1.0, 2.0]}, r"columns\['x'\]='list': give a Tensor"),
    ],
)
def test_columns_that_cannot_be_trained_on_are_refused(change, message):
    columns = {"x": torch.ones(2, 3), "target": torch.tensor([1.0, 0.0])}
    with pytest.raises(ParameterError, match=message):
        Columns(columns | change, torch.tensor([0, 1]))
