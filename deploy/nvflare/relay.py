"""Carries bytes over NVFLARE: the parts of the relay that live inside its processes.

`ServerRelay` is a component of NVFLARE's server, `SiteRelay` of each site's client. Both live as
long as these processes do and no job is run, so a process that was killed and started again is back
by NVFLARE's own reconnecting. They see bytes, and say to coordinator and nodes what `wire.py` has.

A question is signed with the server's key, for one site and with a number that grows. So another
site, which NVFLARE would let send messages through the server, can put or repeat none.
"""

import hashlib
import threading
import time
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from fedlab_wire import LATE, Answer, Seat, listen, serve
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.core_cell import CellAgent, Message, make_reply
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.lighter.utils import load_private_key_file, sign_content, verify_content

CHANNEL, ASK, PING = "fedlab", "ask", "ping"
SILENT = (
    20.0  # seconds without a heartbeat (one is due every 2 s) after which a site counts as gone
)


def signed(site: str, number: int, question: bytes) -> str:
    """Return the text that the server signs for a question."""
    return f"fedlab question\n{site}\n{number}\n{hashlib.sha256(question).hexdigest()}"


class InVain(Signal):
    """Ends NVFLARE's wait for an answer once `reason` returns one."""

    def __init__(self, reason: Callable[[], str]) -> None:
        super().__init__()
        self.reason, self.why = reason, ""

    @property
    def triggered(self) -> bool:
        """Whether there is a reason to wait no longer; the first one stays."""
        self.why = self.why or self.reason()
        return bool(self.why)


class ServerRelay(FLComponent):
    """Listens for the coordinator, and asks the sites what it asks.

    Args:
        socket: Path of the Unix socket for the coordinator.
        sites: Names of the sites that belong to this federation; no other is ever asked.
        key: Path of the server's private key.
        grace: Seconds after a start during which a site that was not there yet is waited for.

    """

    def __init__(self, socket: str, sites: list[str], key: str, grace: float = 45.0) -> None:
        super().__init__()
        self.socket, self.sites, self.grace = socket, sites, grace
        self.key = load_private_key_file(key)
        self.ready: dict[str, CellAgent] = {}  # site -> its connection, once it answered on it
        self.register_event_handler(EventType.SYSTEM_START, self._begin)

    def _begin(self, _event: str, context: FLContext) -> None:
        self.server = context.get_engine().server
        self.began = time.monotonic()
        listen(self.socket, lambda line: serve(line, self._nodes, self._ask))

    def _nodes(self) -> dict[str, str]:
        return {site: self._await(site) for site in self.sites}

    def _why_not(self, site: str) -> str:
        """Return "" where a site can be asked, otherwise why it cannot."""
        if site not in self.sites:
            return "no site of this name belongs to the federation"
        client = self.server.client_manager.get_client_from_name(site)
        agent = self.server.cell.core_cell.agents.get(site)
        if agent is None or client is None:
            return "its site is not connected"
        if self.ready.get(site) is not agent:
            if self._send(site, PING, Message(), 2.0)[0]:  # it connects before it listens
                return "its site is not ready yet"
            self.ready[site] = agent
        silent = time.time() - client.last_connect_time
        return f"its site has been silent for {silent:.0f} s" if silent > SILENT else ""

    def _await(self, site: str) -> str:
        """Give a site of the federation its time to come, soon after a start."""
        while (why := self._why_not(site)) and site in set(self.sites) - set(self.ready):
            if time.monotonic() > self.began + self.grace:
                break
            time.sleep(0.1)
        return why

    def _ask(
        self, site: str, question: bytes, seconds: float, hung_up: Callable[[], bool]
    ) -> Answer:
        """Ask one site."""
        until = time.monotonic() + seconds
        if why := self._await(site):
            return why, b""
        agent = self.server.cell.core_cell.agents.get(site)

        def in_vain() -> str:
            if hung_up():
                return "the coordinator hung up"
            if self.server.cell.core_cell.agents.get(site) is not agent:
                return "its site's connection broke while it was at work"
            if time.monotonic() > until:
                return LATE
            return self._why_not(site)

        number = time.time_ns()
        headers = {
            "number": number,
            "seconds": until - time.monotonic(),
            "signature": sign_content(signed(site, number, question), self.key, return_str=True),
        }
        wait = InVain(in_vain)
        why, answer = self._send(site, ASK, Message(headers, question), seconds + 10, wait)
        return (wait.why or why, b"") if why else ("", answer)

    def _send(
        self, site: str, topic: str, message: Message, seconds: float, wait: Signal | None = None
    ) -> Answer:
        reply = self.server.cell.send_request(
            channel=CHANNEL,
            target=site,
            topic=topic,
            request=message,
            timeout=seconds,
            optional=True,
            abort_signal=wait,
        )
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.OK:
            return "", bytes(reply.payload)
        return reply.get_header(MessageHeaderKey.ERROR) or f"NVFLARE says: {code}", b""


class SiteRelay(FLComponent):
    """Hands the server's questions to this machine's node, and its answers back.

    Args:
        socket: Path of the Unix socket where the node connects.

    """

    def __init__(self, socket: str) -> None:
        super().__init__()
        self.socket, self.last, self.lock = socket, 0, threading.Lock()
        self.register_event_handler(EventType.SYSTEM_START, self._begin)

    def _begin(self, _event: str, context: FLContext) -> None:
        self.site = context.get_identity_name()
        self.server_key = context.get_engine().client.communicator.token_verifier.public_key
        self.seat = Seat(self.socket)
        cell = context.get_engine().get_cell()
        cell.register_request_cb(channel=CHANNEL, topic=ASK, cb=self._answer)
        cell.register_request_cb(
            channel=CHANNEL, topic=PING, cb=lambda _: make_reply(ReturnCode.OK, body=b"here")
        )

    def _answer(self, request: Message) -> Message:
        question = bytes(request.payload)
        if why := self._refused(request, question):
            self.logger.warning(f"refused a question: {why}")
            return make_reply(ReturnCode.UNAUTHENTICATED, error=f"its site refused: {why}")
        why, answer = self.seat.ask(question, request.get_header("seconds"))
        if why:
            return make_reply(ReturnCode.PROCESS_EXCEPTION, error=why)
        return make_reply(ReturnCode.OK, body=answer)

    def _refused(self, request: Message, question: bytes) -> str:
        """Return why a question must not reach the node: "" where the server really put it now."""
        number = request.get_header("number", 0)
        try:
            verify_content(
                signed(self.site, number, question),
                request.get_header("signature"),
                self.server_key,
            )
        except (InvalidSignature, AttributeError, TypeError, ValueError):
            return f"the server did not sign it for {self.site}"
        with self.lock:
            if number <= self.last:
                return f"number {number} was used before, which is what a replay looks like"
            self.last = number
        return ""
