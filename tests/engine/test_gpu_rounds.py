"""Whole rounds on a GPU beside those on the CPU; without a GPU there is nothing to compare."""

import itertools

import pytest
import torch

from fedlab import (
    Federation,
    Scaffold,
    Settings,
    federate,
    load,
    load_round,
    matrix_factorisation,
    one_per_user,
    save_round,
)
from fedlab.workbench import PRESETS, stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
BARE = [name for name in PRESETS if "MiniLM" not in name]


def after_two(settings):
    *_, done = itertools.islice(stream(lambda: settings), 2)
    return done


@pytest.mark.parametrize("name", BARE)
def test_a_preset_trains_there_as_on_the_cpu(name):
    here = PRESETS[name].replace(rounds=2)
    drawn = "noise" in here.get("uplink", "")  # from the system, unless for teaching
    if drawn:
        here = here.replace(teaching_seed=1)
    expected, done = (after_two(here.replace(device=where)) for where in ("cpu", "cuda"))
    again = after_two(here.replace(device="cuda"))
    for key, value in expected.params.items():
        torch.testing.assert_close(done.params[key].cpu(), value, atol=1e-3, rtol=1e-3)
        assert torch.equal(done.params[key], again.params[key])


@pytest.mark.parametrize("local", [None, Scaffold()])
def test_a_run_resumes_there_to_the_same_bits(local, tmp_path):
    films = load()
    data, model = Federation(films, one_per_user(films)), matrix_factorisation(671, 9066, 8)
    settings = Settings(rounds=4, cohort=30, server_optimizer="adam", server_lr=0.1)
    every = list(federate(model, data, settings, local=local, device="cuda"))
    save_round(every[1], tmp_path / "kept")
    start = load_round(tmp_path / "kept")
    *_, end = federate(model, data, settings, local=local, device="cuda", start=start)
    for name, value in every[-1].params.items():
        assert torch.equal(end.params[name], value)
