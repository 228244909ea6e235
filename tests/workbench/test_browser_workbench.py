"""The workbench with all its knobs as a learner meets it: JupyterLab in a real Chromium.

A screenshot of each state is left in tests/screenshots for a person to look at.
"""

import csv
import json
import random
import re
import shutil

import matplotlib.image
import pytest
from driver import (
    ASK,
    COMMAND,
    ERRORS,
    IDLE,
    browser,
    expect,
    lab,
    press,
    reach,
    rounds,
    run_all,
    set_number,
    shoot,
    violations,
    write_notebook,
)

FAILING = (
    """
from fedlab import *
from fedlab.workbench import Workbench
train = leave_one_out(load()).train
clients = Federation(train, one_per_user(train))
model = matrix_factorisation(train.user_count, train.item_count)
def live(settings):
    for done in federate(model, clients, settings):
        yield done
        if done.number == 3:
            raise RuntimeError("<b>out</b> of memory, said the GPU")
""",
    """
bench = Workbench(live, Settings(rounds=50, cohort=8), {"cohort": (1, 671)}, folder="/proc/no/runs")
bench
""",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def address(home):
    with lab(home) as found:
        write_notebook(home / "notebooks" / "failing.ipynb", *FAILING)
        yield found


@pytest.fixture(scope="module")
def page():
    """A page and a kernel in which all tests run, as running the cell again must start afresh."""
    with browser() as opened:
        opened.pages[0].set_viewport_size({"width": 1280, "height": 2000})
        yield opened.pages[0]


@pytest.fixture
def bench(home, address, page):
    """The workbench notebook, run with small rounds, so that there is much to see.

    No runs of before are there.
    """
    shutil.rmtree(home / "notebooks" / "runs", ignore_errors=True)
    found = run_all(page, address.format("workbench.ipynb"))
    set_number(found, "rounds", 300)
    set_number(found, "cohort", 16)
    return found


def state(bench, name):
    expect(bench).to_have_attribute("data-state", name)


def used(bench, knob, text):
    expect(bench.locator(f'[data-used="{knob}"]')).to_have_text(f"in use: {text}")


def unfold(bench, name):
    bench.locator("summary", has_text=name).click()


def test_each_kind_of_knob_counts_when_it_says(bench, page):
    press(bench, "Start")
    state(bench, "running")
    reach(page, bench, 3)
    shoot(page, "running")

    # a slider, by ratios, from the keyboard
    slider = bench.get_by_label("cohort (clients)", exact=True)
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    chosen = bench.locator('input[type="number"][name="cohort"]').input_value()
    assert int(chosen) > 16
    used(bench, "cohort", chosen)
    set_number(bench, "local learning rate", 0.4)  # a number
    used(bench, "local_lr", "0.4")
    # folded away, but not what it says
    expect(bench.get_by_label("weighting", exact=True)).to_be_hidden()
    expect(bench.locator(".group summary", has_text="server step")).to_have_text(
        "server step: weighting equal"
    )
    unfold(bench, "server step")
    bench.get_by_label("weighting", exact=True).select_option("examples")  # a choice
    expect(bench.locator(".group summary", has_text="server step")).to_have_text("server step")
    used(bench, "weighting", "examples")
    # a text, and a knob of the next run
    bench.get_by_label("data", exact=True).fill("/somewhere/else")
    page.keyboard.press("Tab")
    unfold(bench, "machine and draws")
    set_number(bench, "seed", 7)
    expect(bench.locator('[data-used="seed"]')).to_have_text("in use: 0")
    before = rounds(bench)
    reach(page, bench, before + 3)
    assert page.evaluate(ASK, "{r.settings.seed for r in bench.rounds}") == "{0}"
    shoot(page, "turned")

    set_number(bench, "local learning rate", 99)
    expect(bench.get_by_role("alert")).to_have_text("local_lr=99: choose from 0.01 to 10")
    # put back; it goes on
    expect(bench.get_by_label("local learning rate, as a number")).to_have_value("0.4")
    press(bench, "Stop")
    state(bench, "stopped")
    press(bench, "Start")  # the next run takes what was written
    state(bench, "failed")
    expect(bench.locator(".status")).to_contain_text(
        "DataError: '/somewhere/else': no such file or folder"
    )


def test_what_nothing_reads_is_greyed_out_and_stages_are_added(bench, page):
    unfold(bench, "privacy")
    slider = bench.get_by_label("clip (L2 norm)", exact=True)
    expect(slider).to_be_disabled()
    expect(bench.locator('[data-used="clip"]')).to_have_text(
        "nothing in this run reads it; clip would"
    )
    expect(bench.locator('[data-used="noise"]')).to_contain_text("gaussian noise, local noise")
    add = bench.get_by_label("add to uplink")
    add.select_option("clip")
    expect(bench.get_by_label("uplink", exact=True)).to_have_value("clip")
    expect(slider).to_be_enabled()
    expect(bench.locator('[data-used="clip"]')).to_have_text("")
    expect(bench.get_by_label("noise, as a number", exact=True)).to_be_disabled()
    expect(bench.locator(".group summary", has_text="server step")).to_have_text("server step")
    shoot(page, "greyed out")
    assert violations(page) == []
    set_number(bench, "clip", 0.5)
    press(bench, "Start")
    used(bench, "clip", "0.5")
    reach(page, bench, 2)
    assert page.evaluate(ASK, "bench.session.members[-1].settings.get('weighting')") == "None"
    press(bench, "Stop")
    state(bench, "stopped")

    add.select_option("gaussian noise")
    expect(bench.get_by_label("uplink", exact=True)).to_have_value("clip + gaussian noise")
    expect(bench.get_by_label("noise, as a number", exact=True)).to_be_enabled()
    bench.get_by_label("uplink", exact=True).fill("clip + nois")
    page.keyboard.press("Tab")
    expect(bench.get_by_role("alert")).to_contain_text("uplink='clip + nois': choose none, or some")
    expect(bench.get_by_label("uplink", exact=True)).to_have_value("clip + gaussian noise")
    add.select_option("none")
    expect(slider).to_be_disabled()
    unfold(bench, "Sweep")
    bench.get_by_label("across", exact=True).select_option("uplink")
    bench.get_by_label("up", exact=True).select_option("nothing")
    bench.get_by_label("values across").fill("none, clip, poison + clip")
    set_number(bench, "rounds", 5)
    press(bench, "Run the sweep")
    state(bench, "done")
    expect(bench.locator(".words", has_text="ended")).to_contain_text("3 of 3 ended")
    names = "[run.settings.get('clip', 'none') for run in bench.session.members]"
    assert page.evaluate(ASK, names) == "['none', 0.5, 0.5]"


def test_pause_step_resume_stop_and_reset(bench, page):
    press(bench, "Step")
    state(bench, "paused")
    assert rounds(bench) == 1
    press(bench, "Step")
    reach(page, bench, 2)
    state(bench, "paused")
    press(bench, "Resume")
    reach(page, bench, 6)
    press(bench, "Pause")
    state(bench, "paused")
    page.wait_for_timeout(700)
    held = rounds(bench)
    page.wait_for_timeout(700)
    assert rounds(bench) == held
    shoot(page, "paused")
    press(bench, "Resume")
    reach(page, bench, held + 2)
    press(bench, "Stop")
    state(bench, "stopped")
    shoot(page, "stopped")
    press(bench, "Reset")
    state(bench, "ready")
    expect(bench.locator('svg[data-series="loss"]')).to_have_attribute(
        "aria-label", "loss by round: no rounds yet"
    )
    expect(bench.get_by_label("cohort, as a number", exact=True)).to_have_value("64")
    assert page.evaluate(ERRORS) == []


def test_two_runs_are_pinned_named_compared_and_exported(bench, page, tmp_path):
    set_number(bench, "rounds", 8)
    for number, cohort in ((1, 16), (2, 4)):
        set_number(bench, "cohort", cohort)
        press(bench, "Start")
        # the new one is there
        expect(bench.locator("summary", has_text="Runs (")).to_have_text(f"Runs ({number})")
        state(bench, "done")
    unfold(bench, "Runs")
    expect(bench.locator("tbody tr")).to_have_count(2)
    bench.get_by_label("keep run 1 in the charts").check()
    expect(bench.locator('svg[data-series="loss"] path')).to_have_count(2)
    name = bench.get_by_label("name of run 1")
    name.fill("<img src=x onerror=alert(1)>")
    name.press("Tab")
    expect(bench.locator(".legend")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator(".fedlab-workbench img").count() == 0
    expect(bench.locator("tbody tr").last.locator(".differs")).to_have_text("cohort 16")
    label = bench.locator('svg[data-series="ndcg@10"]').get_attribute("aria-label")
    assert label.startswith("ndcg@10 by round: <img src=x onerror=alert(1)>, from 0.")
    assert "run 2, from 0." in label
    shoot(page, "compared")

    files = {}
    for kind in ("CSV", "JSON", "PNG"):
        with page.expect_download() as caught:
            press(bench, f"Export as {kind}")
        files[kind] = tmp_path / caught.value.suggested_filename
        caught.value.save_as(files[kind])
    lines = list(csv.DictReader(files["CSV"].read_text().splitlines()))
    assert [line["cohort"] for line in lines] == ["16"] * 8 + ["4"] * 8
    runs = json.loads(files["JSON"].read_text())["runs"]
    assert [len(run["records"]) for run in runs] == [8, 8]
    assert float(lines[-1]["loss"]) == runs[1]["records"][-1]["loss"]
    assert matplotlib.image.imread(files["PNG"]).shape[1] > 1000
    press(bench, "Export to TensorBoard")
    expect(bench.locator(".news")).to_contain_text("tensorboard --logdir runs/tensorboard")

    page.evaluate(COMMAND, "notebook:run-all-cells")  # kept on disk: they are there again
    expect(bench.locator("summary", has_text="Runs (")).to_have_text("Runs (2)")
    unfold(bench, "Runs")
    set_number(bench, "rounds", 12)
    press(bench, "resume run 2")
    expect(bench.locator("tbody tr").first).to_contain_text("done, 12 rounds")
    expect(bench.get_by_label("cohort, as a number", exact=True)).to_have_value("4")
    assert violations(page) == []
    shoot(page, "resumed")
    press(bench, "delete run 2")
    expect(bench.locator("tbody tr")).to_have_count(1)


def test_a_sweep_fills_its_map_a_cell_pins_its_run_and_cancel_keeps_what_is_done(bench, page):
    set_number(bench, "rounds", 20)
    unfold(bench, "Sweep")
    bench.get_by_label("values across").fill("0.5, 1")
    bench.get_by_label("values up").fill("5, 20, 50")
    press(bench, "Run the sweep")
    cells = bench.locator(".cells button")
    state(bench, "done")
    expect(cells).to_have_count(6)
    expect(bench.locator(".words", has_text="ended")).to_contain_text(
        "6 of 6 ended, the best so far 0."
    )
    cells.nth(2).click()
    expect(cells.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(bench.locator(".legend")).to_contain_text("local_lr=0.5, server_lr=20.0")
    shoot(page, "sweep")
    assert violations(page) == []

    set_number(bench, "rounds", 100)
    bench.get_by_label("search", exact=True).select_option("random")
    bench.get_by_label("runs", exact=True).fill("8")
    press(bench, "Run the sweep")
    reach(page, bench, 4)
    press(bench, "Cancel the sweep; what is done stays")
    state(bench, "stopped")
    said = [cell.get_attribute("aria-label") for cell in cells.all()]
    assert 0 < len(said) < 8
    assert any("stopped" in words for words in said)
    assert all("stopped" in words or "done" in words for words in said)
    shoot(page, "cancelled")
    bench.get_by_label("values across").fill("0.5, fast")
    press(bench, "Run the sweep")
    expect(bench.get_by_role("alert")).to_contain_text("local_lr='fast': choose a number")


def test_settings_are_pasted_back_and_wrong_ones_touch_nothing(bench, page):
    unfold(bench, "Settings as text")
    area = bench.get_by_label("all settings as JSON")
    expect(area).to_have_value(re.compile('"cohort": 16'))
    found = json.loads(area.input_value())
    press(bench, "Start")
    reach(page, bench, 2)
    for change, message in (
        ({"cohort": -1}, "cohort=-1: choose a whole number from 1"),
        ({"speed": 3}, "speed=3: no such parameter"),
    ):
        area.fill(json.dumps(found | {"settings": found["settings"] | change}))
        press(bench, "Apply")
        expect(bench.get_by_role("alert")).to_contain_text(message)
    area.fill(json.dumps(found | {"fedlab": 1}))
    press(bench, "Apply")
    expect(bench.get_by_role("alert")).to_contain_text(
        "fedlab=1: these settings are of another version"
    )
    state(bench, "running")
    expect(bench.get_by_label("cohort, as a number", exact=True)).to_have_value("16")
    area.fill(json.dumps(found | {"settings": {"cohort": 9}}))
    press(bench, "Apply")
    used(bench, "cohort", "9")
    press(bench, "Copy")
    assert (
        json.loads(page.evaluate("() => navigator.clipboard.readText()"))["settings"]["cohort"] == 9
    )
    bench.get_by_label("preset").select_option("10 platforms that differ in taste")
    expect(bench.get_by_label("partition", exact=True)).to_have_value("by genre")
    shoot(page, "settings")


def test_a_page_reload_and_an_interrupt_leave_the_run_alone(bench, page):
    set_number(bench, "cohort", 128)  # long enough for a slow reload
    press(bench, "Start")
    reach(page, bench, 3)
    page.evaluate(COMMAND, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.reload()
    page.wait_for_function(IDLE)
    again = page.locator(".fedlab-workbench")
    expect(again).to_have_count(1)
    reach(page, again, 10)
    state(again, "running")
    expect(again.get_by_label("cohort, as a number", exact=True)).to_have_value("128")
    shoot(page, "reloaded")
    page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.context.sessionContext.session"
        ".kernel.interrupt()"
    )
    before = rounds(again)
    reach(page, again, before + 3)  # a cell would have stopped
    press(again, "Stop")
    state(again, "stopped")


def test_running_the_cell_again_stops_the_run_before(bench, page):
    press(bench, "Start")
    reach(page, bench, 3)
    page.evaluate("old => { old.dataset.old = 'yes'; }", bench.element_handle())
    page.evaluate(COMMAND, "notebook:run-all-cells")
    fresh = page.locator(".fedlab-workbench:not([data-old])")
    expect(fresh).to_have_count(1)
    state(fresh, "ready")
    threads = "[t.name for t in __import__('threading').enumerate() if t.name == 'fedlab']"
    assert page.evaluate(ASK, threads) == "[]"
    press(fresh, "Start")
    reach(page, fresh, 2)
    assert page.evaluate(ASK, threads) == "['fedlab']"
    states = "[run.state for run in bench.session.runs.listed()][-2:]"
    assert page.evaluate(ASK, states) == "['stopped', 'running']"


def test_a_failing_run_says_why_and_a_folder_that_cannot_be_written_too(address, page):
    bench = run_all(page, address.format("failing.ipynb"))
    expect(bench.locator(".saving")).to_contain_text("Not being saved")
    press(bench, "Start")
    state(bench, "failed")
    expect(bench.locator(".status")).to_have_text(
        "RuntimeError: <b>out</b> of memory, said the GPU"
    )
    assert rounds(bench) == 3
    shoot(page, "failed")
    unfold(bench, "Runs")
    with page.expect_download() as caught:  # nothing is lost
        press(bench, "Export as CSV")
    assert len(caught.value.path().read_text().splitlines()) == 1 + 3
    expect(bench.locator(".status")).to_contain_text("RuntimeError")
    press(bench, "Start")  # and the next one begins
    expect(bench.locator("tbody tr")).to_have_count(2)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_axe_finds_nothing_serious(bench, page, theme):
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme
    )
    page.wait_for_function(
        "dark => (document.body.dataset.jpThemeLight === 'false') === dark",
        arg=theme.endswith("Dark"),
    )
    press(bench, "Start")
    reach(page, bench, 3)
    press(bench, "Stop")
    state(bench, "stopped")
    for name in ("Runs", "Sweep", "Settings as text"):
        unfold(bench, name)
    bench.get_by_label("rounds by client").check()
    expect(bench.locator('svg[data-series="rounds by client"] rect').first).to_be_attached()
    shoot(page, theme.split()[1].lower())
    assert violations(page) == []


def shop(path):
    """A file of clicks of sixty users, each on items of one of four tastes."""
    luck = random.Random(0)
    rows = [
        f"{user},{4 * item + user % 4},{100 * user + place}"
        for user in range(60)
        for place, item in enumerate(luck.sample(range(10), 7))
    ]
    path.write_text("\n".join(["user,item,timestamp", *rows]))


def test_the_best_model_is_found_and_a_search_that_is_stopped_keeps_its_best(bench, page, home):
    shop(home / "notebooks" / "clicks.csv")
    bench.get_by_label("data", exact=True).fill("clicks.csv")
    page.keyboard.press("Tab")
    unfold(bench, "Find the best model for these data")
    report = bench.get_by_label("report on the best model")
    expect(report).to_be_hidden()
    budget = bench.get_by_label("budget: trials, or a time such as 10 min")
    budget.fill("soon")
    press(bench, "Find the best")
    expect(bench.get_by_role("alert")).to_contain_text("budget='soon': choose a number of trials")
    budget.fill("2")
    press(bench, "Find the best")
    progress = re.compile(r"Running: (trial \d of|training the best)")  # on the way
    expect(bench.locator(".status")).to_contain_text(progress)
    state(bench, "done")
    expect(report).to_contain_text("federated")
    expect(report).to_contain_text("popularity")
    expect(bench.locator(".status")).to_contain_text("beats popularity")
    assert bench.locator("progress").evaluate("bar => bar.value") == 1
    unfold(bench, "Runs")
    names = [
        row.get_by_role("textbox").input_value()
        for row in bench.locator("tbody tr[data-run]").all()
    ]
    assert sum(name.endswith("on everything") for name in names) == 1
    shoot(page, "found")
    assert violations(page) == []

    budget.fill("60")
    press(bench, "Find the best")
    expect(bench.locator(".status")).to_contain_text(re.compile(r"trial \d of 60"))
    press(bench, "End the search; its best so far is kept")
    state(bench, "stopped")
    expect(report).to_contain_text("The search was cancelled after")
    assert page.evaluate(ASK, "len(bench.session.found.top('0', 3))") == "3"


def test_lines_show_what_a_run_stands_beside(bench, page):
    press(bench, "Start")
    state(bench, "done")
    chart = bench.locator('svg[data-series="ndcg@10"]')
    expect(chart.locator(".levels text")).to_have_text(["chance", "popularity"])
    expect(chart).to_have_attribute("aria-label", re.compile(r"; chance 0\.0454; popularity 0\.\d"))
    expect(bench.locator(".status")).to_contain_text("run 1 beats popularity: +0.")
    unfold(bench, "Runs")
    expect(bench.locator("tbody tr[data-run]")).to_contain_text("popularity ndcg@10 0.")
    shoot(page, "beside")


def knob(bench, name):
    return bench.locator(f'[data-knob="{name}"]')


def test_a_turn_is_marked_in_the_charts_and_a_pointer_reads_them_all(bench, page):
    press(bench, "Start")
    reach(page, bench, 3)
    set_number(bench, "local learning rate", 0.5)
    loss, ranking = (bench.locator(f'svg[data-series="{name}"]') for name in ("loss", "ndcg@10"))
    mark = loss.locator(".turned title")
    expect(mark).to_have_text(re.compile(r"round \d+: local_lr 1 → 0.5"))
    press(bench, "Pause")
    state(bench, "paused")
    at = int(re.search(r"\d+", mark.text_content())[0])
    loss.focus()
    page.keyboard.press("ArrowLeft")  # where it stands, the last round
    while not (said := loss.locator(".read").text_content()).startswith(f"round {at}local_lr"):
        assert int(re.match(r"round (\d+)", said)[1]) > at
        page.keyboard.press("ArrowLeft")
    expect(ranking.locator(".read")).to_contain_text(f"round {at}")  # the same in each chart
    value = float(ranking.locator(".read tspan").last.text_content())
    assert 0 < value < 1
    page.keyboard.press("Escape")
    expect(ranking.locator(".read")).to_be_hidden()
    box = ranking.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] / 2)
    expect(loss.locator(".read")).to_contain_text(f"round {rounds(bench)}")  # none beyond the last
    shoot(page, "pointed-at")


def test_an_error_stands_at_its_field_and_turns_are_undone(bench, page):
    set_number(bench, "local learning rate", 99)
    wrong = knob(bench, "local_lr").locator(".wrong")
    expect(wrong).to_have_text("99: choose from 0.01 to 10")
    field = bench.get_by_label("local learning rate, as a number", exact=True)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value("1")
    shoot(page, "wrong-value")
    set_number(bench, "local learning rate", "")  # nothing is no value
    expect(field).to_have_value("1")
    set_number(bench, "local learning rate", 2)
    expect(wrong).to_be_hidden()
    expect(field).to_have_attribute("aria-invalid", "false")
    set_number(bench, "server learning rate", 7)
    other = bench.get_by_label("server learning rate, as a number", exact=True)
    press(bench, "Undo")
    expect(other).to_have_value("50")
    expect(field).to_have_value("2")
    press(bench, "Undo")
    expect(field).to_have_value("1")
    set_number(bench, "local learning rate", 3)
    knob(bench, "local_lr").get_by_role("button", name="put local learning rate back").click()
    expect(field).to_have_value("1")


def test_three_knobs_come_first_and_others_are_found_by_a_word(bench, page):
    unfold(bench, "the run")  # where rounds were set
    names = bench.locator("[data-knob]").evaluate_all(
        "found => found.filter(f => f.checkVisibility()).map(f => f.dataset.knob)"
    )
    assert {*names} == {"cohort", "local_lr", "server_lr"}
    search = bench.get_by_label("find a knob", exact=True)
    search.fill("noise")
    expect(knob(bench, "noise")).to_be_visible()
    expect(knob(bench, "batch_size")).to_be_hidden()
    expect(knob(bench, "cohort")).to_be_hidden()
    shoot(page, "found")
    search.fill("")
    expect(knob(bench, "cohort")).to_be_visible()
    expect(knob(bench, "noise")).to_be_hidden()


def test_controls_and_charts_share_the_screen(bench, page):
    page.set_viewport_size({"width": 1280, "height": 900})
    try:
        bench.evaluate("node => node.scrollIntoView()")
        places = [
            bench.get_by_role("button", name="Start", exact=True),
            *(knob(bench, name) for name in ("cohort", "local_lr", "server_lr")),
            *(bench.locator(f'svg[data-series="{name}"]') for name in ("loss", "ndcg@10")),
        ]
        for place in places:
            box = place.bounding_box()
            assert box["y"] + box["height"] < 900, place
    finally:
        page.set_viewport_size({"width": 1280, "height": 2000})


def test_a_preset_stays_chosen_and_says_what_was_turned_since(bench, page):
    choice = bench.get_by_label("preset", exact=True)
    expect(choice).to_have_value("671 users, matrix factorisation")
    since = bench.locator(".turned-since")
    expect(since).to_have_text("turned since: rounds, cohort")
    choice.select_option("few clients: 8 users a round")
    expect(since).to_have_text("")
    expect(bench.get_by_label("cohort, as a number", exact=True)).to_have_value("8")
    set_number(bench, "local learning rate", 2)
    expect(choice).to_have_value("few clients: 8 users a round")
    expect(since).to_have_text("turned since: local learning rate")


def test_runs_are_sorted_and_compared_with_one_of_them(bench, page):
    unfold(bench, "Runs")
    set_number(bench, "rounds", 10)
    rows = bench.locator(".runs tbody tr")
    for number, rate in enumerate((0.01, 2), 1):
        set_number(bench, "local learning rate", rate)
        press(bench, "Start")
        expect(rows).to_have_count(number)
        expect(rows.first).to_contain_text("done, 10 rounds")
    names = rows.locator("input[type=text]")
    assert [names.nth(k).input_value() for k in range(2)] == ["run 2", "run 1"]  # the newest first
    press(bench, "sort by best ndcg@10")
    expect(bench.locator("th[aria-sort=ascending]")).to_have_text("best ndcg@10")
    best = [float(rows.nth(k).locator(".metric-1").text_content().split()[0]) for k in range(2)]
    assert best[0] < best[1]
    press(bench, "sort by best ndcg@10")
    expect(bench.locator("th[aria-sort=descending]")).to_have_count(1)
    expect(rows.first.locator(".metric-1")).to_have_text(re.compile(rf"^{best[1]} "))
    bench.get_by_label("difference to", exact=True).select_option(label=names.first.input_value())
    expect(rows.last.locator(".metric-1")).to_have_text(re.compile(r"\(round \d+, -0\.\d+\)"))
    expect(rows.first.locator(".metric-1")).to_have_text(re.compile(r"\(round \d+\)"))
    shoot(page, "sorted")


def test_lines_are_smoothed_and_drawn_on_a_logarithmic_scale(bench, page):
    set_number(bench, "rounds", 12)
    press(bench, "Start")
    state(bench, "done")
    path = bench.locator('svg[data-series="loss"] path')
    plain = path.get_attribute("d")
    bench.get_by_label("smoothed over 5 rounds", exact=True).check()
    smooth = path.get_attribute("d")
    assert smooth != plain
    assert smooth.count("L") == plain.count("L") == 11
    bench.get_by_label("logarithmic", exact=True).check()
    assert path.get_attribute("d") not in (plain, smooth)
    shoot(page, "logarithmic")
    bench.get_by_label("smoothed over 5 rounds", exact=True).uncheck()
    bench.get_by_label("logarithmic", exact=True).uncheck()
    assert path.get_attribute("d") == plain


def test_a_kernel_that_ended_is_said(bench, page):
    page.evaluate(
        """() => { window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel
          .requestExecute({ code: 'import os; os.kill(os.getpid(), 9)' }); }"""
    )
    expect(bench.get_by_text("The kernel has ended")).to_be_visible()
    shoot(page, "ended")
    page.get_by_role("button", name="OK", exact=True).or_(
        page.get_by_role("button", name="Ok", exact=True)
    ).click()  # JupyterLab says so, too


def test_a_round_is_seen_from_inside_gone_back_to_and_branched(bench, page, tmp_path):
    set_number(bench, "rounds", 12)
    press(bench, "See the round")
    expect(bench.locator('[data-inside="clients"] circle')).to_have_count(671)
    expect(bench.locator('[data-inside="steps"] .mean')).to_have_count(1)  # before any round
    press(bench, "Start")
    state(bench, "done")
    expect(bench.locator('[data-inside="clients"] .now')).to_have_count(16)
    steps = bench.locator('[data-inside="steps"] .title')
    expect(steps).to_have_text("Steps of round 13")

    follow = bench.get_by_label("follow user")
    follow.fill("99999")
    follow.press("Enter")
    expect(bench.locator(".transport .notice").last).to_contain_text("no such user")
    follow.fill("3")
    follow.press("Enter")
    person = bench.get_by_label("the user who is followed")
    expect(person.locator("h4")).to_have_text("User 3, client 2, 49 clicks")
    expect(person).to_contain_text("Held out: Princess Bride, The")
    bench.locator('[data-inside="items"] circle').first.dispatch_event("click")
    expect(bench.get_by_label("the item that is followed")).to_contain_text("its median place is")

    length = bench.locator('[data-inside="steps"] .mean').get_attribute("d")
    set_number(bench, "local learning rate", 5)  # seen before any round takes it
    expect(bench.locator('[data-inside="steps"] .mean')).not_to_have_attribute("d", length)
    bench.get_by_label("look from round").fill("4")
    expect(steps).to_have_text("Steps of round 5")
    expect(bench.locator('[data-inside="clients"] .title')).to_have_text("Clients, 16 in round 4")
    assert violations(page) == []
    shoot(page, "inside")
    press(bench, "Branch here")
    expect(bench.locator(".legend .entry")).to_have_text(["run 1", "run 1 from round 4"])
    state(bench, "done")

    unfold(bench, "Runs")
    with page.expect_download() as caught:
        press(bench, "Export as REPLAY")
    caught.value.save_as(tmp_path / "replay.html")
    other = page.context.new_page()
    try:
        other.goto((tmp_path / "replay.html").as_uri())
        played = other.locator(".fedlab-workbench")
        press(played, "Play")
        expect(played.locator(".status")).to_have_text("Recorded: round 12 of 12")
        played.get_by_label("look from round").fill("4")
        expect(played.locator('[data-inside="steps"] .title')).to_have_text("Steps of round 5")
        expect(played.locator('svg[data-series="loss"] .title')).to_contain_text("loss: 0.")
        assert violations(other) == []
        shoot(other, "replay")
    finally:
        other.close()
