"""Flower's simulation: a ClientApp and a ServerApp with FedAvg, as its documentation shows.

Its Ray backend runs them.
"""

import os

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from models_torch import as_numpy, build, train
from protocol import Commands, read_job, save

PATH = os.environ["PEER_JOB"]  # the actors are other processes: they know the job by this
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Train a client for one local epoch."""
    torch.set_num_threads(1)
    model = build(read_job(PATH))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(model, read_job(PATH), int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": read_job(PATH).examples})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Take rounds of FedAvg until told to end."""
    commands, model = Commands(), build(read_job(PATH))

    def after(number: int, arrays: ArrayRecord) -> None:
        if number:
            commands.done()
        if not commands.wait():
            model.load_state_dict(arrays.to_torch_state_dict())
            save(as_numpy(model))
            os._exit(0)  # a strategy has no other way to end early

    FedAvg(
        fraction_train=read_job(PATH).cohort / read_job(PATH).clients, fraction_evaluate=0.0
    ).start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=10_000,
        train_config=ConfigRecord({}),
        evaluate_fn=after,
    )


if __name__ == "__main__":
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=read_job(PATH).clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
