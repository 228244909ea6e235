"""Ordinary widgets for knobs: what they are, what they say, and a run that hears them."""

import math

import ipywidgets
import pytest
import traitlets

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Part, Settings, described, knob, register
from fedlab.workbench import Workbench, sliders

SMALL = Settings(rounds=6, cohort=4)
KINDS = {
    "cohort": ipywidgets.IntSlider,
    "trim": ipywidgets.FloatSlider,
    "local_lr": ipywidgets.FloatLogSlider,
    "optimizer": ipywidgets.Dropdown,
    "full_ranking": ipywidgets.Checkbox,
    "learn_start": ipywidgets.Checkbox,
    **dict.fromkeys(("uplink", "data", "device"), ipywidgets.Text),
}


@pytest.fixture
def panel():
    return sliders(SMALL)


def test_each_knob_of_the_registry_has_a_widget_that_starts_where_it_is(panel):
    assert set(panel) == set(described())
    assert panel.settings() == SMALL
    assert all(isinstance(panel[name], kind) for name, kind in KINDS.items())
    assert {"none", "clip", "poison"} <= {*panel["uplink"].options}


def test_a_widget_has_name_unit_meaning_range_and_steps_of_its_knob():
    panel = sliders(SMALL, {"cohort": (1, 64), "local_lr": (0.1, 10.0), "trim": None, "seed": None})
    cohort, rate, trim = panel["cohort"], panel["local_lr"], panel["trim"]
    assert (cohort.min, cohort.max, cohort.step, cohort.value) == (1, 64, 1, 4)
    assert cohort.description == "cohort (clients)"
    assert cohort.tooltip == described()["cohort"].knob.meaning
    assert panel["seed"].tooltip.endswith("; counts from the next run")
    assert (rate.min, rate.max, rate.value) == (-1.0, 1.0, SMALL.local_lr)
    assert rate.step == pytest.approx(0.01, rel=0.01)
    assert (trim.min, trim.max, trim.step) == (0.0, 0.45, pytest.approx(0.45 / 200, rel=0.02))


def test_a_slider_has_a_step_where_it_starts_as_it_shows_no_other_values(panel):
    for name, widget in panel.items():
        if isinstance(widget, ipywidgets.FloatLogSlider | ipywidgets.FloatSlider):
            start = panel.settings()[name]
            log = isinstance(widget, ipywidgets.FloatLogSlider)
            steps = ((math.log10(start) if log else start) - widget.min) / widget.step
            assert steps == pytest.approx(round(steps), abs=1e-6), name


def test_every_widget_can_be_turned_and_each_value_is_one_of_its_knob(panel):
    for widget in panel.values():
        if isinstance(widget, ipywidgets.Dropdown | ipywidgets.SelectionSlider):
            values = widget.options
        elif isinstance(widget, ipywidgets.Checkbox):
            values = (True, False)
        elif isinstance(widget, ipywidgets.FloatLogSlider):
            values = (10**widget.min, 10**widget.max)
        elif isinstance(widget, ipywidgets.Text):
            values = widget.options
        else:
            values = (widget.min, widget.max)
        for value in values:
            widget.value = value
            assert widget.value == value
    assert panel.said.value == ""
    assert panel.settings().seed == 100
    assert panel.settings().full_ranking == "off"
    assert panel.settings().learn_start == "no"


@pytest.mark.parametrize("end", [0.3, 1.1, 5.0, 9.7])
def test_the_ends_of_a_logarithmic_slider_are_reached_and_not_left(end):
    start = Settings(local_lr=end, server_lr=end)
    panel = sliders(start, {"local_lr": (end, 10.0), "server_lr": (0.1, end)})
    panel["local_lr"].value, panel["server_lr"].value = 10.0, 0.1
    assert panel.settings() == Settings(local_lr=10.0, server_lr=0.1)
    panel["local_lr"].value, panel["server_lr"].value = 0.01, 400.0  # it stops at its end
    assert panel.settings().local_lr == pytest.approx(end)
    assert panel.settings().server_lr == pytest.approx(end)
    assert panel.settings().local_lr >= end >= panel.settings().server_lr


def test_who_observes_hears_the_new_value_when_the_settings_have_it(panel):
    heard = []
    panel["cohort"].observe(lambda change: heard.append((change.new, panel.settings())), "value")
    panel["cohort"].value = 8
    assert heard == [(8, SMALL.replace(cohort=8))]


def test_a_turned_widget_reaches_a_run_at_its_next_round(build, clicks):
    panel = sliders(SMALL, {"cohort": (1, 16), "local_lr": None})
    run = federate(build("matrix factorisation", clicks.train), clicks, panel.settings)
    before = [len(next(run).cohort) for _ in range(2)]
    panel["cohort"].value = 9
    rest = list(run)
    assert before == [4, 4]
    assert [len(done.cohort) for done in rest] == [9, 9, 9, 9]
    assert rest[-1].settings.cohort == 9


def test_what_counts_from_the_next_run_does_not_disturb_this_one(build, clicks):
    panel, model = (
        sliders(SMALL, {"seed": None, "cohort": None}),
        build("matrix factorisation", clicks.train),
    )
    run = federate(model, clicks, panel.settings)
    next(run)
    panel["seed"].value, panel["cohort"].value = 7, 9
    *_, last = run
    assert (last.settings.seed, last.settings.cohort) == (0, 9)
    assert panel.settings() == SMALL.replace(seed=7, cohort=9)
    assert next(federate(model, clicks, panel.settings)).settings.seed == 7


def test_a_wrong_text_is_put_back_and_said_and_nobody_hears_of_it(panel):
    heard = []
    panel["uplink"].observe(heard.append, "value")
    panel["uplink"].value = "clip + nonsense"
    assert panel["uplink"].value == "none"
    assert panel.said.value.startswith("uplink='clip + nonsense': choose none, or some of clip, ")
    assert panel.settings() == SMALL
    assert heard == []
    panel["uplink"].value = "clip"
    assert (panel.said.value, panel.settings().uplink) == ("", "clip")


def test_a_browser_is_told_that_its_text_was_put_back(panel, monkeypatch):
    sent = []
    monkeypatch.setattr(
        type(panel["uplink"]), "_send", lambda _, message, buffers: sent.append(message)
    )
    panel["uplink"].set_state({"value": "nonsense"})
    assert panel["uplink"].value == "none"
    assert sent[-1]["state"] == {"value": "none"}
    assert panel.said.value.startswith("uplink='nonsense': ")


def test_a_choice_that_is_none_is_refused_by_its_widget(panel):
    with pytest.raises(traitlets.TraitError):
        panel["optimizer"].value = "nonsense"
    assert panel.settings() == SMALL


def test_usual_ends_give_way_to_where_a_knob_starts():
    assert described()["rounds"].knob.usual == (5, 300)
    panel = sliders(Settings(rounds=3, local_lr=20.0))
    assert (panel["rounds"].min, panel["rounds"].value) == (3, 3)
    assert panel["local_lr"].value == pytest.approx(20.0)
    assert panel.settings() == Settings(rounds=3, local_lr=20.0)


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"cohrt": None}, "cohrt=None: no such parameter; did you mean cohort?"),
        ({"cohort": (0, 5)}, r"turn\['cohort'\]=\(0, 5\): choose two growing numbers from 1 "),
        ({"cohort": (8, 64)}, "cohort=4: it starts there; let its slider, from 8 to 64, have it"),
        (
            {"optimizer": ("adamw",)},
            "optimizer='sgd': it starts there; let it be among the choices, adamw",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(turn, why):
    with pytest.raises(ParameterError, match=why):
        sliders(SMALL, turn)


def test_settings_may_be_a_plain_mapping_and_a_wrong_one_is_refused():
    assert sliders({"cohort": 8}, {}).settings() == Settings(cohort=8)
    with pytest.raises(ParameterError, match="cohort=0"):
        sliders({"cohort": 0})


def test_a_part_of_ones_own_has_its_widgets(own_parts):
    class Damped(Part):
        kind = "stage"
        damping: float = knob(0.5, 0.0, 1.0, "of the update", "what is left of it")

    register(Damped)
    panel = sliders(Settings(uplink="damped"), {"uplink": None, "damping": None})
    panel["damping"].value = 0.25
    assert panel["damping"].description == "damping (of the update)"
    assert panel.settings() == Settings(uplink="damped", damping=0.25)


def test_widgets_and_workbench_show_the_same_knobs_in_the_same_order(panel):
    bench = Workbench(lambda ask: iter(()), SMALL)
    assert list(panel) == [shown["name"] for shown in bench.spec["knobs"]]
    bench.close()
