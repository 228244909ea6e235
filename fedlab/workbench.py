"""The live workbench: a thread that consumes a stream of Rounds, and a view that turns its knobs.

Training runs in this one thread and never in a cell, so that clicks and sliders get through. The view is an
anywidget: Python sets traits, `workbench.js` draws them. Each round takes a snapshot of the knobs.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from fedlab.core import Config, Knob, ParameterError, knobs, known, require
from fedlab.server import Round

Live = Callable[[Callable[[], Config]], Iterator[Round]]
_active: "Runner | None" = None          # one run a kernel; starting another stops it
_lock = threading.Lock()


class Runner:
    """Consumes `live(config)` in a thread: start, pause, stop. `rounds` is plain data to read at any time.

    Of past Rounds the parameters are dropped, so that a long run does not fill the memory; the last keeps them.
    """

    def __init__(self, live: Live, config: Config, changed: Callable[[], None]) -> None:
        """`changed()` is called in the thread after each round and each change of state."""
        self.live, self.changed = live, changed
        self.rounds: list[Round] = []
        self.state, self.error = "ready", ""
        self._config = config
        self._go, self._stop, self._guard = threading.Event(), threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def config(self) -> Config:
        """The knobs as they stand, in one piece."""
        with self._guard:
            return self._config

    def turn(self, config: Config) -> None:
        """Set all knobs at once; they count from the next round."""
        with self._guard:
            self._config = config

    def start(self) -> None:
        """Go on after a pause, or begin anew and stop whatever else runs in this kernel."""
        if self.state == "paused":
            return self._enter("running")
        claim(self)
        self.rounds, self.error = [], ""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="fedlab", daemon=True)
        self._enter("running")
        return self._thread.start()

    def pause(self) -> None:
        """Wait after the round under way."""
        if self.state == "running":
            self._enter("paused")

    def stop(self) -> None:
        """End after the round under way; what is done stays."""
        self._stop.set()
        self._go.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _enter(self, state: str) -> None:
        self.state = state
        (self._go.clear if state == "paused" else self._go.set)()
        self.changed()

    def _run(self) -> None:
        try:
            for done in self.live(self.config):
                if self.rounds:
                    self.rounds[-1] = replace(self.rounds[-1], params={})
                self.rounds.append(done)
                self.changed()
                self._go.wait()
                if self._stop.is_set():
                    return self._enter("stopped")
            return self._enter("done")
        except Exception as error:  # noqa: BLE001 - a thread's error must reach the status line, whatever it is
            self.error = f"{type(error).__name__}: {error}"
            return self._enter("failed")


def claim(runner: Runner | None) -> None:
    """Make `runner` the one active run of this kernel, and stop the one before."""
    global _active  # noqa: PLW0603 - the one registry of the one active run
    with _lock:
        if _active:
            _active.stop()
        _active = runner


class Workbench(anywidget.AnyWidget):
    """Sliders for some knobs of a Config, Start, Pause, Stop, and live charts of the loss and chosen metrics.

    live: a function from a config-giving function to a stream of Rounds, say
        lambda config: measured(federate(model, clients, config), measure)
    config: where the knobs start. turn: knobs to show, name -> (lowest, highest) on the slider.
    metrics: names of Round metrics to chart beside the loss. `rounds` holds the finished Rounds.
    """

    _esm = Path(__file__).with_name("workbench.js")
    _css = Path(__file__).with_name("workbench.css")
    knobs: Any = traitlets.List().tag(sync=True)
    metrics: Any = traitlets.List().tag(sync=True)
    values: Any = traitlets.Dict().tag(sync=True)       # where the knobs stand
    used: Any = traitlets.Dict().tag(sync=True)         # what the last round used
    state = traitlets.Unicode("ready").tag(sync=True)
    message = traitlets.Unicode("Run this cell, then press Start.").tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)  # why a value was refused, until one is taken
    history: Any = traitlets.Dict({"round": []}).tag(sync=True)
    total = traitlets.Int(1).tag(sync=True)

    def __init__(self, live: Live, config: Config, turn: Mapping[str, tuple[float, float]],
                 metrics: tuple[str, ...] = ()) -> None:
        """Raise `ParameterError` for a knob that is unknown or whose slider leaves its range."""
        described = knobs(Config)
        known(list(described), turn)
        for name, (low, high) in turn.items():
            inside = described[name].low <= low < high <= described[name].high
            span = f"choose two growing numbers from {described[name].low:g} to {described[name].high:g}"
            require(inside, f"turn[{name!r}]", (low, high), span)
        claim(None)                      # running the cell again stops what it started before
        kinds = {f.name: f.type for f in fields(Config)}
        self.runner = Runner(live, config, self._show)
        self._shown = 0.0
        super().__init__(
            knobs=[self._slider(name, described[name], low, high, whole=kinds[name] is int)
                   for name, (low, high) in turn.items()],
            metrics=list(metrics), values={name: getattr(config, name) for name in turn}, total=config.rounds)
        self.observe(self._turned, "values")
        self.on_msg(self._told)

    @staticmethod
    def _slider(name: str, knob: Knob, low: float, high: float, *, whole: bool) -> dict[str, Any]:
        """What the view needs to know of a knob."""
        label = re.sub(r"lr$", "learning rate", name).replace("_", " ")
        return {"name": name, "label": label, "low": low, "high": high, "whole": whole, "log": knob.log,
                "unit": knob.unit, "meaning": knob.meaning}

    @property
    def rounds(self) -> list[Round]:
        """The Rounds of the run, finished so far."""
        return self.runner.rounds

    def _turned(self, change: dict[str, Any]) -> None:
        """Take the new values, or put the old ones back and say why."""
        try:
            known([k["name"] for k in self.knobs], change["new"])
            for knob in self.knobs:
                value = change["new"][knob["name"]]
                inside = isinstance(value, int | float) and knob["low"] <= value <= knob["high"]
                require(inside, knob["name"], value, f"choose from {knob['low']:g} to {knob['high']:g}")
            config = replace(self.runner.config(), **change["new"])
        except ParameterError as error:
            self.values = change["old"]
            self.notice = str(error)
            return
        self.runner.turn(config)
        self.notice = ""
        self.total = config.rounds

    def _told(self, _: object, content: dict[str, Any], __: object) -> None:
        command = content.get("command")
        if command in ("start", "pause", "stop"):
            getattr(self.runner, command)()

    def _show(self) -> None:
        """Send the run to the view: at most ten times a second, and always at a change of state."""
        runner, now = self.runner, time.monotonic()
        if runner.state == self.state == "running" and now - self._shown < 0.1:
            return
        self._shown, rounds = now, list(runner.rounds)
        with self.hold_sync():
            self.history = {"round": [r.number for r in rounds], "loss": [_finite(r.loss) for r in rounds]} | {
                name: [_finite(r.metrics.get(name)) for r in rounds] for name in self.metrics}
            if rounds:
                self.used = {name: getattr(rounds[-1].config, name) for name in self.values}
            self.message = runner.error or describe(runner.state, rounds, runner.config().rounds)
            self.state = runner.state


def describe(state: str, rounds: list[Round], total: int) -> str:
    """The status line: how far the run is, how long a round takes, how long the rest will."""
    if not rounds:
        return {"running": "Starting: the first round is under way."}.get(state, f"{state.capitalize()}.")
    recent = sorted(r.seconds for r in rounds[-10:])
    pace, left = recent[len(recent) // 2], max(total - rounds[-1].number, 0)
    device = rounds[-1].params[next(iter(rounds[-1].params))].device
    text = f"{state.capitalize()}: round {rounds[-1].number} of {total}, {pace:.2f} s a round on {device}"
    return f"{text}, about {left * pace:.0f} s left" if state == "running" and left else text


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a missing or diverged value leaves a gap in the chart."""
    return value if value is not None and math.isfinite(value) else None
