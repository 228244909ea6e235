"""Runs on disk: each in a folder of its own, which nothing harms and from which it goes on."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composition import mark
from lasting import mutations
from runfiles import chained_anew, full_disk, posix
from waiting import until

from fedlab.__main__ import main
from fedlab.core import (
    ParameterError,
    Round,
    Settings,
    load_round,
    measured,
    read_settings,
    write_settings,
)
from fedlab.workbench import Run, Runs, Workbench, better, stream
from fedlab.workbench.export import to_csv, to_json
from fedlab.workbench.runs.folder import RunFolder
from fedlab.workbench.runs.log import LOG

START = Settings(rounds=3, cohort=2)


def finished(number, settings=START, **metrics):
    losses = torch.tensor([1.0, 2.0]) / number
    params = {"w": torch.full((3,), float(number))}
    return Round(number, settings, params, torch.tensor([3, 1]), losses, losses, metrics=metrics)


def trained(folder, rounds=3, ended="done", **metrics):
    kept = Runs(folder, {"ndcg@10": "max"})
    run = kept.begin(START)
    for number in range(1, rounds + 1):
        kept.add(run, finished(number, **{n: v[number - 1] for n, v in metrics.items()}), START)
    if ended:
        kept.end(run, ended)
    return kept, run


def interrupted(folder, rounds=3):
    """A run whose process was killed after so many rounds: nobody wrote its end."""
    kept, run = trained(folder, rounds, "")
    kept._live.pop(run.id).close()
    return run


def said(folder, id_):
    """What a fresh look at the folder says of a run."""
    run = Runs(folder).get(id_)
    return run.state, run.error


def test_a_run_is_a_folder_with_its_log_its_last_and_its_best_model(tmp_path):
    kept, run = trained(tmp_path, 3, **{"ndcg@10": [0.1, 0.3, 0.2]})
    home = tmp_path / run.id
    assert {p.name for p in home.iterdir()} == {"log.jsonl", "head", "lock", "checkpoint", "best"}
    assert load_round(home).number == 3
    assert float(load_round(home / "best").params["w"][0]) == 2.0
    assert kept.best(run.id).number == 2
    assert kept.trouble == ""
    lines = [json.loads(line) for line in (home / LOG).read_text().splitlines()]
    assert [len(line["chain"]) for line in lines] == [64] * 5
    assert (home / "head").read_text().strip() == lines[-1]["chain"]
    with pytest.raises(ParameterError, match="a Round of other edition"):
        list(stream(Settings, load_round(home / "best")))


def test_only_the_last_two_checkpoints_stay(tmp_path):
    kept = Runs(tmp_path)
    run = kept.begin(START)
    for number in range(1, 6):
        kept.add(run, finished(number), START)
        folder = tmp_path / run.id / "checkpoint" / f"{number:08d}"
        until(folder.exists)
    kept.end(run, "done")
    names = sorted(p.name for p in (tmp_path / run.id / "checkpoint").iterdir())
    assert names == ["00000004", "00000005"]
    assert [p.name for p in (tmp_path / run.id / "best").iterdir()] == ["00000005"]


def test_a_line_that_a_kill_cut_short_is_dropped_and_no_more(tmp_path):
    run = interrupted(tmp_path)
    path = tmp_path / run.id / LOG
    with path.open("a") as file:
        file.write('{"chain": "0123')
    again = Runs(tmp_path).get(run.id)
    assert (again.state, len(again.records)) == ("interrupted", 3)
    assert again.error == f"{path}:5 was cut short, and is dropped"
    kept = Runs(tmp_path)
    kept.rename(run.id, "what is left")  # not glued to the line that was cut
    again = Runs(tmp_path)
    assert again.trouble == ""
    assert (again.get(run.id).name, again.get(run.id).state) == ("what is left", "interrupted")
    assert again.get(run.id).records == kept.get(run.id).records


CHANGES = {
    "a number": lambda lines: [lines[0].replace('"cohort": 2', '"cohort": 3'), *lines[1:]],
    "taken out": lambda lines: [*lines[:2], *lines[3:]],
    "twice": lambda lines: [*lines[:2], *lines[1:]],
    "swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "without its beginning": lambda lines: lines[1:],
    "a space": lambda lines: [lines[0].replace('": ', '":  ', 3), *lines[1:]],
    "a blank line": lambda lines: [*lines[:3], "", *lines[3:]],
    "from another": lambda lines: [*lines[:2], lines[2].replace('"2', '"3'), *lines[2:]],
    "not UTF-8": lambda lines: [*lines[:2], "\udcff", *lines[2:]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_log_that_was_edited_is_named_by_line_and_the_others_open(tmp_path, change):
    _, other = trained(tmp_path)
    _, run = trained(tmp_path)
    path = tmp_path / run.id / LOG
    lines = path.read_text().splitlines()
    text = "\n".join(CHANGES[change](lines)) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    kept = Runs(tmp_path)
    assert kept.get(other.id).records == other.records
    bad = kept.get(run.id)
    assert (bad.state, bad.records, bad.name) == ("damaged", [], run.id)
    assert re.match(re.escape(str(path)) + r":\d+=", bad.error)
    assert kept.trouble == bad.error
    for refused in (kept.rename, kept.resume):
        with pytest.raises(ParameterError, match="as it was written"):
            refused(run.id, *(["new"] if refused == kept.rename else []))
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")
    kept.delete(run.id)
    assert [p.name for p in tmp_path.iterdir()] == [other.id]


def test_lines_that_are_missing_at_the_end_are_told_and_stay_told(tmp_path):
    _, run = trained(tmp_path)
    path = tmp_path / run.id / LOG
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    state, error = said(tmp_path, run.id)
    assert state == "interrupted"
    assert "lines are missing at the end" in error
    Runs(tmp_path).rename(run.id, "another name")  # a new line does not hide it
    assert said(tmp_path, run.id) == (state, error)
    shutil.rmtree(tmp_path / run.id / "checkpoint" / "00000001", ignore_errors=True)
    path.write_text("".join(lines[:2]))  # without rounds that were saved as checkpoints
    kept = Runs(tmp_path)
    with pytest.raises(
        ParameterError, match=r"00000003='round 3': the log of this run does not have it"
    ):
        kept.resume(run.id)
    assert said(tmp_path, run.id)[0] == "interrupted"


FORGED = {
    "a path as id": ('"run": "', '"run": "../', "run='../"),
    "another id": ('"run": "2', '"run": "1', "run='1"),
    "a text as loss": ('"loss": ', '"loss": "x", "seconds": ', "loss='x'"),
    "not finite": ('"loss": 1.5', '"loss": 1e999', "loss=inf"),
    "a huge number": ('"loss": 1.5', '"loss": ' + "9" * 5000, "not a line of a run"),
    "deep": ('"loss": 1.5', '"loss": ' + "[" * 9999 + "]" * 9999, "not a line of a run"),
    "a list as settings": ('"settings": {', '"settings": [], "x": {', "settings=[]"),
    "a null setting": ('"cohort": 2', '"cohort": null', "cohort=None"),
    "a negative round": ('"round": 2', '"round": -2', "round=-2"),
    "a true round": ('"round": 2', '"round": true', "round=True"),
    "another edition": ('"fedlab": 2', '"fedlab": 1', "fedlab=1: this reads version 2"),
    "an end": ('"end": "done"', '"end": "running"', "end='running'"),
    "an end without its error": (', "error": ""', "", "error=None"),
    "half a character": ('"name": "run', '"name": "\\ud800', "name='\\ud800"),
    "orders in a name": ('"name": "run', '"name": "\\u001b[2J', "name='\\x1b[2J"),
    "orders in a metric": ('"loss": ', '"\\u001b[2J": 1, "loss": ', r"2: \x1b[2J=1"),
    "orders in a setting": ('"cohort": 2', '"\\u001b[2J": 2', r"1: \x1b[2J=2"),
    "half a value": ('"cohort": 2', '"cohort": "\\udfff"', r"cohort='\udfff'"),
    "half an error": ('"error": ""', '"error": "\\ud800"', r"error='\ud800'"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_forged_log_says_is_checked_for_its_type(tmp_path, what):
    old, new, message = FORGED[what]
    _, run = trained(tmp_path)
    chained_anew(tmp_path / run.id, lambda text: text.replace(old, new))
    state, error = said(tmp_path, run.id)
    assert state == "damaged"
    assert message in error
    assert str(tmp_path / run.id) in error


def test_no_line_of_a_forged_log_keeps_the_others_from_opening(tmp_path, capsys):
    """Wrong types and missing keys everywhere, with chains that fit: damaged, or as good as new."""
    _, other = trained(tmp_path)
    _, run = trained(tmp_path)
    home = tmp_path / run.id
    lines = {
        "header": json.dumps(run.header()),
        "record": json.dumps(run.records[1] | {"turned": {}, "rejected": {}, "skipped": ""}),
        "end": '{"end": "done", "error": ""}',
        "resumed": '{"resumed": 1}',
        "lost": '{"lost": "lines"}',
        "name": '{"name": "new"}',
        "none": "{}",
    }
    strange = (None, True, -1, 1.5, 2**70, "x", "\ud800", "\x1b[2J", [], [[]], {}, {"a": []})
    chained_anew(home, lambda text: text)
    clean, seen = (home / LOG).read_bytes(), []
    for kind, line in lines.items():
        whole = json.loads(line)
        changed = [{k: v for k, v in whole.items() if k != key} for key in whole]
        changed += [whole | {key: value} for key in (*whole, "\ud800") for value in strange]
        changed += [whole | {"settings": {key: 1}, "turned": {key: 1}} for key in ("\ud800", "\n")]
        for each in changed:
            (home / LOG).write_bytes(clean)
            place = iter(range(99))
            at = 0 if kind == "header" else 4

            def forged(text, each=each, place=place, at=at):
                return json.dumps(each) if next(place) == at else text

            chained_anew(home, forged)
            kept = Runs(tmp_path)
            assert kept.get(other.id).state == "done", each
            assert main(["compare", str(tmp_path)]) == 0, each
            printed = capsys.readouterr()
            assert "\x1b" not in printed.out + printed.err
            for export in (to_csv, to_json):
                export(kept.listed())
            bad = kept.get(run.id)
            if bad.state == "damaged":
                assert bad.error.startswith(f"{home / LOG}:{at + 1}: "), each
            seen.append(bad.state == "damaged")
    assert len(seen) > 300
    assert sum(seen) > 200


def test_a_name_that_no_file_or_terminal_takes_is_refused(tmp_path, capsys):
    kept, run = trained(tmp_path)
    for name in ("\ud800", "a\x1b[2Jb", "two\nlines", "\u202eback"):
        for act in (lambda n: kept.rename(run.id, n), lambda n: kept.begin(START, n)):
            with pytest.raises(ParameterError, match=r"name=.*write it on one line"):
                act(name)
        assert main(["run", "--folder", str(tmp_path), "--name", name]) == 2
        assert "write it on one line" in capsys.readouterr().err
    assert [each.name for each in Runs(tmp_path).listed()] == ["run 1"]
    with pytest.raises(ParameterError, match=r"data=.*write it on one line"):
        kept.begin(START.replace(data="/tmp/\udcff"))
    kept.rename(run.id, "Zoë 👩‍🔬 run")
    again = kept.begin(START)
    kept.end(again, "failed", "ValueError: \udcff\nand more")
    (tmp_path / "\x1b[2J\udcff").mkdir()
    (tmp_path / "\x1b[2J\udcff" / LOG).write_text("")
    kept = Runs(tmp_path)
    assert sorted(each.state for each in kept.listed()) == ["damaged", "done", "failed"]
    assert main(["compare", str(tmp_path)]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())


def test_no_path_comes_from_a_file_and_nothing_of_others_is_removed(tmp_path):
    """Ids, links and strange files: whatever is asked, the victim is as it was."""
    victim, folder = tmp_path / "victim", tmp_path / "runs"
    _, run = trained(folder)
    home = folder / run.id
    victim.mkdir()
    (victim / "precious").write_text("1")
    shutil.copytree(home, victim / run.id)
    before = {p: p.read_bytes() for p in victim.rglob("*") if p.is_file()}

    def stays():
        kept = Runs(folder)
        for id_ in list(kept.all):
            for act in (kept.delete, kept.resume, lambda i: kept.rename(i, "x")):
                with contextlib.suppress(ParameterError, OSError):
                    act(id_)
        assert before == {p: p.read_bytes() for p in victim.rglob("*") if p.is_file()}

    for strange in ("..", ".", "", "a b", run.id + "\n", "/" + run.id):
        with pytest.raises(ParameterError):
            Runs(folder).delete(strange)
    # a link in place of the folder, of its log, of its checkpoints, of one of them
    home.rename(tmp_path / "away")
    home.symlink_to(victim / run.id)
    stays()
    assert said(folder, run.id)[1].endswith("and not a link to one")
    home.unlink()
    for name in (LOG, "head", "lock", "checkpoint", "best", "checkpoint/00000003"):
        shutil.copytree(tmp_path / "away", home)
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(victim / run.id / name)
        if name in ("checkpoint", "best", LOG, "lock"):
            with pytest.raises((ParameterError, OSError)):  # nothing would be written there
                Runs(folder).resume(run.id)
        stays()
        shutil.rmtree(home, ignore_errors=True)
    # something else in it: nothing is removed
    shutil.copytree(tmp_path / "away", home)
    (home / "notes.txt").write_text("mine")
    with pytest.raises(ParameterError, match=r"its folder holds .*notes.txt.*move that away"):
        Runs(folder).delete(run.id)
    assert load_round(home).number == 3
    (home / "notes.txt").rename(home / "checkpoint" / "00000003" / "notes.txt")
    with pytest.raises(ParameterError, match=r"notes.txt"):
        Runs(folder).delete(run.id)
    assert load_round(home).number == 3


def test_no_change_of_a_folder_of_runs_is_silent():
    found = list(mutations(60))
    assert [each for each in found if each[1].startswith("SILENT")] == []
    assert sum(came == "said" for _, came in found) > 30


def test_a_live_run_is_left_alone_by_other_processes(tmp_path):
    mine = Runs(tmp_path)
    run = mine.begin(START)
    mine.add(run, finished(1), START)
    other = Runs(tmp_path)  # another look takes other locks, as another process would
    assert other.get(run.id).state == "running elsewhere"
    for act in (other.delete, other.resume, lambda id_: other.rename(id_, "x")):
        with pytest.raises(ParameterError, match="another process trains it"):
            act(run.id)
    mine.add(run, finished(2), START)
    mine.end(run, "done")
    other.rename(run.id, "ended there")  # it is looked at again
    assert len(other.get(run.id).records) == 2
    again = Runs(tmp_path).get(run.id)
    assert (again.name, again.state, len(again.records)) == ("ended there", "done", 2)


def test_two_that_resume_one_run_do_not_both_get_it(tmp_path):
    run = interrupted(tmp_path)
    one, other = Runs(tmp_path), Runs(tmp_path)
    again, start = one.resume(run.id)
    with pytest.raises(ParameterError, match="another process trains it"):
        other.resume(run.id)
    one.add(again, finished(4), START)
    one.end(again, "done")
    assert start.number == 3
    assert [r["round"] for r in Runs(tmp_path).get(run.id).records] == [1, 2, 3, 4]


def test_a_resumed_run_that_gets_no_further_is_as_it_was(tmp_path):
    _, run = trained(tmp_path)
    before = (tmp_path / run.id / LOG).read_bytes()
    kept = Runs(tmp_path)
    again, _ = kept.resume(run.id)
    kept.end(again, "failed", "ParameterError: no data")
    assert (again.state, again.error) == ("done", "")
    assert (tmp_path / run.id / LOG).read_bytes() == before


def test_rounds_that_are_trained_again_count_once_and_a_damaged_checkpoint_is_passed(tmp_path):
    kept = Runs(tmp_path)
    run = kept.begin(START)
    for number in (1, 2):
        kept.add(run, finished(number), START)
        until((tmp_path / run.id / "checkpoint" / f"{number:08d}").exists)
    kept._live.pop(run.id).close()
    (tmp_path / run.id / "checkpoint" / "00000002" / "state.safetensors").write_bytes(b"")
    kept = Runs(tmp_path)
    again, start = kept.resume(run.id)
    assert start.number == 1
    assert "00000002/state.safetensors='another SHA-256'" in kept.trouble
    for number in (2, 3):
        kept.add(again, finished(number), START.replace(local_lr=0.5 * number))
    kept.end(again, "done")
    lines = (tmp_path / run.id / LOG).read_text().splitlines()
    assert [json.loads(line).get("resumed") for line in lines if '"resumed"' in line] == [1]
    for records in (again.records, Runs(tmp_path).get(run.id).records):
        assert [r["round"] for r in records] == [1, 2, 3]
        assert records[1]["turned"] == {"local_lr": 1.0}


def test_without_a_whole_checkpoint_a_run_says_so(tmp_path):
    _, run = trained(tmp_path, 1)
    (tmp_path / run.id / "checkpoint" / "00000001" / "manifest.json").write_text("{}")
    with pytest.raises(ParameterError, match=r"no manifest .*there is no other; begin another run"):
        Runs(tmp_path).resume(run.id)
    assert said(tmp_path, run.id) == ("done", "")


@pytest.mark.parametrize("ended", ["done", "stopped", "failed", "killed later", "cut"])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path, ended):
    metrics = {"ndcg@10": [0.1, 0.3, 0.2]}
    killed = ended in ("killed later", "cut")
    kept, run = trained(tmp_path, 3, "done" if killed else ended, **metrics)
    home = tmp_path / run.id
    if ended == "killed later":
        again, _ = kept.resume(run.id)
        kept.add(again, finished(4, **{"ndcg@10": 0.2}), START)
        kept._live.pop(run.id).close()
    before = (home / LOG).read_text()
    if ended == "cut":
        with (home / LOG).open("a") as file:
            file.write('{"chain": "0123')
    shutil.rmtree(home / "checkpoint")
    kept = Runs(tmp_path, {"ndcg@10": "max"})
    with pytest.raises(ParameterError, match=r"its checkpoints are gone.*export its best model"):
        kept.resume(run.id)
    assert kept.best(run.id).number == 2
    assert (home / LOG).read_text().startswith(before)
    kept.rename(run.id, "free again")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    run = interrupted(tmp_path, 2)
    for _ in range(2):
        shutil.rmtree(tmp_path / run.id / "checkpoint")
        kept = Runs(tmp_path)
        again, start = kept.resume(run.id)
        assert start is None
        kept.add(again, finished(1), START)
        assert [r["round"] for r in again.records] == [1]
        kept._live.pop(run.id).close()  # killed once more


def test_the_best_model_stays_until_a_better_one_whatever_is_trained_again(tmp_path):
    """Its round comes with the settings that it had, not those of the round trained again."""
    kept = Runs(tmp_path, {"ndcg@10": "max"})
    run = kept.begin(START)
    for number, value in ((1, 0.1), (2, 0.3), (3, 0.2)):
        kept.add(run, finished(number, **{"ndcg@10": value}), START)
        until((tmp_path / run.id / "checkpoint" / f"{number:08d}").exists)
        if number == 1:
            shutil.copytree(tmp_path / run.id / "checkpoint" / "00000001", tmp_path / "first")
    kept._live.pop(run.id).close()
    shutil.rmtree(tmp_path / run.id / "checkpoint")
    shutil.copytree(tmp_path / "first", tmp_path / run.id / "checkpoint" / "00000001")
    kept = Runs(tmp_path, {"ndcg@10": "max"})
    again, start = kept.resume(run.id)
    assert start.number == 1
    other = START.replace(local_lr=0.5)
    kept.add(again, finished(2, other, **{"ndcg@10": 0.2}), other)
    until((tmp_path / run.id / "checkpoint" / "00000002").exists)
    done, then = kept.at_best(run.id)
    assert (done.metrics["ndcg@10"], then.last_settings) == (0.3, dict(START))
    assert again.better(then.records[-1], kept.metrics) == ""
    kept.add(again, finished(3, other, **{"ndcg@10": 0.4}), other)
    kept.end(again, "done")
    done, then = kept.at_best(run.id)
    assert (done.metrics["ndcg@10"], then.last_settings) == (0.4, dict(other))
    assert [r["round"] for r in then.records] == [1, 2, 3]


def test_a_state_that_cannot_be_stored_is_said_and_the_run_goes_on(tmp_path):
    kept = Runs(tmp_path)
    run = kept.begin(START)
    done = Round(1, START, {"w": torch.ones(1)}, state={"mine": {"a": object()}})
    kept.add(run, done, START)
    until(lambda: kept.trouble)
    assert "state['mine']['a']" in kept.trouble
    assert run.id in kept.unsaved
    kept.end(run, "done")
    assert said(tmp_path, run.id) == ("done", "")


def test_a_full_disk_does_not_stop_a_run_and_another_folder_gets_all_of_it(tmp_path):
    kept = Runs(tmp_path / "full")
    run = kept.begin(START)
    kept.add(run, finished(1), START)
    until((tmp_path / "full" / run.id / "checkpoint" / "00000001").exists)
    size = (tmp_path / "full" / run.id / LOG).stat().st_size
    with full_disk(size + 40):
        kept.add(run, finished(2), START)
        assert kept.trouble.startswith("Not being saved: File too large")
        assert kept.unsaved == {run.id}
        kept.add(run, finished(3), START)
    assert len(run.records) == 3
    again = Runs(tmp_path / "full").get(run.id)  # what was there is whole
    assert (again.state, again.error, len(again.records)) == ("interrupted", "", 1)
    assert load_round(tmp_path / "full" / run.id).number == 1
    kept.open(tmp_path / "other")
    assert kept.trouble == ""
    assert not kept.unsaved
    kept.add(run, finished(4), START)
    kept.end(run, "stopped")
    again = Runs(tmp_path / "other").get(run.id)
    assert (again.state, [r["round"] for r in again.records]) == ("stopped", [1, 2, 3, 4])
    assert load_round(tmp_path / "other" / run.id).number == 4
    kept.open(tmp_path / "full")  # and back: what lies there is the same run, and stays
    assert len(Runs(tmp_path / "full").get(run.id).records) == 1


def test_a_folder_that_vanishes_is_said_at_once(tmp_path):
    kept = Runs(tmp_path / "runs")
    run = kept.begin(START)
    kept.add(run, finished(1), START)
    until((tmp_path / "runs" / run.id / "checkpoint" / "00000001").exists)
    shutil.rmtree(tmp_path / "runs")
    kept.add(run, finished(2), START)
    until(lambda: kept.trouble.startswith("Not being saved"))
    kept.end(run, "done")
    assert len(run.records) == 2
    assert run.id in kept.unsaved


def test_runs_move_to_another_folder_with_their_models(tmp_path):
    kept, run = trained(tmp_path / "one")
    kept.open(tmp_path / "two")
    assert load_round(tmp_path / "two" / run.id).number == 3
    moved = Runs(tmp_path / "two")
    again, start = moved.resume(run.id)
    assert (start.number, again.records) == (3, run.records)
    moved.end(again, "stopped")
    kept.delete(run.id)
    assert Runs(tmp_path / "one").get(run.id).state == "done"


def test_files_of_an_earlier_edition_are_named(tmp_path):
    (tmp_path / "20260101-000000-000000-abcd.jsonl").write_text('{"fedlab": 2}\n')
    assert "abcd.jsonl: a run of an earlier edition" in Runs(tmp_path).trouble
    assert Runs(tmp_path).listed() == []


def test_a_clock_that_goes_back_overwrites_nothing(tmp_path, monkeypatch):
    _, first = trained(tmp_path)
    ids = iter([first.id, first.id, "20010101-000000-000000-0000"])
    monkeypatch.setattr(sys.modules["fedlab.workbench.runs.store"], "new_id", lambda: next(ids))
    kept = Runs(tmp_path / "away")
    other = Run("put back", dict(START), first.id)
    monkeypatch.setattr(sys.modules["fedlab.workbench.runs.store"], "Run", lambda *_: other)
    for _ in range(2):  # in a folder that is opened later, and in one that has it
        kept.open(tmp_path)
    kept.begin(START)
    kept.add(other, finished(1), START)
    kept.end(other, "stopped")
    assert other.id == "20010101-000000-000000-0000"
    assert said(tmp_path, first.id) == ("done", "")
    assert load_round(tmp_path / first.id).number == 3
    with pytest.raises(FileExistsError):
        RunFolder.made(tmp_path / first.id)


# What resumes is what would have been trained without a kill.

KINDS = {
    "adam": {"server_optimizer": "adam", "server_lr": 0.05},
    "scaffold": {"local": "scaffold"},
    "error feedback": {"uplink": "error feedback"},
    "buffered": {"schedule": "buffered", "buffer": 4},
    "private": {"uplink": "clip + gaussian noise", "teaching_seed": 1, "delta": 1e-3, "clip": 0.1},
}


@posix
@pytest.mark.parametrize("kind", ["adam", "buffered"])
def test_a_killed_command_is_resumed_bit_for_bit(tiny_settings, tmp_path, kind, capsys):
    settings = Settings(**tiny_settings | {"rounds": 60} | KINDS[kind])
    (tmp_path / "start.json").write_text(write_settings(settings))
    folder = tmp_path / "runs"
    words = ["-m", "fedlab", "run", str(tmp_path / "start.json"), "--folder", str(folder)]
    live = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    until(lambda: list(folder.glob("*/checkpoint/0*")), 60)
    live.send_signal(signal.SIGSTOP)
    (run,) = Runs(folder).listed()
    assert run.state == "running elsewhere"
    assert main(["resume", run.id, "--folder", str(folder)]) == 2
    assert "another process trains it" in capsys.readouterr().err
    live.send_signal(signal.SIGKILL)
    live.wait()
    (run,) = Runs(folder).listed()
    assert run.state == "interrupted"
    assert 0 < len(run.records) < 60
    assert main(["resume", run.id, "--folder", str(folder)]) == 0
    assert f"{run.name} goes on after round" in capsys.readouterr().err
    again = Runs(folder).get(run.id)
    assert (again.state, len(again.records)) == ("done", 60)
    *_, last = stream(lambda: settings)
    assert mark([load_round(folder / run.id)]) == mark([last])


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_goes_on_as_if_it_had_been_longer(tiny_settings, tmp_path, kind, capsys):
    settings = Settings(**tiny_settings | {"rounds": 3} | KINDS[kind])
    (tmp_path / "start.json").write_text(write_settings(settings))
    folder, named = str(tmp_path / "runs"), str(tmp_path / "start.json")
    assert main(["run", named, "--folder", folder, "--name", "mine"]) == 0
    assert main(["resume", "mine", "--folder", folder]) == 2
    assert "rounds=3: mine has done 3 rounds; choose more" in capsys.readouterr().err
    assert main(["resume", "mine", "--folder", folder, "--set", "rounds=6"]) == 0
    (run,) = Runs(folder).listed()
    assert (run.state, [r["round"] for r in run.records]) == ("done", [1, 2, 3, 4, 5, 6])
    *_, last = stream(lambda: settings.replace(rounds=6))
    assert mark([load_round(tmp_path / "runs" / run.id)]) == mark([last])
    start = load_round(tmp_path / "runs" / run.id)
    assert [d.number for d in stream(lambda: settings.replace(rounds=7), start)] == [7]


def test_an_exported_model_has_the_settings_of_its_own_round(tiny_settings, tmp_path):
    settings = Settings(**tiny_settings | {"rounds": 2, "local_lr": 1.0, "server_lr": 50.0})
    (tmp_path / "start.json").write_text(write_settings(settings))
    folder = str(tmp_path / "runs")
    assert main(["run", str(tmp_path / "start.json"), "--folder", folder, "--name", "mine"]) == 0
    kept = Runs(folder, better())
    (run,) = kept.listed()
    run, start = kept.resume(run.id)
    worse = settings.replace(rounds=3, local_lr=0.001, server_lr=0.001)
    for done in stream(lambda: worse, start):
        kept.add(run, done, worse)
    kept.end(run, "done")
    best = kept.best(run.id).number
    assert best <= 2
    assert main(["export", "mine", "--folder", folder, "--to", str(tmp_path / "m")]) == 0
    for number, name in enumerate((run.id, f"{run.id}/", "mine")):
        assert main(["export", f"{folder}/{name}", "--to", str(tmp_path / f"m{number}")]) == 0
        assert (tmp_path / f"m{number}" / "card.json").exists()
    about = json.loads((tmp_path / "m" / "card.json").read_text())
    assert read_settings((tmp_path / "m" / "settings.json").read_text(), Settings()) == settings
    assert about["settings"]["settings"]["local_lr"] == 1.0
    assert about["training"]["rounds on record"] == best
    assert "turned on the way" not in about["training"]
    bench = Workbench(stream, settings, folder=folder)
    bench.session.pin(run.id, on=True)
    with zipfile.ZipFile(io.BytesIO(bench._model())) as zipped:
        text = zipped.read("fedlab-model/settings.json").decode()
    assert read_settings(text, Settings()) == settings
    bench.close()


def test_an_export_says_where_top_cannot_open_it(tiny_settings, tmp_path, capsys):
    folder, small = tmp_path / "runs", {"rounds": 1, "against": 20}
    data = {"data": tiny_settings["data"]}
    made = {
        "by steps": tiny_settings | small,
        "solved": data | small | {"local": "implicit"},
        "linear": data | small | {"model": "linear"},
    }
    kept = Runs(folder, better())
    for name, turned in made.items():
        settings = Settings(**turned)
        run = kept.begin(settings, name)
        for done in stream(lambda settings=settings: settings):
            kept.add(run, done, settings)
        kept.end(run, "done")
    says = {"by steps": "--people", "solved": "", "linear": "of the kind linear"}
    for name, why in says.items():
        words = ["export", name, "--folder", str(folder), "--to", str(tmp_path / name)]
        assert main(words) == 0
        told = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fedlab top")]
        assert [why in line for line in told] == [True] * bool(why)
        assert main(["top", str(tmp_path / name), "1"]) == (2 if why else 0)
        assert why in capsys.readouterr().err
    words = ["export", "by steps", "--folder", str(folder), "--people", "--to"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert "fedlab top" not in capsys.readouterr().err
    assert main(["top", str(tmp_path / "whole"), "1"]) == 0


def test_an_export_says_that_the_best_model_could_not_be_saved(tiny_settings, tmp_path, capsys):
    settings = Settings(**tiny_settings)
    kept = Runs(tmp_path / "runs", better())
    run = kept.begin(settings, "mine")
    first, second = stream(lambda: settings)
    kept.add(run, first, settings)
    until((tmp_path / "runs" / run.id / "checkpoint" / "00000001").exists)
    words = ["export", run.id, "--folder", str(tmp_path / "runs"), "--to"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert "was best" not in capsys.readouterr().err
    with full_disk(6000):  # enough for the log
        kept.add(run, replace(second, metrics=second.metrics | {"ndcg@10": 0.9}), settings)
        kept.end(run, "done")
    assert said(tmp_path / "runs", run.id) == ("done", "")
    assert main([*words, str(tmp_path / "b")]) == 0
    told = capsys.readouterr()
    assert "mine was best after round 2 (ndcg@10 0.9), whose model is not kept" in told.err
    assert f"this is the one after round 1 (ndcg@10 {first.metrics['ndcg@10']:.4g})" in told.err
    assert "after round 1" in told.out
    bench = Workbench(stream, settings, metrics=better(), folder=tmp_path / "runs")
    bench.session.pin(run.id, on=True)
    tell(bench, "export", "model")
    assert (bench.notice, "best after round 2" in bench.news) == ("", True)
    bench.close()


def test_resume_says_in_a_line_what_it_cannot_do(tiny_settings, tmp_path, capsys):
    folder = tmp_path / "runs"
    words = ["resume", "--folder", str(folder)]
    assert main([*words, "mine"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    settings = Settings(**tiny_settings)
    (tmp_path / "start.json").write_text(write_settings(settings))
    assert main(["run", str(tmp_path / "start.json"), "--folder", str(folder)]) == 0
    assert main(["run", str(tmp_path / "start.json"), "--folder", str(folder), "--name", "b"]) == 0
    first, second = Runs(folder).listed()
    for given, message in (
        (["mine"], f"run='mine': there is no such run; there are {first.id}, {second.id}"),
        ([first.id, "--set", "seed=4", "--set", "rounds=9"], "seed"),
        ([first.id, "--set", "rounds=9", "--set", "clip=2"], "clip=2.0: nothing in this run reads"),
        ([first.id, "--set", "rounds"], "'rounds': write NAME=VALUE"),
    ):
        assert main([*words, *given]) == 2
        assert message in capsys.readouterr().err
        assert said(folder, first.id) == ("done", "")
    held = RunFolder.held(folder / first.id)[0]
    assert main([*words, first.id, "--set", "rounds=9"]) == 2
    assert "another process trains it" in capsys.readouterr().err
    held.close()
    path = folder / second.id / LOG
    path.write_text(path.read_text().replace('"loss": 0', '"loss": 1', 1))
    assert main([*words, second.id]) == 2
    line = next(k for k, text in enumerate(path.read_text().splitlines(), 1) if '"loss": 1' in text)
    assert f"{path}:{line}=" in capsys.readouterr().err


@posix
def test_a_run_that_could_not_be_saved_ends_the_command_with_an_error(tiny_settings, tmp_path):
    """It is said before the last round."""
    (tmp_path / "start.json").write_text(write_settings(Settings(**tiny_settings | {"rounds": 30})))
    words = ["run", str(tmp_path / "start.json"), "--folder", str(tmp_path / "runs")]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
    code = f"{limit}import sys; from fedlab.__main__ import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert re.search("Not being saved: .*File too large", done.stderr)
    assert done.stderr.index("Not being saved") < done.stderr.index("30/30")
    assert "run 1" in done.stdout
    file = tmp_path / "file"
    file.write_text("")
    assert main(["run", str(tmp_path / "start.json"), "--folder", str(file / "runs")]) == 1


def tell(bench, command, *given):
    bench._told(None, {"command": command, "given": list(given)}, None)


def test_the_workbench_resumes(tiny_settings, tmp_path):
    settings = Settings(**tiny_settings | {"rounds": 60})
    bench = Workbench(stream, settings, folder=tmp_path)
    tell(bench, "start")
    until(lambda: len(bench.rounds) > 3)
    tell(bench, "stop")
    until(lambda: bench.state == "stopped")
    bench.close()
    bench = Workbench(stream, Settings(**tiny_settings), folder=tmp_path)
    (row,) = bench.table
    assert (row["state"], row["open"]) == ("stopped", True)
    tell(bench, "resume", row["id"])
    assert bench.notice == ""
    assert bench.values["rounds"] == 60
    until(lambda: bench.state == "done")
    (line,) = bench.picture["lines"]
    assert line["series"]["loss"][0] == list(range(1, 61))
    assert load_round(tmp_path / row["id"]).number == 60
    *_, last = stream(lambda: settings)
    assert mark([load_round(tmp_path / row["id"])]) == mark([last])
    tell(bench, "resume", row["id"])
    assert bench.notice.startswith("rounds=60: run 1 has done 60 rounds; choose more")
    assert [r["state"] for r in bench.table] == ["done"]
    tell(bench, "step")  # what cannot be resumed stops nothing else
    until(lambda: bench.state == "paused")
    tell(bench, "resume", row["id"])
    assert (bench.state, bool(bench.notice)) == ("paused", True)
    tell(bench, "reset")
    bench.values = bench.values | {"rounds": 62}
    tell(bench, "resume", row["id"])
    until(lambda: bench.state == "done" and len(bench.rounds) == 2)
    bench.close()
    bench = Workbench(
        lambda settings: measured(stream(settings), lambda _: {}), settings, folder=tmp_path
    )
    tell(bench, "resume", row["id"])
    assert bench.notice.startswith("live='no start': this stream cannot go on")
    bench.close()


def test_in_memory_the_last_run_goes_on(tiny_settings):
    bench = Workbench(stream, Settings(**tiny_settings))
    tell(bench, "start")
    until(lambda: bench.state == "done")
    bench.values = bench.values | {"rounds": 6}
    (row,) = bench.table
    tell(bench, "resume", row["id"])
    until(lambda: bench.state == "done" and len(bench.session.members[0].records) == 6)
    tell(bench, "start")
    until(lambda: bench.state == "done" and len(bench.table) == 2)
    tell(bench, "resume", row["id"])
    assert "its model is not kept" in bench.notice
    bench.close()


def test_a_run_is_saved_as_it_goes_and_while_it_is_paused(tiny_settings, tmp_path):
    bench = Workbench(stream, Settings(**tiny_settings | {"rounds": 9}), folder=tmp_path)
    for number in (1, 2, 3):
        tell(bench, "step")
        until(lambda number=number: len(bench.rounds) == number and bench.state == "paused")
    (run,) = bench.session.members
    until((tmp_path / run.id / "checkpoint" / "00000003").exists)
    bench.session.runner.stop()
    bench.close()


@posix
def test_a_read_only_folder_is_read():
    """Root may write everywhere, so it looks as nobody."""
    home = Path(tempfile.mkdtemp())
    try:
        _, run = trained(home)
        paths = [*home.rglob("*"), home]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)
        kept = Runs(home)
        assert (kept.get(run.id).state, kept.trouble) == ("done", "")
        for act in (kept.resume, kept.delete, lambda id_: kept.rename(id_, "x")):
            with pytest.raises((ParameterError, OSError)):
                act(run.id)
        other = kept.begin(START)
        assert kept.trouble.startswith("Not being saved: Permission denied")
        kept.add(other, finished(1), START)
        kept.end(other, "done")
        assert (len(other.records), kept.unsaved) == (1, {other.id})
    finally:
        os.seteuid(os.getuid())
        for path in paths:
            path.chmod(0o755)
        shutil.rmtree(home)
