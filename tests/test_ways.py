"""The ways in: the workflow, Codespaces, Binder and Colab fit what is in the repository."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(WORKFLOW)["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def test_actions_are_pinned_and_may_read_alone():
    used = re.findall(r"uses: (.+)", WORKFLOW)
    assert len(used) == sum("uses" in step for step in STEPS) > 0
    assert all(re.match(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each) for each in used)
    assert yaml.safe_load(WORKFLOW)["permissions"] == {"contents": "read"}
    assert not [name for name, job in JOBS.items() if "permissions" in job]


def test_the_workflow_runs_what_make_test_runs_and_needs_no_make():
    commands = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]
    assert not [line for line in commands if re.search(r"\bmake\b", line)]
    made = re.findall(r"\$\(BIN\)/(ruff .+|mypy)", (ROOT / "Makefile").read_text())
    assert len(made) == 3
    assert {*made, "python -m pytest tests", "python -m pytest notebooks"} <= set(commands)
    places = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert places["testpaths"] == ["tests", "notebooks"]


def test_codespaces_and_binder_name_what_there_is():
    space = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    made = dict(re.findall(r"^(\w+) := (.+)$", (ROOT / "Makefile").read_text(), re.M))
    assert space["postCreateCommand"] == f"make {made['READY'].replace('$(BIN)', made['BIN'])}"
    for file in space["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / file).exists()
    lines = (ROOT / "binder" / "requirements.txt").read_text().splitlines()
    assert "-e ." in lines
    (lock,) = (line.removeprefix("-c ") for line in lines if line.startswith("-c "))
    assert (ROOT / "binder" / lock).resolve() == ROOT / "constraints.txt"


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_buttons_open_a_lesson_of_this_repository(page):
    owner = ADDRESS.removeprefix("https://github.com/")
    targets = re.findall(r"\[!\[Open in \w+\]\(.+?\)\]\((.+?)\)", (ROOT / page).read_text())
    assert len(targets) == 3
    assert all(owner in target for target in targets)
    lessons = [found for target in targets for found in re.findall(r"notebooks/.+", target)]
    assert len(lessons) == 2
    assert all((ROOT / lesson).exists() for lesson in lessons)


def test_colabs_first_cell_does_nothing_elsewhere(tmp_path):
    (cell,) = re.findall(r"```python\n(.+?)```", START, re.S)
    assert f"git+{ADDRESS}" in cell
    (tmp_path / "cell.ipy").write_text(cell + "print('through')\n")
    words = [sys.executable, "-m", "IPython", "--colors=NoColor", "cell.ipy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "through\n"
    assert done.stderr == ""
