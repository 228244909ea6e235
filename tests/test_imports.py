"""Imports only go down: a folder may use those before it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedlab

HOUSE = Path(fedlab.__file__).parent
FLOORS = [
    "core",
    "data",
    "models",
    "engine",
    "evaluation",
    "aggregation",
    "communication",
    "privacy",
    "attacks",
    "algorithms",
    "nodes",
    "workbench",
    "course",
]
# each takes from a tenth of a second to seconds, and loads where it is used
LATE = [
    *("IPython", "anywidget", "gguf", "ipywidgets", "jupyterlab", "matplotlib", "numba"),
    *("opacus", "pandas", "polars", "scipy", "tensorboard", "transformers", "voila"),
]
FACES = ["__init__", "__main__", "fedavg", "namesake"]


def imported(path):
    """Names of the folders and faces of fedlab that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedlab":
            parts = node.module.split(".")[1:]
            found |= set(parts[:1]) if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {"a relative import"}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fedlab.")
            }
    return found


def test_the_plan_is_seen():
    names = {p.name.removesuffix(".py") for p in HOUSE.iterdir() if p.name != "__pycache__"}
    assert names == {*FLOORS, *FACES}
    assert len(names) <= 16
    for folder in HOUSE.rglob("*"):
        if folder.is_dir() and folder.name not in ("__pycache__", "bundled"):
            assert len(list(folder.glob("*.*"))) <= 10, folder


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down(floor):
    allowed = set(FLOORS[: FLOORS.index(floor) + 1])
    for path in (HOUSE / floor).rglob("*.py"):
        assert imported(path) <= allowed, path


def test_the_check_sees_a_wrong_direction(tmp_path):
    wrong = tmp_path / "tree.py"
    wrong.write_text(
        "def f():\n    from fedlab.algorithms.loop import federate\n"
        "    import fedlab.evaluation.figures\n    return federate\n"
    )
    assert imported(wrong) == {"algorithms", "evaluation"}


def test_functions_stay_small():
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                inside = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1
                assert inside <= 32, f"{path.name}:{node.name}"


def test_the_public_list_is_whole():
    assert len(set(fedlab.__all__)) == len(fedlab.__all__)
    assert all(hasattr(fedlab, name) for name in fedlab.__all__)


def loaded(source):
    """The names of `LATE` that are loaded after these lines, in a Python of their own."""
    words = [sys.executable, "-c", f"{source}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(LATE) & set(done.stdout.split())


def test_importing_the_package_loads_little_beside_torch():
    assert loaded("import fedlab, fedlab.fedavg") == set()
    assert loaded("from fedlab.data import from_arrays\nfrom_arrays([1], [2])") == {"polars"}
