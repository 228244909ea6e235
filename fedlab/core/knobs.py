"""Knobs: what may be turned, described once, and the registry of the parts that own them.

A *part* is a frozen dataclass whose fields are knobs (`fedlab.core.parts`). `register` announces
it; from then on checks, sliders, sweeps, the command line, help and the settings JSON know it.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

# kind -> name -> class, in the order in which parts were announced
REGISTRY: dict[str, dict[str, type]] = {}
MADE_ONCE = ("experiment", "data", "partition", "model", "metric")  # kinds that stay in a run


class ParameterError(ValueError):
    """A parameter is unknown or out of range; the message names it, its value and the fix."""


class DataError(ValueError):
    """A data file or table cannot be used; the message names the place, the value and the fix."""


def require(ok: bool, name: str, value: object, fix: str) -> None:
    """Raise `ParameterError` unless `ok`; `fix` says what to write instead.

    >>> require(False, "cohort", 0, "choose 1 or more")
    Traceback (most recent call last):
    fedlab.core.knobs.ParameterError: cohort=0: choose 1 or more
    """
    if not ok:
        raise ParameterError(f"{name}={value!r}: {fix}")


@dataclass(frozen=True)
class Knob:
    """What may be turned: the one description behind checks, sliders, the command line and help.

    low, high: the range of a number. choices: those of a text; without them any text will do.
    parts: the kind of part whose registered names are the choices. many: the value is several of
    these, joined by ' + ' in their order, or 'none'. others: texts that are none of the choices are
    accepted, too. live: the knob takes effect at the next round; the others count from the next
    run. log: the slider moves by ratios. usual: the ends of the slider, unless told otherwise; by
    default low and high. group: what it is folded away with, where all knobs are shown.
    """

    low: float
    high: float
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()
    live: bool = True
    log: bool = False
    usual: tuple[float, float] | None = None
    group: str = ""
    parts: str = ""
    many: bool = False
    others: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The texts to choose from; none where only a number, or any text, will do."""
        return tuple(REGISTRY.get(self.parts, ())) if self.parts else self.choices

    def check(self, name: str, value: object, kind: type) -> None:
        """Raise `ParameterError` unless `value` is a `kind` within the range."""
        if self.many:
            return require(
                isinstance(value, str) and set(several(value)) <= set(self.options),
                name,
                value,
                f"choose none, or some of {', '.join(self.options)}, joined by ' + '",
            )
        if self.options and not self.others:
            return require(
                value in self.options, name, value, f"choose one of {', '.join(self.options)}"
            )
        if kind is str:
            return require(
                isinstance(value, str) and value != "", name, value, f"write a text: {self.meaning}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = kind is not int or isinstance(value, int)
        a_number = "a whole number" if kind is int else "a number"
        span = f"{a_number} from {self.low:g} to {self.high:g}"
        fits = number and whole and self.low <= value <= self.high  # type: ignore[operator]
        return require(fits, name, value, f"choose {span} ({self.unit or self.meaning})")


def several(text: str) -> list[str]:
    """The names in a text that joins several by ' + '; none in 'none'.

    >>> several("poison + clip"), several("none")
    (['poison', 'clip'], [])
    """
    return [] if text == "none" else text.split(" + ")


MANY = 30  # parameters, as only settings have


def knob(default: Any, *args: Any, **kwargs: Any) -> Any:
    """A dataclass field with a `Knob` beside its default."""
    return field(default=default, metadata={"knob": Knob(*args, **kwargs)})


def knobs(cls: type) -> dict[str, Knob]:
    """The knobs of a dataclass by name; none of any other class."""
    if not is_dataclass(cls):
        return {}
    return {f.name: f.metadata["knob"] for f in fields(cls) if "knob" in f.metadata}


def like(owner: type, name: str) -> Any:
    """A field with the default and the knob that another part has under this name."""
    (found,) = (f for f in fields(owner) if f.name == name)
    return field(default=found.default, metadata=found.metadata)


def known(names: list[str], given: Mapping[str, object]) -> None:
    """Raise `ParameterError` for the first name in `given` that is not one of `names`."""
    for name, value in given.items():
        if name in names:
            continue  # the search below takes 0.1 ms a name
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
        hint += "; parts of yours bring theirs when their file is read (--parts)" * (
            not near and len(names) > MANY
        )
        raise ParameterError(f"{name}={value!r}: no such parameter; {hint}")


def strict(cls: type[T]) -> type[T]:
    """Class decorator: a wrong keyword, or a value outside its range, raises `ParameterError`."""
    build: Callable[..., None] = cls.__init__

    def checked(self: object, *unnamed: object, **given: object) -> None:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        require(not unnamed, cls.__name__, unnamed, f"name what you give: {', '.join(names)}")
        known(names, given)
        for f in fields(cls):  # type: ignore[arg-type]
            if "knob" in f.metadata:
                f.metadata["knob"].check(f.name, given.get(f.name, f.default), f.type)
        build(self, **given)

    checked.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


@dataclass(frozen=True)
class Description:
    """A knob as all registered parts have it: its type, its default, and the parts that read it."""

    knob: Knob
    kind: type
    default: Any
    readers: tuple[str, ...]


# made when first asked for, cleared when a part is announced
_described: dict[str, Description] = {}


def described() -> dict[str, Description]:
    """Every knob of every registered part, by name."""
    found = _described
    if found:
        return found
    for parts in REGISTRY.values():
        for title, cls in parts.items():
            for f in fields(cls):
                if "knob" in f.metadata:
                    before = found[f.name].readers if f.name in found else ()
                    found[f.name] = Description(
                        f.metadata["knob"],
                        f.type,  # type: ignore[arg-type]
                        f.default,
                        (*before, title),
                    )
    return found


def title_of(cls: type) -> str:
    """The name of a part: its `title`, or the words of its class name.

    >>> class MeanOfHolders: ...
    >>> title_of(MeanOfHolders)
    'mean of holders'
    """
    own: str = cls.__dict__.get("title", "")
    return own or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def register(cls: type[T]) -> type[T]:
    """Announce a part: a class decorator that makes it a frozen dataclass and files it by kind.

    Raises `ParameterError` for a name that another part has, a knob without a range, a knob that
    another part describes otherwise, and a field without a default. Running a notebook's cell again
    replaces its part.
    """
    made = strict(dataclass(frozen=True, kw_only=True, eq=False)(cls))
    title, kind = title_of(made), getattr(made, "kind", "")
    require(
        bool(kind),
        "register",
        cls.__name__,
        "derive the part from Local, Stage, Aggregation, Schedule or another kind of part",
    )
    for other in REGISTRY.values():
        same = other.get(title)
        again = same is None or (same.__module__, same.__qualname__) == (
            made.__module__,
            made.__qualname__,
        )
        require(again, "register", title, f"{same} has this name; choose another")
    others = {name: found for name, found in described().items() if found.readers != (title,)}
    for f in fields(made):  # type: ignore[arg-type]
        require(
            f.default is not MISSING or f.default_factory is not MISSING,
            f"{title}.{f.name}",
            "no default",
            "give it one, so that the part can be made from settings alone",
        )
        if "knob" in f.metadata:
            _check_knob(title, f.name, f.metadata["knob"], f.type, f.default, others)
            f.metadata["knob"].check(f"{title}.{f.name}", f.default, f.type)
            require(
                kind not in MADE_ONCE or not f.metadata["knob"].live,
                f"{title}.{f.name}",
                "live",
                f"a {kind} stays while a run lasts; describe the knob with live=False",
            )
    REGISTRY.setdefault(kind, {})[title] = made
    _described.clear()
    return made


def _check_knob(
    title: str, name: str, own: Knob, kind: Any, default: Any, others: Mapping[str, Description]
) -> None:
    """Raise `ParameterError` for a knob without a range or with another description elsewhere."""
    where = f"{title}.{name}"
    require(kind in (int, float, str), where, kind, "annotate a knob as int, float or str")
    ranged = kind is str or own.low < own.high
    require(ranged, where, (own.low, own.high), "give the lowest and the highest value, growing")
    if name in others:
        other = others[name]
        same = (other.knob, other.kind, other.default) == (own, kind, default)
        require(
            same,
            where,
            default,
            f"{', '.join(other.readers)} describes this knob otherwise; choose another name, or "
            "the same description",
        )


def made_with(thing: object, name: str, other: str) -> bool:
    """Whether the class that gives a thing its method `name` gives it `other`, too.

    Whoever writes one of the two anew has said nothing about the other.
    """
    owners = [kind for kind in type(thing).__mro__ if {name, other} & vars(kind).keys()]
    return bool(owners) and {name, other} <= vars(owners[0]).keys()
