"""The ways to take local steps: the same results, and no new code for a turned knob.

Where a way cannot run, it says so in plain words.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fedlab.algorithms import Scaffold, federate, sample
from fedlab.core import Key, ParameterError, Settings
from fedlab.data import Columns
from fedlab.engine import SGD, LocalSettings, arrange, holdings, padded, step
from fedlab.models import from_module, perceptron

G = torch.Generator().manual_seed(0)
X = torch.randn(900, 6, generator=G)
VECTORS = Columns({"x": X, "target": (X[:, 0] > 0).float()}, torch.arange(900) % 30)


def close(a, b, atol=1e-5):
    for n in a.params:
        torch.testing.assert_close(a.params[n], b.params[n], atol=atol, rtol=atol)
    torch.testing.assert_close(a.losses, b.losses, atol=atol, rtol=atol)


def network():
    torch.manual_seed(0)
    return from_module(
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)), {"x": X[:2]}
    )


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("matrix factorisation", SGD(weight_decay=0.01, local_lr=0.2)),
        ("interaction", SGD(optimizer="adamw", local_lr=0.01, weight_decay=0.05)),
        ("module", SGD(batch_size=7, local_epochs=2)),
        ("matrix factorisation", Scaffold(proximal=0.1, local_lr=0.2)),
    ],
)
def test_compiled_rounds_equal_eager_ones_on_clients_of_every_length(name, local, build, clicks):
    data = VECTORS if name == "module" else clicks
    model = network() if name == "module" else build(name, clicks.train)
    few = Settings(rounds=2, cohort=25)
    for a, b in zip(
        federate(model, data, few, local=local),
        federate(model, data, few.replace(engine="compiled"), local=local),
        strict=True,
    ):
        close(a, b)


def test_a_turned_knob_runs_the_code_that_is_there():
    model, now = perceptron(6, 8), Settings(cohort=20, engine="compiled")
    next(federate(model, VECTORS, now))
    before = counters["stats"]["unique_graphs"]
    for turned in (
        {"local_lr": 0.1},
        {"cohort": 13},
        {"batch_size": 9},
        {"local_epochs": 3},
        {"weight_decay": 0.1},
        {"server_lr": 2.0},
        {"weighting": "equal"},
        {"seed": 5},
        {"cohort": 1},
        {"batch_size": 1},
    ):
        now = now.replace(**turned)
        close(
            next(federate(model, VECTORS, now)),
            next(federate(model, VECTORS, now.replace(engine="eager"))),
        )
    assert counters["stats"]["unique_graphs"] == before
    assert before > 0


def test_bf16_rounds_the_products_and_keeps_the_weights_in_fp32():
    model, usual = perceptron(6, 8), Settings(rounds=3, cohort=30, local_lr=0.1)
    full, half = (
        list(federate(model, VECTORS, usual.replace(precision=p)))[-1] for p in ("fp32", "bf16")
    )
    assert all(v.dtype == torch.float32 for v in half.params.values())
    assert half.losses.dtype == torch.float32
    close(full, half, atol=0.01)  # bfloat16 keeps 8 bits
    assert any(not torch.equal(full.params[n], half.params[n]) for n in full.params)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_room_for_more_rows_changes_no_result(optimizer, build, clicks):
    """A CUDA graph replays the same steps with table rows padded to a power of two."""
    model = build("matrix factorisation", clicks.train)
    local = LocalSettings(optimizer=optimizer, local_lr=0.1)
    params, cohort = model.init(0), sample(clicks, 5, 1)
    examples = clicks.draw(cohort, 1, 4, Key(0, "x"))
    short = int(torch.bincount(examples["client"]).min())
    # all clients take equal numbers of steps
    keep = torch.cat([(examples["client"] == c).nonzero()[:short, 0] for c in range(5)])
    batches = arrange({n: c[keep] for n, c in examples.items()}, 1, 16)
    kinds = holdings(model, params, batches, cohort)

    def work():
        values = {n: params[n].index_select(0, kinds[k].ids) for n, k in model.rows.items()}
        means, squares = (
            {n: torch.zeros_like(v) for n, v in values.items() if optimizer == "adamw"}
            for _ in "mv"
        )
        rows = {"values": values, "means": means, "squares": squares, "fixed": {}, "later": {}}
        return step.Work(
            rows,
            {k: h.index for k, h in kinds.items()},
            batches.columns,
            batches.weight,
            batches.active,
            {n: kinds[k].live for n, k in model.rows.items()},
        )

    exact, numbers = work(), step.hyper(local, len(batches.active))
    wide = padded(work(), model.rows)
    assert (
        len(wide.rows["values"]["item"])
        == 1 << (len(exact.rows["values"]["item"]) - 1).bit_length()
    )
    assert len(wide.rows["values"]["user"]) == 5
    take = step.build(model, optimizer, "fp32")
    a, b = (step.loop(take, take, w, {}, numbers) for w in (exact, wide))
    assert torch.equal(a, b)
    for n, v in exact.rows["values"].items():
        assert torch.equal(v, wide.rows["values"][n][: len(v)])


def test_without_a_compiler_or_a_gpu_the_fix_is_named(monkeypatch):
    model, few = perceptron(6, 8), Settings(rounds=1, cohort=3)
    with pytest.raises(
        ParameterError, match="engine='captured': CUDA graphs need device='cuda', not 'cpu'"
    ):
        next(federate(model, VECTORS, few.replace(engine="captured")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ParameterError, match=r"engine='compiled': no C\+\+ compiler on this machine; install g\+\+"
    ):
        next(federate(model, VECTORS, few.replace(engine="compiled")))
    assert next(federate(model, VECTORS, few)).number == 1


def test_a_model_that_cannot_be_compiled_says_so():
    def odd(p, batch):
        print(float(p["w1"].sum()))  # needs a value while it is traced
        return perceptron(6, 8).predict(p, batch)

    model = replace(perceptron(6, 8), predict=odd, pullback=None)
    with pytest.raises(
        ParameterError, match=r"engine='compiled': the model cannot be compiled .*; choose 'eager'"
    ):
        next(federate(model, VECTORS, Settings(cohort=5, engine="compiled")))
