"""The log of a run: lines that are only added, each chained to all before it.

    {"chain": "5f0c...", "fedlab": 2, "run": "20260131-120000-000000-1f2e", "settings": {...}, ...}
    {"chain": "a3b1...", "round": 1, "loss": 0.69, "clients": 64, ...}

A line's chain is the SHA-256 of the chain before it and of the line without its chain. So a line
that was edited, moved, put in or taken out breaks the chain there, and its number is told. That
lines are missing at the end no chain can tell: the chain of the last line stands in a file beside
the log, `head`. A line that a kill cut short is dropped. None of this stands against somebody who
works out all chains anew; it is against disks, tools and hands that slip.

Source: Haber, Stornetta 1991, "How to time-stamp a digital document", section 5.2 (linking).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.core import ParameterError, require

LOG, HEAD = "log.jsonl", "head"
START = "0" * 64  # the chain in front of the first line
OPENING, CLOSING = '{"chain": "', '", '
# a link that somebody put in a file's place is not followed
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
AS_IT_IS = getattr(os, "O_BINARY", 0)  # on Windows no carriage return is put before a line's end


def link(chain: str, body: str) -> str:
    """The chain of a line; chain: that of the line before; body: the line without its chain.

    >>> link(START, "{}")[:8]
    '5649d09e'
    """
    return hashlib.sha256(f"{chain}\n{body}".encode()).hexdigest()


@dataclass(frozen=True)
class Read:
    """What a log holds.

    lines: the lines, without their chains. chains: the chain of each. size: bytes up to the end of
    the last whole line. cut: why lines are missing at its end, or ''.
    """

    lines: list[dict[str, Any]]
    chains: list[str]
    size: int
    cut: str


def read_log(folder: Path) -> Read:
    """Read the log in a run's folder; `ParameterError` names the line that is wrong."""
    path, lines, chains = folder / LOG, list[dict[str, Any]](), [START]
    *texts, rest = _bytes(path).split(b"\n")
    for number, text in enumerate(texts, 1):
        body = _body(path, number, text, chains[-1])
        chains.append(link(chains[-1], body))
        lines.append(_parsed(path, number, body))
    require(
        bool(lines), str(path), "no whole line", "nothing was kept of this run; remove its folder"
    )
    cut = _cut(_head(folder), chains)
    if rest and not cut:
        cut = f"{path}:{len(texts) + 1} was cut short, and is dropped"
    return Read(lines, chains[1:], sum(len(text) + 1 for text in texts), cut)


def _bytes(path: Path) -> bytes:
    require(
        not path.is_symlink() and path.is_file(),
        str(path),
        "no such file",
        "a run's folder has a log of its own; remove this folder",
    )
    return path.read_bytes()


def _body(path: Path, number: int, text: bytes, before: str) -> str:
    """A line without its chain, which is right."""
    line, start = text.decode("utf-8", "replace"), len(OPENING)
    stated, body = line[start : start + 64], "{" + line[start + 64 + len(CLOSING) :]
    whole = OPENING + stated + CLOSING + body[1:]
    require(
        whole == line and link(before, body) == stated,
        f"{path}:{number}",
        line[start + 64 + len(CLOSING) :][:40],
        "this line, or the one before it, is not as it was written: lines were edited, moved, put "
        "in or taken out; bring the file back from a copy, or remove the run's folder",
    )
    return body


def _parsed(path: Path, number: int, body: str) -> dict[str, Any]:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            f"{path}:{number}: not a line of a run ({error}); remove the run's folder"
        ) from error


def _head(folder: Path) -> str:
    path = folder / HEAD
    if path.is_symlink() or not path.is_file():
        return ""
    return path.read_bytes()[:65].decode("ascii", "replace").removesuffix("\n")


def _cut(head: str, chains: list[str]) -> str:
    """Why lines are missing at the end, or ''; a kill may leave one line that head has not yet."""
    if head in chains[-2:]:
        return ""
    if head in chains:
        return f"{HEAD} is of line {chains.index(head)}; what came after is kept"
    return f"lines are missing at the end of {LOG}, or {HEAD} was changed; what is there is kept"


class Log:
    """A log that is written."""

    def __init__(self, folder: Path, chain: str, size: int) -> None:
        """chain: of its last line. size: its bytes; what lies behind them is dropped."""
        flags = os.O_RDWR | os.O_CREAT | NO_LINKS | AS_IT_IS
        self.chain, self._size = chain, size
        self._head = os.open(folder / HEAD, flags, 0o666)
        self._log = os.open(folder / LOG, flags, 0o666)
        os.ftruncate(self._log, size)
        if os.read(self._head, 64).decode("ascii", "replace") != chain:
            _whole_at(self._head, f"{chain}\n".encode(), 0)

    def add(self, line: dict[str, Any]) -> str:
        """Add a line; return its chain. Raises OSError, and what was there stays whole."""
        body = json.dumps(line, allow_nan=False)
        chain = link(self.chain, body)
        text = f"{OPENING}{chain}{CLOSING}{body[1:]}\n".encode()
        try:
            _whole_at(self._log, text, self._size)
        except OSError:
            os.ftruncate(self._log, self._size)
            raise
        _whole_at(self._head, f"{chain}\n".encode(), 0)
        self.chain, self._size = chain, self._size + len(text)
        return chain

    def to_disk(self) -> None:
        """Bring what was added to the disk."""
        os.fsync(self._log)
        os.fsync(self._head)

    def close(self) -> None:
        """Close the files."""
        os.close(self._log)
        os.close(self._head)


def _whole_at(file: int, content: bytes, place: int) -> None:
    """Write all of it; a full disk takes some and then fails. Windows has no pwrite."""
    os.lseek(file, place, os.SEEK_SET)
    while content:
        content = content[os.write(file, content) :]
