"""Run every lesson from the top in its own kernel and store its outputs: `make notebooks`."""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def store(path: Path) -> float:
    """Execute a notebook in place and return the seconds it took; an error leaves it as it was."""
    book = nbformat.read(path, as_version=4)
    book.metadata.pop("widgets", None)
    began = time.perf_counter()
    NotebookClient(
        book, timeout=300, resources={"metadata": {"path": path.parent}}, record_timing=False
    ).execute()
    seconds = time.perf_counter() - began
    nbformat.validate(book)
    nbformat.write(book, path)
    return seconds


if __name__ == "__main__":
    for path in [Path(p) for p in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: {store(path):.0f} s", flush=True)
