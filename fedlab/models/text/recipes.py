"""Recommenders that read: models of texts that an experiment can name.

Everything but the train ratings is public: the films' titles, years and genres, as MiniLM reads
them. Its vectors of the bundled data come along; those of other data are worked out once and kept.

Letters: I items, T films of a history, E numbers of a text vector, K users asked in an example.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedlab.core import Recipe, Score, Tree, knob, register, require
from fedlab.data import Federation, Interactions, ItemQueries
from fedlab.models.content import content, history
from fedlab.models.lora import adapted
from fedlab.models.model import Model, hybrid
from fedlab.models.modules import from_module, loaded
from fedlab.models.recipes import dim
from fedlab.models.text.encoder import MINILM, SMOLLM2, encoder, item_texts, vectors
from fedlab.models.text.next_item import (
    SASRec,
    Sequences,
    last_films,
    principal_components,
    sequence_scorer,
    with_lists,
)
from fedlab.models.text.two_tower import TextEncoder, TwoTower

GROUP = "text"
ITEMS, USERS, TOKENS = 16, 64, 12  # films in an epoch, users asked about each, tokens of a text


@register
class TextContent(Recipe):
    """Texts of items against the texts of those that a user has clicked."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        known = principal_components(_read(train), 2 * self.dim)
        return replace(content(known, history(train, known), self.dim, task=task), name=self.name)


@register
class Hybrid(Recipe):
    """A vector for each user, and for each item one of its own and what its text says."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        known = principal_components(_read(train), 2 * self.dim)
        return hybrid(train.user_count, known, self.dim, task=task)


@register
class NextItem(Recipe):
    """A Transformer over a user's last items, each known by its text and a row of its own."""

    title = "sasrec"
    dim: int = dim()
    history: int = knob(
        20,
        1,
        200,
        "items",
        "sasrec: how many of a user's last items it reads (T)",
        live=False,
        usual=(5, 50),
        group=GROUP,
    )

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        _check_clicks(self, task)
        known = _read(train)

        def make(seed: int) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return SASRec(
                    train.item_count,
                    known,
                    dim=self.dim,
                    length=self.history,
                    heads=2 - self.dim % 2,
                )

        few = {"history": last_films(train, self.history)[:3], "item": train.items[:3]}
        return with_lists(_by_seed(make, few))

    def source(self, data: Any) -> Sequences:
        """The clicks, each with those before it."""
        return Sequences(_federation(self, data), self.history)

    def score(self, model: Model, data: Federation, params: Tree) -> Score:
        """Predict from each user's last items."""
        return sequence_scorer(model, params, last_films(data.train, self.history))


@register
class Lora(Recipe):
    """A language model with adapters: an item's text against the texts that a user clicked.

    Only the adapters, the head and the user's tower are trained and sent. The texts that a user
    clicked are as MiniLM reads them.
    """

    draws_negatives = False
    dim: int = dim()
    reader: str = knob(
        MINILM,
        0,
        0,
        "",
        "lora: the language model; a name on the Hugging Face hub, or a folder",
        live=False,
        choices=(MINILM, SMOLLM2),
        others=True,
        group=GROUP,
    )
    rank: int = knob(
        4,
        1,
        128,
        "",
        "lora: how narrow an adapter is (r)",
        live=False,
        log=True,
        usual=(1, 32),
        group=GROUP,
    )
    adapter_scale: float = knob(
        128.0,
        1e-3,
        1e6,
        "",
        "lora: of adapters, divided by r (alpha)",
        live=False,
        log=True,
        usual=(1.0, 1000.0),
        group=GROUP,
    )
    layers: int = knob(
        2,
        1,
        5,
        "layers",
        "lora: the last of the language model that have adapters",
        live=False,
        usual=(1, 5),
        group=GROUP,
    )

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        _check_clicks(self, task)
        texts = item_texts(train.catalogue, "{title} ({year})")
        reader, known = encoder(self.reader), _read(train)
        text = TextEncoder(reader, texts, top=self.layers, length=TOKENS)
        linear = [
            path.rpartition(".")[2]
            for path, part in cast(nn.Module, text.body).named_modules()
            if isinstance(part, nn.Linear)
        ]

        def make(seed: int) -> nn.Module:
            tower = TwoTower(text, train, known, dim=self.dim, seed=seed)
            return adapted(
                tower, linear, self.rank, self.adapter_scale, train=("head", "user"), seed=seed
            )

        who = train.users[:3, None].expand(-1, USERS)
        few = {"item": train.items[:3], "who": who, "own": torch.ones(who.shape)}
        return _by_seed(make, few, answers=USERS)

    def source(self, data: Any) -> ItemQueries:
        """The items, and which of a client's users clicked them."""
        return ItemQueries(_federation(self, data), ITEMS, USERS)

    def score(self, model: Model, data: Federation, params: Tree) -> Score:
        """Predict by the module with these parameters, which reads each text once."""
        tower = loaded(model.module, params) if model.module else None
        assert isinstance(tower, TwoTower)
        return tower.scores()


def _read(train: Interactions) -> Tensor:
    """The vectors (I, E) that MiniLM makes of the items' texts."""
    return vectors(item_texts(train.catalogue), progress=False)


def _check_clicks(recipe: Recipe, task: str) -> None:
    require(task == "clicks", "task", task, f"{recipe.name} learns from clicks; choose clicks")


def _federation(recipe: Recipe, data: Any) -> Federation:
    """The data as a Federation; `ParameterError` where something has changed its examples."""
    require(
        isinstance(data, Federation),
        "local",
        type(data).__name__,
        f"{recipe.name} makes examples of its own; choose sgd or scaffold",
    )
    return data


def _by_seed(
    make: Callable[[int], nn.Module], few: Mapping[str, Tensor], answers: int = 1
) -> Model:
    """A model of the module that `make` makes, with other first weights for each seed."""
    model = from_module(make(0), few, answers=answers)

    def init(seed: int) -> Tree:
        weights = dict(make(seed).named_parameters())
        return {name: weights[name].detach()[None].clone() for name in model.rows}

    return replace(model, init=init)
