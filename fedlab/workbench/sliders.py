"""Knobs as ordinary ipywidgets, for a page of one's own.

`Workbench` has a page; this has parts for another: a widget for each knob, made from the same
description, and the Settings that all of them say.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import ipywidgets
import traitlets

from fedlab.core import ParameterError, Settings, described, require
from fedlab.workbench.view import Turn, describe_knobs
from fedlab.workbench.widget import Attentive

STEPS = 200  # of a slider, from one end to the other, about
# choices that a tick says
SWITCHES: tuple[dict[bool, str], ...] = ({True: "on", False: "off"}, {True: "yes", False: "no"})


def sliders(settings: Mapping[str, Any], turn: Turn | None = None) -> "Sliders":
    """A widget for each knob, by name, and `settings()`, which is what they say now.

    settings: where the knobs start; those without a widget stay there. turn: the knobs to show,
    name -> (lowest, highest) on the slider, or the choices; None for its usual ones. By default all
    knobs of all registered parts are shown. `federate(model, data, panel.settings)` asks before
    each round, so a widget counts from the next one, also while its cell trains, as these widgets
    are heard then; knobs of which the tooltip says so count from the next run.

    Raises `ParameterError` for a knob that is unknown, and for one whose range leaves the knob's or
    has not where it starts.

    >>> from fedlab import Settings
    >>> panel = sliders(Settings(rounds=3), {"cohort": (1, 64), "optimizer": None})
    >>> panel["cohort"].value = 8
    >>> panel.settings()
    Settings(rounds=3, cohort=8)
    """
    return Sliders(settings, turn)


class Sliders(Mapping[str, Any]):
    """Widgets by the names of their knobs; see `sliders`.

    said: a Label with why the last text was refused, empty where it was not. A text that a knob
    does not take is put back at once; sliders and choices cannot leave their ranges.
    """

    def __init__(self, settings: Mapping[str, Any], turn: Turn | None = None) -> None:
        """Make the widgets: see `sliders`."""
        self._settings = Settings(**settings)
        self.said = ipywidgets.Label()
        self._widgets: dict[str, Any] = {}
        for knob in describe_knobs(self._settings, turn):
            name = knob["name"]
            told = bool(turn and turn[name])
            widget, read = _widget(knob, told, partial(self._taken, name))
            widget.observe(partial(self._turned, name, read), "value")
            self._widgets[name] = widget

    @property
    def settings(self) -> Callable[[], Settings]:
        """What gives the settings that the widgets say now.

        Knobs that count from the next run stay, in all that one such function gives, where they
        were when it was first called: so it is taken from the panel anew for each run.
        """
        fixed: dict[str, Any] = {}

        def ask() -> Settings:
            now = self._settings
            if not fixed:
                found = described().items()
                fixed.update({name: now[name] for name, each in found if not each.knob.live})
            return now.replace(**fixed)

        return ask

    def __getitem__(self, name: str) -> Any:
        return self._widgets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._widgets)

    def __len__(self) -> int:
        return len(self._widgets)

    def _turned(self, name: str, read: Callable[[Any], Any], change: dict[str, Any]) -> None:
        """Take what a widget has now; a text was checked before it got there.

        A text that was put back comes here as well, where it came from a browser.
        """
        turned = self._settings.replace(**{name: read(change["new"])})
        if turned != self._settings:
            self._settings, self.said.value = turned, ""

    def _taken(self, name: str, text: str) -> str:
        """The text, or the one before where the knob does not take it; then it is said why."""
        try:
            self._settings.replace(**{name: text})
        except ParameterError as error:
            self.said.value = str(error)
            return str(self._settings[name])
        return text


class _IntSlider(Attentive, ipywidgets.IntSlider):  # type: ignore[misc]
    pass


class _FloatSlider(Attentive, ipywidgets.FloatSlider):  # type: ignore[misc]
    pass


class _FloatLogSlider(Attentive, ipywidgets.FloatLogSlider):  # type: ignore[misc]
    pass


class _Dropdown(Attentive, ipywidgets.Dropdown):  # type: ignore[misc]
    pass


class _Checkbox(Attentive, ipywidgets.Checkbox):  # type: ignore[misc]
    pass


class _Typed(Attentive, ipywidgets.Combobox):  # type: ignore[misc]
    """A field for a text; taken: what becomes of one that was typed."""

    def __init__(self, taken: Callable[[str], str], **given: Any) -> None:
        self._taken = taken
        super().__init__(**given)

    @traitlets.validate("value")
    def _validate_value(self, proposal: dict[str, Any]) -> str:
        """Put a wrong text back before anybody hears of it; the browser is told, too."""
        return self._taken(proposal["value"])


def _widget(
    knob: Mapping[str, Any], told: bool, taken: Callable[[str], str]
) -> tuple[Any, Callable[[Any], Any]]:
    """The widget of a knob as the view describes it, and how its value is read."""
    unit = f" ({knob['unit']})" if knob["unit"] else ""
    common = {
        "description": knob["label"] + unit,
        "tooltip": knob["meaning"] + ("" if knob["live"] else "; counts from the next run"),
        "style": {"description_width": "initial"},
    }
    start = knob["start"]
    if knob["kind"] == "number":
        return _slider(knob, told, common)
    if knob["kind"] != "choice":
        choices = (["none"] if knob["kind"] == "several" else []) + knob["choices"]
        common |= {"options": choices, "continuous_update": False}  # taken as a whole
        return _Typed(taken, value=start, **common), str
    fix = f"it starts there; let it be among the choices, {', '.join(knob['choices'])}"
    require(start in knob["choices"], knob["name"], start, fix)
    for switch in SWITCHES:
        if {*knob["choices"]} == {*switch.values()}:
            return _Checkbox(start == switch[True], **common), switch.__getitem__
    return _Dropdown(options=knob["choices"], value=start, **common), str


def _slider(
    knob: Mapping[str, Any], told: bool, common: Mapping[str, Any]
) -> tuple[Any, Callable[[Any], Any]]:
    """A slider; told: whether its ends were said, or are the usual ones, which give way."""
    low, high, start = knob["low"], knob["high"], knob["start"]
    if told:
        fix = f"it starts there; let its slider, from {low:g} to {high:g}, have it"
        require(low <= start <= high, knob["name"], start, fix)
    low, high = min(low, start), max(high, start)
    if knob["whole"]:
        return _IntSlider(start, min=math.ceil(low), max=math.floor(high), **common), int
    log = knob["log"] and low > 0
    kind, bent = (_FloatLogSlider, math.log10) if log else (_FloatSlider, float)
    first, last, here = bent(low), bent(high), bent(start)
    step = (last - first) / STEPS
    if here > first:  # a slider shows the nearest of its steps: let one be where it starts
        step = (here - first) / max(round((here - first) / step), 1)
    made = kind(start, min=first, max=last, step=step, readout_format=".3g", **common)
    return made, lambda value: min(max(value, low), high)  # powers of ten are not exact
