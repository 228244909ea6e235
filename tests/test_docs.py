"""The page on extending runs as it stands, and what it registers is at once known everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedlab.workbench  # noqa: F401 - its own part is registered before the page's
from fedlab.core import REGISTRY, Settings, described

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
BLOCKS = re.findall(r"```python\n(.+?)```", PAGE, re.S)


@pytest.fixture
def registry():
    """The registry, as it was again after the test."""
    kept = {kind: dict(parts) for kind, parts in REGISTRY.items()}
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(kept)
    described().clear()


def test_the_page_runs_and_its_parts_are_known(registry, capsys):
    before = {title for parts in registry.values() for title in parts}
    space = {"__name__": "extend"}
    for block in BLOCKS:
        exec(compile(block, "docs/extend.md", "exec"), space)
    new = {title for parts in registry.values() for title in parts} - before
    assert new == {
        "geometric median",
        "sparsify",
        "normalised",
        "first comers",
        "squared distance",
        "every fourth",
    }
    assert (
        Settings(aggregation="geometric median", smoothing=7, uplink="sparsify + clip").smoothing
        == 7
    )
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first[0], second[0]) == ("1", "2")


def test_a_method_takes_about_twenty_lines():
    sizes = [len([line for line in block.splitlines() if line.strip()]) for block in BLOCKS]
    assert max(sizes) <= 22


def test_a_part_in_a_file_is_a_choice_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text("\n".join(BLOCKS[:1]))
    words = [
        sys.executable,
        "-m",
        "fedlab",
        "run",
        "--parts",
        str(tmp_path / "mine.py"),
        "--folder",
        str(tmp_path / "runs"),
        "--set",
        "rounds=1",
        "--set",
        "cohort=4",
        "--set",
        "aggregation=geometric median",
        "--set",
        "smoothing=2",
        "--set",
        "weighting=examples",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "ndcg@10" in done.stdout
