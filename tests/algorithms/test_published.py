"""PFedRec, FedRAP, GPFedRec and FedNCF against torch's own optimisers, one client after another."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab import SGD, Settings, federate, forget
from fedlab.algorithms import (
    FedRAP,
    GPFedRec,
    PFedRec,
    additive_items,
    fine_tuned,
    personal_perceptron,
    personal_scores,
)
from fedlab.algorithms.published import fedrap
from fedlab.algorithms.published.gpfedrec import VIEWS, user_graph
from fedlab.core import Key, ParameterError, RoundContext, SparseTable
from fedlab.data import Federation, of_users, one_per_user
from fedlab.engine import train_cohort
from fedlab.evaluation import scorer
from fedlab.models import matrix_factorisation, neural_collaborative_filtering
from fedlab.workbench import Experiment, stream


@pytest.fixture(scope="module")
def few(split):
    """Clicks of 12 users, one a client."""
    train = of_users(split.train, torch.arange(671) < 12)
    return Federation(train, one_per_user(train))


def batches(examples, size):
    """The batches of one client, epoch after epoch."""
    for epoch in range(int(examples["epoch"].max()) + 1):
        mine = {name: column[examples["epoch"] == epoch] for name, column in examples.items()}
        for cut in torch.arange(len(mine["target"])).split(size or len(mine["target"])):
            yield {name: column[cut] for name, column in mine.items()}


def trained(model, data, local, train=None):
    """What the engine sends for all clients, and their examples."""
    params, everyone = model.init(3), data.counts.argsort(descending=True)
    examples = data.draw(everyone, local.local_epochs, local.negatives, Key(0, "examples", 1))
    examples |= model.pairs(params, examples)
    deltas, losses, steps = train_cohort(model, params, examples, everyone, local)
    return params, everyone, examples, deltas, losses, steps


def same(delta, client, start, after):
    """Whether the rows of a client equal the difference of two tables, and no other row moved."""
    here = delta.client == client
    moved = (after - start).detach()
    torch.testing.assert_close(delta.values[here], moved[delta.ids[here]], atol=2e-5, rtol=1e-4)
    rest = torch.ones(len(moved), dtype=torch.bool).index_fill(0, delta.ids[here], False)
    assert not bool(moved[rest].any())


def test_pfedrec_steps_as_two_optimisers_in_turn(few):
    model = personal_scores(12, few.train.item_count, 4)
    local = PFedRec(local_lr=0.3, item_rate=20.0, batch_size=64, local_epochs=2)
    params, everyone, examples, deltas, losses, _ = trained(model, few, local)
    for place, user in enumerate(everyone.tolist()):
        weight = nn.Parameter(params["weight"][user].clone())
        bias = nn.Parameter(params["bias"][user].clone())
        item = nn.Parameter(params["item"].clone())
        first = torch.optim.SGD([weight, bias], lr=0.3)
        second = torch.optim.SGD([item], lr=0.3 * 20)
        own, seen = {n: c[examples["client"] == place] for n, c in examples.items()}, []
        for batch in batches(own, 64):
            for optimizer in (first, second):
                optimizer.zero_grad()
                y = item[batch["item"]] @ weight + bias
                loss = binary_cross_entropy_with_logits(y, batch["target"])
                loss.backward()
                optimizer.step()
                seen.append(float(loss.detach()))
        same(deltas["item"], place, params["item"], item)
        moved = deltas["weight"].values[deltas["weight"].client == place][0]
        torch.testing.assert_close(moved, (weight - params["weight"][user]).detach())
        assert float(losses[place]) == pytest.approx(sum(seen[::2]) / len(seen[::2]), abs=1e-4)


def test_fedrap_steps_as_torch_on_the_loss_of_the_paper(few):
    items, dim = few.train.item_count, 4
    model, local = (
        additive_items(12, items, dim),
        FedRAP(
            local_lr=0.1, item_rate=30.0, difference=0.7, sparsity=0.2, batch_size=0, local_epochs=3
        ),
    )
    params, everyone, examples, deltas, _, _ = trained(local.learns(model), few, local)
    for place, user in enumerate(everyone.tolist()):
        weight = nn.Parameter(params["weight"][user].clone())
        bias = nn.Parameter(params["bias"][user].clone())
        own = nn.Parameter(params["personal"].view(12, items, dim)[user].clone())
        common = nn.Parameter(params["common"].clone())
        optimizer = torch.optim.SGD(
            [{"params": [weight, bias], "lr": 0.1}, {"params": [own, common], "lr": 3.0}], lr=0.0
        )
        mine = {n: c[examples["client"] == place] for n, c in examples.items()}
        for batch in batches(mine, 0):
            optimizer.zero_grad()
            d, c = own[batch["item"]], common[batch["item"]]
            loss = binary_cross_entropy_with_logits((d + c) @ weight + bias, batch["target"])
            loss = loss - 0.7 * (d - c).square().mean() + 0.2 * c.abs().mean()
            loss.backward()
            optimizer.step()
        same(deltas["common"], place, params["common"], common)
        whole = params["personal"].view(12, items, dim).clone()
        whole[user] = own.detach()
        same(deltas["personal"], place, params["personal"], whole.view(-1, dim))


def gpfedrec_by_hand(params, views, examples, guidance):
    """The parameters, and R_u (U, I, D), after a round of GPFedRec on dense tables."""
    after, learned = {name: value.clone() for name, value in params.items()}, []
    for user in range(len(views)):
        own = {n: nn.Parameter(params[n][user].clone()) for n in params if n != "item"}
        item = nn.Parameter(params["item"].clone())
        layers = [p for n, p in own.items() if n != "user"]
        groups = [(layers, 0.1), ([own["user"]], 0.1 * 5), ([item], 0.1 * 40)]
        optimizer = torch.optim.SGD([{"params": p, "lr": lr} for p, lr in groups])
        mine = {n: c[examples["client"] == user] for n, c in examples.items()}
        for batch in batches(mine, 64):
            optimizer.zero_grad()
            vectors = item[batch["item"]]
            h = torch.cat([own["user"].expand(len(vectors), -1), vectors], 1)
            for k in (1, 2):
                h = (h @ own[f"w{k}"] + own[f"b{k}"]).relu()
            loss = binary_cross_entropy_with_logits(
                h @ own["dense"] + own["offset"], batch["target"]
            )
            (loss + guidance * (item - views[user]).square().mean()).backward()
            optimizer.step()
        after |= {
            n: after[n].index_copy(0, torch.tensor([user]), own[n].detach()[None]) for n in own
        }
        learned.append(item.detach())
    views, graph = torch.stack(learned), torch.zeros(len(views), len(views))
    pairs = [(u, v) for u in range(len(views)) for v in range(len(views))]
    flat = views.flatten(1).double()
    alike = [torch.cosine_similarity(flat[u], flat[v], 0) for u, v in pairs]
    for (u, v), cosine in zip(pairs, alike, strict=True):
        graph[u, v] = cosine > sum(alike) / len(alike)
    smooth = torch.einsum("uv,vid->uid", graph / graph.sum(1, keepdim=True), views)
    return after | {"item": smooth.mean(0)}, smooth


def test_gpfedrec_trains_whole_tables_and_smooths_them_along_the_graph(few):
    model = personal_perceptron(12, few.train.item_count, 4, 2)
    guidance = 900.0  # 2 x 900 x 4 / (9066 x 4), a fifth of the way to R_u in each step
    local = GPFedRec(local_lr=0.1, item_rate=40.0, user_rate=5.0, batch_size=64, guidance=guidance)
    params = model.init(0)
    views = params["item"].repeat(12, 1, 1)
    for done in federate(model, few, Settings(rounds=2, cohort=12), local=local):
        examples = few.draw(torch.arange(12), 1, 4, Key(0, "examples", done.number))
        params, views = gpfedrec_by_hand(params, views, examples, guidance)
        for name, value in params.items():
            torch.testing.assert_close(done.params[name], value, atol=2e-5, rtol=1e-4)
        kept = done.state["gpfedrec"]["views"]
        torch.testing.assert_close(kept.view_as(views), views, atol=2e-5, rtol=1e-4)


def test_the_graph_joins_who_is_alike_or_who_is_not():
    tables = torch.tensor([[2.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    near, far = user_graph(tables), user_graph(tables, near=False)
    assert near.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert far.tolist() == [[0, 0, 1], [0, 0, 1], [0.5, 0.5, 0]]
    assert user_graph(tables, threshold=50.0).tolist() == torch.eye(3).tolist()


def test_ncf_predicts_as_layers_of_torch_do():
    model = neural_collaborative_filtering(3, 5, 4, 2, spread=1.0)
    p = model.init(0)
    layers = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
    with torch.no_grad():
        for k, at in ((1, 0), (2, 2)):
            layers[at].weight.copy_(p[f"w{k}"][0].T)
            layers[at].bias.copy_(p[f"b{k}"][0])
        users, items = torch.tensor([0, 2, 1]), torch.tensor([4, 0, 3])
        u, i = p["user"][users], p["item"][items]
        both = torch.cat([u[:, :4] * i[:, :4], layers(torch.cat([u[:, 4:], i[:, 4:]], 1))], 1)
        expected = both @ p["dense"][0] + p["offset"]
    torch.testing.assert_close(scorer(model, p)(users, items), expected)


def test_ncf_keeps_only_the_users_vectors():
    assert neural_collaborative_filtering(3, 5).private == {"user"}
    with pytest.raises(ParameterError, match="8 layers halve 64 numbers to none; take fewer"):
        neural_collaborative_filtering(3, 5, 32, 8)


METHODS = {
    "pfedrec": (personal_scores, PFedRec(batch_size=32, item_rate=30.0)),
    "fedrap": (additive_items, FedRAP(batch_size=32, item_rate=30.0)),
    "fedncf": (neural_collaborative_filtering, SGD(batch_size=32)),
    "gpfedrec": (personal_perceptron, GPFedRec(batch_size=32, item_rate=30.0)),
}


def rounds_of(name, data, **changed):
    """Three Rounds of a method on these data."""
    make, local = METHODS[name]
    model = make(data.train.user_count, data.train.item_count, 8)
    settings = Settings(rounds=3, cohort=len(data))
    return model, local, list(federate(model, data, settings, local=replace(local, **changed)))


@pytest.mark.parametrize("name", METHODS)
def test_nobody_sends_what_is_private_and_all_learn(name, few):
    model, local, done = rounds_of(name, few)
    assert done[-1].loss < done[0].loss
    sent = local.asks(RoundContext(model, few, Settings(), done[0], done[0].params, {}))
    assert sent.keys() == ({VIEWS} if name == "gpfedrec" else model.rows.keys() - model.private)
    assert all(not each.rejected for each in done)
    start = model.init(0)
    for part in model.private:
        assert not torch.equal(done[-1].params[part], start[part])


@pytest.mark.parametrize("name", METHODS)
def test_what_a_client_learns_hangs_on_nobody_beside_it(name, few):
    whole, parted = (rounds_of(name, few, memory_mb=mb)[2][-1].params for mb in (0, 1))
    assert all(torch.equal(whole[part], parted[part]) for part in whole)


@pytest.mark.parametrize("name", METHODS)
def test_several_users_may_share_a_client(name, split):
    train = of_users(split.train, torch.arange(671) < 12)
    _, _, done = rounds_of(name, Federation(train, torch.arange(12) % 3))
    assert not done[-1].rejected
    assert done[-1].loss < done[0].loss


def test_a_row_of_another_users_pair_is_refused(few):
    class Thief(FedRAP):
        """It claims the rows of the next user."""

        def train(self, context, cohort):
            for update in super().train(context, cohort):
                rows, items = update.deltas["personal"], context.data.train.item_count
                taken = replace(rows, ids=(rows.ids + items) % (12 * items))
                yield replace(update, deltas=update.deltas | {"personal": taken})

    model = additive_items(12, few.train.item_count, 4)
    (done,) = federate(model, few, Settings(rounds=1, cohort=12), local=Thief(item_rate=30.0))
    assert len(done.rejected) == 12
    assert all("'personal'" in why for why in done.rejected.values())


def test_pfedrec_predicts_with_items_tuned_once_more(few):
    model, local, done = rounds_of("pfedrec", few)
    pairs = torch.arange(12), few.train.items[:12]
    mine = local.score(model, few, done[-1])(*pairs)
    tuned = fine_tuned(model, few, done[-1].params, local, seed=0, number=4)(*pairs)
    assert torch.equal(mine, tuned)
    assert not torch.allclose(mine, scorer(model, done[-1].params)(*pairs))


def test_factors_of_personal_scores_are_their_predictions():
    model = personal_scores(4, 6, 3)
    params = model.init(0) | {"bias": torch.arange(4.0), "weight": torch.randn(4, 3)}
    score, users = scorer(model, params), torch.arange(4)
    grid = score(users[:, None].expand(4, 6), torch.arange(6).expand(4, 6))
    by_hand = params["weight"] @ params["item"].T + params["bias"][:, None]
    torch.testing.assert_close(grid, by_hand)
    torch.testing.assert_close(score.every(users)[0], by_hand)


def test_all_users_start_alike():
    for make in (personal_scores, additive_items):
        params = make(5, 7, 4).init(1)
        assert bool((params["weight"] == params["weight"][0]).all())
        assert float(params["weight"].abs().max()) <= 0.5  # uniform within 1 / sqrt(4)
    personal = params["personal"].view(5, 7, 4)
    assert torch.equal(personal[0], personal[4])
    assert not torch.equal(personal[0], params["common"])


def test_a_large_table_of_pairs_is_stored_row_by_row_with_the_same_numbers(few, monkeypatch):
    dense = rounds_of("fedrap", few)[2][-1].params
    monkeypatch.setattr(fedrap, "DENSE", 0)
    sparse = rounds_of("fedrap", few)[2][-1].params
    assert isinstance(sparse["personal"], SparseTable)
    rows = torch.arange(len(dense["personal"]))
    assert torch.equal(sparse["personal"].index_select(0, rows), dense["personal"])
    assert torch.equal(sparse["common"], dense["common"])


def test_lambda_drives_the_tables_apart_and_mu_empties_the_shared_one(few):
    def ends(**changed):
        _, _, done = rounds_of("fedrap", few, local_epochs=3, **changed)
        p = done[-1].params
        own = p["personal"].view(12, -1, 8)
        return float((own - p["common"]).square().mean()), float(p["common"].abs().mean())

    apart, size = ends(difference=0.0, sparsity=0.0)
    assert ends(difference=2.0, sparsity=0.0)[0] > apart
    assert ends(difference=0.0, sparsity=2.0)[1] < size
    early = ends(difference=2.0, sparsity=0.0, curriculum="constant")[0]
    assert early > ends(difference=2.0, sparsity=0.0)[0]  # the curriculum begins at 0


def test_rates_decay_from_round_to_round(few):
    slow, fast = (rounds_of("fedrap", few, rate_decay=d)[2] for d in (0.01, 1.0))
    first = [norms_of(done[0]) for done in (slow, fast)]
    assert first[0] == first[1]
    assert norms_of(slow[-1]) < 0.1 * norms_of(fast[-1])


def norms_of(done):
    return float(done.norms.mean())


def test_forgetting_a_user_takes_its_table_along(few):
    model, _, done = rounds_of("fedrap", few)
    left = forget(few.train.catalogue.user_ids[4], few, model, done[-1])
    before = done[-1].params["personal"].view(12, -1, 8)
    after = left.start.params["personal"].view(11, -1, 8)
    assert torch.equal(after, before[torch.arange(12) != 4])


def test_pairs_are_numbered_by_user_and_item():
    model = additive_items(3, 5, 2)
    columns = {"user": torch.tensor([0, 2]), "item": torch.tensor([4, 1])}
    assert model.pairs(model.init(0), columns)["pair"].tolist() == [4, 11]
    assert matrix_factorisation(3, 5).pairs({}, columns) == {}


def test_other_methods_know_nothing_of_the_penalty(few):
    model = additive_items(12, few.train.item_count, 4)
    plain = trained(model, few, SGD(batch_size=0))[3]["common"].values
    again = trained(FedRAP(difference=0.0, sparsity=0.0).learns(model), few, SGD(batch_size=0))
    torch.testing.assert_close(plain, again[3]["common"].values)
    turned = trained(FedRAP(difference=1.0).learns(model), few, SGD(batch_size=0))
    assert not torch.allclose(plain, turned[3]["common"].values)


@pytest.mark.parametrize(
    ("model", "local", "more", "said"),
    [
        ("matrix factorisation", "fedrap", {}, "take additive items"),
        ("linear", "pfedrec", {}, "take personal scores"),
        ("personal scores", "gpfedrec", {}, "take personal perceptron"),
        ("personal perceptron", "gpfedrec", {"guidance": 1e3, "item_rate": 1e9}, "overshoot"),
        ("personal perceptron", "gpfedrec", {"aggregation": "krum"}, "krum"),
        ("personal scores", "pfedrec", {"optimizer": "adamw"}, "pfedrec does not read it"),
        ("personal scores", "pfedrec", {"personal": "fine tuned"}, "experiment does not read it"),
        ("personal scores", "pfedrec", {"engine": "compiled"}, "choose 'fused' or 'eager'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(model, local, more, said):
    settings = Settings(model=model, local=local, cohort=4, **more)
    with pytest.raises(ParameterError) as error:
        next(stream(lambda: settings))
    assert said in str(error.value)


def test_the_workbench_offers_them_and_they_beat_chance_soon():
    settings = Settings(
        model="personal scores",
        local="pfedrec",
        cohort=671,
        rounds=8,
        dim=8,
        batch_size=256,
        item_rate=1e5,
        local_lr=0.1,
        weighting="equal",
        measure_every=8,
    )
    assert Experiment(settings).model.name == "personal scores"
    *_, last = stream(lambda: settings)
    assert last.metrics["hr@10"] > 0.2


def test_no_compiled_client_trains_what_steps_in_turns_or_by_a_penalty(few):
    model = matrix_factorisation(12, few.train.item_count, 4)
    settings = Settings(rounds=1, cohort=12)
    (turns,) = federate(model, few, settings, local=PFedRec(item_rate=30.0))
    assert turns.engine == "eager: parameters step in turns, at rates of their own or by a penalty"
    shrunk = replace(model, penalty=lambda p: p["item"].square().sum(-1))
    (pushed,) = federate(shrunk, few, settings, local=SGD())
    assert pushed.engine == turns.engine
