"""The stream of Rounds: reproducible, resumable, live, and honest about its arguments."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from oracle import train_one

from fedlab.aggregation import CoordinateMedian, Krum, WeightedMean
from fedlab.algorithms import Buffered, Scaffold, federate
from fedlab.algorithms.participation import _slowness
from fedlab.core import Aggregation, Key, ParameterError, Round, Rows, Settings, Stage, stream
from fedlab.data import Columns, Federation, equal, one_per_user
from fedlab.engine import SGD
from fedlab.evaluation import candidates, ranking, scorer
from fedlab.models import item_features, linear, matrix_factorisation, perceptron, user_features
from fedlab.privacy import Clip

FEW = Settings(rounds=3, cohort=10)
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
TABLE = Columns({"x": X, "target": (X[:, 0] > 0).float()}, torch.arange(60) % 6)
NET = perceptron(3, 4)


@pytest.fixture(scope="module")
def model(build, clicks):
    return build("matrix factorisation", clicks.train)


def same(a, b):
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("cohort", "losses", "norms")
    )
    others = all(
        getattr(a, name) == getattr(b, name)
        for name in ("number", "settings", "bytes_up", "bytes_down", "clock", "rejected", "metrics")
    )
    return tensors and others and all(torch.equal(a.params[n], b.params[n]) for n in a.params)


@pytest.mark.parametrize("name", ["matrix factorisation", "interaction"])
def test_same_seed_gives_the_same_bits(name, build, clicks):
    model = build(name, clicks.train)
    assert all(
        same(a, b)
        for a, b in zip(federate(model, clicks, FEW), federate(model, clicks, FEW), strict=True)
    )


def test_a_resumed_run_equals_an_uninterrupted_one(model, clicks):
    whole = list(federate(model, clicks, FEW))
    resumed = list(federate(model, clicks, FEW, start=whole[0]))
    assert [r.number for r in resumed] == [2, 3]
    assert all(same(a, b) for a, b in zip(whole[1:], resumed, strict=True))


def test_another_seed_changes_every_stream(build, clicks, monkeypatch):
    model = build("interaction", clicks.train)
    drawn = {}
    for seed in (0, 1):
        _slowness.cache_clear()

        def spy(*key, seed=seed):
            drawn.setdefault(key[1:], {})[seed] = torch.rand(4, generator=stream(*key))
            return stream(*key)

        def spied(*key, seed=seed):
            drawn.setdefault(key[1:], {})[seed] = Key(*key).uniform(torch.arange(1), 4)[0]
            return Key(*key)

        monkeypatch.setattr("fedlab.algorithms.participation.stream", spy)
        for place in ("algorithms.participation", "engine.cohort", "models.model"):
            monkeypatch.setattr(f"fedlab.{place}.Key", spied)
        list(federate(model, clicks, FEW.replace(rounds=2, seed=seed, drop_out=0.1)))
    _slowness.cache_clear()
    assert {purpose for purpose, *_ in drawn} == {
        "init user",
        "init item",
        "cohort",
        "speeds",
        "delay 1",
        "delay 2",
        "drop out",
        "examples",
        "noise",
    }
    assert all(not torch.equal(pair[0], pair[1]) for pair in drawn.values())
    values = [tuple(pair[0].tolist()) for pair in drawn.values()]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(("server", "turned"), [("sgd", "local_lr"), ("adam", "server_lr")])
def test_a_warm_up_shortens_the_first_steps(server, turned, model, clicks):
    settings = FEW.replace(rounds=4, warm_up=4, server_optimizer=server)
    first, *_, last = federate(model, clicks, settings)
    short = next(
        federate(model, clicks, settings.replace(warm_up=0, **{turned: settings[turned] / 4}))
    )
    assert all(torch.equal(first.params[n], short.params[n]) for n in first.params)
    assert first.settings == last.settings == settings
    before = list(federate(model, clicks, settings.replace(rounds=3)))[-1]
    at_last = next(federate(model, clicks, settings.replace(warm_up=0), start=before))
    assert all(torch.equal(last.params[n], at_last.params[n]) for n in last.params)


def test_a_knob_turned_between_rounds_counts_from_the_next(model, clicks):
    now, seen = [FEW], []
    for done in federate(model, clicks, lambda: now[-1]):
        seen.append((done.settings.cohort, done.settings.local_lr, len(done.cohort)))
        now.append(FEW.replace(cohort=5, local_lr=0.1))
    assert seen == [(10, 0.5, 10), (5, 0.1, 5), (5, 0.1, 5)]


@pytest.mark.parametrize("turned", [{"seed": 1}, {"sampling": "poisson"}, {"pace": 0.0}])
def test_a_knob_that_is_not_live_stops_the_run_when_it_is_turned(turned):
    (name, value), now = next(iter(turned.items())), [FEW.replace(cohort=3)]
    rounds = federate(NET, TABLE, lambda: now[-1])
    next(rounds)
    now.append(now[0].replace(**turned))
    with pytest.raises(
        ParameterError, match=f"{name}={value!r}: it is fixed while a run lasts; keep"
    ):
        next(rounds)


def test_a_knob_of_another_part_is_refused_when_it_is_turned_on_the_way():
    now = [FEW.replace(cohort=3)]
    rounds = federate(NET, TABLE, lambda: now[-1])
    next(rounds)
    now.append(now[0].replace(clip=2.0))
    with pytest.raises(
        ParameterError, match=r"clip=2\.0: nothing in this run reads it; clip would"
    ):
        next(rounds)


def test_a_round_tells_what_all_parts_were_set_to():
    done = next(
        federate(NET, TABLE, Settings(cohort=3, clip=2.0), local=SGD(local_lr=0.1), uplink=[Clip()])
    )
    assert done.settings == Settings(cohort=3, clip=2.0, local_lr=0.1)
    plain = next(federate(NET, TABLE, {"cohort": 3}))
    assert plain.settings == Settings(cohort=3)


def test_a_round_is_the_weighted_mean_of_its_clients(build, clicks):
    model, settings = build("linear", clicks.train), Settings(rounds=1, cohort=4, server_lr=0.5)
    both = next(federate(model, clicks, settings))
    start = model.init(0)["theta"]
    total = torch.zeros_like(start)
    captured = {}

    def spy(updates, server):
        (update,) = updates
        captured.update(deltas=update.deltas, weights=update.weights)
        return WeightedMean()([update], server)

    list(federate(model, clicks, settings, aggregate=spy))
    share = clicks.counts[both.cohort].float()
    assert torch.equal(captured["weights"], share)
    for c in range(4):
        total += share[c] / share.sum() * captured["deltas"]["theta"].values[c]
    torch.testing.assert_close(both.params["theta"], start + 0.5 * total)


def test_server_learning_rate_scales_the_step(model, clicks):
    one, two = (
        next(federate(model, clicks, FEW.replace(rounds=1, server_lr=lr))) for lr in (1.0, 2.0)
    )
    start = model.init(0)["item"]
    torch.testing.assert_close(two.params["item"] - start, 2 * (one.params["item"] - start))


def test_private_rows_stay_with_their_clients(model, clicks):
    done = next(federate(model, clicks, FEW.replace(rounds=1)))
    moved = (done.params["user"] != model.init(0)["user"]).any(1).nonzero()[:, 0]
    assert sorted(done.cohort.tolist()) == moved.tolist()


def test_shared_user_vectors_are_averaged_and_cost_bytes(build, clicks):
    private, shared = (
        build("matrix factorisation", clicks.train, private_users=p) for p in (True, False)
    )
    a, b = (
        next(federate(m, clicks, FEW.replace(rounds=1, weighting="equal")))
        for m in (private, shared)
    )
    # each client sends one more vector of 8 floats and its row number
    assert b.bytes_up - a.bytes_up == 10 * (8 * 4 + 4)
    start = private.init(0)["user"]
    torch.testing.assert_close(b.params["user"] - start, (a.params["user"] - start) / 10)


def test_bytes_are_counted_from_what_is_sent(clicks, build):
    model = build("linear", clicks.train)
    done = next(federate(model, clicks, FEW.replace(rounds=1)))
    width = model.init(0)["theta"].numel()
    assert (done.bytes_down, done.bytes_up) == (10 * width * 4, 10 * width * 4)


def test_fedsgd_is_one_full_batch_step(build, clicks):
    model = build("linear", clicks.train)
    data_step = Settings(rounds=1, cohort=6, batch_size=0, local_lr=0.1)
    server_step = data_step.replace(local_lr=0.2, server_lr=0.5)
    a, b = (next(federate(model, clicks, s)) for s in (data_step, server_step))
    # only the product of both rates counts
    torch.testing.assert_close(a.params["theta"], b.params["theta"])


def test_one_client_with_all_users_is_central_training(split, build):
    central = Federation(split.train, torch.zeros(split.train.user_count, dtype=torch.int64))
    model = build("matrix factorisation", split.train)
    done = next(federate(model, central, Settings(rounds=1, cohort=1, batch_size=4096)))
    assert done.cohort.tolist() == [0]
    assert 0 < done.loss < 0.7


def test_training_lowers_the_loss_and_beats_chance(model, clicks, split):
    settings = Settings(rounds=12, cohort=100, local_lr=2.0, server_lr=50.0, weighting="equal")
    rounds = list(federate(model, clicks, settings))
    assert rounds[-1].loss < 0.7 * rounds[0].loss
    score = ranking(scorer(model, rounds[-1].params), candidates(split, "validation"))
    assert score["hr@10"] > 0.4  # chance is 0.1


def test_bad_arguments_name_the_fix(model, clicks, stars):
    with pytest.raises(ParameterError, match=r"cohort=672: the federation has 671 clients"):
        next(federate(model, clicks, Settings(cohort=672)))
    with pytest.raises(ParameterError, match="task='clicks'"):
        next(federate(model, stars))
    for device in ("gpu", "cuda:99"):
        with pytest.raises(
            ParameterError, match=f"device='{device}': cannot be used here .*; choose 'cpu'"
        ):
            next(federate(model, clicks, FEW, device=device))
    with pytest.raises(ParameterError, match=r"rounds=0: choose a whole number from 1 to 10000"):
        next(federate(model, clicks, {"rounds": 0}))


def test_with_a_private_theta_nothing_is_sent_and_each_client_trains_alone(stars):
    features = item_features(stars.train.catalogue), user_features(stars.train)
    model, shared = linear(*features, clients=len(stars)), linear(*features)
    local = SGD(local_lr=0.05)
    done = next(federate(model, stars, Settings(cohort=5), local=local))
    assert (done.bytes_up, done.bytes_down) == (0, 0)
    examples = stars.draw(done.cohort, 1, 0, Key(0, "examples", 1))
    score = scorer(model, done.params, stars.owner)
    items = torch.arange(30)
    for position, user in enumerate(done.cohort.tolist()):
        own = {n: c[examples["client"] == position] for n, c in examples.items()}
        delta, _ = train_one(shared, shared.init(0), own, local)
        torch.testing.assert_close(
            done.params["theta"][user], delta["theta"][0], atol=1e-5, rtol=1e-5
        )
        who = torch.full_like(items, user)
        alone = scorer(shared, {"theta": done.params["theta"][user][None]})(who, items)
        torch.testing.assert_close(score(who, items), alone)
    with pytest.raises(ParameterError, match="owner=None: name the client of each user"):
        scorer(model, done.params)


def test_a_start_from_parameters_alone_begins_anew(model, clicks):
    trained = next(federate(model, clicks, FEW)).params
    first = next(federate(model, clicks, FEW, start=Round(0, FEW, trained)))
    assert first.number == 1
    assert first.cohort.tolist() == next(federate(model, clicks, FEW)).cohort.tolist()
    assert not torch.equal(first.params["item"], trained["item"])


@pytest.mark.parametrize(
    "odd",
    [
        lambda value: value.to("meta"),
        lambda value: value.bfloat16(),
        lambda value: value.double(),
        lambda value: value.long(),
        lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
        lambda value: value[:2],
        lambda value: value.tolist(),
        lambda value: None,
    ],
)
def test_parameters_to_start_from_are_such_tensors_as_the_models(model, clicks, odd):
    params = model.init(0)
    start = Round(0, FEW, {**params, "item": odd(params["item"])})
    with pytest.raises(ParameterError, match=r"start.params\['item'\]=.*the model's is torch.flo"):
        next(federate(model, clicks, FEW, start=start))


OTHER = Columns({"x": X, "target": TABLE.columns["target"]}, torch.arange(60) % 5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"settings": Settings(rounds=3, cohort=3, seed=1)},
            "start='a Round of other fixed': it has .*'seed': 0",
        ),
        ({"settings": Settings(rounds=3, cohort=3, sampling="poisson")}, "a Round of other fixed"),
        ({"data": OTHER}, "start='a Round of other data'"),
        (
            {"model": replace(NET, name="another")},
            "start='a Round of other model': it has 'perceptron', this run 'another'",
        ),
        ({"uplink": [Clip()]}, "start='a Round of other parts'.*begin anew from its parameters"),
        ({"local": Scaffold()}, "start='a Round of other parts'"),
        ({"schedule": Buffered()}, "start='a Round of other parts'"),
    ],
)
def test_a_start_of_another_run_is_refused_and_changes_nothing(other, message):
    now = Settings(rounds=3, cohort=3)
    start = next(federate(NET, TABLE, now))
    params, state = {n: v.clone() for n, v in start.params.items()}, repr(start.state)
    run = {"model": NET, "data": TABLE, "settings": now} | other
    with pytest.raises(ParameterError, match=message):
        next(federate(**run, start=start))
    assert all(torch.equal(v, start.params[n]) for n, v in params.items())
    assert repr(start.state) == state
    assert [done.number for done in federate(NET, TABLE, now, start=start)] == [2, 3]


def test_a_start_of_another_edition_or_without_a_run_is_refused():
    now = Settings(rounds=3, cohort=3)
    start = next(federate(NET, TABLE, now))
    old = replace(start, state=start.state | {"run": start.state["run"] | {"edition": 1}})
    with pytest.raises(
        ParameterError, match="start='a Round of other edition': it has 1, this run 2"
    ):
        next(federate(NET, TABLE, now, start=old))
    with pytest.raises(ParameterError, match="start='a Round of other edition': it has None"):
        next(federate(NET, TABLE, now, start=replace(start, state={})))
    params = {n: v for n, v in start.params.items() if n != "w2"}
    with pytest.raises(ParameterError, match=r"start=.*the model needs \['w2'\], too"):
        next(federate(NET, TABLE, now, start=Round(0, now, params)))


def test_live_knobs_may_differ_where_a_run_goes_on():
    start = next(federate(NET, TABLE, Settings(rounds=3, cohort=3)))
    turned = Settings(rounds=2, cohort=4, local_lr=0.1, server_lr=2.0)
    assert [len(done.cohort) for done in federate(NET, TABLE, turned, start=start)] == [4]


def test_earlier_rounds_keep_their_state(model, clicks):
    rounds = list(federate(model, clicks, FEW.replace(server_optimizer="adam")))
    moments = [done.state["server step"]["moments"]["adam item"][0] for done in rounds]
    again = list(federate(model, clicks, FEW.replace(server_optimizer="adam")))
    assert all(
        torch.equal(m, a.state["server step"]["moments"]["adam item"][0])
        for m, a in zip(moments, again, strict=True)
    )
    assert not torch.equal(moments[0], moments[1])


class Bent(Stage):
    """A stage that hands on something else than it was given."""

    name = "bent"

    def __init__(self, change, side="client"):
        self.change, self.side = change, side

    def each(self, update, context):
        return replace(update, deltas=self.change(update.deltas))


def without(deltas):
    return {n: d for n, d in deltas.items() if n != "b1"}


def short(deltas):
    return {n: replace(d, values=d.values[..., :1]) if n == "w1" else d for n, d in deltas.items()}


def fewer(deltas):
    return {n: replace(d, ids=d.ids[1:]) if n == "w1" else d for n, d in deltas.items()}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without,
            r"bent=\['b2', 'w1', 'w2'\]: a stage hands on the names that it is given: b1, b2, w1,",
        ),
        (short, r"bent=\(3, 1\): a stage keeps the shape of rows; those of 'w1' are \(3, 4\)"),
        (fewer, r"rows=\(3, 2, 3\): give as many values, ids and clients"),
    ],
)
def test_a_stage_that_changes_names_or_shapes_is_refused(side, change, message):
    with pytest.raises(ParameterError, match=message):
        next(federate(NET, TABLE, Settings(cohort=3), uplink=[Bent(change, side)]))


class Counting(Stage):
    """Says how many bytes its clients send."""

    name = "counting"

    def __init__(self, *counts):
        self.counts = counts

    def each(self, update, context):
        return replace(update, bytes_up=torch.tensor(self.counts))


def test_a_stage_counts_bytes_for_each_client():
    counted = next(federate(NET, TABLE, Settings(cohort=3), uplink=[Counting(7.0, 8.0, 9.0)]))
    assert counted.bytes_up == 24
    for wrong in ((7.0,), (7.0, 8.0, -1.0)):
        with pytest.raises(ParameterError, match=r"bytes_up has a number from 0 for each of 3"):
            next(federate(NET, TABLE, Settings(cohort=3), uplink=[Counting(*wrong)]))


class Silent(Stage):
    """Returns nothing."""

    name = "silent"

    def each(self, update, context):
        context.notes["seen"] = update


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"local": WeightedMean()}, "local=.*: give a Local"),
        ({"schedule": SGD()}, "schedule=.*: give a Schedule"),
        ({"participation": SGD()}, "participation=.*: give a Participation"),
        ({"uplink": Clip()}, "uplink=.*: give a list of stages"),
        ({"uplink": [WeightedMean()]}, "uplink=.*: its parts are stages"),
        ({"aggregate": WeightedMean}, "aggregate=.*: give an Aggregation, or a function"),
        ({"uplink": [Silent()]}, "silent=None: a stage.s `each` returns an Update"),
    ],
)
def test_a_part_in_the_place_of_another_kind_is_refused(parts, message):
    with pytest.raises(ParameterError, match=message):
        next(federate(NET, TABLE, Settings(cohort=3), **parts))


def test_a_stage_that_acts_nowhere_is_refused():
    with pytest.raises(ParameterError, match=r"Typo\.side='clients': choose one of client, server"):
        type("Typo", (Stage,), {"side": "clients"})


def filled(value):
    def rule(updates, server):
        return {name: torch.full_like(like, value) for name, like in server.items()}

    return rule


def narrow(updates, server):
    return WeightedMean()(updates, server) | {"w1": torch.zeros(1, 3, 1)}


def unknown(updates, server):
    return {"w3": torch.zeros(1)}


def partial(updates, server):
    return {n: d for n, d in WeightedMean()(updates, server).items() if n != "b1"}


def thin(updates, server):
    return {"w1": Rows(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]))}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            filled(float("nan")),
            "rule='w1': its delta is not finite although every update was; look at",
        ),
        (filled(float("inf")), "its delta is not finite although"),
        (narrow, r"narrow='w1 \(1, 3, 1\)': its delta has a name or shape that the server has not"),
        (
            unknown,
            r"unknown='w3 \(1,\)': its delta has a name or shape that the server has not; return "
            r"w1 \(1, 3, 4\), b1 \(1, 4\)",
        ),
        (
            partial,
            r"partial=\['b1'\]: its delta lacks these names; return one for each of b1, b2, w1",
        ),
    ],
)
def test_an_aggregation_that_returns_no_delta_is_refused(rule, message):
    with pytest.raises(ParameterError, match=message):
        next(federate(NET, TABLE, Settings(cohort=3), aggregate=rule))


class Thin(Aggregation):
    """Hands on rows of another width."""

    name = "thin"

    def delta(self, updates, server):
        return thin(updates, server)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ParameterError, match=r"thin='w1 \(1, 2\)': its delta has a name or shape"):
        next(federate(NET, TABLE, Settings(cohort=3), aggregate=Thin()))


class First(Aggregation):
    """Takes the first chunk alone."""

    name = "first"
    streams = True

    def __call__(self, updates, server):
        return WeightedMean()([next(iter(updates))], server)


def twice(updates, server):
    longest = max(float(rows.values.abs().max()) for u in updates for rows in u.deltas.values())
    delta = WeightedMean()(updates, server)
    return {name: d.clamp(-longest, longest) for name, d in delta.items()}


def books(done):
    return (
        done.cohort.tolist(),
        done.losses.tolist(),
        done.norms.tolist(),
        done.bytes_up,
        done.bytes_down,
        done.rejected,
        done.clock,
    )


def test_who_walks_its_updates_twice_or_stops_early_leaves_the_books_whole(model, clicks):
    settings = Settings(rounds=1, cohort=60, memory_mb=2, drop_out=0.1)
    usual = next(federate(model, clicks, settings))
    again = next(federate(model, clicks, settings, aggregate=twice))
    early = next(federate(model, clicks, settings, aggregate=First()))
    assert books(usual) == books(again) == books(early)
    assert len(usual.cohort) > 40
    assert all(torch.equal(usual.params[n], again.params[n]) for n in model.rows)
    # everybody keeps what they learned for themselves; the server followed the first chunk alone
    assert torch.equal(early.params["user"], usual.params["user"])
    assert not torch.equal(early.params["item"], usual.params["item"])


@pytest.mark.parametrize("rule", [Krum(), First()])
def test_a_weighting_that_nothing_reads_is_refused(rule):
    with pytest.raises(ParameterError, match="weighting='equal': nothing in this run reads it"):
        next(federate(NET, TABLE, Settings(cohort=6, weighting="equal"), aggregate=rule))


def test_platforms_hold_their_users(split, build):
    data = Federation(split.train, equal(split.train, 4))
    done = next(federate(build("matrix factorisation", split.train), data, Settings(cohort=2)))
    start = build("matrix factorisation", split.train).init(0)["user"]
    moved = (done.params["user"] != start).any(1)
    assert torch.equal(moved, torch.isin(data.owner, done.cohort))


def test_a_knob_that_is_said_twice_is_refused():
    with pytest.raises(
        ParameterError, match=r"local_lr=0.4: sgd was made with 0.2; say it in one place, there or"
    ):
        next(federate(NET, TABLE, Settings(local_lr=0.4, cohort=3), local=SGD(local_lr=0.2)))
    same = next(federate(NET, TABLE, Settings(local_lr=0.4, cohort=3), local=SGD(local_lr=0.4)))
    assert same.number == 1


def test_what_is_no_model_no_data_or_no_start_is_named():
    for given, message in (
        ((TABLE, NET), "model='Columns': give a Model"),
        ((NET, NET), "data='Model': give a Federation"),
    ):
        with pytest.raises(ParameterError, match=message):
            next(federate(*given))
    with pytest.raises(ParameterError, match="start='int': give a Round"):
        next(federate(NET, TABLE, start=5))


@pytest.mark.parametrize(
    "parts",
    [{}, {"uplink": [Clip()]}, {"schedule": Buffered()}, {"aggregate": CoordinateMedian()}],
    ids=lambda parts: next(iter(parts), "default"),
)
def test_a_round_that_nobody_keeps_is_gone_at_once(small, parts):
    """Without the collector of cycles: a round that waits for it holds all its tables."""
    data = Federation(small, one_per_user(small))
    model = matrix_factorisation(small.user_count, small.item_count, 4)
    rounds = federate(model, data, Settings(rounds=9, cohort=5), **parts)
    gc.collect()
    gc.disable()
    try:
        old = weakref.ref(next(rounds))
        for _ in range(3):
            next(rounds)
        assert old() is None
    finally:
        gc.enable()
