"""The engine against a plain loop over clients, interleaved in one run, one CPU thread.

python benchmarks/speed.py [--quick]

The same round of lesson 2 three ways: the engine; the loop that everybody writes (one resident model with
dense embedding tables, reset for each client, `torch.optim.SGD`); and a stricter loop that holds only the rows
a client touches. All three draw the same examples and must end with the same parameters.
"""

import resource
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import torch
from common import entry, is_quick, parameters, record
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab import Config, Federation, leave_one_out, load, matrix_factorisation, one_per_user
from fedlab.core import stream
from fedlab.server import one_round, sample


class Plain(nn.Module):
    """Matrix factorisation as a tutorial writes it."""

    def __init__(self, users: int, items: int, dim: int) -> None:
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(users, dim), nn.Embedding(items, dim), nn.Embedding(items, 1)

    def forward(self, user, item):
        """Logits (B,)."""
        return (self.user(user) * self.item(item)).sum(1) + self.bias(item)[:, 0]


def loop_round(params, data, config, number, dense: bool):
    """A round as a loop over clients; dense: whole tables, or only the rows a client touches."""
    cohort = sample(data, config, number)
    examples = data.draw(cohort, config.local_epochs, config.negatives, stream(config.seed, "examples", number))
    mean = {name: torch.zeros_like(value) for name, value in params.items()}
    new_users = params["user"].clone()
    items, dim = params["item"].shape
    resident = Plain(1, items, dim)
    for position, client in enumerate(cohort.tolist()):
        own = {n: c[examples["client"] == position] for n, c in examples.items()}
        ids, places = (torch.arange(items), own["item"]) if dense else own["item"].unique(return_inverse=True)
        model = resident if dense else Plain(1, len(ids), dim)
        with torch.no_grad():
            model.user.weight.copy_(params["user"][client])
            model.item.weight.copy_(params["item"] if dense else params["item"][ids])
            model.bias.weight.copy_((params["bias"] if dense else params["bias"][ids])[:, None])
        optimizer = torch.optim.SGD(model.parameters(), lr=config.local_lr)
        for cut in torch.arange(len(places)).split(config.batch_size):
            optimizer.zero_grad()
            logits = model(torch.zeros_like(cut), places[cut])
            binary_cross_entropy_with_logits(logits, own["target"][cut]).backward()
            optimizer.step()
        with torch.no_grad():
            new_users[client] = model.user.weight[0]
            mean["item"].index_add_(0, ids, (model.item.weight - params["item"][ids]) / len(cohort))
            mean["bias"].index_add_(0, ids, (model.bias.weight[:, 0] - params["bias"][ids]) / len(cohort))
    step = {name: params[name] + config.server_lr * mean[name] for name in ("item", "bias")}
    return step | {"user": new_users}


def setting(cohort: int):
    """Lesson 2's federation, model and settings with another cohort."""
    lesson = parameters("02_fedavg")
    train = leave_one_out(load()).train
    data = Federation(train, one_per_user(train))
    model = matrix_factorisation(train.user_count, train.item_count, lesson["DIM"])
    config = Config(cohort=cohort, local_lr=lesson["LOCAL_LR"], server_lr=lesson["SERVER_LR"], weighting="equal",
                    batch_size=lesson["BATCH_SIZE"])
    return model, data, config


def timed(work):
    """(result, seconds)."""
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


def compare(cohort: int, repeats: int, batch_size: int | None = None) -> tuple[dict[str, float], float]:
    """Median seconds a round of each way, interleaved, and the largest difference of the parameters."""
    model, data, config = setting(cohort)
    config = replace(config, batch_size=batch_size or config.batch_size)
    params = model.init(stream(0, "init"))
    seconds: dict[str, list[float]] = {"engine": [], "dense loop": [], "row loop": []}
    one_round(model, data, config, params, 0)                                  # warm up
    for number in range(1, repeats + 1):
        round_, took = timed(lambda n=number: one_round(model, data, config, params, n))
        seconds["engine"].append(took)
        ends = [round_.params]
        for name in ("dense loop", "row loop"):
            end, took = timed(lambda n=number, d=name == "dense loop": loop_round(params, data, config, n, d))
            seconds[name].append(took)
            ends.append(end)
        worst = max(float((a[n] - ends[0][n]).abs().max()) / config.server_lr for a in ends[1:] for n in params)
    print(f"{cohort} users, B={config.batch_size}:", {k: f"{median(v):.3f} s" for k, v in seconds.items()},
          f"difference {worst:.1e}", flush=True)
    assert worst < 1e-5
    return {name: median(values) for name, values in seconds.items()}, worst


def main(quick: bool) -> None:
    repeats = 3 if quick else 9
    hundred, _ = compare(100, repeats)
    wide, _ = compare(100, 1 if quick else 5, batch_size=64)
    everyone, _ = compare(671, 1 if quick else 3)
    peak = float(subprocess.run([sys.executable, __file__, "peak"], check=True, capture_output=True, text=True).stdout)
    tail = f"median of {repeats} interleaved rounds, one thread{', quick' if quick else ''}"

    def ratio(times, against, note, goal=None):
        return entry(times[against] / times["engine"], "ratio", goal, higher=True, seeds=1, note=f"{note}; {tail}")
    record("speed", {
        "stacked_vs_loop_100": ratio(hundred, "dense loop", "loop with dense tables, 100 users, B=32", 12),
        "stacked_vs_loop_100_b64": ratio(wide, "dense loop", "the same, B=64"),
        "stacked_vs_row_loop_100": ratio(hundred, "row loop", "loop over touched rows only, 100 users"),
        "stacked_vs_loop_671": ratio(everyone, "dense loop", "loop with dense tables, all 671 users"),
        "stacked_vs_row_loop_671": ratio(everyone, "row loop", "loop over touched rows only, all 671 users"),
        "round_s_671": entry(everyone["engine"], "s", None, higher=False, seeds=1, note=f"9,066 items; {tail}"),
        "peak_mb_671": entry(peak, "MB", 1500, higher=False, seeds=1,
                             note="process peak with torch, 3 rounds of all 671 users at 9,066 items"),
    }, quick)


def peak() -> None:
    """Print the peak memory in MB of a process that runs three rounds of everybody."""
    model, data, config = setting(671)
    params = model.init(stream(0, "init"))
    for number in range(1, 4):
        params = one_round(model, data, config, params, number).params
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    peak() if sys.argv[1:] == ["peak"] else main(is_quick())
