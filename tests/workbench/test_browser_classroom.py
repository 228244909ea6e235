"""A class in a real Chromium: a learner by keyboard, to two lists; the teacher's screen beside."""

import re

from driver import (
    ASK,
    SHOTS,
    browser,
    expect,
    lab,
    press,
    run_all,
    set_number,
    shoot,
    violations,
    write_notebook,
)

TEACHER = """
from fedlab.data import load
from fedlab.nodes.classroom import started
from fedlab.workbench import Classroom, Ratings
class_ = Classroom(start=started(load(), rounds=1))
class_
"""
LEARNER = """
me = Ratings()
me
"""


def test_a_learner_rates_by_keyboard_joins_and_compares(tmp_path):
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "class.ipynb", TEACHER, LEARNER)
    with lab(tmp_path) as address, browser() as opened:
        page = opened.pages[0]
        bench = run_all(page, address.format("class.ipynb"), timeout=300_000)
        found = page.locator(".fedlab-ratings")
        for name in ("Sweep", "Find the best model for these data"):  # learners answer one run
            expect(bench.locator("summary", has_text=name)).to_be_hidden()
        expect(bench.locator("summary", has_text="Runs (")).to_be_visible()
        expect(found.locator(".film")).to_have_count(20)
        rated(page, found)
        expect(found.get_by_role("status")).to_have_text("5 of 20 rated, 5 with 3 stars or more.")
        joined(page, found)
        expect(page.get_by_text("1 here: Ann")).to_be_visible()
        set_number(bench, "rounds", 5)
        press(bench, "Start")
        expect(found).to_have_attribute("data-state", "over")
        expect(found.get_by_role("status")).to_have_text("The class is over after 5 of 5 rounds.")
        expect(bench).to_have_attribute("data-state", "done")
        line = bench.locator('svg[data-series="ndcg@10"] path')  # from round 0 on, inside the chart
        left = bench.locator('svg[data-series="ndcg@10"] .axes line').first
        assert line.bounding_box()["x"] >= left.bounding_box()["x"] - 2
        expect(found.locator(".lists li")).to_have_count(20)
        expect(found.locator(".cost")).to_contain_text(re.compile("You sent .* MB"))
        assert violations(page, ".fedlab-ratings") == []
        shoot(page, "class of a teacher")
        found.screenshot(path=SHOTS / "class of a learner.png")
        found.get_by_role("button", name="Leave").press("Enter")
        expect(page.get_by_text("Dropped out: Ann")).to_be_visible()
        assert page.evaluate(ASK, "class_.end()") == "None"


def rated(page, found):
    """Give five films four stars, by keyboard alone: Tab to a film, arrows to its stars."""
    found.locator(".film").first.locator("input").first.focus()
    for _ in range(5):
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")


def joined(page, found):
    """Try a wrong line, which is said and costs no star; then the teacher's."""
    line, name = found.get_by_label("The teacher's line"), found.get_by_label("Your name")
    line.fill("7GH2KMNP@127.0.0.1")
    found.get_by_role("button", name="Join").press("Enter")
    expect(found.get_by_role("alert")).to_contain_text("copy the whole line")
    expect(found.locator(".stars input:checked[value='4']")).to_have_count(5)
    line.fill(page.evaluate(ASK, "str(class_.entrance.invitation)").strip("'"))
    name.fill("Ann")
    found.get_by_role("button", name="Join").press("Enter")
    expect(found).to_have_attribute("data-state", "waiting")
    expect(found.get_by_role("alert")).to_have_text("")
