"""Sums that a server learns without learning what was added, and noise in shares."""

from fedlab.privacy.secure.discrete_gaussian import (
    NoiseShares,
    concentrated,
    discrete_gaussian,
    discrete_laplace,
)
from fedlab.privacy.secure.fixed_point import FixedPoint
from fedlab.privacy.secure.keys import Words, agreed_key, expand_seed
from fedlab.privacy.secure.member import Advert, Member, arrivals, mask_seed
from fedlab.privacy.secure.server import SecureSumResult, Server, secure_sum
from fedlab.privacy.secure.shamir import (
    PRIME,
    SecureSumError,
    joined_secret,
    split_secret,
    weights_at_zero,
)
from fedlab.privacy.secure.stages import DistributedGaussian, SecureSum
from fedlab.privacy.secure.terms import Identity, Terms, least_threshold

__all__ = [
    "PRIME",
    "Advert",
    "DistributedGaussian",
    "FixedPoint",
    "Identity",
    "Member",
    "NoiseShares",
    "SecureSum",
    "SecureSumError",
    "SecureSumResult",
    "Server",
    "Terms",
    "Words",
    "agreed_key",
    "arrivals",
    "concentrated",
    "discrete_gaussian",
    "discrete_laplace",
    "expand_seed",
    "joined_secret",
    "least_threshold",
    "mask_seed",
    "secure_sum",
    "split_secret",
    "weights_at_zero",
]
