"""A client's own model: server rows plus what it learned, for the rows it learned."""

import torch
from conftest import tiny
from oracle import forward, train_one

from fedlab.algorithms import alone, alone_ranks, fine_tuned
from fedlab.core import Key
from fedlab.data import Federation
from fedlab.engine import SGD
from fedlab.evaluation import candidates, hit_rate


def test_alone_scores_as_each_client_trained_by_itself(build, stars):
    local = SGD(local_epochs=2, local_lr=0.05, memory_mb=1000)  # everybody in one chunk
    for name in ("matrix factorisation", "linear"):
        model = build(name, stars.train, "ratings")
        params = model.init(0)
        users, score = next(alone(model, stars, local))
        cohort = stars.counts.argsort(descending=True, stable=True)[:256]
        assert len(users) == 671
        examples = stars.draw(cohort, 2, 0, Key(0, "alone examples", 1))
        items = torch.arange(40)
        for position, user in enumerate(cohort[:5].tolist()):
            own = {n: c[examples["client"] == position] for n, c in examples.items()}
            delta, _ = train_one(model, params, own, local)
            mine = {n: p.clone() for n, p in params.items()}
            for n, rows in delta.items():
                for row, value in rows.items():
                    mine[n][row] += value
            who = torch.full_like(items, user)
            batch = {"item": items, "user": who, "item_row": items, "user_row": who}
            expected = forward(name, mine, batch, tuple(model.constants.values()))
            torch.testing.assert_close(score(who, items), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                score(who.view(8, 5), items.view(8, 5)), expected.view(8, 5), atol=1e-5, rtol=0
            )


def test_groups_do_not_change_who_is_ranked(build, split, clicks):
    model = build("matrix factorisation", split.train)
    ranks = alone_ranks(model, clicks, SGD(), candidates(split))
    assert int(ranks.min()) >= 1
    assert int(ranks.max()) <= 100
    assert hit_rate(ranks) < 0.2  # nobody knows films they never met


def test_platforms_train_alone_with_all_their_users(build):
    train = tiny([0, 1, 2], [0, 1, 2])
    data = Federation(train, torch.tensor([0, 0, 1]))
    groups = list(alone(build("matrix factorisation", train), data, SGD(negatives=1)))
    assert [users.tolist() for users, _ in groups] == [[0, 1, 2]]


def test_a_fine_tuned_model_is_the_servers_after_one_more_round_of_the_client(build, stars):
    model, local = build("matrix factorisation", stars.train, "ratings"), SGD(local_lr=0.05)
    params, items = model.init(3), torch.arange(40)
    score = fine_tuned(model, stars, params, local, seed=1, number=4)
    for user in (0, 300, 670):
        own = stars.draw(torch.tensor([user]), 1, 0, Key(1, "examples", 4))
        delta, _ = train_one(model, params, own, local)
        mine = {n: p.clone() for n, p in params.items()}
        for n, rows in delta.items():
            for row, value in rows.items():
                mine[n][row] += value
        who = torch.full_like(items, user)
        batch = {"item": items, "user": who, "item_row": items, "user_row": who}
        expected = forward(model.name, mine, batch, ())
        torch.testing.assert_close(score(who, items), expected, atol=1e-5, rtol=1e-5)
