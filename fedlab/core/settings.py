"""The settings of a run: the knobs that are turned, whichever part reads them, and their JSON.

    {"fedlab": 2, "settings": {"rounds": 40, "cohort": 64, ...}}

Settings that are left out stay as they are, say as in a preset. What this package writes says
`"whole": true`: all knobs that are turned are there, and the others have their defaults. A wrong
one is named, and nothing is taken. The text may come from anywhere: whatever it holds, the answer
is Settings or one sentence.
"""

import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedlab.core.knobs import ParameterError, described, known, require

VERSION = 2  # of this format; an older reader refuses newer ones
LONGEST = 1_000_000  # characters of settings as JSON; those of all knobs take a few thousand
LONGEST_NAME, LONGEST_TEXT = 80, 1000  # characters of a setting's name, and of a text as its value
LARGEST = 2**63  # every whole number is smaller
UNTIDY = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


LINE = re.compile(r"\s*fedlab=")
WORD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)(?=\s|$)')


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

    def __init__(self, /, **turned: Any) -> None:
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

    def replace(self, /, **changes: Any) -> "Settings":
        """The settings with some knobs turned, or turned back."""
        return Settings(**self.turned | changes)

    def without(self, names: Iterable[str]) -> "Settings":
        """The settings with these knobs as usual."""
        left_out = set(names)
        return Settings(**{name: value for name, value in self.items() if name not in left_out})


def write_settings(values: Mapping[str, Any]) -> str:
    """Settings as JSON, to copy, keep or paste back: they are the same wherever they are read."""
    return json.dumps({"fedlab": VERSION, "whole": True, "settings": dict(values)}, indent=2)


def settings_line(values: Mapping[str, Any]) -> str:
    """Settings as a line, to send or to put behind an address; `read_settings` takes it, too.

    >>> settings_line(Settings(cohort=8, uplink="clip + gaussian noise"))
    'fedlab=2 cohort=8 uplink="clip + gaussian noise"'
    """
    return " ".join(f"{n}={json.dumps(v)}" for n, v in {"fedlab": VERSION, **values}.items())


def read_settings(text: str, base: Settings) -> Settings:
    """`base` with what the text sets, the defaults where that is whole, as a line is.

    Raises `ParameterError` that names the field and the fix.

    >>> read_settings('{"fedlab": 2, "settings": {"cohort": 8}}', Settings(rounds=3))
    Settings(rounds=3, cohort=8)
    >>> read_settings('fedlab=2 cohort=8 local="scaffold"', Settings(rounds=3))
    Settings(cohort=8, local='scaffold')
    """
    require(isinstance(text, str), "settings", type(text).__name__, "give JSON as a text")
    fix = f"choose a text of at most {LONGEST} characters"
    require(len(text) <= LONGEST, "settings", f"{len(text)} characters", fix)
    found = _of_line(text) if LINE.match(text) else _loaded(text)
    if not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
        _refuse("settings", found, f'write {{"fedlab": {VERSION}, "settings": {{...}}}}')
    edition = found.get("fedlab")
    if isinstance(edition, bool) or edition != VERSION:
        fix = f"these settings are of another version; this one reads version {VERSION}"
        _refuse("fedlab", edition, fix)
    whole = found.get("whole", False)
    require(isinstance(whole, bool), "whole", whole, "write true, or leave it out")
    for name, value in found["settings"].items():
        if not tidy(name, LONGEST_NAME):
            _refuse("settings", name, "no such parameter; look at what `settings` shows")
        number = isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST)
        if not (number or (isinstance(value, str) and tidy(value))):
            _refuse(name, value, "write a number or a short text")
    return (Settings() if whole else base).replace(**found["settings"])


def read_settings_file(path: str | Path, base: Settings) -> Settings:
    """`base` with what a file of settings sets.

    Raises `ParameterError` for a file that is missing, too large or not text, and for wrong
    settings as `read_settings` does; OSError when the file cannot be read.
    """
    file = Path(path)
    fix = "no such file; name one, or leave it out for the first preset"
    require("\0" not in str(path) and file.is_file(), "settings", str(path), fix)
    with file.open("rb") as opened:
        found = opened.read(LONGEST + 1)
    fix = f"choose a file of at most {LONGEST} bytes"
    require(len(found) <= LONGEST, "settings", str(path), fix)
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParameterError(
            f"settings={str(path)!r}: byte {error.start} is not UTF-8; save it as UTF-8 text"
        ) from error
    return read_settings(text, base)


def tidy(text: str, longest: int = LONGEST_TEXT) -> bool:
    r"""Whether a text is no longer than this and holds no control character or half a character.

    >>> tidy("clip + gaussian noise"), tidy("two\nlines"), tidy("x" * 9, 8)
    (True, False, False)
    """
    return len(text) <= longest and not UNTIDY.search(text)


def shown(value: object) -> str:
    """A value as messages show it: short, however long or deep it is.

    >>> shown([1, "a"]), shown([[[[[[[[1]]]]]]]])
    ("[1, 'a']", '[[[[[[[...]]]]]]]')
    """
    return SHORT.repr(value)


def _refuse(name: str, value: object, fix: str) -> NoReturn:
    raise ParameterError(f"{name}={shown(value)}: {fix}")


def _of_line(text: str) -> dict[str, Any]:
    """What a line of settings holds, in the form of a JSON text; `ParameterError` for another."""
    words = WORD.findall(text)
    rest = WORD.sub("", text).strip()
    require(not rest, "settings", rest, 'write name=value, texts in quotes, as in local="sgd"')
    found = _once([(name, _loaded(value)) for name, value in words])
    return {"fedlab": found.pop("fedlab"), "whole": True, "settings": found}


def _loaded(text: str) -> Any:
    """What a JSON text holds; `ParameterError` where that cannot be said, or is said twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ParameterError:
        raise
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} in line {error.lineno})"
    except RecursionError:
        reason = "nested too deep"
    except ValueError:
        reason = "it holds a whole number of thousands of digits"
    return _refuse("settings", text, f"{reason}; paste what `settings` shows")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; `ParameterError` for a name that stands there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _refuse("settings", name, "this name stands there twice; keep one of them")
        found[name] = value
    return found


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
