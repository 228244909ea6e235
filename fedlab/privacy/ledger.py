"""What a run has released, and the epsilon that it proves: books that add up and never shrink.

A run counts in `Round.state["ledger"]`. A `Ledger` is the same on disk, for all that is ever
released about some people: by other runs, sweeps, placements of the noise, before and after a
restart. It is written before a release, so that it never holds less than what was released; before
each round it is asked what epsilon would be behind it, and a round that would exceed the budget
does not begin.

Letters: N clients in all, U people, C the clip, z noise over C.

Sources: Feldman, Zrnic 2021 (what is spent when knobs are turned on the way); Dwork, Roth 2014,
"The algorithmic foundations of differential privacy", theorem 2.2 (groups); `accounting`.
"""

import base64
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from fedlab.core import ParameterError, Stage, knob, require, strict
from fedlab.data import Source, federation_of
from fedlab.privacy.accounting import Release, epsilon, replaced
from fedlab.privacy.noise_source import teaching_seed

GROUP = "privacy"


@dataclass(frozen=True)
class Spent:
    """One release.

    clients (C,): those whose own data was released; None for a sum over a drawn cohort. unit: what
    neighbours differ in, a 'client' or an 'example' of one. normal: whether the noise is normal; if
    not, its Renyi divergence alone is at most that of normal noise.
    """

    release: Release
    clients: Tensor | None = None
    unit: str = "client"
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


def spends(parts: Sequence[Any]) -> bool:
    """Whether one of these parts releases something that a ledger can book."""
    return any(getattr(type(part), "spends", None) not in (None, Stage.spends) for part in parts)


def booked(
    ledger: Mapping[str, Any], spent: Sequence[Spent], clients: int, teaching_seed: int = -1
) -> dict[str, Any]:
    """The ledger with these releases added.

    clients: N. `releases`: (noise, rate, sampling) -> how often; `drift` (N,): sum of 1 / z^2 of
    what each client released by itself; `concentrated`: some noise was not normal; `examples`:
    client -> (noise, rate) -> how often, for noise that hides single examples; `no guarantee`: why
    no epsilon holds, where noise came from a teaching seed.
    """
    releases, drift = dict(ledger.get("releases", {})), ledger.get("drift")
    examples = {client: dict(own) for client, own in ledger.get("examples", {}).items()}
    for each in spent:
        release = each.release
        if each.clients is None:
            key = release.noise, release.rate, release.sampling
            releases[key] = releases.get(key, 0) + release.times
        elif each.unit == "example":
            for client in each.clients.tolist():
                own, kind = examples.setdefault(client, {}), (release.noise, release.rate)
                own[kind] = own.get(kind, 0) + release.times
        else:
            none = torch.zeros(clients, dtype=torch.float64)
            mine = none.new_full((len(each.clients),), release.times / release.noise**2)
            drift = (none if drift is None else drift).index_add(0, each.clients, mine)
    taught = f"the noise comes from teaching_seed={teaching_seed}" if teaching_seed >= 0 else ""
    said = ledger.get("no guarantee", taught)
    concentrated = "concentrated" in ledger or not all(each.normal for each in spent)
    found: dict[str, Any] = {} if drift is None else {"drift": drift}
    found |= {"concentrated": True} if concentrated else {}
    parts = {"releases": releases, "examples": examples, "no guarantee": said}
    return found | {name: value for name, value in parts.items() if value}


def proven(ledger: Mapping[str, Any], delta: float) -> float:
    """The epsilon of everything in the ledger that hides clients; 0 for nothing.

    A Poisson cohort proves something for neighbours that differ in one client more or less. A
    cohort of fixed size, or a client's own release, proves something where one client's data is
    replaced. Where there are both, the first is turned into the second: to replace a client is to
    remove one and to add one. Half of delta goes to each.
    """
    releases = [
        Release(noise, rate, times, sampling)
        for (noise, rate, sampling), times in ledger.get("releases", {}).items()
    ]
    added = [release for release in releases if release.sampling == "poisson"]
    fixed = [release for release in releases if release.sampling != "poisson"]
    if "drift" in ledger and float(ledger["drift"].max()) > 0:
        # of the client that released most; against any other that might have been in its place
        fixed.append(Release(float(ledger["drift"].max()) ** -0.5, 1.0, 1, "all"))
    if not fixed:
        return epsilon(added, delta)
    normal = "concentrated" not in ledger
    method = "tight" if normal and all(release.rate == 1 for release in fixed) else "rdp"
    if not added:
        return epsilon(fixed, delta, relation="replace-one", method=method)
    own = epsilon(fixed, delta / 2, relation="replace-one", method=method)
    return own + replaced(added, delta / 2)


def proven_for_examples(ledger: Mapping[str, Any], delta: float) -> dict[int, float]:
    """Client -> the epsilon of one of its examples, by all noise that hides examples."""
    return {
        client: epsilon(
            [Release(noise, rate, count) for (noise, rate), count in own.items()], delta
        )
        for client, own in ledger.get("examples", {}).items()
    }


def affordable(spending: Spending, ledger: Mapping[str, Any], behind: float, first: bool) -> bool:
    """Whether the next round fits the budget; `ParameterError` where not even the first does.

    ledger: before that round. behind: the epsilon after it. first: no round of this run has been
    taken.
    """
    if not spending.budget or behind <= spending.budget:
        return True
    if first:
        before = proven(ledger, spending.delta) if ledger else 0.0
        raise ParameterError(
            f"budget={spending.budget!r}: a round would bring epsilon from {before:.3g} to "
            f"{behind:.3g}; choose more, or more noise"
        )
    return False


@dataclass(frozen=True)
class People:
    """Whose data a run uses.

    names (U,): as the owner of the data tells people apart. owner (U,): the client of each.
    """

    names: tuple[str, ...]
    owner: Tensor

    @classmethod
    def of(cls, data: Source) -> "People":
        """The users of a federation by their ids; of other data, the numbers of the clients.

        >>> from fedlab.data import Federation, load, one_per_user
        >>> ratings = load()
        >>> People.of(Federation(ratings, one_per_user(ratings))).names[:3]
        ('1', '2', '3')
        """
        whole = federation_of(data)
        if whole is None:
            return cls(tuple(map(str, range(len(data)))), torch.arange(len(data)))
        return cls(whole.train.catalogue.user_ids, whole.owner)

    @cached_property
    def marks(self) -> NDArray[np.uint64]:
        """(U,) 8 bytes of a hash for each name: a ledger holds no names."""
        every = b"".join(hashlib.blake2b(n.encode(), digest_size=8).digest() for n in self.names)
        return np.frombuffer(every, dtype="<u8")

    @cached_property
    def key(self) -> str:
        """What tells these people from others in a ledger."""
        return hashlib.blake2b(np.sort(self.marks).tobytes(), digest_size=8).hexdigest()

    def held_by(self, clients: Tensor) -> NDArray[np.uint64]:
        """The marks of the people that these clients hold."""
        return self.marks[torch.isin(self.owner, clients).numpy()]

    def by_client(self, values: Mapping[int, float]) -> Tensor:
        """(N,) the largest value of a client's people, by mark; 0 for the others."""
        found = torch.zeros(int(self.owner.max()) + 1, dtype=torch.float64)
        own = torch.tensor([values.get(int(m), 0.0) for m in self.marks], dtype=torch.float64)
        return found.scatter_reduce(0, self.owner, own, "amax")


@dataclass
class _Booked:
    """What a ledger holds about one group of people."""

    marks: NDArray[np.uint64]
    releases: Counter[tuple[float, float, str]] = field(default_factory=Counter)
    drift: dict[int, float] = field(default_factory=dict)
    examples: dict[int, Counter[tuple[float, float]]] = field(default_factory=dict)
    concentrated: bool = False


class Ledger:
    """All that was released about some people, in a file that is only added to.

    Each line carries a hash over all lines before it, so that an edit shows, and a file beside it
    (`NAME.head`) says how long it is, so that a cut shows; who removes both hides all. A line that
    was cut by a crash was written for a release that never came, and is dropped. What is booked
    about people counts for every run on data that hold one of them. The file holds hashes of names;
    whoever can guess a name can find it.

    Keep one ledger for all data in which the same names are the same people.
    """

    def __init__(self, path: str | Path) -> None:
        """path: the file, made at the first release. Raises `ParameterError` for an edited one."""
        self.path = Path(path).resolve()  # whatever links lead there, there is one lock
        self.head = self.path.with_name(f"{self.path.name}.head")
        self._lock = FileLock(f"{self.path}.lock")
        self._groups: dict[str, _Booked] = {}
        self._at, self._chains = 0, [""]
        self._read()

    def spent(self, people: People) -> dict[str, Any]:
        """What is booked about any of these people, as `booked` gives it."""
        self._read()
        joined = _Booked(people.marks)
        for group in self._groups.values():
            if not np.isin(people.marks, group.marks).any():
                continue
            joined.releases.update(group.releases)
            joined.concentrated |= group.concentrated
            for mark, drift in group.drift.items():
                joined.drift[mark] = joined.drift.get(mark, 0.0) + drift
            for mark, own in group.examples.items():
                joined.examples.setdefault(mark, Counter()).update(own)
        examples = dict[int, dict[Any, int]]()
        for client, mark in zip(people.owner.tolist(), people.marks.tolist(), strict=True):
            for kind, times in joined.examples.get(mark, {}).items():
                mine = examples.setdefault(client, {})
                mine[kind] = max(times, mine.get(kind, 0))
        found = dict[str, Any]()
        if joined.releases:
            found["releases"] = dict(joined.releases)
        if joined.drift:
            found["drift"] = people.by_client(joined.drift)
        found |= {"concentrated": True} if joined.concentrated else {}
        return found | ({"examples": examples} if examples else {})

    def covers(self, people: People, spent: Mapping[str, Any]) -> bool:
        """Whether all of this is booked about these people; `spent`: as `booked` gives it."""
        here = self.spent(people)
        enough = all(
            here.get("releases", {}).get(kind, 0) >= times
            for kind, times in spent.get("releases", {}).items()
        )
        drift = spent.get("drift", torch.zeros(1, dtype=torch.float64))
        grown = bool((here.get("drift", torch.zeros_like(drift)) >= drift * (1 - 1e-9)).all())
        return (
            enough
            and grown
            and all(
                here.get("examples", {}).get(client, {}).get(kind, 0) >= times
                for client, own in spent.get("examples", {}).items()
                for kind, times in own.items()
            )
        )

    def book(
        self,
        people: People,
        spent: Sequence[Spent],
        fits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda before, after: True,
    ) -> dict[str, Any] | None:
        """Book releases before they happen and return what is booked then.

        fits: (before, after) -> whether they may happen; else nothing is booked, and None returned.
        Nobody else can book in between. Raises OSError where the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            before = self.spent(people)
            after = booked(before, spent, int(people.owner.max()) + 1)
            if not fits(before, after):
                return None
            self._write(people, spent)
        return after

    def _write(self, people: People, spent: Sequence[Spent]) -> None:
        lines: list[dict[str, Any]] = []
        if people.key not in self._groups:
            told = base64.b64encode(np.sort(people.marks).tobytes()).decode()
            lines.append({"people": people.key, "marks": told})
        for each in spent:
            release = {name: getattr(each.release, name) for name in RELEASE}
            line = {"of": people.key, "unit": each.unit, "normal": each.normal, **release}
            if each.clients is not None:
                line["who"] = people.held_by(each.clients).tolist()
            lines.append(line)
        chains, texts = self._chains[-1:], list[str]()
        for line in lines:
            text = json.dumps(line, sort_keys=True)
            chains.append(_linked(chains[-1], text))
            texts.append(f"{chains[-1]} {text}\n")
        with self.path.open("ab") as file:
            file.truncate(self._at)  # a line that a crash or a full disk cut
            file.write("".join(texts).encode())
            file.flush()
            os.fsync(file.fileno())
        for line in lines:
            self._take(line)
        self._chains += chains[1:]
        self._at = self.path.stat().st_size
        self._note_head()

    def _note_head(self) -> None:
        """Write down how long the ledger is, so that lines cut off its end are missed."""
        new = self.head.with_name(f"{self.head.name}.new")
        with new.open("w") as file:
            file.write(f"{len(self._chains) - 1} {self._chains[-1]}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.head)

    def _check_head(self, head: str) -> None:
        """Raise `ParameterError` for a ledger that is shorter than it was, or another one.

        head: what the file beside it said before the ledger was read. Others book meanwhile: the
        head is written after the lines, so whoever reads it first never finds it ahead of them.
        """
        if not head:
            return
        count, _, chain = head.strip().partition(" ")
        known = count.isdecimal() and int(count) < len(self._chains)
        require(
            known and self._chains[int(count)] == chain,
            "ledger",
            str(self.path),
            f"it has become shorter, or is another one than {self.head.name} tells of; put it back",
        )

    def _read(self) -> None:
        """Take the lines that were added since the last look."""
        head = self.head.read_text() if self.head.exists() else ""
        if not self.path.exists():
            gone = bool(self._at) or self.head.exists()
            require(not gone, "ledger", str(self.path), "the file is gone; put it back")
            return
        size = self.path.stat().st_size
        require(size >= self._at, "ledger", str(self.path), "it has become shorter; put it back")
        with self.path.open("rb") as file:
            file.seek(self._at)
            added = file.read()
        for text in added[: added.rfind(b"\n") + 1].splitlines(keepends=True):
            where = f"{self.path}:{len(self._chains)}"
            fix = "this line, or one before it, was changed; put back the file as it was"
            chain, _, line = text.decode("utf-8", "replace").rstrip("\n").partition(" ")
            require(chain == _linked(self._chains[-1], line), "ledger", where, fix)
            self._take(json.loads(line))
            self._chains.append(chain)
            self._at += len(text)
        self._check_head(head)

    def _take(self, line: Mapping[str, Any]) -> None:
        if "people" in line:
            marks = np.frombuffer(base64.b64decode(line["marks"]), dtype="<u8")
            self._groups.setdefault(line["people"], _Booked(marks))
            return
        group, kind = self._groups[line["of"]], (line["noise"], line["rate"])
        group.concentrated |= not line["normal"]
        if "who" not in line:
            group.releases[(*kind, line["sampling"])] += line["times"]
        for mark in line.get("who", ()):
            if line["unit"] == "example":
                group.examples.setdefault(mark, Counter())[kind] += line["times"]
            else:
                group.drift[mark] = group.drift.get(mark, 0.0) + line["times"] / line["noise"] ** 2


RELEASE = ("noise", "rate", "times", "sampling")


def _linked(chain: str, text: str) -> str:
    """The hash of a line and all before it."""
    return hashlib.sha256(f"{chain} {text}".encode()).hexdigest()
