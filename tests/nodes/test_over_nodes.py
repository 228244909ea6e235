"""Over nodes a run is what it is in one process: shared and private parameters, to 1e-5."""

import pytest
from world import Table, World, difference

from fedlab.algorithms import Buffered, Scaffold, federate
from fedlab.communication import ErrorFeedback
from fedlab.core import Settings
from fedlab.engine import SGD
from fedlab.privacy import Clip, GaussianNoise, LocalNoise

USUAL = Settings(rounds=20, cohort=12, local_lr=1.0, server_lr=5.0)
PRIVATE = USUAL.replace(teaching_seed=3, sampling="poisson", delta=1e-3, clip=0.5)
KINDS = {
    "plain": (USUAL.replace(weighting="equal"), {}),
    "weighted by examples": (USUAL, {}),
    "with drop-outs": (USUAL.replace(drop_out=0.3, weighting="equal"), {}),
    "SCAFFOLD": (USUAL.replace(local_lr=0.5), {"local": Scaffold}),
    "FedProx": (USUAL.replace(proximal=0.1), {}),
    "a codec": (USUAL, {"uplink": [ErrorFeedback]}),
    "noise on the sum": (PRIVATE, {"uplink": [Clip, GaussianNoise]}),
    "clients' own noise": (PRIVATE.without(["sampling"]), {"uplink": [Clip, LocalNoise]}),
    "FedBuff": (USUAL.replace(buffer=5), {"schedule": Buffered}),
    "FedAsync": (USUAL.replace(method="fedasync", server_lr=0.5), {"schedule": Buffered}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_over_nodes_is_as_in_one_process(kind):
    settings, parts = KINDS[kind]
    world = World()
    local, uplink = parts.get("local", SGD)(), [stage() for stage in parts.get("uplink", [])]
    more = {"schedule": parts["schedule"]()} if "schedule" in parts else {}
    far = world.far(local=local, uplink=uplink)
    ones = federate(world.model, world.data, settings, local=local, uplink=uplink, **more)
    for one, there in zip(ones, far.rounds(settings, **more), strict=True):
        assert set(there.cohort.tolist()) == set(one.cohort.tolist())
        assert there.rejected.keys() == one.rejected.keys()
        assert "user" not in there.params
        assert difference(one.params, there.params) < 1e-5
        assert there.clock == one.clock
        assert there.metrics == one.metrics
    assert one.number == 20
    far.measure(there)  # tells nodes what counted in the last round
    assert float((world.private(there) - one.params["user"]).abs().max()) < 1e-5
    moved = one.params["user"] - world.model.init(0)["user"]
    assert float(moved.abs().max()) > 0.01


def test_any_table_of_examples():
    table, settings = Table(), Settings(rounds=20, cohort=8, local_lr=0.5)
    ones = federate(table.model, table.data, settings)
    for one, there in zip(ones, table.far().rounds(settings), strict=True):
        assert difference(one.params, there.params) < 1e-5
    assert difference(one.params, table.model.init(0)) > 0.1
