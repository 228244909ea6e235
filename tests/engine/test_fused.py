"""Compiled clients: the oracle's numbers, the data's own draws, the same bits on any threads."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
from conftest import tiny
from numba.core.caching import CacheImpl
from oracle import train_one
from test_cohort import SETTINGS, per_client

from fedlab.algorithms import Scaffold, federate, sample
from fedlab.algorithms.scaffold import Control
from fedlab.core import Key, ParameterError, Settings, SparseTable, Stage
from fedlab.core import tree as tree_module
from fedlab.core.loops.cpu import compiled
from fedlab.data import Columns, Federation, layout_of
from fedlab.data.sources import synthesise
from fedlab.engine import SGD, LocalSettings, compiling, how, updates, warm
from fedlab.engine.fused.pool import in_order
from fedlab.evaluation import leaky
from fedlab.models import matrix_factorisation, perceptron
from fedlab.models.model import hybrid

WIDE = {"local_lr": 0.3, "workers": 1}


def table(rows=900, users=20, items=60):
    generator = torch.Generator().manual_seed(3)
    owner = torch.arange(rows) % users
    item = torch.randint(items, (rows,), generator=generator)
    return Columns({"user": owner, "item": item, "target": (item % 3 == 0).float()}, owner)


def cases(clicks, stars):
    platforms = torch.arange(len(clicks.owner)) % 30
    return {
        "clicks": (clicks, True),
        "stars": (stars, True),
        "platforms": (Federation(clicks.train, platforms), True),
        "shared users": (clicks, False),
        "platforms that share users": (Federation(clicks.train, platforms), False),
        "columns": (table(), True),
    }


CASES = ["clicks", "stars", "platforms", "shared users", "platforms that share users", "columns"]


def model_of(data, private, dim=6):
    train = getattr(data, "train", None)
    sizes = (train.user_count, train.item_count) if train is not None else (20, 60)
    return matrix_factorisation(*sizes, dim, task=data.task, private_users=private)


def check_against_oracle(data, model, local, control=None, clients=12):
    params, cohort = model.init(1), sample(data, clients, 1)
    examples = data.draw(cohort, local.local_epochs, local.negatives, Key(0, "examples", 1))
    examples |= model.noise(cohort, torch.bincount(examples["client"]), Key(0, "noise", 1))
    kept = 1 - getattr(model.predict, "dropout", 0.0)
    assert how(model, data, params, local) == "fused"
    sent = list(updates(model, data, params, cohort, local, correction=control))
    assert torch.equal(torch.cat([each.cohort for each in sent]), cohort)
    first = 0
    for update in sent:
        for c, mine in enumerate(per_client(update.deltas, len(update.cohort))):
            own = {n: column[examples["client"] == first + c] for n, column in examples.items()}
            shift = None
            if control:
                who = cohort[first + c : first + c + 1]
                shift = {
                    n: control.shift(n, torch.arange(len(rows)), torch.zeros(len(rows)).long(), who)
                    for n, rows in control.server.items()
                }
            expected, loss = train_one(model, params, own, local, kept, shift)
            assert float(update.losses[c]) == pytest.approx(loss, rel=1e-4, abs=1e-5)
            for name, rows in expected.items():
                assert sorted(rows) == list(mine[name])
                right = torch.stack([rows[row] for row in sorted(rows)])
                away = torch.stack(list(mine[name].values())) - right
                # AdamW steps as far where a gradient is nothing but rounding
                near = 0.03 if local.optimizer == "adamw" else 1e-4
                # it begins at 1, others near 0: each step rounds it
                step = (
                    3e-8
                    if name in model.private or "item" in name
                    else 1e-7 * float(update.steps[c]) ** 0.5
                )
                rounding = step * right.numel() ** 0.5  # of the oracle, which subtracts
                assert float(away.norm()) <= near * float(right.norm()) + rounding, (name, c)
        first += len(update.cohort)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_client_learns_what_the_oracle_learns(case, setting, clicks, stars):
    data, private = cases(clicks, stars)[case]
    usual = {"local_lr": 0.02} if data.task == "ratings" else {}
    local = LocalSettings(**usual | SETTINGS[setting])
    check_against_oracle(data, model_of(data, private), local)


@pytest.mark.parametrize("case", ["clicks", "platforms that share users"])
def test_control_variates_reach_compiled_clients(case, clicks, stars):
    data, private = cases(clicks, stars)[case]
    model = model_of(data, private)
    shared = {n: value for n, value in model.init(2).items() if n not in model.private}
    control = replace(Control.of(shared), server={n: 0.1 * value for n, value in shared.items()})
    for more in ({}, {"weight_decay": 0.05}):
        local = LocalSettings(local_lr=0.2, local_epochs=2, **more)
        check_against_oracle(data, model, local, control)


class Nothing(Stage):
    """A stage on the way, so that updates are seen one by one."""

    side = "client"
    keeps = ("clipped", "equal")


def last(model, data, uplink=(), local=None, **asked):
    *_, done = federate(
        model,
        data,
        Settings(
            **{"rounds": 3, "cohort": min(50, len(data)), "local_lr": 1.0, "server_lr": 20.0}
            | asked
        ),
        uplink=uplink,
        local=local,
    )
    return done


def same(one, other):
    assert one.params.keys() == other.params.keys()
    for name, value in one.params.items():
        assert torch.equal(value, other.params[name]), name
    for name in ("cohort", "losses", "norms"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
    assert one.rejected == other.rejected
    assert one.metrics == other.metrics


def near(one, other):
    """The same but for the order of sums."""
    for name, value in one.params.items():
        torch.testing.assert_close(value, other.params[name], atol=1e-5, rtol=1e-4)
    for name in ("losses", "norms"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-4)
    assert torch.equal(one.cohort, other.cohort)
    assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
    assert one.rejected.keys() == other.rejected.keys()


WAYS = [
    {},
    {"weighting": "equal"},
    {"cohort": 8},
    {"local_epochs": 2, "weight_decay": 0.01},
    {"proximal": 0.1},
    {"optimizer": "adamw", "local_lr": 0.01, "server_lr": 1.0},
    {"heaviest": 0.0},
    {"longest": 0.0, "weighting": "equal"},
    {"drop_out": 0.3},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("asked", WAYS, ids=str)
def test_bits_do_not_depend_on_threads_nor_numbers_on_who_adds_up(case, asked, clicks, stars):
    data, private = cases(clicks, stars)[case]
    if data.task == "ratings":
        asked = {"local_lr": 0.02, "server_lr": 1.0} | asked
    model = model_of(data, private)
    if "longest" in asked:
        asked = asked | {
            "longest": 0.7 * float(last(model, data, **asked | {"longest": 1e6}).norms.median())
        }
    if "heaviest" in asked:
        asked = asked | {"heaviest": float(data.counts.median()) - 1}
    one = last(model, data, workers=1, **asked)
    assert one.engine == "fused"
    same(one, last(model, data, workers=2, **asked))
    same(one, last(model, data, workers=5, memory_mb=4, **asked))
    rows = last(model, data, [Nothing()], workers=1, **asked)
    same(rows, last(model, data, [Nothing()], workers=3, memory_mb=5, **asked))
    near(*(last(model, data, stages, **asked | {"rounds": 1}) for stages in ([], [Nothing()])))
    if "heaviest" in asked or "longest" in asked:
        assert one.rejected


def test_the_knob_of_the_gate_decides_as_it_does_for_eager_clients(clicks):
    model = model_of(clicks, True)
    usual = float(last(model, clicks, rounds=1).norms.median())
    for asked in ({"heaviest": 100.0}, {"longest": usual * 1.01}):
        fused, eager = (
            last(model, clicks, rounds=1, engine=engine, **asked) for engine in ("fused", "eager")
        )
        assert fused.rejected == eager.rejected
        assert 0 < len(fused.rejected) < 50


def test_a_client_that_diverges_is_refused_and_the_others_count(stars):
    model, asked = (
        model_of(stars, True),
        {"rounds": 1, "local_lr": 40.0, "local_epochs": 2, "cohort": 671},
    )
    done = last(model, stars, **asked)
    assert done.rejected
    assert len(done.cohort)
    assert all("not finite" in why or "longest" in why for why in done.rejected.values())
    assert all(bool(value.isfinite().all()) for value in done.params.values())
    near(done, last(model, stars, [Nothing()], **asked))


def test_a_sparse_table_of_users_and_a_folder_of_clicks(clicks, tmp_path):
    sparse = matrix_factorisation(671, 9066, 6, sparse_users=True)
    done, dense = last(sparse, clicks), last(model_of(clicks, True), clicks)
    assert isinstance(done.params["user"], SparseTable)
    assert torch.equal(done.params["user"][torch.arange(671)], dense.params["user"])
    stored = synthesise(tmp_path / "made", 300, 200, mean=15.0)
    model = matrix_factorisation(300, 200, 6)
    fused, eager = (last(model, stored, engine=engine) for engine in ("fused", "eager"))
    assert fused.engine == "fused"
    torch.testing.assert_close(fused.params["item"], eager.params["item"], rtol=1e-3, atol=1e-4)


def test_what_no_compiled_client_trains_runs_eagerly_and_says_why(clicks, split, monkeypatch):
    model = model_of(clicks, True)
    assert last(hybrid(671, torch.ones(9066, 2), 4), clicks, rounds=1).engine == (
        "eager: no compiled client for the model 'hybrid'"
    )
    assert last(model, leaky(split, clicks.owner), rounds=1).engine == (
        "eager: these data draw their examples by themselves"
    )
    said = "eager: micro_batch=8 is for models that others train"
    assert last(model, clicks, rounds=1, micro_batch=8).engine == said
    assert last(model, clicks, rounds=1, engine="eager").engine == "eager"
    assert last(model, clicks, rounds=1, local=Scaffold()).engine == "fused"
    tree_module.compiled_loops.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "fedlab.core.loops.cpu", None)
    without = last(model, clicks)
    monkeypatch.undo()
    tree_module.compiled_loops.cache_clear()
    assert without.engine == "eager: numba is not installed"
    torch.testing.assert_close(
        without.params["item"], last(model, clicks).params["item"], rtol=1e-2, atol=1e-4
    )


def test_who_writes_a_draw_of_its_own_is_not_drawn_for(clicks):
    class Backwards(Federation):
        def draw(self, cohort, epochs, negatives, key):
            return super().draw(cohort, epochs, negatives, key)

    assert layout_of(clicks) is not None
    assert layout_of(Backwards(clicks.train, clicks.owner)) is None


def test_bad_input_is_named(clicks):
    with pytest.raises(ParameterError, match=r"item=.*the model has 500 rows of items"):
        last(matrix_factorisation(671, 500, 4), clicks)
    wide = table()
    wide.columns["item"][7] = 2**32 + 5
    with pytest.raises(ParameterError, match="item=2147483647: the model has 60 rows of items"):
        last(model_of(wide, True), wide)
    wide.columns["item"][7] = -1
    with pytest.raises(ParameterError, match="item=-1"):
        last(model_of(wide, True), wide)
    with pytest.raises(ParameterError, match=r"memory_mb=1: client .* alone needs about"):
        last(model_of(clicks, True, dim=32), clicks, memory_mb=1, cohort=671)
    few = Federation(tiny([0, 0, 0, 1], [0, 1, 2, 0]), torch.arange(2))
    with pytest.raises(ParameterError, match="has seen all"):
        last(matrix_factorisation(few.train.user_count, few.train.item_count, 2), few, cohort=2)


def test_without_a_folder_to_keep_it_a_loop_is_compiled_anew(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled()(lambda x: x + 1)(2) == 3


def _in_a_child(queue, model, data):
    queue.put(last(model, data, rounds=1, workers=2).params["bias"].sum().item())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_trains_though_threads_stay_behind():
    data = table()
    model = model_of(data, True)
    here = last(model, data, rounds=1, workers=2, memory_mb=1).params["bias"].sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue, model, data))
    child.start()
    assert queue.get(timeout=300) == pytest.approx(here)
    child.join(300)
    assert child.exitcode == 0


def test_pieces_come_in_order_and_what_one_raises_is_raised():
    def work(piece):
        if piece == 30:
            raise ValueError("piece 30")
        return piece * 2

    assert list(in_order(work, range(20), 4)) == list(range(0, 40, 2))
    found = []
    with pytest.raises(ValueError, match="piece 30"):
        found.extend(in_order(work, range(60), 3))
    assert found == list(range(0, 60, 2))


def test_rounds_over_a_large_table_do_not_change_whoever_looks_when():
    generator = torch.Generator().manual_seed(1)
    item, owner = torch.randint(40_000, (3000,), generator=generator), torch.arange(3000) % 30
    data = Columns({"user": owner, "item": item, "target": (item % 2).float()}, owner)
    model = matrix_factorisation(30, 40_000, 8)
    settings = Settings(rounds=6, cohort=10, local_lr=0.5)
    start = model.init(0)
    copies = [
        {name: value.clone() for name, value in done.params.items()}
        for done in federate(model, data, settings)
    ]
    unseen = list(federate(model, data, settings))
    behind = sum("_Behind" in str(type(dict.__getitem__(each.params, "item"))) for each in unseen)
    assert behind == 5
    for done, whole in zip(unseen, copies, strict=True):
        assert all(torch.equal(done.params[name], value) for name, value in whole.items())
    again = list(federate(model, data, settings, start=unseen[2]))
    assert torch.equal(again[-1].params["item"], copies[-1]["item"])
    assert all(torch.equal(value, model.init(0)[name]) for name, value in start.items())


@pytest.mark.parametrize("task", ["clicks", "ratings"])
@pytest.mark.parametrize("setting", [*SETTINGS, "scaffold"])
def test_a_compiled_perceptron_learns_what_an_eager_one_learns(setting, task):
    generator = torch.Generator().manual_seed(2)
    owner = torch.arange(1100) % 40 % 37  # some have twice as many
    x = torch.randn(1100, 5, generator=generator)
    data, model = Columns({"x": x, "target": (x[:, 0] > 0).float()}, owner, task), perceptron(5, 7)
    model = replace(model, task=task)
    asked = {"local_lr": 0.1, "server_lr": 1.0, "cohort": 12} | SETTINGS.get(setting, {})
    local = Scaffold if setting == "scaffold" else lambda: None
    eager = last(model, data, local=local(), engine="eager", **asked)
    fused = last(model, data, local=local(), workers=1, **asked)
    assert fused.engine == "fused"
    for name, value in eager.params.items():
        torch.testing.assert_close(fused.params[name], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(fused.losses, eager.losses, rtol=1e-4, atol=1e-6)
    same(fused, last(model, data, local=local(), workers=3, memory_mb=1, **asked))


def test_wide_layers_are_cut_for_one_thread():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(900, 300, generator=generator)
    data = Columns({"x": x, "target": (x[:, 0] > 0).float()}, torch.arange(900) % 3)
    model = perceptron(300, 200)
    eager, fused = (
        last(model, data, engine=e, local_lr=0.1, server_lr=1.0, batch_size=0, local_epochs=2)
        for e in ("eager", "fused")
    )
    torch.testing.assert_close(fused.params["w1"], eager.params["w1"], rtol=1e-3, atol=1e-5)


def test_columns_that_are_no_plain_table_train_eagerly():
    x = torch.randn(5, 80, generator=torch.Generator().manual_seed(1)).T
    data = Columns({"x": x, "target": (x[:, 0] > 0).float()}, torch.arange(80) % 4)
    done = last(perceptron(5, 3), data, rounds=1)
    assert done.engine == "eager: 'x' is not a table of float32, row by row"
    whole = Columns({"x": x.contiguous(), "target": (x[:, 0] > 0).float()}, torch.arange(80) % 4)
    fused = last(perceptron(5, 3), whole, rounds=1)
    assert fused.engine == "fused"
    torch.testing.assert_close(fused.params["w1"], done.params["w1"], rtol=1e-3, atol=1e-5)
    model = perceptron(6, 3)
    assert "'x' has 5 columns" in how(model, whole, model.init(0), LocalSettings())


def reason(model, data, **params):
    return how(model, data, model.init(0) | params, LocalSettings())


def test_parameters_that_compiled_code_cannot_read_are_left_to_torch():
    data = table()
    model = model_of(data, True)
    assert reason(model, data) == "fused"
    wrong = [
        ({"user": torch.zeros(20, 2)}, "shapes"),
        ({"user": torch.zeros(20, 9)}, "shapes"),
        ({"bias": torch.zeros(0)}, "shapes"),
        ({"bias": torch.zeros(60, 1)}, "shapes"),
        ({"item": torch.zeros(60)}, "shapes"),
        ({"item": torch.zeros(60, 6, requires_grad=True)}, "gradient"),
        ({"item": torch.zeros(6, 60).T}, "side by side"),
        ({"item": torch.zeros(60, 6).double()}, "float64"),
        ({"item": torch.zeros(60, 6).to_sparse()}, "is a Tensor"),
        ({"user": SparseTable.untouched(20, torch.zeros(4, 2))}, "shapes"),
    ]
    for params, why in wrong:
        assert why in reason(model, data, **params), params
    x = torch.zeros(900, 5)
    layers, rows = perceptron(5, 7), Columns({"x": x, "target": x[:, 0]}, data.owner)
    assert reason(layers, rows) == "fused"
    for params in (
        {"b2": torch.zeros(1, 0)},
        {"b1": torch.zeros(1, 8)},
        {"w2": torch.zeros(1, 3)},
        {"w1": torch.zeros(1, 5, 8)},
        {"w1": torch.zeros(2, 5, 7)},
    ):
        assert "shapes" in reason(layers, rows, **params)


def test_columns_that_are_others_than_they_were_are_not_read():
    for name, value, why in (
        ("target", torch.zeros(2), "shorter"),
        ("target", torch.zeros(900).double(), "float32"),
        ("item", torch.zeros(900), "whole numbers"),
        ("user", torch.zeros(900, 2).long(), "whole numbers"),
    ):
        data = table()
        data.columns[name] = value
        assert why in reason(model_of(data, True), data)


def test_another_predict_has_no_compiled_client(clicks):
    model = model_of(clicks, True)
    assert model.kernel == "factors"
    other = replace(model, predict=lambda p, batch: p["bias"], pullback=None)
    assert "no compiled client" in reason(other, clicks)


def test_the_gate_decides_alike_where_updates_are_added_up(stars):
    """Of rows that are somebody else's, and of numbers that cannot be squared."""
    generator = torch.Generator().manual_seed(5)
    owner = torch.arange(400) % 8
    item, user = (torch.randint(n, (400,), generator=generator) for n in (30, 8))
    for who in (user, owner // 2):
        columns = {"user": who, "item": item, "target": (item % 2).float()}
        data, model = Columns(columns, owner), matrix_factorisation(8, 30, 4)
        added, single = (last(model, data, stages, rounds=1) for stages in ([], [Nothing()]))
        same(added, single)
        assert added.rejected
    huge = (item % 5).float().masked_fill(owner == 0, 1e16)
    data = Columns({"user": owner, "item": item, "target": huge}, owner, "ratings")
    model = matrix_factorisation(8, 30, 4, task="ratings")
    asked = {"rounds": 1, "local_lr": 1e-12}
    added, single = (last(model, data, stages, **asked) for stages in ([], [Nothing()]))
    same(added, single)
    assert list(added.rejected) == [0]


class Keeps(SGD):
    """Keeps what it has seen."""

    def check(self, context):
        KEPT.append((context.params["item"], context.params["item"].clone()))


KEPT = []


def test_a_part_that_keeps_the_parameters_has_them_for_good():
    item, owner = torch.arange(3000) * 13 % 40_000, torch.arange(3000) % 30
    data = Columns({"user": owner, "item": item, "target": (item % 2).float()}, owner)
    model = matrix_factorisation(30, 40_000, 8)
    KEPT.clear()
    list(federate(model, data, Settings(rounds=4, cohort=10, local_lr=0.5), local=Keeps()))
    assert len(KEPT) == 4
    assert all(torch.equal(kept, was) for kept, was in KEPT)


def test_all_is_compiled_ahead_and_then_takes_no_time(monkeypatch):
    assert warm() > 0  # whatever it took, nothing is compiled twice
    import fedlab.engine.fused.factors as loops

    before = {
        name: len(f.signatures) for name, f in vars(loops).items() if hasattr(f, "signatures")
    }
    warm()
    assert before["summed"] >= 1
    assert before == {n: len(getattr(loops, n).signatures) for n in before}
    monkeypatch.setattr("fedlab.engine.fused.warm.compiled_loops", lambda: None)
    assert warm() == 0


def test_it_is_said_once_that_something_is_compiled():
    said = []
    with compiling(said.append):
        assert not said
        for kind in (1, 1.0):
            numba.njit(lambda x: x + 1)(kind)
    assert len(said) == 1
    assert said[0].startswith("Compiling what trains clients, once on this machine")
    numba.njit(lambda x: x + 2)(1)
    assert len(said) == 1


FRESH = """
import hashlib, torch
from fedlab.engine.fused import Clicks, Strength
from fedlab.engine.fused.least_squares import Compiled
counts = torch.arange(1, 61).numpy()
g = torch.Generator().manual_seed(0)
items = torch.randint(90, (int(counts.sum()),), generator=g).int().numpy()
clicks = Clicks(counts.cumsum() - counts, counts, items, torch.empty(0).numpy())
solver = Compiled(torch.randn(90, 32, generator=g), Strength(0.1, 0.1))
found = solver.summed(clicks, torch.ones(60), 1e9)
print(hashlib.sha256(found[0].numpy().tobytes() + found[1].item.tobytes()).hexdigest())
"""


def test_who_compiles_gets_the_bits_of_who_reads_compiled_code(tmp_path):
    own = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    words = [sys.executable, "-c", FRESH]
    first, second = (subprocess.check_output(words, env=own, text=True) for _ in range(2))
    assert any(tmp_path.rglob("*.nbc"))
    assert first == second
