"""Carries bytes over NVFLARE: the parts of the relay that live inside its processes.

`ServerRelay` is a component of NVFLARE's server, `SiteRelay` of each site's client. Both live as
long as these processes do and no job is run, so a process that was killed and started again is back
by NVFLARE's own reconnecting. They see bytes and import neither torch nor fedlab.

The coordinator connects to the server's Unix socket and sends one order, as JSON: `{"op": "nodes"}`
is answered by one JSON object of names and why each is out of reach; `{"op": "ask", "to": [...],
"seconds": s}` is followed by one question for each name, and each is answered by
`{"node": name, "why": ""}` and the answer, or by `{"node": name, "why": "..."}` alone. A site hands
a question to the node's Unix socket and takes one answer. Frames are those of
`multiprocessing.connection`: four bytes of length, then the bytes; nothing is ever unpickled.

A question is signed with the server's key, for one site and with a number that grows. So another
site, which NVFLARE would let send messages through the server, can put or repeat none.
"""

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.core_cell import Message, make_reply
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.lighter.utils import load_private_key_file, sign_content, verify_content

CHANNEL, TOPIC = "fedlab", "ask"
LATE = "it did not answer in time"
SILENT = 20.0  # seconds without a heartbeat (one is due every 2 s) after which a site counts as gone


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
        grace: Seconds after a start during which a site that is not there yet is waited for.
    """

    def __init__(self, socket: str, sites: list[str], key: str, grace: float = 45.0) -> None:
        super().__init__()
        self.socket, self.sites, self.grace = Path(socket), sites, grace
        self.key = load_private_key_file(key)
        self.register_event_handler(EventType.SYSTEM_START, self._begin)

    def _begin(self, _event: str, context: FLContext) -> None:
        self.server = context.get_engine().server
        self.began = time.monotonic()
        self.socket.unlink(missing_ok=True)
        door = Listener(str(self.socket), "AF_UNIX", backlog=8)
        threading.Thread(target=self._listen, args=(door,), daemon=True).start()

    def _listen(self, door: Listener) -> None:
        while True:
            threading.Thread(target=self._serve, args=(door.accept(),), daemon=True).start()

    def _serve(self, home: Connection) -> None:
        with home:
            try:
                order = json.loads(home.recv_bytes())
                if order["op"] == "nodes":
                    for site in self.sites:
                        self._await(site)
                    home.send_bytes(json.dumps({s: self._why_not(s) for s in self.sites}).encode())
                else:
                    self._ask(home, {s: home.recv_bytes() for s in order["to"]}, order["seconds"])
            except (OSError, EOFError, ValueError, KeyError) as problem:
                self.logger.warning(f"the coordinator's order ended: {problem!r}")

    def _why_not(self, site: str) -> str:
        """Return "" where a site can be asked, otherwise why it cannot."""
        if site not in self.sites:
            return "no site of this name belongs to the federation"
        client = self.server.client_manager.get_client_from_name(site)
        if site not in self.server.cell.core_cell.agents or client is None:
            return "its site is not connected"
        silent = time.time() - client.last_connect_time
        return f"its site has been silent for {silent:.0f} s" if silent > SILENT else ""

    def _await(self, site: str) -> str:
        """Give a site of the federation its time to come, soon after a start."""
        while (why := self._why_not(site)) and site in self.sites:
            if time.monotonic() > self.began + self.grace:
                break
            time.sleep(0.1)
        return why

    def _ask(self, home: Connection, questions: dict[str, bytes], seconds: float) -> None:
        """Ask all sites at once, and hand on each answer as it comes."""
        left = threading.Event()
        answers: queue.Queue = queue.Queue()
        until = time.monotonic() + seconds
        for site, question in questions.items():
            threading.Thread(
                target=lambda s=site, q=question: answers.put((s, *self._one(s, q, until, left))),
                daemon=True,
            ).start()
        for _ in questions:
            while answers.empty() and not left.is_set():
                if home.poll(0.02):  # it has nothing more to say: it hung up
                    left.set()
                    return
            site, why, answer = answers.get()
            home.send_bytes(json.dumps({"node": site, "why": why}).encode())
            if not why:
                home.send_bytes(answer)

    def _one(
        self, site: str, question: bytes, until: float, left: threading.Event
    ) -> tuple[str, bytes]:
        """Ask one site; return why there is no answer ("" where there is), and the answer."""
        if why := self._await(site):
            return why, b""
        agent = self.server.cell.core_cell.agents.get(site)

        def in_vain() -> str:
            if left.is_set():
                return "the coordinator hung up"
            if self.server.cell.core_cell.agents.get(site) is not agent:
                return "its site's connection broke while it was at work"
            if time.monotonic() > until:
                return LATE
            return self._why_not(site)

        number, wait = time.time_ns(), InVain(in_vain)
        headers = {
            "number": number,
            "seconds": until - time.monotonic(),
            "signature": sign_content(signed(site, number, question), self.key, return_str=True),
        }
        reply = self.server.cell.send_request(
            channel=CHANNEL,
            target=site,
            topic=TOPIC,
            request=Message(headers, question),
            timeout=max(1.0, until - time.monotonic()),
            optional=True,
            abort_signal=wait,
        )
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.OK:
            return "", bytes(reply.payload)
        error = reply.get_header(MessageHeaderKey.ERROR)
        return wait.why or error or f"NVFLARE says: {code}", b""


class SiteRelay(FLComponent):
    """Hands the server's questions to this machine's node, and its answers back.

    Args:
        socket: Path of the Unix socket where the node listens.
    """

    def __init__(self, socket: str) -> None:
        super().__init__()
        self.socket, self.last, self.lock = socket, 0, threading.Lock()
        self.register_event_handler(EventType.SYSTEM_START, self._begin)

    def _begin(self, _event: str, context: FLContext) -> None:
        self.site = context.get_identity_name()
        self.server_key = context.get_engine().client.communicator.token_verifier.public_key
        cell = context.get_engine().get_cell()
        cell.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=self._answer)

    def _answer(self, request: Message) -> Message:
        question = bytes(request.payload)
        if why := self._refused(request, question):
            self.logger.warning(f"refused a question: {why}")
            return make_reply(ReturnCode.UNAUTHENTICATED, error=f"its site refused: {why}")
        seconds = request.get_header("seconds")
        try:
            with Client(self.socket, "AF_UNIX") as node:
                node.send_bytes(question)
                if not node.poll(seconds):
                    return make_reply(ReturnCode.TIMEOUT, error=LATE)
                return make_reply(ReturnCode.OK, body=node.recv_bytes())
        except (OSError, EOFError) as problem:
            why = f"its node at {self.socket} gave no answer: {problem!r}"
            return make_reply(ReturnCode.PROCESS_EXCEPTION, error=why)

    def _refused(self, request: Message, question: bytes) -> str:
        """Return why a question must not reach the node: "" where the server really put it now."""
        number = request.get_header("number", 0)
        try:
            verify_content(
                signed(self.site, number, question), request.get_header("signature"), self.server_key
            )
        except (InvalidSignature, AttributeError, TypeError, ValueError):
            return f"the server did not sign it for {self.site}"
        with self.lock:
            if number <= self.last:
                return f"number {number} was used before, which is what a replay looks like"
            self.last = number
        return ""
