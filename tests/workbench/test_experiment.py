"""A whole experiment from settings, in Python and on the command line."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fedlab.__main__ import main
from fedlab.core import ParameterError, knobs
from fedlab.data import DataError
from fedlab.workbench import (
    AGGREGATES,
    CODES,
    CRAFTS,
    METRICS,
    MODELS,
    PARTITIONS,
    PRESETS,
    Experiment,
    Runs,
    stream,
)

SHORT = replace(next(iter(PRESETS.values())), rounds=2, cohort=5)


def test_every_choice_of_a_knob_can_be_built_and_every_builder_chosen():
    described = knobs(Experiment)
    for name, table in (("partition", PARTITIONS), ("model", MODELS), ("aggregation", AGGREGATES)):
        assert set(described[name].choices) == set(table)
    assert set(described["attack"].choices) == {"none", *CRAFTS}
    assert set(described["code"].choices) == {"plain", *CODES}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_gets_better(name):
    config = replace(PRESETS[name], rounds=6)
    rounds = list(stream(lambda: config))
    measured = {metric: [r.metrics[metric] for r in rounds] for metric in rounds[0].metrics}
    assert set(measured) <= set(METRICS)
    for metric, values in measured.items():
        if metric == "staleness":
            continue
        assert (values[-1] > values[0]) == (METRICS[metric] == "max"), metric
    if config.timing == "synchronous":
        assert rounds[-1].config == replace(config, cohort=len(rounds[-1].cohort))


@pytest.mark.parametrize("change", [
    {"partition": "equal"}, {"partition": "by activity", "platforms": 3}, {"model": "interaction"},
    {"model": "linear"}, {"aggregation": "mean of holders"}, {"task": "ratings"}, {"aggregation": "coordinate median"},
    {"aggregation": "trimmed mean"}, {"aggregation": "krum"}, {"aggregation": "norm bound"},
    {"aggregation": "by quality"}, {"aggregation": "best models", "model": "content"},
    {"task": "ratings", "aggregation": "best models", "keep": 2}, {"timing": "asynchronous", "buffer": 2},
    {"late": 0.3, "early": 0.3}, {"deadline": 5.0}, {"aggregation": "row bound"},
    {"attack": "flipped", "liars": 0.4}, {"attack": "noisy", "code": "rank 1 in 4 bits"}, {"code": "largest tenth"},
    {"code": "4 bits", "correction": "scaffold"}, {"server_optimizer": "yogi"}, {"correction": "scaffold"},
    {"task": "ratings", "model": "interaction", "partition": "by genre"}])
def test_every_part_works_with_the_others(change):
    config = replace(SHORT, local_lr=0.1, server_lr=1.0, **change)
    *_, last = stream(lambda: config)
    assert last.number == 2
    assert all(math.isfinite(value) for value in last.metrics.values())


def test_liars_and_codes_are_those_that_were_asked_for():
    def run(**change):
        return next(stream(lambda: replace(SHORT, cohort=100, **change)))
    plain, spoilt, small = run(), run(attack="flipped", liars=1.0), run(code="4 bits")
    # from 0, all the other way
    torch.testing.assert_close(spoilt.params["bias"], -5 * plain.params["bias"])
    assert 7 < plain.bytes_up / small.bytes_up < 8
    for change, message in (({"attack": "noisy"},
                             "attack='noisy': asynchronous clients know 'none' alone"),
                            ({"code": "signs"},
                             "code='signs': asynchronous clients know 'plain' alone")):
        with pytest.raises(ParameterError, match=message):
            run(timing="asynchronous", **change)


def test_a_cohort_larger_than_the_federation_is_all_of_it():
    config = replace(SHORT, partition="equal", platforms=3, cohort=500, rounds=1)
    (done,) = stream(lambda: config)
    assert len(done.cohort) == done.config.cohort == 3


def test_knobs_that_count_from_the_next_round_do():
    asked = iter([SHORT, SHORT, replace(SHORT, cohort=9), replace(SHORT, cohort=9)])
    assert [len(done.cohort) for done in stream(lambda: next(asked))] == [5, 9]


def test_what_cannot_be_built_says_why():
    with pytest.raises(DataError, match="is not a folder"):
        stream(lambda: replace(SHORT, data="/nowhere"))
    with pytest.raises(ParameterError, match="device='cudo'"):
        list(stream(lambda: replace(SHORT, device="cudo")))
    with pytest.raises(ParameterError, match="data='': write a text"):
        Experiment(data="")


def test_run_sweep_and_compare_on_the_command_line(tmp_path, capsys):
    file, folder = tmp_path / "settings.json", str(tmp_path / "runs")
    file.write_text('{"fedlab": 1, "settings": {"rounds": 3, "cohort": 5}}')
    assert main(["run", str(file), "--set", "local_lr=0.5", "--folder", folder, "--name",
                 "mine"]) == 0
    (run,) = Runs(folder).listed()
    assert (run.name, run.state, len(run.records), run.settings["local_lr"]) == ("mine", "done", 3,
                                                                                 0.5)
    same = [done.loss for done in stream(lambda: replace(SHORT, rounds=3, local_lr=0.5))]
    assert [record["loss"] for record in run.records] == same  # the same numbers as in a notebook
    capsys.readouterr()
    assert main(["sweep", str(file), "--over", "local_lr=0.5,1", "--over",
                 "weighting=equal,examples", "--folder", folder]) == 0
    out, err = capsys.readouterr()
    assert "12/12" in err
    assert len(out.splitlines()) == 5
    assert main(["sweep", str(file), "--over", "server_lr=1,50", "--random", "3", "--folder",
                 folder]) == 0
    capsys.readouterr()
    assert main(["compare", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 4 + 3
    assert lines[0].split()[-3:] == ["local_lr", "server_lr", "weighting"]
    assert lines[1].startswith("mine")


@pytest.mark.parametrize(("words", "message"), [
    (["run", "--set", "rouds=4"], "rouds='4': no such parameter; did you mean rounds?"),
    (["run", "--set", "rounds=x"], "rounds='x': choose a whole number"),
    (["run", "--set", "rounds"], "'rounds': write NAME=VALUE"),
    (["run", "missing.json"], "No such file or directory: 'missing.json'"),
    (["sweep", "--over", "local_lr=a"], "local_lr='a': choose a number"),
    (["compare", "missing"], "folder='missing': there is no such folder"),
])
def test_wrong_words_are_explained_in_a_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_a_run_that_fails_is_kept_as_failed(tmp_path, capsys):
    assert main(["run", "--set", "data=/nowhere", "--folder", str(tmp_path)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    (file,) = tmp_path.glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[-1])["end"] == "failed"
