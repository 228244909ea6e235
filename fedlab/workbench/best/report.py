"""What the best model is worth: a table of the test beside every baseline, and a verdict.

Letters: U users, M items that a held-out one is ranked against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.data import Split
from fedlab.evaluation import Unmet, at_k, gains, interval
from fedlab.workbench.export import MEANINGS

Ranks = tuple[Tensor, Tensor]  # (U,) sampled, (U,) full
IN_WORDS = {"sampled": "sampled ranking", "full": "full ranking"}
HOUR = 3600
FEW = 5  # clicks of a user, on average, below which little can be learned of anybody


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, its settings in words, and its figures on the test.

    metrics: hr@10, ndcg@10, full hr@10 and full ndcg@10, and of both NDCG the ends of a 95%
    interval over users, as 'ndcg@10 low' and 'ndcg@10 high'; chance has none. gains: what each user
    adds to the NDCG, by objective.
    """

    method: str
    settings: str
    metrics: Mapping[str, float]
    gains: Mapping[str, Tensor]

    @classmethod
    def of(cls, method: str, settings: str, ranks: Ranks, seed: int) -> "Row":
        """The line of a method with these test ranks."""
        metrics: dict[str, float] = {}
        each = dict(zip(IN_WORDS, map(gains, ranks), strict=True))
        for prefix, rank, own in zip(("", "full "), ranks, each.values(), strict=True):
            low, high = interval(own, seed=seed)
            ends = {f"{prefix}ndcg@10 low": low, f"{prefix}ndcg@10 high": high}
            metrics |= at_k(rank, prefix=prefix) | ends
        return cls(method, settings, metrics, each)


def chance(against: int, unmet: Unmet) -> Row:
    """What scores by chance reach on average: every rank is as likely as any other.

    against: M of the sampled ranking. unmet: what is ranked in the full one.
    """
    ends = torch.arange(1, len(unmet.users) + 1) * unmet.items
    met = torch.searchsorted(unmet.met, ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    metrics: dict[str, float] = {}
    for prefix, others in (("", torch.tensor([against])), ("full ", unmet.items - met)):
        ranks = torch.arange(1, 11)[:, None].expand(-1, len(others))
        within = (ranks <= others + 1).double()
        metrics[f"{prefix}hr@10"] = float((within / (others + 1)).sum(0).mean())
        one = gains(ranks).double() * within / (others + 1)
        metrics[f"{prefix}ndcg@10"] = float(one.sum(0).mean())
    return Row("chance", "", metrics, {})


@dataclass(frozen=True)
class Facts:
    """What a report tells beside the table.

    objective: sampled or full. winner: the method that was chosen. trials, pooled: how many were
    tried. left_out: which rows and users are not in the split, and why. cancelled: whether it was.
    """

    split: Split
    objective: str
    winner: str
    against: int
    trials: int
    pooled: int
    left_out: Sequence[str]
    cancelled: bool
    missing: Sequence[str] = ()


def text(rows: Sequence[Row], facts: Facts) -> str:
    """The whole report; its first line says whether the model beats popularity."""
    return "\n".join(
        [
            *verdict(rows, facts),
            *_cancelled(facts),
            "",
            *table(rows, facts.winner),
            "",
            how(facts),
            *MEANINGS.values(),
            *_beside(rows, facts),
            *_habits(facts.split),
        ]
    )


def gap(mine: Row, other: Row, objective: str) -> tuple[float, float, float]:
    """By how much one is better in NDCG@10, and the ends of the 95% interval, paired by user."""
    more = mine.gains[objective] - other.gains[objective]
    return (float(more.mean()), *interval(more))


def verdict(rows: Sequence[Row], facts: Facts) -> list[str]:
    """Whether the model beats popularity, beyond chance; where it does not, what to try."""
    mine, popular = _row(rows, facts.winner), _row(rows, "popularity")
    more, low, high = gap(mine, popular, facts.objective)
    where = f"in the {IN_WORDS[facts.objective]} of the test"
    size = f"{more:+.4f} NDCG@10 [{low:+.4f}, {high:+.4f}] {where}"
    if low > 0:
        return [f"{facts.winner} beats popularity: {size}."]
    clicks = len(facts.split.train) / facts.split.train.user_count
    few = f"users have {clicks:.1f} train clicks on average: wait for more of them, or " * (
        clicks < FEW
    )
    chance, until = (
        " beyond chance" * (high > 0),
        " until there are more users to tell" * (high > 0),
    )
    return [
        f"{facts.winner} DOES NOT BEAT POPULARITY{chance}: {size}.",
        f"Recommend what is popular{until}. To get further, {few}name as one item what differs "
        "by size or edition only, check that ids mean the same in every row, or allow more trials.",
    ]


def _row(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.method == name)


def _cancelled(facts: Facts) -> list[str]:
    if not facts.cancelled:
        return []
    rest = f" Not tried: {', '.join(facts.missing)}." if facts.missing else ""
    return [
        f"The search was cancelled after {facts.trials} federated trials; this is the best of "
        f"them.{rest}"
    ]


def table(rows: Sequence[Row], winner: str) -> list[str]:
    """The table as lines of text; a star marks the model."""
    head = ["", "HR@10", "NDCG@10 [95%]", "full HR@10", "full NDCG@10 [95%]", "settings"]
    lines = [head]
    for row in rows:
        cells = [row.method + " *" * (row.method == winner)]
        for prefix in ("", "full "):
            cells.append(f"{row.metrics[f'{prefix}hr@10']:.4f}")
            ends = [row.metrics.get(f"{prefix}ndcg@10 {end}") for end in ("low", "high")]
            cell = f"{row.metrics[f'{prefix}ndcg@10']:.4f}"
            if None not in ends:
                cell += f" [{ends[0]:.4f}, {ends[1]:.4f}]"
            cells.append(cell)
        lines.append([*cells, row.settings])
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(cells, wide, strict=True)).rstrip() for cells in lines
    ]


def how(facts: Facts) -> str:
    """How the figures came about, in words."""
    train = facts.split.train
    clicks = sum(map(len, (train, facts.split.validation, facts.split.test)))
    timed = "times" in train.columns
    held = "last click" if timed else "click drawn at random, as there are no times,"
    left_out = "".join(f" {note}." for note in facts.left_out)
    return (
        f"{clicks:,} clicks of {train.user_count:,} users on {train.item_count:,} items.{left_out} "
        f"Each user's {held} is the test, which was read once, at the end; the one before it chose "
        f"the settings, by NDCG@10 in the {IN_WORDS[facts.objective]}: {facts.trials} federated "
        f"trials, {facts.pooled} of pooled baselines. Sampled: among {facts.against} items that "
        "the user never met; full: among all that were not met before. The figures are of models "
        "fitted to the train part; the model (*) that you have was then trained with the same "
        "settings on everything. Item kNN and the pooled methods see all data in one place."
    )


def _beside(rows: Sequence[Row], facts: Facts) -> list[str]:
    """How far the model is from the best pooled baseline, by each objective's own metric."""
    mine = _row(rows, facts.winner)
    pooled = [row for row in rows if row.method.startswith(("pooled", "item kNN"))]
    found = []
    for objective, words in IN_WORDS.items() if pooled else ():
        best = max(pooled, key=lambda row: float(row.gains[objective].mean()))
        more, low, high = gap(mine, best, objective)
        found.append(
            f"Beside the best pooled baseline in the {words}, {best.method}: {more:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]."
        )
    return found


def _habits(split: Split) -> list[str]:
    """What the figures owe to sessions: how soon the held-out clicks followed on train's last."""
    if "times" not in split.train.columns:
        return []
    last = torch.full((split.train.user_count,), -(1 << 62))
    last.scatter_reduce_(0, split.train.users, split.train.times, "amax")
    soon = (split.test.times - last[split.test.users] <= HOUR).double().mean()
    return [
        f"{float(soon):.0%} of the test clicks came within an hour of the user's last train click; "
        "what recency gains rests on such habits."
    ]


def on_card(rows: Sequence[Row], facts: Facts) -> dict[str, Any]:
    """The quality of a card: the table as numbers, and how it came about."""
    return {
        "part": "test",
        "against": facts.against,
        "in words": "\n".join([*verdict(rows, facts), how(facts), MEANINGS["[95%]"]]),
        "table": {
            row.method + " *" * (row.method == facts.winner): dict(row.metrics) for row in rows
        },
    }
