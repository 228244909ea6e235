"""Run every lesson from the top in its own kernel and store its outputs: `make notebooks`.

With --views a lesson is run as far as its live cell, and only what that shows is stored anew, as
after a change of what runs in the browser.
"""

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
    run(book, path)
    seconds = time.perf_counter() - began
    nbformat.validate(book)
    nbformat.write(book, path)
    return seconds


def run(book: nbformat.NotebookNode, path: Path) -> None:
    """Execute cells in a kernel of their own, beside the file that they are of."""
    NotebookClient(
        book, timeout=300, resources={"metadata": {"path": path.parent}}, record_timing=False
    ).execute()


def store_view(path: Path) -> float:
    """Execute a notebook as far as its live cell, and store what that shows."""
    book = nbformat.read(path, as_version=4)
    (live,) = (k for k, c in enumerate(book.cells) if "live" in c.metadata.get("tags", []))
    part = nbformat.from_dict({**book, "cells": book.cells[: live + 1]})
    part.metadata.pop("widgets", None)
    began = time.perf_counter()
    run(part, path)
    book.cells[live].outputs = part.cells[live].outputs
    book.metadata["widgets"] = part.metadata["widgets"]
    nbformat.validate(book)
    nbformat.write(book, path)
    return time.perf_counter() - began


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--views"]
    stores = store_view if "--views" in sys.argv else store
    for path in [Path(p) for p in names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: {stores(path):.0f} s", flush=True)
