"""A learner's part of a class in a real Chromium: by keyboard, to two lists side by side."""

import re

from driver import (
    ASK,
    COMMAND,
    ERRORS,
    FINISHED,
    IDLE,
    SHOTS,
    browser,
    expect,
    lab,
    violations,
    write_notebook,
)

CLASS = """
from fedlab.data import load
from fedlab.nodes.classroom import USUAL, Entrance, started, taught, welcome
from fedlab.workbench import Ratings
films = load()
start = started(films, rounds=1)
room = Entrance("127.0.0.1:0", welcome(start, films.catalogue))
me = Ratings()
me
"""


def test_a_learner_rates_by_keyboard_joins_and_compares(tmp_path):
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "class.ipynb", CLASS)
    with lab(tmp_path) as address, browser() as opened:
        page = opened.pages[0]
        page.goto(address.format("class.ipynb"))
        page.wait_for_function(IDLE, timeout=120_000)
        page.evaluate(COMMAND, "notebook:run-all-cells")
        page.wait_for_function(FINISHED, timeout=300_000)
        assert page.evaluate(ERRORS) == []
        found = page.locator(".fedlab-ratings")
        expect(found.locator(".film")).to_have_count(20)
        rated(page, found)
        expect(found.get_by_role("status")).to_have_text("5 of 20 rated, 5 with 3 stars or more.")
        joined(page, found)
        page.evaluate(ASK, "len([*taught(room, start, USUAL.replace(rounds=3))])")
        expect(found).to_have_attribute("data-state", "over")
        expect(found.locator(".lists li")).to_have_count(20)
        expect(found.locator(".cost")).to_contain_text(re.compile("You sent .* MB"))
        assert violations(page, ".fedlab-ratings") == []
        SHOTS.mkdir(exist_ok=True)
        found.screenshot(path=SHOTS / "class over.png")
        assert page.evaluate(ASK, "room.close()") == "None"


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
    line.fill(page.evaluate(ASK, "str(room.invitation)").strip("'"))
    name.fill("Ann")
    found.get_by_role("button", name="Join").press("Enter")
    expect(found).to_have_attribute("data-state", "waiting")
    expect(found.get_by_role("alert")).to_have_text("")
