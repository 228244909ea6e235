"""Automatic checks of the exercises: each prints 'Right.' or a hint, and never stops the notebook.

Every check computes the answer itself, on numbers drawn from a fixed seed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedlab.core import stream


def _say(right: bool, hint: str) -> None:
    print("Right." if right else f"Not yet. Hint: {hint}")


def _equal(answer: object, expected: Tensor) -> bool:
    """Whether an answer is a tensor or number with the expected values; `...` and None are not."""
    if not isinstance(answer, Tensor | int | float) or isinstance(answer, bool):
        return False
    given = torch.as_tensor(answer, dtype=expected.dtype)
    return given.shape == expected.shape and bool(torch.allclose(given, expected, atol=1e-5))


def _is(answer: object, expected: float) -> bool:
    """Whether an answer is this very number."""
    if not isinstance(answer, int | float | Tensor) or isinstance(answer, bool):
        return False
    return torch.as_tensor(answer).numel() == 1 and float(answer) == expected


def _asked(answer: Callable[..., Any], *given: Any) -> Any:
    """What a learner's function makes of copies of what it is given; None where it raises.

    It may change them in place.
    """
    try:
        return answer(*(each.clone() if isinstance(each, Tensor) else each for each in given))
    except Exception as error:  # noqa: BLE001 - whatever a learner's own code raises is told
        print(f"It raised {type(error).__name__}: {error}")
        return None


def factor_step(step: Callable[[Tensor, Tensor, float, float], Any]) -> None:
    """Lesson 1: `step(p, q, y, lr)` returns p after one SGD step on (p . q - y) ** 2.

    >>> factor_step(lambda p, q, y, lr: p)
    Not yet. Hint: the derivative of (p . q - y)^2 by p is 2 (p . q - y) q; step against it, times
    lr
    """
    draw = stream(0, "exercise")
    p, q, y, lr = torch.randn(4, generator=draw), torch.randn(4, generator=draw), 1.5, 0.1
    leaf = p.clone().requires_grad_()
    ((leaf @ q - y) ** 2).backward()
    _say(
        _equal(_asked(step, p, q, y, lr), (leaf - lr * torch.as_tensor(leaf.grad)).detach()),
        "the derivative of (p . q - y)^2 by p is 2 (p . q - y) q; step against it, times lr",
    )


def parameters(answer: object, features: int, clients: int) -> None:
    """Lesson 1: how many numbers all clients hold together when each has its own theta.

    >>> parameters(3, features=3, clients=10)
    Not yet. Hint: each client has one number for each feature; count the features of x first
    """
    _say(
        _is(answer, features * clients),
        "each client has one number for each feature; count the features of x first",
    )


def fedavg(average: Callable[[Tensor, Tensor], Any]) -> None:
    """Lesson 2: `average(deltas, counts)` is the mean of deltas (C, D) weighted by examples (C,).

    >>> fedavg(lambda deltas, counts: deltas.mean(0))
    Not yet. Hint: that is the plain mean; a client with more examples must count more
    """
    draw = stream(0, "exercise")
    deltas, counts = torch.randn(5, 3, generator=draw), torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    answer = _asked(average, deltas, counts)
    _say(
        _equal(answer, (counts / counts.sum()) @ deltas),
        "that is the plain mean; a client with more examples must count more"
        if _equal(answer, deltas.mean(0))
        else "divide the counts by their sum, then add up share times delta over the clients",
    )


def trimmed(rule: Callable[[Tensor, int], Any]) -> None:
    """Lesson 3: `rule(deltas, cut)` is the trimmed mean of each column of deltas (C, D).

    The `cut` largest and the `cut` smallest numbers of a column are left out.

    >>> trimmed(lambda deltas, cut: deltas[cut:-cut].mean(0))
    Not yet. Hint: sort each column first: its extremes are not those of another column
    """
    deltas = torch.randn(7, 3, generator=stream(0, "exercise"))
    answer = _asked(rule, deltas, 2)
    _say(
        _equal(answer, deltas.sort(0).values[2:-2].mean(0)),
        "sort each column first: its extremes are not those of another column"
        if _equal(answer, deltas[2:-2].mean(0))
        else "sort along the clients (axis 0), leave out `cut` rows at both ends, take the mean of "
        "the rest",
    )


def ensemble_download(answer: object, models: int, numbers: int) -> None:
    """Lesson 3: the bytes that a user downloads for an ensemble; `numbers` of each model.

    >>> ensemble_download(100, models=2, numbers=100)
    Not yet. Hint: every model predicts, so the user needs all of them, 4 bytes a number
    """
    _say(
        _is(answer, models * numbers * 4),
        "every model predicts, so the user needs all of them, 4 bytes a number",
    )


def staleness(weight: Callable[[float], Any]) -> None:
    """Lesson 4: `weight(s)` is (1 + s) ** -0.5, the weight of an update that is s steps late.

    >>> staleness(lambda s: 1 / (1 + s))
    Not yet. Hint: an update that is not late must weigh 1, one that is 3 steps late one half
    """
    steps = torch.tensor([0.0, 1.0, 3.0, 8.0])
    _say(
        all(_equal(_asked(weight, float(s)), (1 + s) ** -0.5) for s in steps),
        "an update that is not late must weigh 1, one that is 3 steps late one half",
    )


def round_seconds(answer: object, seconds: list[float], deadline: float) -> None:
    """Lesson 4: (how long a synchronous round lasts, how many clients count).

    >>> round_seconds((9.0, 3), [1.0, 3.0, 9.0], deadline=4.0)
    Not yet. Hint: the server waits for the slowest, not beyond the deadline; who is later does not
    count
    """
    _say(
        isinstance(answer, tuple | list)
        and tuple(answer) == (min(max(seconds), deadline), sum(s <= deadline for s in seconds)),
        "the server waits for the slowest, not beyond the deadline; who is later does not count",
    )


def pooled(mean: Callable[[Tensor, Tensor], Any]) -> None:
    """Lesson 5: `mean(states, there)` is the mean of states (T, D) where `there` (T,) is 1.

    >>> pooled(lambda states, there: states.mean(0))
    Not yet. Hint: the padding got in: only tokens that are there may count
    """
    states = torch.randn(6, 4, generator=stream(0, "exercise"))
    there = torch.tensor([1.0, 1, 1, 1, 0, 0])
    answer = _asked(mean, states, there)
    _say(
        _equal(answer, states[:4].mean(0)),
        "the padding got in: only tokens that are there may count"
        if _equal(answer, states.mean(0))
        else "multiply the states by `there[:, None]`, add them up, divide by how many tokens are "
        "there",
    )


def kernel_prediction(row: Callable[[Tensor, Tensor, Tensor, float], Any]) -> None:
    """Lesson 5: `row(near, kernel, rows, noise)` is the prediction of kernel ridge regression.

    It is near (W,) times (kernel (W, W) + noise I)^-1 times rows (W, D).

    >>> kernel_prediction(lambda near, kernel, rows, noise: near @ rows)
    Not yet. Hint: that counts films that are like each other twice; solve with the kernel of the
    warm films first
    """
    draw = stream(0, "exercise")
    x, rows = torch.randn(5, 3, generator=draw), torch.randn(5, 2, generator=draw)
    near = torch.rand(5, generator=draw)
    kernel = x @ x.T
    answer = _asked(row, near, kernel, rows, 0.5)
    _say(
        _equal(answer, near @ torch.linalg.solve(kernel + 0.5 * torch.eye(5), rows)),
        "that counts films that are like each other twice; solve with the kernel of the warm films "
        "first"
        if _equal(answer, near @ rows)
        else "torch.linalg.solve(kernel + noise * torch.eye(len(kernel)), rows), then near @ that",
    )


def upload(answer: object, rows: int, dim: int) -> None:
    """Lesson 2: the bytes that a client sends for `rows` items.

    Each item has a vector of `dim` floats, a bias and its row number.

    >>> upload(4, rows=10, dim=8)
    Not yet. Hint: 4 bytes a float, dim + 1 floats an item, and 4 bytes to say which item
    """
    _say(
        _is(answer, rows * (4 * (dim + 1) + 4)),
        "4 bytes a float, dim + 1 floats an item, and 4 bytes to say which item",
    )


def adapter(count: Callable[[int, int, int], Any]) -> None:
    """Lesson 6: `count(inputs, outputs, r)` is the number of weights of an adapter of rank r.

    >>> adapter(lambda inputs, outputs, r: inputs * outputs)
    Not yet. Hint: that is the layer itself
    """
    large, small = _asked(count, 30, 50, 4), _asked(count, 7, 5, 2)
    _say(
        _is(large, 320) and _is(small, 24),
        "that is the layer itself"
        if _is(large, 30 * 50)
        else "A is (r, inputs) and B is (outputs, r); add both",
    )


def mean_product(rule: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    """Lesson 6: `rule(a, b, share)` is the weighted mean of the products b a of all shops.

    >>> mean_product(lambda a, b, share: b.mean(0) @ a.mean(0))
    Not yet. Hint: multiply each shop's B by its A, then add them up, each times its share
    """
    draw = stream(0, "exercise")
    a, b = torch.randn(4, 2, 6, generator=draw), torch.randn(4, 5, 2, generator=draw)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = sum((w * y @ x for w, x, y in zip(share, a, b, strict=True)), torch.zeros(5, 6))
    answer = _asked(rule, a, b, share)
    mean_b, mean_a = torch.einsum("c,cor->or", share, b), torch.einsum("c,cri->ri", share, a)
    _say(
        _equal(answer, expected),
        "that is the product of the means; take each shop's product first"
        if _equal(answer, mean_b @ mean_a)
        else "multiply each shop's B by its A, then add them up, each times its share",
    )


def inner_step(step: Callable[[Tensor, Tensor, Tensor, float], Any]) -> None:
    """Lesson 7: `step(w, x, y, rate)` is w after one step on the mean squared error of x w.

    >>> inner_step(lambda w, x, y, rate: w)
    Not yet. Hint: w - rate * 2 * x.T @ (x @ w - y) / len(y)
    """
    draw = stream(0, "exercise")
    w, x = torch.randn(3, generator=draw), torch.randn(6, 3, generator=draw)
    y = torch.randn(6, generator=draw)
    answer, gradient = _asked(step, w, x, y, 0.1), 2 * x.T @ (x @ w - y)
    _say(
        _equal(answer, w - 0.1 * gradient / 6),
        "that is the sum over examples; take their mean"
        if _equal(answer, w - 0.1 * gradient)
        else "w - rate * 2 * x.T @ (x @ w - y) / len(y)",
    )


def inner_derivative(factor: Callable[[float, float], Any]) -> None:
    """Lesson 7: `factor(x, rate)` is d phi / d w of phi = w - rate d(w x - y)^2 / dw.

    >>> inner_derivative(lambda x, rate: 1.0)
    Not yet. Hint: that is FOMAML, which takes the step for a constant; the step depends on w, too
    """
    answers = [_asked(factor, x, 0.1) for x in (0.0, 1.0, 3.0)]
    right = all(
        _equal(a, torch.tensor(1 - 0.2 * x * x))
        for a, x in zip(answers, (0.0, 1.0, 3.0), strict=True)
    )
    first = all(_equal(a, torch.tensor(1.0)) for a in answers)
    _say(
        right,
        "that is FOMAML, which takes the step for a constant; the step depends on w, too"
        if first
        else "the step is rate * 2 x (w x - y); how does it change with w?",
    )


def clipped(clip: Callable[[Tensor, float], Any]) -> None:
    """Lesson 8: `clip(delta, bound)` is delta (D,), scaled to an L2 norm of at most `bound`.

    >>> clipped(lambda delta, bound: delta)
    Not yet. Hint: delta * min(1, bound / delta.norm())
    """
    long, short = torch.tensor([3.0, 0.0, -4.0]), torch.tensor([0.1, 0.2, 0.0])
    answers = _asked(clip, long, 2.0), _asked(clip, short, 2.0)
    each = _equal(answers[0], long.clamp(-2, 2))
    grown = _equal(answers[1], short / short.norm() * 2)
    hint = (
        "that bounds each number by itself; it is the length of the whole that counts"
        if each
        else "a short delta stays as it is"
        if grown
        else "delta * min(1, bound / delta.norm())"
    )
    _say(_equal(answers[0], long * 0.4) and _equal(answers[1], short), hint)


def noise_of_mean(deviation: Callable[[float, float, int], Any]) -> None:
    """Lesson 8: `deviation(noise, clip, clients)` is that of the noise on a mean over clients.

    >>> noise_of_mean(lambda noise, clip, clients: noise * clip)
    Not yet. Hint: that is the noise on the sum; the mean is the sum over the clients
    """
    answers = [_asked(deviation, z, c, n) for z, c, n in ((1.0, 0.5, 100), (2.0, 0.5, 50))]
    _say(
        _equal(answers[0], torch.tensor(0.005)) and _equal(answers[1], torch.tensor(0.02)),
        "that is the noise on the sum; the mean is the sum over the clients"
        if _equal(answers[0], torch.tensor(0.5)) and _equal(answers[1], torch.tensor(1.0))
        else "the sum has noise of z C, and is divided by the number of clients",
    )


def unmasking(opened: Callable[[Tensor, Tensor], Any]) -> None:
    """Lesson 9: `opened(masked, mask)` is the sum of masked (C, D) without the mask (D,), mod 2^32.

    >>> unmasking(lambda masked, mask: masked.sum(0))
    Not yet. Hint: add the rows up, take the mask off, then % 2**32
    """
    masked, mask = torch.tensor([[2**32 - 1, 5], [3, 7], [9, 2**31]]), torch.tensor([7, 2**31 + 30])
    answer, expected = _asked(opened, masked, mask), masked.sum(0) - mask
    _say(
        _equal(answer, expected % 2**32),
        "words wrap around: take all of it mod 2**32"
        if _equal(answer, expected)
        else "add the rows up, take the mask off, then % 2**32",
    )


def tpr_bound(bound: Callable[[float, float], Any]) -> None:
    """Lesson 9: `bound(epsilon, false)` is the largest true positive rate, for delta = 0.

    false: the false positive rate.

    >>> tpr_bound(lambda epsilon, false: false)
    Not yet. Hint: e**epsilon * false, and no more than 1 - e**-epsilon * (1 - false)
    """
    answers = [_asked(bound, e, f) for e, f in ((0.0, 0.05), (1.0, 0.05), (5.0, 0.05))]
    expected = [0.05, 2.718281828 * 0.05, 1 - 0.95 * 0.006737947]
    _say(
        all(_equal(a, torch.tensor(e)) for a, e in zip(answers, expected, strict=True)),
        "a share above 1? The bound holds for those not found as well: "
        "1 - tpr >= e**-epsilon * (1 - false)"
        if _equal(answers[2], torch.tensor(148.4131591 * 0.05))
        else "e**epsilon * false, and no more than 1 - e**-epsilon * (1 - false)",
    )


def levels(given: Callable[[Tensor, int], Any]) -> None:
    """Lesson 10: `given(numbers, bits)` is the level of each number.

    The largest size gets the level 2^(bits - 1) - 1.

    >>> levels(lambda numbers, bits: numbers)
    Not yet. Hint: numbers / scale, where the scale is numbers.abs().max() / (2 ** (bits - 1) - 1);
    then round
    """
    numbers = torch.tensor([-0.8, 0.3, 0.1, 0.0])
    answers = _asked(given, numbers, 4), _asked(given, numbers, 2)
    expected = torch.tensor([-7.0, 3.0, 1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0, 0.0])
    _say(
        all(_equal(a, e) for a, e in zip(answers, expected, strict=True)),
        "levels are whole numbers; round them"
        if _equal(answers[0], numbers * 7 / 0.8)
        else "numbers / scale, where the scale is numbers.abs().max() / (2 ** (bits - 1) - 1); "
        "then round",
    )


def feedback(rest: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Any]) -> None:
    """Lesson 10: `rest(delta, left, code)` is delta + left, less what the code makes of it.

    >>> feedback(lambda delta, left, code: delta - code(delta))
    Not yet. Hint: what was left out before must be sent as well: code(delta + left)
    """
    delta, left = torch.tensor([0.3, -1.2, 0.6]), torch.tensor([0.4, 0.1, 0.0])
    answer, alone = _asked(rest, delta, left, torch.round), delta - delta.round()
    forgotten = _equal(answer, alone) or _equal(answer, alone + left)
    _say(
        _equal(answer, torch.tensor([-0.3, -0.1, -0.4])),
        "what was left out before must be sent as well: code(delta + left)"
        if forgotten
        else "delta + left - code(delta + left)",
    )


def held_out(places: Callable[[Tensor], Any]) -> None:
    """Lesson 11: `places(times)` are those of validation and test among purchases (n,) of somebody.

    >>> held_out(lambda times: (len(times) - 2, len(times) - 1))
    Not yet. Hint: those are the last two of the file; which were bought last?
    """
    times = torch.tensor([30, 70, 10, 90, 20])
    answer = _asked(places, times)
    pair = (
        [place for each in answer for place in range(5) if _is(each, place)]
        if _pair(answer)
        else []
    )
    _say(
        pair == [1, 3],
        "those are the last two of the file; which were bought last?"
        if pair == [3, 4]
        else "validation comes before test"
        if pair == [3, 1]
        else "give two places, counted from 0: of the last purchase but one, and of the last",
    )


def chance(answer: object, against: int, k: int) -> None:
    """Lesson 11: HR@k of random scores, where the held-out item stands among `against` others.

    >>> chance(10 / 49, against=49, k=10)
    Not yet. Hint: the held-out product is one of those that are ranked, too
    """
    _say(
        _equal(answer, torch.tensor(k / (against + 1), dtype=torch.float64)),
        "the held-out product is one of those that are ranked, too"
        if _equal(answer, torch.tensor(k / against, dtype=torch.float64))
        else "every place is as likely: how many of all places are among the first k?",
    )


def report(choice: Callable[[dict[str, tuple[float, float]]], Any]) -> None:
    """Lesson 11: `choice(table)` is the setting to take and the number to report.

    table: setting -> what it reaches on (validation, test).

    >>> report(lambda table: max((test, name) for name, (_, test) in table.items())[::-1])
    Not yet. Hint: who chooses by the test has nothing left to report: choose by validation
    """
    table = {"weak": (0.31, 0.33), "strong": (0.36, 0.32), "middle": (0.34, 0.35)}
    answer = _asked(choice, dict(table))
    found = tuple(answer) if _pair(answer) else ()
    _say(
        found == ("strong", 0.32),
        "who chooses by the test has nothing left to report: choose by validation"
        if found and found[0] == "middle"
        else "that number helped to choose, so it flatters: report the other one"
        if found == ("strong", 0.36)
        else "give a pair: the name of a setting, and one of its numbers",
    )


def parted(deal: Callable[[list[int], list[int]], Any]) -> None:
    """Lesson 12: `deal(cohort, clients)` is, for each node, a list of its clients in the cohort.

    clients: how many each node has; they are numbered from 0, node after node.

    >>> parted(lambda cohort, clients: [cohort])
    Not yet. Hint: give a list for each node, an empty one for a node without a client in the cohort
    """
    cohort, clients = [6, 0, 4, 2, 3], [3, 1, 2, 1]
    answer, expected = _asked(deal, list(cohort), list(clients)), [[0, 2], [3], [4], [6]]
    found = _lists(answer)
    numbered = [[c for c in cohort if c < n] for n in clients]
    _say(
        found == expected,
        "clients are numbered node after node: the second node begins where the first one ends"
        if found == numbered
        else "keep the order of the cohort"
        if len(found) == 4 and [sorted(each) for each in found] == expected
        else "give a list for each node, an empty one for a node without a client in the cohort"
        if len(found) != 4
        else "a node with `count` clients from `first` has those with first <= c < first + count",
    )


def drawn(draw: Callable[[int, int, int], Any]) -> None:
    """Lesson 12: `draw(seed, number, client)` is a list of five numbers, the same in any order.

    number: of the round. Other seeds, rounds and clients draw other numbers.

    >>> drawn(lambda seed, number, client: [seed, number, client, 0, 0])
    Not yet. Hint: draw the numbers: a generator that is seeded by all three gives them
    """
    keys = [(s, n, c) for s in (0, 1) for n in (1, 2, 11) for c in (1, 2, 12, 21, 112)]
    first = _lists([_asked(draw, *key) for key in keys])
    again = _lists([_asked(draw, *key) for key in reversed(keys)])[::-1]
    whole = len(first) == len(keys) and all(
        len(each) == 5 and all(type(n) is int and 0 <= n < 1000 for n in each) for each in first
    )
    apart = whole and len({tuple(each) for each in first}) == len(keys)
    if not whole:
        hint = "give a list of five whole numbers from 0 to 999"
    elif first != again:
        hint = "asked in another order, a client draws other numbers: its draw needs a key"
    elif not apart:
        hint = (
            "two clients, rounds or seeds share their numbers: is 1 + 2 another key than 2 + 1, "
            "and round 1, client 12 another than round 11, client 2?"
        )
    else:
        hint = "draw the numbers: a generator that is seeded by all three gives them"
    spread = {n for each in first for n in each}
    _say(whole and first == again and apart and len(spread) > 2 * len(keys), hint)


def asked_twice(answer: object) -> None:
    """Lesson 12: what would go wrong if a node counted what it learned before it is told to.

    >>> asked_twice("c")
    Not yet. Hint: the coordinator takes one answer for each node; what does the node itself keep?
    """
    _say(
        answer == "b",
        "the coordinator takes one answer for each node; what does the node itself keep?"
        if answer == "c"
        else "is a vector that was trained twice still the one that the server's step is about?"
        if answer == "a"
        else 'answer by a letter: "a", "b" or "c"',
    )


def _lists(answer: object) -> list[list[Any]]:
    """An answer that is a list of lists of numbers; an empty one where it is none."""
    if not isinstance(answer, list | tuple):
        return []
    inner = [each.tolist() if isinstance(each, Tensor) else each for each in answer]
    if not all(isinstance(each, list | tuple) for each in inner):
        return []
    return [list(each) for each in inner if isinstance(each, list | tuple)]


def _pair(answer: object) -> bool:
    """Whether an answer is two things."""
    return isinstance(answer, tuple | list | Tensor) and len(answer) == 2
