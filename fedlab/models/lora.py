"""Low-rank adapters: a large frozen layer, and a small product beside it that is trained and sent.

    y = W x + b + (alpha / r) B A x,    A (r, in) drawn, B (out, r) zero: at the start the layer is as it was

Through `fedlab.modules` each client has adapters of its own over one base that all share, so
stacked clients cost their adapters and not their models.

The mean of products is not the product of means: averaging A and B by themselves, as FedAvg does
with all weights, is biased as soon as clients differ. Two ways out: freeze A, so that the mean of B
is exact; or let the server average the products and take the best A and B of that, by a singular
value decomposition.

Letters: r rank, C clients. Sources: Hu et al. 2022, "LoRA: low-rank adaptation of large language
models", eq. 3; Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning" (A
frozen); Bai et al. 2024, "Federated fine-tuning of large language models under heterogeneous tasks
and client resources" (the mean of products, decomposed).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.core import require, stream


class Adapted(nn.Module):
    """A frozen `nn.Linear` with an adapter beside it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float,
                 generator: torch.Generator) -> None:
        """rank: r, at most the smaller side of the layer. alpha: its scale, divided by r."""
        super().__init__()
        low = min(base.in_features, base.out_features)
        require(1 <= rank <= low, "rank", rank,
                f"choose from 1 to {low}, the smaller side of the layer")
        require(alpha > 0, "alpha", alpha, "choose a positive number, say twice the rank")
        self.base, self.scale = base, alpha / rank
        bound = base.in_features**-0.5  # as kaiming_uniform_(a=5**0.5), which peft takes
        uniform = torch.rand(rank, base.in_features, generator=generator) * 2 - 1
        self.a = nn.Parameter(uniform * bound)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + (x @ self.a.T) @ self.b.T * self.scale


def adapted(module: nn.Module, names: Sequence[str], rank: int = 4, alpha: float = 8.0, *,
            train: Sequence[str] = (), freeze_a: bool = False, seed: int = 0) -> nn.Module:
    """A copy of the module, frozen.

    With an adapter on each `nn.Linear` whose name ends in one of `names`.

    train: ends of the names of other weights that stay trainable, say ('head',). freeze_a: adapters
    train B alone. Raises `ParameterError` for a name that no layer has.
    """
    net, found = copy.deepcopy(module).requires_grad_(False), set()
    generator = stream(seed, "init")
    for path, part in list(net.named_modules()):
        end = next((name for name in names if path == name or path.endswith(f".{name}")), None)
        if end is not None and isinstance(part, nn.Linear):
            parent, _, last = path.rpartition(".")
            layer = Adapted(part, rank, alpha, generator)
            layer.a.requires_grad_(not freeze_a)
            setattr(net.get_submodule(parent), last, layer)
            found.add(end)
    linear = sorted({path.rpartition(".")[2] for path, part in module.named_modules()
                     if isinstance(part, nn.Linear)})
    for name in names:
        require(name in found, "names", name,
                f"no linear layer is called so; choose from {', '.join(linear)}")
    for path, weight in net.named_parameters():
        if any(end in path.split(".") for end in train):
            weight.requires_grad_(True)
    return net


def merged(module: nn.Module) -> nn.Module:
    """A copy in which each adapter is added to its layer: as fast as the model it came from."""
    net = copy.deepcopy(module)
    for path, part in list(net.named_modules()):
        if isinstance(part, Adapted):
            parent, _, last = path.rpartition(".")
            with torch.no_grad():
                part.base.weight += part.scale * part.b @ part.a
            setattr(net.get_submodule(parent), last, part.base)
    return net
