"""What the best model is worth: a table of the test beside every baseline, and a verdict.

Letters: U users, M items that a held-out one is ranked against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.data import Split, within_an_hour
from fedlab.evaluation import Unmet, at_k, gains, interval
from fedlab.evaluation import chance as luck
from fedlab.workbench.export import MEANINGS
from fedlab.workbench.runs import compared

Ranks = tuple[Tensor, Tensor]  # (U,) sampled, (U,) full
IN_WORDS = {"sampled": "sampled ranking", "full": "full ranking"}
ALIKE = "the same, all clicks alike"  # the model, without recency
FEW = 5  # clicks of a user, on average, below which little can be learned of anybody


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, its settings in words, and its figures on the test.

    metrics: hr@10, ndcg@10, full hr@10 and full ndcg@10, and of both NDCG the ends of a 95%
    interval over users, as 'ndcg@10 low' and 'ndcg@10 high'; chance has none. Of several seeds they
    are means, and 'ndcg@10 sd' is the standard deviation over seeds. gains: what each user adds to
    the NDCG, by objective.
    """

    method: str
    settings: str
    metrics: Mapping[str, float]
    gains: Mapping[str, Tensor]

    @classmethod
    def of(cls, method: str, settings: str, ranks: Sequence[Ranks], seed: int) -> "Row":
        """The line of a method with these test ranks, of one seed or several."""
        metrics: dict[str, float] = {}
        each: dict[str, Tensor] = {}
        for at, (objective, prefix) in enumerate(zip(IN_WORDS, ("", "full "), strict=True)):
            mine = [own[at] for own in ranks]
            every = torch.stack([gains(own) for own in mine])  # (seeds, U)
            each[objective] = every.mean(0)
            low, high = interval(each[objective], seed=seed)
            metrics |= at_k(torch.cat(mine), prefix=prefix)  # all have the same users
            metrics |= {f"{prefix}ndcg@10 low": low, f"{prefix}ndcg@10 high": high}
            if len(ranks) > 1:
                metrics[f"{prefix}ndcg@10 sd"] = float(every.mean(1).std())
        return cls(method, settings, metrics, each)


def chance(against: int, unmet: Unmet) -> Row:
    """What scores by chance reach on average.

    against: M of the sampled ranking. unmet: what is ranked in the full one.
    """
    metrics = luck(torch.tensor([against])) | luck(unmet.others, prefix="full ")
    return Row("chance", "", metrics, {})


@dataclass(frozen=True)
class Facts:
    """What a report tells beside the table.

    objective: sampled or full. winner: the method that was chosen. trials, pooled: how many were
    tried. left_out: which rows and users are not in the split, and why. cancelled: whether it was.
    missing: baselines that were not tried. seeds: what the figures are means of.
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
    seeds: int = 1


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
            *_habits(rows, facts),
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
    lead = {"over": "popularity", "by": "ndcg@10", "more": more, "low": low, "high": high}
    where = f"in the {IN_WORDS[facts.objective]} of the test"
    said = compared(facts.winner, lead, where)
    if low > 0:
        return [said]
    clicks = len(facts.split.train) / facts.split.train.user_count
    few = f"users have {clicks:.1f} train clicks on average: wait for more of them, or " * (
        clicks < FEW
    )
    until = " until there are more users to tell" * (high > 0)
    return [
        said,
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
        f"settings on everything. {_spread(facts.seeds)} Item kNN and the pooled methods see all "
        "data in one place."
    )


def _spread(seeds: int) -> str:
    if seeds == 1:
        return "One seed; [95%]: bootstrap over users."
    return (
        f"Figures are means over {seeds} seeds, each with models and sampled items of its own; "
        "[95%]: bootstrap over users, of their means over seeds."
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


def _habits(rows: Sequence[Row], facts: Facts) -> list[str]:
    """What the figures owe to sessions: how soon test clicks came, and what recency gains."""
    if "times" not in facts.split.train.columns:
        return []
    alike = next((row for row in rows if row.method == ALIKE), None)
    gained = "the model weighs all clicks alike, so none of its figure rests on that."
    if alike is not None:
        mine, found = _row(rows, facts.winner), []
        for objective, words in IN_WORDS.items():
            more, low, high = gap(mine, alike, objective)
            found.append(f"{more:+.4f} [{low:+.4f}, {high:+.4f}] in the {words}")
        gained = (
            f"weighing recent clicks gains {' and '.join(found)}, which rests in part on such "
            "sessions."
        )
    return [
        f"{within_an_hour(facts.split):.0%} of the test clicks came within an hour of the user's "
        f"last train click; {gained}"
    ]


def on_card(rows: Sequence[Row], facts: Facts) -> dict[str, Any]:
    """The quality of a card: the table as numbers, and how it came about."""
    return {
        "part": "test",
        "against": facts.against,
        "in words": "\n".join(
            [*verdict(rows, facts), how(facts), MEANINGS["[95%]"], *_habits(rows, facts)]
        ),
        "table": {
            row.method + " *" * (row.method == facts.winner): dict(row.metrics) for row in rows
        },
    }
