"""Write the README's tables from benchmarks/results, between the markers there.

python benchmarks/tables.py [--print]
"""

import json
import sys

from common import RESULTS, ROOT

START, END = "<!-- results: made by benchmarks/tables.py -->", "<!-- end of results -->"
QUALITY = {"local": "each user alone", "popularity": "popularity", "fedavg": "FedAvg, 671 clients",
           "central": "the same model on pooled data"}
SPEED = {"stacked_vs_loop_100": "100 users a round, against a loop with dense tables",
         "stacked_vs_row_loop_100": "100 users a round, against a loop over touched rows",
         "stacked_vs_loop_671": "all 671 users a round, against a loop with dense tables"}


def measured(name: str) -> dict:
    """The measured figures of one results file."""
    return json.loads((RESULTS / f"{name}.json").read_text())["measured"]


def tables() -> str:
    """Both tables as Markdown."""
    quality, speed = measured("quality"), measured("speed")

    def cell(name: str, metric: str) -> str:
        row = quality.get(f"mlsmall_{name}_{metric}")
        return f"{row['value']:.3f}" if row else "-"
    seeds = quality["mlsmall_fedavg_hr10"]["seeds"]
    lines = [f"ml-latest-small, leave-one-out by time, clean negatives, ties against us, mean of {seeds} seeds:", "",
             "| | HR@10 | NDCG@10 | HR@10, full ranking | NDCG@10, full ranking |", "| --- | --- | --- | --- | --- |"]
    metrics = ("hr10", "ndcg10", "full_hr10", "full_ndcg10")
    lines += [f"| {label} | {' | '.join(cell(name, m) for m in metrics)} |" for name, label in QUALITY.items()]
    lines += ["", f"One CPU thread, fp32, matrix factorisation at 9,066 items; a round of all 671 users takes "
              f"{speed['round_s_671']['value']:.2f} s and the process peaks at {speed['peak_mb_671']['value']:.0f} MB:",
              "", "| the engine | times faster |", "| --- | --- |"]
    lines += [f"| {label} | {speed[name]['value']:.1f} |" for name, label in SPEED.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(tables())
    else:
        readme = ROOT / "README.md"
        head, rest = readme.read_text().split(START)
        readme.write_text(f"{head}{START}\n{tables()}\n{END}{rest.split(END)[1]}")
