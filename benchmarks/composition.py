"""Every pair of registered parts, run together on a tiny federation.

Whatever two parts are combined, either it works or it is refused. It works when nothing is raised
and the model stays finite, when a run without one of the two differs from the run with both, when
it goes on from a Round bit by bit, and when every knob of the two changes something for some value
or raises. It is refused by a `ParameterError` that names both, or one and what is missing, and a
way out. Anything else is counted here: raw errors, silent parts, ignored knobs, unequal resumes.

What is combined is read from the registry, so a part that is registered is in it. A *variant* is
one thing turned on: a part in place of the usual one, a stage, or a knob of a part that is in every
run (who takes part, until when the server waits, how it steps). A part that does not run in the
usual place, say meta-learning beside a model with private rows, has a *home*: the first model and
task in which it does, or the first method of clients.
"""

import argparse
import atexit
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fedlab.core import (
    REGISTRY,
    Knob,
    ParameterError,
    Round,
    Settings,
    described,
    knobs,
    load_round,
    save_round,
)
from fedlab.workbench import Choices, Experiment, stream

BASE = {"rounds": 4, "cohort": 8, "measure_every": 4}
# knobs that are set where something reads them, so that runs are small and can be repeated
SMALL = {
    "dim": 4,
    "platforms": 12,
    "buffer": 6,
    "batch_size": 8,
    "negatives": 2,
    "against": 20,
    "teaching_seed": 0,
    "liars": 0.5,
    "bound": 0.01,
    "clip": 0.1,
    "trim": 0.3,
    "server_lr": 0.05,
    "temperature": 5.0,
    "codec": "largest tenth",
    "ridge": 1.0,
}
ALWAYS = (
    "participation",
    "server",
    "schedule",
    "gate",
)  # kinds whose usual part has variants of its own
# knobs that by design leave no trace in a run: how it is computed, and when it would end
NO_TRACE = {
    "memory_mb": "how many clients are in memory together",
    "micro_batch": "how many of a batch are worked out at a time",
    "engine": "how steps are compiled",
    "workers": "among how many threads clients are shared",
    "precision": "of matrix products, if a model has any",
    "budget": "ends a run, and begins none",
    "reader": "another language model takes minutes to read; tests/workbench tries one",
}
# (knob, the part beside it) -> why the knob rightly changes nothing there
EXPLAINED = {
    ("trim", "item counts"): "holders of an item all send 1, whoever is cut off",
    ("attack", "gate"): "what is longer than its bound is refused, whatever made it so",
    ("longest", "local noise"): "noise of the clients' own is longer than any bound",
}
# parts that rightly change nothing in a run as short as these -> why
QUIET = {"matched": "units that set out together stay together; tests/aggregation has them cross"}
# values of a bound: here updates are .16 to .33 long, so the first refuses some of them; beside
# what makes updates shorter the next ones do
TURNED = {"longest": (0.25, 0.1, 0.01)}


@dataclass(frozen=True)
class Variant:
    """One thing turned on.

    kind, part: whose it is. change: its settings. stages: those on the way up.
    """

    kind: str
    part: str
    change: tuple[tuple[str, Any], ...] = ()
    stages: tuple[str, ...] = ()
    home: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """The variant as reports write it."""
        turned = ", ".join(f"{name}={value!r}" for name, value in self.change)
        return self.part if self.part in turned or not turned else f"{self.part} ({turned})"

    @property
    def words(self) -> set[str]:
        """The words by which a message may name it."""
        return {
            self.part,
            *(name for name, _ in self.change),
            *(value for _, value in self.change if isinstance(value, str)),
        }


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its mark, or why it was refused, or what raw error it raised."""

    mark: str = ""
    refused: str = ""
    raw: str = ""


@dataclass
class Counts:
    """What the pairs came to. The lists hold one line for each finding."""

    pairs: int = 0
    combinations: int = 0
    works: int = 0
    refused: int = 0
    knobs: int = 0
    silent: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Add what other pairs came to."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def findings(self) -> list[str]:
        """All findings, a line for each."""
        return [*self.silent, *self.raw, *self.unclear, *self.ignored, *self.unequal]


@cache
def folder() -> str:
    """26 users and 130 films as files: 10 to 14 ratings each, of some genres more than others."""
    where = Path(tempfile.mkdtemp(prefix="fedlab"))
    atexit.register(shutil.rmtree, where)
    genres = ("Comedy", "Drama", "Comedy|Drama", "Horror")
    films = [f'{i},"Film {i} ({1930 + i % 70})",{genres[i % 4]}' for i in range(130)]
    (where / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]))
    rated = [
        f"{u},{(u * 13 + k * (u % 5 + 3)) % 130},{(u + k * k) % 9 / 2 + 0.5},{100 * k + u}"
        for u in range(26)
        for k in range(10 + u % 5)
    ]
    (where / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rated]))
    return str(where)


@cache
def small_reader() -> str:
    """A language model of BERT's type as a folder, of 3 narrow layers: it reads in no time."""
    from transformers import BertConfig, BertModel, BertTokenizerFast  # noqa: PLC0415 - seconds
    from transformers.utils import logging  # noqa: PLC0415

    where = Path(tempfile.mkdtemp(prefix="fedlab"))
    atexit.register(shutil.rmtree, where)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "(", ")", *map(str, range(2000))]
    (where / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(where / "vocab.txt")).save_pretrained(where)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(where)
    return str(where)


def completed(asked: dict[str, Any]) -> Settings:
    """The settings, with the small ones among them that something reads."""
    settings = Settings(data=folder(), **BASE | asked)
    if settings.model == "lora":
        settings = settings.replace(reader=small_reader())
    made = Experiment(settings)
    names = {name for part in made.parts for name in knobs(type(part))} - made.unread().keys()
    return settings.replace(
        **{name: value for name, value in SMALL.items() if name in names and name not in asked}
    )


def mark(rounds: Sequence[Round]) -> str:
    """A mark of these Rounds without their seconds: parameters, metrics, bytes, books, clock.

    Lengths are left out: compiled sums round them otherwise than single updates, on some machines.
    """
    found = hashlib.blake2b(digest_size=16)
    for done in rounds:
        for name in sorted(done.params):
            found.update(name.encode() + done.params[name].contiguous().numpy().tobytes())
        metrics = {name: value for name, value in done.metrics.items() if name != "secure_s"}
        books = (
            done.cohort.tolist(),
            done.losses.tolist(),
            done.bytes_down,
            done.bytes_up,
            sorted(done.rejected.items()),
            done.skipped,
            done.clock,
            sorted(metrics.items()),
        )
        found.update(repr(books).encode())
    return found.hexdigest()


def trained(settings: Settings, start: Round | None = None) -> list[Round]:
    """The Rounds of an experiment."""
    return list(stream(lambda: settings, start))


def outcome(settings: Settings, start: Round | None = None) -> tuple[Outcome, list[Round]]:
    """What a run comes to, and its Rounds."""
    try:
        rounds = trained(settings, start)
    except ParameterError as error:
        return Outcome(refused=str(error)), []
    except Exception as error:  # noqa: BLE001 - whatever else is raised is what is counted
        return Outcome(raw=f"{type(error).__name__}: {error}"), []
    if not all(bool(value.isfinite().all()) for value in rounds[-1].params.values()):
        return Outcome(raw="the model is not finite"), rounds
    return Outcome(mark(rounds)), rounds


@lru_cache(maxsize=20_000)
def known(settings: Settings) -> Outcome:
    """The same as `outcome`, remembered; where nobody's update was ever taken, it is refused."""
    found, rounds = outcome(settings)
    reasons = {why for done in rounds for why in done.rejected.values()}
    if reasons and not any(len(done.cohort) for done in rounds):
        return Outcome(refused=f"no update was taken; {', '.join(sorted(reasons))}")
    return found


def result(asked: dict[str, Any]) -> Outcome:
    """What these settings come to, with small ones beside them."""
    try:
        settings = completed(asked)
    except ParameterError as error:
        return Outcome(refused=str(error))
    return known(settings)


def moved(knob: Knob, kind: type, default: Any) -> list[Any]:
    """Values of a knob other than its default, those first that change most without harm."""
    if kind is str:
        return [text for text in reversed(knob.options) if text != default] or ["no such name"]
    least, most = knob.low, knob.high
    low, high = knob.usual or (least, most)
    middle = (low * high) ** 0.5 if knob.log and low > 0 else (low + high) / 2
    values = [middle, low + (high - low) / 16, low + (high - low) / 50, high, low, least, most]
    inside = [kind(value) for value in values if least <= kind(value) <= most]
    return [value for value in dict.fromkeys(inside) if value != default]


@cache
def homes(heavy_too: bool) -> list[dict[str, Any]]:
    """Models, tasks and methods with which a part may be at home, the usual ones first."""
    titles = sorted(REGISTRY["model"], key=lambda title: heavy(REGISTRY["model"][title]))
    models = [
        {"model": title} for title in titles if heavy_too or not heavy(REGISTRY["model"][title])
    ]
    ratings, locals_ = {"task": "ratings"}, [{"local": title} for title in REGISTRY["local"]]
    return [{}, *models, ratings, *(ratings | model for model in models), *locals_]


def heavy(cls: type) -> bool:
    """Whether a model reads texts, which takes a while."""
    return ".text." in cls.__module__


def with_needs(stage: str) -> tuple[str, ...]:
    """A stage behind those that add what it needs."""
    needed = [
        next((title for title, cls in REGISTRY["stage"].items() if fact in cls().adds()), "")
        for fact in REGISTRY["stage"][stage].needs
    ]
    return (*dict.fromkeys(title for title in needed if title), stage)


def offered() -> Iterator[list[Variant]]:
    """For each thing that can be turned on, the ways to do so."""
    for name, knob in knobs(Choices).items():
        usual = described()[name].default
        for option in (o for o in knob.options if o != usual and name != "data"):
            if knob.parts == "stage":
                yield [Variant("stage", option, stages=with_needs(option))]
            else:
                yield [Variant(knob.parts or "experiment", option, ((name, option),))]
    for kind, title in Experiment(Settings()).named:
        if kind not in ALWAYS:
            continue
        for name in knobs(REGISTRY[kind][title]):
            about = described()[name]
            values = moved(about.knob, about.kind, about.default)
            values = [*TURNED.get(name, ()), *values]
            ways = [Variant(kind, title, ((name, value),)) for value in values]
            yield from ([way] for way in ways) if about.knob.options else [ways]


def variants(heavy_too: bool = False) -> tuple[list[Variant], list[str]]:
    """What can be turned on and acts somewhere by itself, and why the others do not."""
    found, left = [], []
    for ways in offered():
        way = ways[0]
        if way.kind == "model" and heavy(REGISTRY["model"][way.part]) and not heavy_too:
            continue
        why = ""
        for home, each in itertools.product(homes(heavy_too), ways):
            if any(name in home for name, _ in each.change):
                continue
            whole = result(settings_of([each], home))
            without = result(settings_of([], home) | uplink(each.stages[:-1]))
            if whole.mark and (whole.mark != without.mark or way.part in QUIET):
                found.append(
                    Variant(each.kind, each.part, each.change, each.stages, tuple(home.items()))
                )
                break
            why = why or whole.refused or whole.raw or "it changes nothing"
        else:
            left.append(f"{way}: {why}")
    return found, left


def uplink(stages: Sequence[str]) -> dict[str, Any]:
    """The setting of these stages."""
    return {"uplink": " + ".join(stages)} if stages else {}


def settings_of(both: Sequence[Variant], home: dict[str, Any]) -> dict[str, Any]:
    """The settings to ask for, in which changes win over homes."""
    stages = tuple(dict.fromkeys(stage for each in both for stage in each.stages))
    changes = dict(pair for each in both for pair in each.change)
    return home | changes | uplink(stages)


def is_named(message: str, both: Sequence[Variant]) -> bool:
    """Whether a refusal names both, or one and what is missing, and a way out."""
    said = message.lower()
    return ";" in said and any(word in said for each in both for word in each.words)


def checked(both: tuple[Variant, Variant], schedule: dict[str, Any]) -> Counts:
    """What this pair, in this order, comes to."""
    found, (one, other) = Counts(combinations=1), both
    home = dict(one.home) | dict(other.home) | schedule
    asked, name = settings_of(both, home), f"{one} x {other}{' buffered' if schedule else ''}"
    first = result(asked)
    if first.refused:
        found.refused = 1
        if not is_named(first.refused, both):
            found.unclear.append(f"{name}: {first.refused}")
        return found
    if first.raw:
        found.raw.append(f"{name}: {first.raw}")
        return found
    found.works = 1
    for part, rest in ((one, other), (other, one)):
        kept = tuple(stage for each in (rest, part) for stage in each.stages if stage != part.part)
        away = {name: value for name, value in home.items() if (name, value) not in part.change}
        without = result(settings_of([rest], away) | uplink(tuple(dict.fromkeys(kept))))
        acts = without.mark != first.mark or acts_otherwise(part, rest, asked, first)
        if not acts and part.part not in QUIET:
            found.silent.append(f"{name}: {part} changes nothing")
    if not resumes(completed(asked)):
        found.unequal.append(name)
    for part, beside in ((one, other), (other, one)):
        lines, tried = ignored(part, beside, asked, first)
        found.knobs += tried
        found.ignored += [f"{name}: {line}" for line in lines]
    return found


def acts_otherwise(part: Variant, beside: Variant, asked: dict[str, Any], first: Outcome) -> bool:
    """Whether a bound that refuses nobody refuses some at another value, or rightly nobody."""
    bounds = [(name, value) for name, _ in part.change for value in TURNED.get(name, ())]
    return any((name, beside.part) in EXPLAINED for name, _ in bounds) or any(
        result(asked | {name: value}).mark != first.mark for name, value in bounds
    )


def resumes(settings: Settings) -> bool:
    """Whether the run goes on bit by bit, from its first Round and from its second off the disk."""
    whole = outcome(settings)[1]
    starts = whole[0], through_disk(whole[1])
    marks = [mark(whole[start.number :]) for start in starts]
    rests = [outcome(settings, start) for start in starts]
    fine = [not rest.refused and not rest.raw for rest, _ in rests]
    return all(fine) and marks == [mark(again) for _, again in rests]


def through_disk(done: Round) -> Round:
    """The Round as it comes back from a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="fedlab") as home:
        return load_round(save_round(done, Path(home, "checkpoint")))


def ignored(
    part: Variant, beside: Variant, asked: dict[str, Any], first: Outcome
) -> tuple[list[str], int]:
    """The knobs of a part that change nothing and raise nothing, and how many were tried."""
    cls = REGISTRY.get(part.kind, {}).get(part.part)
    if cls is None or (part.kind in ALWAYS and part.change[0][0] != part.kind):
        return [], 0  # it is a knob itself
    settings, lines = completed(asked), []
    names = {
        name for name in knobs(cls).keys() - NO_TRACE.keys() if (name, beside.part) not in EXPLAINED
    }
    for name in sorted(names):
        about = described()[name]
        values = moved(about.knob, about.kind, settings[name])
        if all(result(asked | {name: value}).mark == first.mark for value in values):
            lines.append(f"{name} of {part.part} changes nothing")
    return lines, len(names)


def pairs(every: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """The pairs that can be asked for: not two parts in one place, nor two values of a knob."""
    return [
        (a, b)
        for a, b in itertools.combinations(every, 2)
        if not dict(a.change).keys() & dict(b.change).keys()
    ]


def tried(pair: tuple[Variant, Variant]) -> Counts:
    """What a pair comes to, synchronous and buffered, stages in both orders."""
    found = Counts(pairs=1)
    places = [{}] if any(v.kind == "schedule" for v in pair) else [{}, {"schedule": "buffered"}]
    orders = [pair, pair[::-1]] if all(v.stages for v in pair) else [pair]
    with torch.random.fork_rng():
        for both, place in itertools.product(orders, places):
            found.add(checked(both, place))
    return found


def composed(step: int = 1, *, texts: bool = True) -> Counts:
    """Try every `step`-th pair, with models of texts or without them, on all cores.

    Neighbours share runs, which a process remembers, so each takes 16 pairs at a time.
    """
    every, total = pairs(variants(heavy_too=texts)[0])[::step], Counts()
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for number, found in enumerate(pool.map(tried, every, chunksize=16), 1):
            total.add(found)
            for line in found.findings:
                print(line, flush=True)
            if not number % 100:
                print(f"{number} of {len(every)} pairs", flush=True)
    return total


def main() -> None:
    """Try all pairs and print what they come to; end with 1 where anything was found."""
    words = argparse.ArgumentParser(description="Run every pair of registered parts together.")
    words.add_argument("--without-texts", action="store_true")
    found = composed(texts=not words.parse_args().without_texts)
    print(
        f"{found.pairs} pairs in {found.combinations} combinations: {found.works} work, "
        f"{found.refused} are refused, {found.knobs} knobs turned; {len(found.findings)} findings"
    )
    raise SystemExit(bool(found.findings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
