"""A clip and the gate measure alike."""

import torch

from fedlab import Clip, Federation, GaussianNoise, Settings, federate
from fedlab.data import at_least, leave_one_out, load, one_per_user
from fedlab.privacy import ItemCounts, item_counts


def test_updates_of_a_thousand_equal_rows_that_were_clipped_come_through():
    train = leave_one_out(
        at_least(load(), items=5)[0]
    ).train  # one user watched 1446 of these films
    data = Federation(train, one_per_user(train))
    settings = Settings(
        rounds=1,
        cohort=len(data),
        clip=1.0,
        noise=1e-6,
        teaching_seed=0,
        server_lr=float(len(data)),
    )
    (done,) = federate(
        item_counts(train.item_count),
        data,
        settings,
        local=ItemCounts(),
        uplink=[Clip(), GaussianNoise()],
    )
    assert not done.rejected
    assert len(done.cohort) == len(data)
    expected = data.counts.double().sqrt().sum()  # n ones of length 1 add up to the root of n
    torch.testing.assert_close(done.params["count"].double().sum(), expected, rtol=1e-5, atol=0)
