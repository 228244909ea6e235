"""Fewer bytes up: with feedback nothing is lost for good; bytes of rows; what goes with privacy."""

import pytest
import torch

from fedlab.algorithms import Buffered, federate
from fedlab.communication import (
    CODECS,
    ErrorFeedback,
    LowRank,
    Plain,
    Quantised,
    RandomK,
    TopK,
    row_bytes,
)
from fedlab.core import ParameterError, Round, RoundContext, Rows, Settings, Update
from fedlab.engine import SGD
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, LocalNoise, SecureSum


def test_row_numbers_are_sent_as_distances():
    ids = torch.tensor([0, 126, 127, 300, 20_000, 5, 2_100_000])
    client = torch.tensor([0, 0, 0, 0, 0, 2, 2])

    def leb(number):  # 7 bits a byte, the highest bit for 'more follows'
        return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + leb(number // 128)

    gaps = {0: [1, 126, 1, 173, 19_700], 1: [], 2: [6, 2_099_995]}
    assert row_bytes(ids, client, 3).tolist() == [
        sum(len(leb(gap)) for gap in found) for found in gaps.values()
    ]
    with pytest.raises(ParameterError, match=r"ids=\[3\]: a client's row numbers must grow"):
        row_bytes(torch.tensor([4, 3]), torch.tensor([0, 0]), 1)


def scene(number=1, state=None):
    """What a stage knows of a round: one table of items, four rows of five numbers."""
    asked, start = {"item": (torch.zeros(4, 5), "item")}, Settings()
    return RoundContext(
        None,
        None,
        start,
        Round(number - 1, start, {}),
        {},
        {} if state is None else state,
        asked=asked,
    )


def update(values, cohort):
    """The same delta of each client: values (4, 5)."""
    count = len(cohort)
    rows = Rows(
        values.repeat(count, 1),
        torch.arange(4).repeat(count),
        torch.arange(count).repeat_interleave(4),
    )
    one = torch.ones(count)
    return Update({"item": rows}, one, one, torch.tensor(cohort), one)


@pytest.mark.parametrize(
    "code", [Quantised(1), Quantised(2), Quantised(4), TopK(0.2), RandomK(0.3), LowRank(1)]
)
def test_with_feedback_nothing_is_lost_for_good(code):
    torch.manual_seed(0)
    values = torch.randn(4, 5)
    sums = []
    for feedback in ("on", "off"):
        way, state, total = ErrorFeedback(own=code, feedback=feedback), {}, torch.zeros(4, 5)
        for number in range(200):
            sent = way.each(update(values, [3, 1]), scene(number, state))
            total += sent.deltas["item"].values[:4]
        sums.append(float((total / 200 - values).abs().max()))
    assert sums[0] < 0.1
    assert sums[1] > 2 * sums[0]


def test_memory_is_each_clients_own_and_lies_in_the_state():
    way, values, state = ErrorFeedback(own=TopK(0.05)), torch.arange(20.0).view(4, 5), {}
    way.each(update(values, [2]), scene(1, state))
    assert list(state) == ["error feedback"]
    before = dict(state["error feedback"])
    first = before["item"][2][1]["item"].clone()
    later = {"error feedback": dict(before)}  # as the loop hands it on
    sent = way.each(update(values, [2, 5]), scene(2, later))
    mine, other = (sent.deltas["item"].values[sent.deltas["item"].client == k] for k in (0, 1))
    assert float(mine.max()) == 36.0  # 18 of the last round, and 18 of this one
    assert float(other.max()) == 19.0
    assert torch.equal(before["item"][2][1]["item"], first)  # earlier Rounds keep theirs
    fresh = ErrorFeedback(own=TopK(0.05)).each(update(values, [2]), scene(2, {}))
    assert float(fresh.deltas["item"].values.max()) == 19.0  # nothing is in the object


@pytest.mark.parametrize("code", [Plain(), TopK(1.0), LowRank(8, steps=4)])
def test_codes_that_leave_nothing_out_change_nothing(code, split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    asked = Settings(rounds=3, cohort=60)
    *_, plain = federate(model, clicks, asked)
    *_, sent = federate(model, clicks, asked, uplink=[ErrorFeedback(own=code)])
    for name, value in plain.params.items():
        torch.testing.assert_close(sent.params[name], value, atol=1e-5, rtol=1e-4)


def test_a_delta_that_is_no_number_is_not_remembered():
    way, state = ErrorFeedback(own=Quantised(4)), {}
    way.each(update(torch.full((4, 5), torch.nan), [1]), scene(1, state))
    sent = way.each(update(torch.ones(4, 5), [1]), scene(2, state))
    torch.testing.assert_close(sent.deltas["item"].values, torch.ones(4, 5))


def test_a_federation_learns_with_about_an_eighth_of_the_bytes(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    asked = Settings(rounds=4, cohort=100, local_lr=2.0)
    *_, plain = federate(model, clicks, asked)
    way = ErrorFeedback(codec="4 bits")
    *_, small = federate(model, clicks, asked, uplink=[way])
    assert 7 < plain.bytes_up / small.bytes_up < 8  # numbers in half a byte, rows mostly in one
    assert small.bytes_down == plain.bytes_down
    assert small.loss == pytest.approx(plain.loss, rel=0.02)
    *_, again = federate(model, clicks, asked, uplink=[way])  # a used object is as good as new
    assert torch.equal(small.params["item"], again.params["item"])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("schedule", [None, Buffered(buffer=5)], ids=["synchronous", "buffered"])
def test_a_resumed_run_is_the_uninterrupted_one(codec, schedule, split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    asked = Settings(rounds=4, cohort=10, codec=codec)

    def run(start=None):
        return list(
            federate(model, clicks, asked, uplink=[ErrorFeedback()], start=start, schedule=schedule)
        )

    whole = run()
    again = run(whole[1])
    for name, value in whole[-1].params.items():
        assert torch.equal(value, again[-1].params[name])
    assert [done.bytes_up for done in whole[2:]] == [done.bytes_up for done in again]


def test_a_code_goes_before_the_clip_and_its_bytes_are_counted(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    asked = Settings(
        rounds=1,
        cohort=300,
        local_lr=2.0,
        clip=0.1,
        noise=1e-6,
        teaching_seed=0,
        sampling="poisson",
    )
    coded = ErrorFeedback(own=LowRank(1, then=Quantised(4)))
    (done,) = federate(model, clicks, asked, uplink=[coded, Clip(), GaussianNoise()])
    (plain,) = federate(model, clicks, asked, uplink=[Clip(), GaussianNoise()])
    assert plain.bytes_up / done.bytes_up > 25  # 16 numbers a row become one, of half a byte
    assert float(done.norms.max()) <= 0.1 * (1 + 1e-4)  # measured in float32
    assert torch.equal(plain.cohort, done.cohort)
    assert plain.metrics["epsilon"] == done.metrics["epsilon"]


class Never(SGD):
    """Nobody may train with it."""

    def train(self, context, cohort):
        raise AssertionError("somebody trained")


@pytest.mark.parametrize(
    ("uplink", "message"),
    [
        (
            [ErrorFeedback(), Clip(), LocalNoise()],
            "local noise: needs updates whose every number is sent in full, which error feedback",
        ),
        (
            [ErrorFeedback(), Clip(), SecureSum()],
            "secure sum: needs updates whose every number is sent in full, which error feedback",
        ),
        (
            [Clip(), ErrorFeedback(), GaussianNoise()],
            "gaussian noise: needs a bound on the length of every update; error feedback took it",
        ),
        (
            [Clip(), GaussianNoise(), ErrorFeedback()],
            "error feedback: needs updates that are still with their clients, which gaussian noise "
            "takes away",
        ),
        ([ErrorFeedback(), ErrorFeedback()], "parts='error feedback': it is there twice"),
    ],
)
def test_where_a_code_has_no_place_it_is_refused(uplink, message, split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 2)
    with pytest.raises(ParameterError, match=message):
        next(federate(model, clicks, Settings(rounds=1, cohort=5), local=Never(), uplink=uplink))


def test_with_a_code_of_ones_own_no_name_is_read(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 2)
    with pytest.raises(ParameterError, match="codec='signs': error feedback does not read it"):
        next(
            federate(
                model,
                clicks,
                Settings(cohort=5, codec="signs"),
                uplink=[ErrorFeedback(own=TopK(0.5))],
            )
        )


def test_random_codes_do_not_depend_on_memory(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 4)
    found = [
        list(
            federate(
                model,
                clicks,
                Settings(rounds=2, cohort=60, memory_mb=mb),
                uplink=[ErrorFeedback(own=RandomK(0.2))],
            )
        )[-1]
        for mb in (3, 500)
    ]
    assert found[0].bytes_up == found[1].bytes_up
    torch.testing.assert_close(found[0].params["item"], found[1].params["item"])
