"""Messages of a browser: each is done as a whole, or refused in one sentence."""

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from fedlab.__main__ import main
from fedlab.core import Settings
from fedlab.workbench import Workbench, stream
from fedlab.workbench.view import COMMANDS

SMALL = Settings(rounds=3, cohort=2)


@pytest.fixture
def bench(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Workbench(
        stream,
        Settings(**tiny_settings),
        {"cohort": (1, 24), "local_lr": (0.1, 2.0), "rounds": (1, 300), "data": None},
        {"ndcg@10": "max"},
        presets={"small": SMALL},
    )
    yield made
    made.session.runner.stop()
    made.close()


def send(bench, data, buffers=()):
    """Send what a comm brings."""
    bench._handle_msg({"content": {"data": data}, "buffers": list(buffers)})


def tell(bench, command, *given):
    send(bench, {"method": "custom", "content": {"command": command, "given": list(given)}})


def ends(bench, state="done"):
    until(lambda: bench.state == state)


MALFORMED = {
    "nothing": (None, "message=None: give an update or a command"),
    "a list": ([], "message=[]"),
    "no method": ({}, "message={}"),
    "unknown method": ({"method": "shutdown"}, "message={'method': 'shutdown'}"),
    "a method that is none": ({"method": {"a": 1}}, "message="),
    "no state": ({"method": "update"}, "message="),
    "no content": ({"method": "custom"}, "message="),
    "a state that is a list": ({"method": "update", "state": [1]}, "message="),
    "buffers": (
        {"method": "update", "state": {}, "buffer_paths": [["a", 0]]},
        "message='buffers': the view sends none",
    ),
    "somebody else's trait": ({"method": "update", "state": {"spec": {}}}, "state='spec'"),
    "code": ({"method": "update", "state": {"_esm": "alert(1)"}}, "state='_esm'"),
    "a trait that is none": ({"method": "update", "state": {"x": 1}}, "state='x'"),
    "values are a list": ({"method": "update", "state": {"values": [1]}}, "values=[1]"),
    "a value is a list": (
        {"method": "update", "state": {"values": {"cohort": [3]}}},
        "cohort=[3]: give a number or a short text",
    ),
    "a value is nothing": (
        {"method": "update", "state": {"values": {"cohort": None}}},
        "cohort=None",
    ),
    "a value is not a number": (
        {"method": "update", "state": {"values": {"cohort": float("nan")}}},
        "cohort=nan",
    ),
    "a value is true": (
        {"method": "update", "state": {"values": {"cohort": True}}},
        "cohort=True: choose a whole number",
    ),
    "a knob that is none": (
        {"method": "update", "state": {"values": {"self": 1}}},
        "self=1: no such parameter",
    ),
    "a huge number": ({"method": "update", "state": {"values": {"cohort": 10**4000}}}, "cohort="),
    "charts are a text": ({"method": "update", "state": {"charts": "loss"}}, "charts='loss'"),
    "a chart is a list": ({"method": "update", "state": {"charts": [["loss"]]}}, "charts="),
    "a chart that is none": ({"method": "update", "state": {"charts": ["x"]}}, "charts=['x']"),
    "a chart twice": ({"method": "update", "state": {"charts": ["loss", "loss"]}}, "charts="),
    "one good, one bad": (
        {"method": "update", "state": {"charts": ["loss"], "values": {"cohort": None}}},
        "cohort=None",
    ),
}


@pytest.mark.parametrize(("data", "notice"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_one_sentence_and_changes_nothing(bench, data, notice):
    before = bench.get_state(["spec", "values", "charts", "text", "table", "state"])
    send(bench, data)
    assert bench.notice.startswith(notice)
    assert len(bench.notice) < 500
    assert bench.get_state(["spec", "values", "charts", "text", "table", "state"]) == before
    send(bench, {"method": "update", "state": {"values": {**bench.values, "cohort": 3}}})
    assert (bench.notice, bench.session.settings.cohort) == ("", 3)


COMMANDED = {
    "no command": ({}, "command=None: choose one of start"),
    "a command that is none": ({"command": "__init__"}, "command='__init__': choose one of"),
    "a command that is a list": ({"command": ["start"]}, "command=['start']"),
    "too many": ({"command": "start", "given": [3]}, "start=[3]: give nothing"),
    "too few": ({"command": "pin", "given": ["x"]}, "pin=['x']: give run, on"),
    "no list": ({"command": "pin", "given": {"run": "x"}}, "pin={'run': 'x'}: give run, on"),
    "a run that is a number": (
        {"command": "delete", "given": [3]},
        "delete run=3: give a short text",
    ),
    "a run that is a list": ({"command": "pin", "given": [["x"], True]}, "pin run=['x']"),
    "on is a text": ({"command": "pin", "given": ["x", "yes"]}, "pin on='yes': give true or false"),
    "a name of two lines": ({"command": "rename", "given": ["x", "a\nb"]}, "rename name='a\\nb'"),
    "a folder with a zero": ({"command": "folder", "given": ["a\0b"]}, "folder folder='a\\x00b'"),
    "a folder too long": ({"command": "folder", "given": ["x" * 5000]}, "folder folder='xxx"),
    "settings are a dict": ({"command": "settings", "given": [{"a": 1}]}, "settings text={'a': 1}"),
    "settings too long": ({"command": "settings", "given": ["x" * 2_000_000]}, "settings='2000000"),
    "a sweep over a text": (
        {"command": "sweep", "given": ["cohort", "loss", 0]},
        "sweep over='cohort'",
    ),
    "a sweep over numbers": (
        {"command": "sweep", "given": [{"cohort": [1, 2]}, "loss", 0]},
        "sweep over={'cohort': [1, 2]}: give short texts",
    ),
    "a sweep of half a run": (
        {"command": "sweep", "given": [{"cohort": "1, 2"}, "loss", 0.5]},
        "sweep runs=0.5: give a whole number",
    ),
    "a sweep of too many runs": (
        {"command": "sweep", "given": [{"cohort": "1, 2"}, "loss", 10**9]},
        "count=1000000000: choose from 1 to 200 runs",
    ),
    "a sweep of fewer than none": (
        {"command": "sweep", "given": [{"cohort": "1, 2"}, "loss", -1]},
        "count=-1",
    ),
    "a sweep over nothing": ({"command": "sweep", "given": [{}, "loss", 0]}, "over=[]"),
    "a sweep for a metric that is none": (
        {"command": "sweep", "given": [{"cohort": "1, 2"}, "luck", 0]},
        "metric='luck': choose one of",
    ),
    "an export of a list": ({"command": "export", "given": [["csv"]]}, "export kind=['csv']"),
    "an export before a run": ({"command": "export", "given": ["model"]}, "model='none': train"),
    "a challenge that is none": (
        {"command": "challenge", "given": ["self"]},
        "self='self': no such",
    ),
    "a client that is a text": (
        {"command": "accuse", "given": ["7"]},
        "accuse client='7': give a whole number",
    ),
    "a client without a challenge": (
        {"command": "accuse", "given": [7]},
        "client=7: no challenge is on",
    ),
    "a run to compare with that is none": ({"command": "compare", "given": ["x"]}, "run='x'"),
    "a preset that is none": ({"command": "preset", "given": ["self"]}, "self='self': no such"),
}


@pytest.mark.parametrize(("content", "notice"), COMMANDED.values(), ids=COMMANDED)
def test_a_malformed_command_is_one_sentence_and_changes_nothing(bench, content, notice):
    before = bench.get_state(["values", "charts", "text", "table", "state", "heat", "saving"])
    send(bench, {"method": "custom", "content": content})
    assert bench.notice.startswith(notice)
    assert len(bench.notice) < 500
    now = bench.get_state(["values", "charts", "text", "table", "state", "heat", "saving"])
    assert now == before


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"fedlab": 2, "settings": {"self": 1}}',
        b'{"fedlab": 2, "settings": {"cohort": ' + b"9" * 5000 + b"}}",
        b'{"fedlab": 2, "settings": {"cohort": 3, "cohort": 4}}',
    ],
    ids=["bytes", "nested", "self", "digits", "twice"],
)
def test_the_command_line_answers_in_one_line_and_keeps_no_run(tmp_path, capsys, content):
    (tmp_path / "settings.json").write_bytes(content)
    given = ["run", str(tmp_path / "settings.json"), "--folder", str(tmp_path / "runs")]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ParameterError: ")
    assert not (tmp_path / "runs").exists()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANYTHING = st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6)
# what starts training is tried elsewhere
QUIET = st.sampled_from([name for name in COMMANDS if name not in ("start", "step", "folder")])
GIVEN = st.lists(
    ANYTHING | st.sampled_from([{"cohort": "1, x"}, "loss", "csv", True, 1, -1]), max_size=4
)
MESSAGES = (
    ANYTHING
    | st.fixed_dictionaries({"method": st.just("update"), "state": ANYTHING})
    | st.fixed_dictionaries(
        {
            "method": st.just("update"),
            "state": st.dictionaries(
                st.sampled_from(["values", "charts", "spec", "picture", "layout"]),
                ANYTHING | st.dictionaries(st.sampled_from(["cohort", "local_lr", "x"]), ANYTHING),
            ),
        }
    )
    | st.fixed_dictionaries({"method": st.just("custom"), "content": ANYTHING})
    | st.fixed_dictionaries(
        {
            "method": st.just("custom"),
            "content": st.fixed_dictionaries({"command": QUIET, "given": GIVEN}),
        }
    )
)


@pytest.fixture(scope="module")
def standing(tiny_settings):
    """A workbench that many messages reach, one after another."""
    made = Workbench(stream, Settings(**tiny_settings), {"cohort": (1, 24), "local_lr": (0.1, 2.0)})
    yield made
    made.close()


@settings(max_examples=400)
@given(data=MESSAGES)
def test_any_message_leaves_a_whole_workbench(standing, data):
    send(standing, data)
    assert len(standing.notice) < 3000
    assert standing.session.settings.replace() == standing.session.settings
    assert standing.values == {n: standing.session.settings[n] for n in ("cohort", "local_lr")}
    assert set(standing.charts) <= {*standing.spec["lines"], *standing.spec["spreads"]}
    json.dumps(standing.get_state(["values", "charts", "table", "picture", "heat", "notice"]))


def test_the_map_of_a_sweep_stays_when_runs_start_and_are_deleted(bench):
    tell(bench, "sweep", {"local_lr": "0.5, 1"}, "ndcg@10", 0)
    ends(bench)
    swept = bench.heat
    assert [cell["state"] for cell in swept["cells"]] == ["done", "done"]
    tell(bench, "start")  # another run
    ends(bench)
    assert bench.heat == swept
    assert bench.message.startswith("Done: round 2 of 2")  # of that run, not of the sweep
    tell(bench, "delete", swept["cells"][0]["run"])
    assert [cell["state"] for cell in bench.heat["cells"]] == ["deleted", "done"]
    assert [cell["value"] for cell in bench.heat["cells"]] == [c["value"] for c in swept["cells"]]
    tell(bench, "pin", swept["cells"][0]["run"], True)
    assert "there is no such run" in bench.notice
    tell(bench, "sweep", {"local_lr": "0.5, x"}, "ndcg@10", 0)  # refused, so nothing changes
    assert len(bench.heat["cells"]) == 2
    state = bench.get_state()  # what a page that is loaded again is given
    assert state["heat"] == bench.heat
    tell(bench, "sweep", {"cohort": "2, 3, 4"}, "loss", 0)  # another sweep takes its place
    ends(bench)
    assert [cell["at"] for cell in bench.heat["cells"]] == [[2], [3], [4]]
    tell(bench, "reset")
    assert bench.heat == {}


def test_the_model_is_an_export_with_its_card(bench, monkeypatch):
    sent = []
    monkeypatch.setattr(
        bench, "send", lambda content, buffers=None: sent.append((content, buffers))
    )
    assert bench.spec["exports"] == ["csv", "json", "png", "model", "replay"]
    tell(bench, "start")
    ends(bench)
    tell(bench, "export", "model")
    ((content, (found,)),) = sent
    assert content == {"file": "fedlab-model.zip"}
    assert found[:2] == b"PK"
    own = Workbench(partial(stream, start=None), SMALL, {})  # nobody knows how that is made
    assert own.spec["exports"] == ["csv", "json", "png"]
    tell(own, "export", "model")
    assert own.notice.startswith("export='model': only a workbench over")
    own.close()
