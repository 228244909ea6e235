"""Trees of parameters, keyed randomness, checked knobs: what every other file stands on.

A *Tree* maps names to tensors. Axis 0 of a parameter is its **rows**: one per item, one per user,
or a single one for an ordinary weight. A client works on the rows it touches, so what a cohort
sends back is a `Rows` for each name: all clients' rows in one tensor, with the row id and the
client beside each.

Letters: N clients in all, C in a cohort, S local steps, B examples a step, D dimensions, R rows
touched.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


class ParameterError(ValueError):
    """A parameter is unknown or out of range; the message names it, its value and the fix."""


def require(ok: bool, name: str, value: object, fix: str) -> None:
    """Raise `ParameterError` unless `ok`; `fix` says what to write instead."""
    if not ok:
        raise ParameterError(f"{name}={value!r}: {fix}")


@dataclass(frozen=True)
class Knob:
    """What may be turned: the one description behind checks, sliders, the command line and help.

    low, high: the range of a number. choices: of a text; without them any text will do. `live`
    knobs take effect at the next round, the others at the next run. log: the slider moves by
    ratios. usual: where it ends, unless told. group: what it is folded away with, where all knobs
    are shown.
    """

    low: float
    high: float
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()
    live: bool = True
    log: bool = False
    usual: tuple[float, float] = (0, 1)
    group: str = ""

    def check(self, name: str, value: object, kind: type) -> None:
        """Raise `ParameterError` unless `value` is a `kind` within the range."""
        if self.choices:
            return require(value in self.choices, name, value,
                           f"choose one of {', '.join(self.choices)}")
        if kind is str:
            return require(isinstance(value, str) and value != "", name, value,
                           f"write a text: {self.meaning}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = kind is not int or isinstance(value, int)
        span = f"choose {'a whole number' if kind is int else 'a number'} from {self.low:g} to {self.high:g}"
        fits = number and whole and self.low <= value <= self.high  # type: ignore[operator]
        return require(fits, name, value, f"{span} ({self.unit or self.meaning})")


def knob(default: Any, *args: Any, **kwargs: Any) -> Any:
    """A dataclass field with a `Knob` beside its default."""
    return field(default=default, metadata={"knob": Knob(*args, **kwargs)})


def knobs(cls: type) -> dict[str, Knob]:
    """The knobs of a dataclass by name."""
    return {f.name: f.metadata["knob"] for f in fields(cls) if "knob" in f.metadata}


def known(names: list[str], given: Mapping[str, object]) -> None:
    """Raise `ParameterError` for the first name in `given` that is not one of `names`."""
    for name, value in given.items():
        if name in names:
            continue                                         # the search below takes 0.1 ms a name
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
        raise ParameterError(f"{name}={value!r}: no such parameter; {hint}")


def strict(cls: type[T]) -> type[T]:
    """Class decorator.

    Unknown keywords and values outside their knob's range raise `ParameterError`.
    """
    build: Callable[..., None] = cls.__init__

    def checked(self: object, **given: object) -> None:
        known([f.name for f in fields(cls)], given)  # type: ignore[arg-type]
        build(self, **given)
        for f in fields(cls):  # type: ignore[arg-type]
            if "knob" in f.metadata:
                f.metadata["knob"].check(f.name, getattr(self, f.name), f.type)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls
