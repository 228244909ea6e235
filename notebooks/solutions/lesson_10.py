"""Solutions of lesson 10. Try first: the checks in the notebook give hints."""


def levels(numbers, bits):
    """Whole numbers from -(2^(bits-1) - 1) to as much, of which the largest number is the last."""
    most = 2 ** (bits - 1) - 1
    return (numbers * most / numbers.abs().max()).round()


def rest(delta, left, code):
    """What is left out after sending code(delta + left): the next round's memory."""
    return delta + left - code(delta + left)
