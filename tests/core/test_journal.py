"""Rounds that share a large table: none of them ever changes, whoever looks when."""

import copy
import pickle
import threading

import pytest
import torch

from fedlab.core import Journal, Rows, within
from fedlab.core.journal import LARGE
from fedlab.core.tree import add_rows, move_rows

HEIGHT = LARGE // 16  # rows of four floats


def step(seed, count=100):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(HEIGHT, generator=generator)[:count]
    return Rows(torch.randn(count, 4, generator=generator), ids, torch.zeros_like(ids))


def rounds(count, look=()):
    """Journals of so many steps, and the tables as copies make them; look: at which, at once."""
    table, small = torch.randn(HEIGHT, 4), torch.randn(3)
    whole = [{"table": table.clone(), "small": small.clone()}]
    made = [Journal.of({"table": table, "small": small})]
    for number in range(count):
        if number in look:
            dict(made[-1])
        rows, before = step(number), whole[-1]
        made.append(made[-1].stepped({"table": (rows, 0.5), "small": (torch.ones(3), 0.1)}))
        moved = before["table"].index_add(0, rows.ids, rows.values * 0.5)
        whole.append({"table": moved, "small": before["small"] + 0.1 * torch.ones(3)})
    return made, whole


@pytest.mark.parametrize("look", [(), (0,), (2, 3), range(6)], ids=str)
@pytest.mark.parametrize("order", [range(7), range(6, -1, -1), (3, 0, 6, 1, 5, 2, 4)], ids=str)
def test_each_round_is_what_it_was_whoever_looks_in_whatever_order(look, order):
    made, whole = rounds(6, look)
    for number in [*order, *order]:
        for name, value in whole[number].items():
            assert torch.equal(made[number][name], value), (number, name)


def test_rows_move_in_place_unless_somebody_has_seen_the_table():
    made, _ = rounds(3)
    where = [within(each)["table"].data_ptr() for each in made[1:]]
    kept = made[-1]["table"]  # is asked for
    next_one = made[-1].stepped({"table": (step(9), 1.0)})
    assert within(next_one)["table"].data_ptr() != kept.data_ptr()
    made, _ = rounds(1)
    first = within(made[-1])["table"].data_ptr()
    assert within(made[-1].stepped({"table": (step(8), 1.0)}))["table"].data_ptr() == first
    assert len(set(where)) == 3  # `within` put together what earlier Rounds were


def test_the_table_that_a_run_began_with_is_never_touched():
    mine = torch.randn(HEIGHT, 4)
    was, now = mine.clone(), Journal.of({"table": mine, "other": torch.zeros(HEIGHT, 4)})
    for number in range(4):
        now = now.stepped({"table": (step(number), 1.0)})
    now = now.stepped({"other": (step(5), 1.0)})
    assert torch.equal(mine, was)
    assert not now.known & {"table", "other"}


WAYS = [
    dict,
    lambda journal: {**journal},
    lambda journal: journal | {},
    lambda journal: {} | journal,
    copy.copy,
    copy.deepcopy,
    lambda journal: pickle.loads(pickle.dumps(journal)),
    lambda journal: journal.copy(),
    lambda journal: {name: journal.get(name) for name in journal},
    lambda journal: dict(zip(journal.keys(), journal.values(), strict=True)),
]


@pytest.mark.parametrize("form", WAYS)
def test_every_way_to_a_dict_gives_tensors(form):
    made, whole = rounds(3)
    for number in (0, 1, 3):
        found = form(made[number])
        assert found.keys() == whole[number].keys()
        for name, value in whole[number].items():
            assert torch.equal(found[name], value)


def test_nobody_sees_half_a_step():
    made, bad, stop = [Journal({"table": torch.zeros(HEIGHT, 4)})], [], threading.Event()
    everything = torch.arange(HEIGHT // 2 - 1)
    ones = Rows(torch.ones(len(everything), 4), everything, torch.zeros_like(everything))

    def look():
        while not stop.is_set():
            for each in made[-3:]:
                table = each["table"][: len(everything)]
                if float(table.min()) != float(table.max()):
                    bad.append(each)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(60):
        made.append(made[-1].stepped({"table": (ones, 1.0)}))
    stop.set()
    watcher.join()
    assert not bad
    assert float(made[-1]["table"][0, 0]) == 60
    assert float(made[30]["table"][0, 0]) == 30


def test_a_journal_is_not_changed_from_outside():
    made, whole = rounds(2)
    mine = torch.zeros(HEIGHT, 4)
    for change in (
        lambda: made[1].__setitem__("table", mine),
        lambda: made[1].update(table=mine),
        lambda: made[1].setdefault("other", mine),
        lambda: made[1].pop("table"),
        made[1].clear,
    ):
        with pytest.raises(TypeError, match="do not change"):
            change()
    assert "_Behind" not in repr(made[1])
    assert torch.equal(made[1]["table"], whole[1]["table"])


def test_notes_of_an_old_round_do_not_grow_without_end():
    wide = [step(number, HEIGHT // 3) for number in range(20)]
    first = now = Journal({"table": torch.randn(HEIGHT, 4)})
    table = first.raw()["table"].clone()
    copies = 0
    for rows in wide:
        now = now.stepped({"table": (rows, 1.0)})
        copies += not now.noted["table"]
        assert sum(len(note.ids) for note in now.noted["table"]) < HEIGHT
    assert copies >= 5
    assert torch.equal(first["table"], table)


def test_rounds_that_nobody_keeps_cost_no_copy():
    now = Journal({"table": torch.randn(HEIGHT, 4)})
    where = now.raw()["table"].data_ptr()
    for number in range(20):
        now = now.stepped({"table": (step(number, HEIGHT // 3), 1.0)})
        assert now.raw()["table"].data_ptr() == where
        assert len(now.noted["table"]) <= 1


def test_rows_of_other_widths_are_no_business_of_compiled_loops():
    ids = torch.tensor([0, 1, 2])
    rows = Rows(torch.ones(3, 2), ids, ids)
    with pytest.raises((RuntimeError, IndexError)):
        rows.add_to(torch.zeros(3, 64), torch.ones(3))
    with pytest.raises((RuntimeError, IndexError)):
        add_rows(torch.zeros(3, 64), ids, torch.ones(3, 2))
    with pytest.raises((RuntimeError, IndexError)):
        move_rows(torch.zeros(3, 64), rows, 1.0)
