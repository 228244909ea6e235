"""Parameters of Rounds that share large tables: a Round does not change, and no table is copied.

A step that moves a few rows of a large table would have to copy the table, since the Round before
keeps the old one. Here the step moves the rows in place, and the Round before notes what they were:
its table is put together again when somebody asks for it. Whoever has asked for a table of the
newest Round has it for good, and the next step makes a copy.

Letters: R rows moved. Source: Baker 1991, "Shallow binding makes functional arrays fast".
"""

import os
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor

from fedlab.core.tree import Rows, Tree, move_rows, moved

LARGE = 1 << 20  # bytes from which a table is not copied
LOCK = threading.RLock()  # a view may look at a Round while the next one is made

if hasattr(os, "register_at_fork"):  # a forked process has no thread that would let go of it
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )


class _Behind:
    """A table from which the next Round's differs in the rows ids (R,), once values (R, ...)."""

    def __init__(self, after: "Journal", ids: Tensor, values: Tensor) -> None:
        self.after, self.ids, self.values = after, ids, values


class Journal(dict[str, Tensor]):
    """A Tree whose tables may be noted as what they were before the next Round's."""

    def __init__(self, tree: Tree) -> None:
        """Start with these tensors, which nobody else holds."""
        super().__init__(tree)
        self.known: set[str] = set()  # names of tensors that somebody else holds
        # name -> notes since a copy that earlier Rounds have, as long as somebody keeps these
        self.noted: dict[str, WeakSet[_Behind]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, which from now on does not change."""
        with LOCK:
            self.known.add(name)
            return self._restored(name)

    def _restored(self, name: str) -> Tensor:
        """The tensor; put together from the nearest later Round that has it whole."""
        steps, here = list[_Behind](), self
        while isinstance(value := dict.__getitem__(here, name), _Behind):
            steps.append(value)
            here = value.after
        if steps:
            value = value.clone()
            for step in reversed(steps):
                value[step.ids] = step.values
            dict.__setitem__(self, name, value)
        return value

    def _noted(self, name: str, value: Any) -> None:
        dict.__setitem__(self, name, value)

    @classmethod
    def of(cls, tree: Tree) -> "Journal":
        """A Tree as it is, or one of tensors that others hold."""
        if isinstance(tree, Journal):
            return tree
        made = cls(tree)
        made.known |= tree.keys()
        return made

    def raw(self) -> Tree:
        """The tensors, for who does not keep them: nobody has asked for them then."""
        with LOCK:
            return {name: self._restored(name) for name in self}

    def holds(self, tree: Tree) -> bool:
        """Whether these are the tensors of another Tree, one by one."""
        mine = self.raw()
        return mine.keys() == tree.keys() and all(mine[n] is value for n, value in tree.items())

    def stepped(self, changes: "dict[str, tuple[Tensor | Rows, float]]") -> "Journal":
        """The Tree after a step of `rate` times `delta` for some names: (delta, rate).

        Rows of a large table, each of them once, are moved in place where nobody has asked for it.
        Deltas are used up: the memory of a whole one is that of the parameter from now on.
        """
        with LOCK:
            after = Journal(self.raw())
            after.known |= self.known - changes.keys()
            after.noted |= self.noted
            for name, (delta, rate) in changes.items():
                value = dict.__getitem__(after, name)
                notes = after.noted.setdefault(name, WeakSet())
                known = name in self.known or not _in_place(value, delta)
                rows = sum(len(note.ids) for note in notes)
                if not known and isinstance(delta, Rows) and rows + len(delta.ids) < len(value):
                    note = _Behind(after, delta.ids, value.index_select(0, delta.ids))
                    self._noted(name, note)
                    notes.add(note)
                    move_rows(value, delta, rate)  # noted before: Ctrl-C may come in between
                else:
                    dict.__setitem__(after, name, moved(value, delta, rate, used_up=True))
                    after.noted[name] = WeakSet()
        return after

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of a name, or `default`."""
        return self[name] if name in self.keys() else default

    def __iter__(self) -> Iterator[str]:  # so that dict(journal) asks for each tensor
        return super().__iter__()

    def values(self) -> Any:
        """All tensors."""
        return dict(self).values()

    def items(self) -> Any:
        """All names and tensors."""
        return dict(self).items()

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(dict(self))

    def _fixed(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `TypeError`: a Round's parameters stay what they are."""
        raise TypeError("parameters of a Round do not change; take a copy, dict(round.params)")

    __setitem__ = __delitem__ = __ior__ = _fixed
    setdefault = update = pop = popitem = clear = _fixed

    def copy(self) -> Tree:
        """An ordinary dict of the same tensors."""
        return dict(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _in_place(value: Tensor, delta: Tensor | Rows) -> bool:
    """Whether a table is large and few of its rows move."""
    return (
        isinstance(delta, Rows)
        and isinstance(value, Tensor)
        and value.nbytes >= LARGE
        and 2 * len(delta.ids) < len(value)
    )


def within(tree: Tree) -> Tree:
    """The parameters of a Round for the loop itself, which keeps them for one round."""
    return tree.raw() if isinstance(tree, Journal) else tree
