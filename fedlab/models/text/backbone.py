"""The layers of a pretrained language model as an `nn.Module` whose clients can be stacked.

A `Backbone` takes token ids and returns the hidden state of every token. It hands the pretrained
model a finished attention mask, because models of the Hugging Face hub build their own masks in
ways that `vmap` does not support. BERT-type and GPT-type models therefore run through the same
code, and `fedlab.models.from_module` can train either of them.

Letters: B examples, T tokens of a text, E dimensions of a hidden state, n texts.

Sources: Vaswani et al. 2017, "Attention is all you need", section 3.2.3 (masks); Chen et al. 2016,
"Training deep nets with sublinear memory cost", section 4 (recomputing layers in the backward
pass).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.utils import _pytree as pytree

from fedlab.core import require
from fedlab.models.text.encoder import Encoder

PAD = -1  # stands where a text has no token because others are longer


def tokens(
    encoder: Encoder, texts: Sequence[str], length: int = 24, second: Sequence[str] | None = None
) -> Tensor:
    """Token ids (n, T) of texts, padded at the end with `PAD`.

    encoder: gives the tokenizer. length: the most tokens kept of a text, 4 to 512; T is the longest
    text after cutting. second: for each text the one that follows it, as in sentence pairs. Raises
    `ParameterError` for a length outside that range.
    """
    require(4 <= length <= 512, "length", length, "choose from 4 to 512 tokens")
    pair = [list(texts)] if second is None else [list(texts), list(second)]
    ids = encoder.tokenizer(*pair, truncation=True, max_length=length)["input_ids"]
    out = torch.full((len(ids), max(1, *map(len, ids)) if ids else 1), PAD)
    for row, found in zip(out, ids, strict=True):
        row[: len(found)] = torch.tensor(found)
    return out


class Backbone(nn.Module):
    """A pretrained model without its head: token ids (B, T) -> hidden states (B, T, E).

    Positions that hold `PAD` are masked out. A backbone that was built with `below` > 0 takes the
    states of a lower layer instead of token ids.
    """

    def __init__(
        self, encoder: Encoder, layers: int = 0, *, below: int = 0, checkpoint: bool = False
    ) -> None:
        """Copy the model of an encoder, keep some of its layers, and make all weights trainable.

        layers: how many layers to keep, counted from the bottom; 0 keeps all. below: how many of
        these to leave out at the bottom, so that a frozen bottom has to run only once. checkpoint:
        whether to drop the states inside each layer and recompute them for the gradient, which
        takes about a third more time and needs the memory of a single layer. Raises
        `ParameterError` for numbers of layers that the model does not have.
        """
        super().__init__()
        self.model = copy.deepcopy(encoder.model).requires_grad_(True)
        holder, name = _layers(self.model, encoder.name)
        self.below, self.causal = below, is_causal(encoder)
        stacked = list(getattr(holder, name))
        require(
            0 <= layers <= len(stacked),
            "layers",
            layers,
            f"choose from 0, which means all, to {len(stacked)}",
        )
        require(
            0 <= below < (layers or len(stacked)),
            "below",
            below,
            f"choose from 0 to {len(stacked) - 1}",
        )
        kept = stacked[below : layers or len(stacked)]
        self.model.config.num_hidden_layers = len(kept)
        setattr(
            holder,
            name,
            nn.ModuleList(Recomputed(layer) if checkpoint else layer for layer in kept),
        )
        if 0 < layers < len(stacked) and hasattr(self.model, "norm"):
            self.model.norm = nn.Identity()  # it belongs behind the last layer only
        for name in ("embeddings", "embed_tokens") if below else ():
            if hasattr(self.model, name):
                setattr(self.model, name, _Passing())
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # it reads the first state only, and nothing here uses it
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # attention draws its own masks, which no client could repeat

    @property
    def width(self) -> int:
        """E, the dimensions of a hidden state."""
        return int(self.model.config.hidden_size)

    def forward(self, given: Tensor, there: Tensor | None = None) -> Tensor:
        """States (B, T, E) of token ids (B, T), or of states (B, T, E) from the layers below.

        there (B, T): true where there is a token; it may be left out when token ids are given.
        """
        there = given != PAD if there is None else there
        count, device = given.shape[1], given.device
        visible = there[:, None, None, :].expand(-1, -1, count, -1)  # (B, 1, T, T)
        if self.causal:
            visible = visible & torch.ones(count, count, dtype=torch.bool, device=device).tril()
        mask = torch.zeros(visible.shape, device=device).masked_fill(~visible, -1e9)
        inputs: dict[str, Any] = {"use_cache": False} if self.causal else {}
        inputs |= {"inputs_embeds": given} if self.below else {"input_ids": given.clamp(min=0)}
        return cast(Tensor, self.model(attention_mask=mask, **inputs).last_hidden_state)


class _Passing(nn.Module):
    """Stands in for the embeddings: states from the layers below pass through unchanged."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Return the first argument that holds states."""
        return next(
            x for x in (*given, *named.values()) if isinstance(x, Tensor) and x.is_floating_point()
        )


def mean_state(states: Tensor, there: Tensor) -> Tensor:
    """Mean pooling: (B, E), the mean of states (B, T, E) over the tokens that are there (B, T).

    A text without tokens gets zeros. Source: Reimers, Gurevych 2019, "Sentence-BERT", section 3.

    >>> import torch
    >>> states = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    >>> mean_state(states, torch.tensor([[True, True, False]])).tolist()
    [[2.0, 1.0]]
    """
    weight = there.to(states.dtype) / there.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bte,bt->be", states, weight)


def lowest(encoder: Encoder, layers: int) -> Encoder:
    """An encoder of the lowest layers alone: a smaller model, with the same tokens.

    The norm behind the last layer, where there is one, stays behind the last that is kept. layers:
    from 1 to `depth(encoder)`, which gives the same model again; any other raises `ParameterError`.
    """
    whole = depth(encoder)
    require(1 <= layers <= whole, "layers", layers, f"choose from 1 to {whole}")
    model = copy.deepcopy(encoder.model)
    holder, name = _layers(model, encoder.name)
    setattr(holder, name, getattr(holder, name)[:layers])
    model.config.num_hidden_layers = layers
    return replace(encoder, model=model)


def depth(encoder: Encoder) -> int:
    """The number of layers of a pretrained model."""
    holder, name = _layers(encoder.model, encoder.name)
    return len(getattr(holder, name))


def _layers(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The part of a model that holds its list of layers, and the name of that list."""
    lists = [path for path, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    require(
        len(lists) > 0,
        "encoder",
        name,
        "it has no list of layers; choose a BERT- or GPT-type model",
    )
    holder, _, last = min(lists, key=lambda path: path.count(".")).rpartition(".")
    return model.get_submodule(holder), last


def is_causal(encoder: Encoder) -> bool:
    """Whether no token sees a later one, as in a GPT-type model.

    This is tried out on two texts that differ in the last token only.
    """
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=encoder.model.device)
    with torch.no_grad():
        first, other = encoder.model(input_ids=ids).last_hidden_state[:, 0]
    return bool(torch.allclose(first, other, atol=1e-5))


class Recomputed(nn.Module):
    """A layer that keeps its inputs only, and runs once more when the gradient is needed."""

    def __init__(self, part: nn.Module) -> None:
        """part: a layer that returns a tensor, or a tuple that starts with one."""
        super().__init__()
        self.part = part

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Return what the layer returns, without keeping its inner states."""
        weights = dict(self.part.named_parameters())
        flat, shape = pytree.tree_flatten((weights, given, named))
        at = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]

        def run(*tensors: Tensor) -> Tensor:
            leaves = list(flat)
            for i, leaf in zip(at, tensors, strict=True):
                leaves[i] = leaf
            own, args, kwargs = pytree.tree_unflatten(leaves, shape)
            out = functional_call(self.part, own, args, kwargs)
            return cast(Tensor, out[0] if isinstance(out, tuple) else out)

        return cast(Tensor, _Again.apply(run, *(flat[i] for i in at)))


class _Again(torch.autograd.Function):
    """run(*tensors), of which only the tensors are kept for the backward pass.

    `torch.utils.checkpoint` does not work under `vmap`; this function does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, need = ctx.saved_tensors, ctx.needs_input_grad[1:]
        at = [
            i
            for i, (tensor, wanted) in enumerate(zip(saved, need, strict=True))
            if wanted and tensor.is_floating_point()
        ]

        def run(*some: Tensor) -> Tensor:
            tensors = list(saved)
            for i, tensor in zip(at, some, strict=True):
                tensors[i] = tensor
            return cast(Tensor, ctx.run(*tensors))

        found = dict(zip(at, vjp(run, *(saved[i] for i in at))[1](grads[0]), strict=True))
        return None, *(found.get(i) for i in range(len(saved)))
