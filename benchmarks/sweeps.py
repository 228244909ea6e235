"""A sweep on two processes against one run after another: 16 runs of lesson 2's federation.

    python benchmarks/sweeps.py [--quick]

The ways take turns; the time of a sweep is that of all it does, the start of its processes too.
`sweep_two_cores`: over one run after another on one thread; `sweep_over_threads`: over one run
after another whose compiled clients share all cores, as they do by default.
"""

import time
from statistics import median

from common import entry, is_quick, parameters, record

from fedlab import Settings
from fedlab.workbench import Experiment, Runs, Sweep, Trials, better, stream

PROCESSES = 2


def lesson(quick: bool) -> Settings:
    """The settings of lesson 2's main run, with fewer rounds where that is enough."""
    held = parameters("02_fedavg")
    return Settings(
        rounds=3 if quick else held["ROUNDS"],
        cohort=671,
        dim=held["DIM"],
        local_lr=held["LOCAL_LR"],
        server_lr=held["SERVER_LR"],
        batch_size=held["BATCH_SIZE"],
        weighting="equal",
        measure_every=2,
    )


def swept(base: Settings, seeds: int, processes: int) -> tuple[float, list]:
    """Seconds of a sweep over seeds, and the records of its runs without their times."""
    runs = Runs(None, better())
    what = Sweep({"seed": list(range(seeds))}, "ndcg@10", "max")
    named = [(what.name(trial), trial) for trial in what.trials(base)]
    began = time.perf_counter()
    for _ in Trials(stream, named, runs, runs.begin, print).job(processes):
        pass
    took = time.perf_counter() - began
    left_out = {"seconds": 0}
    return took, [[each | left_out for each in run.records] for run in runs.listed()]


def main() -> None:
    quick = is_quick()
    base, seeds, repeats = lesson(quick), 4 if quick else 16, 1 if quick else 5
    Experiment(base).federation  # noqa: B018 - read before the clock starts, as in a notebook
    ways = ((Settings(**{**base, "workers": 1}), 1), (base, 1), (base, PROCESSES))
    turns = []
    for _ in range(repeats):
        done = [swept(asked, seeds, processes) for asked, processes in ways]
        if any(records != done[0][1] for _, records in done):
            raise SystemExit("runs on processes or threads differ from those one by one")
        turns.append([took for took, _ in done])
    one, threads, two = (median(times) for times in zip(*turns, strict=True))
    note = (
        f"{seeds} runs of {base.rounds} rounds of all users of lesson 2, {PROCESSES} processes and "
        f"their start: {{:.1f}} and {two:.1f} s, median of {repeats} in turn; the same records"
    )
    found = {
        "sweep_two_cores": entry(
            one / two, "times", 1.6, higher=True, seeds=seeds, note=note.format(one)
        ),
        "sweep_over_threads": entry(
            threads / two, "times", None, higher=True, seeds=seeds, note=note.format(threads)
        ),
    }
    record("speed", found, quick)


if __name__ == "__main__":
    main()
