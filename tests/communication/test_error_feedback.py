"""Fewer bytes up.

Nothing is lost for good with feedback, bytes of rows, and what goes with privacy.
"""

import pytest
import torch

from fedlab.algorithms import Private, federate, federate_privately
from fedlab.communication import ErrorFeedback, LowRank, Plain, Quantised, RandomK, TopK, row_bytes
from fedlab.core import Config, ParameterError, Rows, Update
from fedlab.models import matrix_factorisation
from fedlab.privacy import SecureSum


def test_row_numbers_are_sent_as_distances():
    ids = torch.tensor([0, 126, 127, 300, 20_000, 5, 2_100_000])
    client = torch.tensor([0, 0, 0, 0, 0, 2, 2])

    def leb(number):  # 7 bits a byte, the highest bit for 'more follows'
        return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + leb(number // 128)
    gaps = {0: [1, 126, 1, 173, 19_700], 1: [], 2: [6, 2_099_995]}
    assert row_bytes(ids, client, 3).tolist() == [sum(len(leb(gap)) for gap in found)
                                                  for found in gaps.values()]
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


@pytest.mark.parametrize("code", [Quantised(1), Quantised(2), Quantised(4), TopK(0.2), RandomK(0.3),
                                  LowRank(1)])
def test_with_feedback_nothing_is_lost_for_good(code):
    torch.manual_seed(0)
    values = torch.randn(4, 5)
    sums = []
    for way in (ErrorFeedback(code, trained=Fixed(values)), ErrorFeedback(code, feedback=False,
                                                                          trained=Fixed(values))):
        total = torch.zeros(4, 5)
        for number in range(200):
            (sent,) = way.update(Fixed(values), None, {"item": torch.zeros(4, 5)},
                                 torch.tensor([3, 1]), Config(), number=number)
            total += sent.deltas["item"].values[:4]
        sums.append(float((total / 200 - values).abs().max()))
    assert sums[0] < 0.1
    assert sums[1] > 2 * sums[0]


def test_memory_is_each_clients_own():
    way = ErrorFeedback(TopK(0.05), trained=Fixed(torch.arange(20.0).view(4, 5)))
    params = {"item": torch.zeros(4, 5)}
    list(way.update(Fixed(None), None, params, torch.tensor([2]), Config()))
    (sent,) = way.update(Fixed(None), None, params, torch.tensor([2, 5]), Config())
    mine, other = (sent.deltas["item"].values[sent.deltas["item"].client == k] for k in (0, 1))
    assert float(mine.max()) == 36.0  # 18 of the last round, and 18 of this one
    assert float(other.max()) == 19.0


@pytest.mark.parametrize("code", [Plain(), TopK(1.0), LowRank(8, steps=4)])
def test_codes_that_leave_nothing_out_change_nothing(code, split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    config = Config(rounds=3, cohort=60)
    *_, plain = federate(model, clicks, config)
    *_, sent = federate(model, clicks, config, update=ErrorFeedback(code).update)
    for name, value in plain.params.items():
        torch.testing.assert_close(sent.params[name], value, atol=1e-5, rtol=1e-4)


def test_a_delta_that_is_no_number_is_not_remembered():
    bad = Fixed(torch.full((4, 5), torch.nan))
    way, params = ErrorFeedback(Quantised(4), trained=bad), {"item": torch.zeros(4, 5)}
    list(way.update(bad, None, params, torch.tensor([1]), Config()))
    bad.values = torch.ones(4, 5)
    (sent,) = way.update(bad, None, params, torch.tensor([1]), Config())
    torch.testing.assert_close(sent.deltas["item"].values, torch.ones(4, 5))


def test_a_federation_learns_with_about_an_eighth_of_the_bytes(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    config = Config(rounds=4, cohort=100, local_lr=2.0)
    *_, plain = federate(model, clicks, config)
    *_, small = federate(model, clicks, config, update=ErrorFeedback(Quantised(4)).update)
    assert 7 < plain.bytes_up / small.bytes_up < 8  # numbers in half a byte, rows mostly in one
    assert small.loss == pytest.approx(plain.loss, rel=0.02)
    *_, again = federate(model, clicks, config, update=ErrorFeedback(Quantised(4)).update)
    assert torch.equal(small.params["item"], again.params["item"])


def test_a_code_goes_before_the_clip_and_its_bytes_are_counted(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    config = Private(rounds=1, cohort=300, local_lr=2.0, clip=0.1, noise=1e-6)
    coded = ErrorFeedback(LowRank(1, then=Quantised(4)))
    (done,) = federate_privately(model, clicks, config, update=coded.update, teaching_seed=0)
    (plain,) = federate_privately(model, clicks, config, teaching_seed=0)
    assert plain.bytes_up / done.bytes_up > 25  # 16 numbers a row become one, of half a byte
    assert float(done.norms.max()) <= 0.1 * (1 + 1e-4)                     # measured in float32
    assert torch.equal(plain.cohort, done.cohort)


@pytest.mark.parametrize("seal", [{"config": {"placement": "local"}}, {"between": [SecureSum()]}])
def test_where_all_numbers_are_sent_anyway_a_code_is_refused(seal, split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 2)
    config, between = Private(rounds=1, cohort=5, noise=1.0, **seal.get("config",
                                                                        {})), seal.get("between",
                                                                                       ())
    with pytest.raises(ParameterError,
                       match=r"update='coded deltas': .* sends 4 bytes for every number"):
        list(federate_privately(model, clicks, config, update=ErrorFeedback(Quantised(4)).update,
                                between=between, teaching_seed=3))


def test_a_code_after_the_clip_is_refused(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 2)
    with pytest.raises(ParameterError,
                       match="between='Quantised': give mechanisms; a code goes before the clip"):
        list(federate_privately(model, clicks, Private(cohort=5), between=[Quantised(4)]))


def test_random_codes_do_not_depend_on_memory(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    found = [list(federate(model, clicks, Config(rounds=2, cohort=60, memory_mb=mb),
                           update=ErrorFeedback(RandomK(0.2)).update))[-1] for mb in (3, 500)]
    assert found[0].bytes_up == found[1].bytes_up
    torch.testing.assert_close(found[0].params["item"], found[1].params["item"])
