"""Lesson 2 as a learner meets it: JupyterLab in a real Chromium, training started and steered by hand.

Needs Chromium (`apt-get install chromium`, or name one in CHROMIUM); without it the test is skipped, in CI it fails.
A screenshot of each state is left in tests/screenshots for a person to look at.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "tests" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
LAB = ["--no-browser", "--ip=127.0.0.1", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True",
       "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
       "--LabApp.extension_manager=readonly"]
SETTINGS = {"notebook-extension/tracker": '{"windowingMode": "none"}',           # keep every cell in the page
            "apputils-extension/notification": '{"fetchNews": "false"}'}
expect.set_options(timeout=30_000)                                      # a busy machine is no failure
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium():
    """Path of the browser; skips without one, fails without one in CI."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on 127.0.0.1 over copies of the lessons, with settings of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, text in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", *LAB, f"--port={port}", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={home / 'notebooks'}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        wait_for(port, token, server, home / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port, token, server, log):
    """Until the server answers; its log is the message when it does not."""
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text()[-3000:])


@pytest.fixture
def page():
    with sync_playwright() as tool, tempfile.TemporaryDirectory() as profile:
        browser = tool.chromium.launch_persistent_context(
            profile, executable_path=chromium(), headless=True, args=FLAGS, viewport={"width": 1280, "height": 1000})
        yield browser.pages[0]
        browser.close()


def shoot(page, name):
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


IDLE = """() => { const w = window.jupyterapp?.shell.currentWidget;
  return !!w?.context?.isReady && w.context.sessionContext.session?.kernel?.status === 'idle'; }"""
FINISHED = """() => { const cells = window.jupyterapp.shell.currentWidget.content.widgets;
  return cells.filter(c => c.model.type === 'code').every(c => c.model.executionState === 'idle'
    && c.model.executionCount !== null); }"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')
  .flatMap(c => c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue))"""


def test_lesson_2_runs_trains_live_and_hears_a_slider(lab, page):
    page.goto(lab.format("02_fedavg.ipynb"))
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate("""async () => { await window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
                     window.done = window.jupyterapp.commands.execute('notebook:run-all-cells'); }""")
    page.evaluate("() => window.done")                                  # resolves when the last cell is done
    assert page.evaluate(ERRORS) == []
    page.wait_for_function(FINISHED, timeout=10_000)

    bench = page.locator(".fedlab-workbench")
    expect(bench).to_have_count(1)
    bench.scroll_into_view_if_needed()
    chart = bench.locator('svg[data-series="ndcg@10"]')
    expect(chart).to_have_attribute("aria-label", "ndcg@10 by round: no rounds yet")
    shoot(page, "ready")

    bench.get_by_role("button", name="Start").click()
    expect(bench).to_have_attribute("data-state", "running")
    expect(bench.locator('[data-used="cohort"]')).to_have_text("last round used 64")
    line = chart.locator("path")
    page.wait_for_function("() => +document.querySelector('.fedlab-workbench').dataset.rounds >= 3")
    before = line.get_attribute("d")

    slider = bench.get_by_label("cohort (clients)", exact=True)
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    chosen = int(bench.locator('input[type="number"][name="cohort"]').input_value())
    assert chosen < 64
    expect(bench.locator('[data-used="cohort"]')).to_have_text(f"last round used {chosen}")
    expect(line).not_to_have_attribute("d", before)
    expect(bench.get_by_role("status")).to_contain_text("Running: round")
    shoot(page, "running")

    field = bench.get_by_label("local learning rate, as a number")
    field.fill("99")
    field.press("Tab")
    expect(bench.get_by_role("alert")).to_have_text("local_lr=99: choose from 0.05 to 5")
    expect(field).to_have_value("1")                                    # put back; training goes on
    field.fill("2")
    field.press("Tab")
    expect(bench.locator(".notice")).to_have_text("")
    expect(bench.locator('[data-used="local_lr"]')).to_have_text("last round used 2")

    bench.get_by_role("button", name="Pause").click()
    expect(bench).to_have_attribute("data-state", "paused")
    page.wait_for_timeout(1000)                                         # the round under way ends, no other begins
    resting = line.get_attribute("d")
    page.wait_for_timeout(1000)
    assert line.get_attribute("d") == resting
    bench.get_by_role("button", name="Resume").click()
    expect(line).not_to_have_attribute("d", resting)
    page.wait_for_function("() => +document.querySelector('.fedlab-workbench').dataset.rounds >= 50", timeout=60_000)
    shoot(page, "learned")
    bench.screenshot(path=SHOTS / "workbench.png")                      # the picture of the README
    bench.get_by_role("button", name="Stop").click()
    expect(bench).to_have_attribute("data-state", "stopped")
    shoot(page, "stopped")
    assert page.evaluate(ERRORS) == []
