"""The knobs of local training, as the engine reads them."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedlab.core import knob, strict


@strict
@dataclass(frozen=True, kw_only=True, eq=False)
class LocalSettings:
    """How a client trains in a round; each field is a knob with its range."""

    local_epochs: int = knob(
        1, 1, 100, "epochs", "passes over a client's own data in a round", usual=(1, 10)
    )
    batch_size: int = knob(
        32,
        0,
        65_536,
        "examples",
        "examples in a local step (B); 0 takes all at once",
        usual=(0, 256),
    )
    micro_batch: int = knob(
        0,
        0,
        65_536,
        "examples",
        "of a batch whose gradient is worked out at a time; 0 takes all",
        usual=(0, 64),
        group="machine and draws",
    )
    local_lr: float = knob(
        0.5, 0.0, 100.0, "", "step size on the clients", log=True, usual=(0.01, 10.0)
    )
    optimizer: str = knob(
        "sgd", 0, 0, "", "rule of the local step", choices=("sgd", "adamw"), group="local step"
    )
    weight_decay: float = knob(
        0.0,
        0.0,
        1.0,
        "per step",
        "pull of the touched weights to zero (lambda)",
        usual=(0.0, 0.1),
        group="local step",
    )
    negatives: int = knob(
        4,
        0,
        100,
        "per click",
        "unseen items drawn for each click; ratings need none",
        usual=(0, 20),
        group="local step",
    )
    proximal: float = knob(
        0.0,
        0.0,
        1e4,
        "",
        "FedProx: pull of a client to what the server sent (mu)",
        usual=(0.0, 1.0),
        group="local step",
    )
    engine: str = knob(
        "fused",
        0,
        0,
        "",
        "how local steps run; fused takes the models it knows, compiled needs a C++ compiler, "
        "captured needs CUDA",
        choices=("fused", "eager", "compiled", "captured"),
        group="machine and draws",
    )
    workers: int = knob(
        0,
        0,
        256,
        "threads",
        "among which fused clients are shared, with the same bits; 0 for all cores",
        usual=(0, 16),
        group="machine and draws",
    )
    precision: str = knob(
        "fp32",
        0,
        0,
        "",
        "of the prediction's matrix products",
        choices=("fp32", "bf16"),
        group="machine and draws",
    )
    memory_mb: int = knob(
        0,
        0,
        10_000_000,
        "MB",
        "what clients that train at once may take; 0 leaves it to the engine",
        usual=(0, 4000),
        group="machine and draws",
    )

    def turns(self, rows: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
        """What steps in each turn of a local step: names -> times `local_lr`; all at once, at 1.

        rows: those of the model. A turn predicts anew, from what the turns before it made of the
        parameters.
        """
        return (dict.fromkeys(rows, 1.0),)
