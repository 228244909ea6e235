"""A learner in a class: a node in a thread of the own notebook, with own ratings or some of others.

What a learner brings is clicks: a film of at least `LIKED` stars counts as one. One of them is held
out to measure by, where there are two or more. The learner's own vector never leaves this process.
It starts fitted to the model that the class starts from, and trains on with the class; to recommend
and to measure it is fitted anew to the class's model as it is then, before and after alike.

Beside a node's questions a learner hears news of the class, {"ask": "news", ...}: see `Learner`.

Letters: U users of this learner, I items, D dimensions.
"""

import difflib
import hashlib
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from socket import SHUT_RDWR
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab.core import ParameterError, Tree, one_thread, require
from fedlab.data import Catalogue, Federation, Interactions, hold_out, load, of_users
from fedlab.evaluation import candidates
from fedlab.models import Model, matrix_factorisation
from fedlab.nodes.classroom.entrance import Invitation, Secured
from fedlab.nodes.lines.sockets import WELCOME, Wire, attend
from fedlab.nodes.messages import Message, MessageError, pack, unpack
from fedlab.nodes.node import Held, Node, Running

LIKED = 3.0  # stars from which a film counts as a click
AGAINST = 99  # items that a held-out one is ranked against
UNSEEN = 4.0  # weight of all unseen items together for each click, as in training
PULL = 0.01  # of a vector towards 0 while it is fitted


def join(
    invitation: str,
    *,
    ratings: Mapping[str, float] | None = None,
    slice: str = "",
    name: str = "",
    data: Interactions | None = None,
    patience: float = 60.0,
    changed: Callable[["Learner"], Any] = lambda learner: None,
) -> "Learner":
    """Join a class; the learner takes part in the background until `leave`.

    invitation: the line that the teacher shows, "CODE@host:port#fingerprint". ratings: title or id
    of a film -> stars, in the order in which they were given. slice: "3 of 8" brings, in place of
    own ratings, every eighth of the users of `data` that the class's model was not trained on.
    name: what the teacher sees. data: the films, and users to slice; by default the MovieLens that
    comes along. patience: seconds without a coordinator after which it gives up. changed: is called
    with the learner, from other threads, whenever its `state`, `trouble` or `news` has changed.

    Raises `ParameterError` for a line that is none, a class that is not there or does not let one
    in, and for films that nobody knows.
    """
    films = load() if data is None else data
    fix = "give ratings={'Toy Story': 5, ...}, or slice='3 of 8'; one of the two"
    require((ratings is None) == bool(slice), "ratings", ratings, fix)
    own = sliced(films, slice) if ratings is None else rated(ratings, films)
    name = name or f"learner-{secrets.token_hex(2)}"
    found = Learner(Invitation.read(invitation), name, own, patience, changed)
    found.begin()
    return found


def rated(ratings: Mapping[str, float], films: Interactions) -> Interactions:
    """Somebody's own ratings as interactions of user 0, in the order in which they were given."""
    fix = "give titles or ids of films with stars, such as {'Toy Story': 5}"
    require(isinstance(ratings, Mapping) and bool(ratings), "ratings", ratings, fix)
    known, items = _places(films.catalogue), list[int]()
    for film, stars in ratings.items():
        if str(film) not in known:
            near = ", ".join(map(repr, difflib.get_close_matches(str(film), known, 3)))
            fix = "no film has this id, or it alone this title" + f"; there are {near}" * bool(near)
            raise ParameterError(f"ratings={film!r}: {fix}")
        good = isinstance(stars, int | float) and 0.5 <= stars <= 5
        require(good, f"ratings[{film!r}]", stars, "choose from 0.5 to 5 stars")
        items.append(known[str(film)])
    require(len({*items}) == len(items), "ratings", list(ratings), "a film is named twice")
    given = torch.tensor([float(each) for each in ratings.values()])
    columns = {"values": given, "times": torch.arange(len(items))}
    catalogue = replace(films.catalogue, user_ids=("me",))
    return Interactions(torch.zeros(len(items)).long(), torch.tensor(items), catalogue, columns)


def _places(catalogue: Catalogue) -> dict[str, int]:
    """Title or id -> number of an item; titles alone that one item has."""
    titles: dict[str, list[int]] = {}
    for place, title in enumerate(catalogue.names):
        titles.setdefault(title, []).append(place)
    ids = {each: place for place, each in enumerate(catalogue.item_ids)}
    return {title: found[0] for title, found in titles.items() if len(found) == 1} | ids


def sliced(films: Interactions, text: str) -> Interactions:
    """A slice of the users that no class's model starts from.

    >>> sliced(load(), "3 of 8").user_count
    42
    """
    found = re.fullmatch(r"(\d+) of (\d+)", text) if isinstance(text, str) else None
    k, n = (int(found[1]), int(found[2])) if found else (0, 0)
    left = len(torch.arange(films.user_count)[1::2])
    require(1 <= k <= n <= left, "slice", text, f"write 'K of N', such as '3 of 8', N to {left}")
    users = torch.arange(films.user_count)
    return of_users(films, (users % 2 == 1) & (users // 2 % n == k - 1))


def films_of(catalogue: Catalogue) -> str:
    """What tells these items from others."""
    return hashlib.blake2b("\n".join(catalogue.item_ids).encode(), digest_size=16).hexdigest()


def fitted(tables: Tree, clicks: Interactions) -> Tensor:
    """Vectors (U, D) that suit these clicks best while item vectors and biases stay as they are.

    A click weighs 1 and all unseen items of its user together `UNSEEN`, as in training.
    """
    item, bias = tables["item"], tables["bias"]
    target = torch.zeros(clicks.user_count, len(item))
    target[clicks.users, clicks.items] = 1.0
    count = target.sum(1, keepdim=True).clamp(min=1.0)
    weight = (target + (1 - target) * UNSEEN * count / (len(item) - count).clamp(min=1.0)) / count
    user = torch.zeros(clicks.user_count, item.shape[1], requires_grad=True)
    search = torch.optim.LBFGS([user], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        scores = user @ item.T + bias
        found = binary_cross_entropy_with_logits(scores, target, weight, reduction="sum")
        found = found + PULL * user.square().sum()
        found.backward()
        return found

    with one_thread():
        search.step(loss)
    return user.detach()


class Mine(Node):
    """A learner's node: to recommend and to measure, own vectors are fitted to the model as it is.

    clicks: those of its users under their own numbers. hears: is handed news of the class.
    """

    def __init__(
        self,
        name: str,
        clicks: Interactions,
        hears: Callable[[dict[str, Any]], Any] = lambda news: None,
        **more: Any,
    ) -> None:
        super().__init__(name, Federation(clicks, torch.arange(clicks.user_count)), **more)
        self.clicks, self._hears = clicks, hears

    def does(self) -> dict[str, Callable[[Message], bytes]]:
        """What a node knows, and news."""
        return super().does() | {"news": self._news}

    def _news(self, told: Message) -> bytes:
        found = {"round": int, "rounds": int, "over": bool, "metrics": dict}
        self._hears({name: told.get(name, kind) for name, kind in found.items()})
        return pack({})

    def own_rows(self, running: Running) -> Tree:
        """The table of users with those of this node fitted anew."""
        rows, first = super().own_rows(running), running.place.user
        mine = torch.arange(first, first + self.clicks.user_count)
        user = rows["user"].index_copy(0, mine, fitted(running.tables, self.clicks))
        return rows | {"user": user}


class Learner:
    """Somebody in a class; `join` makes one. `top` recommends, `leave` goes home.

    news: what the class has told last: `round` of `rounds`, whether it is `over`, and its metrics,
    with `epsilon` where there is noise. Empty before its first round. trouble: why it is not in the
    class, where something went wrong.
    """

    def __init__(
        self,
        invitation: Invitation,
        name: str,
        own: Interactions,
        patience: float = 60.0,
        changed: Callable[["Learner"], Any] = lambda learner: None,
    ) -> None:
        """own: what is known of the learner's users, of which what they liked is what they bring.

        Raises `ParameterError` for a user who liked nothing.
        """
        self.name, self._own, self._invitation, self._patience = name, own, invitation, patience
        split = hold_out(good := liked(own), good.take(torch.zeros(len(good)).bool()))
        few = own.item_count - int(own.user_counts().max())
        held = Held()
        if len(split.validation) and few:
            held = Held(clicks=candidates(split, "validation", min(AGAINST, few)))
        self.clicks = split.train
        self.node = Mine(name, split.train, self._hears, model=self._model, held=held)
        self.news: dict[str, Any] = {}
        self.trouble = ""
        self._changed = changed
        self._start: Tree = {}  # the class's tables as it began, and own vectors fitted to them
        self._wires = list[Secured]()  # the last one is in use
        self._wire: Wire | None = None
        self._left, self._answered, self._busy = False, threading.Event(), threading.RLock()
        self._error: Exception | None = None
        self._ended = False  # whether it has given up, or left
        self._thread = threading.Thread(target=self._attend, name="fedlab learner", daemon=True)

    def __repr__(self) -> str:
        state = "in the class" if self.there else "not in the class"
        return f"<{self.name}, {len(self.clicks)} clicks, {state}>"

    def __enter__(self) -> "Learner":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def begun(self) -> bool:
        """Whether a class has ever let the learner in."""
        return bool(self._start)

    @property
    def where(self) -> str:
        """The address of the class."""
        return f"{self._invitation.host}:{self._invitation.port}"

    @property
    def there(self) -> bool:
        """Whether the learner takes part, or waits for the class to come back."""
        return self.begun and not self._ended

    @property
    def state(self) -> str:
        """One of joining, waiting (for the first round), training, away, over and gone.

        away: the connection broke, and is tried again. over: the class has done its rounds.
        """
        if self.begun and self.news.get("over"):
            return "over"
        if self._ended:
            return "gone"
        if not self.begun:
            return "joining"
        if self._wire is None:
            return "away"
        return "training" if self.news else "waiting"

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that the learner has sent, and that came from the class."""
        wires = list(self._wires)
        return sum(each.sent for each in wires), sum(each.received for each in wires)

    def begin(self) -> None:
        """Take part from now on; returns once the class has let the learner in."""
        self._thread.start()
        self._answered.wait(self._patience)
        if self._error:
            raise self._error
        fix = (
            f"nobody lets one in at {self.where} within {self._patience:g} s; has the class begun?"
        )
        fix = "it was left before the class let one in" if self._left else fix
        if not self.begun:
            self.leave()
        require(self.begun, "invitation", str(self._invitation), fix)

    def leave(self) -> None:
        """Leave the class; own vectors stay, so `top` still recommends."""
        self._left = True
        if wire := self._wire:
            with suppress(OSError):
                wire.shutdown(SHUT_RDWR)
        self._thread.join(self._patience)

    def top(self, k: int = 10, *, before: bool = False, user: int = 0) -> list[str]:
        """Titles of the k films that suit one best, best first, without those that are known.

        before: by the model that the class started from. user: of a slice, from 0.
        """
        names = self._own.catalogue.names
        return [names[item] for item in self.best(k, before=before, user=user)]

    def best(self, k: int = 10, *, before: bool = False, user: int = 0) -> list[int]:
        """Numbers of the films of `top`."""
        left = self._own.item_count - int((self._own.users == user).sum())
        require(isinstance(k, int) and 1 <= k <= left, "k", k, f"choose from 1 to {left} films")
        fix = f"choose from 0 to {self._own.user_count - 1}"
        require(user in range(self._own.user_count), "user", user, fix)
        found = self._start if before else self._params()
        scores = found["item"] @ found["user"][user] + found["bias"]
        scores[self._own.items[self._own.users == user]] = -torch.inf
        return scores.argsort(descending=True, stable=True)[:k].tolist()

    def _params(self) -> Tree:
        with self._busy:
            return self.node.params() or self._start

    def _model(self, data: Any) -> Model:
        """The model under the numbers of the class; own vectors start fitted to its model."""
        mine = (self.node.params() or self._start)["user"]
        users, items = data.train.user_count, data.train.item_count
        plain = matrix_factorisation(users, items, mine.shape[1])
        here = (data.owner >= 0).nonzero()[:, 0]

        def init(seed: int) -> Tree:
            first = plain.init(seed)
            return first | {"user": first["user"].index_copy(0, here, mine)}

        return replace(plain, init=init)

    def _answer(self, question: bytes) -> bytes:
        with self._busy:
            return self.node.answer(question)

    def _attend(self) -> None:
        try:
            how: dict[str, Any] = {"met": self._met, "stays": lambda: not self._left}
            attend(self.name, self._answer, self._reach, patience=self._patience, **how)
        except (ParameterError, MessageError) as error:
            self._error, self.trouble = error, str(error)
        finally:
            self._wire, self._ended = None, True
            self._answered.set()
            self._changed(self)

    def _hears(self, news: dict[str, Any]) -> None:
        self.news = news
        self._changed(self)

    def _reach(self, about: dict[str, str]) -> Secured:
        """A new connection; called again whenever the one before broke."""
        lost, self._wire = self._wire is not None, None
        if lost:
            self._say("the connection broke")
        try:
            wire = self._invitation.reach(about)
        except OSError:
            fix = "is the address right, and has the class begun?"
            self._say(f"nobody answers at {self.where}; {fix}")
            raise
        self._wires.append(wire)
        return wire

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed(self)

    def _met(self, wire: Wire, told: bytes) -> None:
        """Take up the model that the class starts from."""
        message = unpack(told.removeprefix(WELCOME))
        if not self._start:
            self._start = self._begun(message)
        self._wire, self.trouble = wire, ""
        self._answered.set()
        self._changed(self)

    def _begun(self, message: Message) -> Tree:
        fix = "the class is about other films than yours; use the same version of fedlab and data"
        same = message.get("films", str) == films_of(self._own.catalogue)
        require(same, "data", f"{self._own.item_count} films", fix)
        item = message.tensor("item", torch.float32, self._own.item_count, -1)
        tables = {"item": item, "bias": message.tensor("bias", torch.float32, len(item))}
        if not all(bool(each.isfinite().all()) for each in tables.values()):
            raise MessageError("its model is not finite")
        return tables | {"user": fitted(tables, self.clicks)}


def liked(own: Interactions) -> Interactions:
    """What counts as clicks: all where there are no stars."""
    if "values" not in own.columns:
        return own
    found = own.take(own.values >= LIKED)
    without = (found.user_counts() == 0).nonzero()[:, 0]
    fix = f"like a film, {LIKED:g} stars or more"
    names = [own.catalogue.user_ids[u] for u in without.tolist()[:4]]
    require(not len(without), "users", names, fix)
    return found
