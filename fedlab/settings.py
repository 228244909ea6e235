"""All settings of a run as text: one JSON that the workbench, the command line and a colleague read alike.

    {"fedlab": 1, "settings": {"rounds": 40, "cohort": 64, ...}}

Settings that are left out stay as they are. A wrong one is named, and nothing is taken.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from fedlab.core import Config, require

VERSION = 1     # of this format; a newer reader may know older ones, an older reader refuses newer ones
C = TypeVar("C", bound=Config)


def write(config: Config) -> str:
    """The settings as JSON, to copy, keep or paste back."""
    return json.dumps({"fedlab": VERSION, "settings": asdict(config)}, indent=2)


def read(text: str, base: C) -> C:
    """`base` with what the text sets. Raises `ParameterError` that names the field, its value and the fix."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found, reason = text[:40], f"not JSON ({error.msg} in line {error.lineno}); paste what `settings` shows"
        require(False, "settings", found, reason)
    whole = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    require(whole, "settings", found, 'write {"fedlab": 1, "settings": {...}}')
    require(found.get("fedlab") == VERSION, "fedlab", found.get("fedlab"),
            f"these settings are of another version; this one reads version {VERSION}")
    return replace(base, **found["settings"])


def parsed(config: Config, name: str, text: str) -> Any:
    """The value that a text means for a setting: a number, or the text itself. `Config` checks it later."""
    kind = {f.name: f.type for f in fields(config)}.get(name, str)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all of them."""
    if not settings:
        return []
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]
