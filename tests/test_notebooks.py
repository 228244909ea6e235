"""What nbval cannot see: outputs that are there, the shape of a lesson, claims that are checked."""

import ast
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

from fedlab.workbench import Workbench

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LESSONS = [path.stem for path in NOTEBOOKS if path.stem[0].isdigit()]
READ = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
every = pytest.mark.parametrize("name", READ)
lessons = pytest.mark.parametrize("name", LESSONS)


def code(name):
    return [c for c in READ[name].cells if c.cell_type == "code"]


def prints(cell):
    """Whether running the cell must leave an output: by a print, or by a last expression.

    Only a print at the top level counts.
    """
    last = ast.parse(cell.source).body[-1]
    called = any(
        isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
        for top in ast.parse(cell.source).body
        if not isinstance(top, ast.FunctionDef)
        for n in ast.walk(top)
    )
    return called or isinstance(last, ast.Expr)


@every
def test_every_cell_that_shows_something_has_its_output(name):
    for cell in code(name):
        assert cell.execution_count, cell.source
        assert bool(cell.outputs) == prints(cell), cell.source
    assert [c.execution_count for c in code(name)] == list(range(1, len(code(name)) + 1))


@every
def test_no_output_is_an_error_or_an_unknown_magic(name):
    outputs = [o for c in code(name) for o in c.outputs]
    assert not [
        o
        for o in outputs
        if o.output_type == "error" or (o.output_type == "stream" and o.name == "stderr")
    ]
    assert not [o for o in outputs if "UsageError" in str(o)]


@every
def test_only_live_cells_go_unchecked(name):
    unchecked = [c for c in code(name) if "nbval-ignore-output" in c.metadata.get("tags", [])]
    assert all("live" in c.metadata.tags for c in unchecked)
    assert all("application/vnd.jupyter.widget-view+json" in c.outputs[0].data for c in unchecked)
    assert len(unchecked) == 1
    assert "raises-exception" not in str([c.metadata for c in code(name)])
    assert "nbval-skip" not in str([c.metadata for c in code(name)])


@every
def test_the_file_opens_on_github_and_the_widget_before_it_is_run(name):
    nbformat.validate(READ[name])
    views = READ[name].metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    shown = [
        o.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for c in code(name)
        for o in c.outputs
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert shown
    assert set(shown) <= set(views)
    stored = [view["state"] for view in views.values() if "_css" in view["state"]]
    assert stored
    for state in stored:  # what is kept is what a run would show: JupyterLab opens with it
        assert state["_css"] == Workbench._css, "run tests/store_outputs.py --views"
        assert state["_esm"] == Workbench._esm, "run tests/store_outputs.py --views"
        assert {*Workbench.class_trait_names(sync=True)} <= {*state}


@lessons
def test_the_shape_of_a_lesson(name):
    cells, text = (
        READ[name].cells,
        "\n".join(c.source for c in READ[name].cells if c.cell_type == "markdown"),
    )
    assert re.match(r"# \d+ · .+\?", cells[0].source)
    assert re.search(r"About \d+ s on 2 CPU cores", cells[0].source)
    assert "You will be able to" in cells[0].source
    assert len(re.findall(r"^- ", cells[0].source, re.M)) == 3
    assert "parameters" in next(c for c in cells if c.cell_type == "code").metadata.tags
    for part in (
        "Predict before you run",
        "How to read it",
        "## What it costs",
        "## Exercises",
        "What we claim",
        "What this does not show",
        "Sources",
        "Next",
    ):
        assert part in text, part
    assert sum("image/png" in o.get("data", {}) for c in code(name) for o in c.outputs) >= 3
    assert len(code(name)) <= 25
    assert median(len(c.source.splitlines()) for c in code(name)) <= 7
    assert any(c.source.count("assert ") >= 2 for c in code(name))


@every
def test_nothing_of_a_machine_is_left_in(name):
    whole = nbformat.writes(READ[name])
    assert not re.findall(r"/(?:home|root|work|tmp|Users)/\w+", whole)


@lessons
def test_solutions_are_kept_apart(name):
    cells = [c.source for c in code(name) if "exercises." in c.source]
    assert len(cells) >= 2
    assert all("..." in source for source in cells)
