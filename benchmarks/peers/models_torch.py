"""The two models of the job as a tutorial writes them, for all peers that train PyTorch modules."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


class MLP(nn.Module):
    """A perceptron of 64 -> 64 -> 1 units."""

    def __init__(self, inputs: int = 64, hidden: int = 64) -> None:
        """The weights come from the job."""
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, 1)

    def forward(self, x):
        """Logits (B,)."""
        return self.second(torch.relu(self.first(x))).squeeze(1)


class MF(nn.Module):
    """Matrix factorisation with dense embedding tables."""

    def __init__(self, users: int, items: int, dim: int) -> None:
        """The weights come from the job."""
        super().__init__()
        self.user, self.item, self.bias = (
            nn.Embedding(users, dim),
            nn.Embedding(items, dim),
            nn.Embedding(items, 1),
        )

    def forward(self, user, item):
        """Logits (B,)."""
        return (self.user(user) * self.item(item)).sum(1) + self.bias(item).squeeze(1)


def build(job) -> nn.Module:
    """The job's model with its first weights."""
    weights = {name: torch.from_numpy(value) for name, value in job.weights.items()}
    model = (
        MLP()
        if job.model == "mlp"
        else MF(len(weights["user.weight"]), *weights["item.weight"].shape)
    )
    model.load_state_dict(weights)
    return model


def columns(job, client: int) -> list[torch.Tensor]:
    """A client's inputs and, last, its targets."""
    names = [n for n in ("x", "user", "item") if n in job.columns] + ["target"]
    return [torch.from_numpy(job.columns[n][client]) for n in names]


def loss(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; the batch ends with its targets."""
    return binary_cross_entropy_with_logits(model(*batch[:-1]), batch[-1])


def train(model: nn.Module, job, client: int) -> None:
    """Take one local epoch of SGD in place."""
    own = columns(job, client)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.rate)
    for cut in torch.randperm(len(own[-1])).split(job.batch):
        optimizer.zero_grad()
        loss(model, *(c[cut] for c in own)).backward()
        optimizer.step()


def as_numpy(model: nn.Module) -> dict:
    """The weights by name."""
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
