"""The steps of a round as plain data: arrows, lines of equal loss, what the server takes.

Letters: C clients.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.aggregation import NoDeltaError, WeightedMean
from fedlab.attacks import Poison
from fedlab.core import Key, RoundContext, Tree, Update, to
from fedlab.privacy import spends
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.inside.plane import MOST, SHOWN, Plane, landscape, plane, projected, sampled


def steps(
    made: Experiment, pipe: Any, context: RoundContext, sent: Update, params: Tree
) -> dict[str, Any]:
    """The arrows of all who start in a round, over lines of equal loss.

    pipe: the parts as they act (`fedlab.algorithms.pipeline`). sent: what leaves the clients.
    params: at the start of the round. why: instead of all, where there is nothing to be shown.
    arrows, mean: where steps and their weighted mean end. taken: where the delta of the aggregation
    ends, if that is another rule; None for the mean, and where stages work on the sum. out: clients
    whose arrows leave the picture, which goes `reach` to all four sides.
    """
    server = {n: value for n, (value, _) in context.asked.items() if n in made.model.rows}
    server = to(server, "cpu")
    weights = torch.ones_like(sent.weights) if pipe.equal else sent.weights
    found = plane(sent, server, weights)
    if found is None:
        return {
            "round": context.number,
            "why": "what the clients send moves nothing, or is not finite",
        }
    taken = _taken(pipe, context, sent, server, found)
    far = found.steps.abs().amax(1)
    ends = [found.mean] if taken is None else [found.mean, taken]
    reach = SHOWN * max(float(far.quantile(MOST)), *(float(end.abs().max()) for end in ends))
    return {
        "round": context.number,
        "cohort": found.cohort.tolist(),
        "of": found.of,
        "out": int((far > reach).sum()),
        "arrows": [_short(each) for each in found.steps],
        "mean": _short(found.mean),
        "taken": taken if taken is None else _short(taken),
        "rule": pipe.aggregate.name,
        "agreement": float(f"{found.agreement:.3g}"),
        "held": float(f"{found.held:.3g}"),
        "long": float(f"{float(found.lengths.median()):.3g}"),
        "drawn": spends(made.parts) and made.settings.teaching_seed < 0,
        "reach": reach,
        "lines": _lines(made, context, found, weights[: len(found.cohort)], params, reach),
        "liars": [
            n for p in pipe.uplink if isinstance(p, Poison) for n in p.held(context).tolist()
        ],
    }


def _taken(
    pipe: Any, context: RoundContext, sent: Update, server: Mapping[str, Tensor], found: Plane
) -> Tensor | None:
    """Where the delta (2,) of an aggregation ends in the plane; None for the mean itself."""
    if isinstance(pipe.aggregate, WeightedMean) or pipe.stages("server", "sum"):
        return None
    update = replace(sent, weights=torch.ones_like(sent.weights)) if pipe.equal else sent
    try:
        delta = pipe.aggregate.delta([update], pipe.aggregate.given(context))
    except NoDeltaError:
        return None
    return projected(delta, server, found)


def _lines(
    made: Experiment,
    context: RoundContext,
    found: Plane,
    weights: Tensor,
    params: Tree,
    reach: float,
) -> list[list[list[float]]]:
    """Lines of equal loss; none where the model learns lists, which have no loss by example."""
    if made.model.list_loss:
        return []
    key = Key(context.seed, "landscape", context.number)
    examples = made.source.draw(found.cohort, 1, context.settings.negatives, key)
    some = sampled(examples, found.cohort, weights, key)
    return landscape(made.model, params, some, found, reach)


def _short(place: Tensor) -> list[float]:
    return [float(f"{v:.4g}") for v in place.tolist()]
