"""Checkpoints on the way: the newest Round is saved beside training, at a steady pace.

A Round never changes, so it is written while the next is trained. A thread of its own waits for the
disk; only what Python does for it takes time from training.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

from fedlab.core import ParameterError, Round

# Seconds between the beginnings of two checkpoints: the first as long as the processor is busy with
# them for a twentieth of the time at most, never more than the last. A checkpoint of matrix
# factorisation on 671 users takes 4 ms of a processor (1.3 MB; 10 to 70 ms until the disk has it),
# one with what 671 clients have left over in error feedback 170 ms (75 MB).
PACE = (0.5, 1.0)
SHARE = 20
Offered = tuple[Round, str]  # and the chain of its line in the log


class Saver:
    """Saves the newest Round that was offered, one each `PACE` at most.

    One thread writes: a kill finds what it wrote. Another brings it to the disk, which a busy one
    may take seconds for, and keeps nobody waiting: a power failure finds that, or the one before.
    """

    def __init__(
        self,
        save: Callable[[Offered, Offered | None], None],
        settle: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """save: given the last Round, and the best one where there is a better one."""
        self._save, self._settle, self._failed = save, settle, failed
        self._last: Offered | None = None
        self._best: Offered | None = None
        self._written = self._ending = self._ended = False
        self._turn = threading.Condition()
        self._threads = [
            threading.Thread(target=work, name="fedlab checkpoints", daemon=True)
            for work in (self._write_all, self._settle_all)
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, done: Offered, best: bool) -> None:
        """Take the place of the Round that was offered before."""
        with self._turn:
            self._last, self._best = done, done if best else self._best
            self._turn.notify_all()

    def finish(self) -> None:
        """Save what was offered, and end."""
        with self._turn:
            self._ending = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _write_all(self) -> None:
        due = 0.0
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._last or self._ending)
                self._turn.wait_for(lambda: self._ending, max(0.0, due - time.monotonic()))
                last, best, self._last, self._best = self._last, self._best, None, None
                self._ended = last is None
                self._turn.notify_all()
            if last is None:
                return
            began, busy = time.monotonic(), time.thread_time()
            self._tried(partial(self._save, last, best))
            busy = time.thread_time() - busy
            due = began + min(max(PACE[0], SHARE * busy), PACE[1])
            with self._turn:
                self._written = True
                self._turn.notify_all()

    def _settle_all(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._written or self._ended)
                if not self._written:
                    return
                self._written = False
            self._tried(self._settle)

    def _tried(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, ParameterError) as error:
            self._failed(error)
