"""What uploads give away: everything when plain, nothing under masks.

Which rows were asked for tells something, too.
"""

import os
from dataclasses import replace

import pytest
import torch

from fedlab.attacks import masked_scores, rated_items, reading_metrics, row_scores, sign_scores
from fedlab.core import ParameterError, Round, RoundContext, Settings
from fedlab.engine import LocalSettings, updates
from fedlab.models import matrix_factorisation
from fedlab.privacy import FixedPoint, Identity, LocalNoise, Member, Server, Terms, dense


@pytest.fixture(scope="module")
def upload(split, clicks):
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 8)
    params = model.init(0)
    cohort = clicks.counts.argsort(descending=True, stable=True)[300:340]
    (sent,) = updates(model, clicks, params, cohort, LocalSettings(local_lr=0.5, batch_size=0))
    shared = {name: params[name] for name in ("item", "bias")}
    return replace(sent, deltas={name: sent.deltas[name] for name in shared}), shared


def test_a_plain_upload_names_the_films_that_were_rated(upload, clicks):
    sent, shared = upload
    truth = rated_items(clicks, sent.cohort)
    found = reading_metrics(sign_scores(sent, len(shared["bias"])), truth)
    assert min(found.values()) >= 0.99


def test_the_rows_alone_name_them_among_the_negatives(upload, clicks):
    sent, shared = upload
    truth = rated_items(clicks, sent.cohort)
    found = reading_metrics(row_scores(sent, len(shared["bias"])), truth)
    assert found["recall"] == 1
    assert found["precision"] == pytest.approx(0.2, abs=0.1)  # one click, four negatives
    assert found["auc"] > 0.9


def test_under_masks_it_is_chance(upload, clicks):
    sent, shared = upload
    fixed, values = FixedPoint(1.0, 10), dense(sent, shared)["bias"][:10]
    words = {k: fixed.encode(row.double().numpy()) for k, row in enumerate(values, 1)}
    identities = {number: Identity() for number in words}
    directory = {number: identity.public for number, identity in identities.items()}
    terms = Terms(os.urandom(16), 7, len(words[1]), directory)
    members = {number: Member(number, own, terms) for number, own in identities.items()}
    adverts = {number: member.advertise_keys() for number, member in members.items()}
    letters = Server(terms).letters({k: m.share_keys(adverts) for k, m in members.items()})
    truth = rated_items(clicks, sent.cohort[:10])
    masked = [members[k].masked_input(letters[k], row) for k, row in words.items()]
    found = reading_metrics(torch.stack([masked_scores(row) for row in masked]), truth)
    rated = truth.sum(1).double()  # the keys are fresh: six deviations of the AUC of pure chance
    other = truth.shape[1] - rated
    chance = ((rated + other + 1) / (12 * rated * other)).sum().sqrt().item() / len(truth)
    assert found["auc"] == pytest.approx(0.5, abs=6 * chance)
    plain = reading_metrics(torch.stack([masked_scores(row) for row in words.values()]), truth)
    assert plain["auc"] > 0.99  # it is the mask, not the fixed point


def noisy(sent, shared, noise):
    """The updates with noise of each client's own, of so many clips of 1."""
    asked, start = {"bias": (shared["bias"], "item")}, Settings()
    context = RoundContext(None, None, start, Round(0, start, {}), {}, {}, asked=asked)
    context.notes["clipped"] = 1.0
    return LocalNoise(noise=noise, teaching_seed=0).each(sent, context)


def test_local_noise_hides_more_the_more_there_is(upload, clicks):
    sent, shared = upload
    small = replace(sent, deltas={"bias": sent.deltas["bias"]})
    truth, items = rated_items(clicks, sent.cohort), len(shared["bias"])
    noised = [noisy(small, shared, noise) for noise in (1e-4, 1e-2, 1.0)]
    found = [reading_metrics(sign_scores(part, items), truth)["auc"] for part in noised]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.95
    assert found[-1] < 0.55


def test_reading_metrics_by_hand():
    scores = torch.tensor([[1.0, 2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 3.0], [1.0, 0, 0, 0]])
    truth = torch.tensor([[True, False, True, False], [False, False, False, True], [False] * 4])
    found = reading_metrics(scores, truth)  # the third client rated nothing: left out
    assert found["precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["auc"] == pytest.approx((1 / 4 + 1) / 2)


def test_bad_asks_are_refused(upload, clicks):
    sent, _ = upload
    truth = rated_items(clicks, sent.cohort)
    for call, message in [
        (lambda: sign_scores(sent, 5, "theta"), "name='theta': the clients sent item, bias"),
        (lambda: row_scores(sent, 5, "theta"), "name='theta'"),
        (lambda: reading_metrics(torch.zeros(3, 4), truth), r"scores=\(3, 4\): give \(40, "),
        (
            lambda: reading_metrics(torch.zeros(2, 4), torch.zeros(2, 4).bool()),
            "no client rated some items and not all",
        ),
    ]:
        with pytest.raises(ParameterError, match=message):
            call()
