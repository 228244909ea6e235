"""The command line over nodes: a run, one that goes on, and one line for whatever is wrong."""

import os
import subprocess
import sys

import pytest
import torch
from waiting import until
from world import difference

from fedlab.__main__ import main
from fedlab.core import Settings, load_round, write_settings
from fedlab.data import Columns
from fedlab.nodes import Sockets, write_node
from fedlab.workbench import stream

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no Unix sockets")
USUAL = {"rounds": 3, "cohort": 20, "local_lr": 1.0, "dim": 4}


def words(*given):
    return [sys.executable, "-m", "fedlab", *map(str, given)]


@pytest.fixture
def said(capsys):
    """A function that runs a command: what it prints, or its last line of errors."""

    def run(*given, code=0):
        found, told = main(list(map(str, given))), capsys.readouterr()
        assert found == code, told.err
        return told.err.strip().splitlines()[-1] if code else told.out

    return run


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes of ml-latest-small, each a process, and where they look for a coordinator."""
    home = tmp_path_factory.mktemp("nodes")
    assert main(["nodes", "ml-latest-small", "--into", str(home), "--count", "2"]) == 0
    running = [
        subprocess.Popen(
            words("node", home / f"node{k}", "--socket", home / "line"), stderr=subprocess.DEVNULL
        )
        for k in range(2)
    ]
    yield home
    for each in running:
        each.kill()
        each.wait()


def test_a_run_over_nodes_and_one_that_goes_on(said, nodes, tmp_path):
    (tmp_path / "settings.json").write_text(write_settings(USUAL))
    run = (
        "run",
        tmp_path / "settings.json",
        "--nodes",
        nodes / "line",
        "--count",
        2,
        "--deadline",
        300,
    )
    run = (*run, "--folder", tmp_path / "runs")
    printed = said(*run)
    assert "done" in printed
    assert "best ndcg@10" in printed
    *_, one = stream(lambda: Settings(**USUAL))
    (folder,) = [each for each in (tmp_path / "runs").iterdir() if each.is_dir()]
    last = load_round(folder)
    assert difference(one.params, last.params) < 1e-5
    assert last.metrics == pytest.approx(one.metrics)
    further = said(*run, "--resume", "--set", "rounds=5")
    assert "done" in further
    *_, one = stream(lambda: Settings(**USUAL | {"rounds": 5}))
    last = load_round(folder)
    assert last.number == 5
    assert difference(one.params, last.params) < 1e-5
    assert "start" in said(*run, "--resume", "--set", "rounds=9", "--set", "seed=3", code=2)


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("data=clicks.csv", "nodes have the data"),
        ("partition=by activity", "nodes have the data"),
        ("task=ratings", "the nodes have clicks"),
        ("aggregation=best models", "needs the data"),
        ("uplink=clip + distributed gaussian", "its noise is not counted yet"),
        ("local=meta", "needs the data"),
        ("loss=bpr", "each item is learned by itself"),
    ],
)
def test_settings_that_need_the_data_are_refused(said, nodes, tmp_path, turn, why):
    run = ("run", "--nodes", nodes / "line", "--count", 2, "--deadline", 300)
    assert why in said(*run, "--folder", tmp_path, "--set", turn, code=2)


def test_what_is_wrong_is_one_line(said, tmp_path):
    run = ("run", "--folder", tmp_path / "runs", "--nodes")
    assert "0 of 1 are there within 0.2 s" in said(
        *run, tmp_path / "line", "--deadline", 0.2, code=2
    )
    assert "on this machine" in said(*run, "0.0.0.0:7000", code=2)
    engine = f"relay:{tmp_path}/none.sock"
    assert "no relay listens at" in said(*run, engine, "--deadline", 0.2, code=2)
    assert "it goes with --nodes" in said("run", "--resume", code=2)
    assert "no such file" in said("node", tmp_path, "--socket", tmp_path / "line", code=2)
    (tmp_path / "data.node").write_bytes(b"nonsense")
    assert "not a node's data" in said("node", tmp_path, "--socket", tmp_path / "line", code=2)
    assert "count=0" in said("nodes", "ml-latest-small", "--into", tmp_path, "--count", 0, code=2)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("identity", b""),
        ("identity", b"x" * 31),
        ("others.json", b""),
        ("others.json", b"[]"),
        ("others.json", b'{"node1": "00ff"}'),
        ("others.json", b'{"node1": 3}'),
    ],
)
def test_a_damaged_key_names_its_file_and_the_way_out(said, tmp_path, file, text):
    rows = Columns({"target": torch.ones(2)}, torch.tensor([0, 1]))
    write_node(tmp_path, "a", rows)
    (tmp_path / file).write_bytes(text)
    last = said("node", tmp_path, "--socket", tmp_path / "line", "--patience", 0.1, code=2)
    assert str(tmp_path / file) in last
    assert "put it back from a copy" in last
    assert "remove the file" in last
    assert (tmp_path / file).read_bytes() == text


def test_a_node_that_meets_no_coordinator_says_so_at_once_and_ends_with_an_error(said, nodes):
    wrong = nodes / "wrong"
    node = ["node", nodes / "node0", "--socket", wrong]
    with subprocess.Popen(words(*node), stderr=subprocess.PIPE, text=True) as waits:
        heard = [waits.stderr.readline() for _ in range(2)]
        waits.kill()
    assert f"no coordinator is at {wrong} (" in heard[1]
    last = said(*node, "--patience", 0.2, code=2)
    assert f"socket='{wrong}': no coordinator was there within 0.2 s (" in last
    assert "patience=-1" in said(*node, "--patience", -1, code=2)


def test_a_node_that_met_a_coordinator_ends_when_its_patience_is_out(nodes, tmp_path):
    node = words("node", nodes / "node0", "--socket", tmp_path / "line", "--patience", 1)
    with Sockets(str(tmp_path / "line")) as line:
        alone = subprocess.Popen(node, stderr=subprocess.PIPE, text=True)
        until(lambda: "node0" in line.nodes())
    _, told = alone.communicate(timeout=300)
    assert alone.returncode == 0
    assert f"no coordinator was at {tmp_path / 'line'} for 1 s" in told
