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

import torch
from torch import Tensor

from fedlab.core import Config, Key, Rows, Tree, Update, require, stream
from fedlab.data import Source
from fedlab.engine import Correction
from fedlab.models import Model
from fedlab.privacy.accounting import Release, epsilon
from fedlab.privacy.mechanisms import NoiseSource


def example_gradients(model: Model, params: Tree, columns: Tree) -> tuple[Tree, Tensor]:
    """(for each parameter the gradients (E, ...) of E examples by themselves, their losses (E,)).

    Of a table, by the one row that an example looks up. Each example is a client of one example:
    nothing is shared.
    """
    single = {name: column.unsqueeze(1) for name, column in columns.items()}  # (E, 1, ...)
    leaves = {name: (params[name].expand(len(columns["target"]),
                                         *params[name].shape[1:]) if kind == "one"
                     else params[name][columns[kind]]).detach().requires_grad_() for name,
              kind in model.rows.items()}
    ready = {name: leaf if kind == "one" else leaf.unsqueeze(1) for (name, leaf), kind in zip(
        leaves.items(), model.rows.values(), strict=True)}
    losses = model.loss(model.predict(ready | model.constants, single), single["target"])[:, 0]
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True,
                                materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), losses.detach()


class ExampleLevel:
    """A client update: `local_epochs` passes of DP-SGD at each platform, and the ledger of each.

    clip: C. noise: z. teaching_seed: fixes noise and batches, and proves nothing. `batch_size` is
    B.
    """

    def __init__(self, clip: float, noise: float, teaching_seed: int | None = None) -> None:
        """Nothing spent yet."""
        for name, value in (("clip", clip), ("noise", noise)):
            require(0 < value < math.inf, name, value, "choose a positive number")
        self.clip, self.noise, self.seed = clip, noise, teaching_seed
        self.steps: dict[int, dict[float, int]] = {}

    def update(self, model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
               number: int = 1, control: Correction | None = None) -> Iterator[Update]:
        """Each platform's delta, one after another."""
        require(data.task == "ratings", "task", data.task,
                "a click brings drawn negatives along; train on ratings")
        require(not model.private, "private", set(model.private),
                "rows that stay would be trained without noise, and "
                "tell of ratings through all others; share them")
        require("client" not in model.rows.values(), "rows", "client",
                "give a model without rows by client")
        require(config.batch_size > 0, "batch_size", config.batch_size,
                "choose how many ratings a batch shall have")
        fits = config.optimizer == "sgd" and not config.proximal and config.correction == "none"
        require(fits, "optimizer", config.optimizer,
                "DP-SGD here is plain; set optimizer='sgd', proximal=0 and " "correction='none'")
        chance = NoiseSource(None if self.seed is None else stream(self.seed, "examples", number))
        for client in cohort.tolist():
            yield self._trained(model, data, params, client, config, chance)

    def _trained(self, model: Model, data: Source, params: Tree, client: int, config: Config,
                 chance: NoiseSource) -> Update:
        """One platform's steps: fixed in number, however many ratings a batch has."""
        mine = data.draw(torch.tensor([client]), 1, 0, Key(0, "examples"))
        columns = {name: column.to(next(iter(params.values())).device) for name,
                   column in mine.items() if name not in ("client", "epoch")}
        ratings, now = len(mine["target"]), {name: params[name].clone() for name in model.rows}
        rate = min(1.0, config.batch_size / ratings)
        steps, seen = config.local_epochs * math.ceil(1 / rate), []
        for _ in range(steps):
            chosen = (chance.uniform(ratings) < rate).nonzero()[:, 0]
            batch = {name: column[chosen] for name, column in columns.items()}
            total, losses = self.summed(model, now, batch)
            seen.append(losses)
            for name in now:
                noisy = total[name] + chance.normal(total[name], self.noise * self.clip)
                now[name] -= config.local_lr / (rate * ratings) * noisy
        counted = self.steps.setdefault(client, {})
        counted[rate] = counted.get(rate, 0) + steps
        return self._update(params, now, torch.cat(seen), steps, client, float(data.counts[client]))

    def summed(self, model: Model, params: Tree, batch: Tree) -> tuple[Tree, Tensor]:
        """(sum of the clipped gradients, of the parameters' shapes; losses).

        An empty batch sums to 0.
        """
        total = {name: torch.zeros_like(params[name]) for name in model.rows}
        if not len(batch["target"]):
            return total, batch["target"]
        grads, losses = example_gradients(model, params, batch)
        squares = sum(grad.reshape(len(grad),
                                   -1).double().square().sum(1) for grad in grads.values())
        # a NaN counts 0
        factor = (self.clip / torch.as_tensor(squares).sqrt()).clamp(max=1).nan_to_num(0.0).float()
        for (name, grad), kind in zip(grads.items(), model.rows.values(), strict=True):
            scaled = (grad * factor.view(-1, *[1] * (grad.dim() - 1))).nan_to_num(0.0)
            rows = torch.zeros(len(grad), dtype=torch.int64,
                               device=grad.device) if kind == "one" else batch[kind]
            total[name].index_add_(0, rows, scaled)
        return total, losses

    def _update(self, params: Tree, now: Tree, losses: Tensor, steps: int, client: int,
                weight: float) -> Update:
        deltas = {name: Rows(value - params[name], torch.arange(len(value), device=value.device),
                             torch.zeros(len(value), dtype=torch.int64, device=value.device))
                  for name, value in now.items()}
        one = torch.ones(1, device=losses.device)
        return Update(deltas, one * weight, one * losses.mean().nan_to_num(0.0),
                      torch.tensor([client]), one * steps)

    def spent(self, delta: float, method: str = "rdp") -> dict[int, float]:
        """Client -> the epsilon of one of its ratings, so far."""
        return {client: epsilon([Release(self.noise, rate, count) for rate,
                                 count in counted.items()], delta, method=method) for client,
                counted in self.steps.items()}
