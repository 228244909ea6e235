"""Imports only go down: a folder may use those before it in this list."""

import ast
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
    "workbench",
    "course",
]
FACES = ["__init__", "__main__", "fedavg"]


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
