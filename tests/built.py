"""Wheels and source distributions of a copy of the repository, made without a network."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LESSONS = "fedlab/course/notebooks"
FOLDERS = (".ci", "benchmarks", "docs", "fedlab", "notebooks", "tests")
FILES = (
    *(".gitignore", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "deno.json"),
    *("constraints.txt", "environment.yml", "pyproject.toml", "setup.py"),
    *("data/README.md", "data/build.py", "data/encode.py"),
)
LEFT = ("benchmarks/.peers", "notebooks/runs", "tests/screenshots")  # what using it leaves there


def checkout(to=None):
    """The names of the repository's files; they are copied to a folder."""
    found = [Path(name) for name in FILES]
    for folder in FOLDERS:
        for path in (p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()):
            used = {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
            left = path.as_posix().startswith(LEFT) or path.name.endswith(".quick.json")
            if not used and not left:
                found.append(path)
    for path in found if to else ():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, to / path)
    return found


def build(kind, folder, to):
    """Build the 'wheel' or the 'sdist' of a folder."""
    made = f"from setuptools import build_meta as b; print(b.build_{kind}({str(to)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", made], cwd=folder, capture_output=True, text=True, check=True
    )
    return to / done.stdout.splitlines()[-1]
