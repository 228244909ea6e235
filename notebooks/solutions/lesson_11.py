"""Solutions of lesson 11. Try first: the checks in the notebook give hints."""


def held_out(times):
    """The places of a customer's last purchase but one, and of the last."""
    *_, validation, test = times.argsort().tolist()
    return validation, test


chance = 10 / 50  # ten places of fifty: the 49 others and the held-out product itself


def report(table):
    """The setting that is best on validation, and what it reaches on the test."""
    best = max(table, key=lambda setting: table[setting][0])
    return best, table[best][1]
