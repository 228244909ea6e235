"""Secure aggregation over nodes: the coordinator learns the sum, and no node's update.

    keys -> shares -> training and the masked vector -> who arrived -> shares that unmask

Each node of the roster is a member (`fedlab.privacy.secure`): it trains its clients, adds up what
they send in fixed point, as `SecureSum` does in one process, and masks that. Those without a client
in the cohort mask zeros, so that the members are always the same. A node that drops out, at
whatever step, is one that has dropped out of the protocol: where more than two thirds are left the
sum opens, unless it is over the clients of one node alone, whose own update it would be.

Members know each other's identity keys from the first time that they hear of them: a node keeps
them, and refuses others later. So the coordinator is trusted once, when a federation is set up.
Beside its masked vector a node tells the mean loss of its clients.

Letters: n nodes, C clients, D numbers of a vector.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", figure 4.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlab.aggregation import NoDeltaError
from fedlab.core import DataError, RoundContext, Rows, Tree, Update
from fedlab.nodes.keeping import owned, write_whole
from fedlab.nodes.messages import Message, MessageError, pack
from fedlab.privacy.secure import (
    Advert,
    FixedPoint,
    Identity,
    Member,
    SecureSumError,
    Server,
    Terms,
    Words,
)
from fedlab.privacy.secure.stages import (
    ALONE,
    check_company,
    flat_rows,
    numbers,
    threshold,
    unflattened,
)

STEPS = ("keys", "shares", "masked", "arrived", "unmask")
OWN, OTHERS = "identity", "others.json"  # files of a node
KEY = 32  # bytes of an identity, and of the public key to it
BACK = "put it back from a copy"
LETTER = 1024  # bytes that a letter, key or share takes at most


# On the node


@dataclass
class Membership:
    """A node in secure sums. folder: where it keeps its identity and those of others."""

    folder: Path | None
    identity: Identity = field(init=False)
    known: dict[str, str] = field(init=False)
    members: dict[bytes, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the identity, or draw one; raises `DataError` for files that are damaged."""
        self.known = self._others()
        self.identity = Identity(self._key())
        self._write(OWN, self.identity.private)

    def _key(self) -> bytes | None:
        key = self._read(OWN)
        if key is not None and len(key) != KEY:
            raise DataError(
                f"{self._path(OWN)}: the node's identity is damaged ({len(key)} bytes, not {KEY}); "
                f"{BACK}. Without one remove the file: the node draws another identity, which each "
                f"node that knows it refuses until its line is taken out of that node's {OTHERS}"
            )
        return key

    def _others(self) -> dict[str, str]:
        text = self._read(OTHERS)
        try:
            found = json.loads(b"{}" if text is None else text)
            if not isinstance(found, dict) or any(len(_bytes(k)) != KEY for k in found.values()):
                raise ValueError(f"it must hold names, and a key of {KEY} bytes for each")
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self._path(OTHERS)}: the identities of other nodes are damaged ({error}); "
                f"{BACK}. Without one remove the file: the node then believes the coordinator once "
                "more whose identity is whose"
            ) from error
        return found

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / name

    def _read(self, name: str) -> bytes | None:
        there = self.folder and self._path(name).is_file()
        return self._path(name).read_bytes() if there else None

    def _write(self, name: str, text: bytes) -> None:
        if self.folder:
            write_whole(owned(self.folder) / name, text)

    def keys(self, name: str, asked: Message) -> dict[str, Any]:
        """Enter a sum: its terms, and the node's public keys for it."""
        directory = asked.get("directory", dict)
        if self.known.get(name, directory.get(name)) != directory.get(name):
            raise MessageError(f"its own identity is not what it was; {BACK}: {self._path(OWN)}")
        for other, key in directory.items():
            if self.known.setdefault(other, key) != key:
                raise MessageError(f"the identity of node {other} is not the one known here")
        if name not in directory:
            raise MessageError("it is not among the members")
        self._write(OTHERS, json.dumps(self.known).encode())
        order = sorted(directory)
        people = {k: bytes.fromhex(directory[other]) for k, other in enumerate(order, 1)}
        run = bytes.fromhex(asked.get("sum", str))
        terms = Terms(run, asked.get("threshold", int), asked.get("length", int), people)
        member = Member(order.index(name) + 1, self.identity, terms)
        self.members = {run: member}  # one sum at a time
        own = member.advertise_keys()
        return {"advert": [part.hex() for part in (own.mask, own.encryption, own.signature)]}

    def of(self, asked: Message) -> Member:
        """The member in the sum that is asked about."""
        found = self.members.get(bytes.fromhex(asked.get("sum", str)))
        if found is None:
            raise MessageError("it is in no such sum; it may have been started again")
        return found

    def step(self, name: str, asked: Message) -> dict[str, Any]:
        """The answer to each step but that of the vector."""
        what = asked.get("step", str)
        if what == "keys":
            return self.keys(name, asked)
        member = self.of(asked)
        if what == "shares":
            adverts = {k: Advert(*texts) for k, texts in _texts(asked.get("adverts", dict)).items()}
            return {"letters": {to: text.hex() for to, text in member.share_keys(adverts).items()}}
        if what == "arrived":
            return {"signature": member.consistency_check(asked.numbers("arrived")).hex()}
        if what == "unmask":
            signed = {k: text for k, (text,) in _texts(asked.get("signatures", dict)).items()}
            return {"opened": {of: f"{p:x}" for of, p in member.unmasking(signed).items()}}
        raise MessageError(f"a secure sum has no step {what!r}")

    def masked(self, asked: Message, update: Update | None, context: RoundContext) -> Words:
        """The sum of what this node's clients send, under masks. update: None for no clients."""
        letters = {k: text for k, (text,) in _texts(asked.get("letters", dict)).items()}
        fixed = fixed_point(context, asked.get("clients in all", int))
        total = np.zeros(numbers(context), np.uint32)
        for row in flat_rows([] if update is None else [update], context).values():
            total += fixed.encode(row)
        return self.of(asked).masked_input(letters, total)


def fixed_point(context: RoundContext, clients: int) -> FixedPoint:
    """How numbers become words: as `SecureSum` has it, for a cohort of so many clients."""
    return FixedPoint(context.notes["clipped"] * (1 + 2e-5), max(1000, clients))


def _texts(said: Mapping[str, Any]) -> dict[int, list[bytes]]:
    """Number -> bytes, of which JSON has the hexadecimal digits, one text or several."""
    found = {}
    for number, texts in said.items():
        several = texts if isinstance(texts, list) else [texts]
        if not number.isdigit() or not all(isinstance(text, str) for text in several):
            raise MessageError("its keys, letters or signatures are not texts by number")
        found[int(number)] = [_bytes(text) for text in several]
    return found


def _bytes(text: str) -> bytes:
    if len(text) > 2 * LETTER:
        raise MessageError(f"a text of {len(text)} digits")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MessageError("a text that is not of hexadecimal digits") from None


# On the coordinator


@dataclass
class Sum:
    """One secure sum as the coordinator leads it. keys: node -> its public identity key.

    ask(step, what each node is told, how its answer is read) -> what they said; `lost` gathers why
    others did not.
    """

    keys: Mapping[str, str]
    ask: Callable[[str, Mapping[str, Mapping[str, Any]], Callable[[Message], Any]], dict[str, Any]]

    def total(
        self, context: RoundContext, clients: Mapping[str, int]
    ) -> tuple[Tree, dict[str, float]]:
        """The sum, and the nodes that are in it with the mean loss of their clients.

        clients: how many of the cohort each node has. Raises `NoDeltaError` where too few are left,
        or those of one node alone.
        """
        check_company(context)
        _check_two(clients, clients)
        names = sorted(self.keys)
        place = {name: k for k, name in enumerate(names, 1)}
        directory = {k: bytes.fromhex(self.keys[name]) for name, k in place.items()}
        needed = threshold(context.settings.answering, len(names))
        terms = Terms(os.urandom(16), needed, numbers(context), directory)
        try:
            return self._led(Server(terms), terms, place, context, clients)
        except SecureSumError as error:
            raise NoDeltaError(f"the secure sum did not open: {error}") from error

    def _led(
        self,
        server: Server,
        terms: Terms,
        place: Mapping[str, int],
        context: RoundContext,
        clients: Mapping[str, int],
    ) -> tuple[Tree, dict[str, float]]:
        every = sum(clients.values())
        about = {"sum": terms.run.hex()}
        first = about | {
            "threshold": terms.threshold,
            "length": terms.length,
            "directory": dict(self.keys),
        }
        said = self.ask("keys", dict.fromkeys(place, first), _advert)
        adverts = server.keys({place[name]: advert for name, advert in said.items()})
        told = {
            k: [t.hex() for t in (a.mask, a.encryption, a.signature)] for k, a in adverts.items()
        }
        said = self.ask("shares", dict.fromkeys(said, about | {"adverts": told}), _letters)
        letters = server.letters({place[name]: sent for name, sent in said.items()})
        to = {
            name: about
            | {"letters": {k: text.hex() for k, text in letters[place[name]].items()}}
            | {"clients in all": every}
            for name in said
        }
        masked = self.ask("masked", to, lambda m: _vector(m, terms.length))
        arrived = server.inputs({place[name]: words for name, (words, _) in masked.items()})
        _check_two(masked, clients)
        said = self.ask("arrived", dict.fromkeys(masked, about | {"arrived": arrived}), _signature)
        signed = server.signatures({place[name]: text for name, text in said.items()})
        told = {k: [text.hex()] for k, text in signed.items()}
        said = self.ask("unmask", dict.fromkeys(said, about | {"signatures": told}), _opened)
        words = server.total({place[name]: shares for name, shares in said.items()})
        found = unflattened(fixed_point(context, every).decode(words), context)
        return found, {name: loss for name, (_, loss) in masked.items()}


def _check_two(there: Iterable[str], clients: Mapping[str, int]) -> None:
    """Raise `NoDeltaError` where the sum would be over clients of one node: its own update."""
    own = [name for name in there if clients.get(name)]
    if len(own) == 1:
        raise NoDeltaError(f"node {own[0]} {ALONE}")


def _advert(said: Message) -> Advert:
    texts = said.get("advert", list)
    if len(texts) != 3 or not all(isinstance(text, str) for text in texts):
        raise MessageError("its keys are not three texts")
    return Advert(*map(_bytes, texts))


def _letters(said: Message) -> dict[int, bytes]:
    return {k: text for k, (text,) in _texts(said.get("letters", dict)).items()}


def _vector(said: Message, length: int) -> tuple[Words, float]:
    loss = said.get("loss", float)
    if not 0 <= abs(loss) < 1e30:
        raise MessageError("its loss is no number")
    return said.tensor("masked", torch.int32, length).numpy().view(np.uint32), loss


def _signature(said: Message) -> bytes:
    return _bytes(said.get("signature", str))


def _opened(said: Message) -> dict[int, int]:
    opened = said.get("opened", dict)
    try:
        return {int(of): int(share[: 2 * LETTER], 16) for of, share in opened.items()}
    except (ValueError, TypeError):
        raise MessageError("its shares are not numbers") from None


def envelopes(
    parts: Mapping[str, torch.Tensor], losses: Mapping[str, float], context: RoundContext
) -> Iterable[Update]:
    """What the gate sees of clients whose numbers are in the sum alone: that they are there."""
    for name, cohort in parts.items():
        count = len(cohort)
        everybody, none = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        deltas = {
            n: Rows(like.new_zeros(count, *like.shape[1:]), none, everybody)
            for n, like in context.server.items()
        }
        if name in losses:
            loss = torch.full((count,), losses[name])
            yield Update(deltas, torch.ones(count), loss, cohort, torch.ones(count))


def packed(told: Mapping[str, Any], step: str) -> bytes:
    """The question of a step that needs no tables."""
    return pack({"ask": "secure", "step": step, **told})
