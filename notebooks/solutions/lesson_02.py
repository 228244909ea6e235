"""Solutions of lesson 2. Try first: the checks in the notebook give hints."""


def average(deltas, counts):
    """FedAvg of stacked deltas (C, D), weighted by the examples of each client (C,)."""
    return (counts / counts.sum()) @ deltas


def bytes_up(rows, dim):
    """What a client sends: for each row its number, its vector and its bias, 4 bytes each."""
    return rows * (4 + 4 * dim + 4)
