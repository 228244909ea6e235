"""What a run has released, and the epsilon that it proves: books that add up and never shrink.

The ledger lies in `Round.state["ledger"]` and goes with the Round. Before each round it is asked
what epsilon would be behind it; a round that would exceed the budget does not begin.

Letters: N clients in all, C the clip, z noise over C.

Sources: Feldman, Zrnic 2021 (what is spent when knobs are turned on the way); `accounting`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.core import ParameterError, knob, require, strict
from fedlab.privacy.accounting import Release, epsilon
from fedlab.privacy.noise_source import teaching_seed

GROUP = "privacy"


@dataclass(frozen=True)
class Spent:
    """One release.

    clients (C,): those whose own data was released; None for a sum over a drawn cohort. normal:
    whether the noise is normal; if not, its Renyi divergence alone is at most that of normal noise.
    """

    release: Release
    clients: Tensor | None = None
    normal: bool = True


@strict
@dataclass(frozen=True, kw_only=True, eq=False)
class Spending:
    """The knobs of all parts that spend privacy."""

    delta: float = knob(
        1e-4,
        1e-15,
        0.5,
        "",
        "chance that epsilon does not hold; below one over the clients",
        log=True,
        usual=(1e-6, 1e-2),
        live=False,
        group=GROUP,
    )
    budget: float = knob(
        0.0, 0.0, 1e6, "epsilon", "where the run ends; 0 for none", usual=(0.0, 20.0), group=GROUP
    )
    teaching_seed: int = teaching_seed()

    def check_delta(self, clients: int) -> None:
        """Warn of a delta at which publishing one client's data whole would count as private."""
        if self.delta >= 1 / clients:
            warnings.warn(
                f"delta={self.delta:g} is one over the {clients} clients or more: to publish one "
                "client's data whole would count as private; choose a smaller one",
                stacklevel=3,
            )


def noise_multiplier() -> float:
    """The knob z, which every part that adds noise reads."""
    noise: float = knob(
        1.0,
        1e-6,
        1e6,
        "of C",
        "standard deviation of the noise (z)",
        log=True,
        usual=(0.1, 10.0),
        group=GROUP,
    )
    return noise


def booked(
    ledger: Mapping[str, Any], spent: Sequence[Spent], clients: int, teaching_seed: int = -1
) -> dict[str, Any]:
    """The ledger with these releases added.

    clients: N. `releases`: (noise, rate, sampling) -> how often; `drift` (N,): sum of 1 / z^2 of
    what each client released by itself; `concentrated`: some noise was not normal; `no guarantee`:
    why no epsilon holds, where noise came from a teaching seed.
    """
    releases, drift = dict(ledger.get("releases", {})), ledger.get("drift")
    for each in spent:
        release = each.release
        if each.clients is None:
            key = release.noise, release.rate, release.sampling
            releases[key] = releases.get(key, 0) + release.times
        else:
            drift = torch.zeros(clients, dtype=torch.float64) if drift is None else drift
            own = drift.new_full((len(each.clients),), release.times / release.noise**2)
            drift = drift.index_add(0, each.clients, own)
    taught = f"the noise comes from teaching_seed={teaching_seed}" if teaching_seed >= 0 else ""
    said = ledger.get("no guarantee", taught)
    concentrated = "concentrated" in ledger or not all(each.normal for each in spent)
    return (
        {"releases": releases}
        | ({} if drift is None else {"drift": drift})
        | ({"concentrated": True} if concentrated else {})
        | ({"no guarantee": said} if said else {})
    )


def proven(ledger: Mapping[str, Any], delta: float) -> float:
    """The epsilon of everything in the ledger; 0 for nothing.

    A cohort of fixed size, or a client's own release, proves something for neighbours that differ
    in one client's data (replace-one); a Poisson cohort for one client more or less (add-remove).
    Raises `ParameterError` for both together: no accountant here adds them up.
    """
    releases = [
        Release(noise, rate, times, sampling)
        for (noise, rate, sampling), times in ledger.get("releases", {}).items()
    ]
    poisson = any(r.sampling == "poisson" for r in releases)
    replaced = any(r.sampling == "fixed" for r in releases)
    if "drift" in ledger and float(ledger["drift"].max()) > 0:
        # of the client that released most; against any other that might have been in its place
        releases.append(Release(float(ledger["drift"].max()) ** -0.5, 1.0, 1, "all"))
        replaced = True
    require(
        not (poisson and replaced),
        "sampling",
        "poisson and fixed",
        "no accountant here adds up both; keep to one of them, or begin another run",
    )
    tight = all(release.rate == 1 for release in releases) and "concentrated" not in ledger
    method = "tight" if tight else "rdp"
    relation = "replace-one" if replaced else "add-remove"
    return epsilon(releases, delta, relation=relation, method=method)


def affordable(
    spending: Spending, ledger: Mapping[str, Any], after: Mapping[str, Any], first: bool
) -> bool:
    """Whether the next round fits the budget; `ParameterError` where not even the first does.

    after: the ledger behind that round. first: no round of this run has been taken.
    """
    behind = proven(after, spending.delta)
    if not spending.budget or behind <= spending.budget:
        return True
    if first:
        before = proven(ledger, spending.delta) if ledger else 0.0
        raise ParameterError(
            f"budget={spending.budget!r}: a round would bring epsilon from {before:.3g} to "
            f"{behind:.3g}; choose more, or more noise"
        )
    return False
