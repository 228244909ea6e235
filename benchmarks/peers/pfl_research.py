"""Apple's pfl-research: FederatedAveraging over its SimulatedBackend, with its PyTorch model."""

import numpy as np
import torch
from models_torch import as_numpy, build, columns, loss
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from protocol import Commands, read_job, save

torch.set_num_threads(1)
job = read_job()
net = build(job)
net.loss = lambda *batch, **_: loss(net, *batch)
net.metrics = lambda *batch, **_: {
    "loss": Weighted(float(loss(net, *batch)) * len(batch[-1]), len(batch[-1]))
}
commands = Commands()


class OnCommand(TrainingProcessCallback):
    """Report each iteration, and go on when told to."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Whether to stop, and no metrics of its own."""
        commands.done()
        return not commands.wait(), Metrics()


def dataset(user: int) -> PyTorchTensorDataset:
    """A client's shuffled examples."""
    order = torch.from_numpy(np.random.permutation(job.examples))
    return PyTorchTensorDataset(tuple(c[order] for c in columns(job, user)), user_id=str(user))


users = FederatedDataset(dataset, get_user_sampler("random", list(range(job.clients))))
model = PyTorchModel(
    net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
)
commands.wait()
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=10_000,
        evaluation_frequency=10_000,
        train_cohort_size=job.cohort,
        val_cohort_size=None,
    ),
    backend=SimulatedBackend(training_data=users, val_data=None),
    model=model,
    model_train_params=NNTrainHyperParams(
        local_batch_size=job.batch, local_num_epochs=1, local_learning_rate=job.rate
    ),
    callbacks=[OnCommand()],
    send_metrics_to_platform=False,
)
save(as_numpy(net))
