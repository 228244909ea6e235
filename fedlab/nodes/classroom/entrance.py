"""The entrance of a class: TCP with TLS, and a join code; behind it is `fedlab.nodes.Sockets`.

    CODE@host:port#fingerprint      the invitation, which learners type

The certificate is made when a class starts and is gone with it. Nobody vouches for it but the
teacher, who shows its fingerprint; a learner's end compares it before it says anything. Then

    coordinator -> learner      {"nonce": ...}
    learner -> coordinator      {"name": ..., "token": ..., "nonce": ..., "proof": ...}

where the proof is the HMAC of nonce, name and token under the join code: the code itself is never
sent, and a greeting that was recorded fits no other nonce.

Letters: none.

Sources: RFC 8446 (TLS 1.3); RFC 2104 (HMAC); RFC 7469, section 2.4 (a certificate by fingerprint).
"""

import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import select
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlab.core import ParameterError, require
from fedlab.nodes.lines.sockets import (
    GREETED,
    GREETING,
    LOCAL,
    WELCOME,
    Sockets,
    UnwelcomeError,
    receive_frame,
    refuse,
    send_frame,
)

SPARE = 1 << 20  # bytes that an answer may have beside tables
LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that are taken for another
CODE = 8  # letters of a join code
FINGERPRINT = 32  # hexadecimal digits of the certificate's SHA-256
DAYS = 2  # that a certificate holds
LIMIT, MOST = 64, 1000  # learners in a class, unless told, and at most: each takes a thread
PLACES = 16  # of one address that may be at the greeting at a time
WRONG = 1.0  # seconds that a wrong join code keeps its place
FORM = re.compile(rf"([{LETTERS}]{{{CODE}}})@([\w.-]+):(\d+)#([0-9a-f]{{{FINGERPRINT}}})")


@dataclass(frozen=True)
class Invitation:
    """Where a class is, and what proves that it is this class and that somebody may join.

    >>> text = "7GH2KMNP@127.0.0.1:7000#" + "0f" * 16
    >>> Invitation.read(text).port, str(Invitation.read(text)) == text
    (7000, True)
    """

    code: str
    host: str
    port: int
    fingerprint: str

    def __str__(self) -> str:
        """As learners type it."""
        return f"{self.code}@{self.host}:{self.port}#{self.fingerprint}"

    @classmethod
    def read(cls, text: str) -> "Invitation":
        """The invitation that somebody typed; raises `ParameterError` for what is none."""
        found = FORM.fullmatch(text.strip()) if isinstance(text, str) else None
        fix = "copy the whole line that the teacher shows, CODE@host:port#fingerprint"
        require(found is not None and int(found[3]) < 2**16, "invitation", text, fix)
        code, host, port, fingerprint = found.groups()  # type: ignore[union-attr]
        return cls(code, host, int(port), fingerprint)

    def reach(self, about: dict[str, str]) -> "Secured":
        """A connection to the class, greeted with `about`, a name and a token.

        Raises OSError where nobody is there, and `ParameterError` where it is somebody else.
        """
        line = socket.create_connection((self.host, self.port), timeout=GREETING)
        _keep_alive(line)
        try:
            wire = self._known(line)
            nonce = json.loads(receive_frame(wire, GREETED)[1])["nonce"]
            own = {**about, "nonce": nonce, "proof": proof(self.code, nonce, about)}
            send_frame(wire, 0, json.dumps(own).encode())
        except (ValueError, KeyError, TypeError) as error:
            line.close()
            if isinstance(error, ParameterError):
                raise
            raise ConnectionError("it does not greet as a class does") from error
        except OSError:
            line.close()
            raise
        wire.settimeout(None)
        return wire

    def _known(self, line: socket.socket) -> "Secured":
        """The connection under TLS, to whoever has the certificate of the fingerprint."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the fingerprint is compared instead
        context.verify_mode = ssl.CERT_NONE
        try:
            secured = context.wrap_socket(line)
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError as error:
            fix = f"whoever listens there speaks no TLS ({error.reason}); ask for the address"
            raise ParameterError(f"invitation={str(self)!r}: {fix}") from error
        found = fingerprint(secured.getpeercert(binary_form=True) or b"")
        if not hmac.compare_digest(found, self.fingerprint):
            secured.close()
            fix = "another certificate is there; do not join, and ask the teacher for the line anew"
            raise ParameterError(f"invitation={str(self)!r}: {fix}")
        return Secured(secured)


def fingerprint(certificate: bytes) -> str:
    """The first hexadecimal digits of the SHA-256 of a certificate (DER)."""
    return hashlib.sha256(certificate).hexdigest()[:FINGERPRINT]


def proof(code: str, nonce: str, about: dict[str, Any]) -> str:
    """What only somebody who has the join code can say to a nonce."""
    text = json.dumps([nonce, about["name"], about["token"]])
    return hmac.new(code.encode(), text.encode(), "sha256").hexdigest()


class Secured:
    """A socket under TLS that one thread may read while others write.

    OpenSSL allows one call at a time, so none waits inside of it: what would wait does so beside
    it, until the socket is ready.
    """

    def __init__(self, line: ssl.SSLSocket) -> None:
        """line: after its handshake, or before; then `handshake` comes first."""
        line.setblocking(False)
        self._line, self._lock = line, threading.Lock()
        self.settimeout(GREETING)
        self.received = self.sent = 0  # bytes, without those of TLS itself

    def recv(self, count: int, /) -> bytes:
        """At most so many bytes; none where the other end is gone."""
        found: bytes = self._done(lambda: self._line.recv(count))
        self.received += len(found)
        return found

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes."""
        left = memoryview(data)
        while left:
            sent: int = self._done(lambda: self._line.send(left))  # noqa: B023 - called at once
            self.sent += sent
            left = left[sent:]

    def handshake(self) -> None:
        """Begin TLS."""
        self._done(self._line.do_handshake)

    def _done(self, do: Callable[[], Any]) -> Any:
        while True:
            reading, writing = [self._line], list[ssl.SSLSocket]()
            try:
                with self._lock:
                    return do()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLWantWriteError:
                reading, writing = writing, reading
            left = None if self._end is None else max(0.0, self._end - time.monotonic())
            try:
                ready = select.select(reading, writing, [], left)
            except ValueError as error:  # another thread has closed it
                raise ConnectionError("the connection was closed") from error
            if not any(ready):
                raise TimeoutError("it took too long")

    def settimeout(self, seconds: float | None, /) -> None:
        """Choose how long all calls from now on may take together; None for as long as they take.

        Together, or a byte now and then would keep a connection for hours.
        """
        self._end = None if seconds is None else time.monotonic() + seconds

    def shutdown(self, how: int, /) -> None:
        """End both directions, which wakes whoever waits in another thread."""
        socket.socket.shutdown(self._line, how)  # that of SSLSocket would go on in plaintext

    def close(self) -> None:
        """Let go of it."""
        self._line.close()


class Entrance(Sockets):
    """A transport to learners who were invited; `open` it, and close it in the end.

    >>> with Entrance("127.0.0.1:0") as class_:
    ...     class_.open(b"the model that the class starts from")
    ...     class_.invitation.host, class_.nodes()
    ('127.0.0.1', {})
    """

    def __init__(
        self, where: str, *, limit: int = LIMIT, say: Callable[[str], Any] = lambda line: None
    ) -> None:
        """Take the address "host:port", port 0 for a free one; who comes waits until `open`.

        So what is wrong with an address is said before a model has been trained. limit: how many
        learners are let in at a time; one more reads why not. say: is told in a line who comes, who
        goes, and why somebody is not let in. Raises `ParameterError` for an address that is none of
        this machine's, or that is taken, and where the certificate cannot be written.
        """
        require(1 <= limit <= MOST, "limit", limit, f"choose from 1 to {MOST} learners")
        self.most = limit
        self._context, mark = _certified()
        self._wires = list[Secured]()
        self._greeting, self._counting = Counter[str](), threading.Lock()
        super().__init__(where, say=say)
        code = "".join(secrets.choice(LETTERS) for _ in range(CODE))
        self.invitation = Invitation(code, where.rpartition(":")[0], int(self.where[1]), mark)

    def open(self, welcome: bytes) -> None:
        """Let learners in. welcome: what they are handed when they come."""
        self.welcome = WELCOME + welcome
        self.longest = 2 * len(welcome) + SPARE  # an update is no larger than the model
        super()._begin()

    def _begin(self) -> None:
        """Wait for `open`."""

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that learners were sent, and that came from them."""
        wires = list(self._wires)
        return sum(each.sent for each in wires), sum(each.received for each in wires)

    def here(self) -> dict[str, str]:
        """The learners who are there: name -> the token that tells one from another of the name."""
        return {name: each.token for name, each in list(self._known.items()) if not each.gone}

    def dismiss(self, name: str, why: str) -> None:
        """Let go of a learner who cannot take part."""
        self.say(f"{name} was let go: {why}.")
        refuse(self._known[name].line, why)

    def _address(self, text: str) -> tuple[str, int]:
        host, _, port = text.rpartition(":")
        fix = "give the address that learners will type, such as 127.0.0.1:0 or 192.168.1.7:7000"
        fits = port.isdigit() and port.isascii() and int(port) < 2**16
        fits = fits and bool(re.fullmatch(r"[\w.-]+", host)) and host != "0.0.0.0"
        require(fits, "address", text, fix)
        return ("127.0.0.1" if host in LOCAL else host), int(port)

    def _greeted(self, line: socket.socket) -> tuple[Secured, dict[str, Any]]:
        host = line.getpeername()[0]
        with self._counting:
            if self._greeting[host] >= PLACES:
                raise UnwelcomeError(f"{PLACES} of its address are at the entrance already")
            self._greeting[host] += 1
        try:
            _keep_alive(line)
            return self._let_in(line)
        finally:
            with self._counting:
                self._greeting[host] -= 1

    def _let_in(self, line: socket.socket) -> tuple[Secured, dict[str, Any]]:
        how: dict[str, Any] = {"server_side": True, "do_handshake_on_connect": False}
        wire = Secured(self._context.wrap_socket(line, **how))
        try:
            wire.handshake()
        except OSError as error:
            wire.close()
            raise UnwelcomeError("it did not speak TLS to the end of the greeting") from error
        try:
            about = self._proven(wire)
        except BaseException:
            wire.close()
            raise
        self._wires.append(wire)
        return wire, about

    def _proven(self, wire: Secured) -> dict[str, Any]:
        """What somebody says of himself who has the join code."""
        nonce = secrets.token_hex(16)
        send_frame(wire, 0, json.dumps({"nonce": nonce}).encode())
        about: dict[str, Any] = json.loads(receive_frame(wire, GREETED)[1])
        why = ""
        if about["nonce"] != nonce:
            why = "its greeting was recorded earlier"
        elif not hmac.compare_digest(proof(self.invitation.code, nonce, about), about["proof"]):
            why = "the join code is wrong; copy the teacher's line anew"
            time.sleep(WRONG)  # so whoever guesses has at most PLACES / WRONG tries a second
        if why:
            refuse(wire, why)
            raise UnwelcomeError(why)
        return about


def _keep_alive(line: socket.socket) -> None:
    """Notice within minutes where the other end has vanished without a word."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _certified() -> tuple[ssl.SSLContext, str]:
    """The server's half of TLS with a certificate made now, and its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedlab class")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=DAYS))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    password = secrets.token_bytes(32).hex()
    hidden = serialization.BestAvailableEncryption(password.encode())
    form = serialization.PrivateFormat.PKCS8
    texts = {
        "key": key.private_bytes(serialization.Encoding.PEM, form, hidden),
        "certificate": made.public_bytes(serialization.Encoding.PEM),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="fedlab-") as home:  # ssl reads files alone
            for file, text in texts.items():
                Path(home, file).write_bytes(text)
            context.load_cert_chain(Path(home, "certificate"), Path(home, "key"), password)
    except OSError as error:
        fix = f"the class's certificate cannot be written ({error}); name a folder with room"
        raise ParameterError(f"TMPDIR={os.environ.get('TMPDIR', '')!r}: {fix}") from error
    return context, fingerprint(made.public_bytes(serialization.Encoding.DER))
