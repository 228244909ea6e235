"""Solutions of lesson 5. Try first: the checks in the notebook give hints."""

import torch


def mean(states, there):
    """One vector of a text: the mean of the states of its own tokens."""
    return (states * there[:, None]).sum(0) / there.sum()


def row(near, kernel, rows, noise):
    """A new film's row: from how near it is to the warm films, they to each other, and their rows."""
    return near @ torch.linalg.solve(kernel + noise * torch.eye(len(kernel)), rows)
