"""Chunks under a memory budget: they change what is in memory, and no result."""

import pytest
import torch

from fedlab.aggregation import MeanOfHolders
from fedlab.algorithms import federate, sample
from fedlab.core import Key, ParameterError, Settings
from fedlab.engine import BLOCK, LocalSettings, chunks, client_bytes


def cut(model, data, local):
    keys = Key(0, "examples", 1), Key(0, "noise", 1)
    return list(chunks(model, data, model.init(0), sample(data, 671, 1), local, keys))


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction"])
def test_the_budget_changes_no_result(name, build, clicks):
    model = build(name, clicks.train)
    usual = Settings(rounds=2, cohort=400, local_epochs=2, memory_mb=100_000)
    for rule in ({}, {"aggregate": MeanOfHolders()}):
        whole = list(federate(model, clicks, usual, **rule))
        for mb in (8, 25):
            parts = list(federate(model, clicks, usual.replace(memory_mb=mb), **rule))
            for a, b in zip(whole, parts, strict=True):
                assert torch.equal(a.cohort, b.cohort)
                assert (a.bytes_up, a.bytes_down) == (b.bytes_up, b.bytes_down)
                assert torch.equal(a.losses, b.losses)
                assert torch.equal(a.norms, b.norms)
                assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)


def test_chunks_keep_to_the_budget_and_to_the_order(build, clicks):
    model = build("matrix factorisation", clicks.train)
    params = model.init(0)
    local = LocalSettings(memory_mb=5)
    parts, cohort = cut(model, clicks, local), sample(clicks, 671, 1)
    assert len(parts) > 5
    sizes = [torch.bincount(p["client"]) for p in parts]
    for part, size in zip(parts, sizes, strict=True):
        assert float(client_bytes(model, params, part, size, local).sum()) <= 5e6
    # everybody, with 4 negatives a click
    assert torch.equal(torch.cat(sizes), clicks.counts[cohort] * 5)
    users = torch.cat([p["user"][p["client"].diff(prepend=torch.tensor([-1])) > 0] for p in parts])
    assert torch.equal(users, cohort)
    assert len(cut(model, clicks, LocalSettings(memory_mb=100_000))) == 1
    assert len(cohort) > 2 * BLOCK  # so blocks were joined into one chunk


def test_a_budget_too_small_for_one_client_says_how_much_is_needed(build, clicks):
    model = build("matrix factorisation", clicks.train)
    busy = Settings(cohort=671, local_epochs=20, memory_mb=2)
    with pytest.raises(
        ParameterError, match=r"memory_mb=2: client \d+ alone needs about .* MB; choose \d+ or more"
    ):
        list(federate(model, clicks, busy))
    # unstated: a large client goes alone
    assert len(cut(model, clicks, LocalSettings(local_epochs=20))) > 1


def test_adamw_and_more_epochs_are_counted(build, clicks):
    model = build("matrix factorisation", clicks.train)
    params = model.init(0)

    def need(**changed):
        local = LocalSettings(**changed)
        examples = clicks.draw(torch.arange(4), local.local_epochs, 4, Key(0, "x"))
        return float(
            client_bytes(model, params, examples, torch.bincount(examples["client"]), local).sum()
        )

    assert need(optimizer="adamw") > 1.4 * need()
    assert need(local_epochs=3) > 2 * need()
    assert need(batch_size=256) > need()
