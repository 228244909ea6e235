"""Two towers over texts: no film in its own user's vector, and stacked shops as one at a time.

Every part refuses what it cannot do.
"""

import pytest
import torch
from conftest import read_once, tiny
from oracle import train_module

from fedlab.algorithms import federate
from fedlab.core import Key, ParameterError, Settings
from fedlab.data import Federation, ItemQueries
from fedlab.engine import LocalSettings, arrange, train
from fedlab.models import adapted, from_module, loaded
from fedlab.models.text import (
    GAIN,
    HEADS,
    MINILM,
    SMOLLM2,
    TextEncoder,
    TwoTower,
    encoder,
    item_texts,
    mean_state,
    vectors,
)


@pytest.fixture(scope="module")
def few(ratings):
    """Twelve users in three shops."""
    mine = ratings.take(ratings.users < 12)
    kept = mine.items.unique()[:60]
    chosen = mine.take(torch.isin(mine.items, kept))
    users = chosen.users.unique(return_inverse=True)[1]
    items = torch.searchsorted(kept, chosen.items)
    small = tiny(users.tolist(), items.tolist(), item_count=60)
    texts = [item_texts(ratings.catalogue, "{title}")[i] for i in kept.tolist()]
    return Federation(small, torch.arange(small.user_count) % 3), texts


@pytest.fixture(scope="module")
def texts(few):
    """The encoder of a few films, by how many of its layers train."""
    made = {top: TextEncoder(encoder(), few[1], top=top, length=10) for top in (0, 1)}
    return made | {None: TextEncoder(encoder(), few[1], length=10)}


@pytest.mark.parametrize("name", [MINILM, SMOLLM2])
def test_states_are_the_same_wherever_training_starts(name, few):
    item, some = torch.tensor([3, 0, 5]), few[1][:6]
    with torch.no_grad():
        (whole, there), *others = (
            TextEncoder(read_once(name), some, top=top, length=10)(item) for top in (None, 2, 0)
        )
    for states, mask in others:
        assert torch.equal(mask, there)
        torch.testing.assert_close(states[there], whole[there], atol=1e-3, rtol=1e-3)


def test_a_logit_by_hand_leaves_the_film_itself_out(few, texts):
    data, titles = few
    known, train = vectors(titles), data.train
    net = TwoTower(texts[0], train, known, dim=8)
    clicked = torch.zeros(train.user_count, 60)
    clicked[train.users, train.items] = 1
    item, who = torch.tensor([4, 9]), torch.tensor([[0, 5], [1, 2]])
    unit = torch.nn.functional.normalize(known)
    unit = unit - unit.mean(0)
    found = net(item, who, clicked[who, item[:, None]]).detach()
    states, there = texts[0](item)
    z = net.head.out(mean_state(states, there)).detach()
    for row in range(2):
        for k in range(2):
            user, film = int(who[row, k]), int(item[row])
            others = clicked[user].clone()
            others[film] = 0
            mean = others @ unit / others.sum()
            share = (clicked[user].sum() + 1) / 62
            logit = GAIN * z[row, :-1] @ (net.user.weight.detach() @ mean) + z[row, -1]
            logit = logit + (share / (1 - share)).log()
            assert float(found[row, k]) == pytest.approx(float(logit), abs=1e-4)
    score = net.scores()(torch.tensor([0, 0]), torch.tensor([58, 59]))
    both = net(torch.tensor([58, 59]), torch.tensor([[0], [0]]), torch.zeros(2, 1))[:, 0].detach()
    torch.testing.assert_close(score[0] - score[1], both[0] - both[1], atol=1e-4, rtol=1e-4)


def test_a_shop_asks_its_own_users_about_films_that_they_know(few):
    data = few[0]
    shops, pairs = ItemQueries(data, 7, 5), set(data.train.pairs().tolist())
    drawn = shops.draw(torch.tensor([2, 0]), 2, 0, Key(0, "examples"))
    assert drawn["who"].shape == (2 * 2 * 7, 5)
    assert drawn["epoch"].tolist() == ([0] * 7 + [1] * 7) * 2
    for client, item, who, target in zip(
        *(drawn[n] for n in ("client", "item", "who", "target")), strict=True
    ):
        shop = (2, 0)[int(client)]
        assert set(data.owner[who].tolist()) == {shop}
        assert [int(u) * 60 + int(item) in pairs for u in who] == target.bool().tolist()
        assert any(int(u) * 60 + int(item) in pairs for u in (data.owner == shop).nonzero()[:, 0])
    assert len(drawn["item"][:7].unique()) == 7
    assert torch.equal(
        shops.draw(torch.tensor([2, 0]), 2, 0, Key(0, "examples"))["who"], drawn["who"]
    )
    assert int(shops.counts[1]) == len(data.train.items[data.owner[data.train.users] == 1].unique())


@pytest.mark.parametrize("kind", ["full", "top", "adapters", *HEADS])
def test_stacked_shops_equal_one_at_a_time(kind, few, texts):
    data, titles = few
    known = vectors(titles)
    if kind in HEADS:
        net = TwoTower(texts[0], data.train, known, head=kind, dim=8)
    else:
        net = TwoTower(texts[1 if kind == "top" else None], data.train, known, dim=8)
        if kind == "adapters":
            net = adapted(net, ("query", "value"), 2, train=("head", "user"))
    shops, local = ItemQueries(data, 8, 6), LocalSettings(batch_size=4, local_lr=0.01)
    model = from_module(net, shops.few(), answers=6)
    cohort, params = shops.counts.argsort(descending=True), model.init(0)
    examples = shops.draw(cohort, 1, 1, Key(0, "examples"))
    deltas, losses, _ = train(model, params, arrange(examples, 1, 4), cohort, local)
    for client in range(3):
        own = {n: c[examples["client"] == client] for n, c in examples.items()}
        expected, loss = train_module(net, own, local, ["item", "who", "own"], "clicks")
        assert float(losses[client]) == pytest.approx(loss, abs=1e-4)
        for name, delta in deltas.items():
            torch.testing.assert_close(
                delta.values[delta.client == client][0], expected[name], atol=1e-4, rtol=1e-3
            )


def test_a_batch_in_parts_gives_the_same_round(few, texts):
    data, titles = few
    net = adapted(
        TwoTower(texts[None], data.train, vectors(titles), dim=8), ("query",), 2, train=("head",)
    )
    shops, rounds = ItemQueries(data, 8, 6), []
    for micro in (0, 3):
        model = from_module(net, shops.few(), answers=6)
        settings = Settings(
            rounds=1, cohort=3, batch_size=8, micro_batch=micro, memory_mb=micro and 200
        )
        rounds.extend(federate(model, shops, settings))
    for name, value in rounds[0].params.items():
        torch.testing.assert_close(value, rounds[1].params[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rounds[0].losses, rounds[1].losses)


def test_training_the_heads_learns_and_a_round_goes_back_into_the_module(few, texts):
    data, titles = few
    net = TwoTower(texts[0], data.train, vectors(titles), head="attention", dim=8)
    shops = ItemQueries(data, 30, 8)
    model = from_module(net, shops.few(), answers=8)
    *_, last = federate(model, shops, Settings(rounds=15, cohort=3, batch_size=0, local_lr=0.05))
    first = next(federate(model, shops, Settings(rounds=1, cohort=3, batch_size=0, local_lr=0.05)))
    assert float(last.losses.mean()) < float(first.losses.mean())
    after = loaded(net, last.params)
    torch.testing.assert_close(after.head.out.weight, last.params["head.out.weight"][0])
    assert not torch.equal(after.head.out.weight, net.head.out.weight)
    with pytest.raises(
        ParameterError, match=r"params=.*'theta'.*: TwoTower has none of these weights"
    ):
        loaded(net, {"theta": torch.zeros(1, 2)})


def test_what_makes_no_tower_or_shop_is_refused(few, texts, stars):
    data, titles = few
    known = vectors(titles)
    for call, message in [
        (
            lambda: TextEncoder(encoder(), titles, top=6),
            "top=6: choose from 0 to 5 layers, or None for all",
        ),
        (
            lambda: TwoTower(texts[0], data.train, known, head="lstm"),
            "head='lstm': choose one of dense, convolution",
        ),
        (lambda: TwoTower(texts[0], data.train, known[:5]), r"vectors=\(5, 384\): give 60 rows"),
        (lambda: ItemQueries(stars), "task='ratings': shops know clicks"),
        (lambda: ItemQueries(data, 0), "items=0"),
        (lambda: ItemQueries(data, 1, 0), "users=0"),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()
