"""What a node keeps of its clients in a run, on its disk: private rows, and what parts remember.

    FOLDER/00000007/       what its clients had after they trained in round 7, a checkpoint
    FOLDER/counted.json    which of these counted, and in which round the node was told so

Its owner alone may read them.

What a client learned counts once the coordinator says so: only then is it what the client starts
from the next time. Until then it waits, so a round that is asked again, since its answer was lost
or the coordinator has gone back to a checkpoint, begins where it began before and trains nothing
twice. The question of round r first takes back whatever the node was told in round r or later.

A client's part of what a part remembers is all that lies under the client's number there: in
{"control": {"w": {7: ..., 9: ...}}} each of 7 and 9 has its own.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from fedlab.core import ParameterError, Round, Settings, load_round, save_round
from fedlab.core.checkpoints import bring_to_disk, checkpoints_in, numbered

STEPS = 50  # rounds that a run may go back
COUNTED = "counted.json"
Kept = dict[str, Any]  # of a client: {"rows": {name: (ids, values)}, "memory": {part: ...}}


class BehindError(ValueError):
    """A question does not fit what the node has; the text says how."""


class Keeping:
    """The clients of a node in one run. folder: made when something is written."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        """Read what is there; whatever was not written to its end is removed."""
        self.folder, self.steps = folder, steps
        self.trained: dict[int, dict[int, Kept]] = {}  # round -> client -> what it had after it
        # client -> (round that counted, round in which it was told so), oldest first
        self.counted: dict[int, list[tuple[int, int]]] = {}
        self.floor = 0  # it cannot go back to this round or before
        for left in folder.glob(".*"):
            self._mend(left)
        for place in checkpoints_in(folder):
            self.trained[int(place.name)] = dict(load_round(place).state["clients"])
        if (folder / COUNTED).is_file():
            found = json.loads((folder / COUNTED).read_text())
            self.floor = found["floor"]
            self.counted = {
                int(client): [(first, then) for first, then in pairs]
                for client, pairs in found["clients"].items()
            }

    def _mend(self, left: Path) -> None:
        """Put back a checkpoint whose name was taken away, and remove what was half written."""
        _, name, _, end = (left.name.split(".") + [""] * 3)[:4]
        if end == "old" and not (self.folder / name).exists():
            left.rename(self.folder / name)
        elif left.is_dir():
            shutil.rmtree(left)

    def settle(self, number: int, told: Mapping[int, int]) -> None:
        """Take up what counted, before round `number`. told: client -> the round that counted.

        Raises `BehindError` for a round that lies too far back, and for an update that the node
        does not have.
        """
        if number <= self.floor:
            raise BehindError(
                f"asked for round {number}, but it kept nothing from before round {self.floor + 1};"
                " go on from a newer checkpoint"
            )
        counted = {
            client: kept
            for client, pairs in self.counted.items()
            if (kept := [pair for pair in pairs if pair[1] < number])
        }
        for client, first in told.items():
            known = counted.setdefault(client, [])
            if any(first == other for other, _ in known):
                continue
            if client not in self.trained.get(first, {}):
                raise BehindError(f"it has no update of client {client} of round {first}")
            known.append((first, number))
        if counted != self.counted:
            self.counted = counted
            self._prune(number)
            self._write_counted()

    def keep(self, number: int, clients: Mapping[int, Kept]) -> None:
        """Write what clients had after they trained in round `number`, before anybody is told."""
        for later in [each for each in self.trained if each > number]:
            self._forget(later)
        self.trained[number] = dict(clients)
        done = Round(number, Settings(), {}, state={"clients": dict(clients)})
        save_round(done, numbered(owned(self.folder), number), private=True)

    def of(self, client: int) -> Kept:
        """What a client starts from; empty where nothing of it has counted."""
        pairs = self.counted.get(client)
        return self.trained[pairs[-1][0]][client] if pairs else {}

    def _prune(self, number: int) -> None:
        """Forget what was superseded more than `steps` rounds ago."""
        for pairs in self.counted.values():
            while len(pairs) > 1 and pairs[1][1] < number - self.steps:
                self.floor = max(self.floor, pairs[1][1])
                del pairs[0]
        used = {first for pairs in self.counted.values() for first, _ in pairs}
        for first in [n for n in self.trained if n < number - self.steps and n not in used]:
            self._forget(first)

    def _forget(self, number: int) -> None:
        del self.trained[number]
        shutil.rmtree(numbered(self.folder, number), ignore_errors=True)

    def _write_counted(self) -> None:
        write_whole(
            owned(self.folder) / COUNTED,
            json.dumps({"floor": self.floor, "clients": self.counted}).encode(),
        )


def owned(folder: Path) -> Path:
    """The folder, made where it is missing, and open to its owner alone, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_whole(path: Path, text: bytes) -> None:
    """Write a file for its owner alone, whatever the umask.

    It is there as a whole or as it was before, whenever the process is killed.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # its mode would stay
    fresh.touch(0o600)
    fresh.chmod(0o600)
    with fresh.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    bring_to_disk(path.parent)


def cut(value: Any, client: int) -> Any:
    """A client's own part of what a part remembers; what is nobody's own is left out.

    >>> cut({"clip": 2.0, "left": {7: "a", 9: "b"}}, 7)
    {'left': {7: 'a'}}
    """
    if isinstance(value, Mapping):
        if any(isinstance(key, int) for key in value):
            return {client: value[client]} if client in value else {}
        parts = {name: cut(each, client) for name, each in value.items()}
        return {name: part for name, part in parts.items() if part is not None}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: cut(getattr(value, each.name), client) for each in fields(value)}
        return replace(value, **parts)
    return None


def joined(values: Iterable[Any]) -> Any:
    """What a part remembers of several clients, from what it does of each.

    >>> joined([{"left": {7: "a"}}, {"left": {9: "b"}}])
    {'left': {7: 'a', 9: 'b'}}
    """
    return reduce(_both, map(_copied, values), {})


def _copied(value: Any) -> Any:
    """The same in dicts of its own: parts set entries in what they are handed."""
    return {n: _copied(each) for n, each in value.items()} if isinstance(value, Mapping) else value


def _both(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        same = {n: _both(one[n], other[n]) if n in one else other[n] for n in other}
        return {**one, **same}
    if is_dataclass(one) and type(one) is type(other) and not isinstance(one, type):
        names = [each.name for each in fields(one)]
        parts = {name: _both(getattr(one, name), getattr(other, name)) for name in names}
        return replace(one, **parts)
    return other


def readable(folder: Path) -> Keeping:
    """What is in a folder; raises `BehindError` where its files are damaged."""
    try:
        return Keeping(folder)
    except (ParameterError, ValueError, KeyError, TypeError) as error:
        fix = "put it back from a copy, or begin another run"
        raise BehindError(f"{folder} cannot be read: {error}; {fix}") from error
