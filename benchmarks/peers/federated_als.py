"""fedlab's `Implicit` through its own API: a step is a round over everybody."""

import json
import sys
from pathlib import Path

import torch
from protocol import serve

from fedlab import Implicit, Settings, Stored, federate, matrix_factorisation

torch.set_num_threads(1)
job = json.loads(Path(sys.argv[1]).read_text())
data = Stored(Path(job["folder"]))
model = matrix_factorisation(len(data), data.item_count, job["dim"])
settings = Settings(rounds=10_000, cohort=len(data))
rounds = federate(model, data, settings, local=Implicit())
latest = {}


def step() -> None:
    """Take one round."""
    latest.update(next(rounds).params)


serve(step, lambda: {name: latest[name].numpy() for name in ("user", "item")})
