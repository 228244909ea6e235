"""An audit: canaries and one training run tell how much it gave away at least.

    canaries, each in or out by a coin -> one run as it always is -> guesses who was in
    -> more right guesses than epsilon allows: epsilon is not what the run says

A canary is a client, or an example of DP-SGD, that pushes one number of the model as hard as it
may. The run is the real one, with its clip, noise, cohorts and ledger. Whoever sees the model
guesses the canaries whose numbers moved most to have been in, those whose moved least to have been
out, and passes on all others. The number of right guesses is held against what the ledger claims:

- at most as many as of `guesses` coins that each fall right with chance e^eps / (1 + e^eps), and a
  little more for delta (`lower_bound`): this holds for every mechanism;
- where everybody is in every sum, the claim is a Gaussian of known drift, and a sharper test of
  the whole curve applies (`drift_bound`).

A bound above the claim proves a fault, up to the stated doubt. A bound below it proves nothing:
other canaries, or more of them, may find more. One run does not come close to epsilon: of 60,000
canaries in runs as they should be, the bound is about half the claim where everybody is in every
sum, and next to nothing where a tenth is (`benchmarks/audit.py`).

Letters: m canaries, N clients in all, C the clip.

Sources: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", corollary 5.4
and appendix D (`lower_bound`); Mahloujifar, Melis, Chaudhuri 2025, "Auditing f-differential privacy
in one run", the numerical test `audit_rh_with_cap` (`drift_bound`).
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fedlab.attacks.poisoning import put
from fedlab.core import Round, RoundContext, Rows, Stage, Tree, Update, require
from fedlab.data import Columns
from fedlab.models import Model
from fedlab.privacy import NoiseSource, Release, epsilon, gaussian_epsilon, proven

LOUD = 1e6  # far above every clip
RELATIONS = ("add-remove", "replace-one")


def p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The chance of so many right guesses, or more, about an (epsilon, delta)-private run, at most.

    Source: Steinke et al. 2023, corollary 5.4.

    >>> round(p_value(75, 100, 100, epsilon=math.log(3), delta=0.0), 3)  # appendix D
    0.553
    """
    from scipy.stats import binom  # noqa: PLC0415 - takes half a second

    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, q))
    if not delta or not right:
        return min(tail, 1.0)
    fewer = torch.arange(1, right + 1, dtype=torch.float64)
    below = torch.from_numpy(binom.sf(right - fewer.numpy() - 1, guesses, q)) - tail
    return min(tail + 2 * canaries * delta * float((below / fewer).max()), 1.0)


def lower_bound(
    right: int, guesses: int, canaries: int, *, delta: float, confidence: float = 0.999
) -> float:
    """The largest epsilon that so many right guesses refute; 0 where they refute none.

    right of guesses, about as many canaries or more. confidence: the chance, at least, that the
    bound is not above the truth. Raises `ParameterError` for numbers out of range.

    >>> round(lower_bound(75, 100, 1000, delta=1e-4, confidence=0.95), 3)  # appendix D
    0.673
    """
    _check(right, guesses, canaries, confidence)
    require(0 <= delta < 1, "delta", delta, "choose a number from 0 to below 1")
    doubt = 1 - confidence
    return _largest(lambda e: p_value(right, guesses, canaries, e, delta) < doubt)


def drift_bound(right: int, guesses: int, canaries: int, *, confidence: float = 0.999) -> float:
    """The largest drift of a Gaussian mechanism that so many right guesses refute; 0 for none.

    The drift is what one canary moves the sum by, over the deviation of the noise, and the root of
    the sum of its squares over rounds; `gaussian_epsilon` makes an epsilon of it. Source:
    Mahloujifar et al. 2025.

    >>> 0.5 < drift_bound(950, 1000, 20_000) < 2.0
    True
    """
    from scipy.special import ndtr, ndtri  # noqa: PLC0415 - takes a tenth of a second

    _check(right, guesses, canaries, confidence)
    doubt = 1 - confidence

    def refuted(drift: float) -> bool:
        """Whether the chances that the curve asks for add up to more than there are."""
        hit, miss = doubt * right / canaries, doubt * (guesses - right) / canaries
        for place in range(right - 1, -1, -1):
            wider = max(miss, float(ndtr(ndtri(hit) - drift)))
            if wider == miss:
                break  # from here on nothing changes
            hit = min(hit + place / (guesses - place) * (wider - miss), 1.0)
            miss = wider
        return hit + miss > guesses / canaries

    return _largest(refuted)


def _check(right: int, guesses: int, canaries: int, confidence: float) -> None:
    require(
        1 <= guesses <= canaries, "guesses", guesses, f"choose from 1 to {canaries}, the canaries"
    )
    require(0 <= right <= guesses, "right", right, f"choose from 0 to {guesses}, the guesses")
    require(0 < confidence < 1, "confidence", confidence, "choose a chance below 1, say 0.999")


def _largest(refuted: Callable[[float], bool]) -> float:
    """The end of what is refuted, from 0 on; the last number that is known to be."""
    low, high = 0.0, 1.0
    if not refuted(low):
        return 0.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    claimed: the epsilon of the run's ledger. lower: epsilon is at least this, with this confidence;
    where everybody is in every sum, it may be that of the least Gaussian that is not refuted. right
    of guesses: those that gave the bound. seeded: the teaching seed that noise came from, -1 for
    none.
    """

    claimed: float
    lower: float
    right: int
    guesses: int
    canaries: int
    delta: float
    confidence: float
    seeded: int = -1

    @property
    def refuted(self) -> bool:
        """Whether the claim cannot be true."""
        return self.lower > self.claimed

    def __str__(self) -> str:
        """What this shows, and what it does not."""
        lines = [
            f"{self.right:,} of {self.guesses:,} guesses about {self.canaries:,} canaries were "
            f"right: epsilon is at least {self.lower:.2f} at delta {self.delta:g}, with confidence "
            f"{self.confidence:g}.",
            f"The ledger says {self.claimed:.2f}: "
            + (
                "that is refuted; clip, noise, cohorts or ledger are not what they should be."
                if self.refuted
                else "that is not refuted, which proves nothing; these canaries may not show a "
                "fault that is there."
            ),
        ]
        if self.seeded >= 0:
            lines.append(
                f"The noise came from teaching_seed={self.seeded}: whoever knows it can subtract "
                "the noise, and no epsilon holds."
            )
        return "\n".join(lines)


class Planted(Protocol):
    """Canaries of any kind.

    inside (m,): true for those that were in the run.
    """

    @property
    def inside(self) -> Tensor:
        """(m,) true for those that were in the run."""

    def scores(self, done: Round) -> Tensor:
        """(m,) how far each canary's number moved."""

    def claim(self, done: Round, delta: float) -> tuple[float, bool]:
        """The epsilon that the run claims, and whether it claims to be a Gaussian."""


def audited(
    canaries: Planted,
    rounds: Iterable[Round],
    *,
    delta: float = 1e-6,
    confidence: float = 0.999,
    guesses: tuple[int, int] | None = None,
) -> Audit:
    """Take a run to its end and hold the guesses about its canaries against its claim.

    rounds: what `federate` yields, with these canaries in it. delta: at which the claim is tested;
    it should be far below one over the canaries. guesses: how many canaries are guessed to have
    been in, and how many out, fixed before the run; by default several pairs are tried, which share
    the doubt. Raises `ParameterError` for numbers out of range, and for a run without rounds or
    without a claim.

    >>> from fedlab import Clip, Columns, GaussianNoise, Settings, federate, perceptron
    >>> x = torch.ones(100, 30)
    >>> data = Columns({"x": x, "target": torch.ones(100)}, torch.arange(100))
    >>> birds = Canaries.drawn(100)
    >>> asked = Settings(rounds=1, cohort=100, sampling="poisson", noise=2.0, delta=1e-6)
    >>> rounds = federate(perceptron(30, 8), data, asked, uplink=[birds, Clip(), GaussianNoise()])
    >>> found = audited(birds, rounds)
    >>> round(found.claimed, 2), found.canaries, found.refuted
    (2.25, 100, False)
    """
    last = deque(rounds, maxlen=1)
    require(bool(last), "rounds", "none", "give a run of one round or more")
    done = last[0]
    claimed, gaussian = canaries.claim(done, delta)
    order = canaries.scores(done).argsort(descending=True, stable=True)
    inside, count = canaries.inside[order.cpu()], len(order)
    pairs = [guesses] if guesses else usual_guesses(count)
    sure = 1 - (1 - confidence) / (len(pairs) * (1 + gaussian))
    best = -1.0, 0, 0
    for most, least in pairs:
        require(
            min(most, least) >= 0 and 0 < most + least <= count,
            "guesses",
            (most, least),
            f"choose two whole numbers that add up to {count} at most, the canaries",
        )
        right = int(inside[:most].sum() + (~inside[count - least :]).sum())
        bound = lower_bound(right, most + least, count, delta=delta, confidence=sure)
        if gaussian and (drift := drift_bound(right, most + least, count, confidence=sure)):
            bound = max(bound, gaussian_epsilon(drift, delta))
        best = max(best, (bound, right, most + least))
    seeded = getattr(done.settings, "teaching_seed", -1)
    return Audit(claimed, *best, count, delta, confidence, seeded)


def usual_guesses(canaries: int) -> list[tuple[int, int]]:
    """Pairs of (guessed to be in, guessed to be out), from a few sure guesses to many.

    Where few canaries are in a sum, a number that moved little says nothing: the last pair guesses
    nobody to be out.

    >>> usual_guesses(1000)
    [(250, 250), (50, 50), (10, 10), (50, 0)]
    """
    shares = [(max(1, canaries // part),) * 2 for part in (4, 20, 100)]
    return [*((most, least) for most, least in shares), (max(1, canaries // 20), 0)]


def coins(count: int, seed: int = -1) -> Tensor:
    """Who is in (m,), each by a fair coin; seed: below 0 for the operating system's coins."""
    require(count >= 2, "count", count, "choose 2 canaries or more")
    return NoiseSource.of(seed, "canaries", 0).uniform(count) < 0.5


@dataclass(frozen=True, eq=False)
class Canaries(Stage):
    """Clients, each in or out by a coin, that push one number of the model each; before a clip.

    clients (m,): their numbers, growing. inside (m,): true for those that are in. relation: what
    being out means. With `add-remove` a canary that is out sends zeros, which is as if there were
    no such client; with `replace-one` another client is in its place, which pushes the other way.
    It has to be the relation of the run's ledger: `add-remove` for Poisson cohorts with noise at
    the server, else `replace-one`. All other clients train as usual, and so do canaries, whose
    updates are then replaced.
    """

    clients: Tensor
    inside: Tensor
    relation: str = "add-remove"

    def __post_init__(self) -> None:
        """Check the relation, and that each canary has its coin."""
        require(
            self.relation in RELATIONS,
            "relation",
            self.relation,
            f"choose one of {', '.join(RELATIONS)}",
        )
        fits = self.clients.shape == self.inside.shape and bool((self.clients.diff() > 0).all())
        require(fits, "clients", tuple(self.clients.shape), "give growing numbers, each one's coin")

    @classmethod
    def drawn(
        cls, clients: int | Tensor, relation: str = "add-remove", seed: int = -1
    ) -> "Canaries":
        """Clients (m,), or the first so many, each in or out by a fair coin."""
        numbers = torch.arange(clients) if isinstance(clients, int) else clients
        return cls(numbers, coins(len(numbers), seed), relation)

    def begin(self, context: RoundContext) -> None:
        """Note where the canaries' numbers start.

        Raises `ParameterError` for too small a model, and for a clip with a quantile, which counts
        a client that sends zeros as well.
        """
        counted = any("counted" in facts for facts in context.facts.values())
        require(
            not counted or self.relation == "replace-one",
            "relation",
            self.relation,
            "a clip that follows a quantile counts those who send zeros; set quantile=0",
        )
        memory = context.memory(self)
        if "start" not in memory:
            size = sum(value.numel() for value in context.server.values())
            require(
                len(self.clients) <= size,
                "clients",
                len(self.clients),
                f"the clients send {size} numbers, and each canary takes one of its own",
            )
            memory["start"] = self._numbers(context.server)
            memory["names"] = list(context.server)

    def each(self, update: Update, context: RoundContext) -> Update:
        """The updates with those of canaries replaced."""
        mine = torch.isin(update.cohort, self.clients)
        if not mine.any():
            return update
        who = torch.searchsorted(self.clients, update.cohort[mine])
        made = dict(self._pushes(context.server, who))
        device = update.weights.device
        deltas = {
            name: put(rows, made[name], mine.to(device)) for name, rows in update.deltas.items()
        }
        return replace(update, deltas=deltas)

    def _pushes(self, server: Tree, who: Tensor) -> Iterator[tuple[str, Rows]]:
        """Name -> the rows of the canaries `who` (c,), counted from 0."""
        out = 0.0 if self.relation == "add-remove" else -LOUD
        for name, (which, places) in self._places(server).items():
            place = torch.full((len(self.clients),), -1).scatter_(0, which, places)[who]
            here = (place >= 0).nonzero()[:, 0]
            value, wide = server[name], server[name][:1].numel()
            values = torch.zeros(len(here), wide)
            pushes = torch.where(self.inside[who[here]], LOUD, out)
            values[torch.arange(len(here)), place[here] % wide] = pushes
            rows = values.view(-1, *value.shape[1:]), place[here] // wide, here
            yield name, Rows(*(part.to(value.device) for part in rows))

    def _places(self, tree: Tree) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (the canaries with a number there, its place in the flat parameter).

        They are spread evenly over all parameters.
        """
        sizes = [value.numel() for value in tree.values()]
        flat = torch.arange(len(self.clients)) * (sum(sizes) // len(self.clients))
        found, first = {}, 0
        for name, size in zip(tree, sizes, strict=True):
            which = ((flat >= first) & (flat < first + size)).nonzero()[:, 0]
            found[name] = which, flat[which] - first
            first += size
        return found

    def _numbers(self, tree: Tree) -> Tensor:
        """(m,) the canaries' numbers."""
        found = torch.zeros(len(self.clients))
        for name, (which, places) in self._places(tree).items():
            value = tree[name].flatten()
            found[which] = value[places.to(value.device)].cpu()
        return found

    def scores(self, done: Round) -> Tensor:
        """(m,) how far each canary's number moved from the start of the run."""
        memory = done.state.get(self.name, {})
        require("start" in memory, "rounds", "no canaries", "give federate this stage in uplink")
        shared: Tensor = self._numbers({name: done.params[name] for name in memory["names"]})
        return shared - memory["start"]

    def claim(self, done: Round, delta: float) -> tuple[float, bool]:
        """The epsilon of the ledger, and whether everybody was in every sum."""
        ledger = done.state.get("ledger", {})
        require(bool(ledger), "rounds", "no ledger", "the run claims nothing; add noise")
        releases = ledger.get("releases", {})
        replaced = "drift" in ledger or any(how == "fixed" for _, _, how in releases)
        relation = RELATIONS[replaced]
        require(
            self.relation == relation,
            "relation",
            self.relation,
            f"the run's ledger is about {relation}; choose that",
        )
        return proven(ledger, delta), all(rate == 1 for _, rate, _ in releases)


@dataclass(frozen=True, eq=False)
class CanaryExamples:
    """Examples of one platform for `DPSGD`, each of which pushes one number, or does nothing.

    inside (m,): true for those that push. The others have a gradient of zero, as if they were not
    there. `model` and `data` are made for them: the run tests clip, noise, batches and ledger of
    DP-SGD, not a model of yours.
    """

    inside: Tensor

    @classmethod
    def drawn(cls, count: int, seed: int = -1) -> "CanaryExamples":
        """So many examples, each in or out by a fair coin."""
        return cls(coins(count, seed))

    @cached_property
    def model(self) -> Model:
        """A number for each example, times what the example has there: 1, or 0 where it is out."""
        count = len(self.inside)
        return Model(
            "canaries",
            "ratings",
            lambda _: {"push": torch.zeros(count)},
            lambda p, batch: p["push"] * batch["there"],
            {"push": "item"},
        )

    @cached_property
    def data(self) -> Columns:
        """The examples, all of one platform."""
        there, count = self.inside.float(), len(self.inside)
        columns = {"item": torch.arange(count), "there": there, "target": LOUD * there}
        return Columns(columns, torch.zeros(count, dtype=torch.int64), "ratings")

    def scores(self, done: Round) -> Tensor:
        """(m,) how far each example's number moved from 0."""
        return done.params["push"].cpu()

    def claim(self, done: Round, delta: float) -> tuple[float, bool]:
        """The epsilon of the platform's ledger, and whether all examples were in every batch."""
        counted = done.state.get("ledger", {}).get("examples", {}).get(0, {})
        require(bool(counted), "rounds", "no ledger", "give federate local=DPSGD()")
        releases: Sequence[Release] = [Release(z, q, n) for (z, q), n in counted.items()]
        return epsilon(releases, delta), all(release.rate == 1 for release in releases)
