"""Local training by gradient steps.

FedAvg's clients, FedProx with `proximal`, FedSGD with one step.

Sources: McMahan et al. 2017, algorithm 1, ClientUpdate; Li et al. 2020, eq. 2 (FedProx). How it
runs fast is in `fedlab.engine`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fedlab.core import Local, RoundContext, Update, register
from fedlab.engine import LocalSettings, updates


@register
class SGD(LocalSettings, Local):
    """Epochs of SGD or AdamW over each client's own examples, from the server's parameters."""

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Negatives go with clicks."""
        return () if facts.get("negatives") else ("negatives",)

    def work(self, context: RoundContext, cohort: Tensor) -> Tensor:
        """(C,) examples that each client goes through: clicks come with their negatives."""
        drawn = 1 + self.negatives * (context.data.task == "clicks")
        counts: Tensor = context.data.counts[cohort]
        return counts * self.local_epochs * drawn

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Each client's delta, chunk by chunk."""
        return updates(context.model, context.data, context.params, cohort, self,
                       seed=context.seed, number=context.number)
