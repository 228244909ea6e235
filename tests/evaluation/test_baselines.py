"""Central iALS against autograd on the whole loss, EASE against its definition."""

from dataclasses import replace

import pytest
import torch
from oracle import implicit_loss, weighed

from fedlab.core import DataError, ParameterError
from fedlab.evaluation import clicked, dot, ease, ials


def test_central_ials_reaches_a_point_without_slope(small):
    how = {"unseen": 1.0, "regularisation": 0.5}
    users, items = ials(small, 3, epochs=200, **how)
    u, i = users.double().requires_grad_(), items.double().requires_grad_()
    slopes = torch.autograd.grad(implicit_loss(clicked(small).double(), u, i, **how), [u, i])
    assert max(float(s.abs().max()) for s in slopes) < 1e-3
    assert dot(users, items)(torch.tensor([[2, 3]]), torch.tensor([[5, 1]])).tolist() == [
        pytest.approx([float(users[2] @ items[5]), float(users[3] @ items[1])])
    ]


def test_ease_is_the_least_squares_without_the_diagonal(small):
    table = clicked(small).double()
    score = ease(small, 2.0)
    users, items = (
        t.flatten() for t in torch.meshgrid(torch.arange(15), torch.arange(11), indexing="ij")
    )
    found, late = (
        s(users, items).view(15, 11).double() for s in (score, ease(small, 2.0, recency=1.0))
    )
    weighted = weighed(small).double()
    for item in range(11):  # a ridge regression on the other films, one film at a time
        others = torch.arange(11) != item
        x = table[:, others]
        b = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(10).double(), x.T @ table[:, item])
        torch.testing.assert_close(found[:, item], x @ b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(late[:, item], weighted[:, others] @ b, atol=1e-5, rtol=1e-4)


def test_ease_needs_times_only_to_weigh_by_them(small):
    without = replace(small, columns={})
    users, items = small.users, small.items
    assert torch.equal(ease(without)(users, items), ease(small)(users, items))
    with pytest.raises(DataError, match=r"no times; name their column with read\(..., time=...\)"):
        ease(without, recency=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ease(None, 0.0), "strength=0.0"),
        (lambda: ials(None, unseen=0.0), "unseen=0.0"),
        (lambda: ials(None, regularisation=0.0), "regularisation=0.0"),
    ],
)
def test_settings_without_meaning_are_refused(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
