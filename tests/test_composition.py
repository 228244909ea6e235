"""Any two registered parts work together or are refused, those of a test among them."""

import random
from dataclasses import replace

import composition
import pytest
import torch
from composition import Variant, checked, pairs, tried, variants

from fedlab.aggregation import joined_updates
from fedlab.core import REGISTRY, Aggregation, Stage, knob, knobs, norms, register
from fedlab.core.knobs import _described

CALLS = []


class Softer(Stage):
    """A stage of one's own: a client sends a part of what it learned."""

    sent: float = knob(0.5, 0.0, 1.0, "of the update", "is sent")

    def each(self, update, context):
        share = torch.full((len(update.cohort),), self.sent)
        return replace(update, deltas={n: r.scaled(share) for n, r in update.deltas.items()})


class Loudest(Aggregation):
    """An aggregation of one's own: the longest updates, all alike."""

    heard: int = knob(2, 1, 100, "clients", "are averaged")

    def __call__(self, updates, server):
        found = {name: torch.zeros_like(server[name]) for name in updates[0].deltas}
        every = joined_updates(updates)
        loud = norms(every.deltas, len(every.cohort)).argsort(descending=True)[: self.heard]
        weights = torch.zeros(len(every.cohort)).index_fill(0, loud, 1 / len(loud))
        for name, rows in every.deltas.items():
            rows.add_to(found[name], weights)
        return found


class Silent(Stage):
    """A stage that does nothing, whatever its knob says."""

    unheard: float = knob(0.5, 0.0, 1.0, "", "is asked by nobody")


class Deaf(Stage):
    """A stage that acts and does not ask for its knob."""

    unasked: float = knob(0.5, 0.0, 1.0, "", "is asked by nobody, either")

    def each(self, update, context):
        half = torch.full((len(update.cohort),), 0.5)
        return replace(update, deltas={n: r.scaled(half) for n, r in update.deltas.items()})


class Forgetful(Stage):
    """A stage whose memory is not in the Round."""

    def each(self, update, context):
        CALLS.append(context.number)
        share = torch.full((len(update.cohort),), 1.0 / len(CALLS))
        return replace(update, deltas={n: r.scaled(share) for n, r in update.deltas.items()})


class Broken(Stage):
    """A stage that raises something of its own."""

    def each(self, update, context):
        raise KeyError("weights")


class Endless(Stage):
    """A stage behind the gate that makes updates too large to be added up."""

    side = "server"

    def each(self, update, context):
        most = torch.full((len(update.cohort),), torch.inf)
        return replace(update, deltas={n: r.scaled(most) for n, r in update.deltas.items()})


def forget(*classes):
    """Take parts out of the registry again, so that other tests do not meet them."""
    for cls in classes:
        del REGISTRY[cls.kind][cls.name]
    _described.clear()
    composition.known.cache_clear()


@pytest.fixture(scope="module")
def every():
    """All variants, with two parts that only this file knows."""
    register(Softer)
    register(Loudest)
    yield variants()[0]
    forget(Softer, Loudest)


def test_a_sample_of_all_pairs_works_or_is_refused(every):
    chosen = random.Random(0).sample(pairs(every), 12)
    found = composition.Counts()
    for pair in chosen:
        found.add(tried(pair))
    assert found.findings == []
    assert found.works + found.refused == found.combinations > 12
    assert min(found.works, found.refused, found.knobs) > 0


def test_parts_of_ones_own_are_combined_without_another_word(every):
    own = [variant for variant in every if variant.part in ("softer", "loudest")]
    assert [variant.kind for variant in own] == ["stage", "aggregation"]
    mine = [pair for pair in pairs(every) if set(pair) & set(own)]
    assert len(mine) > len(every)
    found = composition.Counts()
    for pair in [tuple(own), *random.Random(1).sample(mine, 5)]:
        found.add(tried(pair))
    assert found.findings == []
    assert found.works > 0


def test_every_kind_that_acts_in_a_run_is_there(every):
    named = {variant.part for variant in every}
    for kind in ("local", "stage", "aggregation", "schedule", "partition", "model"):
        usual = {"sgd", "weighted mean", "synchronous", "one per user", "matrix factorisation"}
        texts = {title for title, cls in REGISTRY["model"].items() if composition.heavy(cls)}
        # its home is a model with adapters, which reads texts
        there = REGISTRY[kind].keys() - usual - texts - {"mean of products"}
        assert there <= named, kind
    turned = {name for variant in every for name, _ in variant.change}
    assert knobs(REGISTRY["participation"]["participation"]).keys() <= turned
    assert {"deadline", "server_lr", "warm_up", "server_optimizer", "task", "personal"} <= turned


@pytest.mark.parametrize(
    ("cls", "column", "said"),
    [
        (Silent, "silent", "silent changes nothing"),
        (Deaf, "ignored", "unasked of deaf changes nothing"),
        (Forgetful, "unequal", "forgetful"),
        (Broken, "raw", "KeyError: 'weights'"),
        (Endless, "unclear", "its delta is not finite"),
    ],
)
def test_what_does_not_compose_is_found(cls, column, said):
    register(cls)
    try:
        bad = Variant("stage", cls.name, stages=(cls.name,))
        found = checked((bad, Variant("server", "server step", (("server_lr", 500.0),))), {})
    finally:
        forget(cls)
    assert any(said in line for line in getattr(found, column)), vars(found)


def test_an_unclear_refusal_is_found():
    both = Variant("stage", "clip"), Variant("aggregation", "krum")
    assert composition.is_named("krum: needs what clip takes away; leave one of them out", both)
    assert not composition.is_named("something is wrong; try again", both)
    assert not composition.is_named("krum does not work beside clip", both)
