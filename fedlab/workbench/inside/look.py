"""One look into a round as plain data, for a view or a notebook.

It is the round *after* a Round, with the knobs as they stand: its clients are trained as the loop
would train them, from the same draws, and nothing of it counts. So a knob can be turned between two
rounds and its effect seen before anything has happened.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedlab.aggregation import joined_updates
from fedlab.algorithms import ahead, in_order, pipeline
from fedlab.core import Round, Settings, Update, described, require, to
from fedlab.privacy import spends
from fedlab.workbench.experiment import Experiment, turning
from fedlab.workbench.inside.items import Map, place_of
from fedlab.workbench.inside.people import People
from fedlab.workbench.inside.person import item_of, likes, one, upload, user_of
from fedlab.workbench.inside.steps import steps
from fedlab.workbench.runs import Run

LONGEST = 2.0  # seconds that a round may take to be trained again for a look
PATIENCE = 30.0  # seconds that rounds may take until one that was not kept is there again


def fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that stay as they are within a run: those of one `Looker`."""
    knobs = described()
    return {name: value for name, value in settings.items() if not knobs[name].knob.live}


class Looker:
    """What is looked at in the runs of some settings; parts that a run trains are not touched.

    settings: of a run, without what nothing reads. Raises what `Experiment` raises.

    >>> from fedlab.workbench.inside import Looker
    >>> looker = Looker(Settings(rounds=3, cohort=8, dim=4))
    >>> found = looker.look(looker.begin(), looker.made.settings)
    >>> found["steps"]["round"], len(found["steps"]["arrows"]), 0 < found["steps"]["agreement"] < 1
    (1, 8, True)
    """

    def __init__(self, settings: Settings) -> None:
        """Read the data, make the model, and work out what stays where it is."""
        self.made, self.settings = Experiment(settings), fixed(settings)
        self.people, self.map = People(self.made.federation), Map(self.made.federation)
        self.places: dict[int, dict[str, Any]] = {}  # round -> the followed item's place
        self._item = -1

    @property
    def stays(self) -> dict[str, Any]:
        """What does not change from round to round: who the dots are, and the names on the map."""
        return {"people": self.people.fixed, "map": self.map.fixed}

    def dots(self, run: Run | None, last: int | None = None) -> dict[str, Any]:
        """Who takes part in a run and with what loss; {} for a run of other settings than these.

        last: the round until which it is told; by default the newest.
        """
        if run is not None and fixed(run.settings) != self.settings:
            return {}
        rounds = list(run.rounds) if run else []
        if last is not None:
            rounds = [done for done in rounds if done.number <= last]
        return self.people.dots(run, rounds)

    def check(self, what: str, name: str) -> None:
        """Raise `ParameterError` for a 'user' or an 'item' that these data do not have."""
        if name:
            {"user": user_of, "item": item_of}[what](self.made, name)

    def begin(self) -> Round:
        """The Round before the first one."""
        made = self.made
        return Round(0, made.settings, made.model.init(made.settings.seed))

    def again(self, start: Round, taken: Sequence[Mapping[str, Any]]) -> Round:
        """The Round that comes after `start` in as many rounds as there are settings of rounds.

        They are trained once more, with the same draws, and give the same parameters. Raises
        `ParameterError` where that would take too long, and where noise cannot be drawn again.
        """
        if not taken:
            return start
        made = self.made
        secret = spends(made.parts) and made.settings.teaching_seed < 0
        fix = "their noise cannot be drawn again; choose a round that is kept"
        require(not secret, "look", f"{len(taken)} private rounds", fix)
        waiting = iter([*taken, taken[-1]])
        asked = turning(
            made, lambda: self._until(next(waiting), start, taken), len(made.federation)
        )
        began, done = time.monotonic(), start
        for done in made.rounds(asked, start if start.number else None):  # noqa: B007 - the last one
            fix = f"{len(taken)} rounds are to be trained again; choose a later one"
            require(time.monotonic() - began < PATIENCE, "look", "too long", fix)
        return done

    @staticmethod
    def _until(
        settings: Mapping[str, Any], start: Round, taken: Sequence[Mapping[str, Any]]
    ) -> Settings:
        return Settings(**settings).replace(rounds=start.number + len(taken))

    def look(
        self, before: Round, now: Mapping[str, Any], user: str = "", item: str = ""
    ) -> dict[str, Any]:
        """Everything that can be seen after `before`, with the knobs `now`.

        user, item: whom and what to follow, by id; an item by its title, too. Returns `map`, see
        `Map.at`; `steps`, see `steps`; of a user `person`, see `likes` and `upload`; of an item
        `item`, with its share of lists and median place by round. Raises `ParameterError` for one
        that is not there.
        """
        made, before = self.made, replace(before, params=to(dict(before.params), "cpu"))
        who = user_of(made, user) if user else -1
        what = item_of(made, item) if item else -1
        score = made.score(before)
        found: dict[str, Any] = {"map": self.map.at(score, before.number)}
        client = int(made.federation.owner[who]) if user else -1
        found |= self._steps(before, now, client)
        if user:
            found["person"] |= {"user": user, "client": client, **likes(made, score, who)}
        if item:
            found["item"] = self._followed(what, before.number, score)
        return found

    def _followed(self, item: int, number: int, score: Any) -> dict[str, Any]:
        if item != self._item or any(n > number for n in self.places):
            self.places, self._item = {}, item
        self.places[number] = place_of(item, score, self.made.federation)
        return {
            "name": self.made.split.train.catalogue.names[item],
            "places": [
                [n, place["shown"], place["median"]] for n, place in self.places.items() if place
            ],
        }

    def _steps(self, before: Round, now: Mapping[str, Any], client: int) -> dict[str, Any]:
        """The arrows of the next round, and what a client sends in it."""
        if before.seconds > LONGEST:
            why = f"a round takes {before.seconds:.0f} s here, too long to train one more to look"
            return {"steps": {"why": why}, "person": {"why": why}}
        made = self.made
        asked = turning(made, lambda: now, len(made.federation))()
        asked = asked.replace(rounds=max(asked.rounds, before.number + 1))
        parts = in_order(made.local, made.uplink, made.aggregation, made.schedule)
        pipe = pipeline(parts, asked, made.source)
        context, chunks = ahead(pipe, made.model, made.source, before)
        if not chunks:
            return {"steps": {"why": "nobody starts in the next round"}, "person": {}}
        learned, sent = _joined(chunks)
        found: dict[str, Any] = {"steps": steps(made, pipe, context, sent, before.params)}
        if client >= 0:
            there = client in learned.cohort.tolist()
            if not there:
                alone = torch.tensor([client])
                context, chunks = ahead(pipe, made.model, made.source, before, alone)
                learned, sent = _joined(chunks)
            mine = upload(made, context, one(learned, client), one(sent, client), client)
            found["person"] = {"starts": there, "upload": mine}
        return found


def _joined(chunks: list[tuple[Update, Update]]) -> tuple[Update, Update]:
    """What everybody learned, and what everybody sent."""
    learned, sent = zip(*chunks, strict=True)
    return joined_updates(learned), joined_updates(sent)
