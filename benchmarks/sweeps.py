"""A sweep on two processes against one by one: 16 runs of lesson 2's federation.

    python benchmarks/sweeps.py [--quick]

Both ways take turns; the time of a sweep is that of all it does, the start of its processes
included. One by one, compiled clients are shared among all cores, as they are by default.
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
    pairs = []
    for _ in range(repeats):
        (one, alone), (two, abreast) = (swept(base, seeds, count) for count in (1, PROCESSES))
        if alone != abreast:
            raise SystemExit("runs on processes differ from those one by one")
        pairs.append((one, two))
    one, two = (median(times) for times in zip(*pairs, strict=True))
    note = (
        f"{seeds} runs of {base.rounds} rounds of all users of lesson 2, {PROCESSES} processes and "
        f"their start: {one:.1f} and {two:.1f} s, median of {repeats} in turn; the same records"
    )
    row = entry(one / two, "times", 1.6, higher=True, seeds=seeds, note=note)
    record("speed", {"sweep_two_cores": row}, quick)


if __name__ == "__main__":
    main()
