"""The thread that looks into rounds beside a run, for a small share of the time.

A look trains a round once more, off the thread that trains. While a run goes on, looks are so far
apart that they take at most `SHARE` of the time; where nothing trains, each asked look is taken at
once. Of looks that are asked for meanwhile only the last one counts.
"""

import atexit
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from fedlab.core import DataError, ParameterError, Round, Settings
from fedlab.workbench.inside.look import Looker, fixed

SHARE = 0.08  # of the time, for looks beside a run
Told = Callable[[Looker | None, dict[str, Any]], None]  # who looked, and what was seen


@dataclass(frozen=True)
class Look:
    """A look: settings of the run as it began, the knobs as they stand, the Round to look from.

    before: None for the start. again: settings of rounds to be trained again from there, first.
    user, item: whom and what to follow, by id; "" for nobody.
    """

    settings: Settings
    now: Settings
    before: Round | None = None
    again: Sequence[Mapping[str, Any]] = ()
    user: str = ""
    item: str = ""


_watchers: "WeakSet[Watcher]" = WeakSet()


@atexit.register
def _end() -> None:
    """Let looks end before Python does, as it cannot stop a thread within torch."""
    for watcher in list(_watchers):
        watcher.close(wait=True)


class Watcher:
    """Takes looks in a thread of its own, and tells them; `close` ends it."""

    def __init__(self, wanted: Callable[[], Look], told: Told) -> None:
        """wanted: says what to look at, when there is time for it.

        told: called with who looked and what was seen, or why nothing was. Both are called from
        the thread.
        """
        self._wanted, self._told = wanted, told
        self._turn = threading.Condition()
        self._asked = self._busy = self._closed = False
        self._looker: Looker | None = None
        self._thread = threading.Thread(target=self._run, name="fedlab looks", daemon=True)
        _watchers.add(self)
        self._thread.start()

    def ask(self, *, busy: bool) -> None:
        """Have a look taken as soon as there is time; busy: whether a run trains beside it."""
        with self._turn:
            self._asked, self._busy = True, busy
            self._turn.notify_all()

    @property
    def waiting(self) -> bool:
        """Whether a look is asked for that has not begun."""
        return self._asked

    def close(self, *, wait: bool = False) -> None:
        """Take no more looks; the one under way is not told. wait: until it has ended."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        rested = 0.0  # monotonic seconds from which a look may be taken beside a run
        while True:
            with self._turn:
                while not self._closed and not self._due(rested):
                    wait = rested - time.monotonic()
                    self._turn.wait(wait if self._asked and wait > 0 else None)
                if self._closed:
                    return
                self._asked = False
            began = time.monotonic()
            looker, found = self._seen()
            rested = time.monotonic() + (time.monotonic() - began) / SHARE
            if not self._closed:
                self._told(looker, found)

    def _due(self, rested: float) -> bool:
        return self._asked and (not self._busy or time.monotonic() >= rested)

    def _seen(self) -> tuple[Looker | None, dict[str, Any]]:
        """What is seen; what cannot be looked at says why."""
        looker = self._looker
        try:
            wanted = self._wanted()
            if looker is None or looker.settings != fixed(wanted.settings):
                self._looker = looker = None
                self._looker = looker = Looker(wanted.settings)
            before = looker.again(wanted.before or looker.begin(), wanted.again)
            return looker, looker.look(before, wanted.now, wanted.user, wanted.item)
        except (ParameterError, DataError, OSError) as error:
            return looker, {"why": str(error)}
        except Exception as error:  # noqa: BLE001 - a part of somebody's own may raise anything
            return looker, {"why": f"{type(error).__name__}: {error}"}
