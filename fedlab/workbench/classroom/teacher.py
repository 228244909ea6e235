"""The teacher's screen: the line that learners type, who is there, and a workbench over the class.

Letters: none.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, ClassVar

import ipywidgets

from fedlab.core import Round, Settings, Tree, require
from fedlab.data import Interactions, load
from fedlab.nodes.classroom import LIMIT, PRIVATE, USUAL, Entrance, started, taught, welcome
from fedlab.workbench.view import Turn
from fedlab.workbench.widget import Workbench

TURN: Turn = {"rounds": (5, 60), "local_lr": (0.1, 3.0), "server_lr": (0.01, 1.0)}
NOISE: Turn = {"clip": (0.1, 2.0), "noise": (0.1, 4.0)}
RANKING = {"ndcg@10": "max", "hr@10": "max"}
KEPT = 4  # refusals that stay on the screen
TYPE = "from fedlab.workbench import Ratings; me = Ratings({line!r}); me"


class Classroom(ipywidgets.VBox):  # type: ignore[misc]
    """A class on the teacher's screen; Start trains with whoever is there.

    address: of this machine, as learners type it; port 0 for a free one. films, start: what it is
    about and the tables it begins from, by default MovieLens and a model trained on half of its
    users. seconds: how long a round waits for a learner. private: whether updates are clipped, and
    noise is added. limit: how many learners are let in at a time. `entrance` lets them in, `bench`
    is the workbench. Making another one in the same kernel ends this one, and so does `end`.
    """

    _last: ClassVar["Classroom | None"] = None  # of this kernel

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        films: Interactions | None = None,
        start: Tree | None = None,
        seconds: float = 30.0,
        private: bool = False,
        limit: int = LIMIT,
    ) -> None:
        """Open the entrance. Raises `ParameterError` for an address that is none, or is taken."""
        if Classroom._last:
            Classroom._last.end()
        films = load() if films is None else films
        self._seconds, self._private = seconds, private
        self._refused, self._people = list[str](), ipywidgets.HTML()
        self._training = threading.Lock()
        self.entrance = Entrance(address, limit=limit, say=self._said)
        try:
            self._start = started(films) if start is None else start
            self.entrance.open(welcome(self._start, films.catalogue))
        except BaseException:  # an interrupted cell may be run again at the same address
            self.entrance.close()
            raise
        Classroom._last = self
        turn, metrics = dict(TURN), dict(RANKING)
        if private:
            turn, metrics = turn | dict(NOISE), metrics | {"epsilon": "min"}
        usual = PRIVATE if private else USUAL
        self.bench = Workbench(self._live, usual, turn, metrics, sweeps=False)
        line = escape(TYPE.format(line=str(self.entrance.invitation)))
        told = ipywidgets.HTML(f"Learners run this in a notebook:<pre>{line}</pre>")
        super().__init__([told, self._people, self.bench])
        self._show()

    def end(self) -> None:
        """Stop training, let go of all learners, and stop listening."""
        self.bench.session.runner.stop()
        self.entrance.close()

    def _live(self, ask: Callable[[], Settings | Mapping[str, Any]]) -> Iterator[Round]:
        fix = "wait until somebody has joined, then press Start"
        require(bool(self.entrance.here()), "class", "nobody is there", fix)
        fix = "learners answer one run at a time; train one after the other"
        require(self._training.acquire(blocking=False), "class", "another run is under way", fix)
        try:
            how = {"seconds": self._seconds, "private": self._private}
            yield from taught(self.entrance, self._start, ask, **how)  # type: ignore[arg-type]
        finally:
            self._training.release()

    def _said(self, line: str) -> None:
        """Take up what the entrance tells of who comes and goes; called from its threads."""
        if "not let in" in line or "let go" in line:
            self._refused = [*self._refused, line][-KEPT:]
        self._show()

    def _show(self) -> None:
        entrance = getattr(self, "entrance", None)  # somebody may come while it is being opened
        if entrance is None:
            return
        here = entrance.here()
        gone = [name for name in entrance.nodes() if name not in here]
        lines = [f"<b>{len(here)} here:</b> {escape(', '.join(here)) or 'nobody yet'}"]
        lines += [f"<b>Dropped out:</b> {escape(', '.join(gone))}"] if gone else []
        self._people.value = "<br>".join([*lines, *map(escape, self._refused)])
