"""Solutions of lesson 3. Try first: the checks in the notebook give hints."""


def trimmed(deltas, cut):
    """The mean of each column of (C, D) without its `cut` largest and smallest numbers."""
    return deltas.sort(0).values[cut : len(deltas) - cut].mean(0)


def ensemble_bytes(models, numbers):
    """A user downloads every model: 4 bytes for each of its numbers."""
    return models * numbers * 4
