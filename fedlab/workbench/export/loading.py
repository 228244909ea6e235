"""How to use the weights of a model without this package: lines of plain torch, by model.

Letters: I items, D dimensions, F features.
"""

from collections.abc import Mapping
from typing import Any

from fedlab.algorithms import Implicit
from fedlab.core import Local
from fedlab.data import Source, Split
from fedlab.models import Model
from fedlab.workbench.export.adapter import base_of, has_adapters

LOAD = [
    "import torch",
    "from safetensors.torch import load_file",
    'weights = load_file("model.safetensors")',
]
CONTENT = [
    'items = weights["item_features"]',
    "person = user.expand(len(items), -1)",
    "x = torch.cat([items, person, items * person[:, : items.shape[1]]], 1)",
    'hidden = (x @ weights["w1"] + weights["b1"]).relu()',
    'scores = hidden @ weights["w2"] + weights["b2"] + weights["bias"]',
]
# name of a model -> how the scores (I,) of all items for one person follow from the weights
SCORES = {
    "matrix factorisation": ['scores = weights["item"] @ user + weights["bias"]'],
    "interaction": [
        'mixed = (user * weights["item"]) @ weights["dense"]',
        'scores = mixed[:, 0] + weights["offset"] + weights["bias"]',
    ],
    "hybrid": [
        'items = weights["item"] + weights["known"] @ weights["told"]',
        'scores = items @ user + weights["bias"]',
    ],
    "linear": [
        'items = weights["item_features"]',
        "person, one = user.expand(len(items), -1), torch.ones(len(items), 1)",
        'scores = (torch.cat([items, person, one], 1) @ weights["theta"])[:, 0]',
    ],
    "content": CONTENT,
    "text content": CONTENT,
    "item-item": ['scores = weights["item_item"][clicked].sum(0)'],
    "taste": [
        'user, told = weights["user"], weights["known"] @ weights["told"]',
        'items = weights["item"] + told[:, 1:]',
        'own = weights["bias"] + told[:, 0] + items @ user[1:]',
        'scores = weights["offset"] + own + weights["scale"] * user[0]',
    ],
}
SOLVED = [
    'items = weights["item"]',
    "own, w0, reg = items[clicked], W0, REG",
    "heavy = torch.arange(len(clicked), 0, -1.0) ** -RECENCY",
    "left = own.T @ (heavy[:, None] * own) + w0 * items.T @ items",
    "left += reg * (heavy.sum() + w0 * len(items)) * torch.eye(len(left))",
    "user = torch.linalg.solve(left, own.T @ heavy)",
]
SOLVES = (
    "`clicked` are the rows of the items that one person clicked, the oldest first; from them the "
    "person's vector `user` is solved, as that person's client does. Leave out what was clicked "
    "already: `scores[clicked] = -torch.inf`. "
)
CLICKED = (
    "`clicked` are the rows of the items that one person clicked: row t of `item_item` is of the "
    "item that `rows.json` names at place `kept[t]`, and so is score t. The clicks can stay with "
    "that person's client."
)
VECTOR = (
    "`user` is the vector of one person, of as many numbers as an item's row has. It never left "
    "that person's client: fit it there to the person's own clicks, with these weights fixed, or "
    "take a row of `user` in `people.safetensors` where the owner of that file allows it. "
)
FEATURES = (
    "`user` is what is known of one person, a row as of `user_features`, which is worked out from "
    "the person's own clicks and is in `people.safetensors` only. "
)
ROWS = "Row i of the scores is the item that `rows.json` names at place i."
ADAPTER = [
    "from transformers import AutoModel",
    "from peft import PeftModel",
    'model = PeftModel.from_pretrained(AutoModel.from_pretrained("BASE"), ".")',
]


def _filled(line: str, numbers: Mapping[str, float]) -> str:
    """A line with numbers in place of names."""
    for name, value in numbers.items():
        line = line.replace(name, repr(value))
    return line


def how_to_load(model: Model, split: Split, local: Local, data: Source) -> dict[str, Any]:
    """The lines, and what they need, in words; local: what clients did with data."""
    if model.module is not None and has_adapters(model.module):
        words = (
            "`adapter_model.safetensors` and `adapter_config.json` are for peft. The other trained "
            "weights, of the heads behind the pretrained model, are in `model.safetensors`."
        )
        base = base_of(model.module) or "the pretrained model"
        lines = [*LOAD, *(line.replace("BASE", base) for line in ADAPTER)]
        return {"lines": lines, "in words": words}
    if model.module is not None:
        words = (
            f"These are all weights of a {type(model.module).__name__}, an `nn.Module`: make one "
            "and call `module.load_state_dict(weights)`."
        )
        return {"lines": LOAD, "in words": words}
    if model.name not in SCORES:
        return {"lines": LOAD, "in words": "Weights by name, as the model's `predict` reads them."}
    if model.name == "item-item":
        return {"lines": [*LOAD, *SCORES[model.name]], "in words": CLICKED}
    if type(local) is Implicit:
        (w0, reg), power = local.strength(data, split.train.item_count), local.recency
        numbers = {"W0": w0, "REG": reg, "RECENCY": power}
        told = [_filled(line, numbers) for line in SOLVED]
        return {"lines": [*LOAD, *told, *SCORES[model.name]], "in words": SOLVES + ROWS}
    whose = "" if "user" in model.rows and model.rows["user"] == "one" else VECTOR
    words = (FEATURES if "user_features" in model.constants else whose) + ROWS
    if split.std != 1.0 or split.mean:
        words += f" In stars: {split.mean:.6g} + {split.std:.6g} * scores."
    return {"lines": [*LOAD, *SCORES[model.name]], "in words": words}
