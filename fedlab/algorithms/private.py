"""User-level differential privacy.

DP-FedAvg with an accountant, and a budget that ends the run before it is exceeded.

    what leaves the round = (sum over the cohort of delta_k min(1, C / |delta_k|) + normal noise of z C) / (q N)

Neighbours differ in one client with all its data. Whoever is there is drawn by itself with chance q
(`poisson`, one client more or less), or as a cohort of fixed size (`fixed`, one client's data
replaced). Losses, norms and cohorts in a Round are for the simulation alone: to publish them, or to
choose by a metric of private data, is a release of its own. Noise is of floating point numbers,
whose last digits can give values away (Mironov 2012): a lesson, not a product.

Sources: McMahan et al. 2018, algorithm 1 (DP-FedAvg); Andrew et al. 2021 (adaptive clipping);
Feldman, Zrnic 2021 (what is spent when knobs are turned on the way).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab.algorithms.loop import ClientUpdate, federate
from fedlab.algorithms.participation import World, longest_first
from fedlab.algorithms.scaffold import Control
from fedlab.core import Config, Round, Tree, Update, knob, require, stream, strict
from fedlab.data import Source
from fedlab.engine import updates
from fedlab.models import Model
from fedlab.privacy import (
    AdaptiveClip,
    CentralNoise,
    Clip,
    LocalNoise,
    Mechanism,
    NoiseSource,
    Release,
    RoundContext,
    SecureSum,
    epsilon,
    gaussian_epsilon,
    noise_of_deltas,
    summed,
)


@strict
@dataclass(frozen=True, kw_only=True)
class Private(Config):
    """Config and the knobs of privacy.

    The weights of clients are equal whatever `weighting` says.
    """

    clip: float = knob(1.0, 1e-9, 1e9, "L2 norm", "longest delta that a client may send (C)",
                       log=True, usual=(0.01, 10))
    noise: float = knob(1.0, 1e-6, 1e6, "of C", "standard deviation of the noise on the sum (z)",
                        log=True, usual=(0.1, 10))
    quantile: float = knob(0.0, 0.0, 0.99, "of clients",
                           "whose deltas the clip shall not shorten; 0 keeps it", usual=(0, 0.9))
    sampling: str = knob("poisson", 0, 0, "", "how a cohort is drawn", choices=("poisson", "fixed"))
    placement: str = knob("central", 0, 0, "", "who adds the noise", choices=("central", "local"),
                          live=False)
    delta: float = knob(1e-4, 1e-15, 0.5, "",
                        "chance that epsilon does not hold; below one over the clients", log=True,
                        usual=(1e-6, 1e-2), live=False)
    budget: float = knob(0.0, 0.0, 1e6, "epsilon", "where the run ends; 0 for none", usual=(0, 20))


Ask = Private | Callable[[], Private]


def federate_privately(model: Model, data: Source, config: Ask | None = None, *,
                       update: ClientUpdate = updates, world: World | None = None,
                       start: Round | None = None, device: str | torch.device = "cpu",
                       teaching_seed: int | None = None,
                       between: Sequence[Mechanism] = ()) -> Iterator[Round]:
    """`federate` with clipped deltas and noise.

    Each Round has `epsilon`, spent so far, among its metrics.

    config: a Private, or a function that gives one. start: a Round to go on from, with what it
    spent. teaching_seed: fixes noise and Poisson cohorts, so that a run can be repeated; it proves
    nothing, as whoever knows it knows the noise. between: mechanisms after the clip and before the
    noise, such as `SecureSum`. Ends before `budget` is exceeded; raises `ParameterError` where not
    even one round fits, and warns of a delta of one over the clients or more.
    """
    guard = Guard(model, data, config or Private(), update, start, teaching_seed, between)
    world = replace(world or World(), sampler=guard.sample)
    yield from map(guard.noted, federate(model, data, guard.ask, update=guard.update,
                                         aggregate=guard.aggregate, world=world, start=start,
                                         device=device))


class Guard:
    """The chance, the mechanisms and the ledger of one run."""

    def __init__(self, model: Model, data: Source, config: Ask, update: ClientUpdate,
                 start: Round | None, seed: int | None, between: Sequence[Mechanism]) -> None:
        """start: with the ledger of earlier rounds."""
        for mechanism in between:
            require(isinstance(mechanism, Mechanism), "between", type(mechanism).__name__,
                    "give mechanisms; a code goes before the clip, as update=Compressed(code).update")
        self.between = between
        self.model, self.clients, self.asked, self.trained, self.seed = model, len(
            data), config, update, seed
        self.state = dict(start.state.get("privacy", {})) if start else {}
        self.number = self.first = start.number if start else 0
        self.now = self._config()
        self.chance = NoiseSource()
        self.mechanisms: list[Mechanism] = []
        if self.now.delta >= 1 / self.clients:
            warnings.warn(f"delta={self.now.delta:g} is one over the {self.clients} clients or more: to publish one "
                          "client's data whole would count as private; choose a smaller one", stacklevel=3)

    def _config(self) -> Private:
        found = self.asked() if callable(self.asked) else self.asked
        require(isinstance(found, Private), "config", type(found).__name__,
                "give a Private, which has clip and noise")
        return found

    def ask(self) -> Private:
        """The settings of the next round; where the budget is spent, such that there is none."""
        now, self.number = self._config(), self.number + 1
        require(now.correction == "none", "correction", now.correction,
                "control variates leave a client without noise")
        sealed = any(isinstance(mechanism, SecureSum) for mechanism in self.between)
        require(now.placement == "central" or not sealed, "placement", now.placement,
                "local noise leaves the bounds that a secure sum needs; set placement='central'")
        require(now.placement == "central" or now.quantile == 0, "quantile", now.quantile,
                "only the server's noise covers a count; set quantile=0 or placement='central'")
        fits = not now.budget or self.number > now.rounds or self.spent(now) <= now.budget
        if not fits:
            require(self.number > self.first + 1, "budget", now.budget,
                    f"a round would bring epsilon to {self.spent(now):.3g}; choose more, or more noise")
            now = replace(now, rounds=self.number - 1)
        self.now = now
        self.chance = NoiseSource(None if self.seed is None else stream(self.seed, "privacy",
                                                                        self.number))
        self.mechanisms = [AdaptiveClip() if now.quantile else Clip(), *self.between,
                           LocalNoise() if now.placement == "local" else CentralNoise()]
        return now

    def spent(self, after: Private | None = None) -> float:
        """Epsilon so far, or after one more round."""
        now = after or self.now
        if now.placement == "local":  # of the client that sent most, against any other
            drift = self.state.get("drift", torch.zeros(1)).max() + (1 / now.noise**2 if after
                                                                     else 0.0)
            return gaussian_epsilon(2 * math.sqrt(drift), now.delta) if drift else 0.0
        times = self._releases(after)
        relation = "replace-one" if any(kind == "fixed" for _, _, kind in times) else "add-remove"
        # exact where everybody is in each sum
        method = "tight" if all(q == 1 for _, q, _ in times) else "rdp"
        return epsilon([Release(z, q, count, kind) for (z, q, kind), count in times.items()],
                       now.delta, relation=relation, method=method)

    def _releases(self, after: Private | None) -> dict[tuple[float, float, str], int]:
        """(noise, rate, sampling) -> how often, with one more round of these settings."""
        times = dict(self.state.get("releases", {}))
        if after:
            key = after.noise, after.cohort / self.clients, after.sampling
            times[key] = times.get(key, 0) + 1
        return times

    def sample(self, data: Source, config: Config, number: int, members: Tensor | None) -> Tensor:
        """(C,) a cohort whose draw nobody can foresee, those with most ratings first.

        It may be empty.
        """
        everyone = torch.arange(len(data)) if members is None else members
        require(config.cohort <= len(data), "cohort", config.cohort,
                f"choose from 1 to the {len(data)} clients")
        luck = self.chance.uniform(len(everyone))
        here = luck < config.cohort / len(data)
        if self.now.sampling == "fixed":
            here = luck.argsort().argsort() < config.cohort
        return longest_first(data, everyone[here])

    def update(self, model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
               number: int = 1, control: Control | None = None) -> Iterator[Update]:
        """What leaves the clients after all client halves.

        Private rows stay with them as they are.
        """
        if self.now.placement == "local":
            drift = self.state.get("drift", torch.zeros(self.clients, dtype=torch.float64))
            self.state["drift"] = drift.index_add(0, cohort, drift.new_full((len(cohort),),
                                                                            1 / self.now.noise**2))
        scene = self._scene(params)
        for sent in self.trained(model, data, params, cohort, config, number=number,
                                 control=control):
            mine = {name: rows for name, rows in sent.deltas.items() if name in model.private}
            out = replace(sent, deltas={n: rows for n,
                                        rows in sent.deltas.items() if n not in mine})
            for mechanism in self.mechanisms:
                out = mechanism.client(out, scene)
            yield replace(out, deltas=out.deltas | mine)

    def aggregate(self, sent: Iterable[Update], server: Tree) -> Tree:
        """The noisy mean.

        An empty cohort is noise alone, so that nobody learns that it was empty.
        """
        return summed(self.mechanisms, sent, self._scene(server))

    def _scene(self, server: Tree) -> RoundContext:
        now, expected = self.now, float(self.now.cohort)
        shared = {name: value for name, value in server.items() if name not in self.model.private}
        clip = self.state.get("clip", now.clip) if now.quantile else now.clip
        noise = noise_of_deltas(now.noise, now.quantile > 0, expected)
        return RoundContext(clip, noise, now.quantile, expected, shared, self.chance, self.state)

    def noted(self, done: Round) -> Round:
        """The Round with what is spent, which goes with its state."""
        if self.now.placement == "central":
            self.state["releases"] = self._releases(self.now)
        for mechanism in reversed(self.mechanisms):
            done = mechanism.noted(done)
        label = {} if self.seed is None else {
            "no guarantee": f"the noise comes from teaching_seed={self.seed}"}
        return replace(done, metrics={**done.metrics, "epsilon": self.spent()},
                       state={**done.state, "privacy": self.state | label})
