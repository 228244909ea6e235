"""Shared data, MovieLens and pretrained models once a session, and what parts see of a round."""

import random
from functools import cache

import pytest
import torch
from hypothesis import settings

from fedlab.core import REGISTRY, Round, RoundContext, Settings
from fedlab.core.knobs import _described
from fedlab.data import (
    Catalogue,
    Federation,
    Interactions,
    leave_one_out,
    load,
    one_per_user,
    split_by_time,
    standardise,
)
from fedlab.engine import SGD
from fedlab.models import interaction, item_features, linear, matrix_factorisation, user_features
from fedlab.models.text import encoder

settings.register_profile("lab", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("lab")
torch.set_num_threads(1)  # as in a round; two on a busy machine take 13x longer

read_once = cache(encoder)  # SmolLM2 takes half a minute to read


@pytest.fixture(scope="session")
def ratings():
    return load()


@pytest.fixture(scope="session")
def split(ratings):
    return leave_one_out(ratings)


@pytest.fixture(scope="session")
def clicks(split):
    return Federation(split.train, one_per_user(split.train))


@pytest.fixture(scope="session")
def stars(ratings):
    train = standardise(split_by_time(ratings)).train
    return Federation(train, one_per_user(train), "ratings")


@pytest.fixture(scope="session")
def build():
    """A small model of each kind, by name and task."""

    def make(name, train, task="clicks", **kwargs):
        sizes = train.user_count, train.item_count
        if name == "linear":
            known = item_features(train.catalogue), user_features(train)
            return linear(*known, task=task)
        if name == "interaction":
            return interaction(*sizes, 8, task=task, **kwargs)
        return matrix_factorisation(*sizes, 8, task=task, **kwargs)

    return make


def tiny(users, items, values=None, times=None, user_count=None, item_count=None):
    """Hand-made ratings: tests whose answer can be worked out on paper."""
    users, items = torch.tensor(users), torch.tensor(items)
    user_count = user_count or int(users.max()) + 1
    item_count = item_count or int(items.max()) + 1
    catalogue = Catalogue(
        tuple(f"u{u}" for u in range(user_count)),
        tuple(f"i{i}" for i in range(item_count)),
        {
            "titles": tuple(f"Film {i}" for i in range(item_count)),
            "years": torch.full((item_count,), 1990),
            "categories": torch.eye(2).bool()[torch.arange(item_count) % 2],
            "category_names": ("Comedy", "Drama"),
        },
    )
    values = torch.ones(len(users)) if values is None else torch.tensor(values, dtype=torch.float32)
    times = torch.arange(len(users)) if times is None else torch.tensor(times)
    return Interactions(users, items, catalogue, {"values": values, "times": times})


@pytest.fixture(scope="session")
def small():
    """Clicks of fifteen users on eleven films."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(15, 11, generator=generator) < 0.3
    table[torch.arange(15), torch.arange(15) % 11] = True
    users, items = table.nonzero().T
    return tiny(users.tolist(), items.tolist())


def context(model, data, *, local=None, params=None, number=1, **turned):
    """A round as parts see it before anybody is drawn."""
    local, settings = local or SGD(), Settings(**turned)
    before = Round(number - 1, settings, model.init(settings.seed) if params is None else params)
    found = RoundContext(model, data, settings, before, before.params, {}, settings.seed)
    found.local = local
    found.asked = local.asks(found)
    return found


@pytest.fixture
def own_parts():
    """What is registered in a test is gone after it."""
    before = {kind: dict(parts) for kind, parts in REGISTRY.items()}
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
    _described.clear()


GENRES = ("Comedy", "Drama", "Horror", "Children")


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """Settings of a tiny experiment, over 24 users and 40 films in a folder."""
    folder, luck = tmp_path_factory.mktemp("small"), random.Random(0)
    films = [
        f"{i},Film {i} of the {GENRES[i % 4]} ({1980 + i}),{GENRES[i % 4]}" for i in range(1, 41)
    ]
    ratings = [
        f"{user},{film},{luck.randint(1, 10) / 2},{1000 * user + place}"
        for user in range(1, 25)
        for place, film in enumerate(luck.sample(range(1, 41), 12))
    ]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]))
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    return {"data": str(folder), "rounds": 2, "cohort": 8, "against": 20}
