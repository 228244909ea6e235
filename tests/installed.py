"""The wheel, installed into an environment of its own and used in an empty folder: `make test-all`.

Real are the wheel, pip's work on it, the environment, the command and what it does. What the
package depends on is not installed anew, which would be some GB from the network: the environment
finds it where this Python has it. So the versions, and that the wheel asks for all it needs, are
not tested here.
"""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import pytest
from built import build, checkout

from fedlab.course.lessons import lesson_files


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("home")
    checkout(folder / "here")
    wheel = build("wheel", folder / "here", folder)
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    words = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(words, check=True)
    found = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The folder in which everything is done."""
    return tmp_path_factory.mktemp("empty")


def words_for(home, *words, module=False):
    """The command, or the package as a module, and an environment without a trace of this one."""
    command = [home / "bin" / "python", "-m", "fedlab"] if module else [home / "bin" / "fedlab"]
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "JUPYTER"))}
    return {"args": [*map(str, command), *words], "env": clean}


def said(home, folder, *words, module=False):
    """What a command prints that goes well."""
    asked = words_for(home, *words, module=module)
    return subprocess.run(
        **asked, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, timeout=900
    ).stdout


def test_it_is_the_installed_one(home, empty):
    where = [str(home / "bin" / "python"), "-c", "import fedlab; print(fedlab.__file__)"]
    asked = words_for(home) | {"args": where}
    done = subprocess.run(**asked, cwd=empty, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(home)


@pytest.mark.parametrize("module", [False, True])
def test_lessons_are_copied(home, empty, module):
    folder = "again" if module else "fedlab-lessons"
    given = [folder] if module else []
    assert "Copied to" in said(home, empty, "lab", "--no-open", *given, module=module)
    found = [path for path in (empty / folder).rglob("*") if path.is_file()]
    assert sorted(path.relative_to(empty / folder).as_posix() for path in found) == lesson_files()


def test_a_file_of_data_is_read(home, empty):
    (empty / "shop.csv").write_text("customer,sku,stars\nann,tea,5\nbob,tea,4\nbob,cup,3\n")
    assert "3 interactions of 2 users with 2 items" in said(home, empty, "data", "shop.csv")


def test_two_rounds_are_trained_swept_and_exported(home, empty):
    said(home, empty, "run", "--set", "rounds=2", "--set", "cohort=8", "--name", "one")
    said(home, empty, "sweep", "--over", "local_lr=0.5,1", "--set", "rounds=2")
    lines = said(home, empty, "compare", module=True).splitlines()
    assert len(lines) == 4
    assert all(" done " in line for line in lines[1:])
    said(home, empty, "export", "one", "--to", "model")
    names = {path.name for path in (empty / "model").iterdir()}
    assert {"model.safetensors", "card.md", "data-licence.md"} <= names


@pytest.mark.skipif(os.name == "nt", reason="an interrupt is sent otherwise on Windows")
def test_the_workbench_is_served_until_it_is_interrupted(home, empty):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = words_for(home, "app", "--no-browser", "--port", str(port))
    asked["env"]["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))  # Voilà's own pages
    with (empty / "app.log").open("w") as log:
        server = subprocess.Popen(**asked, cwd=empty, stdout=log, stderr=log)
    try:
        page = _page(empty / "app.log", server)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    assert "jupyter.widget-view" in page
    assert (empty / "fedlab-lessons" / "runs").is_dir()


def _page(log, server):
    """The page of a server at the address that it prints."""
    for _ in range(600):
        address = [line for line in log.read_text().splitlines() if line.startswith("http://127")]
        if address:
            return urllib.request.urlopen(address[0], timeout=300).read().decode()
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())
