"""What is hidden, and what it proves: accounting, noise, DP-SGD, secure aggregation."""

from fedlab.privacy.accounting import (
    Release,
    adaptive_clip_noise,
    epsilon,
    gaussian_epsilon,
    noise_for,
)
from fedlab.privacy.dp_sgd import ExampleLevel, example_gradients
from fedlab.privacy.mechanisms import (
    AdaptiveClip,
    CentralNoise,
    Clip,
    LocalNoise,
    Mechanism,
    NoiseSource,
    RoundContext,
    SecureSum,
    dense,
    noise_of_deltas,
    summed,
)
from fedlab.privacy.private_statistics import (
    PairCounts,
    counts,
    own_taste,
    pairs,
    public_basis,
    seen,
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

__all__ = ["PRIME", "AdaptiveClip", "CentralNoise", "Clip", "ExampleLevel", "FixedPoint",
           "LocalNoise", "Mechanism", "Member", "NoiseSource", "PairCounts", "Release",
           "RoundContext", "SecureSum", "SecureSumError", "adaptive_clip_noise", "counts", "dense",
           "epsilon", "example_gradients", "expand_seed", "gaussian_epsilon", "joined_secret",
           "noise_for", "noise_of_deltas", "own_taste", "pairs", "public_basis", "secure_sum",
           "seen", "smoothed", "split_secret", "standard", "summed", "table_score", "together",
           "unmasked", "weights_at_zero"]
