"""Take the picture of README.md anew, in a real Chromium: python tests/picture.py."""

import tempfile
from pathlib import Path

from driver import ROOT, browser, expect, press, reach, set_number, voila, write_notebook

PICTURE = ROOT / "docs" / "attack.png"
CELLS = (
    """
from fedlab.workbench import PRESETS, Workbench, stream

start = PRESETS["under attack: one in ten lies, the median holds"]
start = start.replace(aggregation="weighted mean", liars=0.0)
turn = {"liars": (0.0, 0.4), "cohort": (8, 671), "local_lr": (0.1, 10.0), "aggregation": None}
Workbench(stream, start, turn, metrics={"ndcg@10": "max"})
""",
)
RUNS = (  # name, share of liars, aggregation
    ("all are honest", 0.0, "weighted mean"),
    ("one in ten lies", 0.1, "weighted mean"),
    ("one in ten lies, median", 0.1, "coordinate median"),
)


def take(page, bench):
    """Train the three runs, the last of them until it is under way, and take the picture."""
    for number, (name, liars, aggregation) in enumerate(RUNS):
        set_number(bench, "liars", liars)
        bench.get_by_label("aggregation", exact=True).select_option(aggregation)
        press(bench, "Start")
        if number == 0:
            bench.locator("summary", has_text="Runs").click()
        rows = bench.locator(".runs tbody tr")
        expect(rows).to_have_count(number + 1)
        own = rows.first.get_by_role("textbox")  # the newest stands above
        own.fill(name)
        own.press("Tab")
        rows.first.get_by_role("checkbox").check()
        if number < len(RUNS) - 1:
            expect(bench).to_have_attribute("data-state", "done")
    bench.get_by_label("norm by client").check()
    reach(page, bench, 40)
    press(bench, "Pause")
    expect(bench).to_have_attribute("data-state", "paused")
    bench.locator("summary", has_text="Runs").click()  # folded again
    bench.screenshot(path=PICTURE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        home = Path(folder)
        (home / "notebooks").mkdir()
        write_notebook(home / "notebooks" / "attack.ipynb", *CELLS)
        with voila(home, "attack.ipynb") as address:
            page = opened.pages[0]
            page.set_viewport_size({"width": 1000, "height": 1200})
            page.goto(address)
            bench = page.locator(".fedlab-workbench")
            expect(bench).to_have_count(1)
            take(page, bench)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")
