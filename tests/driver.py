"""A real Chromium on a real JupyterLab or Voilà, for browser tests and the view's benchmark.

It needs Chromium (`apt-get install chromium`, or name one in CHROMIUM); without it tests are
skipped, in CI they fail.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "tests" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAB = [
    "-m",
    "jupyterlab",
    "--no-browser",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]
# keep every cell in the page
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false"}',
}
expect.set_options(timeout=120_000)  # a busy machine is no failure
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium():
    """The path of the browser; without one, tests are skipped, and fail in CI."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "no Chromium: apt-get install chromium"
        )
    return found


@contextmanager
def browser():
    """A new Chromium that remembers nothing; it is closed at the end."""
    with sync_playwright() as tool, tempfile.TemporaryDirectory() as profile:
        opened = tool.chromium.launch_persistent_context(
            profile,
            executable_path=chromium(),
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 1000},
            permissions=["clipboard-read", "clipboard-write"],
            accept_downloads=True,
        )
        yield opened
        opened.close()


def write_notebook(path, *cells):
    """A notebook of these code cells."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, path)


@contextmanager
def lab(home):
    """The address of a JupyterLab on 127.0.0.1 over `home`/notebooks, a copy of the lessons.

    Format it with a file name.
    """
    for name, text in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    port, token, books = free_port(), secrets.token_hex(16), copied(home)
    words = [
        *LAB,
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={books}",
        *as_root(),
    ]
    more = {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with serving(home, words, more, f"http://127.0.0.1:{port}/api/status?token={token}"):
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"  # with no tab of before


@contextmanager
def voila(home, notebook, *words):
    """The address of a Voilà on 127.0.0.1 that serves one notebook of `home`/notebooks."""
    port, token, books = free_port(), secrets.token_hex(16), copied(home)
    words = [
        "-m",
        "voila",
        str(books / notebook),
        "--no-browser",
        "--Voila.ip=127.0.0.1",
        f"--port={port}",
        f"--token={token}",
        *words,
    ]
    with serving(home, words, {}, f"http://127.0.0.1:{port}/voila/static/voila.js?token={token}"):
        yield f"http://127.0.0.1:{port}/?token={token}"


def copied(home):
    """The lessons, copied once: what a test does to them stays there."""
    if not (home / "notebooks").exists():
        shutil.copytree(
            ROOT / "notebooks",
            home / "notebooks",
            ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"),
        )
    return home / "notebooks"


def set_parameters(home, name, values):
    """Write other values into the parameters cell of a copied lesson."""
    file = copied(home) / f"{name}.ipynb"
    book = nbformat.read(file, as_version=4)
    cell = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    for parameter, value in values.items():
        cell.source, found = re.subn(
            rf"(?m)^{parameter} = [^#\n]*", f"{parameter} = {value!r} ", cell.source
        )
        assert found == 1, parameter
    nbformat.write(book, file)


def as_root():
    """The words that tell JupyterLab that it runs as root, where it does."""
    return ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(home, words, more, address):
    """Run a server with Jupyter folders of its own until the block ends.

    Its log is the message when it does not start.
    """
    own = {
        f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *words], env=os.environ | own | more, stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            if server.poll() is not None or answers(address):
                break
            time.sleep(0.2)
        if server.poll() is not None or not answers(address):
            pytest.fail((home / "log").read_text()[-3000:])
        yield
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # a busy machine is no failure
            server.kill()
            server.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def shoot(page, name):
    """Take a picture of the whole workbench in a state, for a person to look at."""
    SHOTS.mkdir(exist_ok=True)
    page.locator(".fedlab-workbench").last.screenshot(path=SHOTS / f"{name}.png")


IDLE = """() => { const w = window.jupyterapp?.shell.currentWidget;
  return !!w?.context?.isReady && w.context.sessionContext.session?.kernel?.status === 'idle'; }"""
FINISHED = """() => { const cells = window.jupyterapp.shell.currentWidget.content.widgets;
  return cells.filter(c => c.model.type === 'code').every(c => c.model.executionState === 'idle'
    && c.model.executionCount !== null); }"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(c => c.model.type === 'code')
  .flatMap(c => c.model.outputs.toJSON().filter(o => o.output_type === 'error')
    .map(o => o.ename + ': ' + o.evalue))"""
COMMAND = "name => window.jupyterapp.commands.execute(name)"
ASK = """async code => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const reply = await kernel.requestExecute({ code: '', user_expressions: { x: code } }).done;
  return reply.content.user_expressions.x.data['text/plain']; }"""


LIVE = """() => { const book = window.jupyterapp.shell.currentWidget.content;
  book.activeCellIndex = book.widgets.findIndex(c =>
    (c.model.getMetadata('tags') ?? []).includes('live')); }"""


UNFOLD = "field => field.closest('details')?.setAttribute('open', '')"


def run_all(page, address, timeout=60_000, *, to_live=False):
    """Open a notebook in JupyterLab, run it from the top, and return the workbench.

    No cell may fail. to_live: only as far as the live cell; nbval runs the rest of a lesson.
    """
    if address.split("?")[0] not in page.url:
        page.goto(address)
    page.wait_for_function(IDLE, timeout=timeout)
    page.evaluate(COMMAND, "notebook:clear-all-cell-outputs")
    if to_live:
        page.evaluate(LIVE)
        page.evaluate(COMMAND, "notebook:run-all-above")  # each resolves when its last cell is done
        page.evaluate(COMMAND, "notebook:run-cell")
    else:
        page.evaluate(COMMAND, "notebook:run-all-cells")
        page.wait_for_function(FINISHED, timeout=timeout)
    assert page.evaluate(ERRORS) == []
    bench = page.locator(".fedlab-workbench")
    expect(bench).to_have_count(1)
    bench.scroll_into_view_if_needed()
    return bench


def start_all(page, address):
    """Open a notebook, have all of it run, and return the workbench while cells below it run."""
    page.goto(address)
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate("name => void window.jupyterapp.commands.execute(name)", "notebook:run-all-cells")
    bench = page.locator(".fedlab-workbench")
    expect(bench).to_have_count(1)
    return bench


def rounds(bench):
    """How many rounds the view shows."""
    return int(bench.get_attribute("data-rounds"))


def reach(page, bench, count, timeout=60_000):
    """Wait until the view shows so many rounds."""
    page.wait_for_function(
        "([node, count]) => +node.dataset.rounds >= count",
        arg=[bench.element_handle(), count],
        timeout=timeout,
    )


def press(bench, *names):
    """Press buttons by what is written on them."""
    for name in names:
        bench.get_by_role("button", name=name, exact=True).click()


def violations(page, where=".fedlab-workbench"):
    """What axe finds in the workbench, or elsewhere, that is serious or critical."""
    found = Axe().run(page, context=where).response
    assert len(found["passes"]) > 10  # it did look
    return [
        (v["id"], [n["html"] for n in v["nodes"]])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


def set_number(bench, label, value):
    """Write into the number field of a knob, in a group that is folded away or not."""
    field = bench.get_by_label(f"{label}, as a number", exact=True)
    field.evaluate(
        "field => { const group = field.closest('details'); if (group) group.open = true; }"
    )
    field.fill(str(value))
    field.press("Tab")
