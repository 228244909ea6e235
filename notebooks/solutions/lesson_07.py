"""Solutions of lesson 7. Try first: the checks in the notebook give hints."""


def inner_step(w, x, y, rate):
    """One step on the mean squared error of a linear model."""
    return w - rate * 2 * x.T @ (x @ w - y) / len(y)


def through(x, rate):
    """How far the adapted weight moves with the start: MAML's gradient is FOMAML's times this."""
    return 1 - rate * 2 * x * x
