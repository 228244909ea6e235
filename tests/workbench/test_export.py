"""Runs as files for other tools: cells that start no formula, and events of any run, also live."""

import csv
import io

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from waiting import until

from fedlab.core import ParameterError, Round, Settings
from fedlab.workbench import Run, Workbench, record, stream
from fedlab.workbench.export import Events, harmless, to_csv, to_tensorboard, watched

START = Settings(rounds=4, cohort=2)
PAYLOADS = [
    '=HYPERLINK("http://example.org","look")',
    "@SUM(1)",
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "  =1+1",
    "\u200b=1+1",
    "\ufeff@SUM(1)",
    "\u2060\xad\u200e+1",
    "\x00=1+1",
    "\u3164\ufe0f-1",
    "＝1+1",  # noqa: RUF001 - as some spreadsheets write it
]


def finished(number, **more):
    losses = torch.tensor([1.0, 2.0]) / number
    return Round(
        number,
        START,
        {"w": torch.zeros(1)},
        torch.tensor([3, 1]),
        losses,
        losses,
        10,
        20,
        0.5,
        **more,
    )


def rounds():
    """A plain round, one with rejected clients, and one that was skipped."""
    yield finished(1, metrics={"ndcg@10": 0.5})
    yield finished(2, rejected={4: "not finite", 5: "late"})
    yield Round(3, START, {}, rejected={3: "late", 1: "late"}, skipped="no update is left")
    yield finished(4, metrics={"ndcg@10": -0.25})


def run_of(*done, **about):
    run = Run("mine", dict(START), **about)
    run.records = [record(each, START, START) for each in done]
    return run


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()
    return {
        name: [(e.step, round(e.value, 4)) for e in found.Scalars(name)] for name in tags["scalars"]
    }


@pytest.mark.parametrize("text", PAYLOADS)
def test_no_cell_of_a_csv_starts_a_formula(text):
    run = run_of(finished(1, metrics={text: -0.5, "ndcg@10": -1e-9}))
    run.name, run.settings["data"] = text, text
    run.settings[f"{text} as well"] = 3
    rows = list(csv.reader(io.StringIO(to_csv([run]).decode(), newline="")))
    cells = [cell for row in rows for cell in row]
    assert f"'{text}" in cells
    unseen = " \t\r\n\x00\xad\u200b\u200e\u2060\u3164\ufe0f\ufeff"
    assert not [c for c in cells if c.lstrip(unseen)[:1] in {*"=+@＝"}]  # noqa: RUF001
    numbers = [c for c in cells if c.startswith("-")]  # numbers stay numbers
    assert sorted(map(float, numbers)) == [-0.5, -1e-9]
    assert harmless(text) == f"'{text}"


def test_what_is_no_formula_stays_as_it_is():
    for cell in (
        "clip + gaussian noise",
        "\u200bé",
        "\xa0run",
        "run 1",
        "a=b",
        "",
        -0.5,
        7,
        None,
        "ml-latest-small",
    ):
        assert harmless(cell) == cell


def test_events_tell_of_rejected_clients_and_skipped_rounds(tmp_path):
    run = run_of(*rounds())
    run.state = "done"
    to_tensorboard([run], tmp_path)
    (folder,) = tmp_path.iterdir()
    found = read(folder)
    assert found["loss"] == [(1, 1.5), (2, 0.75), (4, 0.375)]
    assert found["rejected"] == [(1, 0.0), (2, 2.0), (3, 2.0), (4, 0.0)]
    assert found["ndcg_at_10"] == [(1, 0.5), (4, -0.25)]
    texts = EventAccumulator(str(folder))
    texts.Reload()
    (skipped,) = texts.Tensors("skipped/text_summary")
    assert skipped.step == 3
    assert b"no update is left" in skipped.tensor_proto.string_val[0]


def test_events_are_there_while_the_rounds_come(tmp_path):
    seen = []
    for done in watched(rounds(), tmp_path, "a/b ../c"):
        (folder,) = tmp_path.iterdir()
        seen.append((done.number, [step for step, _ in read(folder)["rejected"]]))
    assert seen == [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4])]
    assert folder.parent == tmp_path


def test_written_again_a_run_is_there_once_and_nothing_else_is_removed(tmp_path):
    run = run_of(*rounds())
    events = Events(tmp_path)
    events.write([run])
    (folder,) = tmp_path.iterdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "events.out.tfevents.1.mine").write_bytes(b"")
    run.records.append(record(finished(5), START, START))
    for _ in range(2):  # only what is new
        events.write([run])
    run.state = "done"
    events.write([run])
    events.write([run])
    assert [step for step, _ in read(folder)["rejected"]] == [1, 2, 3, 4, 5]
    run.records.append(record(finished(6), START, START))  # it was taken up again
    events.write([run])
    to_tensorboard([run], tmp_path)  # as a kernel does that knows nothing of the others
    assert [step for step, _ in read(folder)["rejected"]] == [1, 2, 3, 4, 5, 6]
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "events.out.tfevents.1.mine").exists()
    del run.records[3:]  # it was resumed from an earlier round
    events.write([run])
    assert [step for step, _ in read(folder)["rejected"]] == [1, 2, 3]
    again = run_of(*rounds(), id=run.id)  # or read from its file
    events.write([again])
    events.close()
    assert [step for step, _ in read(folder)["rejected"]] == [1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("id_", ["", "/../../../victim", "..", "a/b", "A", "a" * 41, 7, "a\n"])
def test_an_id_that_is_none_never_becomes_part_of_a_path(tmp_path, id_):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "events.out.tfevents.1.fedlab").write_text("kept")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    for bad in (id_, str(victim)):
        with pytest.raises(ParameterError, match="run="):
            to_tensorboard([run_of(finished(1), id=bad)], tmp_path / "runs" / "x")
    assert (victim / "events.out.tfevents.1.fedlab").read_text() == "kept"
    assert list((tmp_path / "runs" / "x").iterdir()) == []


def tell(bench, command, *given):
    bench._told(None, {"command": command, "given": list(given)}, None)


def test_the_workbench_writes_events_while_it_trains(tiny_settings, tmp_path):
    def paced(ask):
        for done in stream(ask):
            yield done
            until(lambda done=done: done.number < 2 or going)

    going = []
    bench = Workbench(
        paced, Settings(**tiny_settings | {"rounds": 5}), {}, {"ndcg@10": "max"}, folder=tmp_path
    )
    tell(bench, "start")
    until(lambda: [len(run.records) for run in bench.session.members] == [2])
    tell(bench, "tensorboard")
    assert bench.news.endswith(f"tensorboard --logdir {tmp_path / 'tensorboard'}")
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert [step for step, _ in read(folder)["loss"]] == [1, 2]
    going.append(True)
    until(lambda: bench.state == "done")
    assert [step for step, _ in read(folder)["loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in read(folder)["ndcg_at_10"]] == [1, 2, 3, 4, 5]
    tell(bench, "start")  # the next run as well
    until(lambda: bench.state == "done")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    bench.close()


def test_events_that_cannot_be_written_are_said_and_the_run_goes_on(tiny_settings, tmp_path):
    bench = Workbench(stream, Settings(**tiny_settings), {}, folder=tmp_path)
    (tmp_path / "tensorboard").write_text("in the way")
    tell(bench, "step")
    until(lambda: bench.state == "paused")
    tell(bench, "tensorboard")
    assert "tensorboard" in bench.notice
    tell(bench, "start")
    until(lambda: bench.state == "done")
    assert len(bench.rounds) == 2
    assert bench.notice == ""  # said once
    bench.close()
