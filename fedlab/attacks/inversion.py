"""Gradients are data.

Words read from the update of a language model, features from that of a first layer.

The gradient of a linear layer is a sum over inputs x of (something) x^T, so whatever its steps of
SGD were, its delta's rows lie in the span of what entered it. With fewer inputs than the layer is
wide, hardly anything else lies there: try every word at every place. A low-rank adapter's delta has
only r rows, and spans them all where there are at most r.

Letters: V words, T places, R rows of a delta, H hidden units, F features. Sources: Petrov et al.
2024, "DAGER: exact gradient inversion for large language models", section 4; Phong et al. 2018,
"Privacy-preserving deep learning via additively homomorphic encryption", section 3 (a layer with
bias).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.models.text import Backbone

# relative to the longest direction; shorter ones are rounding of float32 (1e-6 was too low)
ROUNDING = 1e-5


class _EnoughError(Exception):
    """What enters the layer is known; the rest of the model need not run."""


def layer_inputs(body: Backbone, layer: str, length: int, chunk: int = 512) -> Iterator[Tensor]:
    """(n, T, in) what enters a layer.

    For the next words of the vocabulary at each of `length` places.

    layer: the end of its name, say 'layer.0.attention.self.query'. It must be one that reads single
    words: in the first block, before attention mixes them.
    """
    found = [part for name, part in body.named_modules()
             if name == layer or name.endswith(f".{layer}")]
    require(len(found) == 1, "layer", layer,
            f"{len(found)} layers are called so; give the end of one name")
    kept: list[Tensor] = []

    def keep(_: object, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0])
        raise _EnoughError

    hook = found[0].register_forward_pre_hook(keep)
    try:
        for words in torch.arange(int(body.model.config.vocab_size)).split(chunk):
            with torch.no_grad():
                try:
                    body(words[:, None].expand(-1, length))
                except _EnoughError:
                    yield kept.pop()
    finally:
        hook.remove()


def row_space(delta: Tensor, noise: float = 0.0) -> Tensor:
    """(k, in) directions that a layer's delta (R, in) spans.

    What is no longer than rounding or noise is left out.

    noise: the standard deviation of noise that is known to be on each number.
    """
    require(bool(delta.isfinite().all()), "delta", tuple(delta.shape),
            "it has numbers that are not finite")
    require(0 <= noise < float("inf"), "noise", noise, "choose 0 or more")
    _, singular, right = torch.linalg.svd(delta.double(), full_matrices=False)
    edge = noise * sum(side**0.5 for side in delta.shape)  # the longest direction of pure noise
    return right[singular > max(ROUNDING * float(singular[0]), edge)].to(delta.dtype)


def recover_tokens(delta: Tensor, body: Backbone, layer: str, length: int = 16,
                   noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """For each word how far it lies outside of the delta's span, as a share of itself.

    And at which place least.

    delta (R, in): a client's or a sum of some, of the weight of `layer` or of an adapter's A.
    noise: as `span` has it. Returns (V,), (V,): a word that was read has about 0 at its place.
    Where more inputs enter than the layer is wide, directions are lost in rounding, and hardly a
    word is read.
    """
    directions = row_space(delta, noise)
    distances, positions = [], []
    for states in layer_inputs(body, layer, length):
        rest = states - (states @ directions.T) @ directions
        distance, position = (rest.norm(dim=-1) / states.norm(dim=-1)).min(1)
        distances.append(distance)
        positions.append(position)
    return torch.cat(distances), torch.cat(positions)


def recover_inputs(weight: Tensor, bias: Tensor) -> Tensor:
    """(H, F) what entered a first layer, once for each hidden unit, from its deltas.

    Weight (F, H), bias (H,).

    A unit that one example alone made active gives that example exactly; of several, it gives a
    mean. Units that never were active give not a number.
    """
    require(weight.shape[-1:] == bias.shape, "bias", tuple(bias.shape),
            f"give {tuple(weight.shape[-1:])}")
    return (weight / bias).T.where(bias[:, None] != 0, torch.nan)
