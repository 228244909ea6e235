"""What is hidden, and what it proves: accounting, noise, DP-SGD, secure aggregation."""

from fedlab.privacy.accounting import (
    Release,
    adaptive_clip_noise,
    epsilon,
    gaussian_epsilon,
    noise_for,
)
from fedlab.privacy.dp_sgd import DPSGD, example_gradients
from fedlab.privacy.forgetting import Forgotten, forget
from fedlab.privacy.ledger import (
    Ledger,
    People,
    Spending,
    Spent,
    affordable,
    booked,
    proven,
    proven_for_examples,
)
from fedlab.privacy.mechanisms import Clip, GaussianNoise, LocalNoise, SecureSum, dense, plain_sum
from fedlab.privacy.noise_source import NoiseSource, teaching_seed
from fedlab.privacy.private_statistics import (
    ItemCounts,
    PairCounts,
    item_counts,
    own_taste,
    pair_counts,
    public_basis,
    smoothed,
    standard,
    table_score,
    together,
)
from fedlab.privacy.secure_aggregation import FixedPoint, Member, expand_seed, secure_sum, unmasked
from fedlab.privacy.shamir import (
    PRIME,
    SecureSumError,
    joined_secret,
    split_secret,
    weights_at_zero,
)

__all__ = [
    "DPSGD",
    "PRIME",
    "Clip",
    "FixedPoint",
    "Forgotten",
    "GaussianNoise",
    "ItemCounts",
    "Ledger",
    "LocalNoise",
    "Member",
    "NoiseSource",
    "PairCounts",
    "People",
    "Release",
    "SecureSum",
    "SecureSumError",
    "Spending",
    "Spent",
    "adaptive_clip_noise",
    "affordable",
    "booked",
    "dense",
    "epsilon",
    "example_gradients",
    "expand_seed",
    "forget",
    "gaussian_epsilon",
    "item_counts",
    "joined_secret",
    "noise_for",
    "own_taste",
    "pair_counts",
    "plain_sum",
    "proven",
    "proven_for_examples",
    "public_basis",
    "secure_sum",
    "smoothed",
    "split_secret",
    "standard",
    "table_score",
    "teaching_seed",
    "together",
    "unmasked",
    "weights_at_zero",
]
