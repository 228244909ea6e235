"""Bytes over a real engine, in processes of its own: what is killed, and what must not get in."""

import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from world import World, difference

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Settings
from fedlab.models import MatrixFactorisation
from fedlab.nodes import Coordinator, Relay, gathered, write_node
from fedlab.nodes.lines.sockets import receive_frame, send_frame
from fedlab.nodes.lines.transport import Lost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are tried on Linux alone")
ROOT = Path(__file__).parents[2]
SITES = ["site-1", "site-2"]
DEADLINE = 80.0  # of a round; whatever was killed must end it sooner than 90 s
HERE = Path(__file__).parent


def ran(command, **more):
    return subprocess.run(command, check=False, capture_output=True, text=True, **more)


def ended(number):
    """Whether a process is gone, or dead and not yet taken note of."""
    state = ran(["ps", "-o", "stat=", "-p", str(number)]).stdout
    return not state or state.startswith("Z")


def a_free_port():
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]


class Engine:
    """NVFLARE with two sites on this machine, driven by the command that users type."""

    module = "deploy.nvflare"

    def __init__(self, folder):
        self.folder, self.port = folder, a_free_port()
        self.socket = folder / "coordinator.sock"
        self.relay = Relay(self.socket)

    def do(self, *words):
        command = [sys.executable, "-m", self.module, *words, "--folder", str(self.folder)]
        done = ran([*command, "--port", str(self.port)], cwd=ROOT)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    def kit(self, site):
        return self.folder / "federation/prod_00" / site

    def said(self, name):
        return (self.folder / f"{name}.log").read_text()

    def kill(self, *names):
        for name in names:
            number = int((self.folder / f"{name}.pid").read_text())
            os.killpg(number, signal.SIGKILL)
            assert until(lambda number=number: ended(number))

    def again(self, site):
        """Stop a site and start it, and wait until it is back."""
        self.do("stop", site)
        assert until(lambda: self.relay.nodes()[site])
        self.do("start", site)
        assert until(lambda: not self.relay.nodes()[site])

    def client(self, kit, name):
        """Return a process of a site that is none of the two, with a log of its own."""
        python = ROOT / "deploy/nvflare/.venv/bin/python"
        sets = "secure_train=true org=fedlab config_folder=config".split()
        with (kit / "own.log").open("wb") as log:
            program = [python, "-m", "nvflare.private.fed.app.client.client_train", "-m", kit]
            return subprocess.Popen(
                [*program, "-s", "fed_client.json", "--set", *sets, f"uid={name}"],
                env={**os.environ, "HOME": str(kit)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def round(self, question=b"question"):
        """Return what both sites answer, and the seconds that took."""
        began = time.monotonic()
        answers = dict(self.relay.ask(dict.fromkeys(SITES, question), DEADLINE))
        return answers, time.monotonic() - began

    def goes_on(self):
        """See both sites answer again, soon."""
        question = secrets.token_bytes(1000)
        assert until(lambda: self.round(question)[0] == dict.fromkeys(SITES, question[::-1]))


@pytest.fixture(scope="module")
def engine():
    with tempfile.TemporaryDirectory(prefix="relay", dir="/tmp") as folder:
        engine = Engine(Path(folder))
        try:
            assert "2 sites are up" in engine.do("start")
            yield engine
        finally:
            engine.do("stop")


def until(there, seconds=90):
    """Wait until `there()`, and return what it returned last."""
    end = time.monotonic() + seconds
    while not (found := there()) and time.monotonic() < end:
        time.sleep(0.3)
    return found


def refusal(engine, before, *words):
    """Wait until the server's log says one of `words` behind `before`, then see the run go on."""
    assert until(lambda: any(word in engine.said("server")[before:] for word in words)), (
        engine.said("server")[before:]
    )
    engine.goes_on()


class TestRounds:
    def test_every_site_answers_each_question_once_and_in_full(self, engine):
        assert engine.relay.nodes() == dict.fromkeys(SITES, "")
        for size in (0, 1, 3_000_000):
            asked = {site: secrets.token_bytes(size) for site in SITES}
            answered = list(engine.relay.ask(asked, DEADLINE))
            assert len(answered) == len(SITES)
            assert dict(answered) == {site: bytes_[::-1] for site, bytes_ in asked.items()}

    def test_a_site_of_no_such_name_is_lost_with_a_reason(self, engine):
        answers = dict(engine.relay.ask({"site-9": b"x", "site-1": b"ab"}, DEADLINE))
        assert answers["site-1"] == b"ba"
        assert "no site of this name" in answers["site-9"].why

    def test_answers_come_as_they_are_ready(self, engine):
        answers = engine.relay.ask({"site-1": b"wait 3 x", "site-2": b"at once"}, DEADLINE)
        assert [name for name, _ in answers] == ["site-2", "site-1"]

    def test_a_slow_site_is_lost_at_the_deadline(self, engine):
        answers = dict(engine.relay.ask({"site-1": b"wait 6 x", "site-2": b"ab"}, 3))
        assert answers["site-2"] == b"ba"
        assert "did not answer in time" in answers["site-1"].why
        engine.goes_on()

    def test_no_port_is_open_to_other_machines(self, engine):
        numbers = {(engine.folder / f"{name}.pid").read_text() for name in ("server", *SITES)}
        opened = ran(["ss", "-Hltnp"]).stdout.splitlines()
        ours = [line.split()[3] for line in opened if any(f"pid={n}," in line for n in numbers)]
        assert any(where.endswith(f":{engine.port}") for where in ours)
        assert all("127.0.0.1" in where for where in ours), ours

    def test_the_engine_has_no_torch_and_keys_are_ours_alone(self, engine):
        python = ROOT / "deploy/nvflare/.venv/bin/python"
        looked = ran([python, "-c", "import torch"])
        assert "No module named 'torch'" in looked.stderr
        assert engine.folder.stat().st_mode & 0o077 == 0


@pytest.mark.skipif("RECOVERY" not in os.environ, reason="make test-all kills the engine")
class TestKills:
    def test_a_killed_site_ends_the_round_and_is_back_once_restarted(self, engine):
        asked = {"site-1": b"question", "site-2": b"wait 75 x"}
        threading.Timer(1.5, engine.kill, ["site-2", "site-2.node"]).start()
        began = time.monotonic()
        answers = dict(engine.relay.ask(asked, DEADLINE))
        assert time.monotonic() - began < DEADLINE
        assert answers["site-1"] == b"noitseuq"
        assert "connection broke" in answers["site-2"].why
        for _ in range(3):  # later rounds do not wait for it
            answers, seconds = engine.round()
            assert seconds < DEADLINE / 4
            assert answers == {"site-1": b"noitseuq", "site-2": Lost("its site is not connected")}
        assert engine.relay.nodes() == {"site-1": "", "site-2": "its site is not connected"}
        engine.do("start", "site-2", "site-2.node")
        engine.goes_on()

    def test_a_killed_node_is_lost_at_once_while_its_site_stays(self, engine):
        engine.kill("site-1.node")
        answers, seconds = engine.round()
        assert seconds < DEADLINE / 4
        assert "no node is connected to" in answers["site-1"].why
        assert answers["site-2"] == b"noitseuq"
        engine.do("start", "site-1.node")
        assert until(lambda: not isinstance(engine.round()[0]["site-1"], Lost))

    def test_a_killed_server_is_waited_for_and_asked_anew(self, engine):
        def kill_and_start():
            engine.kill("server")
            engine.do("start", "server")

        killer = threading.Timer(1.5, kill_and_start)
        killer.start()
        answers, _ = engine.round(b"wait 4 x")
        killer.join()
        assert answers == dict.fromkeys(SITES, b"x 4 tiaw")
        engine.goes_on()

    def test_a_killed_coordinator_leaves_nothing_behind(self, engine):
        program = (
            "import sys; from fedlab.nodes import Relay; print('asks', flush=True); "
            f"list(Relay(sys.argv[1]).ask(dict.fromkeys({SITES}, b'wait 5 stale'), 60))"
        )
        coordinator = subprocess.Popen(
            [sys.executable, "-c", program, engine.socket], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert coordinator.stdout.readline() == b"asks\n"
        time.sleep(1)
        coordinator.kill()
        coordinator.communicate()
        engine.goes_on()

    def test_a_server_that_is_away_is_named(self, engine):
        engine.kill("server")
        quick = Relay(engine.socket, patience=0)
        with pytest.raises(ConnectionError, match=r"no relay listens at .*`make nvflare`"):
            quick.nodes()
        assert dict(quick.ask({"site-1": b"x"}, 1)) == {
            "site-1": Lost("the relay was away for 1 s")
        }
        engine.do("start", "server")
        engine.goes_on()


class TestNodes:
    def test_a_run_over_the_engine_with_a_killed_node_equals_one_process(self, engine):
        world, settings = World(count=2), Settings(cohort=12, local_lr=0.5, server_lr=2.0, rounds=4)
        for number, site in enumerate(SITES):
            write_node(engine.folder / site, site, world.own(number))
            engine.do("stop", f"{site}.node")
        words = f"{sys.executable} -m fedlab node {engine.folder}/{{name}} --socket {{socket}}"
        nodes = [f"{site}.node" for site in SITES]
        try:
            engine.do("start", *nodes, "--node", words)
            assert until(lambda: "connected" in engine.said("site-1.node"), 300)
            assert until(lambda: "connected" in engine.said("site-2.node"), 300)
            roster = gathered(engine.relay, 120, count=2)
            far = Coordinator(
                engine.relay, MatrixFactorisation(dim=4), roster=roster, seconds=120, quorum=1.0
            )
            *_, half = far.rounds(settings.replace(rounds=2))
            engine.kill("site-1.node")
            engine.do("start", "site-1.node", "--node", words)
            assert until(lambda: engine.said("site-1.node").count("connected") == 2, 300)
            *_, last = far.rounds(settings, start=half)
        finally:
            engine.do("stop", *nodes)
            engine.do("start", *nodes)
        *_, one = federate(world.model, world.data, settings)
        assert last.number == one.number == settings.rounds
        assert not last.rejected
        assert difference(one.params, last.params) < 1e-5


class TestIntruders:
    def test_a_site_with_keys_of_another_project(self, engine):
        """It trusts whatever server it finds; the server does not trust it."""
        with tempfile.TemporaryDirectory(prefix="other", dir="/tmp") as folder:
            other = Engine(Path(folder))
            other.do("kits")
            keys = other.kit("site-2") / "startup"
            before = len(engine.said("server"))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(keys / "client.crt", keys / "client.key")
            context.set_alpn_protocols(["h2"])
            with socket.create_connection(("127.0.0.1", engine.port), 30) as wire:
                assert not speaks(context, wire)
        refusal(engine, before, "CERTIFICATE_VERIFY_FAILED")

    def test_a_site_under_the_name_of_another(self, engine):
        before, liar = len(engine.said("server")), engine.folder / "liar"
        shutil.copytree(engine.kit("site-2"), liar)
        process = engine.client(liar, "site-1")
        try:
            refusal(engine, before, "authenticated as 'site-2' but claimed endpoint 'site-1'")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @pytest.mark.parametrize("bytes_", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50])
    def test_a_plaintext_connection_and_a_silent_one(self, engine, bytes_):
        before = len(engine.said("server"))
        with socket.create_connection(("127.0.0.1", engine.port), 60) as wire:
            if bytes_:
                wire.sendall(bytes_)
                assert wire.recv(100) in (b"", wire.recv(100))
                refusal(engine, before, "WRONG_VERSION_NUMBER", "HTTP_REQUEST")
            engine.again("site-1")  # a silent connection keeps nobody out
        engine.goes_on()

    def test_a_recorded_connection_played_again(self, engine):
        keys = engine.kit("site-2") / "startup"
        recorded = recording(engine.port, keys)
        before = len(engine.said("server"))
        with socket.create_connection(("127.0.0.1", engine.port), 60) as wire:
            wire.sendall(recorded)
            while wire.recv(1000):
                pass
        refusal(engine, before, "Handshake failed")

    def test_a_question_passed_on_to_another_site(self, engine):
        custom = engine.kit("site-2") / "local/custom"
        honest = custom / "fedlab_relay.py"
        try:
            shutil.copy(honest, custom / "honest.py")
            shutil.copy(HERE / "rogue_site.py", honest)
            engine.again("site-2")
            ((_, answer),) = engine.relay.ask({"site-2": b"train"}, DEADLINE)
            assert answer == b"its site refused: the server did not sign it for site-1"
            assert "refused a question" in engine.said("site-1")
        finally:
            shutil.copy(custom / "honest.py", honest)
            engine.again("site-2")
        engine.goes_on()

    def test_a_question_asked_twice_under_one_number(self, engine):
        python = ROOT / "deploy/nvflare/.venv/bin/python"
        path = {"PYTHONPATH": str(engine.kit("site-1") / "local/custom")}
        done = ran([python, HERE / "replayed.py"], env=path)
        replay, forged = "was used before", "did not sign it for site-1"
        expected = ["", replay, replay, forged, forged, forged, ""]
        said = done.stdout.split("\n")
        assert len(said) == len(expected), done.stderr
        for line, reason in zip(said, expected, strict=True):
            assert reason in line
            assert bool(line) == bool(reason)

    def test_an_order_that_makes_no_sense(self, engine):
        for order in (b"", b"\xff", b"[]", b'{"op": "other"}', json.dumps({"op": "ask"}).encode()):
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(engine.socket))
                with pytest.raises(ConnectionError):
                    said(line, order)
        engine.goes_on()


def said(line, order):
    """Return what the relay answers to an order."""
    send_frame(line, 0, order)
    return receive_frame(line)


def speaks(context, wire):
    """Whether a server says anything over TLS to whoever has the keys of `context`."""
    try:
        with context.wrap_socket(wire) as sealed:
            sealed.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return bool(sealed.recv(100))
    except OSError:
        return False


def recording(port, keys):
    """Return what a site with `keys` sends to the server when it connects, as seen on the wire."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys / "rootCA.pem")
    context.load_cert_chain(keys / "client.crt", keys / "client.key")
    context.set_alpn_protocols(["h2"])
    arriving, leaving, sent = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    sealed = context.wrap_bio(arriving, leaving)
    with socket.create_connection(("127.0.0.1", port), 60) as wire:
        for step in (
            sealed.do_handshake,
            lambda: sealed.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ):
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    done = False
                else:
                    done = True
                out = leaving.read()
                sent += out
                wire.sendall(out)
                if done:
                    break
                arriving.write(wire.recv(10_000))
    return sent


@pytest.mark.parametrize("path", ["x" * 200])
def test_a_path_that_no_unix_socket_can_have(path):
    with pytest.raises(ParameterError, match=r"socket='x+'.*at most 100 bytes; use a shorter"):
        Relay(path)
