"""Files out of wheels on the package index.

Data and models that may not lie here, or whose package needs too much.

pip brings the wheel once; it is unpacked into a cache of the user's own and serves without a
network from then on.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fedlab.data.readers import DataError


def cache_folder() -> Path:
    """Where files are kept for the next time: ~/.cache/fedlab, or the same below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedlab"


def from_wheel(requirement: str, inside: str) -> Path:
    """The file or folder `inside` a wheel, say 'recbole==1.2.1'.

    Unpacked alone and nothing installed.

    Raises `DataError` where pip cannot bring the wheel.
    """
    found = cache_folder() / inside
    if found.exists():
        return found
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                 "--only-binary=:all:"]
        done = subprocess.run([*words, "--dest", place, requirement], check=False,
                              capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"{requirement} could not be downloaded ({why}); connect to a package "
                            f"index once, or put {Path(inside).name} at {found}")
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed, tempfile.TemporaryDirectory(
            dir=_made(found.parent)) as half:
            names = [name for name in packed.namelist()
                     if name == inside or name.startswith(f"{inside}/")]
            packed.extractall(half, names)
            (Path(half) / inside).rename(found)  # the cache holds the whole or nothing
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
