"""The arithmetic of Rows; tables that keep less than they answer for, against whole tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab.core import (
    Lookup,
    ParameterError,
    Rows,
    SparseTable,
    Update,
    arranged,
    as_tensor,
    joined,
    moved,
    norms,
    whole,
)

FIRST = torch.arange(6.0).view(3, 2)  # rows 0, 3, 6, ... start as FIRST[0]


def every_row(table):
    return table.index_select(0, torch.arange(len(table)))


def rows():
    return Rows(
        torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([0, 2, 2]),
        torch.tensor([0, 0, 1]),
    )


def test_rows_by_hand():
    assert rows().add_to(torch.ones(3, 2), torch.tensor([2.0, 0.5])).tolist() == [
        [7, 9],
        [1, 1],
        [3, 2],
    ]
    dense = Rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert dense.add_to(torch.zeros(1, 2), torch.tensor([1.0, 10.0])).tolist() == [[31, 42]]
    assert rows().square_norms(2).tolist() == [26, 4]
    bias = Rows(torch.tensor([2.0]), torch.tensor([1]), torch.tensor([1]))
    assert norms({"a": rows(), "b": bias}, 2).tolist() == pytest.approx([26**0.5, 8**0.5])


def test_norms_of_wide_rows_are_right_and_do_not_overflow():
    wide = torch.full((2, 100_003), 0.1234567)
    wide[1, :2] = 3e30
    found = norms({"w": Rows(wide, torch.zeros(2).long(), torch.arange(2))}, 2)
    torch.testing.assert_close(found, wide.double().norm(dim=1), rtol=3e-7, atol=0)


def test_rows_without_a_client_each_are_refused():
    with pytest.raises(ParameterError, match=r"rows=\(3, 2, 2\): give as many values, ids and"):
        Rows(torch.zeros(3, 4), torch.arange(2), torch.arange(2))


def test_groups_of_clients_join_in_order():
    part = Rows(torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 0]))
    both = Rows.joined([part, Rows(torch.zeros(1), torch.tensor([5]), torch.tensor([1]))])
    assert both.ids.tolist() == [0, 1, 5]
    assert both.client.tolist() == [0, 0, 1]


def test_some_clients_of_an_update_are_counted_anew():
    update = Update(
        {"a": rows()},
        torch.tensor([1.0, 2.0]),
        torch.zeros(2),
        torch.tensor([7, 9]),
        torch.ones(2),
        bytes_up=torch.tensor([3, 4]),
        members=(torch.tensor([0]), torch.tensor([1, 2])),
    )
    mine = update.only(torch.tensor([False, True]))
    assert (mine.cohort.tolist(), mine.weights.tolist()) == ([9], [2.0])
    assert mine.bytes_up.tolist() == [4]
    assert [m.tolist() for m in mine.members] == [[1, 2]]
    assert (mine.deltas["a"].client.tolist(), mine.deltas["a"].ids.tolist()) == ([0], [2])
    assert not len(update.only(torch.tensor([False, False])).deltas["a"].ids)


def test_a_step_along_rows_is_one_along_the_whole_table():
    table = torch.ones(3, 2)
    step = Rows(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.tensor([0]))
    assert whole(step, table).tolist() == [[0, 0], [1, 2], [0, 0]]
    assert whole(table, table) is table
    assert torch.equal(moved(table, step, 0.5), moved(table, whole(step, table), 0.5))


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), max_size=5))
def test_a_sparse_table_is_a_tensor_that_changes_by_rows(rounds):
    sparse = SparseTable.untouched(10, FIRST)
    dense = FIRST[torch.arange(10) % 3]
    for number, rows in enumerate(rounds):
        ids = torch.tensor(sorted(rows))
        change = torch.full((len(ids), 2), number + 1.0)
        before, sparse, dense = (
            sparse,
            sparse.index_add(0, ids, change),
            dense.index_add(0, ids, change),
        )
        assert torch.equal(every_row(sparse), dense)
        # the old table still answers
        assert torch.equal(every_row(before) + (dense - every_row(before)), dense)
    assert len(sparse.ids) == len(set().union(*rounds)) if rounds else len(sparse.ids) == 0
    grid = torch.tensor([[1, 2], [9, 1]])
    assert torch.equal(sparse[grid], dense[grid])
    assert sparse.shape == (10, 2)
    assert sparse.to("cpu").device == torch.device("cpu")


def test_the_table_before_a_change_stays_as_it_was():
    old = SparseTable.untouched(4, FIRST)
    new = old.index_add(0, torch.tensor([2]), torch.ones(1, 2))
    assert every_row(old).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert every_row(new).tolist() == [[0, 1], [2, 3], [5, 6], [0, 1]]


def test_a_lookup_reads_as_the_column_it_stands_for():
    table, rows = torch.randn(5, 3), torch.tensor([4, 0, 0, 2])
    column, places = Lookup(table, rows), torch.tensor([[3, 1], [0, 0]])
    assert torch.equal(as_tensor(column), table[rows])
    assert torch.equal(as_tensor(column[1:3]), table[rows][1:3])
    assert torch.equal(as_tensor(arranged(column, places)), table[rows][places])
    assert torch.equal(arranged(table[rows], places), table[rows][places])
    assert torch.equal(as_tensor(joined([column[:1], column[1:]])), table[rows])
    assert len(column) == 4
    assert column.nbytes == rows.nbytes
    assert column.to("cpu").table is table  # a table that is there already is not copied
