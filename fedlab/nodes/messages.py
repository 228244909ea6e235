"""Messages between the coordinator and nodes: bytes on the wire, a head and tensors inside.

    MARK | BLAKE2b-128 of the rest | safetensors, whose metadata hold the head as JSON

Nothing in a message is run, and nothing is unpickled. A message that was cut or changed on the way
is told by its digest; one whose sender lies is read field by field. Whatever is wrong with it,
there is one error, `MessageError`. What it says of single clients, such as a delta that is not
finite, is the gate's to judge.

Tables go as rows: their numbers (int32) once for all tables that have the same rows, and their
values (float32). Where a client's table holds few different numbers, as behind a codec, these go
once and each number as its place among them, in 4 or 8 bits: the same numbers in fewer bytes.

Letters: C clients, R rows.

Source: the safetensors format.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fedlab.core import Rows, Tree

MARK = b"fedlab 1"
DIGEST = 16  # bytes
WIDEST = 1 << 31  # numbers of a row
NIBBLE, BYTE = 16, 256  # different numbers that 4 and 8 bits tell apart


class MessageError(ValueError):
    """A message cannot be read; the text says what is wrong with it."""


@dataclass(frozen=True)
class Message:
    """A head, which JSON can hold, and tensors by name; fields are read with their types."""

    head: Mapping[str, Any]
    tensors: Tree = field(default_factory=dict)

    def get(self, name: str, kind: type) -> Any:
        """A field of the head; raises `MessageError` where it is missing or of another type.

        >>> Message({"round": 3}).get("round", int)
        3
        """
        value = self.head.get(name)
        if type(value) is not kind:
            raise MessageError(f"its {name!r} is no {kind.__name__}")
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers from 0 in the head, each below 2^62."""
        found: list[int] = self.get(name, list)
        if any(type(each) is not int or not 0 <= each < 2**62 for each in found):
            raise MessageError(f"its {name!r} are not whole numbers from 0")
        return found

    def tensor(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor of this type and shape, where -1 is any length."""
        found = self.tensors.get(name)
        if found is None:
            raise MessageError(f"it has no tensor {name!r}")
        fits = len(found.shape) == len(shape)
        fits &= all(want in (-1, got) for want, got in zip(shape, found.shape, strict=False))
        if found.dtype != dtype or not fits:
            raise MessageError(f"its {name!r} is {found.dtype} {tuple(found.shape)}")
        return found


def pack(head: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """The bytes of a message.

    >>> unpack(pack({"round": 3}, {"w": torch.ones(2)})).tensors["w"]
    tensor([1., 1.])
    """
    # clones, as tensors that share memory are refused
    own = {
        name: value.detach().cpu().contiguous().clone() for name, value in (tensors or {}).items()
    }
    body = safetensors.save(own, {"head": json.dumps(head, allow_nan=False, separators=(",", ":"))})
    return MARK + hashlib.blake2b(body, digest_size=DIGEST).digest() + body


def unpack(text: bytes) -> Message:
    """The message of these bytes; raises `MessageError` for bytes that are none."""
    start = len(MARK) + DIGEST
    if len(text) <= start or text[: len(MARK)] != MARK:
        raise MessageError("it is no message of a federation, or was cut short")
    body = text[start:]
    if hashlib.blake2b(body, digest_size=DIGEST).digest() != text[len(MARK) : start]:
        raise MessageError("it was cut short or changed on the way")
    try:
        long = int.from_bytes(body[:8], "little")
        about = json.loads(body[8 : 8 + long])["__metadata__"]["head"]
        head = json.loads(about, parse_constant=_no_number)
        tensors = safetensors.load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MessageError(f"it has not the form of a message ({error})") from error
    if not isinstance(head, dict):
        raise MessageError("its head is no JSON object")
    return Message(head, tensors)


def _no_number(text: str) -> NoReturn:
    raise MessageError(f"its head holds {text}")


# Tables, on the way to nodes


def put_tables(
    tables: Tree, kinds: Mapping[str, str], rows: Mapping[str, Tensor] | None
) -> tuple[dict[str, Any], Tree]:
    """Tables as fields of a head and tensors.

    kinds: name -> what its rows go by. rows: kind -> the rows (R,) that are sent, none for a kind
    that has not changed; without it all tables are sent whole.
    """
    found: Tree = {}
    if rows is None:
        found = {f"table {name}": value for name, value in tables.items()}
    else:
        found = {f"rows {kind}": ids.int() for kind, ids in rows.items()}
        for name, value in tables.items():
            if kinds[name] in rows:
                found[f"table {name}"] = value.index_select(0, rows[kinds[name]])
    return {"tables": {name: kinds[name] for name in tables}, "whole": rows is None}, found


def tables_from(message: Message, before: Tree) -> Tree:
    """The tables that a message brings whole, or that its rows make of those `before`."""
    found: Tree = {}
    for name, kind in message.get("tables", dict).items():
        if type(kind) is not str:
            raise MessageError(f"its table {name!r} has rows of no kind")
        if message.get("whole", bool):
            value = message.tensors.get(f"table {name}")
            if value is None or value.dtype != torch.float32 or not value.dim():
                raise MessageError(f"its table {name!r} is missing, or not of float32")
            found[name] = value
            continue
        if name not in before:
            raise MessageError(f"it sends rows of {name!r}, which was never whole")
        if f"rows {kind}" not in message.tensors:
            found[name] = before[name]
            continue
        ids = message.tensor(f"rows {kind}", torch.int32, -1).long()
        values = message.tensor(f"table {name}", torch.float32, len(ids), *before[name].shape[1:])
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(before[name]):
            raise MessageError(f"it sends a row of {name!r} that does not exist")
        found[name] = before[name].index_copy(0, ids, values)
    return found


# Rows of clients, on the way to the coordinator


def put_rows(deltas: Mapping[str, Rows], clients: int) -> tuple[dict[str, int], Tree]:
    """What clients send: name -> where its row numbers are, and the tensors."""
    places, found, known = dict[str, int](), Tree(), list[Rows]()
    for name, rows in deltas.items():
        same = (k for k, other in enumerate(known) if _at_one_place(rows, other))
        places[name] = place = next(same, len(known))
        if place == len(known):
            known.append(rows)
            found[f"ids {place}"] = rows.ids.int()
            found[f"counts {place}"] = torch.bincount(rows.client, minlength=clients).int()
        counts = found[f"counts {place}"].long()
        found |= {f"{what} {name}": t for what, t in _values(rows.values, counts).items()}
    return places, found


def _at_one_place(rows: Rows, other: Rows) -> bool:
    return torch.equal(rows.ids, other.ids) and torch.equal(rows.client, other.client)


def rows_from(message: Message, clients: int) -> dict[str, Rows]:
    """By name the rows of `clients`; raises `MessageError` for what cannot be rows at all."""
    found, known = dict[str, Rows](), dict[int, tuple[Tensor, Tensor]]()
    for name, place in message.get("rows", dict).items():
        if type(place) is not int:
            raise MessageError(f"its rows of {name!r} have no numbers")
        counts = message.tensor(f"counts {place}", torch.int32, clients).long()
        ids = message.tensor(f"ids {place}", torch.int32, -1)
        if bool((counts < 0).any()) or int(counts.sum()) != len(ids):
            raise MessageError(f"its rows of {name!r} are not as many as their clients have")
        if place not in known:
            known[place] = ids.long(), torch.arange(clients).repeat_interleave(counts)
        found[name] = Rows(_values_from(message, name, counts), *known[place])
    return found


def _values(values: Tensor, counts: Tensor) -> Tree:
    """Values (R, ...) as they are, or by place among the few that a client's table holds."""
    wide = values[:1].numel()
    few = [part.unique() for part in values.split(counts.tolist())]
    most = max(map(len, few), default=0)
    bits = 4 if most <= NIBBLE else 8
    shorter = sum(map(len, few)) * 4 + len(values) * wide * bits // 8 < len(values) * wide * 2
    if most > BYTE or not shorter or not bool(values.isfinite().all()):
        return {"values": values}
    parts = zip(values.split(counts.tolist()), few, strict=True)
    places = torch.cat([torch.searchsorted(own, part.flatten()) for part, own in parts])
    flat = places.to(torch.uint8)
    if bits == 4:
        flat = torch.nn.functional.pad(flat, (0, len(flat) % 2))
        flat = flat[::2] | flat[1::2] << 4
    lengths = torch.tensor([len(own) for own in few], dtype=torch.int32)
    shape = torch.tensor(values.shape, dtype=torch.int32)
    return {"shape": shape, "few": torch.cat(few), "lengths": lengths, f"places{bits}": flat}


def _values_from(message: Message, name: str, counts: Tensor) -> Tensor:
    """The values (R, ...) of a name, of which each client has so many rows."""
    rows = int(counts.sum())
    if f"values {name}" in message.tensors:
        found = message.tensors[f"values {name}"]
        if found.dtype != torch.float32 or found.dim() < 1 or len(found) != rows:
            raise MessageError(f"its {name!r} holds {found.dtype} {tuple(found.shape)}")
        return found
    shape = message.tensor(f"shape {name}", torch.int32, -1).tolist()
    wide = math.prod(shape[1:])
    if not shape or shape[0] != rows or min(shape) < 0 or len(shape) > 8 or wide > WIDEST:
        raise MessageError(f"its {name!r} has the shape {shape}")
    bits = 4 if f"places4 {name}" in message.tensors else 8
    flat = message.tensor(f"places{bits} {name}", torch.uint8, -(-rows * wide * bits // 8))
    few = message.tensor(f"few {name}", torch.float32, -1)
    lengths = message.tensor(f"lengths {name}", torch.int32, len(counts)).long()
    if bool((lengths < 0).any()) or int(lengths.sum()) != len(few):
        raise MessageError(f"its {name!r} has {len(few)} numbers for other places")
    if bits == 4:
        flat = torch.stack([flat & 15, flat >> 4], 1).flatten()[: rows * wide]
    owner = torch.arange(len(counts)).repeat_interleave(counts * wide)
    if bool((flat.long() >= lengths[owner]).any()):
        raise MessageError(f"its {name!r} names a number that it does not have")
    starts = lengths.cumsum(0) - lengths
    return cast(Tensor, few[starts[owner] + flat.long()].view(shape))
