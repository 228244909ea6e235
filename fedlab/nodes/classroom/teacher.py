"""A class from the teacher's side: a model to start from, and rounds with whoever is there.

A class is a chain of runs. Each goes over a fixed roster, as every run does; where somebody has
come who is not in it, the run ends with its round and the next begins from its model, with all who
are there. The ledger goes on.

Letters: I items, D dimensions.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedlab.algorithms import federate
from fedlab.algorithms.loop import Ask
from fedlab.core import ParameterError, Round, Settings, Stage, Tree, require
from fedlab.data import Catalogue, Federation, Interactions, load, of_users, one_per_user
from fedlab.models import matrix_factorisation
from fedlab.nodes.classroom.entrance import Entrance
from fedlab.nodes.classroom.learner import films_of, liked
from fedlab.nodes.coordinator import Coordinator, Roster, introduced, roster_of
from fedlab.nodes.messages import Message, pack
from fedlab.privacy import Clip, GaussianNoise

USUAL = Settings(rounds=20, local_lr=1.0, server_lr=0.1, weighting="equal")
PRIVATE = USUAL.without(["weighting"]).replace(clip=0.5, noise=0.5, delta=1e-3)
QUORUM = 0.25
HIGHEST = 1000.0  # server's learning rate
BROUGHT = 1000  # users that one learner brings at most


def started(
    data: Interactions | None = None, *, dim: int = 16, rounds: int = 60, seed: int = 0
) -> Tree:
    """The model that a class starts from: tables item (I, D) and bias (I,).

    Trained on every other user of the data, by default of the MovieLens that comes along; learners
    may bring slices of the others. seed: of its draws.
    """
    films = load() if data is None else data
    train = liked(of_users(films, torch.arange(films.user_count) % 2 == 0))
    model = matrix_factorisation(train.user_count, train.item_count, dim)
    how: dict[str, Any] = {"rounds": rounds, "cohort": min(64, train.user_count)}
    settings = USUAL.replace(**how, server_lr=0.8 * how["cohort"], seed=seed)
    *_, last = federate(model, Federation(train, one_per_user(train)), settings)
    return {name: last.params[name] for name in ("item", "bias")}


def saved(folder: str | Path, catalogue: Catalogue) -> Tree:
    """The model that a class starts from, of a folder that `fedlab export` or `best` has written.

    Raises `ParameterError` where there is none of these films, and OSError.
    """
    place = Path(folder)
    fix = "there is no model in it; name a folder that `fedlab export` or `fedlab best` has written"
    require((place / "rows.json").is_file(), "model", str(folder), fix)
    same = json.loads((place / "rows.json").read_text("utf-8")).get("item")
    fix = f"it is not about the {len(catalogue.item_ids)} films of the class, in their order"
    require(same == list(catalogue.item_ids), "model", str(folder), fix)
    found: Tree = load_file(place / "model.safetensors")
    return found


def welcome(start: Tree, catalogue: Catalogue) -> bytes:
    """What a class hands to whoever comes: which films it is about, and its model."""
    items = len(catalogue.item_ids)
    bad = {name for name in ("item", "bias") if name not in start or len(start[name]) != items}
    fix = "give tables item (I, D) and bias (I,) of these films, as matrix factorisation has them"
    require(not bad and start["item"].dim() == 2, "start", sorted(start), fix)
    return pack({"films": films_of(catalogue)}, {name: start[name] for name in ("item", "bias")})


def taught(
    entrance: Entrance,
    start: Tree,
    settings: Ask | None = None,
    *,
    seconds: float = 30.0,
    private: bool = False,
) -> Iterator[Round]:
    """Yield the Rounds of a class with their metrics, first the one before all training.

    start: the tables that learners were welcomed with. settings: as `federate` takes them, where
    `server_lr` is for each client, so that a large class and a small one learn alike; the cohort is
    all who are there. By default `USUAL`, or `PRIVATE`. seconds: how long a round waits for
    answers, and how long the class waits while nobody is there; then it ends. private: whether
    updates are clipped, and noise is added to their mean; metrics then have `epsilon`, of one user.
    """
    usual = PRIVATE if private else USUAL
    ask = settings if callable(settings) else lambda: usual if settings is None else settings
    rounds, last = Settings(**ask()).rounds, None
    try:
        for last in _rounds(entrance, start, ask, rounds, seconds, private=private):
            tell(entrance, last, rounds, seconds)
            yield last
    finally:
        if last:
            tell(entrance, last, rounds, seconds, over=True)


def tell(
    entrance: Entrance, done: Round, rounds: int, seconds: float, *, over: bool = False
) -> None:
    """Tell everybody who is there which round of how many is done, and its metrics.

    Of a private class epsilon alone: the others have no noise, and are for the teacher.
    """
    found = dict(done.metrics)
    if "ledger" in done.state:
        found = {name: value for name, value in found.items() if name == "epsilon"}
    news = {"round": done.number, "rounds": rounds, "over": over, "metrics": found}
    question = pack({"ask": "news", **news})
    for _ in entrance.ask(dict.fromkeys(entrance.here(), question), seconds):
        pass


def _rounds(
    entrance: Entrance,
    start: Tree,
    ask: Callable[[], Mapping[str, Any]],
    total: int,
    seconds: float,
    *,
    private: bool,
) -> Iterator[Round]:
    params, state, done = {n: start[n] for n in ("item", "bias")}, dict[str, Any](), 0
    while done < total and _somebody(entrance, seconds):
        there = entrance.here()
        roster = _roster(entrance, seconds, len(params["bias"]), told=not private)
        if roster is None:
            continue
        turned = partial(_settings, ask, len(roster), total, done)
        first = Round(0, turned(), params, state={"ledger": state} if private else {})
        far = _coordinator(entrance, roster, params, seconds, private=private)
        if not done:
            yield replace(first, metrics=far.measure(first))
        for each in far.rounds(turned, start=first):
            done += 1
            params, state = dict(each.params), dict(each.state.get("ledger", {}))
            yield replace(each, number=done, metrics=each.metrics | far.measure(each))
            fresh = any(there.get(name) != token for name, token in entrance.here().items())
            if fresh or not _somebody(entrance, seconds):
                break


def _coordinator(
    entrance: Entrance, roster: Roster, params: Tree, seconds: float, *, private: bool
) -> Coordinator:
    uplink: list[Stage] = [Clip(), GaussianNoise()] if private else []
    model = matrix_factorisation(len(roster), roster.items, params["item"].shape[1])
    how: dict[str, Any] = {"uplink": uplink, "seconds": seconds, "quorum": QUORUM}
    return Coordinator(entrance, model, roster=roster, **how)


def _settings(
    ask: Callable[[], Mapping[str, Any]], clients: int, total: int, done: int
) -> Settings:
    """The settings of a run that begins after so many rounds of the class, with so many clients."""
    asked = Settings(**ask())
    own = {"rounds": total - done, "cohort": clients, "seed": asked.seed + done}
    return asked.replace(**own, server_lr=min(asked.server_lr * clients, HIGHEST))


def _somebody(entrance: Entrance, seconds: float) -> bool:
    """Whether somebody is there and not at work, or is so within so many seconds.

    Where all are at work still, rounds that nobody can answer would follow each other at once.
    """
    end = time.monotonic() + seconds
    while all(entrance.nodes().values()):
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _roster(entrance: Entrance, seconds: float, items: int, *, told: bool) -> Roster | None:
    """Those who are there and can take part; the others are let go, with a reason."""
    there = [name for name, why in entrance.nodes().items() if not why]
    found = dict[str, Message]()
    for name, said in introduced(entrance, there, seconds, told=told).items():
        try:
            if isinstance(said, str):
                raise ParameterError(said)
            own = roster_of({name: said})
            fits = (own.task, own.items, sum(own.users)) == ("clicks", items, len(own))
            fits = fits and own.draws_negatives and int(own.counts.max()) <= items
            require(fits, "node", name, "it is not about the films of this class")
            require(len(own) <= BROUGHT, "node", name, f"it brings more than {BROUGHT} users")
            found[name] = said
        except ParameterError as error:
            entrance.dismiss(name, str(error))
    if not found:
        time.sleep(0.05)
    return roster_of(found) if found else None
