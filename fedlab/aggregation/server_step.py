"""How the server follows the aggregated delta: one step of sgd, momentum, Adagrad, Adam or Yogi.

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

from fedlab.aggregation.mean import Delta
from fedlab.core import Config, Rows, Tree


def server_step(params: Tree, delta: Delta, state: Mapping[str, Any], config: Config) -> tuple[Tree,
                                                                                               dict[
    str, Any]]:
    """(the parameters that changed, the state to keep).

    `state` may hold moments of an earlier round.

    Another optimizer than in the round before starts with fresh moments.
    """
    if config.server_optimizer == "sgd":
        return {name: moved(params[name], d, config.server_lr) for name,
                d in delta.items()}, {"moments": {}}
    held = state.get("moments", {})
    now, moments = {}, {}
    for name, d in delta.items():
        key, change = f"{config.server_optimizer} {name}", whole(d, params[name])
        old = held.get(key) or (torch.zeros_like(change), torch.full_like(change,
                                                                          config.server_epsilon**2))
        step, moments[key] = RULES[config.server_optimizer](change, old, config)
        now[name] = params[name] + config.server_lr * step
    return now, {"moments": {**{key: kept for key,
                                kept in held.items() if key.startswith(config.server_optimizer)},
                             **moments}}


def moved(value: Tensor, delta: Tensor | Rows, rate: float) -> Tensor:
    """A parameter after a step of `rate` times `delta`; of `Rows`, only these change."""
    if isinstance(delta, Tensor):
        return value + rate * delta
    return value.index_add(0, delta.ids, delta.values * rate)


def whole(delta: Tensor | Rows, like: Tensor) -> Tensor:
    """A delta as a tensor of the parameter's shape."""
    return delta if isinstance(delta, Tensor) else moved(torch.zeros_like(like), delta, 1.0)


Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor, Pair, Config], tuple[Tensor, Pair]]  # (delta, moments) -> (step, moments)


def momentum(delta: Tensor, moments: Pair, config: Config) -> tuple[Tensor, Pair]:
    """`m <- beta1 m + delta`; the step is m. Hsu et al. 2019."""
    m = config.server_momentum * moments[0] + delta
    return m, (m, moments[1])


def _adaptive(squares: Callable[[Tensor, Tensor, Config], Tensor]) -> Rule:
    """`m <- beta1 m + (1 - beta1) delta`.

    The step is m / (sqrt(v) + tau), with v as `squares` has it.
    """
    def rule(delta: Tensor, moments: Pair, config: Config) -> tuple[Tensor, Pair]:
        m = torch.lerp(delta, moments[0], config.server_momentum)
        v = squares(moments[1], delta.square(), config)
        return m / (v.sqrt() + config.server_epsilon), (m, v)
    return rule


RULES: dict[str, Rule] = {
    "momentum": momentum,
    "adagrad": _adaptive(lambda v, square, _: v + square),
    "adam": _adaptive(lambda v, square, c: torch.lerp(square, v, c.server_beta2)),
    "yogi": _adaptive(lambda v, square, c: v - (1 - c.server_beta2) * square * (v - square).sign()),
}
