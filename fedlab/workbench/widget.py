"""The live workbench: knobs, buttons, charts, runs and sweeps over a stream of Rounds.

It is one anywidget: Python sets traits, the files in `browser/` draw them, and commands come back
as messages. All traits are set under one lock, since rounds arrive on the runner's thread and
clicks on the kernel's. `session` does the work; `view` makes the plain data that is drawn.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from fedlab.core import (
    ParameterError,
    Round,
    Settings,
    known,
    require,
    settings_line,
    write_settings,
)
from fedlab.data import DataError
from fedlab.workbench import view
from fedlab.workbench.best.search import METRICS
from fedlab.workbench.experiment import Experiment, stream
from fedlab.workbench.export import KINDS, Events, export, zipped_model
from fedlab.workbench.guide import CARDS, CHALLENGES, Card, Challenge
from fedlab.workbench.inside import Look, Looker, Watcher
from fedlab.workbench.inside.recording import WHOLE, page, recording
from fedlab.workbench.runner import Live
from fedlab.workbench.runs import Run
from fedlab.workbench.session import Session
from fedlab.workbench.sweeps import Sweep, values

FILES = (
    "parts.js",
    "chart.js",
    "knobs.js",
    "runs.js",
    "sweep.js",
    "find.js",
    "guide/card.js",
    "guide/challenge.js",
    "inside/pictures.js",
    "inside/cards.js",
    "inside/panel.js",
    "workbench.js",
)
# seconds between redraws, where rounds allow; each takes training and the browser some time
PACE = 0.23
# what one module says of another: a line that imports, names or types, and the word export
BETWEEN = re.compile(r"^(?:import |/\*\* @import ).*\n|^export (?!default )", re.MULTILINE)
NO_MODEL = "only a workbench over fedlab.workbench.stream knows how its model was made"


def browser_files(*names: str) -> str:
    """The text of files of `browser/`, joined.

    Modules become one, since an anywidget has one: what they import is in it, and what they export
    stays, but for the widget itself, which the last one exports.
    """
    folder = Path(__file__).with_name("browser")
    return "\n".join(BETWEEN.sub("", (folder / n).read_text(encoding="utf-8")) for n in names)


class Attentive(ipywidgets.Widget):  # type: ignore[misc]
    """A widget that hears its browser while cells run.

    ipykernel (7.4) has a comm remember the shell of the cell that it was last heard from, and takes
    messages there: clicks would wait for the cells that run. So it forgets that shell, and answers
    in whatever subshell the next message comes for.
    """

    def open(self) -> None:
        """Tell the browser that the widget is there."""
        super().open()
        self._forget_shell()

    def _send(self, msg: Any, buffers: Any = None) -> None:
        super()._send(msg, buffers)
        self._forget_shell()

    def _forget_shell(self) -> None:
        lock = getattr(self.comm, "_reply_subshell_lock", None)
        if lock is not None:
            with lock:
                if hasattr(self.comm, "_reply_subshell_id"):
                    delattr(self.comm, "_reply_subshell_id")


class View(Attentive, anywidget.AnyWidget):
    """A widget with a page of its own, whose buttons work while cells run."""


class Workbench(View):
    """Knobs of all that is registered, live charts, runs to compare and sweeps.

    live: a function from a settings-giving function to a stream of Rounds, say

        lambda settings: measured(federate(model, clients, settings), measure)

    settings: where the knobs start. turn: the knobs to show, name -> (lowest, highest) on the
    slider, or the choices; None for its usual ones. By default all knobs are shown, most of them
    folded away in groups. Those that nothing reads in the present combination are greyed out, with
    the reason, where live is `stream`. metrics: name of a Round metric -> whether 'max' or 'min' is
    better. folder: where runs are kept, each in one of its own; by default only in memory. presets:
    name -> settings to take at once. cards: name of a preset -> what stands beside it; by default
    those of `PRESETS`. challenges: name -> what may be tried; by default `CHALLENGES`, where all
    knobs of `stream` are shown. sweeps: whether there is a panel for them, which live must be able
    to train side by side. `rounds` holds the finished Rounds of the last run, `session` the
    runs and what the buttons do.
    """

    _esm = browser_files(*FILES)
    _css = browser_files("workbench.css")
    spec: Any = traitlets.Dict().tag(sync=True)  # what never changes: knobs, series, presets
    values: Any = traitlets.Dict().tag(sync=True)  # where the knobs stand
    used: Any = traitlets.Dict().tag(sync=True)  # where they stood when the last round began
    unread: Any = traitlets.Dict().tag(sync=True)  # knobs without effect as the others stand -> why
    lacks: Any = traitlets.List().tag(sync=True)  # metrics that the next run would not measure
    charts: Any = traitlets.List().tag(sync=True)  # names of those on show
    state = traitlets.Unicode("ready").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)  # why something was refused
    wrong: Any = traitlets.Dict().tag(sync=True)  # the knob whose value was -> why
    news = traitlets.Unicode("").tag(sync=True)  # what was done and cannot be seen
    saving = traitlets.Unicode("").tag(sync=True)  # where runs are kept, or why not
    challenge: Any = traitlets.Dict().tag(sync=True)  # the one that is on, and how it stands
    preset: Any = traitlets.Dict().tag(sync=True)  # the one chosen last, and what was turned since
    text = traitlets.Unicode("").tag(sync=True)  # all settings as JSON
    line = traitlets.Unicode("").tag(sync=True)  # the same on one line
    picture: Any = traitlets.Dict().tag(sync=True)  # the lines and spreads
    table: Any = traitlets.List().tag(sync=True)  # the runs
    report = traitlets.Unicode("").tag(sync=True)  # what the best model that was found is worth
    heat: Any = traitlets.Dict().tag(sync=True)  # the map of a sweep
    inside: Any = traitlets.Dict().tag(sync=True)  # whether rounds are looked into, who is followed
    stays: Any = traitlets.Dict().tag(sync=True)  # of the clients and items that are shown
    dots: Any = traitlets.Dict().tag(sync=True)  # who took part in the last round
    seen: Any = traitlets.Dict().tag(sync=True)  # what was seen at the last look
    looking: Any = traitlets.Bool(False).tag(sync=True)  # whether another look is under way

    def __init__(
        self,
        live: Live,
        settings: Settings,
        turn: view.Turn | None = None,
        metrics: Mapping[str, str] | None = None,
        *,
        folder: str | Path | None = None,
        presets: Mapping[str, Settings] | None = None,
        cards: Mapping[str, Card] | None = None,
        challenges: Mapping[str, Challenge] | None = None,
        sweeps: bool = True,
    ) -> None:
        """Raise `ParameterError` for a knob that is unknown or whose slider leaves its range.

        And for a card of no preset.
        """
        presets = presets or {}
        known(list(presets), cards or {})
        if challenges is None:
            challenges = CHALLENGES if live is stream and turn is None else {}
        require(live is stream or not challenges, "challenges", list(challenges), NO_MODEL)
        self._guard, self._pens = threading.RLock(), view.Pens()
        self._drawn = self._heard = 0.0  # when it was drawn, when a round last ended
        self._in_use: Settings | None = None
        self._events: Events | None = None  # where TensorBoard reads, once it was asked for
        self._watcher: Watcher | None = None  # looks into rounds, while that is on show
        self._looker: Looker | None = None  # the last one of it
        self._on_show: Run | None = None  # the run that it looks into
        self._saw_all: dict[str, Any] = {}  # at the last look, also what a challenge hides
        self.session = Session(
            live, settings, metrics or {}, folder, presets, self._changed, challenges
        )
        super().__init__(
            spec={
                "knobs": view.describe_knobs(settings, turn),
                "metrics": self.session.metrics,
                "presets": list(presets),
                "cards": view.cards(presets, CARDS if cards is None else cards),
                "challenges": list(challenges),
                "finds": list(METRICS) if live is stream else [],
                "inside": live is stream,
                "sweeps": sweeps,
                "exports": [*KINDS, *(["model", "replay"] if live is stream else [])],
                "lines": [*self.session.metrics, *view.TRAFFIC, view.CLOCK],
                "spreads": view.SPREADS,
                "meanings": view.MEANINGS,
            },
            charts=[*self.session.metrics, "loss by client"],
            inside={"on": False, "user": "", "item": "", "at": -1},
        )
        self._show_knobs()
        self.draw()
        self.observe(self._turned, "values")
        self.observe(self.draw, "charts")
        self.on_msg(self._told)

    @property
    def rounds(self) -> list[Round]:
        """The Rounds of the last run, finished so far."""
        members = self.session.members
        return members[-1].rounds if members else []

    def _handle_msg(self, msg: dict[str, Any]) -> None:
        """Take a message of the comm; one of another shape is refused in the view."""
        try:
            view.check_message(msg["content"].get("data"))
        except ParameterError as error:
            self._refused(error)
        else:
            super()._handle_msg(msg)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take traits that were set in the browser; those that may not be are put back there."""
        with self._guard:
            try:
                view.check_state(sync_data, self.spec)
            except ParameterError as error:
                self._refused(error)
                self.send_state(["values", "charts"])
            else:
                super().set_state(sync_data)

    def _refused(self, error: ParameterError) -> None:
        with self._guard:
            self.notice = str(error)

    def _turned(self, change: dict[str, Any]) -> None:
        """Take the new values, or put the old ones back and say why."""
        settings, name = self.session.settings, ""
        try:
            shown = {knob["name"]: knob for knob in self.spec["knobs"]}
            known(list(shown), change["new"])
            turned = {n: v for n, v in change["new"].items() if v != settings[n]}
            for name, value in turned.items():
                view.check_turn(shown[name], value)
            self.session.settings = settings.replace(**turned)
        except ParameterError as error:
            self.values, self.notice = change["old"], str(error)
            self.wrong = {name: str(error).removeprefix(f"{name}=")} if name else {}
            return
        self.notice, self.wrong = "", {}
        self._show_knobs()
        self._look()

    def _show_knobs(self) -> None:
        """Show the knobs, and all settings as text, as they stand now."""
        session = self.session
        with self._guard, self.hold_sync():
            settings = session.settings
            self.values = {knob["name"]: settings[knob["name"]] for knob in self.spec["knobs"]}
            self.unread, self.lacks = session.unread(settings), session.lacks(settings)
            self.preset = {"name": session.chosen, "turned": session.since}
            read = session.read
            self.text, self.line = write_settings(read), settings_line(read)

    def _told(self, _: object, content: object, __: object) -> None:
        """Do what a button says; what cannot be done is said, and changes nothing."""
        session = self.session
        commands: dict[str, Callable[..., None]] = {
            "start": session.start,
            "pause": session.runner.pause,
            "step": session.step,
            "stop": session.stop,
            "reset": session.reset,
            "undo": session.undo,
            "resume": session.resume,
            "pin": session.pin,
            "preset": session.preset,
            "compare": session.compare,
            "settings": session.paste,
            "rename": session.runs.rename,
            "delete": session.runs.delete,
            "folder": session.runs.open,
            "sweep": self._sweep,
            "find": session.find,
            "export": self._export,
            "tensorboard": self._tensorboard,
            "see": self._see,
            "follow": self._follow,
            "at": self._go_to,
            "branch": session.branch,
            "challenge": session.take_up,
            "accuse": session.accuse,
        }
        notice = ""
        with self._guard:
            self.news = ""
        try:
            name, given = view.command(content)
            commands[name](*given)
        except (ParameterError, DataError, OSError) as error:
            notice = str(error)
        self._show_knobs()
        with self._guard:
            self.notice, self.wrong = notice, {}
        self.draw()
        self._look()

    def _sweep(self, over: Mapping[str, str], metric: str, count: int) -> None:
        found = {name: values(name, text) for name, text in over.items()}
        self.session.sweep(Sweep(found, metric, self.session.metrics.get(metric, "max"), count))

    def _export(self, kind: str) -> None:
        if kind == "model":
            return self.send({"file": "fedlab-model.zip"}, [self._model()])
        if kind == "replay":
            return self.send({"file": "fedlab-replay.html"}, [self._replay()])
        return self.send({"file": f"fedlab-runs.{kind}"}, [export(self.session.shown(), kind)])

    def _model(self) -> bytes:
        """The best model of the last run that the charts show, or the last in memory; its card."""
        require(self.session.live is stream, "export", "model", NO_MODEL)
        kept = [
            run
            for run in self.session.shown()
            if run.home or (run.rounds and run.rounds[-1].params)
        ]
        require(len(kept) > 0, "model", "none", "train a run first; ended ones keep no parameters")
        run, best = kept[-1], self.session.found
        if best and best.run == run.id:
            return best.zipped()
        here = self.session.runs.at_best(run.id) if run.home else None
        done, then = here or (run.rounds[-1], run)
        if here:
            with self._guard:
                self.news = run.better(then.records[-1], self.session.runs.metrics)
        made = Experiment(Settings(**then.last_settings))
        return zipped_model(made, done, then.records, baselines=("chance", "popularity"))

    def _replay(self) -> bytes:
        """The run on show as a page that plays it without Python."""
        session, inside = self.session, self.inside
        require(session.live is stream, "export", "replay", NO_MODEL)
        run = session.members[-1] if session.members else None
        if run is None or not run.records or session.runner.state in ("running", "stopping"):
            raise ParameterError("export='replay': train a run first, and let it end or pause")
        with self._guard:
            self.news = "Recording: rounds are looked into, which takes up to half a minute"
        looker = Looker(Settings(**run.settings))
        looks = recording(looker, run, session.runs.frames, inside["user"], inside["item"])
        looks = [look | {"seen": self._unspoilt(look["seen"])} for look in looks]
        files = browser_files(*FILES[:-1], "inside/recorded.js", FILES[-1])
        traits = {name: getattr(self, name) for name in WHOLE} | {"stays": looker.stays}
        with self._guard:
            self.news = (
                "The page holds ids of users and names of items and, of the user who is followed, "
                "clicks; think of that before you pass it on"
            )
        return page(traits, looks, files, self._css)

    def _tensorboard(self) -> None:
        """Write what the charts show, and from now on each round as it comes."""
        folder = Path(self.session.runs.folder or "runs", "tensorboard")
        with self._guard:
            events = self._events
            if events is None or events.folder != folder:
                events = Events(folder)
            events.write(self.session.shown())
            self._events = events
            self.news = f"Rounds are written as they come. Look with: tensorboard --logdir {folder}"

    def _write_events(self) -> None:
        """Write new rounds, where TensorBoard was asked for once."""
        with self._guard:
            if self._events is None:
                return
            try:
                self._events.write(list(self.session.members))
            except (ParameterError, OSError) as error:
                self._events, self.notice = None, f"TensorBoard gets no more rounds: {error}"

    def _see(self, on: bool) -> None:
        """Begin to look into rounds, or end it."""
        require(self.session.live is stream, "see", "a stream of your own", NO_MODEL)
        if on and self._watcher is None:
            self._watcher = Watcher(self._wanted, self._saw)
        elif not on and self._watcher:
            self._watcher.close()
            self._watcher = None
        with self._guard:
            self.inside = self.inside | {"on": on}

    def _follow(self, what: str, name: str) -> None:
        """Follow a user or an item by id, "" for nobody; one that is unknown changes nothing."""
        require(what in ("user", "item"), "follow", what, "choose user or item")
        if self._looker is None:
            raise ParameterError(f"follow={name!r}: press See the round first, and wait for it")
        self._looker.check(what, name)
        with self._guard:
            self.inside = self.inside | {what: name}

    def _go_to(self, number: int) -> None:
        """Look from a round of the run on show from now on; -1: from the newest one."""
        with self._guard:
            self.inside = self.inside | {"at": number}

    def _saw(self, looker: Looker | None, found: dict[str, Any]) -> None:
        """Show what the watcher saw."""
        with self._guard, self.hold_sync():
            if looker is not self._looker:
                self._looker = looker
                self.stays = looker.stays if looker else {}
            self._saw_all = found
            self.seen = self._unspoilt(found)
            self.looking = self.looking and bool(self._watcher and self._watcher.waiting)
        self._draw_dots()

    def _unspoilt(self, found: dict[str, Any]) -> dict[str, Any]:
        """What was seen, but for what the challenge that is on is about."""
        attempt = self.session.attempt
        return view.unspoilt(found) if attempt and attempt.hides else found

    def _draw_dots(self) -> None:
        """Show who took part in the last round."""
        members = self.session.members
        if self._looker and self._watcher:
            with self._guard:
                at = self.inside["at"]
                last = None if at < 0 else at
                self.dots = self._looker.dots(members[-1] if members else None, last)

    def _wanted(self) -> Look:
        inside = self.inside
        return self.session.next_look(inside["user"], inside["item"], inside["at"])

    def _look(self) -> None:
        """Ask for a look, where rounds are looked into; not while a first round is made ready."""
        runner, members = self.session.runner, self.session.members
        if self._watcher and not (runner.busy and members and not members[-1].records):
            busy = runner.state == "running"
            with self._guard:
                self.looking = not busy
            self._watcher.ask(busy=busy)

    def _changed(self) -> None:
        """Draw when the state or the knobs in use changed, or the next round would be too late."""
        self._write_events()
        self._look()
        now, other = time.monotonic(), self.session.in_use is not self._in_use
        self._heard, gap = now, now - self._heard
        if other or self.session.runner.state != self.state or now - self._drawn + gap >= PACE:
            self.draw()

    def _forget_seen(self) -> None:
        """Look from the newest round of another run, without what was seen of the one before."""
        self._saw_all = self.seen = self.dots = {}
        self.inside = self.inside | {"at": -1}

    def draw(self, _: object = None) -> None:
        """Send the view what changed; what is equal is not sent."""
        session, runs = self.session, self.session.runs
        with self._guard, self.hold_sync():
            if (on_show := session.members[-1] if session.members else None) is not self._on_show:
                self._on_show = on_show
                self._forget_seen()
            self._drawn, self._in_use = time.monotonic(), session.in_use
            last = session.members[-1] if session.members else None
            shown, listed = session.shown(), runs.listed()
            self.picture = self._pens.picture(
                shown,
                last,
                self.charts,
                session.settings.rounds,
                session.progress,
                session.compared,
            )
            if self._pens.changed(listed):
                self.table = view.table(
                    listed[: -view.ROWS - 1 : -1], self._pens.colours, session.metrics
                )
            self.heat = view.heat(session.mapped, runs.all)
            self.challenge = view.challenge(session.attempt, list(session.members))
            self.seen = self._unspoilt(self._saw_all)
            in_use = session.in_use
            self.used = {name: in_use[name] for name in self.values} if in_use else {}
            self.report = session.found.report if session.found else ""
            self.saving = runs.trouble or (
                f"Runs are kept in {runs.folder}"
                if runs.folder
                else "Runs are kept in memory, until the kernel ends"
            )
            self.message = session.runner.error or view.status(session, self._pens.sums(last))
            self.state = session.runner.state
            self._draw_dots()
