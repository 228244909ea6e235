"""Losses of lists against torch's own, and clients that learn by them against one at a time."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch.nn.functional import cross_entropy, logsigmoid

from fedlab.algorithms import Meta, federate
from fedlab.core import Key, ParameterError, Settings, as_tensor, stream
from fedlab.data import Federation, ItemQueries, Lists, equal, one_per_user
from fedlab.engine import LocalSettings, updates
from fedlab.models import content, from_module, interaction, listwise, matrix_factorisation
from fedlab.models.losses import LOSSES, losses_of_lists
from fedlab.models.text import SASRec, Sequences, last_films, with_lists
from fedlab.workbench import stream as experiment

# 4 users, 6 items
TRAIN = tiny([0, 0, 0, 1, 1, 2, 2, 2, 3, 3], [0, 1, 2, 1, 4, 0, 3, 5, 2, 5])


def test_losses_by_hand():
    scores, first = torch.tensor([[[1.0, 0.0, 3.0]]]), torch.zeros(1, 1, dtype=torch.int64)
    # pairs (1, 0) and (1, 3): log(1 + e^-1) = 0.31326, log(1 + e^2) = 2.12693
    assert losses_of_lists("bpr", scores, first).item() == pytest.approx(1.220095, abs=1e-5)
    # log(e + 1 + e^3) - 1 = 3.16985 - 1
    for loss in ("sampled softmax", "softmax"):
        assert losses_of_lists(loss, scores, first).item() == pytest.approx(2.16985, abs=1e-5)
    assert losses_of_lists("softmax", scores, first + 2).item() == pytest.approx(0.16985, abs=1e-5)


def test_losses_are_those_of_torch():
    scores = torch.randn(3, 5, 7, generator=stream(0, "scores")) * 3
    first, place = torch.zeros(3, 5, dtype=torch.int64), torch.arange(15).view(3, 5) % 7
    pairs = -logsigmoid(scores[..., :1] - scores[..., 1:]).mean(-1)
    torch.testing.assert_close(losses_of_lists("bpr", scores, first), pairs)
    for loss, target in (("sampled softmax", first), ("softmax", place)):
        whole = cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none")
        torch.testing.assert_close(losses_of_lists(loss, scores, target), whole.view(3, 5))
    one = losses_of_lists("softmax", scores[:, :1], place)  # one user's predictions for all
    again = losses_of_lists("softmax", scores[:, :1].expand(-1, 5, -1), place)
    assert torch.equal(one, again)


@pytest.mark.parametrize("loss", LOSSES)
def test_lists_hold_a_click_and_items_that_its_user_has_not_clicked(loss):
    data = Lists(Federation(TRAIN, one_per_user(TRAIN)), loss)
    drawn = data.draw(torch.tensor([2, 0]), 3, 4, Key(0, "examples"))
    clicked = {tuple(pair) for pair in torch.stack([TRAIN.users, TRAIN.items], 1).tolist()}
    assert drawn["user"][:, 0].tolist() == [2] * 9 + [0] * 9
    if loss == "softmax":
        assert "item" not in drawn
        clicks = drawn["target"]
    else:
        assert drawn["item"].shape == (18, 5)
        assert not drawn["target"].any()
        clicks = drawn["item"][:, 0]
        for user, others in zip(drawn["user"][:, 0].tolist(), drawn["item"][:, 1:], strict=True):
            assert not clicked & {(user, item) for item in others.tolist()}
    assert sorted(clicks[:9].tolist()) == sorted([0, 3, 5] * 3)
    alone = data.draw(torch.tensor([0]), 3, 4, Key(0, "examples"))
    assert all(torch.equal(alone[n], c[9:]) for n, c in drawn.items() if n != "client")


def one_client(loss, params, examples, local):
    """Delta by name of a client, in torch's own words, over whole tables."""
    p = {name: value.clone().requires_grad_() for name, value in params.items()}
    rule = torch.optim.SGD if local.optimizer == "sgd" else torch.optim.AdamW
    optimizer = rule(p.values(), lr=local.local_lr, weight_decay=0.0)
    for cut in torch.arange(len(examples["target"])).split(local.batch_size):
        user = p["user"][examples["user"][cut, 0]]
        if loss == "softmax":
            value = cross_entropy(user @ p["item"].T + p["bias"], examples["target"][cut])
        else:
            item = examples["item"][cut]
            y = (user[:, None] * p["item"][item]).sum(-1) + p["bias"][item]
            apart = y[:, :1] - y[:, 1:]
            value = -logsigmoid(apart).mean() if loss == "bpr" else -y.log_softmax(1)[:, 0].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {name: (value - params[name]).detach() for name, value in p.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clients", ["users", "shops"])
@pytest.mark.parametrize("loss", LOSSES)
def test_clients_learn_what_one_at_a_time_would(loss, clients, optimizer):
    owner = one_per_user(TRAIN) if clients == "users" else torch.tensor([0, 1, 1, 0])
    data = Lists(Federation(TRAIN, owner), loss)
    model = listwise(matrix_factorisation(4, 6, 3, spread=1.0), loss)
    local = LocalSettings(batch_size=2, local_lr=0.1, optimizer=optimizer, negatives=2)
    cohort, params = data.counts.argsort(descending=True, stable=True), model.init(1)
    (update,) = updates(model, data, params, cohort, local, seed=4)
    for place, client in enumerate(cohort.tolist()):
        mine = data.draw(torch.tensor([client]), 1, 2, Key(4, "examples", 1))
        expected = one_client(loss, params, mine, local)
        for name, rows in update.deltas.items():
            found = torch.zeros_like(params[name])
            here = rows.client == place
            found[rows.ids[here]] = rows.values[here]
            torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-4)


def test_a_client_sends_the_rows_of_its_lists_and_for_softmax_all():
    sent = {}
    for loss in LOSSES:
        model, data = listwise(matrix_factorisation(4, 6, 3), loss), Lists(federation(), loss)
        *_, done = federate(model, data, few(loss, cohort=1, seed=2))
        rows = {row for user in done.cohort for row in touched(data, user)}
        sent[loss] = done.bytes_up
        most = 6 if loss == "softmax" else len(rows)
        assert (done.params["item"] != model.init(2)["item"]).any(1).sum() == most
    assert sent["softmax"] > sent["bpr"] == sent["sampled softmax"]


def few(loss, **more):
    drawn = {} if loss == "softmax" else {"negatives": 1}
    return Settings(rounds=1, local_lr=0.5, **drawn, **more)


def federation():
    return Federation(TRAIN, one_per_user(TRAIN))


def touched(data, user):
    drawn = data.draw(torch.tensor([int(user)]), 1, 1, Key(2, "examples", 1))
    return as_tensor(drawn["item"]).flatten().tolist() if "item" in drawn else range(6)


def test_a_bias_that_all_items_share_learns_nothing():
    for loss in LOSSES:
        model = listwise(interaction(4, 6, 3, dropout=0.0), loss)
        *_, done = federate(model, Lists(federation(), loss), few(loss, cohort=4))
        assert float(done.params["offset"].abs().max()) < 1e-6
        assert float(done.params["bias"].abs().max()) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_a_transformer_reads_a_history_once_for_a_list(loss):
    films = last_films(TRAIN, 3)
    torch.manual_seed(0)
    net = SASRec(6, torch.randn(6, 4), dim=4, length=3)
    plain = from_module(net, {"history": films[:3], "item": TRAIN.items[:3]})
    model = listwise(with_lists(plain), loss)
    data = Lists(Sequences(Federation(TRAIN, equal(TRAIN, 2)), 3), loss)
    local = LocalSettings(batch_size=4, local_lr=0.1, negatives=2)
    cohort = data.counts.argsort(descending=True, stable=True)
    (update,) = updates(model, data, model.init(0), cohort, local)
    if loss == "softmax":
        rows = {name: value.expand(2, *value.shape[1:]) for name, value in model.init(0).items()}
        history = films[None, :2].expand(2, -1, -1)
        batch = {"history": history, "item": torch.tensor([[3, 5]]).expand(2, -1)}
        single = plain.predict(rows | plain.constants, batch)
        every = model.over(rows | plain.constants, {"history": history})
        assert every.shape == (2, 2, 6)
        torch.testing.assert_close(every[:, [0, 1], [3, 5]], single)
        return
    (again,) = updates(listwise(plain, loss), data, model.init(0), cohort, local)
    torch.testing.assert_close(update.losses, again.losses)
    for name, rows in update.deltas.items():
        torch.testing.assert_close(rows.values, again.deltas[name].values, atol=1e-6, rtol=1e-4)


def test_what_learns_no_lists_is_refused(stars):
    mf, data = matrix_factorisation(4, 6, 3), federation()
    with pytest.raises(ParameterError, match="loss='hinge': choose one of bpr, sampled softmax"):
        listwise(mf, "hinge")
    with pytest.raises(ParameterError, match=r"task='ratings': bpr: .*; choose clicks"):
        listwise(matrix_factorisation(4, 6, 3, task="ratings"), "bpr")
    with pytest.raises(ParameterError, match="model='bpr': the model learns by this loss already"):
        listwise(listwise(mf, "bpr"), "softmax")
    with pytest.raises(ParameterError, match=r"loss='softmax': content .*; choose bpr or sampled"):
        listwise(content(torch.zeros(6, 2), torch.zeros(4, 2), 3), "softmax")
    with pytest.raises(ParameterError, match=r"task='ratings': bpr: .*; choose clicks"):
        Lists(stars, "bpr")
    with pytest.raises(ParameterError, match="data='ItemQueries': bpr: it makes examples"):
        Lists(ItemQueries(data), "bpr")
    with pytest.raises(ParameterError, match="negatives=0: bpr sets a click against drawn items"):
        Lists(data, "bpr").draw(torch.tensor([0]), 1, 0, Key(0, "examples"))
    full = tiny([0, 0, 1], [0, 1, 1])
    with pytest.raises(ParameterError, match="user 0 has seen all 2 items"):
        Lists(Federation(full, one_per_user(full)), "bpr").draw(
            torch.tensor([0]), 1, 1, Key(0, "examples")
        )


@pytest.mark.parametrize(
    ("of_model", "of_data", "said"),
    [
        ("bpr", "", r"loss='bpr': the data are for single items; give Lists\(data, 'bpr'\)"),
        ("", "bpr", r"loss='usual': the data are for bpr; give listwise\(model, 'bpr'\)"),
        ("bpr", "softmax", r"loss='bpr': the data are for softmax; give Lists\(data, 'bpr'\)"),
    ],
)
def test_model_and_data_agree_on_lists(of_model, of_data, said):
    model = matrix_factorisation(4, 6, 3)
    model = listwise(model, of_model) if of_model else model
    data = Lists(federation(), of_data) if of_data else federation()
    with pytest.raises(ParameterError, match=said):
        list(federate(model, data, Settings(rounds=1, cohort=2)))


def test_methods_without_steps_of_sgd_are_refused():
    model = listwise(matrix_factorisation(4, 6, 3), "bpr")
    with pytest.raises(
        ParameterError, match="loss='bpr': meta takes no steps of sgd, which learn it; choose sgd"
    ):
        list(federate(model, Lists(federation(), "bpr"), Settings(rounds=1), local=Meta()))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "ratings"}, "task='ratings': bpr: "),
        ({"local": "implicit"}, "loss='bpr': implicit takes no steps of sgd"),
        ({"negatives": 0}, "negatives=0: bpr sets a click against drawn items"),
        ({"engine": "compiled"}, "engine='compiled': bpr is a loss of lists"),
        ({"personal": "fine tuned"}, "personal='fine tuned': experiment does not read it"),
        ({"loss": "softmax", "negatives": 3}, "negatives=3: sgd does not read it"),
    ],
)
def test_an_experiment_says_what_does_not_go_with_a_loss(asked, said):
    settings = {"loss": "bpr", "rounds": 1, "cohort": 2} | asked
    with pytest.raises(ParameterError, match=said):
        list(experiment(lambda: settings))


def test_scores_and_losses_of_single_items_stay():
    model = matrix_factorisation(4, 6, 3)
    same = listwise(model, "bpr")
    assert same.predict is model.predict
    assert same.factors is model.factors
    y, t = torch.tensor([[0.5]]), torch.tensor([[1.0]])
    assert torch.equal(same.loss(y, t), model.loss(y, t))
    assert replace(same, list_loss="", over=None) == model
