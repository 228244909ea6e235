"""A model as files that plain torch loads: its weights by name, and a card that says what it is.

    model.safetensors        what the server holds; a parameter of a single row is without that axis
    card.json, card.md       what it is, was trained on, reaches, proves and gives away
    settings.json            to train it again: fedlab run settings.json
    rows.json                the id of the item of each row of 'item' and 'bias', and its title
    data-licence.md          only where trained on the data that come along: what holds for them
    people.safetensors       only where asked for: rows of single persons
    adapter_model.safetensors, adapter_config.json      low-rank adapters, for peft

What belongs to single people stays with them: rows by user or client, and fixed tables made of what
users did. A file of these is made for their owners only, who have to ask for it.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedlab.core import Round, SparseTable, Tree, require, write_settings
from fedlab.data import fingerprint
from fedlab.models import Model
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.export.adapter import has_adapters, peft_layout
from fedlab.workbench.export.card import card, data_licence
from fedlab.workbench.export.words import in_words
from fedlab.workbench.runs import Record

PEOPLE = "people.safetensors"
OF_PEOPLE = "its rows belong to single people; it stays with them unless you ask for people=True"
FROZEN = "it is the pretrained model that the adapters belong to, and what that makes of the texts"


@dataclass(frozen=True)
class Weights:
    """What goes into files. left_out: name -> why it is in none of them."""

    shared: Tree = field(default_factory=dict)
    people: Tree = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def export_model(
    experiment: Experiment,
    done: Round,
    folder: str | Path,
    *,
    records: Sequence[Record] = (),
    people: bool = False,
    baselines: Sequence[str] | None = None,
    reached: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model of a Round, and its card, into a new folder; return the folder.

    done: a Round of this experiment with its parameters, say the best one on validation. records:
    those of its run, for what training cost. people: whether to write the rows of single people as
    well, into a file of their own. baselines: what to measure the model against; reached: what was
    measured of it elsewhere, see `card`.

    The folder is there as a whole or not at all. Raises `ParameterError` for a folder that holds
    something, and for a Round of another experiment or without parameters; OSError.
    """
    place = free_place(folder)
    how: dict[str, Any] = {"people": people, "baselines": baselines, "reached": reached}
    files = model_files(experiment, done, records=records, **how)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fedlab-", dir=place.parent) as half:
        made = Path(half, "model")
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        if place.exists():
            place.rmdir()
        made.rename(place)
    return place


def free_place(folder: str | Path) -> Path:
    """The path of a folder that is new or empty; `ParameterError` where something is there."""
    place = Path(folder)
    taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    require(not taken, "folder", str(place), "something is there already; name a new folder")
    return place


def zipped_model(
    experiment: Experiment, done: Round, records: Sequence[Record], **how: Any
) -> bytes:
    """The files of a model as one zip file; the arguments are those of `export_model`."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in model_files(experiment, done, records=records, **how).items():
            out.writestr(f"fedlab-model/{name}", content)
    return whole.getvalue()


def model_files(
    experiment: Experiment,
    done: Round,
    *,
    records: Sequence[Record] = (),
    people: bool = False,
    baselines: Sequence[str] | None = None,
    reached: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Name -> content of each file; the arguments are those of `export_model`."""
    check_round(experiment, done)
    model, params = experiment.model, dict(done.params)
    if people and hasattr(experiment.local, "personal"):  # solved against the items as they are
        params = experiment.local.personal(experiment.federation, params)
    found = sorted_out(model, params, experiment.split.train.user_count, people=people)
    known, files = experiment.split.train.catalogue, {}
    rows: dict[str, Any] = {"item": known.item_ids}
    rows |= {"title": known.titles} if "titles" in known.columns else {}
    if people:
        files[PEOPLE] = _saved(found.people)
        rows |= {"user": known.user_ids, "client of user": experiment.federation.owner.tolist()}
    if model.module is not None and has_adapters(model.module):
        adapters, config = peft_layout(model.module, done.params)
        files["adapter_model.safetensors"] = _saved(adapters)
        files["adapter_config.json"] = _json(config)
    files["model.safetensors"] = _saved(found.shared)
    about = card(
        experiment,
        done,
        records,
        baselines=baselines,
        reached=dict(reached) if reached else None,
        weights={name: list(value.shape) for name, value in found.shared.items()},
        people={name: list(value.shape) for name, value in found.people.items()},
        left_out=found.left_out,
    )
    return files | {
        "rows.json": _json(rows),
        "settings.json": write_settings(experiment.settings).encode(),
        "card.json": _json(about),
        "card.md": in_words(about).encode(),
        **data_licence(experiment),
    }


def check_round(experiment: Experiment, done: Round) -> None:
    """Raise `ParameterError` unless a Round has the parameters of this experiment's model."""
    fix = "choose a Round that still has them, such as the last one of a run"
    require(bool(done.params), "done", f"round {done.number} without parameters", fix)
    first = experiment.model.init(0)
    for name, like in first.items():
        shape = tuple(done.params[name].shape) if name in done.params else None
        fix = f"this experiment's model has {tuple(like.shape)}; give the settings of its own run"
        require(shape == tuple(like.shape), f"done.params[{name!r}]", shape, fix)
    theirs = done.state.get("run", {})
    name = theirs.get("model", experiment.model.name)
    fix = f"this experiment trains {experiment.model.name}; give the settings of its own run"
    require(name == experiment.model.name, "done", f"a Round of {name}", fix)
    if "data" in theirs:
        own = fingerprint(experiment.source)
        fix = f"it trained on {theirs['data']}, this experiment has {own}; give the data of its run"
        require(theirs["data"] == own, "done", "a Round of other data", fix)


def sorted_out(model: Model, params: Tree, users: int, *, people: bool = False) -> Weights:
    """What of a model is everybody's, what belongs to single people, and what is left out.

    users: U; a fixed table of so many rows, or one that is called user_..., counts as theirs.
    """
    found = Weights()
    for name, kind in model.rows.items():
        value = _plain(params[name])
        if kind in ("user", "pair", "client"):
            found.people[name] = value
        else:
            found.shared[name] = value[0] if kind == "one" else value
    frozen = {} if has_adapters(model.module) else model.constants
    for name, value in model.constants.items():
        if name.startswith("user_") or (value.dim() > 0 and len(value) == users):
            found.people[name] = _plain(value)
        elif name in frozen:
            found.shared[name] = _plain(value)
    if len(frozen) < len(model.constants):
        found.left_out["all that was not trained"] = FROZEN
    if not people:
        found.left_out.update(dict.fromkeys(found.people, OF_PEOPLE))
        found.people.clear()
    return found


def _plain(value: Tensor | SparseTable) -> Tensor:
    """A table as one tensor on the CPU that shares its memory with none."""
    if isinstance(value, SparseTable):
        value = value.index_select(0, torch.arange(value.count))
    return value.detach().cpu().contiguous().clone()


def _saved(tensors: Tree) -> bytes:
    return save(tensors, {"format": "pt"})


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
