"""Waiting for what another thread brings about."""

import time


def until(condition, seconds=300.0):
    """Return when `condition()` holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
