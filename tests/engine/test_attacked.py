"""What an attack on the engine found, mended: sure predictions, odd rows, interrupted rounds."""

import itertools
import multiprocessing
import os
import threading
import time

import pytest
import torch

from fedlab import Columns, Settings, federate, matrix_factorisation
from fedlab.core import ParameterError, journal
from fedlab.core.loops.cpu import forget_stale
from fedlab.engine import LocalSettings, updates
from fedlab.engine.fused.rules import slopes


def table(users=6, items=9, task="clicks", each=12):
    generator = torch.Generator().manual_seed(1)
    owner = torch.arange(users).repeat_interleave(each)
    item = torch.randint(items, (len(owner),), generator=generator)
    target = torch.randint(2 if task == "clicks" else 6, (len(owner),), generator=generator)
    return Columns({"user": owner, "item": item, "target": target.float()}, owner, task)


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_slopes_of_sure_predictions_keep_their_bits(target):
    y = torch.cat([torch.linspace(-40, 40, 321), torch.tensor([-1e9, 1e9])]).double()
    chance, other = y.sigmoid(), (-y).sigmoid()
    expected = chance * (1 - target) - other * target
    losses = torch.nn.functional.softplus(y) - y * target
    targets = torch.full_like(y, target)
    model = matrix_factorisation(2, 2, 2)
    eager = model.slope(y.float(), targets.float()).double()
    fused = y.float().numpy().copy()
    total = slopes(fused, targets.float().numpy(), True)
    # 1e-38 is the least of float32's usual numbers
    torch.testing.assert_close(eager, expected, rtol=1e-6, atol=1e-38)
    torch.testing.assert_close(torch.from_numpy(fused).double(), expected, rtol=4e-4, atol=1e-38)
    assert total == pytest.approx(float(losses.sum()), rel=1e-5)


def test_adamw_rests_where_all_is_learned():
    owner = torch.arange(4).repeat_interleave(8)
    item = torch.arange(32) % 5
    data = Columns({"user": owner, "item": item, "target": torch.zeros(32)}, owner)
    model = matrix_factorisation(4, 5, 3)
    params = model.init(0) | {"bias": torch.full((5,), -25.0)}
    local = {"local_lr": 0.1, "optimizer": "adamw", "batch_size": 4}
    moved = [
        max(float(d.values.abs().max()) for u in found for d in u.deltas.values())
        for engine in ("fused", "eager")
        for found in [
            updates(model, data, params, torch.arange(4), LocalSettings(**local, engine=engine))
        ]
    ]
    assert max(moved) < 0.001  # 25 is known to 2e-6
    assert moved[0] == pytest.approx(moved[1], rel=0.05)


def test_one_client_that_diverges_does_not_end_a_run_of_shared_users():
    data = table(task="ratings")
    model = matrix_factorisation(6, 9, 4, task="ratings", private_users=False)
    told = {"rounds": 2, "cohort": 6, "local_lr": 100.0, "batch_size": 2}
    refused = {
        engine: [
            sorted(done.rejected) for done in federate(model, data, Settings(**told, engine=engine))
        ]
        for engine in ("fused", "eager")
    }
    assert refused["fused"] == refused["eager"]
    assert all(refused["fused"])


def test_an_interrupt_in_a_step_changes_no_earlier_round(monkeypatch):
    owner = torch.arange(20).repeat_interleave(10)
    items = 20_000  # a table large enough to be moved in place
    item = torch.randint(items, (200,), generator=torch.Generator().manual_seed(0))
    data = Columns({"user": owner, "item": item, "target": torch.ones(200)}, owner)
    model = matrix_factorisation(20, items, 16)
    rounds = federate(model, data, Settings(rounds=5, cohort=20, local_lr=1.0))
    first = next(rounds)
    again = next(federate(model, data, Settings(rounds=5, cohort=20, local_lr=1.0)))
    expected = {name: value.clone() for name, value in again.params.items()}
    moved = journal.move_rows

    def interrupted(*given):
        moved(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "move_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(rounds)
    assert all(torch.equal(first.params[name], value) for name, value in expected.items())


def _look(queue, done):
    queue.put(float(done.params["item"].sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork, as on Windows")
def test_a_fork_waits_for_a_step_so_that_the_child_can_look():
    owner = torch.arange(40) % 4
    data = Columns({"user": owner, "item": owner, "target": torch.ones(40)}, owner)
    (done,) = federate(matrix_factorisation(4, 9, 2), data, Settings(rounds=1, cohort=4))
    held, context = threading.Event(), multiprocessing.get_context("fork")

    def step():
        with journal.LOCK:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=step)
    thread.start()
    held.wait()
    queue = context.Queue()
    child = context.Process(target=_look, args=(queue, done))
    child.start()
    assert queue.get(timeout=120) == pytest.approx(float(done.params["item"].sum()))
    child.join(120)
    thread.join()


@pytest.mark.parametrize(("bad", "more"), [(9, {"engine": "eager"}), (-1, {"micro_batch": 8})])
def test_rows_that_the_model_has_not_are_named_by_eager_steps_too(bad, more):
    data = table()
    item = data.columns["item"].clone()
    item[12] = bad
    data = Columns(data.columns | {"item": item}, data.owner)
    settings = Settings(rounds=1, cohort=6, **more)
    with pytest.raises(ParameterError, match=f"item={bad}: the model has 9 rows of items"):
        next(federate(matrix_factorisation(6, 9, 2), data, settings))


def test_a_cohort_in_another_order_is_refused_or_right():
    owner = torch.arange(4).repeat_interleave(torch.tensor([3, 9, 5, 7]))
    item = torch.arange(len(owner)) % 6
    data = Columns({"user": owner, "item": item, "target": (item % 2).float()}, owner)
    model, cohort = matrix_factorisation(4, 6, 2), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ParameterError, match="the clients with most examples come first"):
        list(updates(model, data, model.init(0), cohort, LocalSettings(engine="eager")))
    order = torch.tensor([1, 3, 2, 0])
    eager = updates(model, data, model.init(0), order, LocalSettings(engine="eager"))
    (right,), (fused,) = (
        list(eager),
        list(updates(model, data, model.init(0), cohort, LocalSettings())),
    )
    for place, client in itertools.product(range(4), cohort.tolist()):
        if int(order[place]) == client:
            mine = right.deltas["item"].values[right.deltas["item"].client == place]
            found = fused.deltas["item"].values[fused.deltas["item"].client == client]
            torch.testing.assert_close(found, mine, atol=1e-7, rtol=1e-5)


def test_compiled_code_older_than_a_source_beside_it_goes(tmp_path):
    made = tmp_path / "loops" / "__pycache__"
    made.mkdir(parents=True)
    for name, age in (("old.nbi", 100), ("new.nbi", 300)):
        (made / name).touch()
        os.utime(made / name, (age, age))
    source = tmp_path / "loops" / "rules.py"
    source.touch()
    os.utime(source, (200, 200))
    forget_stale(tmp_path)
    assert [path.name for path in made.iterdir()] == ["new.nbi"]


def test_a_pull_beyond_all_numbers_is_no_warning_but_a_refusal():
    settings = Settings(rounds=1, cohort=6, local_lr=1.0, proximal=1e4, batch_size=1)
    (done,) = federate(matrix_factorisation(6, 9, 2), table(), settings)
    assert len(done.rejected) == 6
    assert bool(done.params["item"].isfinite().all())
