"""The models that an experiment can name, each made for the data at hand."""

from fedlab.core import Recipe, knob, register
from fedlab.data import Interactions
from fedlab.models.content import (
    content,
    genre_profile,
    item_features,
    linear,
    user_factor_model,
    user_features,
)
from fedlab.models.model import Model, interaction, matrix_factorisation


def dim() -> int:
    """The knob of all models that have vectors."""
    length: int = knob(
        32,
        1,
        1_024,
        "numbers",
        "length of a user's or an item's vector (D)",
        live=False,
        log=True,
        usual=(1, 128),
    )
    return length


@register
class MatrixFactorisation(Recipe):
    """A vector for each user and each item."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return matrix_factorisation(train.user_count, train.item_count, self.dim, task=task)


@register
class Interaction(Recipe):
    """Vectors, and a learned weight for each product of their numbers."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return interaction(train.user_count, train.item_count, self.dim, task=task)


@register
class Content(Recipe):
    """Genres of an item against the genres that a user has clicked."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return content(
            train.catalogue.categories.float(), genre_profile(train), self.dim, task=task
        )


@register
class Linear(Recipe):
    """A linear regression on what is known of items and users."""

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return linear(item_features(train.catalogue), user_features(train), task=task)


@register
class UserFactors(Recipe):
    """One vector for the user of a client, shared until it adapts: for meta-learning."""

    dim: int = dim()

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return user_factor_model(
            train.item_count, self.dim, item_features(train.catalogue), task=task
        )
