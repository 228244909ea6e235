"""Who is there in a round, and how long it takes them, on a simulated clock.

A client's time is `pace * speed * examples + delay`: its speed is drawn once, log-normal with
median 1, its delay anew each time, exponential. The server waits for the slowest, or until the
deadline; late clients do not count.

Letters: N clients, C in a cohort.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from fedlab.core import Config, Tree, require, stream
from fedlab.data import Federation, Source
from fedlab.models import Model


@dataclass(frozen=True)
class Membership:
    """The rounds in which each client is a member: first (N,) to last (N,), both included.

    A function of the round.
    """

    first: Tensor
    last: Tensor

    @classmethod
    def drawn(cls, count: int, rounds: int, late: float = 0.3, early: float = 0.2,
              seed: int = 0) -> "Membership":
        """A share `late` joins after the first round and a share `early` leaves before the last.

        At random rounds.
        """
        for name, share in (("late", late), ("early", early)):
            require(0 <= share <= 1, name, share, "choose a share from 0 to 1")
        require(rounds >= 2, "rounds", rounds, "choose 2 or more, so that someone can come or go")
        luck = torch.rand(4, count, generator=stream(seed, "membership"))
        first = torch.where(luck[0] < late, 2 + (luck[1] * (rounds - 1)).long(), 1)
        last = torch.where(luck[2] < early, first + (luck[3] * (rounds - first)).long(), rounds)
        return cls(first, last)

    @classmethod
    def only(cls, chosen: Tensor) -> "Membership":
        """Some clients in all rounds, the others in none: chosen (N,) true for members."""
        never = torch.full(chosen.shape, torch.iinfo(torch.int64).max)
        return cls(torch.where(chosen, 1, never), never)

    def __call__(self, number: int) -> Tensor:
        """(n,) the members in a round."""
        return ((self.first <= number) & (number <= self.last)).nonzero()[:, 0]


Sampler = Callable[[Source, Config, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class Attendance:
    """cohort (C,): who trains, those with most ratings first. rejected: client -> why not.

    seconds: the round takes.
    """

    cohort: Tensor
    rejected: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class World:
    """Speeds, delays and members; the usual one has no clock and everybody in it.

    pace: simulated seconds that a client of median speed takes for an example. spread: standard
    deviation of the log of the speeds. delay: mean of the delay in a round, seconds. members: who
    is there when, all without; `warm` starts a newcomer's private rows at the mean of the members
    before it. seed: fixes the speeds. sampler: draws cohorts in place of `sample`, with its
    arguments.
    """

    pace: float = 0.0
    spread: float = 0.0
    delay: float = 0.0
    members: Membership | None = None
    warm: bool = True
    seed: int = 0
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("pace", "spread", "delay"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, value, "choose a number of 0 or more")

    def attend(self, data: Source, config: Config, number: int) -> Attendance:
        """Sample the cohort of a round, and see who drops out and who is late."""
        everyone = self.members(number) if self.members else None
        cohort = (self.sampler or sample)(data, config, number, everyone)
        if not (self.pace or self.delay or config.drop_out or config.deadline):
            return Attendance(cohort)
        require(not config.deadline or self.pace + self.delay > 0, "deadline", config.deadline,
                "there is no clock; give the world a pace or a delay")
        luck = torch.rand(len(cohort), generator=stream(config.seed, "drop out", number))
        took = self.seconds(data, cohort, config, f"{number}")
        gone, late = luck < config.drop_out, (took > config.deadline) & (config.deadline > 0)
        rejected = dict.fromkeys(cohort[late].tolist(), "late: its update came after the deadline")
        rejected |= dict.fromkeys(cohort[gone].tolist(), "dropped out")
        here = ~(gone | late)
        waited = config.deadline if late.any() else float(took[~gone].max()) if (
            ~gone).any() else config.deadline
        return Attendance(cohort[here], rejected, waited)

    def seconds(self, data: Source, cohort: Tensor, config: Config, when: str) -> Tensor:
        """(C,) simulated seconds that each client takes to train and to send. when.

        Tells one time from another.
        """
        examples = data.counts[cohort] * config.local_epochs * (1 + config.negatives
                                                                * (data.task == "clicks"))
        chance = torch.rand(len(cohort), generator=stream(config.seed, f"delay {when}"),
                            dtype=torch.float64)
        speed = _slowness(len(data), self.spread, self.seed)[cohort]
        return self.pace * speed * examples - self.delay * torch.log1p(-chance)

    def welcome(self, model: Model, data: Source, params: Tree, number: int) -> Tree:
        """The parameters with the private rows of this round's newcomers at the mean of the members before them."""
        if not (self.members and self.warm and number > 1 and model.private):
            return params
        before, fresh = self.members(number - 1), (self.members.first == number).nonzero()[:, 0]
        if not len(fresh) or not len(before):
            return params
        rows = {"client": (before, fresh), "user": tuple(_users(data, who) for who in (before,
                                                                                       fresh))}
        found = dict(params)
        for name in model.private:
            old, new = rows[model.rows[name]]
            change = params[name].index_select(0, old).mean(0) - params[name].index_select(0, new)
            found[name] = params[name].index_add(0, new, change)
        return found


@lru_cache(maxsize=8)
def _slowness(count: int, spread: float, seed: int) -> Tensor:
    return (spread * torch.randn(count, generator=stream(seed, "speeds"),
                                 dtype=torch.float64)).exp()


def _users(data: Source, clients: Tensor) -> Tensor:
    require(isinstance(data, Federation), "members", type(data).__name__,
            "private user rows need to know who owns them; use a Federation, or World(warm=False)")
    owner: Tensor = data.owner  # type: ignore[attr-defined]
    return torch.isin(owner, clients).nonzero()[:, 0]


def sample(data: Source, config: Config, number: int, members: Tensor | None = None) -> Tensor:
    """(C,) the clients of a round, drawn without replacement; those with most ratings first.

    members: to draw from, everybody without; a cohort larger than they are is all of them. From a
    large federation only about C numbers are drawn, so that a round's time does not follow N.
    """
    count, clients, generator = config.cohort, len(data), stream(config.seed, "cohort", number)
    require(count <= clients, "cohort", count,
            f"the federation has {clients} clients; choose from 1 to {clients}")
    if members is not None:
        cohort = members[torch.randperm(len(members), generator=generator)[:count]]
    elif clients < 50 * count:
        cohort = torch.randperm(clients, generator=generator)[:count]
    else:
        drawn = torch.randint(clients, (2 * count + 10,), generator=generator).tolist()
        # the first `count` different ones
        cohort = torch.tensor(list(dict.fromkeys(drawn))[:count])
    return longest_first(data, cohort)


def longest_first(data: Source, cohort: Tensor) -> Tensor:
    """(C,) the same clients, those with most ratings first, as training wants them.

    Among equals by number: the order in which a cohort trains and is summed up.
    """
    cohort = cohort.sort().values
    return cohort[data.counts[cohort].argsort(descending=True, stable=True)]
