"""How the server follows the aggregated delta: a step of sgd, momentum, Adagrad, Adam or Yogi.

The delta stands for a negative gradient. A row that nobody sent counts as 0, so moments fade there
as well.

Sources: Reddi et al. 2021, "Adaptive federated optimization", algorithm 2 (FedAdagrad, FedYogi,
FedAdam; tau is `server_epsilon`, moments start at 0 and tau^2); Hsu, Qi, Brown 2019, section 4
(FedAvgM).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Delta, Part, Tree, knob, moved, register, whole

GROUP = "server step"


@register
class ServerStep(Part):
    """The server's half of a round. Another optimizer than before starts with fresh moments."""

    kind = "server"
    server_lr: float = knob(
        1.0,
        0.0,
        1_000.0,
        "",
        "how far the server follows the mean delta",
        log=True,
        usual=(0.1, 400.0),
    )
    warm_up: int = knob(
        0,
        0,
        10_000,
        "rounds",
        "how long step sizes grow to their full size",
        usual=(0, 20),
        group=GROUP,
    )
    server_optimizer: str = knob(
        "sgd",
        0,
        0,
        "",
        "how the server follows the aggregated delta",
        choices=("sgd", "momentum", "adam", "yogi", "adagrad"),
        group=GROUP,
    )
    server_momentum: float = knob(
        0.9,
        0.0,
        0.9999,
        "",
        "share of the last step that stays (beta 1); none in sgd",
        usual=(0.0, 0.99),
        group=GROUP,
    )
    server_beta2: float = knob(
        0.99,
        0.0,
        0.999999,
        "",
        "share of the squares that stays (beta 2), adam and yogi",
        usual=(0.9, 0.9999),
        group=GROUP,
    )
    server_epsilon: float = knob(
        1e-3,
        1e-12,
        1e3,
        "",
        "least root of the squares (tau): how adaptive the server is",
        log=True,
        usual=(1e-6, 1.0),
        group=GROUP,
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The numbers that this optimizer does not read."""
        unread = {
            "sgd": ("server_momentum", "server_beta2", "server_epsilon"),
            "momentum": ("server_beta2", "server_epsilon"),
            "adagrad": ("server_beta2",),
        }
        return unread.get(self.server_optimizer, ())

    def step(self, params: Tree, delta: Delta, memory: dict[str, Any]) -> Tree:
        """The parameters that changed; memory: where moments are kept from round to round."""
        if self.server_optimizer == "sgd":
            memory.pop("moments", None)
            return {name: moved(params[name], d, self.server_lr) for name, d in delta.items()}
        held = memory.get("moments", {})
        now, moments = {}, {}
        for name, d in delta.items():
            key, change = f"{self.server_optimizer} {name}", whole(d, params[name])
            square = self.server_epsilon**2
            old = held.get(key) or (torch.zeros_like(change), torch.full_like(change, square))
            step, moments[key] = RULES[self.server_optimizer](change, old, self)
            now[name] = params[name] + self.server_lr * step
        same = {key: kept for key, kept in held.items() if key.startswith(self.server_optimizer)}
        memory["moments"] = same | moments
        return now


Pair = tuple[Tensor, Tensor]
# (delta, moments) -> (step, moments)
Rule = Callable[[Tensor, Pair, ServerStep], tuple[Tensor, Pair]]


def momentum(delta: Tensor, moments: Pair, knobs: ServerStep) -> tuple[Tensor, Pair]:
    """`m <- beta1 m + delta`; the step is m. Hsu et al. 2019."""
    m = knobs.server_momentum * moments[0] + delta
    return m, (m, moments[1])


def _adaptive(squares: Callable[[Tensor, Tensor, ServerStep], Tensor]) -> Rule:
    """The rule `m <- beta1 m + (1 - beta1) delta` with a step of m / (sqrt(v) + tau).

    squares: the next v, from v and the squared delta.
    """

    def rule(delta: Tensor, moments: Pair, knobs: ServerStep) -> tuple[Tensor, Pair]:
        m = torch.lerp(delta, moments[0], knobs.server_momentum)
        v = squares(moments[1], delta.square(), knobs)
        return m / (v.sqrt() + knobs.server_epsilon), (m, v)

    return rule


RULES: dict[str, Rule] = {
    "momentum": momentum,
    "adagrad": _adaptive(lambda v, square, _: v + square),
    "adam": _adaptive(lambda v, square, k: torch.lerp(square, v, k.server_beta2)),
    "yogi": _adaptive(lambda v, square, k: v - (1 - k.server_beta2) * square * (v - square).sign()),
}
