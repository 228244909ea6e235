"""The traits behind the live view, and what its messages do.

What a browser sees is in test_browser_workbench.py.
"""

import gc
import json
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from waiting import until

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Part, Settings, described, knob, knobs, measured, register
from fedlab.workbench import Workbench, better, stream

SMALL = Settings(rounds=6, cohort=4)
TURN = {
    "cohort": (1, 671),
    "rounds": (1, 300),
    "local_lr": (0.1, 2.0),
    "seed": (0, 9),
    "weighting": None,
}


@pytest.fixture(scope="module")
def live(build, clicks):
    model = build("matrix factorisation", clicks.train)
    return lambda settings: measured(
        federate(model, clicks, settings), lambda done: {"number": float(done.number)}
    )


@pytest.fixture
def bench(live):
    made = Workbench(live, SMALL, TURN, {"number": "max"}, presets={"two": SMALL.replace(cohort=2)})
    yield made
    made.session.runner.stop()
    made.close()


def tell(bench, command, *given):
    """Send what a button sends."""
    bench._told(None, {"command": command, "given": list(given)}, None)


def ends(bench, state="done"):
    until(lambda: bench.state == state)


def test_a_run_ends_with_its_rounds_as_plain_data(bench):
    tell(bench, "start")
    ends(bench)
    assert [r.number for r in bench.rounds] == [1, 2, 3, 4, 5, 6]
    (line,) = bench.picture["lines"]
    assert line["series"]["number"] == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    assert line["series"]["loss"][1] == [float(f"{r.loss:.5g}") for r in bench.rounds]
    assert [bool(r.params) for r in bench.rounds] == [False] * 5 + [True]
    assert bench.message.startswith("Done: round 6 of 6")
    assert "MB up" in bench.message
    assert bench.used == {
        "cohort": 4,
        "rounds": 6,
        "local_lr": 0.5,
        "seed": 0,
        "weighting": "examples",
    }
    assert bench.picture["progress"] == 1
    (row,) = bench.table
    assert row["best"]["number"] == [6.0, 6]


def test_a_live_run_equals_a_run_in_a_cell(bench, live):
    tell(bench, "start")
    ends(bench)
    plain = list(live(lambda: SMALL))
    assert [r.loss for r in bench.rounds] == [r.loss for r in plain]
    assert all((bench.rounds[-1].params[n] == plain[-1].params[n]).all() for n in plain[-1].params)


def test_pause_holds_and_a_turned_knob_counts_from_the_next_round(bench):
    bench.values = bench.values | {"rounds": 300}
    tell(bench, "start")
    until(lambda: len(bench.rounds) >= 2)
    tell(bench, "pause")
    assert bench.state == "paused"
    time.sleep(0.3)
    held = len(bench.rounds)
    time.sleep(0.3)
    assert len(bench.rounds) == held
    bench.values = bench.values | {"cohort": 9}
    tell(bench, "start")
    until(lambda: len(bench.rounds) > held)
    tell(bench, "stop")
    ends(bench, "stopped")
    assert {len(r.cohort) for r in bench.rounds[:held]} == {4}
    assert len(bench.rounds[held].cohort) == 9
    assert bench.used["cohort"] == 9
    assert bench.session.members[-1].used()["cohort"] == [4, 9]


def test_a_step_is_one_round(bench):
    for count in (1, 2, 3):
        tell(bench, "step")
        until(lambda count=count: len(bench.rounds) == count and bench.state == "paused")
        time.sleep(0.1)
        assert len(bench.rounds) == count
    tell(bench, "start")
    ends(bench)
    assert len(bench.rounds) == 6


def test_knobs_of_the_next_run_stay_as_the_run_started(bench):
    tell(bench, "step")
    until(lambda: bench.state == "paused")
    bench.values = bench.values | {"seed": 5}
    tell(bench, "step")
    until(lambda: len(bench.rounds) == 2)
    assert {r.settings.seed for r in bench.rounds} == {0}
    tell(bench, "stop")
    ends(bench, "stopped")
    tell(bench, "step")
    until(lambda: bench.state == "paused")
    assert bench.rounds[0].settings.seed == 5


def test_reset_stops_and_puts_everything_back(bench):
    bench.values = bench.values | {"rounds": 300, "cohort": 9}
    tell(bench, "start")
    until(lambda: bench.rounds)
    tell(bench, "reset")
    assert (bench.state, bench.rounds, bench.picture["lines"]) == ("ready", [], [])
    assert bench.values["cohort"] == 4
    assert bench.message == "Press Start."
    assert [row["state"] for row in bench.table] == ["stopped"]


def test_an_ended_run_keeps_its_parameters_until_the_next_begins(bench):
    tell(bench, "start")
    ends(bench)
    first = bench.rounds
    tell(bench, "start")
    until(lambda: bench.rounds and bench.rounds is not first)
    ends(bench)
    assert first[-1].params  # what the learner holds is left alone
    assert [bool(run.rounds[-1].params) for run in bench.session.runs.listed()] == [False, True]


def test_only_one_run_is_active(live):
    def endless(ask):
        yield from live(lambda: ask().replace(rounds=10_000))

    first, second = (Workbench(endless, SMALL, {}) for _ in range(2))
    for one in (first, second):
        tell(one, "start")
        until(lambda one=one: one.rounds)
    assert first.state == "stopped"
    Workbench(live, SMALL, TURN).close()  # running the cell again stops it, too
    assert second.state == "stopped"
    assert not [t for t in threading.enumerate() if t.name == "fedlab"]
    for one in (first, second):
        one.close()


def test_an_error_shows_in_the_status_and_the_rounds_before_it_stay(bench):
    bench.values = bench.values | {"rounds": 300}
    tell(bench, "start")
    until(lambda: bench.rounds)
    bench.session.settings = SMALL.replace(cohort=999, rounds=300)
    ends(bench, "failed")
    assert bench.message.startswith("ParameterError: cohort=999: the federation has 671 clients")
    tell(bench, "pin", bench.table[0]["id"], True)  # whatever else is done, it does not vanish
    assert bench.message.startswith("ParameterError: cohort=999")
    assert bench.rounds
    assert bench.table[0]["error"].startswith("ParameterError")
    bench.session.settings = SMALL
    tell(bench, "start")
    ends(bench)


def test_the_status_tells_what_prepares_and_why_clients_are_stacked(build, clicks):
    model, begun, go = build("matrix factorisation", clicks.train), [], threading.Event()
    unknown = replace(model, predict=partial(model.predict))

    def slow(settings):
        begun.append(True)
        go.wait()
        yield from federate(unknown, clicks, settings)

    bench = Workbench(slow, SMALL.replace(rounds=1), {}, {})
    try:
        tell(bench, "start")
        until(lambda: begun and bench.message.startswith("Preparing the first round"))
        go.set()
        ends(bench)
        why = f"clients are stacked: no compiled client for the model {model.name!r}"
        assert bench.message.endswith(why)
    finally:
        go.set()
        bench.session.runner.stop()
        bench.close()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"cohort": 0}, "cohort=0: choose from 1 to 671"),
        ({"cohort": 2.5}, "cohort=2.5: choose a whole number"),
        ({"local_lr": 5.0}, "local_lr=5.0: choose from 0.1 to 2"),
        ({"local_lr": "<b>1</b>"}, "local_lr='<b>1</b>': choose from 0.1 to 2"),
        ({"weighting": "none"}, "weighting='none': choose one of examples, equal"),
        ({"memory_mb": 3}, "memory_mb=3: no such parameter"),
    ],
)
def test_a_bad_value_is_put_back_and_explained(bench, value, message):
    before = dict(bench.values)
    bench.values = bench.values | value
    assert bench.values == before
    assert bench.notice.startswith(message)
    bench.values = bench.values | {"cohort": 7}
    assert bench.notice == ""
    assert bench.session.settings.cohort == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"fedlab": 2, "settings": {"cohort": 5, "rouds": 2}}',
            "rouds=2: no such parameter; did you mean rounds?",
        ),
        (
            '{"fedlab": 2, "settings": {"cohort": 5, "local_lr": 1e9}}',
            "local_lr=1000000000.0: choose a number from 0",
        ),
        (
            '{"fedlab": 2, "settings": {"uplink": "clip + nois"}}',
            "uplink='clip + nois': choose none, or some of clip",
        ),
        (
            '{"fedlab": 1, "settings": {"cohort": 5}}',
            "fedlab=1: these settings are of another version",
        ),
        ("cohort: 5", "settings='cohort: 5': not JSON (Expecting value in line 1)"),
        ("[1]", 'settings=[1]: write {"fedlab": 2'),
    ],
)
def test_pasted_settings_that_are_wrong_touch_nothing(bench, text, message):
    bench.values = bench.values | {"rounds": 300}
    tell(bench, "start")
    until(lambda: bench.rounds)
    before = bench.session.settings
    tell(bench, "settings", text)
    assert bench.notice.startswith(message)
    assert bench.session.settings == before
    assert bench.state == "running"


def test_settings_and_presets_are_taken_whole(bench):
    tell(bench, "settings", '{"fedlab": 2, "settings": {"cohort": 5, "memory_mb": 64}}')
    assert bench.values["cohort"] == 5
    assert bench.session.settings.memory_mb == 64  # also what has no knob here
    assert json.loads(bench.text)["settings"]["memory_mb"] == 64
    assert bench.session.settings == SMALL.replace(cohort=5, memory_mb=64)  # the rest as it began
    tell(bench, "settings", '{"fedlab": 2, "whole": true, "settings": {"cohort": 5}}')
    assert bench.session.settings == Settings(cohort=5)
    tell(bench, "preset", "two")
    assert bench.session.settings == SMALL.replace(cohort=2)
    tell(bench, "preset", "three")
    assert bench.notice.startswith("three='three': no such parameter")


def test_unknown_commands_and_runs_are_refused(bench):
    tell(bench, "_draw")
    assert bench.notice.startswith("command='_draw': choose one of start, pause")
    tell(bench, "pin", "../x", True)
    assert bench.notice.startswith("run='../x': there is no such run")
    assert bench.state == "ready"


def test_a_sweep_fills_its_map_and_stop_keeps_what_is_done(bench):
    tell(bench, "sweep", {"local_lr": "0.5, 1", "weighting": "equal, examples"}, "number", 0)
    ends(bench)
    assert bench.heat["planned"] == len(bench.heat["cells"]) == 4
    assert [cell["at"] for cell in bench.heat["cells"]] == [
        [0.5, "equal"],
        [1.0, "equal"],
        [0.5, "examples"],
        [1.0, "examples"],
    ]
    assert {cell["value"] for cell in bench.heat["cells"]} == {6.0}
    tell(bench, "pin", bench.heat["cells"][2]["run"], True)
    assert {line["name"] for line in bench.picture["lines"]} >= {"local_lr=0.5, weighting=examples"}
    bench.values = bench.values | {"rounds": 100}
    tell(bench, "sweep", {"local_lr": "0.5, 1"}, "loss", 9)
    until(lambda: bench.picture["done"] > 3)
    tell(bench, "stop")
    ends(bench, "stopped")
    assert 0 < len(bench.heat["cells"]) < 9
    assert {cell["state"] for cell in bench.heat["cells"]} == {"stopped"}
    assert all(cell["value"] for cell in bench.heat["cells"])
    tell(bench, "sweep", {"local_lr": "0.5, fast"}, "loss", 0)
    assert bench.notice.startswith("local_lr='fast': choose a number")


def test_runs_are_exported_and_kept_where_the_learner_says(bench, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(
        bench, "send", lambda content, buffers: sent.append((content["file"], buffers[0]))
    )
    tell(bench, "export", "csv")
    assert bench.notice.startswith("runs=0: there is nothing to export yet")
    tell(bench, "start")
    ends(bench)
    tell(bench, "folder", str(tmp_path / "mine"))
    assert bench.saving == f"Runs are kept in {tmp_path / 'mine'}"
    for kind in ("csv", "json", "png"):
        tell(bench, "export", kind)
    assert [name for name, _ in sent] == ["fedlab-runs.csv", "fedlab-runs.json", "fedlab-runs.png"]
    tell(bench, "rename", bench.table[0]["id"], "<script>alert(1)</script>")
    assert bench.table[0]["name"] == "<script>alert(1)</script>"  # text, here and on the page
    (kept,) = (tmp_path / "mine").iterdir()
    tell(bench, "delete", bench.table[0]["id"])
    assert not kept.exists()
    assert bench.table == []


def test_knobs_come_from_the_settings_and_bad_sliders_are_refused(live):
    bench = Workbench(live, SMALL, {"local_lr": (0.1, 1.0), "optimizer": None, "rounds": None})
    rate, rule, rounds = bench.spec["knobs"]
    assert (rate["label"], rate["whole"], rate["log"], rate["kind"]) == (
        "local learning rate",
        False,
        True,
        "number",
    )
    assert "step size" in rate["meaning"]
    assert (rule["kind"], rule["choices"]) == ("choice", ["sgd", "adamw"])
    assert (rounds["low"], rounds["high"]) == (5, 300)
    bench.close()
    assert len(Workbench(live, SMALL).spec["knobs"]) == len(described())
    with pytest.raises(
        ParameterError, match=r"local_rate=\(0, 1\): no such parameter; did you mean local_lr"
    ):
        Workbench(live, SMALL, {"local_rate": (0, 1)})
    with pytest.raises(
        ParameterError, match=r"turn\['rounds'\]=\(0, 5\): choose two growing numbers from 1"
    ):
        Workbench(live, SMALL, {"rounds": (0, 5)})
    with pytest.raises(ParameterError, match=r"optimizer='adam': choose one of"):
        Workbench(live, SMALL, {"optimizer": ("sgd", "adam")})
    with pytest.raises(ParameterError, match=r"metrics\['number'\]='up': write 'min'"):
        Workbench(live, SMALL, {}, {"number": "up"})
    gc.collect()


def test_what_nothing_reads_is_greyed_out_and_left_out(tiny_settings):
    start = Settings(
        **tiny_settings
        | {
            "uplink": "clip + gaussian noise",
            "noise": 2.0,
            "clip": 0.5,
            "teaching_seed": 0,
            "delta": 0.01,
        }
    )
    bench = Workbench(stream, start, metrics=better())
    assert {"trim", "alpha", "weighting", "buffer"} <= set(bench.unread)
    assert not {"noise", "clip", "delta", "cohort"} & set(bench.unread)
    bench.values = bench.values | {
        "uplink": "clip",
        "server_optimizer": "adam",
        "server_momentum": 0.5,
    }
    assert bench.unread["noise"].endswith(
        "beside clip; gaussian noise, local noise, distributed gaussian would"
    )
    assert bench.values["noise"] == 2.0  # it waits for its part
    assert json.loads(bench.text)["settings"].keys() & {"noise", "clip", "server_momentum"} == {
        "clip",
        "server_momentum",
    }
    tell(bench, "start")
    ends(bench)
    assert bench.session.members[-1].settings == tiny_settings | {
        "uplink": "clip",
        "clip": 0.5,
        "server_optimizer": "adam",
        "server_momentum": 0.5,
    }
    tell(bench, "step")
    until(lambda: bench.state == "paused")
    bench.values = bench.values | {"server_optimizer": "sgd"}  # on the way, in a run
    assert bench.unread["server_momentum"].startswith("server step does not read it")
    tell(bench, "start")
    ends(bench)
    assert bench.session.members[-1].used()["server_momentum"] == [0.5, 0.9]
    tell(bench, "sweep", {"uplink": "none, clip + gaussian noise"}, "ndcg@10", 0)
    ends(bench)
    assert [run.settings.get("noise") for run in bench.session.members] == [None, 2.0]
    assert bench.heat["over"] == [{"name": "uplink", "values": ["none", "clip + gaussian noise"]}]
    assert {cell["state"] for cell in bench.heat["cells"]} == {"done"}
    bench.close()


@pytest.mark.usefixtures("own_parts")
def test_what_a_stream_reads_itself_is_recorded_as_it_was_turned(live):
    @register
    class Lesson(Part):
        """A knob that the loop never sees."""

        kind = "lesson"
        shift: float = knob(0.0, -9.0, 9.0, "", "what is added to a number")

    def shifted(ask):
        def training():
            return ask().without(knobs(Lesson))

        return measured(live(training), lambda done: {"number": done.number + ask().shift})

    bench = Workbench(
        shifted, SMALL.replace(shift=2.0), {"shift": None, "rounds": None}, {"number": "max"}
    )
    tell(bench, "step")
    until(lambda: bench.state == "paused")
    bench.values = bench.values | {"shift": -3.0}
    tell(bench, "start")
    ends(bench)
    (run,) = bench.session.members
    assert run.used()["shift"] == [2.0, -3.0]
    assert [record["number"] for record in run.records] == [3.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert [used["shift"] for used in run.settings_by_round()] == [2.0] + [-3.0] * 5
    bench.close()


def test_of_a_stream_of_your_own_every_knob_is_shown_as_it_is(bench):
    assert bench.unread == {}


def test_a_diverged_loss_leaves_a_gap_and_not_a_broken_message(live):
    def broken(ask):
        for done in live(ask):
            yield replace(done, losses=done.losses * float("nan")) if done.number == 2 else done

    bench = Workbench(broken, SMALL.replace(rounds=3), {})
    tell(bench, "start")
    ends(bench)
    losses = bench.picture["lines"][0]["series"]["loss"][1]
    assert [loss is None for loss in losses] == [False, True, False]
    json.dumps([bench.picture, bench.table], allow_nan=False)
    bench.close()


@pytest.mark.usefixtures("own_parts")
def test_the_examples_of_the_page_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "workbench.md").read_text()
    for example in re.findall(r"```python\n(.+?)```", page, re.S):
        found: dict = {"__name__": "page"}
        exec(compile(example, "workbench.md", "exec"), found)
        if "bench" not in found:
            continue
        bench = found["bench"]
        tell(bench, "start")
        until(lambda bench=bench: len(bench.rounds) >= 3)
        bench.session.runner.stop()
        bench.close()
    assert bench.session.members[-1].settings == {"uplink": "dropped + clip", "kept": 0.2}
    assert (tmp_path / "my-model" / "model.safetensors").exists()
    assert len(list(tmp_path.glob("runs/*/log.jsonl"))) == 1


def test_a_long_run_is_drawn_in_bounded_size(live):
    bench = Workbench(live, SMALL.replace(rounds=1000, cohort=1), {})
    tell(bench, "start")
    until(lambda: bench.state == "done", 60)
    rounds, losses = bench.picture["lines"][0]["series"]["loss"]
    assert len(rounds) == len(losses) <= 300
    assert rounds[-1] == 1000
    bench.close()


def test_undo_goes_back_by_turns_and_says_when_there_are_none(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fedlab.workbench.session.time.monotonic", lambda: now[0])
    tell(bench, "undo")
    assert bench.notice == "undo='nothing': no knob has been turned"
    for rate in (0.6, 0.7, 0.8):  # a slider on its way
        now[0] += 0.1
        bench.values = bench.values | {"local_lr": rate}
    now[0] += 10
    bench.values = bench.values | {"local_lr": 1.5}
    bench.values = bench.values | {"cohort": 9}
    tell(bench, "preset", "two")
    assert (bench.preset, bench.values["cohort"]) == ({"name": "two", "turned": []}, 2)
    seen = []
    for _ in range(4):
        tell(bench, "undo")
        assert not bench.notice
        seen.append((bench.values["local_lr"], bench.values["cohort"]))
    assert seen == [(1.5, 9), (1.5, 4), (0.8, 4), (0.5, 4)]
    assert bench.preset == {"name": "two", "turned": ["cohort"]}
    tell(bench, "undo")
    assert "no knob has been turned" in bench.notice


def test_reset_forgets_the_preset_as_well(bench):
    tell(bench, "preset", "two")
    tell(bench, "reset")
    assert bench.values["cohort"] == SMALL.cohort
    assert bench.preset == {"name": "", "turned": []}


def test_a_turn_is_marked_at_the_round_that_took_it(bench):
    tell(bench, "step")
    ends(bench, "paused")
    bench.values = bench.values | {"local_lr": 1.0, "cohort": 3}
    tell(bench, "start")
    ends(bench)
    (line,) = bench.picture["lines"]
    ((number, what),) = line["marks"]
    assert number == 2
    assert sorted(what.split(", ")) == ["cohort 4 → 3", "local_lr 0.5 → 1"]


def test_what_is_wrong_stands_at_its_knob_until_the_next_turn(bench):
    bench.values = bench.values | {"local_lr": 99}
    assert bench.wrong == {"local_lr": "99: choose from 0.1 to 2"}
    assert bench.values["local_lr"] == 0.5
    bench.values = bench.values | {"local_lr": 1.0}
    assert bench.wrong == {}
