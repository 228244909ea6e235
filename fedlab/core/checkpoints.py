"""Rounds on disk: a checkpoint is a folder that is there as a whole or not at all.

    FOLDER/params.safetensors   the parameters by name, which any reader of safetensors opens
    FOLDER/state.safetensors    all other tensors, end to end, a row of numbers for each type
    FOLDER/round.json           the rest of the Round; its tensors are places in these two
    FOLDER/manifest.json        the SHA-256 of the three, written last

A checkpoint is written under another name beside its own, brought to the disk and renamed, so that
a kill at any moment leaves the old one or the new one. What is read is data: nothing that a file
names is run or imported, and no path comes from a file. A Round that was read equals the one that
was written bit for bit; tensors that it held twice are stored once.

Sources: the safetensors format; Pillai et al. 2014, "All file systems are not created equal" (what
must be brought to the disk, and in which order, before a rename may stand for it).
"""

import hashlib
import json
import math
import os
import re
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fedlab.core.knobs import ParameterError, require
from fedlab.core.parts import Sent
from fedlab.core.rounds import Round
from fedlab.core.settings import Settings
from fedlab.core.tree import Rows, SparseTable, Update, in_memory

T = TypeVar("T")
EDITION = 1  # of what the files of a checkpoint hold
MANIFEST, REST = "manifest.json", "round.json"
PARAMS, STATE = "params.safetensors", "state.safetensors"
FILES = (PARAMS, STATE, REST)
# dataclasses that may stand in a Round's state on disk, by name
STORED: dict[str, type] = {}


def stored(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that a part keeps in a Round's state can go to disk.

    It is stored by the name of the class, with its fields. Running a notebook's cell again replaces
    it.

    >>> @stored
    ... @dataclass(frozen=True)
    ... class Momentum:
    ...     rate: float
    """
    frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, "stored", cls.__name__, "make it a dataclass(frozen=True) first")
    other = STORED.get(cls.__name__, cls)
    again = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
    require(again, "stored", cls.__name__, f"{other} has this name; choose another")
    STORED[cls.__name__] = cls
    return cls


for _each in (Rows, Update, SparseTable, Sent):
    stored(_each)


def save_round(
    done: Round, folder: str | Path, note: str = "", *, durable: bool = True, private: bool = False
) -> Path:
    """Write a Round as a checkpoint, in place of one that is there; return its folder.

    note: a text of yours that goes with it, see `load_noted`. durable: whether it is on the disk
    when it takes its place, so that it stands a power failure; one that is not stands a kill, and
    `bring_checkpoint` makes it durable. private: whether its owner alone may read it. Raises
    `ParameterError` for a state that cannot be stored, before anything is written, and OSError
    where the disk does not take it.
    """
    folder = Path(folder)
    writing, rest = _taken(done, note)
    mark = secrets.token_hex(4)
    fresh, old = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("new", "old"))
    fresh.mkdir(parents=True, mode=0o700 if private else 0o777)
    try:
        safetensors.save_file(writing.params, fresh / PARAMS)
        rows = {name: torch.cat(parts) for name, parts in writing.packed.items()}
        safetensors.save_file(rows, fresh / STATE)
        (fresh / REST).write_bytes(rest)
        (fresh / MANIFEST).write_bytes(_manifest({n: _sha256(fresh / n) for n in FILES}))
        for name in (*FILES, MANIFEST) if private else ():
            (fresh / name).chmod(0o600)
        if durable:
            bring_checkpoint(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except SafetensorError as error:  # its words for a disk that is full, say
        remove_checkpoint(fresh)
        raise OSError(str(error)) from error
    except OSError:
        remove_checkpoint(fresh)
        raise
    if durable:
        bring_to_disk(folder.parent)
    remove_checkpoint(old)
    return folder


def load_round(folder: str | Path, device: str | torch.device = "cpu") -> Round:
    """Read a Round from a checkpoint, or from the newest one of a run's folder.

    device: where tensors go that were on an accelerator when they were stored. Raises
    `ParameterError` that names the file, what is wrong with it, and the way out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     _ = save_round(Round(3, Settings(cohort=8), {"w": torch.ones(2)}), home + "/mine")
    ...     again = load_round(home + "/mine")
    >>> again.number, again.settings, again.params["w"]
    (3, Settings(cohort=8), tensor([1., 1.]))
    """
    return load_noted(folder, device)[0]


def load_noted(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Round, str]:
    """Read a Round as `load_round` does, and the note that was stored with it."""
    reading = _Reading(*_checked(newest(folder)), torch.device(device))
    return reading.round(), reading.note


def newest(folder: str | Path) -> Path:
    """The checkpoint that a folder stands for: itself, or the newest one in it.

    A folder that was replaced while the power failed lies beside its name, and is found there.
    """
    folder = Path(folder)
    if not folder.exists():
        return max(folder.parent.glob(f".{folder.name}.*.old"), default=folder)
    inside = checkpoints_in(folder / "checkpoint") or checkpoints_in(folder)
    return inside[-1] if inside and not (folder / MANIFEST).exists() else folder


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder that are named by the number of their Round, oldest first."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"[0-9]{8}", path.name))


def numbered(folder: Path, number: int) -> Path:
    """Where the checkpoint of this Round lies in a folder of several."""
    return folder / f"{number:08d}"


def remove_checkpoint(folder: Path) -> None:
    """Remove the files of a checkpoint and its folder; a link or what is not there is left alone.

    A folder that holds anything else stays, with that.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in (MANIFEST, *FILES):  # without a manifest it is no checkpoint any more
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def bring_checkpoint(folder: Path) -> None:
    """Bring a checkpoint to the disk, and then its name."""
    for name in (*FILES, MANIFEST, ""):
        bring_to_disk(folder / name)
    bring_to_disk(folder.parent)


def bring_to_disk(path: Path) -> None:
    """Bring a file to the disk; or what was made or renamed in a folder, where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    place = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(place)
    finally:
        os.close(place)


# Writing


def _taken(done: Round, note: str) -> "tuple[_Writing, bytes]":
    """The tensors of a Round, and the text of the rest."""
    writing = _Writing()
    try:
        params = [[name, writing.param(name, value)] for name, value in done.params.items()]
        rest = {
            each.name: writing.put(getattr(done, each.name), each.name)
            for each in fields(Round)
            if each.name != "params"
        }
        whole = {"fedlab": EDITION, "note": note, "params": params, "round": rest}
        text = json.dumps(whole, allow_nan=False, separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        if isinstance(error, ParameterError):
            raise
        raise ParameterError(f"round={done.number}: cannot be stored ({error})") from error
    return writing, text.encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(hashes: Mapping[str, str]) -> bytes:
    return json.dumps({"fedlab": EDITION, "files": dict(hashes)}, indent=1).encode()


@dataclass(frozen=True)
class _Writing:
    """A Round on its way into files.

    params: tensors by name. packed: type -> flat tensors, and how long they are together. seen:
    where a tensor lies in memory -> what stands for it.
    """

    params: dict[str, Tensor] = field(default_factory=dict)
    packed: dict[str, list[Tensor]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    seen: dict[Any, Any] = field(default_factory=dict)

    def param(self, name: str, value: Any) -> Any:
        """What stands for a parameter; a tensor lies under its name."""
        require(isinstance(name, str), "params", name, "name parameters by texts")
        if not isinstance(value, Tensor):
            return self.put(value, f"params[{name!r}]")
        _check_plain(value, f"params[{name!r}]")
        if (found := self.seen.get(in_memory(value))) is not None:
            return found
        flat = value.detach().cpu().contiguous()
        alone = flat.untyped_storage().nbytes() == flat.numel() * flat.element_size()
        self.params[name] = flat if alone and flat.data_ptr() else flat.clone()
        return self._noted(value, {"tensor": name})

    def put(self, value: Any, where: str) -> Any:
        """What stands for a value in JSON; where: its place in the Round, for messages."""
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if isinstance(value, Tensor):
            return self._packed(value, where)
        if kind is list:
            return [self.put(each, where) for each in value]
        name, inside = self._taken_apart(value, where)
        return {name: inside}

    def _taken_apart(self, value: Any, where: str) -> tuple[str, Any]:
        """What kind a value is that JSON has not, and what is in it."""
        kind = type(value)
        if kind is float:  # not a number, or infinite: its bits
            return "float", struct.pack(">d", value).hex()
        if kind is tuple:
            return "tuple", [self.put(each, where) for each in value]
        if kind is Settings:
            return "settings", dict(value)
        if isinstance(value, Mapping):
            return "dict", [
                [self.put(key, where), self.put(each, f"{where}[{key!r}]")]
                for key, each in value.items()
            ]
        require(
            STORED.get(kind.__name__) is kind,
            where,
            value,
            f"a {kind.__name__} cannot be stored; keep numbers, texts, tensors, lists, tuples and "
            "dicts of them, or a frozen dataclass with @stored (fedlab.core)",
        )
        own = {each.name: getattr(value, each.name) for each in fields(kind)}
        return kind.__name__, {n: self.put(each, f"{where}.{n}") for n, each in own.items()}

    def _packed(self, value: Tensor, where: str) -> Any:
        _check_plain(value, where)
        if (found := self.seen.get(in_memory(value))) is not None:
            return found
        kind = str(value.dtype).removeprefix("torch.")
        start = self.ends.get(kind, 0)
        # a copy where it is cut from a larger one is made when all are joined
        self.packed.setdefault(kind, []).append(value.detach().cpu().contiguous().view(-1))
        self.ends[kind] = start + value.numel()
        return self._noted(value, {"tensor": [kind, start, list(value.shape)]})

    def _noted(self, value: Tensor, found: dict[str, Any]) -> dict[str, Any]:
        """Remember what stands for a tensor, with its order in memory and its device."""
        if strides := _strides(value):
            found["strides"] = strides
        if value.device.type != "cpu":
            found["device"] = value.device.type
        self.seen[in_memory(value)] = found
        return found


def _check_plain(value: Tensor, where: str) -> None:
    fine = type(value) is Tensor and value.layout is torch.strided and not value.is_quantized
    said = f"{type(value).__name__} ({value.layout})"
    require(fine, where, said, "only plain, dense tensors can be stored")


def _strides(value: Tensor) -> list[int]:
    """The order in memory of a tensor that is dense and not in the usual order; else nothing.

    Sums may be taken in another order of its numbers, which would change their last bits.
    """
    if value.is_contiguous():
        return []
    dense = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride != dense:
            return []
        dense *= size
    return list(value.stride())


# Reading


def _checked(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """The files of a checkpoint that equal its manifest."""
    texts = {name: _read(folder / name) for name in (MANIFEST, *FILES)}
    manifest = folder / MANIFEST
    try:
        edition = json.loads(texts[MANIFEST])["fedlab"]
    except (ValueError, TypeError, KeyError, RecursionError):
        edition = None
    fix = "it is damaged; remove this checkpoint, and go on from the one before it"
    require(edition is not None, str(manifest), "no manifest of a checkpoint", fix)
    require(
        edition == EDITION,
        str(manifest),
        edition,
        f"a checkpoint of another edition; this reads edition {EDITION}. Go on with the version "
        "of fedlab that wrote it",
    )
    hashes = {name: hashlib.sha256(texts[name]).hexdigest() for name in FILES}
    if _manifest(hashes) != texts[MANIFEST]:
        other = [n for n in FILES if hashes[n] not in texts[MANIFEST].decode("utf-8", "replace")]
        require(False, str(folder / (other[0] if other else MANIFEST)), "another SHA-256", fix)
    return folder, texts


def _read(path: Path) -> bytes:
    require(
        not path.is_symlink() and path.is_file() and not path.parent.is_symlink(),
        str(path),
        "no such file",
        "a checkpoint is a folder of plain files that `save_round` wrote, or a run's folder that "
        "has one; name another, or begin anew",
    )
    return path.read_bytes()


@dataclass(frozen=True)
class _Reading:
    """A checkpoint on its way back into a Round. found: what stands for a tensor -> the tensor."""

    folder: Path
    texts: Mapping[str, bytes]
    device: torch.device
    found: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, Any]:
        """What stands in the JSON."""
        return json.loads(self.texts[REST])

    @property
    def note(self) -> str:
        """The note that was stored with the Round."""
        return self._tried(lambda: str(self.whole["note"]))

    def round(self) -> Round:
        """The Round."""
        for name in (PARAMS, STATE):
            self.tensors[name] = self._tried(lambda n=name: safetensors.load(self.texts[n]))
        done = self._tried(self._made)
        name = self.folder.name
        same = not re.fullmatch(r"[0-9]{8}", name) or int(name) == done.number
        require(
            same,
            str(self.folder),
            f"round {done.number}",
            f"it was renamed; name it {done.number:08d} again",
        )
        return done

    def _tried(self, make: Any) -> Any:
        """What `make` makes; an error names the file."""
        try:
            return make()
        except ParameterError as error:
            raise ParameterError(f"{self.folder / REST}: {error}") from error
        except (
            *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError),
            *(RuntimeError, RecursionError, SafetensorError, struct.error),
        ) as error:
            what = f"{type(error).__name__}: {error}"
            raise ParameterError(
                f"{self.folder / REST}: not what `save_round` writes ({what}); remove this "
                "checkpoint, and go on from the one before it"
            ) from error

    def _made(self) -> Round:
        whole = self.whole
        require(whole["fedlab"] == EDITION, "fedlab", whole["fedlab"], f"this reads {EDITION}")
        params = {name: self.get(value) for name, value in whole["params"]}
        for name, value in params.items():
            right = isinstance(name, str) and isinstance(value, Tensor | SparseTable)
            require(right, "params", name, "a parameter is a tensor")
        rest = {name: self.get(value) for name, value in whole["round"].items()}
        return self._built(Round, {**rest, "params": params})

    def get(self, value: Any) -> Any:
        """The value that stands in JSON."""
        if isinstance(value, list):
            return [self.get(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self._tensor(value)
        ((kind, inside),) = value.items()
        if kind in STORED:
            return self._built(STORED[kind], {n: self.get(each) for n, each in inside.items()})
        require(
            kind in PLAIN,
            "type",
            kind,
            f"nothing here knows it ({', '.join(STORED)} are known); load the file that has the "
            "part which keeps it, --parts FILE.py on the command line",
        )
        return PLAIN[kind](self, inside)

    def _built(self, cls: type[T], given: Mapping[str, Any]) -> T:
        """A dataclass from its fields, which are of the types that it says."""
        hints = _hints(cls)  # type: ignore[arg-type]
        for name, value in given.items():
            require(name in hints, cls.__name__, name, "it has no such field")
            hint = hints[name]
            require(
                _fits(value, hint), f"{cls.__name__}.{name}", type(value).__name__, f"not {hint}"
            )
        return cls(**given)

    def _tensor(self, value: dict[str, Any]) -> Tensor:
        key = json.dumps(value)
        if key in self.found:
            return self.found[key]
        place = value["tensor"]
        if isinstance(place, str):
            flat = self.tensors[PARAMS][place]
        else:
            kind, start, shape = place
            row = self.tensors[STATE][kind]
            fits = 0 <= start <= start + math.prod(shape) <= len(row)
            require(fits, "tensor", place, f"there are {len(row)} numbers")
            flat = row[start : start + math.prod(shape)].view(shape)
        if "strides" in value:
            made = torch.empty_strided(flat.shape, value["strides"], dtype=flat.dtype).copy_(flat)
        else:
            made = flat.clone()  # of its own memory, which begins where torch begins one
        self.found[key] = made.to(self.device) if "device" in value else made
        return self.found[key]


# what JSON has not -> how it is made from what stands for it
PLAIN: dict[str, Callable[[_Reading, Any], Any]] = {
    "tuple": lambda reading, inside: tuple(reading.get(each) for each in inside),
    "dict": lambda reading, inside: {reading.get(key): reading.get(each) for key, each in inside},
    "float": lambda _, inside: struct.unpack(">d", bytes.fromhex(inside))[0],
    "settings": lambda _, inside: Settings(**inside),
}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as its outermost part goes."""
    each = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = [get_origin(kind) or kind for kind in each]
    return any(kind is Any or isinstance(value, kind) for kind in kinds)
