"""Lessons as a learner meets them: JupyterLab in a real Chromium, training steered by hand.

A screenshot of each state is left in tests/screenshots for a person to look at.
"""

from ast import literal_eval
from contextlib import contextmanager
from itertools import pairwise

import pytest
from driver import (
    ASK,
    ERRORS,
    SHOTS,
    browser,
    expect,
    lab,
    press,
    reach,
    run_all,
    set_number,
    set_parameters,
    shoot,
)


@pytest.fixture
def page():
    with browser() as opened:
        yield opened.pages[0]


def turn(page, bench, more, **knobs):
    """Set knobs while it runs, see them in use, and wait for further rounds."""
    for name, value in knobs.items():
        if isinstance(value, str):
            bench.get_by_label(name, exact=True).select_option(value)
        else:
            set_number(bench, name, value)
        expect(bench.locator(f'[data-used="{name}"]')).to_have_text(f"in use: {value}")
    reach(page, bench, int(bench.get_attribute("data-rounds")) + more)


def told(page, what):
    """What the kernel has of each Round r."""
    return literal_eval(page.evaluate(ASK, f"[{what} for r in bench.rounds]"))


@contextmanager
def lesson(page, home, name, **shorter):
    """The workbench of a lesson that has run as far as its live cell.

    No cell may have failed in the end. shorter: other values of parameters, for what comes before
    the live cell; nbval runs the lesson as it is.
    """
    set_parameters(home, name, shorter)
    with lab(home) as address:
        yield run_all(page, address.format(f"{name}.ipynb"), to_live=True)
        assert page.evaluate(ERRORS) == []


def stop(bench):
    press(bench, "Stop")
    expect(bench).to_have_attribute("data-state", "stopped")


def test_lesson_2_trains_live_and_hears_a_slider(page, tmp_path):
    with lesson(page, tmp_path, "02_fedavg") as bench:
        set_number(bench, "rounds", 300)  # a quick machine is through a hundred too soon
        steer(page, bench)


def test_lesson_3_compares_two_ways_to_aggregate(page, tmp_path):
    with lesson(
        page, tmp_path, "03_model_selection", ROUNDS=4, ALONE_ROUNDS=2, LEAK_ROUNDS=2
    ) as bench:
        press(bench, "Start")
        reach(page, bench, 3)
        slider = bench.get_by_label("local learning rate", exact=True)
        slider.focus()
        page.keyboard.press("ArrowRight")
        chosen = bench.get_by_label("local learning rate, as a number").input_value()
        expect(bench.locator('[data-used="local_lr"]')).to_have_text(f"in use: {chosen}")
        stop(bench)
        bench.locator("summary", has_text="Runs").click()
        bench.locator("tbody input[type=checkbox]").first.check()
        # takes effect in the next run
        bench.get_by_label("aggregation", exact=True).select_option("best models")
        press(bench, "Start")
        reach(page, bench, 3)
        press(bench, "Stop")
        expect(bench.locator("tbody tr").first).to_contain_text("aggregation best models")
        expect(bench.locator('svg[data-series="rmse"] path')).to_have_count(2)
        shoot(page, "lesson 3 compared")


def test_lesson_4_trains_on_the_simulated_clock(page, tmp_path):
    with lesson(page, tmp_path, "04_asynchronous", TARGET=0.3) as bench:
        bench.get_by_label("simulated s", exact=True).check()
        press(bench, "Start")
        reach(page, bench, 12)
        expect(bench.locator(".status")).to_contain_text("s on the simulated clock")
        turn(page, bench, 6, buffer=40)  # live: the server waits for more of them
        stop(bench)
        found = told(page, "(r.clock, len(r.cohort), r.settings.buffer)")
        seconds, sizes, buffers = zip(*found, strict=True)
        assert list(seconds) == sorted(seconds)
        assert sizes == buffers
        assert sizes[0] < sizes[-1] == 40
        shoot(page, "lesson 4 buffer turned")


def test_lesson_5_turns_what_the_server_knows_while_it_trains(page, tmp_path):
    with lesson(page, tmp_path, "05_language_models") as bench:
        press(bench, "Start")
        reach(page, bench, 4)
        turn(page, bench, 4, knows="genres and year")
        stop(bench)
        knows = "[used.get('knows', 'MiniLM') for used in run.settings_by_round()]"
        ndcg = "[r.get('cold ndcg@10') for r in run.records]"
        found = literal_eval(
            page.evaluate(ASK, f"[list(zip({knows}, {ndcg})) for run in bench.session.members][-1]")
        )
        by = {name: [ndcg for knows, ndcg in found if knows == name and ndcg] for name, _ in found}
        assert min(by["MiniLM"][1:]) > max(by["genres and year"])  # one sees it drop
        shoot(page, "lesson 5 knows less")


def test_lesson_6_turns_how_adapters_are_averaged_while_shops_fine_tune(page, tmp_path):
    with lesson(page, tmp_path, "06_fine_tuning", ROUNDS=4, WATCH_ROUNDS=2) as bench:
        press(bench, "Start")
        reach(page, bench, 2)
        turn(page, bench, 2, adapters="products", cohort=4)
        stop(bench)
        (first, many, sent), *_, (last, few, fewer) = told(
            page, "(r.settings.adapters, len(r.cohort), r.bytes_up)"
        )
        assert (first, many, last, few) == ("factors", 10, "products", 4)
        assert fewer * many == sent * few  # adapters and head, of each shop in the round
        shoot(page, "lesson 6 adapters averaged")


def test_lesson_7_turns_how_clients_adapt_and_asks_for_a_newcomer(page, tmp_path):
    with lesson(page, tmp_path, "07_fedmeta", SINE_ROUNDS=5, ROUNDS=5) as bench:
        shown, first = (
            page.locator(".widget-html-content").last,
            "recommended(rounds['ridge'][-1].params, {})[1]",
        )
        expect(shown).to_have_text("".join(literal_eval(page.evaluate(ASK, first.format(0)))))
        press(bench, "Start")
        reach(page, bench, 3)
        turn(page, bench, 3, k=2)
        stop(bench)
        k = "[used.get('k', 10) for used in run.settings_by_round()]"
        (many, low), *_, (few, high) = literal_eval(
            page.evaluate(
                ASK,
                f"[list(zip({k}, [r['rmse'] for r in run.records]))"
                " for run in bench.session.members][-1]",
            )
        )
        assert (many, few) == (10, 2)
        assert high > low  # two ratings tell less than ten
        # takes effect in the next run
        bench.get_by_label("adaptation", exact=True).select_option("maml")
        press(bench, "Start")
        reach(page, bench, 3)
        stop(bench)
        assert told(page, "r.settings.adaptation")[0] == "maml"
        handle = page.locator(".jupyter-widgets.widget-slider .noUi-handle").last
        handle.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        best = page.evaluate(ASK, "recommended(bench.rounds[-1].params, 5)[1]")
        expect(shown).to_have_text("".join(literal_eval(best)))
        shoot(page, "lesson 7 adapts")


def test_lesson_8_turns_noise_while_it_trains_and_ends_at_its_budget(page, tmp_path):
    with lesson(page, tmp_path, "08_privacy_noise", ROUNDS=2) as bench:
        press(bench, "Start")
        reach(page, bench, 3)
        turn(page, bench, 3, noise=4)
        budget = round(told(page, "r.metrics['epsilon']")[-1] + 0.15, 2)
        set_number(bench, "budget", budget)
        expect(bench).not_to_have_attribute("data-state", "running", timeout=120_000)
        found = told(page, "(r.settings.noise, r.metrics['epsilon'])")
        spent = [epsilon for _, epsilon in found]
        steps = [(noise, after - before) for (_, before), (noise, after) in pairwise(found)]
        assert spent == sorted(spent)
        assert spent[-1] <= budget < spent[-1] + 0.05
        assert len(spent) < 60
        assert max(step for noise, step in steps if noise == 4) < min(
            step for noise, step in steps if noise == 1
        )
        shoot(page, "lesson 8 budget spent")


def test_lesson_9_turns_noise_and_liars_and_sees_the_attackers_succeed(page, tmp_path):
    with lesson(
        page,
        tmp_path,
        "09_attacks_and_secure_aggregation",
        ROUNDS=3,
        PUSH_ROUNDS=12,
        CLAIM_SEEDS=1,
        SUMS=[1, 2],
    ) as bench:
        press(bench, "Start")
        reach(page, bench, 1)
        turn(page, bench, 8, noise=0.01)
        turn(page, bench, 8, liars=0.2)
        stop(bench)
        found = told(
            page,
            "(r.settings.liars, r.metrics['er@10'], r.metrics['members told'],"
            " r.metrics['epsilon'])",
        )
        honest, lied = ([row for row in found if bool(row[0]) == lying] for lying in (False, True))
        assert honest[-1][1] < 0.01  # the first round's noise, which is large, shows anything
        assert lied[-1][1] > 0.5  # a clip alone does not stop them
        assert honest[-1][2] > 0.55  # without noise to speak of, members are told
        spent = [row[3] for row in found]
        assert spent == sorted(spent)
        shoot(page, "lesson 9 under attack")


def test_lesson_10_changes_the_code_while_it_trains(page, tmp_path):
    with lesson(page, tmp_path, "10_communication", ROUNDS=6) as bench:
        press(bench, "Start")
        reach(page, bench, 10)
        turn(page, bench, 3, code="4 bits")
        turn(page, bench, 3, code="rank 1 in 4 bits")
        stop(bench)
        found = told(page, "(r.settings.code, r.bytes_up / r.bytes_down, r.metrics['ndcg@10'])")
        up = {code: [share for name, share, _ in found if name == code] for code, *_ in found}
        assert list(up) == ["plain", "4 bits", "rank 1 in 4 bits"]
        assert min(up["plain"]) > 7 * max(up["4 bits"])
        assert min(up["4 bits"]) > 7 * max(up["rank 1 in 4 bits"])
        assert found[-1][2] > 0.9 * found[9][2]  # and it goes on learning
        shoot(page, "lesson 10 in few bits")


def test_lesson_11_turns_regularisation_on_data_of_ones_own(page, tmp_path):
    with lesson(page, tmp_path, "11_bring_your_own", ROUNDS=4) as bench:
        press(bench, "Start")
        reach(page, bench, 8)
        turn(page, bench, 6, regularisation=9)
        stop(bench)
        found = told(page, "(len(r.cohort), r.settings.regularisation, r.metrics['ndcg@10'])")
        assert {clients for clients, *_ in found} == {538}  # of the shop, not of MovieLens
        kept, lost = ([m for _, pull, m in found if pull == at] for at in (1.0, 9.0))
        assert lost[-1] < 0.8 * max(kept)  # so strong that nothing is left of anybody
        shoot(page, "lesson 11 held back too much")


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
    # put back; it goes on
    expect(bench.get_by_label("local learning rate, as a number")).to_have_value("1")
    set_number(bench, "local learning rate", 2)
    expect(bench.get_by_role("alert")).to_have_count(0)
    expect(bench.locator('[data-used="local_lr"]')).to_have_text("in use: 2")
    reach(page, bench, 25)
    bench.screenshot(path=SHOTS / "workbench.png")  # the picture of docs/workbench.md
    stop(bench)
