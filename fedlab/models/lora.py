"""Low-rank adapters: a frozen linear layer with a small trainable product beside it.

    y = W x + b + (alpha / r) B A x,    A (r, in) drawn, B (out, r) zero

Since B starts at zero, the layer first behaves as it did. Through `from_module`, each client has
its own adapters over a base that all share, so stacking clients costs memory for their adapters
only.

The mean of products is not the product of means: averaging A and B separately, as FedAvg does with
all weights, is biased as soon as clients differ. There are two ways out. Freezing A makes the mean
of B exact; or the server averages the products and decomposes the result into the best A and B
(`fedlab.aggregation`).

Letters: r rank.

Sources: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", eq. 3; Sun et al.
2024, "Improving LoRA in privacy-preserving federated learning" (frozen A); Bai et al. 2024,
"Federated fine-tuning of large language models under heterogeneous tasks and client resources" (the
mean of products, decomposed).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.core import Key, require


class Adapted(nn.Module):
    """A frozen `nn.Linear` with a low-rank adapter beside it.

    >>> import torch
    >>> from fedlab.core import Key
    >>> base = nn.Linear(4, 3)
    >>> layer, x = Adapted(base, 2, 4.0, Key(0, "a")), torch.ones(1, 4)
    >>> torch.equal(layer(x), base(x))  # B is zero at the start
    True
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, key: Key) -> None:
        """Draw A by the key and set B to zero.

        rank: r, from 1 to the smaller side of the layer. alpha: above 0; the product is scaled by
        alpha / r. Raises `ParameterError` for numbers out of range.
        """
        super().__init__()
        low = min(base.in_features, base.out_features)
        require(
            1 <= rank <= low, "rank", rank, f"choose from 1 to {low}, the smaller side of the layer"
        )
        require(alpha > 0, "alpha", alpha, "choose a positive number, say twice the rank")
        self.base, self.scale = base, alpha / rank
        bound = base.in_features**-0.5  # as kaiming_uniform_(a=5**0.5), which peft takes
        luck = key.uniform(torch.arange(rank), base.in_features)
        self.a = nn.Parameter(((luck * 2 - 1) * bound).float())
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + (x @ self.a.T) @ self.b.T * self.scale


def adapted(
    module: nn.Module,
    names: Sequence[str],
    rank: int = 4,
    alpha: float = 8.0,
    *,
    train: Sequence[str] = (),
    freeze_a: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A frozen copy of the module with an adapter on every `nn.Linear` that `names` asks for.

    names: ends of layer names, such as ('query', 'value'). rank, alpha: as in `Adapted`. train:
    parts of the names of other weights that stay trainable, such as ('head',). freeze_a: whether to
    train B only. seed: A is drawn from it. Raises `ParameterError` for a name that no linear layer
    has.

    >>> net = adapted(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), ["0"], rank=2)
    >>> [name for name, weight in net.named_parameters() if weight.requires_grad]
    ['0.a', '0.b']
    """
    net, found = copy.deepcopy(module).requires_grad_(False), set()
    for path, part in list(net.named_modules()):
        end = next((name for name in names if path == name or path.endswith(f".{name}")), None)
        if end is not None and isinstance(part, nn.Linear):
            parent, _, last = path.rpartition(".")
            layer = Adapted(part, rank, alpha, Key(seed, f"init {path}.a"))
            layer.a.requires_grad_(not freeze_a)
            setattr(net.get_submodule(parent), last, layer)
            found.add(end)
    linear = sorted(
        {
            path.rpartition(".")[2]
            for path, part in module.named_modules()
            if isinstance(part, nn.Linear)
        }
    )
    for name in names:
        require(
            name in found,
            "names",
            name,
            f"no linear layer is called so; choose from {', '.join(linear)}",
        )
    for path, weight in net.named_parameters():
        if any(end in path.split(".") for end in train):
            weight.requires_grad_(True)
    return net


def merged(module: nn.Module) -> nn.Module:
    """A copy in which every adapter is added to its layer, as fast as the module it came from.

    >>> net = adapted(nn.Sequential(nn.Linear(4, 1)), ["0"], rank=1)
    >>> merged(net)
    Sequential(
      (0): Linear(in_features=4, out_features=1, bias=True)
    )
    """
    net = copy.deepcopy(module)
    for path, part in list(net.named_modules()):
        if isinstance(part, Adapted):
            parent, _, last = path.rpartition(".")
            with torch.no_grad():
                part.base.weight += part.scale * part.b @ part.a
            setattr(net.get_submodule(parent), last, part.base)
    return net
