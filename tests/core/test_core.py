"""Keyed randomness, checked knobs and the arithmetic of Rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab.core import Config, ParameterError, Rows, knobs, norms, stream


def rows():
    return Rows(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2, 2]),
                torch.tensor([0, 0, 1]))


def test_streams_differ_by_seed_purpose_and_round_and_repeat():
    keys = [(s, p, n) for s in (0, 1) for p in ("cohort", "examples") for n in (1, 2)]
    draws = [tuple(torch.rand(3, generator=stream(*k)).tolist()) for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(3, generator=stream(*k)).tolist()) for k in keys]


def test_rows_by_hand():
    assert rows().add_to(torch.ones(3, 2), torch.tensor([2.0, 0.5])).tolist() == [[7, 9], [1, 1],
                                                                                  [3, 2]]
    dense = Rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert dense.add_to(torch.zeros(1, 2), torch.tensor([1.0, 10.0])).tolist() == [[31, 42]]
    assert rows().square_norms(2).tolist() == [26, 4]
    bias = Rows(torch.tensor([2.0]), torch.tensor([1]), torch.tensor([1]))
    assert norms({"a": rows(), "b": bias}, 2).tolist() == pytest.approx([26**0.5, 8**0.5])


@pytest.mark.parametrize(("bad", "message"), [
    ({"local_lr": -1.0}, r"local_lr=-1\.0: choose a number from 0 to 100"),
    ({"local_lr": float("nan")}, "local_lr=nan"),
    ({"local_lr": "fast"}, "local_lr='fast'"),
    ({"rounds": 0}, "rounds=0: choose a whole number from 1 to 10000"),
    ({"rounds": 2.5}, "rounds=2.5"),
    ({"rounds": True}, "rounds=True"),
    ({"cohort": 0}, "cohort=0"),
    ({"optimizer": "adam"}, "optimizer='adam': choose one of sgd, adamw"),
    ({"learning_rate": 1}, "learning_rate=1: no such parameter"),
    ({"local_epoch": 1}, "local_epoch=1: no such parameter; did you mean local_epochs?"),
    ({"seed": -1}, "seed=-1"),
])
def test_bad_settings_name_parameter_value_and_fix(bad, message):
    with pytest.raises(ParameterError, match=message):
        Config(**bad)


@given(st.integers(1, 10_000), st.floats(0, 100), st.sampled_from(["sgd", "adamw"]))
def test_settings_in_range_are_taken_as_they_are(rounds, rate, optimizer):
    config = Config(rounds=rounds, local_lr=rate, optimizer=optimizer)
    assert (config.rounds, config.local_lr, config.optimizer) == (rounds, rate, optimizer)


@given(st.floats(allow_nan=True, allow_infinity=True).filter(lambda x: not 0 <= x <= 100))
def test_settings_out_of_range_never_pass(rate):
    with pytest.raises(ParameterError):
        Config(local_lr=rate)


def test_each_field_is_a_knob_whose_default_fits():
    described = knobs(Config)
    assert list(described) == list(Config.__dataclass_fields__)
    assert all(k.meaning for k in described.values())
    assert Config() == Config()
    assert not described["seed"].live
