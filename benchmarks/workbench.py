"""How live the workbench is, measured in a real Chromium on JupyterLab and Voilà.

python benchmarks/workbench.py [--quick]

lab_key_to_visible_ms, voila_key_to_visible_ms: from the key press on a slider to the frame that
shows the new value 'in use', which a round has then taken, while 16 clients a round train and
rounds are looked into; median.
stop_ms: the longest time from the click on Stop to the view that says so, less a median round.
redraws_per_s: changes of the loss line while 64 clients a round train. blank_frames: animation
frames in that time in which a chart that has rounds shows no line. redraw_kernel_ms: processor time
of a redraw in the kernel, median. start_during_run_all_s: from the click on Start to the view that
shows a round, the longest of the tries in JupyterLab after Run All, while a later cell sleeps,
multiplies tables or counts; start_during_run_all_ok: how many took at most a second.
live_vs_headless: rounds per second with the view open over rounds per second of the same stream
that nobody sees, blocks of 15 rounds taken in turn in one thread, median of the pairs of blocks
(whole runs taken in turn differ by more than the view costs: this machine is shared).
round_view_cost: the share of those rounds per second that is lost with the charts and the view into
the round open. dead_kernel_seen_s: from the kill of the kernel to the view that says so.
redraw_ms_at_10000_rounds: processor time of a redraw in the kernel with 20 runs of 10,000 rounds in
the charts. replay_file_kb: the recorded page of a run of 60 rounds, with a user followed.
"""

import ast
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from common import ROOT, entry, is_quick, record

sys.path.insert(0, str(ROOT / "tests"))
from driver import (
    ASK,
    IDLE,
    browser,
    expect,
    lab,
    press,
    reach,
    run_all,
    set_number,
    start_all,
    voila,
    write_notebook,
)

WARM = "from fedlab.engine import warm\nwarm()\n"
SOURCE = '''
import time
from fedlab.workbench import PRESETS, Workbench, better, stream
stamps, draws, blocks = [], [], []
start = next(iter(PRESETS.values())).replace(rounds=5000)  # keys are pressed in one run
def stamped(settings):
    stamps.clear()
    for done in stream(settings):
        stamps.append(time.perf_counter())
        yield done
def taken_in_turn(settings, size=15):
    """The live stream; after each `size` rounds as many of it that nobody sees, both timed."""
    blocks.clear()
    live, quiet = stream(settings), stream(settings)
    while True:
        times = [time.perf_counter()]
        for _ in range(size):
            done = next(live, None)
            if done is None:
                return
            yield done
        times.append(time.perf_counter())
        for _ in range(size):
            next(quiet)
        times.append(time.perf_counter())
        blocks.append((times[2] - times[1]) / (times[1] - times[0]))
bench = Workbench(stream, start, metrics=better(), presets=PRESETS)
bench.session.live = stamped
draw = bench.draw
def timed(*_):
    began = time.thread_time()
    draw()
    draws.append((time.thread_time() - began) * 1e3)
bench.draw = timed
pages = []
bench.send = lambda content, buffers=None: pages.append(len(buffers[0]))
def told(*words):
    """Have the bench hear a command as of a plain stream, which alone is looked into."""
    live, bench.session.live = bench.session.live, stream
    bench._told(None, {"command": words[0], "given": [*words[1:]]}, None)
    bench.session.live = live
def look():
    """Open the view into the round; close it where it is open."""
    told("see", not bench.inside["on"])
def kept():
    """The size of the page of the run on show."""
    told("follow", "user", "3")
    told("export", "replay")
    return pages[-1]
bench'''
MANY = '''
from fedlab.core import Round
def many(runs=20, rounds=10_000):
    """Processor ms of redraws with so many runs in the charts, and MB that they take."""
    before, mine = memory(), []
    for n in range(runs):
        run = bench.session.runs.begin(start)
        for number in range(1, rounds + 1):
            done = Round(number, start, {}, metrics={"ndcg@10": number % 7 / 7, "hr@10": 0.5})
            bench.session.runs.add(run, done, start)
        run.pinned, run.state = True, "done"
        mine.append(run)
    timed()
    draws.clear()
    for _ in range(20):
        timed()
    grown = memory() - before
    for run in mine:
        bench.session.runs.delete(run.id)
    return draws, grown
def memory():
    """MB that this process has in memory."""
    from pathlib import Path
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
'''
OTHER = """
import time
from pathlib import Path
import torch
table, count = torch.ones(300, 300), 0
while not Path({file!r}).exists():
    {work}
"""
COUNTS = "for _ in range(100_000): count += 1"
WORK = ("time.sleep(0.1)", "table = (table @ table).clamp(0, 1)", COUNTS)
FIRST = """([bench, start]) => new Promise(resolve => {
  const began = performance.now();
  new MutationObserver(() => {
    if (+bench.dataset.rounds > 0) resolve((performance.now() - began) / 1e3);
  }).observe(bench, { attributeFilter: ['data-rounds'] });
  start.click();
})"""
KEYS = """([slider, used, number]) => {
  window.delays = [];
  let began = null;
  slider.addEventListener('keydown', () => { began = performance.now(); });
  new MutationObserver(() => {
    const shown = used.textContent.replace('in use: ', '');
    if (began === null || Number(shown) !== Number(Number(number.value).toPrecision(3))) return;
    const from = began; began = null;
    requestAnimationFrame(() => window.delays.push(performance.now() - from));
  }).observe(used, { childList: true, characterData: true, subtree: true });
}"""
FRAMES = """([bench, seconds]) => new Promise(resolve => {
  const charts = [...bench.querySelectorAll('.charts svg')].filter(s =>
      s.querySelector('path, rect')
    && s.style.display !== 'none');
  const line = bench.querySelector('svg[data-series="loss"] path'), began = performance.now();
  let redraws = 0, frames = 0, blank = 0;
  new MutationObserver(found => { redraws += 1; }).observe(line, { attributeFilter: ['d'] });
  const look = () => {
    frames += 1;
    const empty = charts.some(s => { const box =
        s.querySelector('path, rect')?.getBoundingClientRect();
      return !s.isConnected || !box || box.width + box.height === 0; });
    if (empty) blank += 1;
    if (performance.now() - began < seconds * 1000) requestAnimationFrame(look);
    else resolve([redraws / seconds, frames, blank]);
  };
  requestAnimationFrame(look);
})"""
DEAD = """bench => new Promise(resolve => {
  const began = performance.now();
  new MutationObserver(() => {
    if (bench.classList.contains('gone')) resolve((performance.now() - began) / 1e3);
  }).observe(bench, { attributeFilter: ['class'] });
  window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel
    .requestExecute({ code: 'import os; os.kill(os.getpid(), 9)' });
})"""
STOP = """([bench, stop]) => new Promise(resolve => {
  const began = performance.now();
  new MutationObserver(() => {
    if (bench.dataset.state === 'stopped') resolve(performance.now() - began);
  }).observe(bench, { attributeFilter: ['data-state'] });
  stop.click();
})"""


def keys(page, bench, count):
    """Milliseconds from each key press to the frame that shows the value in use."""
    set_number(bench, "cohort", 16)
    slider = bench.locator('input[type="range"][name="local_lr"]')
    used, number = (
        bench.locator('[data-used="local_lr"]'),
        bench.locator('input[type="number"][name="local_lr"]'),
    )
    page.evaluate(KEYS, [place.element_handle() for place in (slider, used, number)])
    press(bench, "Start")
    reach(page, bench, 3)
    slider.focus()
    for number in range(count):
        if bench.get_attribute("data-state") != "running":
            press(bench, "Start")
            reach(page, bench, 3)
            slider.focus()
        page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_function("count => window.delays.length > count", arg=number)
        page.wait_for_timeout(37 * (number % 7))  # at every phase of a round
    press(bench, "Stop")
    expect(bench).to_have_attribute("data-state", "stopped")
    return page.evaluate("() => window.delays")


def looks(page, bench):
    """Open or close the view into the round, and wait until something is seen."""
    page.evaluate(ASK, "look()")
    if bench.locator(".inside").is_visible():
        expect(bench.locator('[data-inside="clients"] circle').first).to_be_attached()


def dies(page, bench):
    """Seconds from the kill of the kernel to the view that says so."""
    return page.evaluate(DEAD, bench.element_handle())


def begin(page, bench, rounds=60):
    """Begin a new run of 64 clients a round, and wait until its first rounds are on the screen.

    rounds: how many; 0 for as many as the workbench begins with.
    """
    press(bench, "Reset")
    expect(bench).to_have_attribute("data-rounds", "0")
    if rounds:
        set_number(bench, "rounds", rounds)
    press(bench, "Start")
    reach(page, bench, 4)


def stops(page, bench, count):
    """Milliseconds from each click on Stop to the view that says so, less a median round."""
    found = []
    for number in range(count):
        begin(page, bench)
        page.wait_for_timeout(23 * number)
        button = bench.get_by_role("button", name="Stop", exact=True)
        took = page.evaluate(STOP, [bench.element_handle(), button.element_handle()])
        stamps = ast.literal_eval(page.evaluate(ASK, "list(stamps)"))
        found.append(took - 1e3 * statistics.median(b - a for a, b in pairwise(stamps)))
    return found


def steadiness(page, bench, seconds):
    """How steadily the view redraws while a long run trains.

    Returns redraws a second, frames, blank frames, and the processor ms of each redraw.
    """
    begin(page, bench, 0)
    page.evaluate(ASK, "draws.clear()")
    found = page.evaluate(FRAMES, [bench.element_handle(), seconds])
    draws = ast.literal_eval(page.evaluate(ASK, "list(draws)"))
    press(bench, "Stop")
    expect(bench).to_have_attribute("data-state", "stopped")
    return *found, draws


def against_headless(page, bench, rounds):
    """Rounds per second with the view over those of the same stream unseen.

    Blocks of 15 rounds are taken in turn.
    """
    page.evaluate(ASK, "setattr(bench.session, 'live', taken_in_turn)")
    begin(page, bench, rounds)
    expect(bench).to_have_attribute("data-state", "done", timeout=300_000)
    return ast.literal_eval(page.evaluate(ASK, "blocks[1:]"))


def beside(page, address, home, work, count):
    """Seconds from each click on Start to a round in the view, while a later cell does `work`."""
    number = WORK.index(work)
    through, name = home / f"through{number}", f"beside{number}.ipynb"
    other = OTHER.format(file=str(through), work=work)
    write_notebook(home / "notebooks" / name, WARM + SOURCE, other)
    page, found = page.context.new_page(), []  # as one that was changed asks before it is left
    bench = start_all(page, address.format(name))
    button = bench.get_by_role("button", name="Start", exact=True)
    for _ in range(count):
        found.append(page.evaluate(FIRST, [bench.element_handle(), button.element_handle()]))
        press(bench, "Reset")
        expect(bench).to_have_attribute("data-rounds", "0")
    through.touch()
    page.wait_for_function(IDLE, timeout=60_000)
    page.close()
    return found


def main() -> None:
    """Measure all and record it."""
    quick = is_quick()
    count, seconds, rounds = (8, 4, 60) if quick else (60, 15, 300)
    note = ", quick" if quick else ""
    with tempfile.TemporaryDirectory() as folder, browser() as chrome:
        page, home = chrome.pages[0], Path(folder)
        (home / "notebooks").mkdir()
        write_notebook(home / "notebooks" / "live.ipynb", SOURCE)
        write_notebook(home / "notebooks" / "many.ipynb", MANY, SOURCE)
        with lab(home) as address:
            bench = run_all(page, address.format("live.ipynb"))
            looks(page, bench)
            in_lab, stopped = keys(page, bench, count), stops(page, bench, max(count // 4, 3))
            redraws, frames, blank, draws = steadiness(page, bench, seconds)
            begin(page, bench)
            expect(bench).to_have_attribute("data-state", "done")
            size = int(page.evaluate(ASK, "kept()"))
            seen = against_headless(page, bench, rounds)
            looks(page, bench)
            ratios = against_headless(page, bench, rounds)
            share = 2 if quick else 7
            first = [s for work in WORK for s in beside(page, address, home, work, share)]
            bench = run_all(page.context.new_page(), address.format("many.ipynb"))
            there = f"many({2 if quick else 20}, {1000 if quick else 10_000})"
            long, grown = ast.literal_eval(bench.page.evaluate(ASK, there))
            dead = dies(bench.page, bench)
            bench.page.close()
        with voila(home, "live.ipynb") as address:
            page.goto(address)
            bench = page.locator(".fedlab-workbench")
            expect(bench).to_have_count(1, timeout=60_000)
            press(bench, "See the round")
            in_voila = keys(page, bench, count)

    def milliseconds(values, worst, goal):
        return entry(
            max(values) if worst else statistics.median(values),
            "ms",
            goal,
            higher=False,
            seeds=1,
            note=f"{len(values)} times, median {statistics.median(values):.0f}, worst "
            f"{max(values):.0f}{note}",
        )

    record(
        "workbench",
        {
            "lab_key_to_visible_ms": milliseconds(in_lab, False, 100),
            "voila_key_to_visible_ms": milliseconds(in_voila, False, 100),
            "stop_ms": milliseconds(stopped, True, 200),
            "start_during_run_all_s": entry(
                max(first),
                "s",
                1,
                higher=False,
                seeds=1,
                note=f"{len(first)} tries, median {statistics.median(first):.2f}{note}",
            ),
            "start_during_run_all_ok": entry(
                sum(s <= 1 for s in first),
                "tries",
                len(first),
                higher=True,
                seeds=1,
                note=f"of {len(first)}, beside a cell that sleeps, multiplies or counts{note}",
            ),
            "redraws_per_s": entry(
                redraws, "1/s", 4, higher=True, seeds=1, note=f"over {seconds} s{note}"
            ),
            "blank_frames": entry(
                blank, "frames", 0, higher=False, seeds=1, note=f"of {frames}{note}"
            ),
            "redraw_kernel_ms": entry(
                statistics.median(draws),
                "ms",
                5,
                higher=False,
                seeds=1,
                note=f"processor time, {len(draws)} redraws, worst {max(draws):.1f}{note}",
            ),
            "live_vs_headless": entry(
                statistics.median(ratios),
                "ratio",
                0.95,
                higher=True,
                seeds=1,
                note=f"{len(ratios)} pairs, from {min(ratios):.2f} to {max(ratios):.2f}{note}",
            ),
            "round_view_cost": entry(
                1 - statistics.median(seen),
                "share",
                0.1,
                higher=False,
                seeds=1,
                note=f"{len(seen)} pairs, from {1 - max(seen):.2f} to {1 - min(seen):.2f}{note}",
            ),
            "dead_kernel_seen_s": entry(dead, "s", 5, higher=False, seeds=1, note=f"once{note}"),
            "redraw_ms_at_10000_rounds": entry(
                statistics.median(long),
                "ms",
                5,
                higher=False,
                seeds=1,
                note=f"processor time, {len(long)} redraws, all take {grown:.0f} MB{note}",
            ),
            "replay_file_kb": entry(
                size / 1e3, "kB", 1000, higher=False, seeds=1, note=f"60 rounds, 24 looks{note}"
            ),
        },
        quick,
    )


if __name__ == "__main__":
    main()
