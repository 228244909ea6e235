"""Lesson 2 as a learner meets it: JupyterLab in a real Chromium, training started and steered by hand.

A screenshot of each state is left in tests/screenshots for a person to look at.
"""

import pytest
from driver import ERRORS, SHOTS, browser, expect, lab, press, reach, run_all, set_number, shoot


@pytest.fixture
def page():
    with browser() as opened:
        yield opened.pages[0]


def test_lesson_2_trains_live_and_hears_a_slider(page, tmp_path):
    with lab(tmp_path) as address:
        steer(page, run_all(page, address.format("02_fedavg.ipynb"), to_live=True))
        assert page.evaluate(ERRORS) == []


def steer(page, bench):
    chart = bench.locator('svg[data-series="ndcg@10"]')
    expect(chart).to_have_attribute("aria-label", "ndcg@10 by round: no rounds yet")
    shoot(page, "lesson ready")

    press(bench, "Start")
    expect(bench).to_have_attribute("data-state", "running")
    expect(bench.locator('[data-used="cohort"]')).to_have_text("in use: 64")
    line = chart.locator("path")
    reach(page, bench, 3)
    before = line.get_attribute("d")

    slider = bench.get_by_label("cohort (clients)", exact=True)
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    chosen = int(bench.locator('input[type="number"][name="cohort"]').input_value())
    assert chosen < 64
    expect(bench.locator('[data-used="cohort"]')).to_have_text(f"in use: {chosen}")
    expect(line).not_to_have_attribute("d", before)
    expect(bench.locator(".status")).to_contain_text("Running: round")
    shoot(page, "lesson running")

    set_number(bench, "local learning rate", 99)
    expect(bench.get_by_role("alert")).to_have_text("local_lr=99: choose from 0.05 to 5")
    expect(bench.get_by_label("local learning rate, as a number")).to_have_value("1")     # put back; it goes on
    set_number(bench, "local learning rate", 2)
    expect(bench.locator(".notice")).to_have_text("")
    expect(bench.locator('[data-used="local_lr"]')).to_have_text("in use: 2")
    reach(page, bench, 25)
    bench.screenshot(path=SHOTS / "workbench.png")                      # the picture of the README
    press(bench, "Stop")
    expect(bench).to_have_attribute("data-state", "stopped")
