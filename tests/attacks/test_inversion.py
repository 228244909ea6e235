"""Words and features read from updates: what was trained on comes out, and what stops that."""

import pytest
import torch
from conftest import read_once
from torch import nn

from fedlab.attacks import layer_inputs, recover_inputs, recover_tokens, row_space
from fedlab.core import ParameterError
from fedlab.data import Columns
from fedlab.engine import LocalSettings, updates
from fedlab.evaluation import auc
from fedlab.models import adapted, from_module, perceptron
from fedlab.models.text import MINILM, Backbone, TextEncoder, item_texts, mean_state, tokens

LAYER = "layer.0.attention.self.query"


class Stars(nn.Module):
    """Stars from a film's title."""

    def __init__(self, texts):
        super().__init__()
        self.text, self.head = TextEncoder(read_once(MINILM), texts, length=12), nn.Linear(384, 1)

    def forward(self, item):
        return self.head(mean_state(*self.text(item)))[:, 0]


@pytest.fixture(scope="module")
def titles(ratings):
    return item_texts(ratings.catalogue, "{title}")


@pytest.fixture(scope="module")
def upload(stars, titles):
    """The deltas of the quietest client, and its words, by what trains and in which steps."""
    torch.manual_seed(0)
    net, client = Stars(titles), int(stars.counts.argmin())

    def made(rank=0, clients=(client,), **steps):
        tuned = adapted(net, ("query",), rank, train=("head",)) if rank else net
        for name, weight in tuned.named_parameters():
            if rank and name.endswith(".b"):
                # B is no longer zero, as after some rounds
                nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))
            elif not rank:
                weight.requires_grad_(name.endswith((f"{LAYER}.weight", "head.weight")))
        model = from_module(tuned, {"item": torch.arange(3)}, task="ratings")
        chosen = torch.tensor(clients)[stars.counts[list(clients)].argsort(descending=True)]
        sent = list(
            updates(model, stars, model.init(0), chosen, LocalSettings(local_lr=0.1, **steps))
        )
        items = stars.train.items[torch.isin(stars.owner[stars.train.users], chosen)]
        name = next(n for n in sent[0].deltas if n.endswith((f"{LAYER}.weight", f"{LAYER}.a")))
        words = tokens(read_once(MINILM), [titles[i] for i in items.tolist()], 12)
        delta = sum(part.deltas[name].values.sum(0) for part in sent)
        return delta, set(words.unique().tolist()) - {-1}

    return made


def recovered(delta, length=12):
    outside, _ = recover_tokens(delta, Backbone(read_once(MINILM)), LAYER, length)
    return set((outside < 0.01).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("batch_size", [0, 4])
def test_words_are_read_whatever_the_steps(upload, batch_size):
    delta, truth = upload(batch_size=batch_size)
    found = recovered(delta)
    assert len(truth) > 30
    assert len(found & truth) / len(truth) >= 0.97
    assert len(found & truth) / len(found) >= 0.97


def test_a_narrow_adapter_says_less_and_a_wide_one_as_much(upload):
    narrow, truth = upload(rank=8, batch_size=0)
    assert not recovered(narrow)
    wide, truth = upload(rank=128, batch_size=0)
    assert len(recovered(wide) & truth) / len(truth) > 0.7


def test_a_sum_tells_words_until_more_enter_than_the_layer_is_wide(upload, stars):
    quiet = stars.counts.argsort(stable=True).tolist()
    few, truth = upload(clients=tuple(quiet[:6]), batch_size=0)
    assert recovered(few) == truth  # a secure sum of six hides no word
    many, truth = upload(clients=tuple(quiet[:24]), batch_size=0)
    assert len(recovered(many) & truth) / len(truth) < 0.05


def test_noise_hides_words_when_there_is_much(upload):
    delta, truth = upload(batch_size=0)
    here = torch.zeros(30522).index_fill_(0, torch.tensor(sorted(truth)), 1)
    found = []
    for share in (0.01, 0.3, 100.0):
        noise = share * float(delta.square().mean().sqrt())
        noisy = delta + noise * torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
        outside, _ = recover_tokens(noisy, Backbone(read_once(MINILM)), LAYER, 12, noise)
        found.append(auc(-outside, here))
    assert found[0] > 0.97
    assert found[1] > 0.7  # a third of what is there is too little
    assert found[2] < 0.6


def test_what_enters_does_not_depend_on_its_neighbours():
    body = Backbone(read_once(MINILM), 1)
    states = next(layer_inputs(body, LAYER, 3))
    assert len(body.model.encoder.layer[0].attention.self.query._forward_pre_hooks) == 0
    embedded = body.model.embeddings(torch.tensor([[5, 9, 12]])).detach()[0]
    torch.testing.assert_close(states[torch.tensor([5, 9, 12]), torch.arange(3)], embedded)


def test_features_come_out_of_a_first_layer():
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    data = Columns({"x": x, "target": torch.ones(1)}, torch.tensor([0]))
    model = perceptron(6, 8)
    (sent,) = updates(
        model, data, model.init(0), torch.tensor([0]), LocalSettings(batch_size=0, local_lr=1.0)
    )
    found = recover_inputs(sent.deltas["w1"].values[0], sent.deltas["b1"].values[0])
    active = found[found.isfinite().all(1)]
    assert 1 <= len(active) < 8
    torch.testing.assert_close(active, x.expand_as(active), atol=1e-4, rtol=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ParameterError, match=r"layer='query': 6 layers are called so"):
        next(layer_inputs(Backbone(read_once(MINILM)), "query", 4))
    with pytest.raises(ParameterError, match=r"delta=\(2, 2\): it has numbers that are not finite"):
        row_space(torch.full((2, 2), torch.nan))
    with pytest.raises(ParameterError, match=r"noise=-1.0: choose 0 or more"):
        row_space(torch.zeros(2, 2), -1.0)
    with pytest.raises(ParameterError, match=r"bias=\(3,\): give \(4,\)"):
        recover_inputs(torch.zeros(2, 4), torch.zeros(3))


def test_directions_by_hand():
    found = row_space(torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1e-9]]))
    torch.testing.assert_close(found.abs(), torch.tensor([[1.0, 0, 0]]))
