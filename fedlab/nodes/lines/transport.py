"""How bytes reach the nodes: two functions, so that any engine can carry them.

A Transport knows the names of the nodes and whether each can be reached (`nodes`), and asks some of
them a question each (`ask`). It sees bytes and no tensor, so what carries them may be anything: the
memory of this process (`Loop`), sockets (`fedlab.nodes.lines.sockets`), or an engine of others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Loop", "Lost", "Transport"]


@dataclass(frozen=True)
class Lost:
    """Stands in the place of an answer that did not come.

    Args:
        why: One line for people, such as `"did not answer within 60 s"`.

    """

    why: str


class Transport(Protocol):
    """What carries bytes between the coordinator and the nodes."""

    def nodes(self) -> Mapping[str, str]:
        """Return the names of all known nodes: "" for one in reach, otherwise why it is not."""
        ...

    def ask(self, to: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask each node its question, and yield what each answered, as answers come.

        Each node that was asked is yielded exactly once: with its answer, or with `Lost` once it is
        known to be gone or `seconds` have passed. It never raises because of what a node does.
        """
        ...


@dataclass(frozen=True)
class Loop:
    """Carries bytes within this process, one node after the other: for tests and first steps.

    Args:
        answers: For each name the node's own function from a question to an answer, such as
            `Node.answer`.

    Examples:
        >>> loop = Loop({"left": bytes.upper, "right": bytes.title})
        >>> dict(loop.ask({"left": b"who", "away": b"who"}, seconds=1))
        {'left': b'WHO', 'away': Lost(why='there is no node of this name')}

    """

    answers: Mapping[str, Callable[[bytes], bytes]]

    def nodes(self) -> Mapping[str, str]:
        """Return every name: what lives in this process is always in reach."""
        return dict.fromkeys(self.answers, "")

    def ask(self, to: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask one node after the other; `seconds` has no meaning within one process."""
        for name, question in to.items():
            answer = self.answers.get(name)
            yield name, (answer(question) if answer else Lost("there is no node of this name"))
