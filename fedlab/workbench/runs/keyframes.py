"""Rounds with their parameters, kept on the way so that a run can be gone back to.

All of them fit into `LIMIT`. Where they would not, every second one of the oldest run is let go,
again and again; what lies between two is trained again from the one before.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from fedlab.core import Round

LIMIT = 100 << 20  # bytes
MOST = 64  # of one run, so that few tables are copied for them


class Keyframes:
    """The Rounds to go back to, by run.

    >>> kept = Keyframes(limit=1000)
    >>> from fedlab.core import Settings
    >>> import torch
    >>> for number in range(1, 9):
    ...     kept.offer("a", Round(number, Settings(), {"w": torch.zeros(75)}))
    >>> [kept.nearest("a", number).number for number in (8, 7, 4)]
    [8, 4, 4]
    """

    def __init__(self, limit: int = LIMIT) -> None:
        """limit: bytes of all that is kept."""
        self.limit = limit
        self._kept: dict[str, dict[int, tuple[Round, int]]] = {}  # oldest run first
        self._every: dict[str, int] = {}
        self._lock = threading.Lock()

    def offer(self, run: str, done: Round) -> None:
        """Keep a Round, if it is one of those that are kept of this run."""
        if done.number % self._every.get(run, 1) or not done.params:
            return
        whole = replace(done, params=dict(done.params))
        size = weight(whole.params) + weight(whole.state)
        with self._lock:
            if size > self.limit:
                return
            self._every.setdefault(run, 1)
            self._kept.setdefault(run, {})[done.number] = whole, size
            while len(self._kept[run]) > MOST:
                self._thin(run)
            while self._size() > self.limit:
                self._thin(next(iter(self._kept)))

    def _size(self) -> int:
        return sum(size for frames in self._kept.values() for _, size in frames.values())

    def _thin(self, run: str) -> None:
        """Let go of every second Round of a run; of the last one, too."""
        self._every[run] *= 2
        frames = self._kept[run]
        few = {n: frame for n, frame in frames.items() if n % self._every[run] == 0}
        if not few:
            del self._kept[run]
        else:
            self._kept[run] = few

    def forget(self, run: str) -> None:
        """Let go of all that is kept of a run."""
        with self._lock:
            self._kept.pop(run, None)
            self._every.pop(run, None)

    def nearest(self, run: str, number: int) -> Round | None:
        """The last Round that is kept up to this one; None where there is none."""
        with self._lock:
            found = [n for n in self._kept.get(run, {}) if n <= number]
            return self._kept[run][max(found)][0] if found else None


def weight(value: Any) -> int:
    """The bytes of the tensors in a value.

    >>> import torch
    >>> weight({"a": torch.zeros(4), "b": [torch.zeros(1), "text"]})
    20
    """
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(weight, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(weight(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return sum(map(weight, value))
    return 0
