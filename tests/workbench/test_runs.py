"""Runs on disk and as files for other tools: what is written is what was trained.

This holds whatever goes wrong.
"""

import csv
import io
import json
import math

import matplotlib.image
import pytest
import torch
from runfiles import chained_anew

from fedlab.core import (
    ParameterError,
    Round,
    Settings,
    differing,
    parsed,
    read_settings,
    write_settings,
)
from fedlab.workbench import Runs, export, record, table
from fedlab.workbench.export import to_csv, to_json, to_png, to_tensorboard

START = Settings(rounds=3, cohort=2)


def finished(number, settings=START, **metrics):
    losses = torch.tensor([1.0, 2.0]) / number
    return Round(
        number,
        settings,
        {"w": torch.zeros(1)},
        torch.tensor([3, 1]),
        losses,
        losses,
        10,
        20,
        0.5,
        metrics,
    )


def trained(folder=None, name=""):
    """A run of three rounds whose cohort was turned before the second."""
    kept = Runs(folder)
    run = kept.begin(START, name)
    for number in (1, 2, 3):
        asked = START if number == 1 else START.replace(cohort=7)
        kept.add(run, finished(number, asked, **{"ndcg@10": number / 10}), asked)
    kept.end(run, "done")
    return kept, run


def test_a_run_comes_back_from_disk_as_it_was(tmp_path):
    kept, run = trained(tmp_path / "new" / "folder")
    kept.rename(run.id, "  My run ")
    again = Runs(tmp_path / "new" / "folder").get(run.id)
    assert (again.name, again.state, again.settings) == (
        "My run",
        "done",
        {"rounds": 3, "cohort": 2},
    )
    assert again.records == run.records
    assert [r["loss"] for r in again.records] == [1.5, 0.75, 0.5]
    assert again.used()["cohort"] == [2, 7]
    assert [s["cohort"] for s in again.settings_by_round()] == [2, 7, 7]
    assert again.best("ndcg@10", "max")["round"] == 3
    assert again.best("loss", "min")["round"] == 3
    assert again.best("rmse", "min") is None


@pytest.mark.parametrize("place", ["/proc/nothing/runs", "file/runs"])
def test_a_folder_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, place):
    (tmp_path / "file").write_text("")
    kept, run = trained(tmp_path / place)
    assert kept.trouble.startswith("Not being saved: ")
    assert len(run.records) == 3
    assert json.loads(to_json([run]))["runs"][0]["records"] == run.records


def test_runs_are_renamed_and_deleted_but_not_while_they_train(tmp_path):
    kept = Runs(tmp_path)
    run = kept.begin(START)
    with pytest.raises(ParameterError, match="run='run 1': it is still running"):
        kept.delete(run.id)
    for name in ("", " ", "x" * 81):
        with pytest.raises(ParameterError, match="name="):
            kept.rename(run.id, name)
    kept.end(run, "done")
    kept.delete(run.id)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ParameterError, match="there is no such run"):
        kept.rename(run.id, "x")


def test_parameters_are_kept_of_the_last_round_only():
    _, run = trained()
    assert [bool(done.params) for done in run.rounds] == [False, False, True]


def test_a_value_that_is_not_finite_is_none():
    done = record(finished(1, **{"rmse": math.inf, "ndcg@10": math.nan}), START, START)
    assert done["rmse"] is done["ndcg@10"] is None
    json.dumps(done, allow_nan=False)


def test_csv_has_a_line_for_each_round_with_the_settings_it_used():
    _, run = trained(name='=1+1, "x"')
    _, other = trained(name="other")
    lines = list(csv.DictReader(io.StringIO(to_csv([run, other]).decode())))
    assert [line["run"] for line in lines] == ['\'=1+1, "x"'] * 3 + ["other"] * 3
    assert [line["cohort"] for line in lines[:3]] == ["2", "7", "7"]
    assert [float(line["loss"]) for line in lines[:3]] == [1.5, 0.75, 0.5]
    assert [float(line["ndcg@10"]) for line in lines[:3]] == [0.1, 0.2, 0.3]


def test_png_is_a_picture_that_takes_any_name(tmp_path):
    pairs = [trained(name=name)[1] for name in ("same", "same", "$x_{", "_hidden")]
    (tmp_path / "a.png").write_bytes(to_png(pairs))
    assert matplotlib.image.imread(tmp_path / "a.png").shape[2] == 4


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = trained(name="a/b ../c")
    for _ in range(2):  # written again, not twice
        to_tensorboard([run], tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.parent == tmp_path
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [(e.step, round(e.value, 4)) for e in found.Scalars("loss")] == [
        (1, 1.5),
        (2, 0.75),
        (3, 0.5),
    ]
    assert "ndcg_at_10" in found.Tags()["scalars"]


def test_nothing_and_unknown_kinds_are_refused(tmp_path):
    _, run = trained()
    with pytest.raises(ParameterError, match="kind='xls': choose one of csv, json, png"):
        export([run], "xls")
    for call in (lambda: export([], "csv"), lambda: to_tensorboard([], tmp_path)):
        with pytest.raises(ParameterError, match="nothing to export"):
            call()


def test_settings_survive_the_way_through_text():
    settings = START.replace(local_lr=0.123, optimizer="adamw", uplink="poison + clip")
    assert read_settings(write_settings(settings), Settings()) == settings
    assert json.loads(write_settings(settings)) == {
        "fedlab": 2,
        "whole": True,
        "settings": {
            "rounds": 3,
            "cohort": 2,
            "local_lr": 0.123,
            "optimizer": "adamw",
            "uplink": "poison + clip",
        },
    }
    assert read_settings('{"fedlab": 2, "settings": {}}', settings) == settings
    assert parsed("local_lr", "1e-1") == 0.1
    assert parsed("cohort", "7") == 7
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}]) == ["b"]
    assert differing([]) == []


def test_runs_whose_parts_are_not_here_are_listed_and_exported(tmp_path):
    """Somebody else's part may have turned a knob that nobody knows here."""
    _, run = trained(tmp_path)
    chained_anew(tmp_path / run.id, lambda text: text.replace('"cohort"', '"sieges"'))
    kept = Runs(tmp_path)
    again = kept.get(run.id)
    assert again.used()["sieges"] == [2, 7]
    known = kept.begin(START.replace(uplink="clip"))
    rows = table(kept.listed(), {}, {})
    assert [row["differs"] for row in rows] == [
        {"cohort": "64", "sieges": "2 → 7", "uplink": "none"},
        {"cohort": "2", "sieges": "None", "uplink": "clip"},
    ]
    line = next(csv.DictReader(io.StringIO(to_csv([again, known]).decode())))
    assert (line["sieges"], line["uplink"], line["rounds"]) == ("2", "none", "3")
