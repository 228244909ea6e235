"""An experiment over nodes: the same settings and Rounds; data and private rows are elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedlab.core import (
    Local,
    ParameterError,
    Part,
    Recipe,
    Round,
    Settings,
    check_read,
    knobs,
    measured,
    require,
)
from fedlab.nodes import Coordinator, Roster, Transport
from fedlab.privacy import Ledger, spends
from fedlab.workbench.experiment import Experiment, turning
from fedlab.workbench.runner import Live

# knobs of which nodes decide, who have the data
THEIRS = ("data", "partition", "personal", "train_on", "against", "full_ranking", "device")


def over_nodes(
    line: Transport, roster: Roster, *, seconds: float = 60.0, quorum: float = 0.5
) -> Live:
    """A stream as `fedlab.workbench.stream`, over nodes.

    line, roster: how they are reached, and who they are. seconds, quorum: as `Coordinator` has
    them. The stream raises `ParameterError` for settings that need the data.
    """

    def stream(
        ask: Callable[[], Settings | Mapping[str, Any]],
        start: Round | None = None,
        ledger: Ledger | None = None,
    ) -> Iterator[Round]:
        first = Settings(**ask())
        made = Experiment(first)
        check_read(made.parts, made.facts, first)
        check_far(made, roster)
        far = Coordinator(
            line,
            made.recipe,
            local=made.local,
            uplink=made.uplink,
            seconds=seconds,
            quorum=quorum,
            roster=roster,
        )
        rounds = far.rounds(
            turning(made, ask, len(roster)),
            aggregate=made.aggregation,
            schedule=made.schedule,
            start=start,
            ledger=ledger if first.teaching_seed < 0 and spends(made.parts) else None,
        )
        every = made.choices.measure_every
        return made.stopped(measured(rounds, far.measure, every), start)

    return stream


def check_far(made: Experiment, roster: Roster) -> None:
    """Raise `ParameterError` for settings that need the data, which are on nodes."""
    partition = {n for part in made.parts if part.kind == "partition" for n in knobs(type(part))}
    for name in (*THEIRS, *sorted(partition)):
        fix = "nodes have the data, and say what they are; leave it as it was"
        require(name not in made.settings, name, made.settings[name], fix)
    fix = "over nodes each item is learned by itself; leave it as it was"
    require("loss" not in made.settings, "loss", made.settings.loss, fix)
    task = made.choices.task
    require(task == roster.task, "task", task, f"the nodes have {roster.task}")
    for part in made.parts:
        needs = type(part).ready is not Part.ready
        needs |= isinstance(part, Recipe) and not _plain(part, Recipe, ("source", "score"))
        needs |= isinstance(part, Local) and not _plain(part, Local, ("source", "learns", "score"))
        if needs:
            raise ParameterError(
                f"{part.kind}={part.name!r}: it needs the data, which are on nodes; choose another"
            )


def _plain(part: Part, kind: type[Part], names: tuple[str, ...]) -> bool:
    """Whether a part has these methods as all of its kind have them."""
    return all(getattr(type(part), name) is getattr(kind, name) for name in names)
