"""Gradient inversion: read words, or input features, from the update of a model.

The gradient of a linear layer is a sum over its inputs x of (something) x^T. Whatever the steps of
SGD were, the rows of its delta therefore lie in the space that its inputs span. When fewer inputs
entered than the layer is wide, hardly anything else lies in that space, so an attacker can try
every word at every position. The delta of a low-rank adapter has only r rows, and spans the inputs
when there are at most r of them.

Letters: V words of the vocabulary, T positions, R rows of a delta, E inputs of the layer, H hidden
units, F features.

Sources: Petrov et al. 2024, "DAGER: exact gradient inversion for large language models", section 4;
Phong et al. 2018, "Privacy-preserving deep learning via additively homomorphic encryption", section
3 (a layer with bias).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.models.text import Backbone

# relative to the longest direction; shorter ones are rounding of float32 (1e-6 was too low)
ROUNDING = 1e-5


class _EnoughError(Exception):
    """The inputs of the layer are known, so the rest of the model need not run."""


def layer_inputs(body: Backbone, layer: str, length: int, chunk: int = 512) -> Iterator[Tensor]:
    """Inputs (n, T, E) of a layer for every word at each position, in blocks of the vocabulary.

    layer: the end of its name, such as 'layer.0.attention.self.query'. It must see single words, so
    it belongs to the first block, before attention mixes them. length: T. chunk: words in a block.
    Raises `ParameterError` unless exactly one layer has such a name.
    """
    found = [
        part for name, part in body.named_modules() if name == layer or name.endswith(f".{layer}")
    ]
    require(
        len(found) == 1,
        "layer",
        layer,
        f"{len(found)} layers are called so; give the end of one name",
    )
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
    """Orthonormal directions (k, E) that the rows of a layer's delta (R, E) span.

    Directions no longer than rounding or noise are left out. noise: the standard deviation of known
    noise on each number, 0 or more. Raises `ParameterError` for a negative one and for a delta that
    is not finite.

    >>> row_space(torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])).abs()
    tensor([[1., 0., 0.]])
    """
    require(
        bool(delta.isfinite().all()),
        "delta",
        tuple(delta.shape),
        "it has numbers that are not finite",
    )
    require(0 <= noise < float("inf"), "noise", noise, "choose 0 or more")
    _, singular, right = torch.linalg.svd(delta.double(), full_matrices=False)
    edge = noise * sum(side**0.5 for side in delta.shape)  # the longest direction of pure noise
    return right[singular > max(ROUNDING * float(singular[0]), edge)].to(delta.dtype)


def recover_tokens(
    delta: Tensor, body: Backbone, layer: str, length: int = 16, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """For each word, its least distance (V,) to the delta's row space, and the position (V,) of it.

    Distances are relative to the length of the input; a word that was read has a distance near 0 at
    its position. delta (R, E): of the weight of `layer` or of an adapter's A, from one client or
    summed over several. length: T. noise: as in `row_space`. When more inputs enter than the layer
    is wide, directions are lost in rounding, and hardly any word is recovered.
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
    """The inputs (H, F) of a first layer, one for each hidden unit, from its deltas.

    weight (F, H) and bias (H,): the deltas. A unit that a single example activated returns that
    example exactly; a unit that several activated returns a weighted mean; a unit that none
    activated returns nan. Raises `ParameterError` for shapes that do not fit.

    >>> x, slope = torch.tensor([1.0, 2.0]), torch.tensor([0.5])
    >>> recover_inputs(torch.outer(x, slope), slope)
    tensor([[1., 2.]])
    """
    require(
        weight.shape[-1:] == bias.shape,
        "bias",
        tuple(bias.shape),
        f"give {tuple(weight.shape[-1:])}",
    )
    return (weight / bias).T.where(bias[:, None] != 0, torch.nan)
