"""Settings and messages that were made up or spoiled: how many of them end in a traceback.

    python benchmarks/fuzzing.py [--quick]

settings_fuzz: texts that were read as settings, half of them as files by the command line, half in
the paste box of a workbench; three in four are valid ones that were spoiled (bytes cut, doubled or
overwritten, values and names exchanged), the others are made up. settings_fuzz_tracebacks: how many
ended in anything but settings or one `ParameterError`, or were taken by half. message_fuzz,
message_fuzz_tracebacks: the same of messages to a workbench, as a browser would send them. All
of it is drawn from seed 0.
"""

import json
import os
import random
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import entry, is_quick, record

from fedlab.__main__ import _check_asked, _settings, _unread, _words
from fedlab.core import ParameterError, Settings, described, read_settings
from fedlab.data import DataError
from fedlab.workbench import PRESETS, Workbench, better, stream
from fedlab.workbench.view import COMMANDS

SETTINGS, MESSAGES = 2000, 2000  # of each of the two ways, and in all
ODD = (
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "",
    "none", "self", "\0", "\ud800", "a\nb", "\u202e", "x" * 2000, "=1+1", "../..", "clip + clip",
    [], {}, [[]], {"a": {}}, ["loss"], [1, "a", None], {"cohort": 3}, {"cohort": "1, 2"},
)  # fmt: skip
PIECES = ('{"', '":', "}", "[" * 30, "]", "9" * 50, "NaN", "-", "\\ud800", "\\u0000", ",", "e999")
WHOLE = (
    "", "null", "[" * 100_000, '{"a":' * 50_000, '{"fedlab": 2, "settings": ' + "9" * 5000 + "}",
    '{"fedlab": 2, "settings": {"self": 1}}',
    '{"fedlab": 2, "settings": {"cohort": 5, "cohort": 6}}',
    '{"fedlab": 2, "settings": {"data": "' + "x" * 1_100_000 + '"}}', "\ufeff{}", "\0" * 99,
)  # fmt: skip


def value(draw: random.Random, depth: int = 3) -> Any:
    """Some JSON, or nearly."""
    if depth and draw.random() < 0.2:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if depth and draw.random() < 0.2:
        return {name(draw): value(draw, depth - 1) for _ in range(draw.randrange(4))}
    if draw.random() < 0.3:
        return draw.choice((draw.randint(-(10**9), 10**9), draw.gauss(0, 1e3), letters(draw)))
    return draw.choice(ODD)


def letters(draw: random.Random) -> str:
    """A text of any characters."""
    return "".join(
        chr(draw.choice((draw.randrange(128), draw.randrange(0xD7FF)))) for _ in range(9)
    )


def name(draw: random.Random) -> str:
    """The name of a setting, or nearly, or something else."""
    found = draw.choice([*described(), "self", "settings", "fedlab", letters(draw)])
    return found if draw.random() < 0.8 else found[:-1] + draw.choice("x_ ")


def fitting(draw: random.Random, known: str) -> Any:
    """A value that the setting of this name takes."""
    about = described()[known]
    if about.kind is str:
        return draw.choice([*about.knob.options, about.default])
    found = draw.uniform(about.knob.low, min(about.knob.high, 1e6))
    return round(found) if about.kind is int else found


def text(draw: random.Random) -> str:
    """Settings as JSON that were made up, or valid ones that were spoiled."""
    luck = draw.random()
    if luck < 0.02:
        return draw.choice(WHOLE)
    if luck < 0.25:
        made = value(draw) if draw.random() < 0.3 else {name(draw): value(draw) for _ in range(3)}
        return json.dumps({"fedlab": draw.choice((2, 2, 2, value(draw))), "settings": made})
    whole = {"fedlab": 2, "settings": dict(draw.choice([*PRESETS.values()]))}
    if luck < 0.6:
        for _ in range(draw.randint(1, 3)):
            known = draw.choice([*described()])
            whole["settings"][known] = fitting(draw, known)
        if luck < 0.4:
            whole["settings"][name(draw)] = value(draw)
        return json.dumps(whole)
    found = json.dumps(whole)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(found) + 1)
        end = min(len(found), start + draw.randrange(8))
        new = draw.choice((draw.choice(PIECES), found[start:end] * 2, "", letters(draw)))
        found = found[:start] + new + found[end:]
    return found


def spoiled(draw: random.Random, found: bytes) -> bytes:
    """Bytes of a file, one in four of them with bits that are other ones."""
    out = bytearray(found)
    for _ in range(draw.randint(1, 3) if out and draw.random() < 0.25 else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def message(draw: random.Random) -> Any:
    """What a browser might send, and what it would not."""
    luck = draw.random()
    if luck < 0.15:
        return value(draw)
    if luck < 0.45:
        names = ("values", "charts", "spec", "table", "layout", "_esm", "x")
        state = {draw.choice(names): value(draw) for _ in range(draw.randint(1, 2))}
        if draw.random() < 0.5:
            state["values"] = {name(draw): value(draw) for _ in range(draw.randint(0, 2))}
            known = draw.choice([*described()])
            state["values"][known] = fitting(draw, known)
        return {"method": "update", "state": draw.choice((state, state, value(draw)))}
    known = {str: letters(draw), bool: True, int: draw.randint(-1, 300), dict: {name(draw): "1, x"}}
    command = draw.choice([c for c in COMMANDS if c not in ("start", "step")])  # these would train
    given = [known[kind] for kind in COMMANDS[command].values()]
    for place in range(len(given)):
        given[place] = value(draw) if draw.random() < 0.4 else given[place]
    if draw.random() < 0.3:
        given = draw.choice((given[1:], [*given, value(draw)], value(draw)))
    content = {"command": draw.choice((command, command, command, value(draw))), "given": given}
    return {"method": draw.choice(("custom", "custom", "custom", value(draw))), "content": content}


def ends_badly(call: Callable[[], None], about: object) -> bool:
    """Whether a call ends in anything but its end or one of the errors that users are told."""
    try:
        call()
    except (ParameterError, DataError, OSError) as error:
        lines = str(error).splitlines()
        return len(lines) != 1 or len(lines[0]) > 5000
    except Exception:  # noqa: BLE001 - that is what is counted
        print(f"{about!r:.300}")
        traceback.print_exc()
        return True
    return False


def read_file(file: Path) -> None:
    """What `python -m fedlab run FILE` does before it trains."""
    base, asked = _settings(_words().parse_args(["run", str(file)]))
    _check_asked(base, asked, [base.without(_unread(base))])


def paste(bench: Workbench, pasted: str) -> None:
    """Paste a text into the box; all of it must be taken, or nothing."""
    before = bench.session.settings
    bench._handle_msg(
        {
            "content": {
                "data": {"method": "custom", "content": {"command": "settings", "given": [pasted]}}
            },
            "buffers": [],
        }
    )
    taken, said = before, ""
    try:
        taken = read_settings(pasted, Settings())
    except ParameterError as error:
        said = str(error)
    assert (bench.session.settings, bench.notice) == (taken, said), bench.notice
    bench.session.settings = before


def tell(bench: Workbench, data: Any) -> None:
    """Send a message; whatever it is, the workbench is whole afterwards."""
    bench._handle_msg({"content": {"data": data}, "buffers": []})
    settings = bench.session.settings
    assert settings == Settings(**settings)
    assert bench.values == {knob["name"]: settings[knob["name"]] for knob in bench.spec["knobs"]}
    assert len(bench.notice) < 5000
    json.dumps(bench.get_state(["values", "charts", "table", "picture", "heat", "notice"]))


def settings_fuzz(count: int) -> tuple[int, int]:
    """(texts read, tracebacks) of the command line and of the paste box."""
    draw, bad = random.Random(0), 0
    bench = Workbench(stream, Settings(), metrics=better())
    for _ in range(count):
        Path("settings.json").write_bytes(
            spoiled(draw, found := text(draw).encode(errors="replace"))
        )
        bad += ends_badly(lambda: read_file(Path("settings.json")), found)
        pasted = text(draw)
        bad += ends_badly(lambda pasted=pasted: paste(bench, pasted), pasted)
    bench.close()
    return 2 * count, bad


def message_fuzz(count: int) -> tuple[int, int]:
    """(messages sent, tracebacks)."""
    draw, bad = random.Random(1), 0
    bench = Workbench(stream, Settings(), metrics=better(), folder="runs")
    for _ in range(count):
        data = message(draw)
        bad += ends_badly(lambda data=data: tell(bench, data), data)
        bench.session.runner.stop()
    bench.close()
    return count, bad


def main(quick: bool) -> None:
    """Read, send, count and record."""
    measured, share = {}, 20 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # whatever is written goes there
        for title, (tried, bad) in {
            "settings_fuzz": settings_fuzz(SETTINGS // share),
            "message_fuzz": message_fuzz(MESSAGES // share),
        }.items():
            note = "made up or spoiled, seed 0"
            measured[title] = entry(tried, "tries", None, higher=True, seeds=1, note=note)
            measured[f"{title}_tracebacks"] = entry(
                bad, "tracebacks", 0, higher=False, seeds=1, note=f"of {tried}"
            )
        os.chdir(Path(__file__).parent)
    record("reliability", measured, quick)


if __name__ == "__main__":
    main(is_quick())
