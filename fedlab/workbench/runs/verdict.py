"""Whether something beats what needs no learning, in words; what does not is no success.

A lead is a dict as `fedlab.workbench.beside.lead` gives it.
"""

from collections.abc import Mapping
from typing import Any

UNITS = {"ndcg@10": "NDCG@10", "mse": "of squared error saved"}
FEW_TURNS = 3  # rounds that each client took part in, on average, below which little is learned


def size(lead: Mapping[str, Any]) -> str:
    """By how much, with the 95% interval.

    >>> size({"more": 0.02, "low": 0.01, "high": 0.03, "by": "ndcg@10"})
    '+0.0200 NDCG@10 [+0.0100, +0.0300]'
    """
    return f"{lead['more']:+.4f} {UNITS[lead['by']]} [{lead['low']:+.4f}, {lead['high']:+.4f}]"


def compared(name: str, lead: Mapping[str, Any], where: str) -> str:
    """Whether it beats what it is compared with, beyond chance: a sentence.

    >>> ahead = {"over": "popularity", "by": "ndcg@10", "more": 0.02, "low": 0.01, "high": 0.03}
    >>> compared("run 1", ahead, "on validation")
    'run 1 beats popularity: +0.0200 NDCG@10 [+0.0100, +0.0300] on validation.'
    """
    over = lead["over"]
    if lead["low"] > 0:
        return f"{name} beats {over}: {size(lead)} {where}."
    luck = " beyond chance" * (lead["high"] > 0)
    return f"{name} DOES NOT BEAT {over.upper()}{luck}: {size(lead)} {where}."


def advice(turns: float) -> str:
    """What to try where nothing is beaten; turns: rounds that each client took part in, on average.

    >>> advice(0.32)[:46]
    'Each client took part in 0.32 rounds on averag'
    """
    if turns < FEW_TURNS:
        return (
            f"Each client took part in {turns:.2g} rounds on average: let more take part in a "
            "round (cohort), or train for more rounds."
        )
    return "Try other learning rates, or have the best model for these data sought (fedlab best)."
