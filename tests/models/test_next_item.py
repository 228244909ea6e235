"""Histories that see nothing later, and a Transformer that trains as one client at a time would."""

import pytest
import torch
from conftest import tiny
from oracle import train_module

from fedlab.algorithms import federate
from fedlab.core import Key, ParameterError, Settings, as_tensor, stream
from fedlab.data import Federation, equal, one_per_user
from fedlab.engine import LocalSettings, arrange, train
from fedlab.evaluation import seen
from fedlab.models import from_module
from fedlab.models.text import (
    SASRec,
    Sequences,
    histories,
    last_films,
    principal_components,
    sequence_scorer,
)


def test_histories_by_hand():
    # user 0: 0, 3, 2; user 1: 4, 1
    train = tiny([0, 1, 0, 0, 1], [3, 1, 2, 0, 4], times=[5, 9, 7, 1, 2])
    assert histories(train, 2).tolist() == [[5, 0], [5, 4], [0, 3], [5, 5], [5, 5]]
    assert last_films(train, 2).tolist() == [[3, 2], [4, 1]]
    assert last_films(train, 4).tolist() == [[5, 0, 3, 2], [5, 5, 4, 1]]
    with pytest.raises(ParameterError, match="length=0"):
        histories(train, 0)


def test_an_example_sees_what_came_before_and_nothing_later(split):
    data = Sequences(Federation(split.train, equal(split.train, 5)), 6)
    drawn = data.draw(torch.tensor([3, 1]), 1, 2, Key(0, "examples"))
    history, train = as_tensor(drawn["history"]), split.train
    at = {pair: row for row, pair in enumerate(train.pairs().tolist())}
    before = histories(train, 6)
    for row in range(0, len(history), 997):
        user, item = int(drawn["user"][row]), int(drawn["item"][row])
        if drawn["target"][row]:
            assert history[row].tolist() == before[at[user * train.item_count + item]].tolist()
        else:  # those before one of the user's own clicks
            mine = before[train.users == user]
            assert bool((mine == history[row]).all(1).any())
        assert item not in history[row].tolist()
    assert torch.equal(
        as_tensor(data.draw(torch.tensor([3, 1]), 1, 2, Key(0, "examples"))["history"]), history
    )


@pytest.mark.parametrize("kind", ["ids", "texts", "both"])
def test_stacked_platforms_equal_one_at_a_time(kind, split):
    few = split.train.take(split.train.users < 12)
    texts = torch.randn(few.item_count, 40, generator=stream(0, "texts"))
    torch.manual_seed(0)
    net = SASRec(
        few.item_count, None if kind == "ids" else texts, dim=8, length=5, ids=kind != "texts"
    )
    owner = torch.arange(few.user_count) % 3
    data = Sequences(Federation(few, owner), 5)
    local = LocalSettings(batch_size=256, local_lr=0.1)
    model = from_module(
        net, {"history": torch.tensor([[1, 2, 3, 4, 5]] * 3), "item": torch.tensor([4, 5, 6])}
    )
    cohort, params = torch.tensor([0, 1, 2]), model.init(0)
    cohort = cohort[data.counts.argsort(descending=True)]
    examples = data.draw(cohort, 1, 1, Key(0, "examples"))
    deltas, losses, _ = train(model, params, arrange(examples, 1, 256), cohort, local)
    for client in range(3):
        own = {n: as_tensor(c)[examples["client"] == client] for n, c in examples.items()}
        expected, loss = train_module(net, own, local, ["history", "item"], "clicks")
        assert float(losses[client]) == pytest.approx(loss, abs=1e-5)
        for name, delta in deltas.items():
            torch.testing.assert_close(
                delta.values[delta.client == client][0], expected[name], atol=1e-5, rtol=1e-4
            )


def test_training_tells_what_comes_next():
    # a film is followed by the next number, always: only the last film of the history tells
    users = [u for u in range(60) for _ in range(6)]
    films = [(u + k) % 12 for u in range(60) for k in range(6)]
    ratings = tiny(users, films)
    torch.manual_seed(0)
    net = SASRec(12, dim=16, length=4)
    data = Sequences(Federation(ratings, one_per_user(ratings)), 4)
    model = from_module(
        net, {"history": torch.tensor([[12, 12, 1, 2]] * 2), "item": torch.tensor([3, 4])}
    )
    settings = Settings(
        rounds=40, cohort=60, local_lr=1.0, server_lr=1.0, batch_size=0, negatives=4
    )
    (*_, done) = federate(model, data, settings)
    score = sequence_scorer(model, done.params, last_films(ratings, 4))
    everyone = torch.arange(60)
    scores = score(everyone[:, None].expand(-1, 12), torch.arange(12).expand(60, -1))
    # negatives are unseen films too
    best = scores.masked_fill(seen([ratings], everyone), -torch.inf).argmax(1)
    assert float((best == (everyone + 6) % 12).float().mean()) > 0.9


def test_main_directions_keep_what_is_near():
    points = torch.randn(30, 3, generator=stream(0, "x"))
    vectors = points @ torch.randn(3, 50, generator=stream(0, "y"))
    short = principal_components(vectors, 3)
    centred = torch.nn.functional.normalize(vectors - vectors.mean(0))
    torch.testing.assert_close(short @ short.T, centred @ centred.T, atol=1e-5, rtol=1e-4)


def test_settings_without_meaning_are_refused(stars):
    with pytest.raises(ParameterError, match="ids=False: an item needs a row"):
        SASRec(5, ids=False)
    with pytest.raises(ParameterError, match="heads=3: choose a divisor of dim=8"):
        SASRec(5, dim=8, heads=3)
    with pytest.raises(ParameterError, match=r"vectors=\(4, 2\): give 5 rows"):
        SASRec(5, torch.zeros(4, 2))
    with pytest.raises(ParameterError, match="task='ratings': histories are of clicks"):
        Sequences(stars).draw(torch.tensor([0]), 1, 0, Key(0, "examples"))
