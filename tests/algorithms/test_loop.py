"""The stream of Rounds: reproducible, resumable, live, and honest about its arguments."""

from dataclasses import replace

import pytest
import torch

from fedlab.aggregation import weighted_mean
from fedlab.algorithms import federate, payload
from fedlab.core import Config, Key, ParameterError, best_round, measured, stop_early, stream
from fedlab.data import Federation
from fedlab.evaluation import scorer
from fedlab.models import item_features, linear, user_features

FEW = Config(rounds=3, cohort=10)


@pytest.fixture(scope="module")
def model(build, clicks):
    return build("matrix factorisation", clicks.train)


def same(a, b):
    return (all(torch.equal(a.params[n], b.params[n]) for n in a.params) and torch.equal(a.cohort, b.cohort)
            and torch.equal(a.losses, b.losses) and torch.equal(a.norms, b.norms)
            and (a.number, a.config, a.bytes_up, a.bytes_down) == (b.number, b.config, b.bytes_up, b.bytes_down))


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction"])
def test_same_seed_gives_the_same_bits(name, build, clicks):
    model = build(name, clicks.train)
    assert all(same(a, b) for a, b in zip(federate(model, clicks, FEW), federate(model, clicks,
                                                                                 FEW), strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one(model, clicks):
    whole = list(federate(model, clicks, FEW))
    resumed = list(federate(model, clicks, FEW, start=whole[0]))
    assert [r.number for r in resumed] == [2, 3]
    assert all(same(a, b) for a, b in zip(whole[1:], resumed, strict=True))


def test_another_seed_changes_every_stream(build, clicks, monkeypatch):
    model = build("interaction", clicks.train)
    drawn = {}
    for seed in (0, 1):
        def spy(*key, seed=seed):
            drawn.setdefault(key[1:], {})[seed] = torch.rand(4, generator=stream(*key))
            return stream(*key)

        def spied(*key, seed=seed):
            drawn.setdefault(key[1:], {})[seed] = Key(*key).uniform(torch.arange(1), 4)[0]
            return Key(*key)
        monkeypatch.setattr("fedlab.algorithms.participation.stream", spy)
        for place in ("engine.chunking", "models.model"):
            monkeypatch.setattr(f"fedlab.{place}.Key", spied)
        list(federate(model, clicks, replace(FEW, rounds=2, seed=seed)))
    assert {purpose for purpose, *_ in drawn} == {"init user", "init item", "cohort", "examples", "noise"}
    assert all(not torch.equal(pair[0], pair[1]) for pair in drawn.values())
    values = [tuple(pair[0].tolist()) for pair in drawn.values()]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(("server", "turned"), [("sgd", "local_lr"), ("adam", "server_lr")])
def test_a_warm_up_shortens_the_first_steps(server, turned, model, clicks):
    config = replace(FEW, rounds=4, warm_up=4, server_optimizer=server)
    first, *_, last = federate(model, clicks, config)
    short = next(federate(model, clicks, replace(config, warm_up=0,
                                                 **{turned: getattr(config, turned) / 4})))
    assert all(torch.equal(first.params[n], short.params[n]) for n in first.params)
    assert first.config == last.config == config
    before = list(federate(model, clicks, replace(config, rounds=3)))[-1]
    at_last = next(federate(model, clicks, replace(config, warm_up=0), start=before))
    assert all(torch.equal(last.params[n], at_last.params[n]) for n in last.params)


def test_a_knob_turned_between_rounds_counts_from_the_next(model, clicks):
    now = {"config": FEW}
    seen = []
    for done in federate(model, clicks, lambda: now["config"]):
        seen.append((done.config.cohort, done.config.local_lr, len(done.cohort)))
        now["config"] = replace(FEW, cohort=5, local_lr=0.1)
    assert seen == [(10, 0.5, 10), (5, 0.1, 5), (5, 0.1, 5)]


def test_a_round_is_the_weighted_mean_of_its_clients(build, clicks):
    model, config = build("linear", clicks.train), Config(rounds=1, cohort=4, server_lr=0.5,
                                                          weighting="examples")
    both = list(federate(model, clicks, config))[0]
    start = model.init(0)["theta"]
    total = torch.zeros_like(start)
    captured = {}

    def spy(updates, server):
        update, = updates
        captured.update(deltas=update.deltas, weights=update.weights)
        return weighted_mean([update], server)
    list(federate(model, clicks, config, aggregate=spy))
    share = clicks.counts[both.cohort].float()
    assert torch.equal(captured["weights"], share)
    for c in range(4):
        total += share[c] / share.sum() * captured["deltas"]["theta"].values[c]
    torch.testing.assert_close(both.params["theta"], start + 0.5 * total)


def test_server_learning_rate_scales_the_step(model, clicks):
    one, two = (list(federate(model, clicks, replace(FEW, rounds=1, server_lr=lr)))[0]
                for lr in (1.0, 2.0))
    start = model.init(0)["item"]
    torch.testing.assert_close(two.params["item"] - start, 2 * (one.params["item"] - start))


def test_private_rows_stay_with_their_clients(model, clicks):
    done = list(federate(model, clicks, replace(FEW, rounds=1)))[0]
    moved = (done.params["user"] != model.init(0)["user"]).any(1).nonzero()[:, 0]
    assert sorted(done.cohort.tolist()) == moved.tolist()


def test_shared_user_vectors_are_averaged_and_cost_bytes(build, clicks):
    private, shared = (build("matrix factorisation", clicks.train, private_users=p) for p in (True, False))
    a, b = (list(federate(m, clicks, replace(FEW, rounds=1, weighting="equal")))[0]
            for m in (private, shared))
    # one vector of 8 floats and its row, each client
    assert b.bytes_up - a.bytes_up == 10 * (8 * 4 + 4)
    start = private.init(0)["user"]
    torch.testing.assert_close(b.params["user"] - start, (a.params["user"] - start) / 10)


def test_bytes_are_counted_from_what_is_sent(clicks, build):
    model = build("linear", clicks.train)
    done = list(federate(model, clicks, replace(FEW, rounds=1)))[0]
    width = model.init(0)["theta"].numel()
    assert (done.bytes_down, done.bytes_up) == (10 * width * 4, 10 * width * 4)
    assert payload(model, {}) == (0, 0)


def test_fedsgd_is_one_full_batch_step(build, clicks):
    model = build("linear", clicks.train)
    data_step = Config(rounds=1, cohort=6, batch_size=0, local_lr=0.1, weighting="examples")
    server_step = replace(data_step, local_lr=0.2, server_lr=0.5)
    a, b = (list(federate(model, clicks, c))[0] for c in (data_step, server_step))
    # only the product of both rates counts
    torch.testing.assert_close(a.params["theta"], b.params["theta"])


def test_one_client_with_all_users_is_central_training(split, build):
    central = Federation(split.train, torch.zeros(split.train.user_count, dtype=torch.int64))
    model = build("matrix factorisation", split.train)
    done = list(federate(model, central, Config(rounds=1, cohort=1, batch_size=4096)))[0]
    assert done.cohort.tolist() == [0]
    assert 0 < done.loss < 0.7


def test_stages_measure_stop_and_keep_the_best(model, clicks):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    rounds = measured(federate(model, clicks, replace(FEW, rounds=5)),
                      lambda done: {"ndcg": next(scores)})
    kept = list(stop_early(rounds, "ndcg", "max", patience=2))
    assert [r.metrics["ndcg"] for r in kept] == [0.1, 0.5, 0.4, 0.5]
    assert best_round(kept, "ndcg", "max").number == 2
    assert best_round(kept, "ndcg", "min").number == 1
    every = list(measured(federate(model, clicks, FEW), lambda done: {"x": 1.0}, every=2))
    assert [r.metrics for r in every] == [{}, {"x": 1.0}, {}]


def test_training_lowers_the_loss_and_beats_chance(model, clicks, split):
    from fedlab.evaluation import candidates, ranking

    config = Config(rounds=12, cohort=100, local_lr=2.0, server_lr=50.0, weighting="equal")
    rounds = list(federate(model, clicks, config))
    assert rounds[-1].loss < 0.7 * rounds[0].loss
    score = ranking(scorer(model, rounds[-1].params), candidates(split, "validation"))
    assert score["hr@10"] > 0.4                                  # chance is 0.1


def test_bad_arguments_name_the_fix(model, clicks, stars, build):
    with pytest.raises(ParameterError, match=r"cohort=672: the federation has 671 clients"):
        next(federate(model, clicks, Config(cohort=672)))
    with pytest.raises(ParameterError, match="task='clicks'"):
        next(federate(model, stars))
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ParameterError,
                           match=f"device='{device}': cannot be used here .*; choose 'cpu'"):
            next(federate(model, clicks, FEW, device=device))
    with pytest.raises(ParameterError, match="metric='auc'"):
        best_round(federate(model, clicks, FEW), "auc", "max")
    with pytest.raises(ParameterError, match="patience=0"):
        next(stop_early([], "x", "max", 0))
    with pytest.raises(ParameterError, match="every=0"):
        next(measured([], dict, 0))
    with pytest.raises(ParameterError, match="mode='lowest': write 'min'"):
        best_round(measured(federate(model, clicks, FEW), lambda done: {"x": 1.0}), "x", "lowest")


def test_with_a_private_theta_nothing_is_sent_and_each_client_trains_alone(stars):
    from oracle import train_one

    features = item_features(stars.train.catalogue), user_features(stars.train)
    model, shared = linear(*features, clients=len(stars)), linear(*features)
    config = Config(rounds=1, cohort=5, local_lr=0.05)
    done = next(federate(model, stars, config))
    assert (done.bytes_up, done.bytes_down) == (0, 0)
    examples = stars.draw(done.cohort, 1, config.negatives, Key(0, "examples", 1))
    score = scorer(model, done.params, stars.owner)
    items = torch.arange(30)
    for position, user in enumerate(done.cohort.tolist()):
        own = {n: c[examples["client"] == position] for n, c in examples.items()}
        delta, _ = train_one(shared, shared.init(0), own, config)
        torch.testing.assert_close(done.params["theta"][user], delta["theta"][0], atol=1e-5,
                                   rtol=1e-5)
        who = torch.full_like(items, user)
        alone = scorer(shared, {"theta": done.params["theta"][user][None]})(who, items)
        torch.testing.assert_close(score(who, items), alone)
    with pytest.raises(ParameterError, match="owner=None: name the client of each user"):
        scorer(model, done.params)
