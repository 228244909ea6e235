"""The workbench alone, served by Voilà, in a real Chromium.

A screenshot of each state is left in tests/screenshots for a person to look at.
"""

import pytest
from driver import browser, expect, press, reach, set_number, shoot, violations, voila


@pytest.fixture
def page():
    with browser() as opened:
        yield opened.pages[0]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_voila_serves_the_workbench_alone(page, tmp_path, theme):
    with voila(tmp_path, "workbench.ipynb", f"--theme={theme}") as address:
        page.goto(address)
        bench = page.locator(".fedlab-workbench")
        expect(bench).to_have_count(1, timeout=60_000)
        page.set_viewport_size({"width": 1280, "height": 1600})
        set_number(bench, "rounds", 300)
        set_number(bench, "cohort", 16)
        press(bench, "Start")
        reach(page, bench, 3)
        bench.get_by_label("cohort (clients)", exact=True).focus()
        page.keyboard.press("ArrowRight")
        chosen = bench.locator('input[type="number"][name="cohort"]').input_value()
        assert int(chosen) > 16
        expect(bench.locator('[data-used="cohort"]')).to_have_text(f"in use: {chosen}")
        press(bench, "Pause")
        expect(bench).to_have_attribute("data-state", "paused")
        shoot(page, f"voila {theme}")
        assert violations(page) == []
        press(bench, "Stop")
        expect(bench).to_have_attribute("data-state", "stopped")
        assert (tmp_path / "notebooks" / "runs").is_dir()
