"""Solutions of lesson 1. Try first: the checks in the notebook give hints."""


def step(p, q, y, lr):
    """One SGD step of a user's vector on one rating."""
    return p - lr * 2 * (p @ q - y) * q


def held_by_all(features, clients):
    """Every client keeps one number for each feature."""
    return features * clients
