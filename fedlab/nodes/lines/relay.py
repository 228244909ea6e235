"""A transport over an engine of others: it speaks to the engine's server through a Unix socket.

The engine (NVFLARE or Flower, see `deploy/`) runs in an environment of its own and carries bytes
with its own keys and connections; the coordinator stays outside of it, and outlives it. What is
said on the socket stands in `deploy/wire.py`.
"""

import json
import os
import socket as net
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlab.core import require
from fedlab.nodes.lines.sockets import receive_frame, send_frame
from fedlab.nodes.lines.transport import Lost

__all__ = ["Relay"]

LONGEST = 100  # bytes of a Unix socket's path that every system takes


@dataclass(frozen=True)
class Relay:
    """Carries bytes by an engine whose server listens at a Unix socket.

    An engine's server that goes away is waited for, and what was not yet answered is asked again
    once it is back. So a node may see one question twice, and must answer it the same way.

    Args:
        socket: Path of the Unix socket, such as the one that `make nvflare` prints.
        patience: Seconds for which `nodes` waits for a server that is away.

    Raises:
        ParameterError: The path is too long for a Unix socket.

    Examples:
        >>> relay = Relay("/nowhere/coordinator.sock", patience=0)
        >>> relay.nodes()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ConnectionError: no relay listens at /nowhere/coordinator.sock: start one with ...
        >>> dict(relay.ask({"site-1": b"who"}, seconds=0))
        {'site-1': Lost(why='the relay was away for 0 s')}

    """

    socket: str | Path
    patience: float = 60.0
    known: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        fix = f"a Unix socket's path has at most {LONGEST} bytes; use a shorter folder"
        require(len(os.fsencode(self.socket)) <= LONGEST, "socket", str(self.socket), fix)

    def nodes(self) -> Mapping[str, str]:
        """Return the names of the engine's sites: "" for one in reach, otherwise why it is not.

        Raises:
            ConnectionError: No relay is there, nor was one before.

        """
        until = time.monotonic() + self.patience
        while True:
            try:
                with self._ordered({"op": "nodes"}) as line:
                    self.known.update(json.loads(receive_frame(line)[1]))
                return dict(self.known)
            except OSError:
                if time.monotonic() < until:
                    time.sleep(0.2)
                elif self.known:
                    return dict.fromkeys(self.known, f"the relay at {self.socket} is away")
                else:
                    raise ConnectionError(
                        f"no relay listens at {self.socket}: start one with `make nvflare`"
                    ) from None

    def ask(self, to: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask the nodes through the engine, and yield each answer as it comes."""
        until, left = time.monotonic() + seconds, dict(to)
        while left:
            try:
                for name, answer in self._answers(left, until - time.monotonic()):
                    del left[name]
                    yield name, answer
            except OSError:
                if time.monotonic() > until:
                    break
                time.sleep(0.2)
        for name in left:
            yield name, Lost(f"the relay was away for {seconds:.0f} s")

    def _answers(
        self, to: Mapping[str, bytes], seconds: float
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask over one connection; raises OSError once that breaks."""
        names = list(to)
        with self._ordered({"op": "ask", "to": names, "seconds": seconds}) as line:
            for number, question in enumerate(to.values()):
                send_frame(line, number, question)
            for _ in names:
                _, why = receive_frame(line)
                number, answer = receive_frame(line)
                yield names[number], Lost(why.decode()) if why else answer

    def _ordered(self, order: Mapping[str, object]) -> net.socket:
        """Return a line on which the relay was sent an order."""
        line = net.socket(net.AF_UNIX)
        try:
            line.connect(str(self.socket))
            send_frame(line, 0, json.dumps(order).encode())
        except OSError:
            line.close()
            raise
        return line
