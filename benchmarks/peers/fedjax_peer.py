"""fedjax: its federated averaging over in-memory federated data, with its jit backend."""

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from protocol import read_job, serve

job = read_job()


def logits(p, batch):
    """The job's model on a batch."""
    if job.model == "mlp":
        h = jax.nn.relu(batch["x"] @ p["first.weight"].T + p["first.bias"])
        return (h @ p["second.weight"].T)[:, 0] + p["second.bias"][0]
    user, item = p["user.weight"][batch["user"]], p["item.weight"][batch["item"]]
    return (user * item).sum(1) + p["bias.weight"][batch["item"], 0]


def loss(p, batch, rng):
    """Mean cross-entropy."""
    y = logits(p, batch)
    return jnp.mean(jnp.maximum(y, 0) - y * batch["target"] + jnp.log1p(jnp.exp(-jnp.abs(y))))


algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    jax.grad(loss),
    fedjax.optimizers.sgd(job.rate),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=job.batch, num_epochs=1, drop_remainder=False),
)
data = fedjax.InMemoryFederatedData(
    {
        b"%d" % client: {name: column[client] for name, column in job.columns.items()}
        for client in range(job.clients)
    }
)
sampler = fedjax.client_samplers.UniformGetClientSampler(data, num_clients=job.cohort, seed=0)
states = [algorithm.init({name: jnp.asarray(value) for name, value in job.weights.items()})]


def step() -> None:
    """Take one round and wait for it."""
    state, _ = algorithm.apply(states.pop(), sampler.sample())
    jax.block_until_ready(state.params)
    states.append(state)


serve(step, lambda: {name: np.asarray(value) for name, value in states[0].params.items()})
