"""All settings of a run as text.

One JSON that the workbench, the command line and a colleague read alike.

    {"fedlab": 1, "settings": {"rounds": 40, "cohort": 64, ...}}

Settings that are left out stay as they are. A wrong one is named, and nothing is taken.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from fedlab.core.knobs import knob, require, strict


@strict
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a federated run; each field is a knob with its range."""

    rounds: int = knob(40, 1, 10_000, "rounds", "when the run ends", usual=(5, 300))
    cohort: int = knob(64, 1, 1_000_000, "clients", "how many clients train in a round (C)",
                       log=True, usual=(1, 671))
    local_epochs: int = knob(1, 1, 100, "epochs", "passes over a client's own data in a round",
                             usual=(1, 10))
    batch_size: int = knob(32, 0, 65_536, "examples",
                           "examples in a local step (B); 0 takes all at once", usual=(0, 256))
    micro_batch: int = knob(0, 0, 65_536, "examples",
                            "of a batch whose gradient is worked out at a time; 0 takes all",
                            usual=(0, 64), group="machine and draws")
    local_lr: float = knob(0.5, 0.0, 100.0, "", "step size on the clients", log=True,
                           usual=(0.01, 10.0))
    server_lr: float = knob(1.0, 0.0, 1_000.0, "", "how far the server follows the mean delta",
                            log=True, usual=(0.1, 400.0))
    warm_up: int = knob(0, 0, 10_000, "rounds", "how long step sizes grow to their full size",
                        usual=(0, 20), group="local step")
    optimizer: str = knob("sgd", 0, 0, "", "rule of the local step", choices=("sgd", "adamw"),
                          group="local step")
    weight_decay: float = knob(0.0, 0.0, 1.0, "per step",
                               "pull of the touched weights to zero (lambda)", usual=(0.0, 0.1),
                               group="local step")
    negatives: int = knob(4, 0, 100, "per click",
                          "unseen items drawn for each click; ratings need none", usual=(0, 20),
                          group="local step")
    server_optimizer: str = knob("sgd", 0, 0, "", "how the server follows the aggregated delta",
                                 choices=("sgd", "momentum", "adam", "yogi", "adagrad"),
                                 group="server step")
    server_momentum: float = knob(0.9, 0.0, 0.9999, "",
                                  "share of the last step that stays (beta 1); none in sgd",
                                  usual=(0.0, 0.99), group="server step")
    server_beta2: float = knob(0.99, 0.0, 0.999999, "",
                               "share of the squares that stays (beta 2), adam and yogi",
                               usual=(0.9, 0.9999), group="server step")
    server_epsilon: float = knob(1e-3, 1e-12, 1e3, "",
                                 "least root of the squares (tau): how adaptive the server is",
                                 log=True, usual=(1e-6, 1.0), group="server step")
    proximal: float = knob(0.0, 0.0, 1e4, "",
                           "FedProx: pull of a client to what the server sent (mu)",
                           usual=(0.0, 1.0), group="local step")
    correction: str = knob("none", 0, 0, "", "what keeps clients from drifting apart",
                           choices=("none", "scaffold"), group="local step")
    drop_out: float = knob(0.0, 0.0, 1.0, "of the cohort",
                           "chance that a client drops out of a round", usual=(0.0, 0.9),
                           group="clients' world")
    deadline: float = knob(0.0, 0.0, 1e9, "s, simulated",
                           "how long the server waits for clients; 0 waits for all",
                           usual=(0.0, 100.0), group="clients' world")
    weighting: str = knob("examples", 0, 0, "", "weight of a client", choices=("examples", "equal"),
                          group="server step")
    engine: str = knob("eager", 0, 0, "",
                       "how local steps run; compiled needs a C++ compiler, captured needs CUDA",
                       choices=("eager", "compiled", "captured"), group="machine and draws")
    precision: str = knob("fp32", 0, 0, "", "of the prediction's matrix products", choices=("fp32",
                                                                                            "bf16"),
                          group="machine and draws")
    memory_mb: int = knob(0, 0, 10_000_000, "MB",
                          "what clients that train at once may take; 0 leaves it to the engine",
                          usual=(0, 4000), group="machine and draws")
    seed: int = knob(0, 0, 2**31 - 1, "", "fixes every random draw", live=False, usual=(0, 100),
                     group="machine and draws")




# of this format; a newer reader may know older ones, an older reader refuses newer ones
VERSION = 1
C = TypeVar("C", bound=Config)


def write(config: Config) -> str:
    """The settings as JSON, to copy, keep or paste back."""
    return json.dumps({"fedlab": VERSION, "settings": asdict(config)}, indent=2)


def read(text: str, base: C) -> C:
    """`base` with what the text sets.

    Raises `ParameterError` that names the field, its value and the fix.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found, reason = text[
            :40], f"not JSON ({error.msg} in line {error.lineno}); paste what `settings` shows"
        require(False, "settings", found, reason)
    whole = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    require(whole, "settings", found, 'write {"fedlab": 1, "settings": {...}}')
    require(found.get("fedlab") == VERSION, "fedlab", found.get("fedlab"),
            f"these settings are of another version; this one reads version {VERSION}")
    return replace(base, **found["settings"])


def parsed(config: Config, name: str, text: str) -> Any:
    """The value that a text means for a setting: a number, or the text itself.

    `Config` checks it later.
    """
    kind = {f.name: f.type for f in fields(config)}.get(name, str)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all of them."""
    if not settings:
        return []
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if any(each.get(name) != settings[0].get(name)
                                          for each in settings)]

