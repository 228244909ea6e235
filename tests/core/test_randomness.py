"""Philox by its published answers, draws that look uniform, and clients that know no neighbours."""

import hashlib

import numpy as np
import pytest
import torch

from fedlab.algorithms import Participation, federate, sample
from fedlab.core import Key, Settings, as_tensor, below, ramp, stream
from fedlab.core.randomness import AT_ONCE, WORD, philox
from fedlab.data import Curves, Episodes, Federation, ItemQueries, by_activity
from fedlab.evaluation import leaky
from fedlab.models.text import Sequences

# of Random123 1.14, tests/kat_vectors: philox4x32 10, counter, key, answer
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def by_hand(key, client, index):
    """A word in Python's own whole numbers."""
    digest = hashlib.sha256(f"{key.seed}/{key.purpose}/{key.number}".encode()).hexdigest()
    k0, k1, block = int(digest[:8], 16), int(digest[8:16], 16), index // 4
    c0, c1, c2, c3 = block % 2**32, block >> 32, client % 2**32, client >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return (c0, c1, c2, c3)[index % 4]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_published_answers(counter, key, answer):
    c0, c1, c2, c3 = words(counter)
    for column in (torch.tensor, np.array):
        even, odd = philox(column([[c0], [c2]]), column([[c1], [c3]]), tuple(words(key)))
        found = [even[0, 0], odd[0, 0], even[1, 0], odd[1, 0]]
        assert [int(word) & WORD for word in found] == words(answer)


def test_words_are_as_the_docstring_says():
    key = Key(3, "examples", 5)
    client = torch.tensor([0, 7, 7, 123_456, 2**33 + 1])
    index = torch.tensor([0, 1, 6, 4_000_003, 2**35 + 2])
    expected = [by_hand(key, c, i) for c, i in zip(client.tolist(), index.tolist(), strict=True)]
    assert key.words(client, index).tolist() == expected


def test_runs_are_the_same_words_across_clients_and_pieces():
    key, client = Key(0, "x"), torch.tensor([5, 2, 900, 1, 8])
    counts = torch.tensor([3, 0, 4, 4 * AT_ONCE + 9, 1])
    found = key.runs(client, counts)
    assert torch.equal(found, key.words(client.repeat_interleave(counts), ramp(counts)))
    assert torch.equal(found[:3], key.runs(torch.tensor([5]), torch.tensor([3])))
    assert key.runs(client[:0], counts[:0]).tolist() == []
    assert key.runs(client[:2], counts[:2] * 0).tolist() == []


def test_seed_purpose_and_number_each_make_other_draws():
    keys = [Key(0, "a"), Key(1, "a"), Key(0, "b"), Key(0, "a", 1), Key(0, "a").of("b")]
    draws = {tuple(key.runs(torch.tensor([0]), torch.tensor([4])).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_uniform_numbers_are_uniform_and_clients_and_indexes_are_not_related():
    u = Key(1, "uniform").uniform(torch.arange(1000), 100)
    assert u.dtype == torch.float64
    assert 0 <= float(u.min()) < float(u.max()) < 1
    counts = torch.histc(u, 50, 0, 1)
    assert float(((counts - 2000).square() / 2000).sum()) < 94  # chi^2, 49 of freedom, p 1e-4
    for other in (u.roll(1, 0), u.roll(1, 1), u.roll(4, 1)):
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < 0.013
    bits = Key(1, "bits").runs(torch.arange(1000), torch.full((1000,), 100))
    for bit in range(32):
        assert abs(float((bits >> bit & 1).double().mean()) - 0.5) < 0.0065  # 4 deviations


def test_normal_numbers_masks_and_whole_numbers():
    key, rows = Key(2, "normal"), torch.arange(3000)
    z = key.normal(rows, 33)
    assert z.shape == (3000, 33)
    assert torch.equal(z[17:19, :8], key.normal(rows[17:19], 8))
    edges = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    expected = torch.special.ndtr(edges)
    found = torch.stack([(z < edge).float().mean() for edge in edges])
    torch.testing.assert_close(found, expected, atol=0.006, rtol=0)
    assert float(torch.corrcoef(z[:, :2].T)[0, 1].abs()) < 0.08  # the two of a pair
    counts = torch.tensor([3, 4000])
    masks = key.keep(torch.tensor([4, 9]), counts, 9, 0.25)
    assert masks.shape == (4003, 9)
    assert float(masks.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert torch.equal(masks[3:], key.keep(torch.tensor([9]), counts[1:], 9, 0.25))
    assert bool(key.keep(torch.tensor([4]), counts[:1], 9, 0.0).all())
    luck = torch.tensor([0, 2**31, WORD])
    assert below(luck, 10).tolist() == [0, 5, 9]


def test_streams_differ_by_seed_purpose_and_round_and_repeat():
    keys = [(s, p, n) for s in (0, 1) for p in ("cohort", "examples") for n in (1, 2)]
    draws = [tuple(torch.rand(3, generator=stream(*k)).tolist()) for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(3, generator=stream(*k)).tolist()) for k in keys]


def parts(columns, cohort):
    """Client number -> its own columns."""
    found = {}
    for place, client in enumerate(cohort.tolist()):
        mine = columns["client"] == place
        found[client] = {
            name: as_tensor(column)[mine] for name, column in columns.items() if name != "client"
        }
    return found


@pytest.mark.parametrize(
    "kind",
    ["clicks", "ratings", "leaky", "episodes", "shops", "queries", "sequences", "curves", "lines"],
)
def test_a_client_draws_the_same_whoever_else_is_in_the_cohort(kind, clicks, stars, split):
    shops = Federation(split.train, by_activity(split.train, 30))
    data = {
        "clicks": clicks,
        "ratings": stars,
        "leaky": leaky(split, clicks.owner),
        "episodes": Episodes(clicks),
        "shops": shops,
        "queries": ItemQueries(shops, 8, 5),
        "sequences": Sequences(clicks, 6),
        "curves": Curves(30),
        "lines": Curves(30, kind="linear"),
    }[kind]
    key, cohort = Key(0, "examples", 4), torch.tensor([3, 17, 0, 29, 8])
    whole = parts(data.draw(cohort, 2, 2, key), cohort)
    for other in (cohort.flip(0), cohort[1:2], torch.tensor([8, 11, 3])):
        for client, own in parts(data.draw(other, 2, 2, key), other).items():
            if client in whole:
                assert all(torch.equal(own[name], whole[client][name]) for name in own)
    once = parts(data.draw(cohort, 1, 2, Key(0, "examples", 5)), cohort)
    assert any(
        len(once[3][n]) * 2 != len(whole[3][n])
        or not torch.equal(once[3][n], whole[3][n][: len(once[3][n])])
        for n in once[3]
    )


def test_a_first_epoch_is_the_same_however_many_follow(clicks):
    cohort, key = torch.tensor([4, 1]), Key(0, "examples")
    one, three = (clicks.draw(cohort, epochs, 4, key) for epochs in (1, 3))
    first = three["epoch"] == 0
    assert all(torch.equal(one[name], three[name][first]) for name in one)


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction", "linear"])
def test_a_run_has_the_same_bits_in_any_order_and_under_any_budget(name, build, clicks):
    model, settings = build(name, clicks.train), Settings(rounds=2, cohort=60, local_lr=0.5, seed=3)
    *_, once = federate(model, clicks, settings)

    def another_order(data, count, number, members=None, *, seed=0):
        return sample(data, count, number, members, seed=seed).flip(0)

    runs = [federate(model, clicks, settings.replace(memory_mb=mb)) for mb in (4, 30, 10_000)]
    runs.append(
        federate(model, clicks, settings, participation=Participation(sampler=another_order))
    )
    for run in runs:
        *_, other = run
        assert torch.equal(once.losses, other.losses)
        assert all(torch.equal(once.params[n], other.params[n]) for n in once.params)
