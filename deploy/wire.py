"""What an engine's processes say to the coordinator and to nodes, over Unix sockets.

    each frame: number, 8 bytes | length, 8 bytes | bytes

is the frame of `fedlab.nodes.lines.sockets`, said again because an engine's environment has neither
fedlab nor torch. Nothing is ever unpickled; this file needs the standard library alone.

The coordinator connects to a socket of the engine's server and sends one order in frame 0, as JSON.
`{"op": "nodes"}` is answered by one frame, a JSON object of names and why each is out of reach.
`{"op": "ask", "to": [...], "seconds": s}` is followed by a question for each name, numbered from 0;
each is answered, as answers come, by two frames of its number: why there is no answer, or nothing,
and then the answer. A node connects to a socket of its site's, where it says
`{"name": ..., "token": ...}`, is told `welcome`, and answers questions one after the other.
"""

import json
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HEAD = struct.Struct(">QQ")
LONGEST = 1 << 28  # bytes of a frame
GREETING = 10.0  # seconds in which a node comes after a start, and in which it says its name
LATE = "it did not answer in time"

Answer = tuple[str, bytes]  # why there is none, or "", and the answer


def send(line: socket.socket, number: int, text: bytes) -> None:
    """Send a frame; raises OSError where the other end is gone."""
    line.sendall(HEAD.pack(number, len(text)))
    line.sendall(text)


def receive(line: socket.socket) -> tuple[int, bytes]:
    """Return the next frame; raises OSError where the other end is gone, or sends what is none."""
    number, length = HEAD.unpack(_exactly(line, HEAD.size))
    if length > LONGEST:
        raise ConnectionError(f"a frame of {length} bytes, more than {LONGEST}")
    return number, _exactly(line, length)


def _exactly(line: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = line.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the other end is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def listen(path: str, welcome: Callable[[socket.socket], None]) -> None:
    """Listen at a Unix socket in a thread; each connection is welcomed in one of its own."""
    Path(path).unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    Path(path).chmod(0o600)
    door.listen(16)

    def wait() -> None:
        while True:
            line, _ = door.accept()
            threading.Thread(target=welcome, args=(line,), daemon=True).start()

    threading.Thread(target=wait, daemon=True).start()


def gone(line: socket.socket) -> bool:
    """Whether the other end of a line hung up, where it has nothing to say."""
    return bool(select.select([line], [], [], 0)[0])


class Seat:
    """A site's socket, where its node connects, and through which it is asked."""

    def __init__(self, path: str) -> None:
        """Listen at `path`."""
        self.path, self.number = path, 0
        self.line: socket.socket | None = None
        self.token, self.lock = "", threading.Lock()
        self.began, self.came = time.monotonic(), threading.Event()
        listen(path, self._welcome)

    def _welcome(self, line: socket.socket) -> None:
        try:
            line.settimeout(GREETING)
            token = str(json.loads(receive(line)[1])["token"])
            if self.line and token != self.token and not gone(self.line):
                send(line, 0, b"twice")
                line.close()
                return
            send(line, 0, b"welcome")
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            line.close()
            return
        self.line, self.token = line, token
        self.came.set()

    def ask(self, question: bytes, seconds: float) -> Answer:
        """Ask the node, and return its answer, or why there is none."""
        until = time.monotonic() + seconds
        self.came.wait(max(0.0, self.began + GREETING - time.monotonic()))
        if not self.lock.acquire(timeout=max(0.0, seconds)):
            return LATE, b""
        try:
            line = self.line
            if line is None or gone(line):
                return f"no node is connected to {self.path}", b""
            try:
                self.number += 1
                line.settimeout(max(0.01, until - time.monotonic()))
                send(line, self.number, question)
                while True:
                    line.settimeout(max(0.01, until - time.monotonic()))
                    number, answer = receive(line)
                    if number == self.number:
                        return "", answer
            except OSError as problem:
                line.close()  # what it says late is not for the next question; it comes again
                if self.line is line:  # and may be back by now
                    self.line = None
                return LATE if isinstance(problem, TimeoutError) else f"its node: {problem}", b""
        finally:
            self.lock.release()


def serve(
    line: socket.socket,
    nodes: Callable[[], Mapping[str, str]],
    ask: Callable[[str, bytes, float, Callable[[], bool]], Answer],
) -> None:
    """Do what the coordinator orders on a line.

    Args:
        line: Its connection.
        nodes: Returns the names of all sites, and why each is out of reach.
        ask: From a name, a question, the seconds there are, and whether the coordinator hung up, to
            an answer.

    """
    with line:
        try:
            order = json.loads(receive(line)[1])
            if order["op"] == "nodes":
                send(line, 0, json.dumps(nodes()).encode())
            elif order["op"] == "ask":
                _ask(line, {str(n): receive(line)[1] for n in order["to"]}, order["seconds"], ask)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as problem:
            print(f"an order of the coordinator ended: {problem!r}", flush=True)


def _ask(
    line: socket.socket, questions: Mapping[str, bytes], seconds: float, ask: Callable
) -> None:
    left, answers = threading.Event(), queue.Queue()

    def one(number: int, name: str, question: bytes) -> None:
        answers.put((number, *ask(name, question, seconds, left.is_set)))

    for number, (name, question) in enumerate(questions.items()):
        threading.Thread(target=one, args=(number, name, question), daemon=True).start()
    for _ in questions:
        while answers.empty():
            if gone(line):
                left.set()
                return
            time.sleep(0.01)
        number, why, answer = answers.get()
        send(line, number, why.encode())
        send(line, number, answer)
