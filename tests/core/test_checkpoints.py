"""Checkpoints: what comes back is what was written, bit for bit, or is refused with its name."""

import json
import math
import os
import shutil
from collections import namedtuple
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import load_file

from fedlab.core import (
    ParameterError,
    Round,
    Rows,
    Sent,
    Settings,
    SparseTable,
    Update,
    load_noted,
    load_round,
    save_round,
    stored,
)
from fedlab.core.checkpoints import FILES, MANIFEST, REST, STORED, checkpoints_in, numbered

Pair = namedtuple("Pair", "a b")
VALUES = torch.tensor([0.1, -0.0, math.inf, math.nan])


def whole():
    """A Round with all that a Round may hold."""
    ids = torch.tensor([0, 2, 2, 5])
    sent = Sent(
        Update(
            {"item": Rows(torch.randn(4, 3).double(), ids, ids // 3)},
            *(torch.tensor([1.0, 2.0]) for _ in range(2)),
            torch.tensor([7, 9]),
            torch.tensor([3, 4]),
            members=(ids[:2], ids[2:]),
        ),
        {"user": Rows(torch.randn(1, 3).bfloat16(), ids[:1], ids[:1])},
    )
    params = {"item": torch.randn(6, 3), "turned": torch.randn(3, 6).T, "one": torch.tensor(2.5)}
    table = SparseTable(10, torch.randn(2, 3), torch.tensor([4]), torch.randn(1, 3))
    return Round(
        12,
        Settings(cohort=7, local_lr=0.1),
        params | {"user": table},
        torch.tensor([3, 1]),
        VALUES[:2],
        VALUES,
        2**40,
        0,
        0.1,
        {"ndcg@10": 0.1, "bad": -math.inf},
        {3: "late"},
        "nobody came",
        1e-300,
        {
            "ledger": {"releases": {(1.1, 0.1, "fixed"): 3}, "drift": VALUES.double()},
            "buffered": {"flight": ((0.25, 1, 2, 3), [None, True]), "sent": {4: (sent, {})}},
            "server step": {"moments": {"adam item": (params["item"], params["turned"])}},
            "empty": {"none": torch.empty(0, 3), "cut": params["item"][1:3], "bits": ids > 2},
        },
    )


def same(one, other):
    """Whether two values are alike to the last bit, types and all."""
    if isinstance(one, torch.Tensor):
        shapes = [(t.dtype, t.shape, t.stride() if t.numel() else ()) for t in (one, other)]
        bits = [t.reshape(-1).view(torch.uint8).tolist() for t in (one, other) if t.numel()]
        return shapes[0] == shapes[1] and bits[:1] == bits[1:]
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return same(vars(one), vars(other))
    return repr(one) == repr(other)


def test_a_round_comes_back_bit_for_bit(tmp_path):
    done = whole()
    save_round(done, tmp_path / "mine", "a note")
    again, note = load_noted(tmp_path / "mine")
    assert same(replace(done, state={}), replace(again, state={}))
    assert same(done.state, again.state)
    assert note == "a note"
    # what was one tensor is one again, and anybody can read the parameters
    assert again.state["server step"]["moments"]["adam item"][0] is again.params["item"]
    plain = load_file(tmp_path / "mine" / "params.safetensors")
    assert same(plain["item"], done.params["item"])
    assert not same(replace(done, losses=VALUES[1:3]), again)  # the comparison can fail


def test_a_tensor_is_stored_once_and_a_cut_without_the_rest(tmp_path):
    big = torch.zeros(1_000, 100)
    done = Round(1, Settings(), {"w": big}, state={"a": {"same": big, "row": big[3]}})
    save_round(done, tmp_path / "one")
    sizes = {name: (tmp_path / "one" / name).stat().st_size for name in FILES}
    assert sizes["params.safetensors"] < 401_000
    assert sizes["state.safetensors"] < 2_000


def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path):
    for bad in (object(), Pair(1, 2), {1, 2}, torch.eye(2).to_sparse()):
        done = Round(1, Settings(), {}, state={"mine": {"kept": [bad]}})
        with pytest.raises(ParameterError, match=r"state\['mine'\]\['kept'\]=.*can.* be stored"):
            save_round(done, tmp_path / "one")
    endless = {}
    endless["again"] = endless
    with pytest.raises(ParameterError, match="round=1: cannot be stored"):
        save_round(Round(1, Settings(), {}, state={"mine": endless}), tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_dataclass_of_ones_own_is_stored_where_it_is_known(tmp_path):
    @stored
    @dataclass(frozen=True)
    class Mine:
        rate: float
        kept: dict = field(default_factory=dict)

    try:
        done = Round(1, Settings(), {}, state={"mine": {"it": Mine(0.5, {1: VALUES})}})
        save_round(done, tmp_path / "one")
        assert same(load_round(tmp_path / "one").state, done.state)
        with pytest.raises(ParameterError, match=r"stored='Mine': .*has this name"):
            stored(dataclass(frozen=True)(type("Mine", (), {})))
    finally:
        del STORED["Mine"]
    with pytest.raises(ParameterError, match=r"type='Mine': nothing here knows it .*--parts"):
        load_round(tmp_path / "one")
    with pytest.raises(ParameterError, match="make it a dataclass"):
        stored(type("Loose", (), {}))


def test_a_checkpoint_is_replaced_and_the_newest_is_found(tmp_path):
    done = whole()
    save_round(done, tmp_path / "one")
    save_round(replace(done, skipped="again"), tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert load_round(tmp_path / "one").skipped == "again"
    for number in (9, 12, 100):
        save_round(replace(done, number=number), numbered(tmp_path / "run" / "checkpoint", number))
    assert load_round(tmp_path / "run").number == 100
    assert len(checkpoints_in(tmp_path / "run" / "checkpoint")) == 3


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


@pytest.mark.parametrize("step", range(18))
def test_a_kill_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, step):
    """Each call that changes the disk is the last one in turn."""
    old, new = (Round(number, Settings(), {"w": torch.ones(3) * number}) for number in (1, 2))
    save_round(old, tmp_path / "one")
    left = iter(range(step))

    def dying(call):
        def tried(*given, **named):
            if next(left, None) is None:
                raise Killed
            return call(*given, **named)

        return tried

    for name in ("mkdir", "rename", "open", "fsync", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    try:
        save_round(new, tmp_path / "one")
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    found = load_round(tmp_path / "one")
    assert float(found.params["w"][0]) == found.number in (1, 2)
    assert found.number == 2 or not finished


def flipped(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_no_bit_changes_without_notice(tmp_path, name):
    made = save_round(whole(), tmp_path / "one")
    for place in range(0, (made / name).stat().st_size, 61):
        shutil.copytree(made, tmp_path / "two")
        flipped(tmp_path / "two" / name, place, place % 8)
        with pytest.raises(ParameterError, match=r"two.*(another SHA-256|manifest)"):
            load_round(tmp_path / "two")
        shutil.rmtree(tmp_path / "two")


def forged(folder, **changes):
    """Change what stands in the JSON, and work out the manifest again."""
    from fedlab.core.checkpoints import _manifest, _sha256

    found = json.loads((folder / REST).read_text())
    found["round"] |= changes
    (folder / REST).write_text(json.dumps(found))
    (folder / MANIFEST).write_bytes(_manifest({n: _sha256(folder / n) for n in FILES}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"number": "12"}, "Round.number='str'"),
        ({"cohort": {"tensor": ["int64", 3, [99]]}}, "tensor=.*there are"),
        ({"cohort": {"tensor": ["int64", -1, [1]]}}, "tensor=.*there are"),
        ({"cohort": {"tensor": "../../victim"}}, "KeyError"),
        ({"state": {"os.system": "true"}}, "type='os.system': nothing here knows it"),
        ({"state": {"Rows": {"values": 1, "ids": 2, "client": 3}}}, "Rows.values='int'"),
        ({"state": {"Rows": {"value": None}}}, "Rows=.value.: it has no such"),
        ({"settings": {"settings": {"cohort": -1}}}, "cohort=-1"),
        ({"settings": {"settings": {"no such": 1}}}, "no such=1: no such parameter"),
        ({"metrics": {"dict": [[{"dict": []}, 1]]}}, "unhashable"),
        ({"clock": {"float": "zz"}}, "hexadecimal"),
        ({"clock": {"float": "00", "more": 1}}, "too many values"),
        ({"unknown": 1}, "it has no such field"),
    ],
)
def test_files_that_were_made_to_deceive_are_refused_by_name(tmp_path, changes, said):
    made = save_round(whole(), tmp_path / "one")
    forged(made, **changes)
    with pytest.raises(ParameterError, match=f"one/round.json: .*({said})"):
        load_round(made)


def test_what_is_no_checkpoint_is_refused_with_a_way_out(tmp_path):
    made = save_round(whole(), numbered(tmp_path, 12))
    for path, said in ((tmp_path / "nothing", "manifest.json='no such file'"), (tmp_path, "")):
        if said:
            with pytest.raises(ParameterError, match=said):
                load_round(path)
    made.rename(numbered(tmp_path, 13))
    with pytest.raises(ParameterError, match="00000013='round 12': it was renamed"):
        load_round(tmp_path)
    made = numbered(tmp_path, 13).rename(made)
    text = (made / MANIFEST).read_text()
    (made / MANIFEST).write_text(text.replace('"fedlab": 1', '"fedlab": 2'))
    with pytest.raises(ParameterError, match=r"manifest.json=2: a checkpoint of another edition"):
        load_round(made)
    (made / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(ParameterError, match="no manifest of a checkpoint"):
        load_round(made)
    (made / MANIFEST).unlink()
    with pytest.raises(ParameterError, match="no such file"):
        load_round(made)
    (made / MANIFEST).write_text(text)
    (made / REST).rename(tmp_path / "elsewhere")
    (made / REST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ParameterError, match=r"round.json='no such file'"):
        load_round(made)


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path):
    save_round(whole(), tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / ".one.0123abcd.old")
    assert load_round(tmp_path / "one").number == 12
