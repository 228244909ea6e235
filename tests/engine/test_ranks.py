"""A federation over several processes: the bits of one, and what becomes of a rank that fails."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from fedlab.__main__ import main
from fedlab.engine import agreed, several
from fedlab.workbench import Runs, better, usual_knobs

SCRIPT = Path(__file__).with_name("run_ranks.py")
ALIKE = ("films", "sums", "median", "codes", "scaffold", "eager", "broken")


def torchrun(*words, count=2):
    """What happened when so many ranks ran these words."""
    own = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*own, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )


def lines(text):
    """Name of a run -> what each rank said of it, by rank."""
    found = defaultdict(dict)
    for line in text.splitlines():
        name, rank, said = line.split("\t")
        found[name][int(rank)] = said
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process says."""
    words = [sys.executable, str(SCRIPT), *ALIKE, "noise"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return lines(done.stdout)


@pytest.mark.parametrize("count", [2, 3])
def test_all_ranks_end_with_the_bits_of_one_process(alone, count):
    done = torchrun(SCRIPT, *ALIKE, "noise", count=count)
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    for name in ALIKE:
        assert set(found[name]) == set(range(count))
        assert set(found[name].values()) == {alone[name][0]}, name
    assert "client 0 cannot be read" in alone["broken"][0]
    # drawn by the operating system: alike on all ranks, and unlike another time
    assert len(set(found["noise"].values())) == 1
    assert found["noise"][0] != alone["noise"][0]


def test_a_killed_rank_ends_the_run_with_its_reason():
    done = torchrun(SCRIPT, "dying")
    assert done.returncode != 0
    assert "exitcode  : 9" in done.stderr
    assert not any(len(said) == 64 for said in lines(done.stdout)["dying"].values())


def test_run_and_resume_over_ranks_is_the_run_of_one_process(tmp_path):
    turned = ["rounds=3", "cohort=100", "dim=4", "local_lr=1.0", "against=20"]
    sets = [word for each in turned for word in ("--set", each)]
    done = torchrun("-m", "fedlab", "run", *sets, "--folder", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    more = ["--set", "rounds=5", "--folder"]
    done = torchrun("-m", "fedlab", "resume", "run 1", *more, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "goes on after round 3" in done.stderr
    assert main(["run", *sets, "--set", "rounds=5", "--folder", str(tmp_path / "one")]) == 0
    one, two = (Runs(tmp_path / name, better(), usual_knobs) for name in ("one", "two"))
    (first,), (second,) = one.listed(), two.listed()
    assert [r["ndcg@10"] for r in first.records] == [r["ndcg@10"] for r in second.records]
    assert second.state == "done"


def test_other_commands_are_refused_under_torchrun(tmp_path):
    done = torchrun("-m", "fedlab", "compare", tmp_path)
    assert done.returncode != 0
    assert "torchrun is for run and resume; give this command without it" in done.stderr


def test_without_torchrun_a_process_is_alone():
    assert not several()
    assert agreed(lambda: 7) == 7
