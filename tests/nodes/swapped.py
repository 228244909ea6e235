"""Flower in the place of NVFLARE, behind the same transport: a start, three rounds, a strange key.

`make test-all` runs it: Flower takes a quarter of a minute for each round.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_relay import ROOT, SITES, Engine, until

from fedlab.nodes.lines.transport import Lost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are tried on Linux alone")


class Flower(Engine):
    """Flower with two sites on this machine."""

    module = "deploy.flower"


@pytest.fixture(scope="module")
def flower():
    with tempfile.TemporaryDirectory(prefix="swap", dir="/tmp") as folder:
        engine = Flower(Path(folder))
        try:
            assert "2 sites are up" in engine.do("start")
            yield engine
        finally:
            engine.do("stop")


def test_three_rounds(flower):
    for size in (0, 1, 3_000_000):
        asked = {site: secrets.token_bytes(size) for site in SITES} | {"site-9": b"x"}
        answered = dict(flower.relay.ask(asked, 120))
        assert answered.pop("site-9") == Lost("no site of this name belongs to the federation")
        assert answered == {site: asked[site][::-1] for site in SITES}


def test_a_key_that_nobody_registered(flower):
    bin_, keys, log = (
        ROOT / "deploy/flower/.venv/bin",
        flower.folder / "keys",
        flower.folder / "s.log",
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as other:
        make = [bin_ / "python", ROOT / "deploy/flower/keys.py", other, "127.0.0.1", "site-2"]
        subprocess.run(make, check=True)
        tls = ["--ssl-certfile", keys / "server.crt", "--ssl-keyfile", keys / "server.key"]
        key = Path(other, "site-2.key")
        tls += ["--ssl-ca-certfile", keys / "authority.crt"]
        tls += ["--root-certificates", keys / "authority.crt"]
        where = ["--superlink", f"127.0.0.1:{flower.port}", "--port", str(flower.port + 9)]
        with log.open("wb") as said:
            stranger = subprocess.Popen(
                [bin_ / "flower-supernode", *tls, *where, "--auth-supernode-private-key", key],
                env={
                    **os.environ,
                    "FLWR_TELEMETRY_ENABLED": "0",
                    "PATH": f"{bin_}:{os.environ['PATH']}",
                },
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            assert until(lambda: "not registered" in log.read_text() or stranger.poll()), (
                log.read_text()
            )
            assert dict(flower.relay.ask(dict.fromkeys(SITES, b"ab"), 120)) == dict.fromkeys(
                SITES, b"ba"
            )
        finally:
            if stranger.poll() is None:
                os.killpg(stranger.pid, signal.SIGKILL)
            stranger.wait()
