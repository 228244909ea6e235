"""Run folders for tests: logs written again with chains that fit, and limits of a disk."""

import contextlib
import json
import resource

from fedlab.workbench.runs.log import HEAD, LOG, START, Log, read_log


def chained_anew(folder, change):
    """Change the text of every line of a log, and work out all chains again, as a forger would."""
    lines = read_log(folder).lines
    (folder / LOG).write_bytes(b"")
    (folder / HEAD).write_text(START)
    log = Log(folder, START, 0)
    for line in lines:
        log.add(json.loads(change(json.dumps(line))))
    log.close()


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
