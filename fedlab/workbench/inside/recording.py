"""A run as a page that replays without Python: its charts, and looks into some of its rounds.

The page is one file: the view's own modules, what the view was shown, and a model that plays it.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from fedlab.core import ParameterError
from fedlab.workbench.inside.look import Looker
from fedlab.workbench.runs import Run
from fedlab.workbench.runs.keyframes import Keyframes

LOOKS, FEWEST, SECONDS = 24, 6, 20.0  # in a recording; fewer where looks take longer than this
MOST = 1_000_000  # bytes of a page
WHOLE = (
    *("spec", "values", "lacks", "charts", "text", "line", "table", "picture", "preset"),
    "stays",
)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fedlab: a recorded run</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ margin: 0 auto; max-width: 1280px; padding: 8px; color-scheme: light dark; }}
{css}
</style></head><body>
<script type="module">
{esm}
const recording = {data};
document.body.dataset.jpThemeLight = String(!matchMedia("(prefers-color-scheme: dark)").matches);
render({{ model: recorded(recording), el: document.body }});
</script></body></html>
"""


def recording(
    looker: Looker, run: Run, frames: Keyframes, user: str = "", item: str = ""
) -> list[dict[str, Any]]:
    """Looks into rounds of a run, evenly from its start to its end: round, dots and seen of each.

    A look at a round is into the next one, with the knobs as that one had them. Rounds that cannot
    be had again are left out; where that is all of them, the last `ParameterError` is raised.
    """
    taken, last = run.settings_by_round(), run.records[-1]["round"]
    found, count, wrong = list[dict[str, Any]](), LOOKS, None
    before, number, began = looker.begin(), 0, time.monotonic()
    while number <= last:
        try:
            kept = frames.nearest(run.id, number)
            start = kept if kept and kept.number > before.number else before
            before = looker.again(start, taken[start.number : number])
            seen = looker.look(before, taken[min(number, last - 1)], user, item)
            found.append({"round": number, "dots": looker.dots(run, number), "seen": seen})
        except ParameterError as error:
            wrong = error
        took = (time.monotonic() - began) / (len(found) + 1)
        count = max(FEWEST, min(count, int(SECONDS / took)))
        number = last + 1 if number == last else min(last, number + max(1, round(last / count)))
    if not found and wrong:
        raise wrong
    return found


def page(traits: Mapping[str, Any], looks: list[dict[str, Any]], esm: str, css: str) -> bytes:
    """The page of a recording, at most a megabyte: of more looks, every second one is left out.

    traits: of the view. esm, css: its modules with `recorded`, and its style.
    """
    shown = {name: traits[name] for name in WHOLE}
    while True:
        data = json.dumps({"traits": shown, "looks": looks}, separators=(",", ":"))
        text = PAGE.format(css=css, esm=esm, data=data.replace("</", "<\\/"))
        if len(text.encode()) <= MOST or len(looks) <= 2:
            return text.encode()
        looks = [*looks[:-1:2], looks[-1]]
