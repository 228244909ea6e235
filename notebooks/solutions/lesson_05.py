"""Solutions of lesson 5. Try first: the checks in the notebook give hints."""

import torch


def mean(states, there):
    """One vector of a text: the mean of the states of its own tokens."""
    return (states * there[:, None]).sum(0) / there.sum()


def row(near, kernel, rows, noise):
    """A new film's row, by how near it is to the warm films, and they to each other."""
    return near @ torch.linalg.solve(kernel + noise * torch.eye(len(kernel)), rows)
