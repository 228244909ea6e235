"""Solutions of lesson 4. Try first: the checks in the notebook give hints."""


def weight(steps):
    """FedBuff's polynomial weight of an update that is so many steps late."""
    return (1 + steps) ** -0.5


def round_time(seconds, deadline):
    """How long a synchronous round lasts, and how many clients count."""
    return min(max(seconds), deadline), sum(s <= deadline for s in seconds)
