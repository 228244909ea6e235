"""Nodes as processes of their own, over a Unix socket or a TCP port of this machine.

    each frame: number of the question, 8 bytes | length, 8 bytes | bytes

The coordinator listens, and nodes connect to it, again and again until it is there. A node opens
with {"name": ..., "token": ...}; the token tells a node that comes again from another one of its
name. Nothing here listens off this machine: real networks are for an engine that has keys, behind
the same two functions, and for a class, whose entrance is `fedlab.nodes.classroom`.

Letters: none.
"""

import json
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from fedlab.core import ParameterError, require
from fedlab.core.settings import tidy
from fedlab.nodes.lines.transport import Lost

HEAD = struct.Struct(">QQ")
LONGEST = 1 << 31  # bytes of a frame
GREETING = 10.0  # seconds that a new connection has to say its name
LOCAL = ("127.0.0.1", "localhost")
GREETED = 1 << 14  # bytes of a greeting at most
WELCOMED = 60.0  # seconds that a node waits to be let in, and in which it reads that it is
FIRST = 600.0  # seconds for which a node looks for its first coordinator
PAUSE = 0.1  # seconds to wait where no connection can be taken up
WELCOME, NO = b"welcome", b"no: "  # how the answer to a greeting begins
TWICE = "another node has this name; give each one of its own"


def address(text: str) -> tuple[str, int] | str:
    """(host, port) of "127.0.0.1:PORT", or the path of a Unix socket; others raise.

    >>> address("127.0.0.1:7000"), address("/tmp/line")
    (('127.0.0.1', 7000), '/tmp/line')
    """
    host, colon, port = text.rpartition(":")
    if not colon or "/" in text:
        fix = "give a path of at most 100 bytes, or 127.0.0.1:PORT"
        require(
            0 < len(os.fsencode(text)) <= 100 and hasattr(socket, "AF_UNIX"), "socket", text, fix
        )
        return text
    fix = "nodes and coordinator meet on this machine, 127.0.0.1:PORT; for others take an engine"
    require(host in LOCAL and port.isdigit() and int(port) < 2**16, "socket", text, fix)
    return "127.0.0.1", int(port)


def _made(where: tuple[str, int] | str) -> socket.socket:
    return socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)


class Wire(Protocol):
    """What frames go over: a socket, or what behaves like one."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes; raises OSError where the other end is gone."""
        ...

    def recv(self, count: int, /) -> bytes:
        """At most so many bytes; none where the other end is gone."""
        ...

    def settimeout(self, seconds: float | None, /) -> None:
        """Choose how long a call may take; None for as long as it takes."""
        ...

    def shutdown(self, how: int, /) -> None:
        """End both directions, which wakes whoever waits in another thread."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class UnwelcomeError(ValueError):
    """Somebody is not let in; the text says why."""


def send_frame(line: Wire, number: int, text: bytes) -> None:
    """Send a frame; raises OSError where the other end is gone."""
    line.sendall(HEAD.pack(number, len(text)))
    line.sendall(text)


def receive_frame(
    line: Wire, longest: int = LONGEST, awaited: Callable[[int], bool] = lambda number: True
) -> tuple[int, bytes]:
    """The next frame; raises OSError where the other end is gone, or sends what is none.

    awaited: whether a frame of this number may come; one that may not is not even received.
    """
    number, length = HEAD.unpack(_exactly(line, HEAD.size))
    if length > longest or not awaited(number):
        raise ConnectionError(f"a frame of {length} bytes, number {number}")
    return number, _exactly(line, length)


def _exactly(line: Wire, count: int) -> bytes:
    parts, left = [], count
    while left:
        part = line.recv(min(left, 1 << 20))
        if not part:
            raise ConnectionError("the other end is gone")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@dataclass
class _Connection:
    """A node that is there.

    longest: bytes that an answer has at most; a longer one, or one that nobody asked for, ends the
    connection. waiting: number of a question -> where its answer is put. owed: questions that it
    did not answer in time; until it does nobody waits for it.
    """

    line: Wire
    token: str
    longest: int = LONGEST
    owed: set[int] = field(default_factory=set)
    waiting: dict[int, "queue.Queue[bytes | Lost]"] = field(default_factory=dict)
    sending: threading.Lock = field(default_factory=threading.Lock)
    gone: bool = False

    @property
    def why(self) -> str:
        """Why it cannot be asked; "" where it can."""
        if self.gone:
            return "its connection broke"
        return "it has not answered an earlier question yet" if self.owed else ""

    def listen(self) -> None:
        """Hand on answers until the node is gone."""
        with suppress(OSError, struct.error):
            while True:
                number, text = receive_frame(self.line, self.longest, self._awaited)
                if place := self.waiting.pop(number, None):
                    place.put(text)
                self.owed.discard(number)  # after the line above, see `ask`
        self.gone = True
        self.line.close()
        for number in list(self.waiting):
            if place := self.waiting.pop(number, None):
                place.put(Lost("its connection broke"))

    def _awaited(self, number: int) -> bool:
        return number in self.waiting or number in self.owed

    def ask(self, number: int, question: bytes, seconds: float) -> bytes | Lost:
        """The answer to a question, or why there is none."""
        if self.why:
            return Lost(self.why)
        place: queue.Queue[bytes | Lost] = queue.Queue()
        self.waiting[number] = place
        threading.Thread(target=self._send, args=(number, question), daemon=True).start()
        if self.gone:
            place.put(Lost("its connection broke"))
        try:
            return place.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self.owed.add(number)
            if self.waiting.pop(number, None) is None:
                self.owed.discard(number)  # it has come this very moment
            return Lost(f"it did not answer within {seconds:.3g} s")

    def _send(self, number: int, question: bytes) -> None:
        with self.sending, suppress(OSError):
            send_frame(self.line, number, question)


class Sockets:
    """A transport to nodes that connect to a socket of this machine; close it in the end.

    Raises `ParameterError` for an address off this machine or that is taken.
    """

    welcome = WELCOME  # what a node is told that is let in
    longest = LONGEST  # bytes of an answer
    most = 10**6  # nodes that are let in at a time

    def __init__(self, where: str, *, say: Callable[[str], Any] = lambda line: None) -> None:
        """Listen. where: "127.0.0.1:PORT" (0 for a free one) or the path of a Unix socket.

        say: is told in a line who comes, who goes, and why somebody is not let in.
        """
        self.where, self.say = self._address(where), say
        self.twice: set[str] = set()  # names that two nodes have
        self._known: dict[str, _Connection] = {}
        self._entering = threading.Lock()
        self._number = 0
        self._open = True
        if isinstance(self.where, str):
            _clear(Path(self.where))
        self._door = _made(self.where)
        if not isinstance(self.where, str):
            self._door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._door.bind(self.where)
        except OSError as error:
            self._door.close()
            raise ParameterError(f"socket={where!r}: cannot listen there ({error})") from error
        if isinstance(self.where, str):
            Path(self.where).chmod(0o600)
        else:
            self.where = self._door.getsockname()
        self._door.listen(128)
        self._begin()

    def _begin(self) -> None:
        """Take up connections from now on, now that the address is ours."""
        threading.Thread(target=self._welcome_all, name="fedlab nodes", daemon=True).start()

    def _address(self, text: str) -> tuple[str, int] | str:
        """Where to listen; raises `ParameterError` for where it must not."""
        return address(text)

    def _greeted(self, line: socket.socket) -> tuple[Wire, dict[str, Any]]:
        """What frames go over from now on, and what somebody says of himself.

        Raises OSError or ValueError for who is not let in, also for who takes longer than
        `GREETING` in all: a byte now and then would keep a thread for hours.
        """
        end = threading.Timer(GREETING, _hang_up, (line,))
        end.start()
        try:
            return line, json.loads(receive_frame(line, GREETED)[1])
        finally:
            end.cancel()

    def close(self) -> None:
        """Stop listening, and let go of all nodes."""
        self._open = False
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for each in list(self._known.values()):
            _hang_up(each.line)
        if isinstance(self.where, str):
            Path(self.where).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def nodes(self) -> Mapping[str, str]:
        """Every name that has been there: "" while its connection stands and it owes no answer."""
        return {name: each.why for name, each in list(self._known.items())}

    def ask(self, to: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask all nodes at once, and yield answers as they come."""
        answers: queue.Queue[tuple[str, bytes | Lost]] = queue.Queue()
        for name, question in to.items():
            self._number += 1
            asked = name, self._known.get(name), self._number, question, seconds, answers
            threading.Thread(target=_ask, args=asked, daemon=True).start()
        for _ in to:
            yield answers.get()

    def _welcome_all(self) -> None:
        while self._open:
            try:
                line, _ = self._door.accept()
            except OSError:  # closed, or for the moment there are too many files
                time.sleep(PAUSE)
                continue
            threading.Thread(target=self._welcome, args=(line,), daemon=True).start()

    def _welcome(self, door: socket.socket) -> None:
        """Take up a node that says its name; one that says anything else is let go."""
        line: Wire = door
        try:
            door.settimeout(GREETING)
            line, about = self._greeted(door)
            name, token = about["name"], about["token"]
            if not (isinstance(name, str) and name and tidy(name, 80) and isinstance(token, str)):
                raise UnwelcomeError("it says no name")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            line.close()
            why = error if isinstance(error, UnwelcomeError) else "it does not greet as a node does"
            self.say(f"Somebody was not let in: {why}.")
            return
        found = _Connection(line, token, self.longest)
        with found.sending:  # no question goes before the welcome
            if why := self._refusal(name, found):
                self.say(f"{name} was not let in: {why}.")
                refuse(line, why)
                return
            line.settimeout(WELCOMED)  # who does not read it is not waited for
            with suppress(OSError):
                send_frame(line, 0, self.welcome)
                line.settimeout(None)
        self.say(f"{name} is here.")
        found.listen()
        if self._open and self._known[name] is found:
            self.say(f"{name} has gone.")

    def _refusal(self, name: str, found: _Connection) -> str:
        """Why a node that says this name cannot be let in; "" where it has been, as `found`."""
        with self._entering:
            before = self._known.get(name)
            if before and not before.gone and before.token != found.token:
                self.twice.add(name)
                return TWICE
            others = [each for other, each in self._known.items() if other != name]
            if sum(not each.gone for each in others) >= self.most:
                return f"there is no room: {self.most} are here already, which is the limit"
            self._known[name] = found
            return ""


def _hang_up(line: Wire) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def refuse(line: Wire, why: str) -> None:
    """Tell somebody why not, and let go."""
    with suppress(OSError):
        line.settimeout(GREETING)
        send_frame(line, 0, NO + why.encode())
    _hang_up(line)  # a thread that listens there would not notice that it is closed
    line.close()


def _ask(
    name: str,
    to: _Connection | None,
    number: int,
    question: bytes,
    seconds: float,
    answers: "queue.Queue[tuple[str, bytes | Lost]]",
) -> None:
    lost = Lost("it is not there")
    answers.put((name, lost if to is None else to.ask(number, question, seconds)))


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at, as a killed coordinator leaves it."""
    if not path.exists():
        return
    require(path.is_socket(), "socket", str(path), "a file is there; name another path")
    with _made(str(path)) as line:
        try:
            line.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ParameterError(f"socket={str(path)!r}: another coordinator listens there")


def serve(
    name: str,
    answer: Callable[[bytes], bytes],
    where: str,
    *,
    patience: float | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> None:
    """Be a node: connect, answer, and connect again when the coordinator comes back.

    patience: seconds without a coordinator after which it returns; without it never, once there was
    one. say: is told in a line who is there, and at once where nobody is. Raises `ParameterError`
    where there never was a coordinator within the patience, by default `FIRST`, and where another
    node has this name.
    """
    place, first = address(where), FIRST if patience is None else patience
    fix = "choose seconds from 0, or inf for as long as it takes"
    require(first >= 0, "patience", patience, fix)
    ever, why = False, ""

    def reach(about: dict[str, str]) -> Wire:
        line = _made(place)
        try:
            line.connect(place)
            send_frame(line, 0, json.dumps(about).encode())
        except OSError:
            line.close()
            raise
        return line

    def met(line: Wire, told: bytes) -> None:
        nonlocal ever, why
        ever, why = True, ""
        say("connected")

    def failed(error: OSError) -> None:
        nonlocal why
        if not why:
            say(f"no coordinator is at {where} ({error}); it is looked for again and again")
        why = str(error)

    later = float("inf") if patience is None else patience
    attend(name, answer, reach, patience=later, first=first, met=met, failed=failed)
    if not ever:
        fix = "is the path or port the coordinator's, and was it started?"
        raise ParameterError(
            f"socket={where!r}: no coordinator was there within {first:g} s ({why}); {fix}"
        )
    say(f"no coordinator was at {where} for {later:g} s, so the node ends")


def attend(
    name: str,
    answer: Callable[[bytes], bytes],
    reach: Callable[[dict[str, str]], Wire],
    *,
    patience: float = float("inf"),
    first: float | None = None,
    met: Callable[[Wire, bytes], Any] = lambda line, told: None,
    failed: Callable[[OSError], Any] = lambda error: None,
    stays: Callable[[], bool] = lambda: True,
) -> None:
    """Be a node over whatever connection `reach` opens, as long as it `stays`.

    reach: opens one and greets with {"name": ..., "token": ...}; raises OSError where no
    coordinator is there. patience: seconds without one after which it returns. first: those before
    it has met one, by default as many. met: is handed each connection, and what the coordinator
    said first. failed: is handed why there is no connection, or none any more.
    """
    fix = "give a name of at most 80 characters"
    require(bool(name) and tidy(name, 80), "name", name, fix)
    about, last = {"name": name, "token": secrets.token_hex(8)}, time.monotonic()
    left = patience if first is None else first
    while stays() and (rest := last + left - time.monotonic()) > 0:
        line = None
        try:
            line = reach(about)
            line.settimeout(min(WELCOMED, rest))  # whoever is there may be no coordinator
            _, told = receive_frame(line)
            line.settimeout(None)
            why = told.removeprefix(NO).decode(errors="replace")[:300]
            require(not told.startswith(NO), "name", name, why)
            met(line, told)
            left = patience
            try:
                while stays():
                    number, question = receive_frame(line)
                    send_frame(line, number, answer(question))
            finally:
                last = time.monotonic()
        except OSError as error:
            failed(error)
        finally:
            if line:
                line.close()
        time.sleep(0.1)
