"""Tables that keep less than they answer for: checked against whole tensors."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab.core import Lookup, SparseTable, arranged, as_tensor, joined

FIRST = torch.arange(6.0).view(3, 2)                          # rows 0, 3, 6, ... start as FIRST[0]


def whole(table):
    return table.index_select(0, torch.arange(len(table)))


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), max_size=5))
def test_a_sparse_table_is_a_tensor_that_changes_by_rows(rounds):
    sparse = SparseTable.untouched(10, FIRST)
    dense = FIRST[torch.arange(10) % 3]
    for number, rows in enumerate(rounds):
        ids = torch.tensor(sorted(rows))
        change = torch.full((len(ids), 2), number + 1.0)
        before, sparse, dense = sparse, sparse.index_add(0, ids, change), dense.index_add(0, ids,
                                                                                          change)
        assert torch.equal(whole(sparse), dense)
        # the old table still answers
        assert torch.equal(whole(before) + (dense - whole(before)), dense)
    assert len(sparse.ids) == len(set().union(*rounds)) if rounds else len(sparse.ids) == 0
    grid = torch.tensor([[1, 2], [9, 1]])
    assert torch.equal(sparse[grid], dense[grid])
    assert sparse.shape == (10, 2)
    assert sparse.to("cpu").device == torch.device("cpu")


def test_the_table_before_a_change_stays_as_it_was():
    old = SparseTable.untouched(4, FIRST)
    new = old.index_add(0, torch.tensor([2]), torch.ones(1, 2))
    assert whole(old).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert whole(new).tolist() == [[0, 1], [2, 3], [5, 6], [0, 1]]


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
