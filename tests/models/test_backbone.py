"""Bodies of pretrained models: the same states as the encoder's, stacked or not, kept or not."""

import pytest
import torch
from conftest import read_once
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlab.attacks import layer_inputs
from fedlab.core import ParameterError
from fedlab.models import adapted
from fedlab.models.text import (
    MINILM,
    PAD,
    SMOLLM2,
    Backbone,
    Encoder,
    encoder,
    lowest,
    mean_state,
    tokens,
)
from fedlab.models.text.backbone import depth

TEXTS = ["Toy Story (1995). Animation, Comedy", "Heat (1995)", ""]
LAYERS = {MINILM: ("query", "value"), SMOLLM2: ("q_proj", "v_proj")}


@pytest.fixture(scope="module", params=[MINILM, SMOLLM2])
def pretrained(request):
    return read_once(request.param)


def test_a_body_gives_the_states_of_its_encoder(pretrained):
    body, ids = Backbone(pretrained), tokens(pretrained, TEXTS[:2])
    with torch.no_grad():
        states = body(ids)
    torch.testing.assert_close(
        mean_state(states, ids != PAD), pretrained(TEXTS[:2]), atol=1e-4, rtol=1e-4
    )
    assert body.causal == (pretrained.name == SMOLLM2)
    assert states.shape == (*ids.shape, body.width)


def test_what_enters_the_first_layer_is_known_for_every_word(pretrained):
    body, given, ids = Backbone(pretrained, 1), [], torch.tensor([[17, 4, 300]])
    name = (
        "layer.0.attention.self.query" if pretrained.name == MINILM else "layers.0.self_attn.q_proj"
    )
    hook = next(m for n, m in body.named_modules() if n.endswith(name)).register_forward_pre_hook(
        lambda _, x: given.append(x[0][0])
    )
    with torch.no_grad():
        body(ids)
    hook.remove()
    first = next(layer_inputs(body, name, 3))  # the first 512 words
    assert first.shape == (512, 3, body.width)
    torch.testing.assert_close(first[ids[0], torch.arange(3)], given[0], atol=1e-4, rtol=1e-4)


def test_layers_worked_out_again_give_the_same_gradient(pretrained):
    ids, found, first = tokens(pretrained, TEXTS[:2]), [], []
    for again in (False, True):
        net = adapted(Backbone(pretrained, 2, checkpoint=again), LAYERS[pretrained.name])
        weights = {n: p.detach() for n, p in net.named_parameters()}
        trained = [n for n, p in net.named_parameters() if p.requires_grad]
        first = first or [weights[n] for n in trained]  # drawn by name, and these are longer ones
        own = {
            n: start.expand(2, *start.shape).clone().requires_grad_()
            for n, start in zip(trained, first, strict=True)
        }

        def one(own, ids, net=net, weights=weights):
            return functional_call(net, weights | own, (ids,)).square().mean()

        with sdpa_kernel(SDPBackend.MATH):  # as `from_module` calls it
            loss = vmap(one)(own, ids.expand(2, -1, -1))
            found.append(torch.autograd.grad(loss.sum(), list(own.values())))
    assert any(bool(grad.any()) for grad in found[0])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again)


def test_less_is_kept_where_layers_are_worked_out_again():
    minilm, kept = encoder(), []
    ids = tokens(minilm, TEXTS[:1]).expand(8, -1)
    for again in (False, True):
        body, sizes = Backbone(minilm, 4, checkpoint=again), []
        weights = {p.data_ptr() for p in body.parameters()}  # these are there either way

        def noted(t, weights=weights, sizes=sizes):
            sizes.append(0 if t.data_ptr() in weights else t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(noted, lambda t: t):
            body(ids).sum()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 5


def test_tokens_are_cut_and_filled():
    minilm = encoder()
    ids = tokens(minilm, TEXTS, 6)
    assert ids.shape == (3, 6)
    assert ids[1].tolist() == minilm.tokenizer("Heat (1995)")["input_ids"]  # six with its marks
    assert ids[2].tolist() == [*minilm.tokenizer("")["input_ids"], *[PAD] * 4]
    with pytest.raises(ParameterError, match="length=2"):
        tokens(minilm, TEXTS, 2)
    states = Backbone(minilm, 1)(torch.full((1, 3), PAD))
    assert bool(mean_state(states, torch.zeros(1, 3, dtype=torch.bool)).isfinite().all())


def test_a_model_without_layers_is_refused():
    with pytest.raises(ParameterError, match="encoder='mine': it has no list of layers"):
        Backbone(Encoder("mine", None, nn.Linear(1, 1)))
    with pytest.raises(ParameterError, match="layers=7: choose from 0, which means all, to 6"):
        Backbone(encoder(), 7)


def test_the_lowest_layers_are_a_smaller_model(pretrained):
    small, ids = lowest(pretrained, 2), tokens(pretrained, TEXTS[:2])
    with torch.no_grad():
        states = Backbone(pretrained, 2)(ids)
        if pretrained.name == SMOLLM2:
            states = pretrained.model.norm(states)
        torch.testing.assert_close(Backbone(small)(ids), states)
    assert depth(small) == 2 < depth(pretrained)
    with pytest.raises(ParameterError, match="layers=0: choose from 1 to"):
        lowest(pretrained, 0)
