"""The settings of a run: the knobs that are turned, whichever part reads them, and their JSON.

    {"fedlab": 2, "settings": {"rounds": 40, "cohort": 64, ...}}

Settings that are left out stay as they are. A wrong one is named, and nothing is taken.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedlab.core.knobs import described, known, require

VERSION = 2  # of this format; an older reader refuses newer ones


class Settings(Mapping[str, Any]):
    """Knobs of all registered parts by name: those that were turned, over the defaults.

    Raises `ParameterError` for a name that no part has and for a value outside its range.

    >>> from fedlab import Settings
    >>> settings = Settings(cohort=8, local_lr=0.5)
    >>> settings.cohort, settings.rounds
    (8, 40)
    >>> settings.replace(rounds=3)
    Settings(cohort=8, rounds=3)
    """

    def __init__(self, **turned: Any) -> None:
        """Check the names and values; a value equal to its default is not turned."""
        found = described()
        known(list(found), turned)
        for name, value in turned.items():
            found[name].knob.check(name, value, found[name].kind)
        self.turned = {
            name: value for name, value in turned.items() if value != found[name].default
        }

    def __getattr__(self, name: str) -> Any:
        """The value of a knob, turned or usual."""
        if name == "turned" or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"no part has a knob {name!r}") from error

    def __getitem__(self, name: str) -> Any:
        return self.turned[name] if name in self.turned else described()[name].default

    def __contains__(self, name: object) -> bool:
        return name in self.turned

    def __iter__(self) -> Iterator[str]:
        return iter(self.turned)

    def __len__(self) -> int:
        return len(self.turned)

    def __hash__(self) -> int:
        return hash(frozenset(self.turned.items()))

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{n}={v!r}' for n, v in self.turned.items())})"

    def replace(self, **changes: Any) -> "Settings":
        """The settings with some knobs turned, or turned back."""
        return Settings(**self.turned | changes)

    def without(self, names: Iterable[str]) -> "Settings":
        """The settings with these knobs as usual."""
        left_out = set(names)
        return Settings(**{name: value for name, value in self.items() if name not in left_out})


def write_settings(values: Mapping[str, Any]) -> str:
    """Settings as JSON, to copy, keep or paste back."""
    return json.dumps({"fedlab": VERSION, "settings": dict(values)}, indent=2)


def read_settings(text: str, base: Settings) -> Settings:
    """`base` with what the text sets; raises `ParameterError` that names the field and the fix."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found = text[:40]
        reason = f"not JSON ({error.msg} in line {error.lineno}); paste what `settings` shows"
        require(False, "settings", found, reason)
    whole = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    require(whole, "settings", found, f'write {{"fedlab": {VERSION}, "settings": {{...}}}}')
    require(
        found.get("fedlab") == VERSION,
        "fedlab",
        found.get("fedlab"),
        f"these settings are of another version; this one reads version {VERSION}",
    )
    return base.replace(**found["settings"])


def parsed(name: str, text: str) -> Any:
    """The value that a text means for a setting: a number, or the text itself, checked later."""
    found = described().get(name)
    try:
        return found.kind(text) if found and found.kind in (int, float) else text
    except ValueError:
        return text


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all of them."""
    if not settings:
        return []
    names = dict.fromkeys(name for each in settings for name in each)
    return [
        name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)
    ]
