"""The exercises' checks: solutions pass, wrong answers get a hint, nothing raises."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from fedlab.course import exercises

SOLUTIONS = Path(__file__).parents[2] / "notebooks" / "solutions"


def solution(lesson):
    spec = importlib.util.spec_from_file_location(lesson, SOLUTIONS / f"{lesson}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_solutions_are_right(capsys):
    one, two = solution("lesson_01"), solution("lesson_02")
    exercises.factor_step(one.step)
    exercises.parameters(one.held_by_all(23, 671), 23, 671)
    exercises.fedavg(two.average)
    exercises.upload(two.bytes_up(300, 32), 300, 32)
    assert capsys.readouterr().out == "Right.\n" * 4


@pytest.mark.parametrize("answer", [..., None, 0, "text", True])
def test_an_empty_or_wrong_answer_gets_a_hint(answer, capsys):
    exercises.factor_step(lambda p, q, y, lr: answer)
    exercises.parameters(answer, 23, 671)
    exercises.fedavg(lambda deltas, counts: answer)
    exercises.upload(answer, 300, 32)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Not yet. Hint"
    ] * 4


def test_a_near_miss_gets_its_own_hint(capsys):
    exercises.fedavg(lambda deltas, counts: deltas.mean(0))
    assert "plain mean" in capsys.readouterr().out
    exercises.factor_step(lambda p, q, y, lr: p - lr * (p @ q - y) * q)  # the 2 forgotten
    assert "2 (p . q - y) q" in capsys.readouterr().out


def test_lesson_3_and_4_know_right_from_wrong(capsys):
    three, four = solution("lesson_03"), solution("lesson_04")
    times = [3, 8, 40, 200]

    def said(call, *args, **kwargs):
        call(*args, **kwargs)
        return capsys.readouterr().out

    for right, wrong in (
        ((exercises.trimmed, three.trimmed), (exercises.trimmed, lambda d, c: d[c:-c].mean(0))),
        ((exercises.staleness, four.weight), (exercises.staleness, lambda s: 1 / (1 + s))),
    ):
        assert said(*right) == "Right.\n"
        assert said(*wrong).startswith("Not yet. Hint: ")
    assert "sort each column first" in said(exercises.trimmed, lambda d, c: d[c:-c].mean(0))
    assert (
        said(exercises.ensemble_download, three.ensemble_bytes(5, 100), models=5, numbers=100)
        == "Right.\n"
    )
    assert said(exercises.ensemble_download, 400, models=5, numbers=100).startswith("Not yet")
    assert (
        said(exercises.round_seconds, four.round_time(times, 60), seconds=times, deadline=60)
        == "Right.\n"
    )
    for guess in ((200, 4), (60, 4), ...):
        assert said(exercises.round_seconds, guess, seconds=times, deadline=60).startswith(
            "Not yet"
        )
    for call in (exercises.trimmed, exercises.staleness):
        assert said(call, lambda *_: ...).startswith("Not yet")


def test_lesson_5_has_solutions_and_hints(capsys):
    five = solution("lesson_05")
    exercises.pooled(five.mean)
    exercises.kernel_prediction(five.row)
    exercises.pooled(lambda states, there: states.mean(0))
    exercises.pooled(lambda states, there: ...)
    exercises.kernel_prediction(lambda near, kernel, rows, noise: near @ rows)
    first, second, padding, other, row = capsys.readouterr().out.splitlines()
    assert (first, second) == ("Right.", "Right.")
    assert "padding" in padding
    assert "add them up" in other
    assert "twice" in row


def test_lesson_8_has_solutions_and_hints(capsys):
    eight = solution("lesson_08")
    exercises.clipped(eight.clip)
    exercises.noise_of_mean(eight.deviation)
    exercises.clipped(lambda delta, bound: delta.clamp(-bound, bound))
    exercises.clipped(lambda delta, bound: delta / delta.norm() * bound)
    exercises.clipped(lambda delta, bound: ...)
    exercises.noise_of_mean(lambda noise, clip, clients: noise * clip)
    exercises.noise_of_mean(lambda noise, clip, clients: ...)
    first, second, each, grown, none, total, other = capsys.readouterr().out.splitlines()
    assert (first, second) == ("Right.", "Right.")
    assert "each number by itself" in each
    assert "stays as it is" in grown
    assert "delta.norm()" in none
    assert "noise on the sum" in total
    assert "divided by the number" in other


def test_lesson_9_has_solutions_and_hints(capsys):
    nine = solution("lesson_09")
    exercises.unmasking(nine.opened)
    exercises.tpr_bound(nine.bound)
    exercises.unmasking(lambda masked, mask: masked.sum(0) - mask)
    exercises.unmasking(lambda masked, mask: ...)
    exercises.tpr_bound(lambda epsilon, false: math.exp(epsilon) * false)
    exercises.tpr_bound(lambda epsilon, false: ...)
    first, second, wrapped, none, over, other = capsys.readouterr().out.splitlines()
    assert (first, second) == ("Right.", "Right.")
    assert "wrap around" in wrapped
    assert "add the rows up" in none
    assert "above 1" in over
    assert "no more than" in other


def test_lesson_10_has_solutions_and_hints(capsys):
    ten = solution("lesson_10")
    exercises.levels(ten.levels)
    exercises.feedback(ten.rest)
    exercises.levels(lambda numbers, bits: numbers * (2 ** (bits - 1) - 1) / numbers.abs().max())
    exercises.levels(lambda numbers, bits: ...)
    exercises.feedback(lambda delta, left, code: delta - code(delta))
    exercises.feedback(lambda delta, left, code: ...)
    first, second, raw, none, forgotten, other = capsys.readouterr().out.splitlines()
    assert (first, second) == ("Right.", "Right.")
    assert "round them" in raw
    assert "then round" in none
    assert "left out before" in forgotten
    assert "delta + left - code" in other


def test_lesson_11_has_solutions_and_hints(capsys):
    eleven = solution("lesson_11")
    exercises.held_out(eleven.held_out)
    exercises.chance(eleven.chance, against=49, k=10)
    exercises.report(eleven.report)
    exercises.held_out(lambda times: (len(times) - 2, len(times) - 1))
    exercises.held_out(lambda times: eleven.held_out(times)[::-1])
    exercises.held_out(lambda times: times.topk(2).indices.flip(0))  # a tensor will do
    exercises.held_out(lambda times: times.topk(2).values)
    exercises.held_out(lambda times: ("the one", "the other"))
    exercises.held_out(lambda times: ...)
    exercises.chance(10 / 49, against=49, k=10)
    exercises.chance(..., against=49, k=10)
    exercises.report(lambda table: ("middle", 0.35))
    exercises.report(lambda table: ("strong", 0.36))
    exercises.report(lambda table: "strong")
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["Right."] * 3
    file, order, tensor, values, words, none, counted, dots, tested, flattering, single = said[3:]
    assert "of the file" in file
    assert "before test" in order
    assert tensor == "Right."
    assert all("counted from 0" in each for each in (values, words, none))
    assert "one of those that are ranked" in counted
    assert "as likely" in dots
    assert "nothing left to report" in tested
    assert "flatters" in flattering
    assert "give a pair" in single


def test_an_answer_may_change_what_it_is_given(capsys):
    exercises.inner_step(lambda w, x, y, rate: w.sub_(rate * 2 * x.T @ (x @ w - y) / len(y)))
    exercises.clipped(lambda delta, bound: delta.mul_(min(1, bound / delta.norm())))
    exercises.fedavg(lambda deltas, counts: deltas.mul_((counts / counts.sum())[:, None]).sum(0))
    assert capsys.readouterr().out == "Right.\n" * 3


def test_an_answer_that_raises_is_told_and_gets_a_hint(capsys):
    exercises.fedavg(lambda deltas, counts: (counts * deltas).sum(0))
    said, hint = capsys.readouterr().out.splitlines()
    assert said.startswith("It raised RuntimeError: The size of tensor a (5) must match")
    assert hint.startswith("Not yet. Hint: divide the counts")


@pytest.mark.parametrize("answer", [15433.5, 15434, "15433", [15433], None])
def test_a_count_is_one_number(answer, capsys):
    exercises.parameters(answer, 23, 671)
    assert capsys.readouterr().out.startswith("Not yet")


def test_lesson_12_has_solutions_and_hints(capsys):
    twelve = solution("lesson_12")
    exercises.parted(twelve.parted)
    exercises.drawn(twelve.drawn)
    exercises.asked_twice(twelve.answer)
    assert capsys.readouterr().out.splitlines() == ["Right."] * 3

    shared = torch.Generator().manual_seed(0)
    wrong = {
        "node after node": lambda cohort, clients: [
            [c for c in cohort if c < count] for count in clients
        ],
        "order of the cohort": lambda cohort, clients: [
            each[::-1] for each in twelve.parted(cohort, clients)
        ],
        "a list for each node": lambda cohort, clients: ...,
        "first <= c": lambda cohort, clients: [[], [], [], []],
    }
    for hint, deal in wrong.items():
        exercises.parted(deal)
        assert hint in capsys.readouterr().out
    wrong = {
        "needs a key": lambda *_: torch.randint(1000, (5,), generator=shared).tolist(),
        "share their numbers": lambda *key: twelve.drawn(sum(key), 0, 0),
        "another than round 11": lambda seed, number, client: twelve.drawn(
            seed, int(f"{number}{client}"), 0
        ),
        "five whole numbers": lambda *_: ...,
        "draw the numbers": lambda *key: [*key, 0, 0],
    }
    for hint, draw in wrong.items():
        exercises.drawn(draw)
        assert hint in capsys.readouterr().out
    for given, hint in {"a": "trained twice", "c": "one answer", ...: "by a letter"}.items():
        exercises.asked_twice(given)
        assert hint in capsys.readouterr().out
