"""Faulty clients: a sample of the matrix that `benchmarks/faults.py` runs in full."""

import random

import pytest
from faults import AGAIN, CONTROL, FAULTS, LONG, ROADS, stage_roads, tried

ROAD_NAMES = [*ROADS, *stage_roads()]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_of_a_client_breaks_a_run_or_gets_in(fault):
    roads = random.Random(fault).sample(ROAD_NAMES, 6)
    for seed, road in enumerate(dict.fromkeys(["FedAvg", *roads])):
        found = tried((road, fault, seed, fault == LONG))
        assert found["runs"] == 1
        for what in (
            "crashes",
            "not finite",
            "above 1000",
            "bad taken",
            "honest refused",
            "wrong books",
        ):
            assert not found[what], found
        if road == "FedAvg":
            assert found["honest"] > 10
            assert bool(found["bad"]) == (fault not in (*AGAIN, CONTROL))
