"""Fewer bytes: levels and signs by hand, bytes as they are packed, and nothing lost for good with feedback."""

import numpy as np
import pytest
import torch

from fedlab.compress import Compressed, Quantised, TopK, packed, row_bytes, unpacked
from fedlab.core import Config, ParameterError, Rows, Update
from fedlab.models import matrix_factorisation
from fedlab.server import federate

VALUES = torch.tensor([[7.0, -3.4], [0.2, 0.0], [-1.0, 0.6]])
CLIENT = torch.tensor([0, 0, 1])


def test_four_bits_by_hand():
    arrives, size = Quantised(4)(VALUES, CLIENT, 3)
    torch.testing.assert_close(arrives, torch.tensor([[7.0, -3.0], [0.0, 0.0], [-1.0, 4 / 7]]))
    assert size.tolist() == [2 + 4, 1 + 4, 0]                      # half a byte a number, a scale; the third was silent


def test_signs_by_hand():
    arrives, size = Quantised(1)(VALUES, CLIENT, 2)
    mean = 10.6 / 4
    torch.testing.assert_close(arrives, torch.tensor([[mean, -mean], [mean, mean], [-0.8, 0.8]]))
    assert size.tolist() == [1 + 4, 1 + 4]


def test_the_largest_by_hand():
    arrives, size = TopK(0.5)(VALUES, CLIENT, 2)
    torch.testing.assert_close(arrives, torch.tensor([[7.0, -3.4], [0.0, 0.0], [-1.0, 0.0]]))
    assert size.tolist() == [16, 8]
    everything, _ = TopK(1.0)(VALUES, CLIENT, 2)
    assert torch.equal(everything, VALUES)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bytes_are_those_of_the_packed_levels(bits):
    torch.manual_seed(0)
    values = torch.randn(37, 3)
    code = Quantised(bits)
    arrives, size = code(values, torch.zeros(37, dtype=torch.int64), 1)
    scale = values.abs().mean() if bits == 1 else values.abs().max() / code.most
    levels = (arrives / scale).round().to(torch.int8).flatten().numpy()
    text = packed(levels, bits)
    assert len(text) + 4 == int(size)
    assert np.array_equal(unpacked(text, len(levels), bits), levels)
    assert len(np.unique(levels)) <= 2 * code.most + 1
    if bits > 1:
        assert float((arrives - values).abs().max()) <= float(scale) / 2 + 1e-6


def test_row_numbers_are_sent_as_distances():
    ids = torch.tensor([0, 126, 127, 300, 20_000, 5, 2_100_000])
    client = torch.tensor([0, 0, 0, 0, 0, 2, 2])

    def leb(number):                                               # 7 bits a byte, the highest bit for 'more follows'
        return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + leb(number // 128)
    gaps = {0: [1, 126, 1, 173, 19_700], 1: [], 2: [6, 2_099_995]}
    assert row_bytes(ids, client, 3).tolist() == [sum(len(leb(gap)) for gap in found) for found in gaps.values()]
    with pytest.raises(ParameterError, match=r"ids=\[3\]: a client's row numbers must grow"):
        row_bytes(torch.tensor([4, 3]), torch.tensor([0, 0]), 1)


class Fixed:
    """A client update that sends the same delta each time."""

    rows, private = {"item": "item"}, frozenset()

    def __init__(self, values):
        self.values = values

    def __call__(self, model, data, params, cohort, *given, **named):
        count = len(cohort) * 4
        rows = Rows(self.values.repeat(len(cohort), 1), torch.arange(4).repeat(len(cohort)),
                    torch.arange(len(cohort)).repeat_interleave(4))
        assert len(rows.ids) == count
        one = torch.ones(len(cohort))
        yield Update({"item": rows}, one, one, cohort, one)


@pytest.mark.parametrize("code", [Quantised(1), Quantised(2), Quantised(4), TopK(0.2)])
def test_with_feedback_nothing_is_lost_for_good(code):
    torch.manual_seed(0)
    values = torch.randn(4, 5)
    sums = []
    for way in (Compressed(code, trained=Fixed(values)), Compressed(code, feedback=False, trained=Fixed(values))):
        total = torch.zeros(4, 5)
        for _ in range(200):
            (sent,) = way.update(Fixed(values), None, {"item": torch.zeros(4, 5)}, torch.tensor([3, 1]))
            total += sent.deltas["item"].values[:4]
        sums.append(float((total / 200 - values).abs().max()))
    assert sums[0] < 0.1
    assert sums[1] > 2 * sums[0]


def test_memory_is_each_clients_own():
    way = Compressed(TopK(0.05), trained=Fixed(torch.arange(20.0).view(4, 5)))
    params = {"item": torch.zeros(4, 5)}
    list(way.update(Fixed(None), None, params, torch.tensor([2])))
    (sent,) = way.update(Fixed(None), None, params, torch.tensor([2, 5]))
    mine, other = (sent.deltas["item"].values[sent.deltas["item"].client == k] for k in (0, 1))
    assert float(mine.max()) == 36.0                               # 18 of the last round, and 18 of this one
    assert float(other.max()) == 19.0


def test_a_delta_that_is_no_number_is_not_remembered():
    bad = Fixed(torch.full((4, 5), torch.nan))
    way, params = Compressed(Quantised(4), trained=bad), {"item": torch.zeros(4, 5)}
    list(way.update(bad, None, params, torch.tensor([1])))
    bad.values = torch.ones(4, 5)
    (sent,) = way.update(bad, None, params, torch.tensor([1]))
    torch.testing.assert_close(sent.deltas["item"].values, torch.ones(4, 5))


def test_a_federation_learns_with_about_an_eighth_of_the_bytes(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    config = Config(rounds=4, cohort=100, local_lr=2.0)
    *_, plain = federate(model, clicks, config)
    *_, small = federate(model, clicks, config, update=Compressed(Quantised(4)).update)
    assert 7 < plain.bytes_up / small.bytes_up < 8                 # numbers in half a byte, rows mostly in one
    assert small.loss == pytest.approx(plain.loss, rel=0.02)
    *_, again = federate(model, clicks, config, update=Compressed(Quantised(4)).update)
    assert torch.equal(small.params["item"], again.params["item"])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Quantised(3), "bits=3: choose 1, 2, 4 or 8"), (lambda: TopK(0.0), "share=0.0: choose a share"),
    (lambda: TopK(1.5), "share=1.5")])
def test_what_makes_no_code_is_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
