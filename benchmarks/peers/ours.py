"""fedlab through its own API: `federate` over a table of examples, or over lesson 2's clicks."""

from dataclasses import replace

import torch
from protocol import read_job, serve

from fedlab import (
    Columns,
    Federation,
    Settings,
    federate,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
    perceptron,
)

torch.set_num_threads(1)
job = read_job()
weights = {name: torch.from_numpy(value) for name, value in job.weights.items()}
if job.model == "clicks":
    train = leave_one_out(load()).train
    data = Federation(train, one_per_user(train))
    more = {"server_lr": job.server_rate, "negatives": job.negatives, "weighting": "equal"}
else:
    flat = {name: torch.from_numpy(c).flatten(0, 1) for name, c in job.columns.items()}
    data = Columns(flat, torch.arange(job.clients).repeat_interleave(job.examples))
    more = {}
if job.model == "mlp":
    model = perceptron(64, 64)
    first = {
        "w1": weights["first.weight"].T[None].contiguous(),
        "b1": weights["first.bias"][None],
        "w2": weights["second.weight"],
        "b2": weights["second.bias"][None],
    }
else:
    private = job.model != "mf"
    model = matrix_factorisation(
        len(weights["user.weight"]), *weights["item.weight"].shape, private_users=private
    )
    first = {
        "user": weights["user.weight"],
        "item": weights["item.weight"],
        "bias": weights["bias.weight"][:, 0],
    }
model = replace(model, init=lambda seed: first)
settings = Settings(
    rounds=10_000, cohort=job.cohort, batch_size=job.batch, local_lr=job.rate, workers=1, **more
)
rounds = federate(model, data, settings)
latest = []


def step() -> None:
    """Take one round."""
    latest[:] = [next(rounds)]


def final() -> dict:
    """The weights under the names that the job gave them."""
    p = {name: value.numpy() for name, value in latest[0].params.items()}
    if job.model == "mlp":
        return {
            "first.weight": p["w1"][0].T,
            "first.bias": p["b1"][0],
            "second.weight": p["w2"],
            "second.bias": p["b2"][0],
        }
    return {"user.weight": p["user"], "item.weight": p["item"], "bias.weight": p["bias"][:, None]}


serve(step, final)
