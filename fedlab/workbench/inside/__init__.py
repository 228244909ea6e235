"""The inside of a round: who takes part, where items lie, how clients step, what one of them sends.

A `Looker` works all of it out as plain data, from a Round and the knobs as they stand; a `Watcher`
does so beside a run that trains.
"""

from fedlab.workbench.inside.look import Looker
from fedlab.workbench.inside.watcher import Look, Watcher

__all__ = ["Look", "Looker", "Watcher"]
