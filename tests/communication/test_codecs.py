"""Codes: levels, signs, choices and products by hand, and bytes as they are packed."""

import numpy as np
import pytest
import torch

from fedlab.communication import REACH, LowRank, Plain, Quantised, RandomK, TopK, packed, unpacked
from fedlab.core import ParameterError, Rows

VALUES = torch.tensor([[7.0, -3.4], [0.2, 0.0], [-1.0, 0.6]])
CLIENT = torch.tensor([0, 0, 1])


def coded(code, values, client, clients, ids=None):
    """What arrives of a table of ten rows, and its bytes."""
    ids = torch.arange(len(values)) % 10 if ids is None else ids
    return code(Rows(values, ids, client), clients, 10, torch.Generator().manual_seed(0))


def test_four_bits_by_hand():
    arrives, size = coded(Quantised(4), VALUES, CLIENT, 3)
    torch.testing.assert_close(arrives, torch.tensor([[7.0, -3.0], [0.0, 0.0], [-1.0, 4 / 7]]))
    assert size.tolist() == [2 + 4, 1 + 4, 0]  # half a byte a number, a scale; the third was silent


def test_signs_by_hand():
    arrives, size = coded(Quantised(1), VALUES, CLIENT, 2)
    mean = 10.6 / 4
    torch.testing.assert_close(arrives, torch.tensor([[mean, -mean], [mean, mean], [-0.8, 0.8]]))
    assert size.tolist() == [1 + 4, 1 + 4]


def test_the_largest_by_hand():
    arrives, size = coded(TopK(0.5), VALUES, CLIENT, 2)
    torch.testing.assert_close(arrives, torch.tensor([[7.0, -3.4], [0.0, 0.0], [-1.0, 0.0]]))
    assert size.tolist() == [16, 8]
    everything, _ = coded(TopK(1.0), VALUES, CLIENT, 2)
    assert torch.equal(everything, VALUES)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bytes_are_those_of_the_packed_levels(bits):
    torch.manual_seed(0)
    values = torch.randn(37, 3)
    code = Quantised(bits)
    arrives, size = coded(code, values, torch.zeros(37, dtype=torch.int64), 1)
    root = float(values.square().mean().sqrt())
    scale = (
        values.abs().mean()
        if bits == 1
        else min(float(values.abs().max()), REACH[bits] * root) / code.top_level
    )
    levels = (arrives / scale).round().to(torch.int8).flatten().numpy()
    text = packed(levels, bits)
    assert len(text) + 4 == int(size)
    assert np.array_equal(unpacked(text, len(levels), bits), levels)
    assert len(np.unique(levels)) <= 2 * code.top_level + 1
    if bits > 1:
        near = values.clamp(-scale * code.top_level, scale * code.top_level)  # the far ones are cut
        assert float((arrives - near).abs().max()) <= scale / 2 + 1e-6
        assert (bits == 2) == bool((near != values).any())


def test_few_far_numbers_leave_levels_to_the_others():
    values = torch.cat([torch.ones(999), torch.tensor([1000.0])])[:, None]
    arrives, _ = coded(Quantised(4), values, torch.zeros(1000, dtype=torch.int64), 1)
    root = (1e6 + 999) ** 0.5 / 1000**0.5
    assert float(arrives[-1]) == pytest.approx(6 * root)  # cut; the memory sends the rest later
    assert float(arrives[0]) in (0.0, pytest.approx(6 * root / 7))


def test_random_numbers_are_the_same_for_all_clients():
    client, ids = torch.arange(2).repeat_interleave(10), torch.arange(10).repeat(2)
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    arrives, size = coded(RandomK(0.3), values, client, 2, ids)
    there = arrives != 0
    assert torch.equal(there[:10], there[10:])
    assert torch.equal(arrives[there], values[there])
    assert size.tolist() == [4 * int(there[:10].sum())] * 2
    assert 100 < int(there[:10].sum()) < 200  # of 500
    biases, size = coded(RandomK(0.3), values[:, 0], client, 2, ids)
    assert size.tolist() == [4 * int((biases[:10] != 0).sum())] * 2
    column, _ = coded(RandomK(0.3), values[:10], torch.zeros(10, dtype=torch.int64), 1, ids[:10])
    assert torch.equal(column, arrives[:10])  # whoever else is in the chunk


def test_a_product_is_nearly_the_best_of_its_rank():
    torch.manual_seed(0)
    values, client = torch.randn(90, 20), torch.tensor([0] * 60 + [2] * 30)
    arrives, size = coded(LowRank(3, steps=20), values, client, 3)
    for number in (0, 2):
        mine = values[client == number]
        left, length, right = torch.linalg.svd(mine, full_matrices=False)
        best = left[:, :3] * length[:3] @ right[:3]
        error, least = (
            (found - mine).square().sum() for found in (arrives[client == number], best)
        )
        assert least <= error + 1e-3
        assert error <= 1.02 * least
    assert size.tolist() == [4 * 3 * (60 + 20), 0, 4 * 3 * (30 + 20)]


def test_a_product_is_exact_where_the_rank_is_enough():
    torch.manual_seed(0)
    values, client = (
        torch.randn(40, 2) @ torch.randn(2, 20),
        torch.tensor([0] * 25 + [1] * 14 + [2]),
    )
    arrives, _ = coded(LowRank(2), values, client, 3)  # the third client holds a single row
    torch.testing.assert_close(arrives, values, atol=1e-4, rtol=1e-4)


def test_weights_that_all_hold_are_tables_and_biases_are_not():
    torch.manual_seed(0)
    weights, client = (
        torch.einsum("co,ci->coi", torch.randn(3, 12), torch.randn(3, 8)),
        torch.arange(3),
    )
    arrives, size = coded(LowRank(1), weights, client, 3)
    torch.testing.assert_close(arrives, weights, atol=1e-5, rtol=1e-4)
    assert size.tolist() == [4 * (12 + 8)] * 3
    for biases in (torch.randn(3), torch.randn(3, 1)):
        arrives, size = coded(LowRank(1), biases, client, 3)
        assert torch.equal(arrives, biases)
        assert size.tolist() == [4] * 3


def test_factors_go_through_another_code():
    torch.manual_seed(0)
    values, client = torch.randn(60, 1) @ torch.randn(1, 20), torch.zeros(60, dtype=torch.int64)
    arrives, size = coded(LowRank(1, then=Quantised(8)), values, client, 1)
    assert int(size) == 60 + 4 + 20 + 4
    assert float((arrives - values).square().mean() / values.square().mean()) < 1e-3


def test_plain_takes_four_bytes_a_number():
    arrives, size = coded(Plain(), VALUES, CLIENT, 3)
    assert torch.equal(arrives, VALUES)
    assert size.tolist() == [16, 8, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Quantised(3), "bits=3: choose 1, 2, 4 or 8"),
        (lambda: TopK(0.0), "share=0.0: choose a share"),
        (lambda: TopK(1.5), "share=1.5"),
        (lambda: RandomK(0.0), "share=0.0: choose a share"),
        (lambda: LowRank(0), "rank=0: choose 1 or more"),
        (lambda: LowRank(1, steps=0), "steps=0: choose 1 or more"),
    ],
)
def test_what_makes_no_code_is_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
