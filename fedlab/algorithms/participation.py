"""Who takes part in a round, and how long it takes them, on a simulated clock.

A client's time is `pace * speed * examples + delay`: its speed is drawn once, log-normal with
median 1, its delay anew each time, exponential. The server waits for the slowest, or until the
deadline; late clients do not count.

Letters: N clients, n of them members, C in a cohort, q the chance or share of a member to be drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedlab.core import (
    Drawn,
    Key,
    ParameterError,
    Part,
    Plan,
    RoundContext,
    Schedule,
    Tree,
    knob,
    register,
    require,
    stream,
)
from fedlab.data import Source, federation_of
from fedlab.privacy import NoiseSource

WORLD = "clients' world"


@dataclass(frozen=True)
class Membership:
    """The rounds in which each client is a member: first (N,) to last (N,), both included.

    >>> import torch
    >>> Membership(torch.tensor([1, 2]), torch.tensor([1, 9]))(2)
    tensor([1])
    """

    first: Tensor
    last: Tensor

    @classmethod
    def drawn(
        cls, count: int, rounds: int, late: float = 0.3, early: float = 0.2, seed: int = 0
    ) -> "Membership":
        """Draw who joins after the first round and who leaves before the last.

        late, early: the shares of clients that do so.
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
        """Some clients in all rounds, the others in none; chosen (N,) is true for members."""
        never = torch.full(chosen.shape, torch.iinfo(torch.int64).max)
        return cls(torch.where(chosen, 1, never), never)

    def __call__(self, number: int) -> Tensor:
        """The members (n,) in a round."""
        return ((self.first <= number) & (number <= self.last)).nonzero()[:, 0]


@register
class Participation(Part):
    """A cohort in each round, of all clients or of those that are members.

    members: who is there when; by default all, or as `late` and `early` say. warm: a newcomer's
    private rows start at the mean of the members before it, unless the run spends privacy. sampler:
    a function that draws cohorts in place of `sample`, with the same arguments.
    """

    kind = "participation"
    cohort: int = knob(
        64,
        1,
        1_000_000,
        "clients",
        "how many clients train in a round (C)",
        log=True,
        usual=(1, 671),
    )
    sampling: str = knob(
        "fixed",
        0,
        0,
        "",
        "how a cohort is drawn: so many, or each by its own chance",
        choices=("fixed", "poisson"),
        live=False,
        group=WORLD,
    )
    drop_out: float = knob(
        0.0,
        0.0,
        1.0,
        "of the cohort",
        "chance that a client drops out of a round",
        usual=(0.0, 0.9),
        group=WORLD,
    )
    late: float = knob(
        0.0, 0.0, 1.0, "of the clients", "join after the first round", live=False, group=WORLD
    )
    early: float = knob(
        0.0, 0.0, 1.0, "of the clients", "leave before the last round", live=False, group=WORLD
    )
    pace: float = knob(
        0.01,
        0.0,
        1e6,
        "s, simulated",
        "what an example takes a median client",
        live=False,
        usual=(0.0, 0.1),
        group=WORLD,
    )
    spread: float = knob(
        1.0,
        0.0,
        5.0,
        "",
        "how unlike clients' speeds are (sd of the log)",
        live=False,
        usual=(0.0, 3.0),
        group=WORLD,
    )
    delay: float = knob(
        2.0,
        0.0,
        1e6,
        "s, simulated",
        "mean time to send",
        live=False,
        usual=(0.0, 60.0),
        group=WORLD,
    )
    members: Membership | None = None
    warm: bool = True
    sampler: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that a sampler alone decides how a cohort is drawn."""
        require(
            not self.sampler or self.sampling == "fixed",
            "sampling",
            self.sampling,
            "a sampler of your own decides how a cohort is drawn; leave one of both out",
        )

    def adds(self) -> dict[str, Any]:
        """The facts about who may be drawn, and how."""
        facts = {
            "members": self.members or self.late or self.early,
            "poisson": self.sampling == "poisson",
            "own sampler": self.sampler or type(self).draw is not Participation.draw,
        }
        return {name: value for name, value in facts.items() if value}

    def idle(self, facts: Any) -> tuple[str, ...]:
        """The sampling, where a sampler decides."""
        return ("sampling",) if self.sampler else ()

    def membership(self, context: RoundContext) -> Membership | None:
        """Who is a member when; None for everybody always."""
        if self.members or not (self.late or self.early):
            return self.members
        rounds = max(int(context.settings.rounds), 2)
        return Membership.drawn(len(context.data), rounds, self.late, self.early, context.seed)

    def draw(self, context: RoundContext) -> Drawn:
        """The cohort (C,) of a round, and a member's chance to be in it.

        Where the run spends privacy, nobody can foresee the draw, unless it has a teaching seed.
        """
        members = self.membership(context)
        there = members(context.number) if members else None
        count, data = len(context.data) if there is None else len(there), context.data
        require(
            self.cohort <= len(data),
            "cohort",
            self.cohort,
            f"the federation has {len(data)} clients; choose from 1 to {len(data)}",
        )
        if self.sampler or (self.sampling == "fixed" and not context.private):
            draw = self.sampler or sample
            chosen = draw(data, self.cohort, context.number, there, seed=context.seed)
            check_clients("sampler", chosen, len(data))
            cohort = longest_first(data, chosen)
            return Drawn(cohort, min(1.0, len(cohort) / max(count, 1)), "fixed", float(len(cohort)))
        seed = context.settings.teaching_seed if context.private else context.seed
        source = NoiseSource.of(seed, "cohort", context.number)
        luck, size = source.uniform(count), min(self.cohort, count)
        rate = size / max(count, 1)
        fixed = self.sampling == "fixed"
        here = luck.argsort().argsort() < size if fixed else luck < rate
        cohort = here.nonzero()[:, 0] if there is None else there[here]
        return Drawn(longest_first(data, cohort), rate, self.sampling, float(max(size, 1)))

    def seconds(self, context: RoundContext, cohort: Tensor, when: str) -> Tensor:
        """The simulated seconds (C,) that each client takes to train and to send.

        It trains for the pace times its speed times its work. when: tells one draw of delays from
        another.
        """
        speed = _slowness(len(context.data), self.spread, context.seed)[cohort]
        took = self.pace * speed * context.work(cohort)
        if not self.delay:
            return took
        chance = Key(context.seed, f"delay {when}").uniform(cohort, 1)[:, 0]
        return took - self.delay * torch.log1p(-chance)

    def welcome(self, context: RoundContext) -> Tree:
        """The parameters, with newcomers' private rows at the mean of the members before them.

        Rows by pair stay as they were first drawn.
        """
        params, model, number = context.params, context.model, context.number
        members = self.membership(context)
        warm = self.warm and not context.private  # the mean of others would tell of each of them
        if not (members and warm and number > 1 and model.private):
            return params
        before, fresh = members(number - 1), (members.first == number).nonzero()[:, 0]
        if not len(fresh) or not len(before):
            return params
        rows = {
            "client": (before, fresh),
            "user": tuple(users_of(context.data, who) for who in (before, fresh)),
        }
        found = dict(params)
        for name in sorted(n for n in model.private if model.rows[n] in rows):
            old, new = rows[model.rows[name]]
            change = params[name].index_select(0, old).mean(0) - params[name].index_select(0, new)
            found[name] = params[name].index_add(0, new, change)
        return found


@register
class Synchronous(Schedule):
    """The server waits for the cohort of a round, or until a deadline."""

    apart = True
    deadline: float = knob(
        0.0,
        0.0,
        1e9,
        "s, simulated",
        "how long the server waits for clients; 0 waits for all",
        usual=(0.0, 100.0),
        group=WORLD,
    )

    def plan(self, context: RoundContext, who: Participation) -> Plan:
        """A cohort, less those that drop out or come too late."""
        drawn = who.draw(context)
        cohort, clock = drawn.cohort, context.before.clock
        require(
            not self.deadline or who.pace + who.delay > 0,
            "deadline",
            self.deadline,
            "there is no clock; choose a pace or a delay above 0",
        )
        gone = torch.zeros(len(cohort), dtype=torch.bool)
        if who.drop_out:
            chance = Key(context.seed, "drop out", context.number).uniform(cohort, 1)[:, 0]
            gone = chance < who.drop_out
        took = who.seconds(context, cohort, f"{context.number}")
        late = (took > self.deadline) & (self.deadline > 0)
        rejected = dict.fromkeys(cohort[late].tolist(), "late: its update came after the deadline")
        rejected |= dict.fromkeys(cohort[gone].tolist(), "dropped out")
        waited = self.deadline
        if not late.any() and (~gone).any():
            waited = float(took[~gone].max())
        here = cohort[~(gone | late)]
        invited = dict.fromkeys(here.tolist(), context.number)
        return Plan(here, invited, rejected, clock + waited, drawn, cohort[late & ~gone])


@lru_cache(maxsize=8)
def _slowness(count: int, spread: float, seed: int) -> Tensor:
    generator = stream(seed, "speeds")
    return (spread * torch.randn(count, generator=generator, dtype=torch.float64)).exp()


def users_of(data: Source, clients: Tensor) -> Tensor:
    """The users that these clients hold."""
    whole = federation_of(data)
    if whole is None:
        raise ParameterError(
            f"members={type(data).__name__!r}: private user rows need to know who owns them; use a "
            "Federation, or warm=False"
        )
    return torch.isin(whole.owner, clients).nonzero()[:, 0]


def sample(
    data: Source, count: int, number: int, members: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """Draw the clients (C,) of a round without replacement; those with most ratings come first.

    members: the clients to draw from, by default all; a cohort larger than their number is all of
    them. From a large federation only about C numbers are drawn, so that a round's time does not
    follow N.
    """
    clients, generator = len(data), stream(seed, "cohort", number)
    if members is not None:
        cohort = members[torch.randperm(len(members), generator=generator)[:count]]
    elif clients < 50 * count:
        cohort = torch.randperm(clients, generator=generator)[:count]
    else:
        drawn = torch.randint(clients, (2 * count + 10,), generator=generator).tolist()
        # the first `count` different ones
        cohort = torch.tensor(list(dict.fromkeys(drawn))[:count])
    return longest_first(data, cohort)


def check_clients(name: str, cohort: Any, clients: int) -> None:
    """Raise `ParameterError` unless this is a cohort: different clients of so many."""
    good = isinstance(cohort, Tensor) and cohort.dtype == torch.int64 and cohort.dim() == 1
    require(good, name, cohort, "give a tensor (C,) of client numbers, int64")
    for each in [int(part) for part in cohort.aminmax()] if len(cohort) else ():
        require(0 <= each < clients, name, each, f"the federation has {clients} clients, from 0")
    grown = cohort.sort().values
    again = grown[1:][grown.diff() == 0]
    require(not len(again), name, again[:5].tolist(), "a client is in a cohort once")


def longest_first(data: Source, cohort: Tensor) -> Tensor:
    """The same clients (C,), those with most ratings first, as training wants them."""
    cohort = cohort.sort().values
    return cohort[data.counts[cohort].argsort(descending=True, stable=True)]
