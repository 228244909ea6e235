"""Buttons while other cells run, as after Run All: a kernel, and what JupyterLab would send it."""

import queue
import time

import pytest
from jupyter_client.manager import start_new_kernel

BENCH = """
from fedlab.workbench import Workbench, better, stream
from fedlab.core import Settings
bench = Workbench(stream, Settings(rounds=2000, cohort=8, against=20), metrics=better())
"""
RATINGS = "from fedlab.workbench import Ratings; me = Ratings()"
SLIDERS = "from fedlab.workbench import sliders; panel = sliders({}, {'cohort': (1, 64)})"
HEARS = """
import time
end = time.monotonic() + 240
while panel.settings().cohort != 8 and time.monotonic() < end:
    time.sleep(0.1)
print("cohort", panel.settings().cohort)
"""
OTHER = """
import time
from pathlib import Path
import torch
table, count, end = torch.ones(300, 300), 0, time.monotonic() + 600
while not Path({file!r}).exists() and time.monotonic() < end:
    {work}
print("ended", count)
"""
WORK = {
    "sleeps": "time.sleep(0.1)",
    "multiplies": "table = (table @ table).clamp(0, 1)",
    "counts": "for _ in range(100_000): count += 1",
}


class Kernel:
    """A kernel with a workbench in it, and a subshell for what its view sends."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(startup_timeout=300)
        self.state, self.rounds, self.printed, self.opened = {}, 0, "", []
        self.end_of(self.client.execute(BENCH))
        self.comm = self.view("spec")
        request = self.client.session.msg("create_subshell_request")
        self.client.control_channel.send(request)
        self.shell = self.client.get_control_msg(timeout=300)["content"]["subshell_id"]

    def view(self, trait):
        """The comm of the widget that has this trait."""
        (found,) = (id_ for id_, state in self.opened if trait in state)
        return found

    def told(self):
        """Take the next message, and return what it answers where something came to an end."""
        try:
            message = self.client.get_iopub_msg(timeout=1)
        except queue.Empty:
            return None
        content, kind = message["content"], message["msg_type"]
        state = content["data"].get("state", {}) if kind in ("comm_open", "comm_msg") else {}
        if kind == "comm_open":
            self.opened.append((content["comm_id"], state))
        self.state |= state
        self.printed += content["text"] if kind == "stream" else ""
        assert kind != "error", content["traceback"]
        ended = kind == "status" and content["execution_state"] == "idle"
        return message["parent_header"].get("msg_id") if ended else None

    def end_of(self, cell):
        end = time.monotonic() + 300
        while self.told() != cell:
            assert time.monotonic() < end, "the cell does not end"

    def until(self, there):
        end = time.monotonic() + 300
        while not there(self.state):
            assert time.monotonic() < end, self.state.get("message")
            self.told()

    def press(self, button, *given, comm=""):
        content = {"command": button, "given": list(given)}
        self.say({"method": "custom", "content": content}, comm)

    def say(self, data, comm=""):
        data = {"comm_id": comm or self.comm, "data": data}
        message = self.client.session.msg("comm_msg", data)
        message["header"]["subshell_id"] = self.shell
        self.client.shell_channel.send(message)


@pytest.fixture(scope="module")
def kernel():
    found = Kernel()
    yield found
    found.client.stop_channels()
    found.manager.shutdown_kernel(now=True)
    found.manager.context.destroy(linger=0)  # and the sockets in it


@pytest.mark.parametrize("work", WORK)
def test_start_and_stop_work_while_another_cell_runs(kernel, work, tmp_path):
    cell = kernel.client.execute(OTHER.format(file=str(tmp_path / "end"), work=WORK[work]))
    kernel.printed = ""
    kernel.press("reset")
    kernel.until(lambda state: state["state"] == "ready")
    kernel.press("start")
    kernel.until(lambda state: state["picture"]["done"] >= 2)
    kernel.press("stop")
    kernel.until(lambda state: state["state"] == "stopped")
    assert not kernel.printed  # the cell is not through
    (tmp_path / "end").touch()
    kernel.end_of(cell)
    assert kernel.printed.startswith("ended")


def test_films_are_rated_while_another_cell_runs(kernel, tmp_path):
    kernel.end_of(kernel.client.execute(RATINGS))
    film = kernel.state["films"][0][0]
    cell = kernel.client.execute(OTHER.format(file=str(tmp_path / "end"), work=WORK["sleeps"]))
    kernel.printed = ""
    kernel.press("rate", film, 4, comm=kernel.view("films"))
    kernel.until(lambda state: state["stars"] == {film: 4})
    assert not kernel.printed  # the cell is not through
    (tmp_path / "end").touch()
    kernel.end_of(cell)


def test_a_slider_counts_while_the_cell_that_trains_runs(kernel):
    kernel.end_of(kernel.client.execute(SLIDERS))
    kernel.printed = ""
    cell = kernel.client.execute(HEARS)
    update = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
    kernel.say(update, kernel.view("readout"))
    kernel.end_of(cell)
    assert kernel.printed == "cohort 8\n"
