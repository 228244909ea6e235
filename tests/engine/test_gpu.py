"""Clients on a GPU: which clients there are kernels for, and that the kernels are right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedlab import from_module, interaction, matrix_factorisation, perceptron
from fedlab.engine import LocalSettings, gpu

linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
SIZES = 30, 40


def alone(*given, **more):
    """Run Python on a file beside this one, in a process of its own."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, *given[:-1], here / given[-1]],
        capture_output=True,
        text=True,
        check=False,
        cwd=here.parents[1],
        env=os.environ | more,
    )


@linux
def test_kernels_train_as_eager_steps_do():
    without = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    quiet = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    done = alone(*quiet, "run_kernels.py", **without)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize(
    ("model", "knobs", "why"),
    [
        (interaction(*SIZES, 6), {}, "no kernel for the model"),
        (from_module(torch.nn.Linear(5, 1), {"x": torch.zeros(2, 5)}), {}, "no kernel"),
        (matrix_factorisation(*SIZES, 6), {"optimizer": "adamw"}, "optimizer='adamw'"),
        (matrix_factorisation(*SIZES, 6), {"batch_size": 0}, "batch_size=0"),
        (matrix_factorisation(*SIZES, 6), {"batch_size": 500}, "batch_size=500"),
        (matrix_factorisation(*SIZES, 200), {}, "200 columns"),
        (perceptron(5, 400), {}, "400 columns"),
    ],
)
def test_what_no_kernel_trains_is_said(model, knobs, why):
    assert why in gpu.unfit(model, model.init(0), LocalSettings(**knobs))


@linux
def test_kernels_compile_for_a_gpu_that_is_not_here():
    """What the interpreter takes and the compiler does not would fail on a user's machine alone."""
    done = alone("compile_kernels.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["philox", *["factors"] * 4, *["perceptron"] * 2, "sum_rows"]
