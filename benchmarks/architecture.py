"""Whether parts compose: every pair of them, run together.

python benchmarks/architecture.py [--quick]

What a pair must do is in `composition.py`. Quick: every fortieth pair, without models of texts.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from common import entry, is_quick, record
from composition import Counts, pairs, tried, variants


def composed(quick: bool) -> Counts:
    """What all pairs come to, each process at pairs of its own."""
    every = pairs(variants(heavy_too=not quick)[0])[::40 if quick else 1]
    total = Counts()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads,
                             (1,)) as pool:
        for number, found in enumerate(pool.map(tried, every, chunksize=4), 1):
            total.add(found)
            for line in found.findings:
                print(line)
            if not number % 100:
                print(f"{number} of {len(every)} pairs", flush=True)
    return total


def report(found: Counts, quick: bool) -> None:
    """Record the counts."""
    note = (f"{found.combinations} combinations, {found.works} work, {found.refused} are refused, "
            f"{found.knobs} knobs turned{', quick' if quick else ''}")
    lists = {"composition_silent": (found.silent, "a part without effect"),
             "composition_raw_errors": (found.raw + found.unclear,
                                        "no ParameterError that names parts and a way out"),
             "knobs_ignored": (found.ignored, "turned, and nothing changes or is said"),
             "resume_unequal": (found.unequal, "other bits after going on from a Round")}
    record("architecture", {"composition_pairs": entry(found.pairs, "pairs", None, higher=True,
                                                       seeds=1, note=note)}
           | {name: entry(len(lines), "", 0, higher=False, seeds=1, note=said)
              for name, (lines, said) in lists.items()}, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(composed(is_quick()), is_quick())
