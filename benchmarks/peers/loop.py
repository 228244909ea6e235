"""The hand-written loop: one resident module, reset for each client."""

import torch
from models_torch import as_numpy, build, train
from protocol import read_job, serve

torch.set_num_threads(1)
job = read_job()
server, resident = build(job), build(job)


def step() -> None:
    """Take one round of FedAvg."""
    start = [p.detach().clone() for p in server.parameters()]
    mean = [torch.zeros_like(p) for p in start]
    for client in torch.randperm(job.clients)[: job.cohort].tolist():
        with torch.no_grad():
            for mine, first in zip(resident.parameters(), start, strict=True):
                mine.copy_(first)
        train(resident, job, client)
        with torch.no_grad():
            for total, mine, first in zip(mean, resident.parameters(), start, strict=True):
                total.add_(mine - first, alpha=1 / job.cohort)
    with torch.no_grad():
        for p, delta in zip(server.parameters(), mean, strict=True):
            p.add_(delta)


serve(step, lambda: as_numpy(server))
