"""Imports only go down: a file may use those before it in this list."""

import ast
from pathlib import Path

import pytest

import fedlab

LAYERS = ["core", "accounting", "shamir", "secure", "tables", "readers", "wheels", "data", "text", "body", "inversion",
          "prior", "federation", "leaky", "sources", "shops", "models", "features", "modules", "reader", "metrics",
          "evaluation", "attacks", "membership", "tasks", "tower", "sequence", "scoring", "aggregation", "lora",
          "optim", "robust", "selection", "scaffold", "gradient", "step", "engine", "client", "cohort", "codes",
          "compress", "poison", "meta", "rounds", "mechanisms", "dpsgd", "ensemble", "implicit", "central", "screen",
          "public", "world", "server", "privacy", "asynchronous", "personal", "plots", "experiment", "settings", "run",
          "runs", "export", "runner", "sweep", "session", "view", "workbench", "check", "__main__"]
FILES = sorted(Path(fedlab.__file__).parent.glob("*.py"))


def imported(path):
    """Names of the fedlab files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedlab":
            parts = node.module.split(".")[1:]
            found |= set(parts[:1]) if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {"a relative import"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fedlab.")}
    return found


def test_every_file_has_its_layer():
    assert sorted(LAYERS) == [p.stem for p in FILES if p.stem != "__init__"]


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_down(name):
    allowed = set(LAYERS[: LAYERS.index(name)])
    assert imported(Path(fedlab.__file__).with_name(f"{name}.py")) <= allowed


def test_the_check_sees_a_wrong_direction(tmp_path):
    wrong = tmp_path / "core.py"
    wrong.write_text("def f():\n    from fedlab.server import federate\n    import fedlab.plots\n    return federate\n")
    assert imported(wrong) == {"server", "plots"}


def test_files_and_functions_stay_small():
    for path in FILES:
        source = path.read_text()
        assert len(source.splitlines()) <= 230, path.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path.name}:{node.name}"


def test_the_public_list_is_whole():
    assert sorted(fedlab.__all__) == list(fedlab.__all__)
    assert all(hasattr(fedlab, name) for name in fedlab.__all__)
