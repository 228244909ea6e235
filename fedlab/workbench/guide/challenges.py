"""Challenges: what is to be reached, the knobs to begin with, and whether a run has reached it.

Each was met on the bundled data; `tests/workbench/test_challenges.py` does it again.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlab.attacks import Poison
from fedlab.core import Settings, require
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.guide.presets import PRESETS
from fedlab.workbench.runs import Run

METRIC, LEVEL = "ndcg@10", "popularity"
SAME = ("data", "task", "against", "train_on")  # what is measured must stay what it was
SEEDS = 1_000  # to draw liars from


@dataclass(frozen=True)
class Challenge:
    """Something to be reached by turning knobs.

    ask: what, in a sentence. start: the knobs to begin with. It is met by a round whose ndcg@10 on
    validation is above popularity's, with at most `most_mb` MB up and down until then, and an
    epsilon below `below`, where they are given. liar: instead, whether a client that lies is to be
    named; then `seed` is drawn anew. fixed: the settings that must stay as they begin.
    """

    ask: str
    start: Settings
    most_mb: float = math.inf
    below: float = math.inf
    liar: bool = False
    fixed: tuple[str, ...] = SAME


_USERS = PRESETS["671 users, matrix factorisation"]
CHALLENGES = {
    "beat popularity with 20 MB": Challenge(
        "Reach an ndcg@10 above popularity before 20 MB have gone up and down in all. As the knobs "
        "stand, two rounds take that.",
        _USERS,
        most_mb=20.0,
    ),
    "ε below 5 and above popularity": Challenge(
        "Reach an ndcg@10 above popularity with an ε below 5, at δ 0.001, each client one person. "
        "The noise comes from a teaching seed, so that each run counts alone; the same ε would "
        "hold with real noise.",
        PRESETS["private: a clip, and noise on the sum"].replace(teaching_seed=1),
        below=5.0,
        fixed=(*SAME, "partition", "delta"),
    ),
    "find the liar": Challenge(
        "One client in fifty sends minus five times what it learned. Name one of them. See the "
        "round: an arrow that is pointed at says whose it is, and of who is followed the length "
        "of what it sends is told.",
        _USERS.replace(uplink="poison", liars=0.02, dim=16),
        liar=True,
    ),
}


@dataclass
class Attempt:
    """A challenge that is on, and how it stands.

    before: ids of the runs that were there, which do not count. tries: clients named so far.
    """

    name: str
    challenge: Challenge
    before: frozenset[str]
    met: bool = False
    words: str = ""
    tries: int = 0
    _tallies: dict[str, "_Tally"] = field(default_factory=dict)

    @property
    def start(self) -> Settings:
        """The settings to begin with."""
        chosen = self.challenge.start
        return chosen.replace(seed=secrets.randbelow(SEEDS)) if self.challenge.liar else chosen

    @property
    def hides(self) -> bool:
        """Whether liars must not be shown."""
        return self.challenge.liar and not self.met

    def look(self, runs: list[Run]) -> None:
        """Take in what runs have reached since the last look; each record is read once."""
        if self.met or self.challenge.liar:
            return
        for run in runs:
            if run.id not in self.before:
                tally = self._tallies.get(run.id)
                if tally is None or tally.done > len(run.records):  # it went back
                    tally = self._tallies[run.id] = _Tally(self.challenge, run)
                self.met, self.words = tally.told()
                if self.met:
                    return

    def accuse(self, client: int, runs: list[Run]) -> None:
        """Say whether a client of the last run lies; `ParameterError` where that cannot be said."""
        fix = "choose the challenge 'find the liar' first"
        require(self.challenge.liar, "client", client, fix)
        if self.met:
            return
        ours = [run for run in runs if run.id not in self.before and run.records]
        fix = "no run of this challenge has a round yet; press Start"
        require(len(ours) > 0, "client", client, fix)
        liars, count = liars_of(ours[-1].last_settings)
        require(0 <= client < count, "client", client, f"choose from 0 to {count - 1}")
        fix = "nobody lies as the knobs stand; choose poison as uplink, and turn liars up"
        require(len(liars) > 0, "client", client, fix)
        self.tries += 1
        self.met = client in liars
        times = "the first try" if self.tries == 1 else f"{self.tries} tries"
        self.words = (
            f"Right, with {times}: client {client} lies, one of {len(liars)} among {count}."
            if self.met
            else f"Wrong: client {client} is honest. Tries so far: {self.tries}."
        )


def liars_of(settings: Mapping[str, Any]) -> tuple[set[int], int]:
    """The numbers of the clients that lie under the settings of a run, and of all clients N."""
    made = Experiment(Settings(**settings))
    count = len(made.federation)
    found = [
        part.among(count, made.settings.seed) for part in made.uplink if isinstance(part, Poison)
    ]
    return {client for each in found for client in each.tolist()}, count


class _Tally:
    """What a run has reached of a challenge, read record by record."""

    def __init__(self, challenge: Challenge, run: Run) -> None:
        """Nothing is read yet."""
        self.challenge, self.run = challenge, run
        self.done, self.sent = 0, 0.0  # MB
        self.best: tuple[float, int] | None = None  # within the limits: value and round
        self.other = self._moved(run.settings)

    def _moved(self, turned: Mapping[str, Any]) -> str:
        """The first setting that must stay, and does not; "" for none."""
        start, usual = self.challenge.start, Settings()
        return next((n for n in self.challenge.fixed if turned.get(n, usual[n]) != start[n]), "")

    def told(self) -> tuple[bool, str]:
        """Whether the challenge is met, and how it stands in words."""
        for record in self.run.records[self.done :]:
            self.other = self.other or self._moved(
                {**self.challenge.start, **record.get("turned", {})}
            )
            self._add(record)
            self.done += 1
        level = self.run.beside.get(LEVEL, {}).get(METRIC)
        if self.other:
            kept = self.challenge.start[self.other]
            return False, f"{self.run.name} does not count: {self.other} must stay {kept}."
        if level is None or not self.done:
            return False, ""
        if self.best is None:
            return False, f"{self.run.name} has no round within the limit yet."
        value, number = self.best
        said = f"ndcg@10 {value:.4f} in round {number}, popularity {level:.4f}."
        return value > level, ("Met: " if value > level else "Best within the limit: ") + said

    def _add(self, record: Mapping[str, Any]) -> None:
        self.sent += (record["bytes_up"] + record["bytes_down"]) * 1e-6
        value, spent = record.get(METRIC), record.get("epsilon")
        private = spent is not None and spent < self.challenge.below
        if value is None or self.sent > self.challenge.most_mb or self.other:
            return
        fits = private or self.challenge.below == math.inf
        if fits and (self.best is None or value > self.best[0]):
            self.best = value, record["round"]
