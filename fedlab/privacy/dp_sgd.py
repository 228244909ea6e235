"""Example-level privacy within platforms: DP-SGD as what a client does in `federate`.

    theta <- theta - lr / B (sum over a batch of g_i min(1, C / |g_i|) + normal noise of z C)

A platform draws each of its n ratings into a batch by itself, with chance B / n. Neighbours differ
in one rating of one platform: platforms hold different ratings, so the largest epsilon of all is
everybody's. Users with many ratings are not hidden by it, the platform sees them all, and how many
ratings it has is taken for public.

Letters: n ratings of a platform, B expected in a batch, E examples in one.

Source: Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fedlab.core import (
    Key,
    Local,
    RoundContext,
    Rows,
    Tree,
    Update,
    add_rows,
    as_tensor,
    knob,
    like,
    register,
    require,
)
from fedlab.engine import LocalSettings
from fedlab.models import Model
from fedlab.privacy.accounting import Release
from fedlab.privacy.ledger import Spent
from fedlab.privacy.noise_source import NoiseSource, teaching_seed

GROUP = "privacy"


def example_gradients(model: Model, params: Tree, columns: Tree) -> tuple[Tree, Tensor]:
    """The gradients (E, ...) of each of E examples by each parameter, and their losses (E,).

    Those of a table are by the one row that an example looks up. Each example counts as a client of
    one example, so that nothing is shared.
    """
    single = {name: column.unsqueeze(1) for name, column in columns.items()}  # (E, 1, ...)
    leaves = {
        name: (
            params[name].expand(len(columns["target"]), *params[name].shape[1:])
            if kind == "one"
            else params[name][columns[kind]]
        )
        .detach()
        .requires_grad_()
        for name, kind in model.rows.items()
    }
    ready = {
        name: leaf if kind == "one" else leaf.unsqueeze(1)
        for (name, leaf), kind in zip(leaves.items(), model.rows.values(), strict=True)
    }
    losses = model.loss(model.predict(ready | model.constants, single), single["target"])[:, 0]
    grads = torch.autograd.grad(
        losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True)), losses.detach()


@register
class DPSGD(Local):
    """`local_epochs` passes of DP-SGD at each platform; see `proven_for_examples` for its epsilon.

    `batch_size` is B, the expected size of a batch.
    """

    title = "dp-sgd"
    example_clip: float = knob(
        1.0,
        1e-9,
        1e9,
        "L2 norm",
        "dp-sgd: longest gradient of an example (C)",
        log=True,
        usual=(0.01, 10.0),
        group=GROUP,
    )
    example_noise: float = knob(
        1.0,
        1e-6,
        1e6,
        "of C",
        "dp-sgd: standard deviation of the noise (z)",
        log=True,
        usual=(0.1, 10.0),
        group=GROUP,
    )
    teaching_seed: int = teaching_seed()
    local_epochs: int = like(LocalSettings, "local_epochs")
    batch_size: int = like(LocalSettings, "batch_size")
    local_lr: float = like(LocalSettings, "local_lr")

    def adds(self) -> dict[str, Any]:
        """The fact that noise goes on all rows."""
        return {"dense": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for data or a model whose ratings it would not hide."""
        model, negatives = context.model, context.facts[self.name].get("negatives")
        require(
            not negatives,
            "task",
            context.data.task,
            "dp-sgd: a click brings drawn negatives along; train on ratings",
        )
        require(
            not model.private,
            "private",
            set(model.private),
            "dp-sgd: rows that stay would be trained without noise, and tell of ratings through "
            "all others; share them, as private_users=False does",
        )
        require(
            "client" not in model.rows.values(),
            "rows",
            "client",
            "dp-sgd: give a model without rows by client",
        )
        require(
            self.batch_size > 0,
            "batch_size",
            self.batch_size,
            "dp-sgd: choose how many ratings a batch shall have",
        )

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield the delta of each platform, one after another."""
        for client in cohort.tolist():
            yield self._trained(context, client)

    def _trained(self, context: RoundContext, client: int) -> Update:
        """The update of one platform, after a number of steps that drawn batches do not change."""
        model, params = context.model, context.params
        source = NoiseSource.of(self.teaching_seed, f"examples of {client}", context.number)
        mine = context.data.draw(
            torch.tensor([client]), 1, 0, Key(context.seed, "examples", context.number)
        )
        count = len(mine["target"])
        order = mine["item"].argsort(stable=True) if "item" in mine else torch.arange(count)
        device = next(iter(params.values())).device
        columns = {
            name: as_tensor(column)[order].to(device)
            for name, column in mine.items()
            if name not in ("client", "epoch")
        }
        ratings, now = len(mine["target"]), {name: params[name].clone() for name in model.rows}
        (rate, steps), seen = self._steps(ratings), []
        for _ in range(steps):
            chosen = (source.uniform(ratings) < rate).nonzero()[:, 0].to(device)
            batch = {name: column[chosen] for name, column in columns.items()}
            total, losses = self.summed(model, now, batch)
            seen.append(losses)
            for name in now:
                noise = source.normal(total[name], self.example_noise * self.example_clip)
                now[name] -= self.local_lr / (rate * ratings) * (total[name] + noise)
        weight = float(context.data.counts[client])
        return self._update(params, now, torch.cat(seen), steps, client, weight)

    def summed(self, model: Model, params: Tree, batch: Tree) -> tuple[Tree, Tensor]:
        """The sum of a batch's clipped gradients, of the parameters' shapes, and the losses.

        An empty batch sums to 0.
        """
        total = {name: torch.zeros_like(params[name]) for name in model.rows}
        if not len(batch["target"]):
            return total, batch["target"]
        grads, losses = example_gradients(model, params, batch)
        squares = sum(
            grad.reshape(len(grad), -1).double().square().sum(1) for grad in grads.values()
        )
        # a gradient that is not a number counts as 0
        factor = (
            (self.example_clip / torch.as_tensor(squares).sqrt())
            .clamp(max=1)
            .nan_to_num(0.0)
            .float()
        )
        for (name, grad), kind in zip(grads.items(), model.rows.values(), strict=True):
            scaled = (grad * factor.view(-1, *[1] * (grad.dim() - 1))).nan_to_num(0.0)
            rows = (
                torch.zeros(len(grad), dtype=torch.int64, device=grad.device)
                if kind == "one"
                else batch[kind]
            )
            add_rows(total[name], rows, scaled)
        return total, losses

    def _update(
        self, params: Tree, now: Tree, losses: Tensor, steps: int, client: int, weight: float
    ) -> Update:
        deltas = {
            name: Rows(
                value - params[name],
                torch.arange(len(value), device=value.device),
                torch.zeros(len(value), dtype=torch.int64, device=value.device),
            )
            for name, value in now.items()
        }
        one = torch.ones(1, device=losses.device)
        return Update(
            deltas,
            one * weight,
            one * losses.mean().nan_to_num(0.0),
            torch.tensor([client]),
            one * steps,
        )

    def _steps(self, ratings: int) -> tuple[float, int]:
        """The chance of a rating to be in a batch, and how many batches a round takes."""
        rate = min(1.0, self.batch_size / ratings)
        return rate, self.local_epochs * math.ceil(1 / rate)

    def spends(self, context: RoundContext) -> list[Spent]:
        """The noisy batches of each platform that trains, which hide one rating of it each."""
        found = []
        for client in context.plan.start.tolist():
            rate, steps = self._steps(int(context.data.counts[client]))
            sampling = "poisson" if rate < 1 else "all"
            release = Release(self.example_noise, rate, steps, sampling)
            found.append(Spent(release, torch.tensor([client]), "example"))
        return found
