"""Recommenders as pairs of pure functions: draw the parameters, predict from them."""

from fedlab.models.content import (
    content,
    genre_profile,
    history,
    item_features,
    linear,
    user_factor_model,
    user_features,
)
from fedlab.models.factored import ByUser, Factored, factored
from fedlab.models.lora import Adapted, adapted, merged
from fedlab.models.losses import listwise
from fedlab.models.model import Model, Product, interaction, matrix_factorisation, perceptron
from fedlab.models.modules import from_module, loaded
from fedlab.models.ncf import NeuralCollaborativeFiltering, neural_collaborative_filtering
from fedlab.models.recipes import Content, Interaction, Linear, MatrixFactorisation, UserFactors

__all__ = [
    "Adapted",
    "ByUser",
    "Content",
    "Factored",
    "Interaction",
    "Linear",
    "MatrixFactorisation",
    "Model",
    "NeuralCollaborativeFiltering",
    "Product",
    "UserFactors",
    "adapted",
    "content",
    "factored",
    "from_module",
    "genre_profile",
    "history",
    "interaction",
    "item_features",
    "linear",
    "listwise",
    "loaded",
    "matrix_factorisation",
    "merged",
    "neural_collaborative_filtering",
    "perceptron",
    "user_factor_model",
    "user_features",
]
