"""A learner's part of a class as a widget: rate films, join, watch the rounds, compare two lists.

It is an anywidget like the workbench. What the browser says comes as messages, and each is checked;
what it draws are traits. A learner's connection lives in threads of its own, so the kernel stays
free, and traits are set from there under one lock.

Letters: I items, G categories.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import traitlets

from fedlab.core import ParameterError, require
from fedlab.core.settings import tidy
from fedlab.data import Interactions, load
from fedlab.nodes.classroom import Learner, join
from fedlab.nodes.classroom.entrance import Invitation
from fedlab.nodes.classroom.learner import LIKED
from fedlab.workbench.widget import View, browser_files

BEST = 5  # stars
K = 10  # titles of a list
ALIKE = 0.5  # share of categories from which two films are of one kind
SAYS = {
    "joining": "Looking for the class at {where}.",
    "waiting": "You are in the class. It begins when the teacher starts it.",
    "away": "The connection broke; it is tried again. Your ratings are kept.",
    "over": "The class is over after {round} of {rounds} rounds.",
    "gone": "You are not in the class any more. Your ratings are kept.",
}


def familiar(films: Interactions, count: int = 20) -> list[int]:
    """Numbers of `count` films that many people know and that are unlike one another.

    The best known first, each that shares at most half of its categories with any before it; where
    these are too few, or there are no categories, the best known of the others.

    >>> films = load()
    >>> [films.catalogue.names[item] for item in familiar(films, 3)]
    ['Forrest Gump', 'Pulp Fiction', 'Shawshank Redemption, The']
    """
    fix = f"choose from 1 to {films.item_count}"
    require(isinstance(count, int) and 1 <= count <= films.item_count, "count", count, fix)
    known = torch.bincount(films.items, minlength=films.item_count)
    order, taken = known.argsort(descending=True, stable=True).tolist(), list[int]()
    if "categories" in films.catalogue.columns:
        kinds = films.catalogue.categories  # (I, G)
        for item in order:
            others = kinds[taken]
            shared = (kinds[item] & others).sum(1)
            if len(taken) < count and not (shared > ALIKE * (kinds[item] | others).sum(1)).any():
                taken.append(item)
    return (taken + [item for item in order if item not in {*taken}])[:count]


class Ratings(View):
    """Rate films, join a class with them, and see what it recommends before and after.

    invitation: the teacher's line, which may also be typed into the widget. name: what the teacher
    sees. films: what is rated, by default the MovieLens that comes along. count: how many are
    offered. patience: seconds without a coordinator after which it gives up. `given` has the stars
    so far; they stay whatever happens, also when the cell is run again. `learner` is what `join`
    gives, None before.
    """

    _esm = browser_files("parts.js", "ratings.js")
    _css = browser_files("ratings.css")
    films: Any = traitlets.List().tag(sync=True)  # (id, title with year) of each that is offered
    stars: Any = traitlets.Dict().tag(sync=True)  # id -> stars
    line = traitlets.Unicode("").tag(sync=True)
    name = traitlets.Unicode("").tag(sync=True)
    state = traitlets.Unicode("rating").tag(sync=True)  # or one of those of a Learner
    message = traitlets.Unicode("").tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)  # what went wrong, and the way out
    lists: Any = traitlets.Dict().tag(sync=True)  # before, after: titles
    cost = traitlets.Unicode("").tag(sync=True)
    _last: ClassVar["Ratings | None"] = None  # of this kernel

    def __init__(
        self,
        invitation: str = "",
        *,
        name: str = "",
        films: Interactions | None = None,
        count: int = 20,
        patience: float = 60.0,
    ) -> None:
        """Leave the class of the widget before this one in the kernel, and take up its stars.

        Raises `ParameterError` for more films than leave ten to recommend.
        """
        self._films = load() if films is None else films
        most = self._films.item_count - K
        require(count <= most, "count", count, f"choose from 1 to {most}, so that {K} are left")
        self._patience, self._guard = patience, threading.RLock()
        self.learner: Learner | None = None
        names, ids = titled(self._films), self._films.catalogue.item_ids
        offered = [[ids[item], names[item]] for item in familiar(self._films, count)]
        super().__init__(films=offered, line=invitation, name=name)
        self.given: dict[str, int] = {}  # id -> stars, in the order in which they were given
        self._joined = 0  # how often it was tried
        if before := Ratings._last:
            before.leave()
            self.learner = before.learner
            kept = {id_ for id_, _ in offered}
            self.given = {id_: stars for id_, stars in before.given.items() if id_ in kept}
        Ratings._last = self
        self._draw()
        self.on_msg(self._told)

    def rate(self, film: str, stars: int) -> None:
        """Give a film (its id) 1 to 5 stars, or 0 for none."""
        require(film in dict(self.films), "film", film, "choose one of those that are offered")
        good = type(stars) is int and 0 <= stars <= BEST
        require(good, "stars", stars, f"choose from 0, for none, to {BEST}")
        with self._guard:
            self.given |= {film: stars}
            self.given = {film: stars for film, stars in self.given.items() if stars}
        self._draw()

    def join(self, line: str = "", name: str = "") -> None:
        """Join with the stars so far, in the background; `state` and `notice` say how it goes."""
        with self._guard:
            require(self.state in ("rating", "over", "gone"), "state", self.state, "leave first")
            self.line, self.name = line or self.line, name or self.name
            invitation = Invitation.read(self.line)
            fix = f"give a film {LIKED:g} stars or more; what you like is what you bring"
            require(max(self.given.values(), default=0) >= LIKED, "ratings", self.given, fix)
            self.notice, self.lists, self.cost = "", {}, ""
            self._show("joining", where=f"{invitation.host}:{invitation.port}")
            self._joined += 1
        given = self._joined, dict(self.given), self.learner
        threading.Thread(target=self._join, args=given, daemon=True).start()

    def leave(self) -> None:
        """Leave the class, without waiting for it."""
        if self.learner:
            threading.Thread(target=self.learner.leave, daemon=True).start()

    def _join(self, turn: int, given: dict[str, int], before: Learner | None) -> None:
        changed = partial(self._changed, turn)
        how: dict[str, Any] = {"patience": self._patience, "changed": changed}
        if before:
            before.leave()  # or its name would be taken
        try:
            join(self.line, name=self.name.strip(), ratings=given, data=self._films, **how)
        except ParameterError as error:
            with self._guard:
                self.notice = str(error)
                self._show("rating")

    def _changed(self, turn: int, learner: Learner) -> None:
        """Draw what a learner in the class goes through; called from its threads."""
        with self._guard, self.hold_sync():
            state, news = learner.state, learner.news
            if turn != self._joined or (state == "gone" and not learner.begun):
                return  # it is the one before, or `_join` says why
            self.learner = learner
            if state in ("over", "gone") and not self.lists:
                self.lists = {
                    "before": self._top(learner, before=True),
                    "after": self._top(learner),
                }
            elif state == "training":
                self.lists = {}
            self.notice = learner.trouble
            self.cost = spent(learner) if news else ""
            self._show(state, where=learner.where, **news)

    def _top(self, learner: Learner, *, before: bool = False) -> list[str]:
        names = titled(self._films)
        return [names[item] for item in learner.best(K, before=before)]

    def _show(self, state: str, **told: Any) -> None:
        if state == "training":
            ndcg = told["metrics"].get("ndcg@10")
            found = "" if ndcg is None else f", the class's NDCG@10 is {ndcg:.3f}"
            self.message = f"Round {told['round']} of {told['rounds']}{found}."
        elif state == "rating":
            self.message = self._so_far()
        else:
            self.message = SAYS[state].format(**told)
        self.state = state

    def _so_far(self) -> str:
        good = sum(stars >= LIKED for stars in self.given.values())
        return f"{len(self.given)} of {len(self.films)} rated, {good} with {LIKED:g} stars or more."

    def _draw(self) -> None:
        with self._guard, self.hold_sync():
            self.stars = dict(self.given)
            if self.state == "rating":
                self.message = self._so_far()

    def _told(self, _: object, content: object, __: object) -> None:
        """Do what the browser says; what cannot be done is said, and changes nothing."""
        commands: dict[str, Callable[..., None]] = {
            "rate": self.rate,
            "join": self.join,
            "leave": self.leave,
        }
        try:
            name, given = asked(content)
            commands[name](*given)
        except ParameterError as error:
            with self._guard:
                self.notice = str(error)


def asked(content: object) -> tuple[str, list[Any]]:
    """The command of a message, and what it is given; `ParameterError` for any other."""
    takes = {"rate": [str, int], "join": [str, str], "leave": []}
    told = content if isinstance(content, dict) else {}
    name: Any = told.get("command")
    given: Any = told.get("given")
    fits = isinstance(name, str) and isinstance(given, list) and name in takes
    require(fits, "command", content, "the view sends rate, join or leave")
    right = [type(each) for each in given] == takes[name]
    right = right and all(tidy(each) for each in given if isinstance(each, str))
    require(right, name, given, "write a short text in one line")
    return name, given


def titled(films: Interactions) -> list[str]:
    """(I,) names of films, with the year where it is known."""
    catalogue = films.catalogue
    years = catalogue.years.tolist() if "years" in catalogue.columns else [0] * films.item_count
    pairs = zip(catalogue.names, years, strict=True)
    return [f"{name} ({year})" if year else name for name, year in pairs]


def spent(learner: Learner) -> str:
    """What a class has cost a learner: bytes, and what is told of one person at most."""
    up, down = learner.carried
    epsilon = learner.news["metrics"].get("epsilon")
    noise = "No noise was added, so nothing bounds what the model tells of one person."
    if epsilon is not None:
        noise = f"The class's epsilon is {epsilon:.3g}, of one person."
    return f"You sent {up / 1e6:.2f} MB and got {down / 1e6:.2f} MB. {noise}"
