"""One user from the inside: history, recommendations, what was sent and what can be read of it.

Letters: I items, n clicks of one user.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedlab.attacks import sign_scores
from fedlab.core import ParameterError, RoundContext, Score, Stage, Update
from fedlab.evaluation import auc
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.export.recommender import unknown
from fedlab.workbench.inside.items import every_score

LATELY, TOP = 8, 10


def user_of(made: Experiment, name: str) -> int:
    """The row of a user by id; raises `ParameterError` that names those most alike."""
    return _row("user", name, made.split.train.catalogue.user_ids)


def item_of(made: Experiment, name: str) -> int:
    """The row of an item by id, or by a title that only one item has; else `ParameterError`."""
    catalogue = made.split.train.catalogue
    if catalogue.names.count(name) == 1:
        return catalogue.names.index(name)
    return _row("item", name, catalogue.item_ids, catalogue.names)


def _row(what: str, name: str, ids: Sequence[str], others: Sequence[str] = ()) -> int:
    try:
        return ids.index(name)
    except ValueError:
        raise unknown(what, name, (*ids, *others)) from None


def likes(made: Experiment, score: Score, user: int) -> dict[str, Any]:
    """What a user clicked last, what the model recommends, and where the held-out item stands.

    lately, top: names of items, the last and the best first. held: the item of the validation part
    with its place among all that were not met in train; {} for who has none.
    """
    train, names = made.split.train, made.split.train.catalogue.names
    mine = train.take(train.users == user)
    order = torch.arange(len(mine))
    if "times" in mine.columns:
        order = mine.times.argsort(descending=True, stable=True)
    scores = every_score(score, torch.tensor([user]), train.item_count)[0].cpu()
    scores = scores.index_fill(0, mine.items, -torch.inf)
    left = train.item_count - len(mine)
    best = scores.argsort(descending=True, stable=True)[: min(TOP, left)]
    held = made.split.validation
    asked = held.items[held.users == user][:1].tolist()
    return {
        "clicks": len(mine),
        "lately": [names[i] for i in mine.items[order][:LATELY].tolist()],
        "top": [names[i] for i in best.tolist()],
        "held": [
            {"item": names[i], "place": int((scores >= scores[i]).sum()), "of": left} for i in asked
        ],
    }


def reading(update: Update, truth: Tensor, items: int, name: str) -> dict[str, Any]:
    """What a server that looks into one client's update guesses of its clicks.

    truth (I,): what the client clicked. name: the parameter with a row for each item that is read;
    training moves the rows of clicks up and those of drawn items down. guess: the rows moved up
    most. auc: 1 where every click is above every other item, 0.5 where nothing can be told. right:
    the share of the guessed that are clicks, among as many as the client has.
    """
    scores = sign_scores(update, items, name)[0].nan_to_num(0.0, 0.0, 0.0)
    guess = scores.argsort(descending=True, stable=True)[: int(truth.sum())]
    return {
        "guess": guess[:TOP].tolist(),
        "auc": float(f"{auc(scores, truth.float()):.3g}"),
        "right": float(f"{float(truth[guess].float().mean()):.3g}"),
    }


def read_by(update: Update, context: RoundContext) -> str:
    """The parameter that tells clicks: of those with a row for each item the one sent of least."""
    by_item = [n for n, (_, kind) in context.asked.items() if kind == "item" and n in update.deltas]
    return min(by_item, key=lambda n: update.deltas[n].values[:1].numel(), default="")


def upload(
    made: Experiment, context: RoundContext, learned: Update, sent: Update, client: int
) -> dict[str, Any]:
    """What one client sends in a round, and what can be read of it, as it trained and as it left.

    learned, sent: Updates of this client alone.
    """
    train = made.split.train
    truth = torch.zeros(train.item_count, dtype=torch.bool)
    truth[train.items[made.federation.owner[train.users] == client]] = True
    names = train.catalogue.names
    numbers = sum(rows.values.numel() for rows in sent.deltas.values())
    found: dict[str, Any] = {
        "rows": max((len(rows.ids) for rows in sent.deltas.values()), default=0),
        "numbers": numbers,
        "learned": _length(learned),
        "sent": _length(sent),
        "stages": [stage.name for stage in made.uplink if stage.side == "client"],
        "summed": [stage.name for stage in made.uplink if stage.side == "sum"],
        "hidden": any(type(stage).add_up is not Stage.add_up for stage in made.uplink),
        "read": [],
    }
    name = read_by(sent, context)
    if name and truth.any() and not truth.all():
        before, after = (reading(each, truth, train.item_count, name) for each in (learned, sent))
        guess = [{"item": names[i], "true": bool(truth[i])} for i in after.pop("guess")]
        found |= {"read": guess, "by": name, "alone": before["auc"], **after}
    return found


def _length(update: Update) -> float:
    squares = sum(
        float(rows.square_norms(len(update.cohort)).sum()) for rows in update.deltas.values()
    )
    return float(f"{squares**0.5:.4g}")


def one(update: Update, client: int) -> Update:
    """The part of an update that one client sends; raises `ParameterError` if it sends none."""
    here = update.cohort == client
    if not bool(here.any()):
        raise ParameterError(f"client={client}: it sent nothing in this round; choose another")
    return update.only(here)
