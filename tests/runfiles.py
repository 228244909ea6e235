"""Run folders for tests: logs written again with chains that fit, and limits of a disk."""

import contextlib
import json
import os

import pytest

from fedlab.workbench.runs.log import CLOSING, HEAD, LOG, OPENING, START, link, read_log

posix = pytest.mark.skipif(
    os.name != "posix", reason="this system lacks the signals, limits or permissions"
)


def chained_anew(folder, change):
    """Change the text of every line of a log, and work out all chains again, as a forger would."""
    chain, texts = START, []
    for line in read_log(folder).lines:
        body = change(json.dumps(line))
        chain = link(chain, body)
        texts.append(OPENING + chain + CLOSING + body[1:] + "\n")
    (folder / LOG).write_text("".join(texts))
    (folder / HEAD).write_text(chain)


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="this system lacks the limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
