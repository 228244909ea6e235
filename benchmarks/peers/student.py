"""The student's loop: a deep copy of the model and a DataLoader for each client.

The state dicts are averaged.
"""

import copy

import torch
from models_torch import as_numpy, build, columns, loss
from protocol import read_job, serve
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
job = read_job()
server = build(job)


def step() -> None:
    """Take one round of FedAvg."""
    states = []
    for client in torch.randperm(job.clients)[: job.cohort].tolist():
        local = copy.deepcopy(server)
        optimizer = torch.optim.SGD(local.parameters(), lr=job.rate)
        for batch in DataLoader(
            TensorDataset(*columns(job, client)), batch_size=job.batch, shuffle=True
        ):
            optimizer.zero_grad()
            loss(local, *batch).backward()
            optimizer.step()
        states.append(local.state_dict())
    server.load_state_dict({n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]})


serve(step, lambda: as_numpy(server))
