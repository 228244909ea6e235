"""To forget a person: what goes, what stays, and what is said of it."""

import math

import pytest
import torch

from fedlab.algorithms import federate
from fedlab.core import ParameterError, Settings
from fedlab.data import Federation
from fedlab.models import matrix_factorisation
from fedlab.privacy import Clip, GaussianNoise, LocalNoise, forget

POISSON = Settings(rounds=2, cohort=20, sampling="poisson", noise=2.0, delta=1e-3)


def trained(data, asked, **more):
    model = matrix_factorisation(data.train.user_count, data.train.item_count, 4)
    *_, done = federate(model, data, asked, **more)
    return model, done


def test_ratings_and_private_rows_go_and_the_others_stay(clicks):
    model, done = trained(clicks, Settings(rounds=2, cohort=20))
    name = clicks.train.catalogue.user_ids[41]
    left = forget(name, clicks, model, done)
    assert name not in left.data.train.catalogue.user_ids
    assert len(left.data.train) == len(clicks.train) - int((clicks.train.users == 41).sum())
    assert len(left.data) == 670
    old, new = done.params, left.start.params
    assert torch.equal(new["user"], torch.cat([old["user"][:41], old["user"][42:]]))
    assert torch.equal(new["item"], old["item"])
    # who comes behind keeps films and vector, under another number
    assert torch.equal(
        left.data.train.items[left.data.train.users == 41],
        clicks.train.items[clicks.train.users == 42],
    )
    assert left.words.startswith("Nothing bounds what the shared parameters keep")
    again = matrix_factorisation(670, clicks.train.item_count, 4)
    *_, more = federate(again, left.data, Settings(rounds=1, cohort=20), start=left.start)
    assert len(more.cohort) == 20


def test_a_platform_stays_without_one_of_its_users(clicks):
    owner = torch.arange(671) % 5
    platforms = Federation(clicks.train, owner)
    model, done = trained(platforms, Settings(rounds=1, cohort=5))
    left = forget(clicks.train.catalogue.user_ids[7], platforms, model, done)
    assert len(left.data) == 5
    assert torch.equal(left.data.owner, torch.cat([owner[:7], owner[8:]]))


def test_epsilon_says_what_the_shared_parameters_may_keep(clicks):
    model, done = trained(clicks, POISSON, uplink=[Clip(), GaussianNoise()])
    left = forget(clicks.train.catalogue.user_ids[0], clicks, model, done)
    spent = done.metrics["epsilon"]
    assert f"an epsilon of {spent:.3g} at delta 0.001" in left.words
    assert (
        f"at most {math.exp(spent):.3g} times as likely with this person as without" in left.words
    )
    assert left.start.state["ledger"] == done.state["ledger"]  # nothing that was spent comes back


def test_books_of_single_clients_go_with_them(clicks):
    asked = POISSON.without(["sampling"])
    model, done = trained(clicks, asked, uplink=[Clip(), LocalNoise()])
    gone = int(done.state["ledger"]["drift"].argmax())
    left = forget(clicks.train.catalogue.user_ids[gone], clicks, model, done)
    drift = done.state["ledger"]["drift"]
    assert torch.equal(
        left.start.state["ledger"]["drift"], torch.cat([drift[:gone], drift[gone + 1 :]])
    )
    assert "with this person as with any other instead" in left.words


def test_the_words_count_what_the_forgotten_person_released(clicks):
    asked = POISSON.without(["sampling"]).replace(cohort=30, rounds=3)
    model, done = trained(clicks, asked, uplink=[Clip(), LocalNoise()])
    drift = done.state["ledger"]["drift"]
    most = int(drift.argmax())
    assert float(drift[most]) > float(drift.sort().values[-20])  # drawn more often than others
    left = forget(clicks.train.catalogue.user_ids[most], clicks, model, done)
    assert f"an epsilon of {done.metrics['epsilon']:.3g} at" in left.words


def test_tables_that_are_stored_row_by_row_are_refused(clicks):
    model = matrix_factorisation(671, clicks.train.item_count, 4, sparse_users=True)
    *_, done = federate(model, clicks, Settings(rounds=1, cohort=5))
    with pytest.raises(ParameterError, match="make it with sparse_users=False"):
        forget(clicks.train.catalogue.user_ids[3], clicks, model, done)


def test_noise_of_a_teaching_seed_bounds_nothing(clicks):
    asked = POISSON.replace(teaching_seed=0)
    model, done = trained(clicks, asked, uplink=[Clip(), GaussianNoise()])
    left = forget(clicks.train.catalogue.user_ids[0], clicks, model, done)
    assert left.words.startswith("Nothing bounds")


def test_who_is_not_there_cannot_be_forgotten(clicks):
    model, done = trained(clicks, Settings(rounds=1, cohort=2))
    with pytest.raises(ParameterError, match="name='nobody': no such person in the data"):
        forget("nobody", clicks, model, done)
