"""Trees of parameters, keyed randomness, checked knobs: what every other file stands on.

A *Tree* maps names to tensors. Axis 0 of a parameter is its **rows**: one per item, one per user, or a
single one for an ordinary weight. A client works on the rows it touches, so what a cohort sends back is
a `Rows` for each name: all clients' rows in one tensor, with the row id and the client beside each.

Letters: N clients in all, C in a cohort, S local steps, B examples a step, D dimensions, R rows touched.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = dict[str, Tensor]
T = TypeVar("T")


class ParameterError(ValueError):
    """A parameter is unknown or out of range; the message names it, its value and the fix."""


def require(ok: bool, name: str, value: object, fix: str) -> None:
    """Raise `ParameterError` unless `ok`; `fix` says what to write instead."""
    if not ok:
        raise ParameterError(f"{name}={value!r}: {fix}")


def stream(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """One CPU generator per (seed, purpose, round), so a new draw never shifts an old one."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big", signed=True))


def to(tree: Tree, device: str | torch.device) -> Tree:
    """The same tree on another device."""
    return {name: value.to(device) for name, value in tree.items()}


@dataclass(frozen=True)
class Rows:
    """The rows of one parameter that a cohort touched, a stacked Tree without the padding.

    values: (R, ...) floats; ids: (R,) row of the parameter; client: (R,) position in the cohort, sorted.
    """

    values: Tensor
    ids: Tensor
    client: Tensor

    def scaled(self, factor: Tensor) -> "Rows":
        """Multiply every client's rows by its own factor, (C,)."""
        shape = (-1,) + (1,) * (self.values.dim() - 1)
        return Rows(self.values * factor[self.client].view(shape), self.ids, self.client)

    def only(self, chosen: Tensor) -> "Rows":
        """The rows of some clients, `chosen` (C,), who are counted anew from 0."""
        rows, place = chosen[self.client], chosen.cumsum(0) - 1
        return Rows(self.values[rows], self.ids[rows], place[self.client[rows]])

    def add_to(self, out: Tensor, weights: Tensor) -> Tensor:
        """Add to `out`, of the parameter's shape, every client's rows times its weight (C,), in place."""
        if len(out) == 1:                                    # a weight that all clients hold: one matrix product
            return out.add_((weights[self.client] @ self.values.reshape(len(self.ids), -1)).view_as(out))
        scaled = self.scaled(weights)
        return out.index_add_(0, self.ids, scaled.values)

    def lengths(self) -> Tensor:
        """(R,) L2 norm of each row."""
        return torch.linalg.vector_norm(self.values.view(len(self.ids), self.values.shape[1:].numel()), dim=1)

    def square_norms(self, clients: int) -> Tensor:
        """(C,) sum of squares of each client's rows."""
        return self.values.new_zeros(clients).index_add_(0, self.client, self.lengths().square())

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """One Rows from several groups of clients, in order."""
        if len(parts) == 1:
            return parts[0]
        return Rows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


@dataclass(frozen=True)
class Update:
    """What a chunk of a cohort sends.

    deltas: `Rows` whose `client` counts from 0 in the chunk. weights, losses, cohort, steps (c,): each client's weight
    in the mean, mean local loss, number, and local steps. bytes_up (c,): of each, where not 4 for each number and row.
    """

    deltas: dict[str, Rows]
    weights: Tensor
    losses: Tensor
    cohort: Tensor
    steps: Tensor
    bytes_up: Tensor | None = None

    def only(self, chosen: Tensor) -> "Update":
        """Some of its clients: `chosen` (c,) true for those that stay."""
        mine = chosen.to(self.weights.device)
        return Update({name: delta.only(mine) for name, delta in self.deltas.items()}, self.weights[mine],
                      self.losses[mine], self.cohort[chosen.cpu()], self.steps[mine],
                      None if self.bytes_up is None else self.bytes_up[mine])


def norms(deltas: Mapping[str, Rows], clients: int) -> Tensor:
    """(C,) L2 norm of each client's delta over all its parameters, on the CPU."""
    return sum((d.square_norms(clients).cpu() for d in deltas.values()), torch.zeros(clients)).sqrt()


@dataclass(frozen=True)
class Knob:
    """What may be turned: the one description behind checks, sliders, the command line and help.

    low, high: the range of a number. choices: of a text; without them any text will do. `live` knobs take effect at
    the next round, the others at the next run. log: the slider moves by ratios. usual: where it ends, unless told.
    group: what it is folded away with, where all knobs are shown.
    """

    low: float
    high: float
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()
    live: bool = True
    log: bool = False
    usual: tuple[float, float] = (0, 1)
    group: str = ""

    def check(self, name: str, value: object, kind: type) -> None:
        """Raise `ParameterError` unless `value` is a `kind` within the range."""
        if self.choices:
            return require(value in self.choices, name, value, f"choose one of {', '.join(self.choices)}")
        if kind is str:
            return require(isinstance(value, str) and value != "", name, value, f"write a text: {self.meaning}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = kind is not int or isinstance(value, int)
        span = f"choose {'a whole number' if kind is int else 'a number'} from {self.low:g} to {self.high:g}"
        fits = number and whole and self.low <= value <= self.high  # type: ignore[operator]
        return require(fits, name, value, f"{span} ({self.unit or self.meaning})")


def knob(default: Any, *args: Any, **kwargs: Any) -> Any:
    """A dataclass field with a `Knob` beside its default."""
    return field(default=default, metadata={"knob": Knob(*args, **kwargs)})


def knobs(cls: type) -> dict[str, Knob]:
    """The knobs of a dataclass by name."""
    return {f.name: f.metadata["knob"] for f in fields(cls) if "knob" in f.metadata}


def known(names: list[str], given: Mapping[str, object]) -> None:
    """Raise `ParameterError` for the first name in `given` that is not one of `names`."""
    for name, value in given.items():
        if name in names:
            continue                                         # the search below takes 0.1 ms a name
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
        raise ParameterError(f"{name}={value!r}: no such parameter; {hint}")


def strict(cls: type[T]) -> type[T]:
    """Class decorator: unknown keywords and values outside their knob's range raise `ParameterError`."""
    build: Callable[..., None] = cls.__init__

    def checked(self: object, **given: object) -> None:
        known([f.name for f in fields(cls)], given)  # type: ignore[arg-type]
        build(self, **given)
        for f in fields(cls):  # type: ignore[arg-type]
            if "knob" in f.metadata:
                f.metadata["knob"].check(f.name, getattr(self, f.name), f.type)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


@strict
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a federated run; each field is a knob with its range."""

    rounds: int = knob(40, 1, 10_000, "rounds", "when the run ends", usual=(5, 300))
    cohort: int = knob(64, 1, 1_000_000, "clients", "how many clients train in a round (C)", log=True, usual=(1, 671))
    local_epochs: int = knob(1, 1, 100, "epochs", "passes over a client's own data in a round", usual=(1, 10))
    batch_size: int = knob(32, 0, 65_536, "examples", "examples in a local step (B); 0 takes all at once",
                           usual=(0, 256))
    micro_batch: int = knob(0, 0, 65_536, "examples", "of a batch whose gradient is worked out at a time; 0 takes all",
                            usual=(0, 64), group="machine and draws")
    local_lr: float = knob(0.5, 0.0, 100.0, "", "step size on the clients", log=True, usual=(0.01, 10.0))
    server_lr: float = knob(1.0, 0.0, 1_000.0, "", "how far the server follows the mean delta", log=True,
                            usual=(0.1, 400.0))
    warm_up: int = knob(0, 0, 10_000, "rounds", "how long step sizes grow to their full size", usual=(0, 20),
                        group="local step")
    optimizer: str = knob("sgd", 0, 0, "", "rule of the local step", choices=("sgd", "adamw"), group="local step")
    weight_decay: float = knob(0.0, 0.0, 1.0, "per step", "pull of the touched weights to zero (lambda)",
                               usual=(0.0, 0.1), group="local step")
    negatives: int = knob(4, 0, 100, "per click", "unseen items drawn for each click; ratings need none", usual=(0, 20),
                          group="local step")
    server_optimizer: str = knob("sgd", 0, 0, "", "how the server follows the aggregated delta",
                                 choices=("sgd", "momentum", "adam", "yogi", "adagrad"), group="server step")
    server_momentum: float = knob(0.9, 0.0, 0.9999, "", "share of the last step that stays (beta 1); none in sgd",
                                  usual=(0.0, 0.99), group="server step")
    server_beta2: float = knob(0.99, 0.0, 0.999999, "", "share of the squares that stays (beta 2), adam and yogi",
                                usual=(0.9, 0.9999), group="server step")
    server_epsilon: float = knob(1e-3, 1e-12, 1e3, "", "least root of the squares (tau): how adaptive the server is",
                                 log=True, usual=(1e-6, 1.0), group="server step")
    proximal: float = knob(0.0, 0.0, 1e4, "", "FedProx: pull of a client to what the server sent (mu)",
                           usual=(0.0, 1.0), group="local step")
    correction: str = knob("none", 0, 0, "", "what keeps clients from drifting apart", choices=("none", "scaffold"),
                           group="local step")
    drop_out: float = knob(0.0, 0.0, 1.0, "of the cohort", "chance that a client drops out of a round",
                           usual=(0.0, 0.9), group="clients' world")
    deadline: float = knob(0.0, 0.0, 1e9, "s, simulated", "how long the server waits for clients; 0 waits for all",
                           usual=(0.0, 100.0), group="clients' world")
    weighting: str = knob("examples", 0, 0, "", "weight of a client", choices=("examples", "equal"),
                          group="server step")
    engine: str = knob("eager", 0, 0, "", "how local steps run; compiled needs a C++ compiler, captured needs CUDA",
                       choices=("eager", "compiled", "captured"), group="machine and draws")
    precision: str = knob("fp32", 0, 0, "", "of the prediction's matrix products", choices=("fp32", "bf16"),
                          group="machine and draws")
    memory_mb: int = knob(0, 0, 10_000_000, "MB", "what clients that train at once may take; 0 leaves it to the engine",
                          usual=(0, 4000), group="machine and draws")
    seed: int = knob(0, 0, 2**31 - 1, "", "fixes every random draw", live=False, usual=(0, 100),
                     group="machine and draws")
