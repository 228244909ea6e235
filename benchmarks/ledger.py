"""The ledger, case by case: what runs spend together, against what is worked out by hand.

Each case trains for real, on 116 MovieLens users, and gives the epsilon that the last Round shows.
By hand means: these releases, put down here one by one, and given to the accountant, which has its
own tests against Opacus and dp-accounting.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from common import entry, record

from fedlab.algorithms import Membership, Participation, federate
from fedlab.core import ParameterError, Round, Settings
from fedlab.data import Federation, leave_one_out, load, of_users, one_per_user
from fedlab.models import Model, matrix_factorisation
from fedlab.privacy import (
    Clip,
    DistributedGaussian,
    GaussianNoise,
    Ledger,
    LocalNoise,
    NoiseShares,
    Release,
    epsilon,
)

PEOPLE, DELTA = 116, 1e-4
POISSON = Settings(rounds=4, cohort=20, sampling="poisson", noise=2.0, local_lr=0.5)
FIXED = POISSON.without(["sampling"])
CENTRAL, LOCAL = [Clip(), GaussianNoise()], [Clip(), LocalNoise()]
Q = 20 / PEOPLE
Ask = Settings | Callable[[], Settings]


@cache
def people(users: int = PEOPLE, first: int = 0) -> tuple[Model, Federation]:
    """So many MovieLens users, a client each, and a model for them."""
    train = leave_one_out(load()).train
    numbers = torch.arange(train.user_count)
    few = of_users(train, (numbers >= first) & (numbers < first + users))
    return matrix_factorisation(users, few.item_count, 4), Federation(few, one_per_user(few))


def spent(ask: Ask, uplink: Sequence[Any] = CENTRAL, who: Any = None, **more: Any) -> float:
    """The epsilon at the end of a run."""
    *_, done = run(ask, uplink, who, **more)
    return float(done.metrics["epsilon"])


def run(ask: Ask, uplink: Sequence[Any] = CENTRAL, who: Any = None, **more: Any) -> Iterator[Round]:
    """The Rounds of a run. who: (model, federation), by default 116 users."""
    return federate(*(who or people()), ask, uplink=list(uplink), **more)


def turning(*by_round: Settings) -> Callable[[], Settings]:
    """Settings that turn on the way: two rounds as the first say, then as the last."""
    calls = count()
    return lambda: by_round[min(next(calls) // 2, len(by_round) - 1)]


def added(*releases: Release) -> float:
    """By hand, for one client more or less."""
    return epsilon(list(releases), DELTA)


def replaced(*releases: Release) -> float:
    """By hand, for one client's data replaced."""
    return epsilon(list(releases), DELTA, relation="replace-one", method="rdp")


def several(*runs: Mapping[str, Any]) -> float:
    """The epsilon at the end of runs that book in one ledger, each with a view of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = [spent(**each, ledger=Ledger(Path(folder, "owner.ledger"))) for each in runs]
    if found != sorted(found):
        return float("nan")  # it fell
    return found[-1]


def refused(ask: Ask, **more: Any) -> float:
    """0 for a run that is refused before it releases anything."""
    try:
        return spent(ask, **more)
    except ParameterError:
        return 0.0


def from_without_privacy() -> float:
    """A private run that goes on from one that was not."""
    *_, plain = federate(*people(), Settings(rounds=2, cohort=20, local_lr=0.5))
    return refused(POISSON.replace(rounds=4), start=plain)


def from_taught(asked: Settings) -> float:
    """A run with the system's noise that goes on from one with a teaching seed."""
    *_, taught = run(asked.replace(teaching_seed=0, rounds=2))
    return refused(asked, start=taught)


def delta_turned() -> float:
    """A run that goes on with another delta."""
    *_, done = run(POISSON.replace(rounds=2))
    return refused(POISSON.replace(delta=1e-3), start=done)


def mixed_by_hand() -> float:
    """Three Poisson cohorts and three fixed ones: half of delta for each, and a group of two."""
    fixed = epsilon([Release(2.0, Q, 4, "fixed")], DELTA / 2, relation="replace-one", method="rdp")
    poisson, guess = [Release(2.0, Q, 4)], 0.0
    while (
        needed := epsilon(poisson, DELTA / 2 / (1 + 2.718281828459045**guess), method="rdp")
    ) > guess:
        guess = needed
    return fixed + 2 * guess


def own(*noises: float) -> Release:
    """Releases of one client by itself, as one: drifts add up."""
    return Release(sum(z**-2 for z in noises) ** -0.5, 1.0, 1, "all")


def in_shares() -> Release:
    """What ten clients release whose noise is in shares under a secure sum: nine must answer."""
    size = sum(value.numel() for name, value in people()[0].init(0).items() if name != "user")
    shares = NoiseShares.planned(1.0, 2.0, size, 10, 9)
    return Release(1 / shares.concentrated(), 1.0, 1, "all")


SHARED = FIXED.replace(rounds=1, cohort=10, answering=0.9)
LATE = Membership.drawn(PEOPLE, 4, late=0.6, early=0.0)
Case = tuple[Callable[[], float], Callable[[], float]]
CASES: dict[str, Case] = {
    "a Poisson cohort": (lambda: spent(POISSON), lambda: added(Release(2.0, Q, 4))),
    "noise turned": (
        lambda: spent(turning(POISSON, POISSON.replace(noise=1.0))),
        lambda: added(Release(2.0, Q, 2), Release(1.0, Q, 2)),
    ),
    "cohort turned": (
        lambda: spent(turning(POISSON, POISSON.replace(cohort=40))),
        lambda: added(Release(2.0, Q, 2), Release(2.0, 2 * Q, 2)),
    ),
    "cohort turned, of fixed size": (
        lambda: spent(turning(FIXED, FIXED.replace(cohort=45))),
        lambda: replaced(Release(2.0, Q, 2, "fixed"), Release(2.0, 45 / PEOPLE, 2, "fixed")),
    ),
    "clip turned": (
        lambda: spent(turning(POISSON, POISSON.replace(clip=0.1))),
        lambda: added(Release(2.0, Q, 4)),
    ),
    "drop-outs": (lambda: spent(POISSON.replace(drop_out=0.5)), lambda: added(Release(2.0, Q, 4))),
    "a deadline": (lambda: spent(POISSON.replace(deadline=1.0)), lambda: added(Release(2.0, Q, 4))),
    "an adaptive clip": (
        lambda: spent(POISSON.replace(noise=1.0, quantile=0.5)),
        lambda: added(Release(1.0, Q, 4)),
    ),
    "20 members of 116, all in every cohort": (
        lambda: spent(
            FIXED, participation=Participation(members=Membership.only(torch.arange(PEOPLE) < 20))
        ),
        lambda: epsilon([Release(2.0, 1.0, 4, "all")], DELTA, relation="replace-one"),
    ),
    "members that join": (
        lambda: spent(FIXED, participation=Participation(members=LATE)),
        lambda: replaced(*(Release(2.0, 20 / len(LATE(k)), 1, "fixed") for k in (1, 2, 3, 4))),
    ),
    "clients' own noise, all of them": (
        lambda: spent(FIXED.replace(cohort=PEOPLE), LOCAL),
        lambda: epsilon([own(2.0, 2.0, 2.0, 2.0)], DELTA, relation="replace-one"),
    ),
    "five runs": (lambda: several(*[{"ask": POISSON}] * 5), lambda: added(Release(2.0, Q, 20))),
    "five runs of other noise each, as a sweep": (
        lambda: several(*({"ask": POISSON.replace(noise=z)} for z in (1.0, 1.5, 2.0, 3.0, 4.0))),
        lambda: added(*(Release(z, Q, 4) for z in (1.0, 1.5, 2.0, 3.0, 4.0))),
    ),
    "clients' own noise, then the server's": (
        lambda: several(
            {"ask": FIXED.replace(cohort=PEOPLE, rounds=1), "uplink": LOCAL}, {"ask": FIXED}
        ),
        lambda: replaced(own(2.0), Release(2.0, Q, 4, "fixed")),
    ),
    "the server's, then clients' own, then the server's": (
        lambda: several(
            {"ask": FIXED},
            {"ask": FIXED.replace(cohort=PEOPLE, rounds=1), "uplink": LOCAL},
            {"ask": FIXED},
        ),
        lambda: replaced(own(2.0), Release(2.0, Q, 8, "fixed")),
    ),
    "noise in shares, under a secure sum": (
        lambda: several({"ask": SHARED, "uplink": [Clip(), DistributedGaussian()]}),
        lambda: replaced(in_shares()),
    ),
    "noise in shares, then the server's": (
        lambda: several({"ask": SHARED, "uplink": [Clip(), DistributedGaussian()]}, {"ask": FIXED}),
        lambda: replaced(in_shares(), Release(2.0, Q, 4, "fixed")),
    ),
    "Poisson, then fixed": (lambda: several({"ask": POISSON}, {"ask": FIXED}), mixed_by_hand),
    "other data with the same people": (
        lambda: several({"ask": POISSON}, {"ask": POISSON, "who": people(58)}),
        lambda: added(Release(2.0, Q, 4), Release(2.0, 2 * Q, 4)),
    ),
    "other data without them": (
        lambda: several(
            {"ask": POISSON, "who": people(58)}, {"ask": POISSON, "who": people(58, 58)}
        ),
        lambda: added(Release(2.0, 2 * Q, 4)),
    ),
    "from a run without privacy": (from_without_privacy, lambda: 0.0),
    "from a run with a teaching seed": (lambda: from_taught(POISSON), lambda: 0.0),
    "with another delta": (delta_turned, lambda: 0.0),
}


def wrong(name: str) -> str:
    """What is wrong about a case; '' for nothing."""
    here, by_hand = (each() for each in CASES[name])
    print(f"{name:52} {here:8.4f}   by hand {by_hand:8.4f}", flush=True)
    return "" if abs(here - by_hand) <= 1e-6 * max(1.0, by_hand) else f"{here} for {by_hand}"


def main() -> None:
    """Work out every case and record how many are wrong."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--quick", action="store_true")
    quick = words.parse_args().quick
    faults = {name: why for name in CASES if (why := wrong(name))}
    for name, why in faults.items():
        print(name, why)
    kind = [Release(1.0, 0.05, times) for times in range(1, 80)]
    rounds = sum(epsilon([each], DELTA) <= 2.0 for each in kind)
    rdp = sum(epsilon([each], DELTA, method="rdp") <= 2.0 for each in kind)
    record(
        "reliability",
        {
            "ledger_cases": entry(len(CASES), "cases", None, higher=True, seeds=1, note="trained"),
            "ledger_cases_wrong": entry(
                len(faults), "cases", 0, higher=False, seeds=1, note="; ".join(faults) or "none"
            ),
            "rounds_at_budget_2": entry(
                rounds, "rounds", 36, higher=True, seeds=1, note=f"z 1, q .05; by RDP {rdp}"
            ),
        },
        quick,
    )
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
