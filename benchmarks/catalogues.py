"""Platforms with disjoint catalogues that share what reads texts.

    python benchmarks/catalogues.py [--quick]

Eight platforms divide the films of ml-latest-small by genre, and everybody on several of them is
another user on each. A perceptron predicts stars from MiniLM's vector of a film, the mean vector of
the films that its user rated on this platform, and that user's mean rating there; each film has a
bias, which only its own platform trains. A fifth of the films is cold: nobody's rating of them is
trained on. Together, the platforms average the perceptron; alone, each trains its own. Each run
ends when validation on warm films has not improved for 5 rounds, and its best round counts; cold
films and the test are only measured.
"""

from itertools import product

import torch
from common import by_seed, entry, is_quick, record

from fedlab import Federation, MeanOfHolders, Settings, best_round, federate, load, measured
from fedlab.core import Key, stop_early
from fedlab.data import Interactions, by_catalogue, main_genres, split_by_time, standardise
from fedlab.evaluation import rmse, scorer
from fedlab.models import content, history
from fedlab.models.text import item_texts, principal_components, vectors

PLATFORMS, LEAST, COLD, WIDTH, HIDDEN = 8, 8, 0.2, 64, 32
SHARES = {"all": 1.0, "tenth": 0.1}  # of the users
SAID = {"all": "all users", "tenth": "a tenth of the users"}
LOCAL = {"local_lr": 0.1, "batch_size": 64}


def trained(model, data, validation: Interactions, seed: int, rounds: int):
    """How the best round of a federation predicts, by its validation part."""

    def measure(done):
        score = scorer(model, done.params)
        return {"rmse": rmse(score(validation.users, validation.items), validation.values)}

    settings = Settings(rounds=rounds, cohort=len(data), seed=seed, **LOCAL)
    stream = federate(model, data, settings, aggregate=MeanOfHolders())
    kept = list(stop_early(measured(stream, measure), "rmse", "min", patience=5))
    return scorer(model, best_round(kept, "rmse", "min").params)


def of_platform(data: Interactions, owner: torch.Tensor, number: int) -> Interactions:
    """The ratings of one platform."""
    return data.take(owner[data.users] == number)


def job(seed: int, quick: bool) -> dict[str, dict[str, tuple[float, float]]]:
    """Share of the users -> way -> stars off on warm films and on cold ones."""
    rounds = 3 if quick else 60
    return {name: reached(share, seed, rounds) for name, share in SHARES.items()}


def reached(share: float, seed: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Way -> stars off on warm and on cold films, where platforms have this share of the users."""
    ratings = load()
    here = Key(seed, "users").uniform(torch.arange(ratings.user_count), 1)[:, 0] < share
    ratings = ratings.take(here[ratings.users])
    users, owner = by_catalogue(ratings, main_genres(ratings.catalogue, PLATFORMS), LEAST)
    split = standardise(split_by_time(users))
    is_cold = Key(seed, "cold films").uniform(torch.arange(users.item_count), 1)[:, 0] < COLD
    train, validation, warm = (
        part.take(~is_cold[part.items]) for part in (split.train, split.validation, split.test)
    )
    cold = split.test.take(is_cold[split.test.items])
    known = principal_components(vectors(item_texts(ratings.catalogue), progress=False), WIDTH)
    total = torch.zeros(users.user_count).index_add_(0, train.users, train.values)
    own = total / (train.user_counts() + 5)
    features = torch.cat([history(train, known), own[:, None]], 1)
    model = content(known, features, HIDDEN, task="ratings")
    together = trained(model, Federation(train, owner, "ratings"), validation, seed, rounds)
    one, each = torch.zeros_like(owner), []
    for number in range(PLATFORMS):
        mine, held = (of_platform(part, owner, number) for part in (train, validation))
        each.append(trained(model, Federation(mine, one, "ratings"), held, seed, rounds))

    def alone(who, items):
        found = torch.zeros(len(who))
        for number, score in enumerate(each):
            here = owner[who] == number
            found[here] = score(who[here], items[here])
        return found

    ways = {
        "mean": lambda who, items: torch.zeros(len(who)),
        "user_mean": lambda who, items: own[who],
        "alone": alone,
        "together": together,
    }
    return {
        way: tuple(
            rmse(score(part.users, part.items), part.values) * split.std for part in (warm, cold)
        )
        for way, score in ways.items()
    }


def report(every: list[dict[str, dict[str, tuple[float, float]]]], quick: bool) -> None:
    """Write what the seeds came to so far."""
    rows = {}
    for share, (place, films) in product(SHARES, enumerate(("warm", "cold"))):
        found = [each[share] for each in every]
        for way in found[0]:
            off = torch.tensor([each[way][place] for each in found])
            note = f"test, {films} films, {SAID[share]}, sd {off.std(correction=0):.4f}"
            rows[f"{share}_{films}_{way}"] = entry(
                off.mean(), "stars off", None, higher=False, seeds=len(every), note=note
            )
        gain = torch.tensor([each["alone"][place] - each["together"][place] for each in found])
        note = f"alone less together, better in {int((gain > 0).sum())} of {len(every)}"
        rows[f"{share}_{films}_gain"] = entry(
            gain.mean(), "stars", None, higher=True, seeds=len(every), note=note
        )
    record("catalogues", rows, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    by_seed(job, report, is_quick())
