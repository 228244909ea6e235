"""The front end: its types are checked, its parts tested, by Deno, which comes by pip.

Deno checks modules as they are in `browser/`, and once more joined as a browser gets them: then a
name that a widget's files lack, or have twice, is found as well.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedlab.workbench import Ratings, Workbench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def deno(tmp_path_factory):
    """Run Deno at the root, without a network, and fail with what it says if it fails."""
    if not find_spec("deno"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Deno: pip install deno")
    home = str(tmp_path_factory.mktemp("deno"))  # what it remembers of files
    quiet = {"DENO_DIR": home, "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "deno", *words],
            cwd=ROOT,
            env=os.environ | quiet,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said

    return run


def test_types(deno):
    deno("check", "fedlab/workbench/browser", "tests/workbench/browser")


def test_parts(deno):
    assert " passed | 0 failed" in deno("test", "--no-check", "tests/workbench/browser")


def test_joined(deno, tmp_path):
    config = json.loads((ROOT / "deno.json").read_text())
    config["compilerOptions"]["noUnusedLocals"] = False  # not all that parts.js has is used by each
    (tmp_path / "deno.json").write_text(json.dumps(config))
    for widget in (Workbench, Ratings):
        (tmp_path / f"{widget.__name__}.js").write_text(widget._esm, encoding="utf-8")
    deno("check", "--config", str(tmp_path / "deno.json"), str(tmp_path))
