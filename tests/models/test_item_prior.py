"""Rows from texts: against scikit-learn's Gaussian process, and by leaving out for real."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from sklearn.kernel_ridge import KernelRidge

from fedlab.core import ParameterError
from fedlab.models.text import item_kernel, kernel_ridge, text_kernel

TEXTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
WARM = torch.arange(12) % 4 != 1


def test_cold_rows_are_kernel_ridge_and_warm_ones_leave_themselves_out():
    kernel = text_kernel(TEXTS).double()
    found = kernel_ridge(kernel, WARM, 0.5) @ ROWS.double()[WARM]
    for item in range(12):
        others = WARM.clone()
        others[item] = False
        model = KernelRidge(alpha=0.5, kernel="precomputed")
        model.fit(kernel[others][:, others].numpy(), ROWS.double()[others].numpy())
        expected = torch.from_numpy(model.predict(kernel[item : item + 1][:, others].numpy()))[0]
        torch.testing.assert_close(found[item], expected)


def test_a_kernel_by_hand():
    known = tiny([0] * 3, [0, 1, 2]).catalogue
    columns = {
        "years": torch.tensor([1990, 1992, 0]),
        "categories": torch.tensor([[True, False], [True, True], [False, False]]),
    }
    catalogue = replace(known, columns={**known.columns, **columns})
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    unit = x / x.norm(dim=1, keepdim=True)
    unit = unit - unit.mean(0)
    unit = unit / unit.norm(dim=1, keepdim=True)
    square = (unit[:, None] - unit).square().sum(2)
    assert torch.allclose(text_kernel(x), (-square / (4 * 0.7**2)).exp())
    cosine = 0.5**0.5
    extra = 0.4 * torch.tensor(2 * (cosine - 1)).exp() + 0.2 * torch.tensor(-4 / 8).exp()
    found = item_kernel([x], catalogue)
    torch.testing.assert_close(found[0, 1], text_kernel(x)[0, 1] + extra)
    torch.testing.assert_close(item_kernel([x, x], catalogue), found)
    assert torch.equal(item_kernel([x], catalogue, 0.0, 0.0), text_kernel(x))
    torch.testing.assert_close(item_kernel([], catalogue), found - text_kernel(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_kernel(TEXTS, 0.0), "width=0.0"),
        (lambda: item_kernel([], None, 0, 0), "texts=0"),
        (lambda: item_kernel([TEXTS], None, -1.0), "genres, years"),
        (lambda: kernel_ridge(text_kernel(TEXTS), WARM, 0.0), "strength=0.0"),
        (lambda: kernel_ridge(text_kernel(TEXTS), torch.arange(12) == 3), "warm=1"),
    ],
)
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
