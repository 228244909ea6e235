"""The lessons as files: copied into a folder of the user's own, and opened there.

In a wheel they are in `notebooks` beside this file, in the repository in its folder `notebooks`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedlab.core import require

INSTALLED = Path(__file__).with_name("notebooks")
LESSONS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "notebooks"
FIRST, WORKBENCH = "01_local_training.ipynb", "workbench.ipynb"
HOST = "--ip=127.0.0.1"  # nobody else on the network


class Copied(NamedTuple):
    """Names of the files that were written, and of those that stay as they are, changed."""

    new: list[str]
    kept: list[str]


def lesson_files() -> list[str]:
    """The names of all lessons, of the workbench's notebook and of the solutions.

    >>> [name for name in lesson_files() if "01" in name]
    ['01_local_training.ipynb', 'solutions/lesson_01.py']
    """
    found = [*LESSONS.glob("*.ipynb"), *LESSONS.glob("solutions/*.py")]
    return sorted(path.relative_to(LESSONS).as_posix() for path in found)


def copy_lessons(folder: str | Path, names: Sequence[str] | None = None) -> Copied:
    """Copy the lessons, or those named, into a folder; a file that is there stays as it is.

    Raises `ParameterError` where the folder is a file; OSError.
    """
    place, new, kept = Path(folder), list[str](), list[str]()
    is_file = place.exists() and not place.is_dir()
    require(not is_file, "folder", str(folder), "this is a file; name a folder, new or not")
    for name in lesson_files() if names is None else names:
        content, file = (LESSONS / name).read_bytes(), place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as out:
                out.write(content)
            new.append(name)
        except FileExistsError:
            if file.read_bytes() != content:
                kept.append(name)
    return Copied(new, kept)


def open_lab(folder: str | Path, words: Sequence[str] = ()) -> None:
    """JupyterLab on 127.0.0.1 in a folder of lessons, until it is stopped.

    words: more arguments of its own.
    """
    from jupyterlab.labapp import LabApp  # noqa: PLC0415 - takes a second

    root = ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    where = f"--ServerApp.root_dir={Path(folder).resolve()}"
    LabApp.launch_instance([HOST, where, f"--LabApp.default_url=/lab/tree/{FIRST}", *root, *words])


def open_workbench(folder: str | Path, words: Sequence[str] = ()) -> None:
    """The workbench of a folder, served on 127.0.0.1 without a notebook, until it is stopped.

    words: more arguments of Voilà's own.
    """
    from voila.app import Voila  # noqa: PLC0415 - takes a second

    book = str(Path(folder).resolve() / WORKBENCH)
    Voila.launch_instance([book, "--Voila.ip=127.0.0.1", "--Voila.auto_token=True", *words])
