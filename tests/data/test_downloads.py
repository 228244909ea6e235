"""Downloads over HTTP, from a server on this machine: publishers' servers are the network's."""

import hashlib
import http.server
import threading
import zipfile
from functools import partial

import pytest

from fedlab.core import ParameterError
from fedlab.data import DataError, cache_folder, downloads, fetch


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing of it."""

    def log_message(self, *words):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server of a small archive; returns its address, and the archive."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    file = tmp_path / "www" / "tiny.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/data/a.csv", "1,2\n")
        archive.writestr("tiny/data/b.csv", "3,4\n")
        archive.writestr("tiny/datasheet.md", "not asked for")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(file.parent))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", file
    server.shutdown()
    thread.join()
    server.server_close()


def sources(monkeypatch, *urls, checksum):
    every = tuple(downloads.Source(url, checksum, "tiny/data") for url in urls)
    monkeypatch.setitem(downloads.KNOWN, "tiny", every)


def digest(file):
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def test_a_folder_of_an_archive_is_unpacked_once_and_the_second_source_serves(served, monkeypatch):
    address, file = served
    urls = f"{address}/gone.zip", f"{address}/tiny.zip"
    sources(monkeypatch, *urls, checksum=digest(file))
    found = fetch("tiny")
    assert found == cache_folder() / "tiny" / "data"
    assert sorted(f.name for f in found.iterdir()) == ["a.csv", "b.csv"]
    assert [f.name for f in found.parent.iterdir()] == ["data"]
    file.unlink()  # without a network from then on
    assert fetch("tiny") == found


def test_what_arrives_otherwise_than_its_checksum_says_is_refused(served, monkeypatch):
    address, file = served
    sources(monkeypatch, f"{address}/tiny.zip", checksum="sha256:" + "0" * 64)
    with pytest.raises(DataError, match=r"tiny could not be downloaded from .*tiny\.zip .*hash"):
        fetch("tiny")
    assert not any((cache_folder() / "tiny").iterdir())
    sources(monkeypatch, f"{address}/tiny.zip", checksum=digest(file))
    assert fetch("tiny").is_dir()


def test_every_source_that_failed_is_named(served, monkeypatch):
    address, file = served
    sources(monkeypatch, f"{address}/a.zip", f"{address}/b.zip", checksum=digest(file))
    message = r"a\.zip .*404.*; nor from .*b\.zip .*or put it at .*fedlab/tiny/data"
    with pytest.raises(DataError, match=message):
        fetch("tiny")
    with pytest.raises(ParameterError, match="name='none': choose one of ml-100k, ml-1m"):
        fetch("none")
