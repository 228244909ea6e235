"""Solutions of lesson 6. Try first: the checks in the notebook give hints."""

import torch


def weights_of(inputs, outputs, r):
    """How many weights an adapter has: A (r, inputs) and B (outputs, r)."""
    return r * (inputs + outputs)


def mean_product(a, b, share):
    """The mean over shops of B A, each with its share."""
    return torch.einsum("c,cor,cri->oi", share, b, a)
