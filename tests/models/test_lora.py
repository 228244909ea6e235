"""Adapters: Peft's definition, stacked clients against one at a time, and averaged factors."""

import copy
from dataclasses import replace

import pytest
import torch
from oracle import train_module
from peft import LoraConfig, get_peft_model
from torch import nn

from fedlab.aggregation import MeanOfProducts, WeightedMean, product_error
from fedlab.algorithms import federate
from fedlab.core import Key, ParameterError, Rows, Settings, Update
from fedlab.data import Columns
from fedlab.engine import LocalSettings, train_cohort
from fedlab.models import Adapted, adapted, from_module, merged
from fedlab.models.text import PAD, SMOLLM2, CrossEncoder, Encoder, encoder, item_texts, make_pairs


@pytest.fixture(scope="module")
def minilm():
    return encoder()


@pytest.fixture(scope="module")
def short(ratings, minilm):
    """A few users' pairs, and two layers of MiniLM with adapters that have moved from zero."""
    few = ratings.take(ratings.users < 4)
    columns = make_pairs(few, item_texts(ratings.catalogue, "{title}"), minilm, 6, length=24)
    net = adapted(CrossEncoder(minilm, layers=2), ("query", "value"), rank=2, train=("head",))
    for part in net.modules():
        if isinstance(part, Adapted):
            nn.init.normal_(part.b, std=0.02)
    return columns, net


def test_an_adapter_is_that_of_peft():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    ours = adapted(net, ("0", "2"), rank=2, alpha=8.0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["0", "2"])
    theirs = get_peft_model(copy.deepcopy(net), config)
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), net(x))  # B is zero at the start
    for name in ("0", "2"):
        mine, other = ours.get_submodule(name), theirs.get_submodule(f"base_model.model.{name}")
        assert mine.a.shape == other.lora_A["default"].weight.shape
        nn.init.normal_(mine.b)
        other.lora_A["default"].weight.data, other.lora_B["default"].weight.data = (
            mine.a.data,
            mine.b.data,
        )
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(merged(ours)(x), ours(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(part, Adapted) for part in merged(ours).modules())
    assert float(ours.get_submodule("0").a.detach().abs().max()) <= 6**-0.5


def test_only_adapters_and_head_are_trained_and_sent(short):
    columns, net = short
    names = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in names} == {"a", "b", "weight", "bias"}
    assert {n for n in names if n.endswith(("weight", "bias"))} == {"head.weight", "head.bias"}
    frozen = adapted(CrossEncoder(encoder(), layers=1), ("query",), freeze_a=True)
    assert all(n.endswith(".b") for n, p in frozen.named_parameters() if p.requires_grad)
    model = from_module(net, {"ids": columns["ids"][:2]})
    data = Columns({n: columns[n] for n in ("ids", "target")}, columns["user"])
    (done,) = federate(model, data, Settings(rounds=1, cohort=2, batch_size=4))
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert done.bytes_down == 4 * count * 2
    assert count < 0.02 * sum(p.numel() for p in net.parameters())


def test_stacked_adapters_equal_one_client_at_a_time(short):
    columns, net = short
    model = from_module(net, {"ids": columns["ids"][:2]})
    local = LocalSettings(batch_size=4, local_lr=0.05)
    data, cohort = (
        Columns({n: columns[n] for n in ("ids", "target")}, columns["user"]),
        torch.arange(4),
    )
    examples = data.draw(cohort, 1, 0, Key(0, "examples", 1))
    params = model.init(0)
    deltas, losses, _ = train_cohort(model, params, examples, cohort, local)
    for client in range(4):
        own = {n: c[examples["client"] == client] for n, c in examples.items()}
        expected, loss = train_module(net, own, local, ["ids"], "clicks")
        assert float(losses[client]) == pytest.approx(loss, abs=1e-4)
        for name, delta in deltas.items():
            torch.testing.assert_close(
                delta.values[delta.client == client][0], expected[name], atol=1e-4, rtol=1e-3
            )


def update(server, a, b, weights):
    """What clients send whose adapters after a round are a (C, r, in) and b (C, out, r)."""
    clients = torch.arange(len(a))
    rows = {"x.a": a - server["x.a"], "x.b": b - server["x.b"]}
    return Update(
        {n: Rows(v, torch.zeros_like(clients), clients) for n, v in rows.items()},
        weights,
        torch.zeros(len(a)),
        clients,
        torch.ones(len(a)),
    )


def test_the_mean_of_factors_is_biased_and_the_mean_of_products_is_not():
    draw = torch.Generator().manual_seed(0)
    server = {
        "x.a": torch.randn(1, 2, 6, generator=draw),
        "x.b": torch.randn(1, 5, 2, generator=draw),
    }
    weights = torch.tensor([1.0, 3.0])

    def product(rule, a, b):
        delta = rule([update(server, a, b, weights)], server)
        return (server["x.b"] + delta["x.b"])[0] @ (server["x.a"] + delta["x.a"])[0]

    a, b = torch.randn(2, 2, 6, generator=draw), torch.randn(2, 5, 2, generator=draw)
    exact = (0.25 * b[0] @ a[0] + 0.75 * b[1] @ a[1]).double()
    left, size, right = torch.linalg.svd(exact)
    nearest = (left[:, :2] * size[:2]) @ right[:2]
    torch.testing.assert_close(
        product(MeanOfProducts(), a, b).double(), nearest, atol=1e-5, rtol=1e-4
    )
    rules = MeanOfProducts(), WeightedMean()
    lost = [float((product(rule, a, b) - exact).norm()) for rule in rules]
    assert lost[0] < lost[1]
    sent = [update(server, a, b, weights)]
    far = float((exact - server["x.b"][0] @ server["x.a"][0]).norm())
    for rule, expected in zip(rules, lost, strict=True):
        assert product_error(sent, server, rule(sent, server), {}) == pytest.approx(
            expected / far, rel=1e-3
        )
    only_b = [replace(sent[0], deltas={"x.b": sent[0].deltas["x.b"]})]
    half = {"x.b": server["x.b"]}
    delta = WeightedMean()(only_b, half)
    assert product_error(only_b, half, delta, {"x.a": server["x.a"][0]}) < 1e-5
    same = server["x.a"].expand(2, -1, -1)  # A frozen: the mean of B is exact, and so is ours
    exact = (0.25 * b[0] + 0.75 * b[1]) @ same[0]
    torch.testing.assert_close(product(WeightedMean(), same, b), exact, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(product(MeanOfProducts(), same, b), exact, atol=1e-5, rtol=1e-4)


def test_pairs_ask_about_a_film_that_is_not_in_the_history(ratings, minilm):
    few = ratings.take(ratings.users < 3)
    found = make_pairs(few, item_texts(ratings.catalogue, "{title}"), minilm, 5, length=32)
    assert len(found["ids"]) == 15
    assert found["ids"].shape[1] <= 32
    assert found["user"].tolist() == [u for u in range(3) for _ in range(5)]
    for row in found["ids"].tolist():
        words = minilm.tokenizer.decode([i for i in row if i != PAD], skip_special_tokens=False)
        before, after = words.removeprefix("[CLS] liked : ").split(" [SEP]")[:2]
        assert after.strip() not in [film.strip() for film in before.split(";")]
    again = make_pairs(few, item_texts(ratings.catalogue, "{title}"), minilm, 5, length=32)
    assert torch.equal(again["ids"], found["ids"])
    assert set(found["target"].tolist()) <= {0.0, 1.0}
    held = ratings.take((ratings.users == 5).nonzero()[:2, 0])
    late = make_pairs(
        ratings.take((ratings.users == 5).nonzero()[2:, 0]),
        item_texts(ratings.catalogue, "{title}"),
        minilm,
        9,
        asked=held,
    )
    assert late["user"].tolist() == [5, 5]
    assert sorted(late["target"].tolist()) == sorted((held.values >= 4).float().tolist())


def test_what_cannot_be_adapted_or_read_is_refused(minilm, ratings):
    net = nn.Sequential(nn.Linear(6, 5))
    for call, message in [
        (
            lambda: adapted(net, ("query",)),
            "names='query': no linear layer is called so; choose from 0",
        ),
        (lambda: adapted(net, ("0",), rank=6), "rank=6: choose from 1 to 5"),
        (lambda: adapted(net, ("0",), alpha=0.0), r"alpha=0\.0"),
        (lambda: CrossEncoder(minilm, layers=7), "layers=7: choose from 0, which means all, to 6"),
        (
            lambda: CrossEncoder(Encoder(SMOLLM2, None, nn.Linear(1, 1))),
            "encoder='SmolLM2.*it has no list of layers",
        ),
        (lambda: make_pairs(ratings, [], minilm, 1, history=0), "history=0"),
        (
            lambda: make_pairs(ratings.take(ratings.users < 2), [], minilm, 1, liked=9.0),
            r"liked=9\.0: nobody liked",
        ),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()
