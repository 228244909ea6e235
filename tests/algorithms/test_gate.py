"""The gate: each refusal with its reason, honest updates untouched, and books that are right."""

from dataclasses import replace

import pytest
import torch

from fedlab.algorithms import (
    Buffered,
    Implicit,
    Meta,
    Participation,
    Scaffold,
    Synchronous,
    federate,
)
from fedlab.algorithms.gate import NOBODY, payload
from fedlab.attacks import Poison
from fedlab.communication import ErrorFeedback
from fedlab.core import ParameterError, Rows, Sent, Settings, Stage, Update
from fedlab.data import Curves, Federation
from fedlab.engine import SGD
from fedlab.models import item_features, linear, matrix_factorisation, perceptron, user_features
from fedlab.privacy import Clip, GaussianNoise, LocalNoise, SecureSum

FEW = Settings(rounds=1, cohort=12)
VICTIM = 2  # place in the cohort
OTHERS = torch.arange(12) != VICTIM


@pytest.fixture(scope="module")
def model(build, clicks):
    return build("matrix factorisation", clicks.train)


def sending(change):
    """Local training whose updates are changed before they are sent."""

    class Bent(SGD):
        """Sends what nobody asked for."""

        def train(self, context, cohort):
            for sent in super().train(context, cohort):
                yield change(sent)

    return Bent()


def column(name, value):
    """A change of one number of the victim's, in a column such as its weight."""

    def change(sent):
        values = getattr(sent, name).clone()
        values[VICTIM] = value
        return replace(sent, **{name: values})

    return change


def rows(change, name="item"):
    """A change of the victim's rows: (values, ids) -> (values, ids)."""

    def changed(sent):
        every = sent.deltas[name]
        mine = every.client == VICTIM
        values, ids = change(every.values[mine].clone(), every.ids[mine].clone())
        own = torch.full_like(ids, VICTIM)
        joined = Rows(
            torch.cat([every.values[~mine], values]),
            torch.cat([every.ids[~mine], ids]),
            torch.cat([every.client[~mine], own]),
        )
        order = joined.client.argsort(stable=True)
        deltas = sent.deltas | {
            name: Rows(*(getattr(joined, n)[order] for n in ("values", "ids", "client")))
        }
        return replace(sent, deltas=deltas)

    return changed


def put(at, value):
    """A change that sets one number of the values."""

    def change(values, ids):
        values.view(-1)[at] = value
        return values, ids

    return rows(change)


def number(at, value):
    """A change that sets one row number."""

    def change(values, ids):
        ids[at] = value
        return values, ids

    return rows(change)


def extra(sent):
    """The victim sends a name that nobody asked for."""
    one = Rows(torch.ones(1, 8), torch.tensor([0]), torch.tensor([VICTIM]))
    return replace(sent, deltas=sent.deltas | {"spy": one})


def swapped(values, ids):
    order = torch.tensor([1, 0, *range(2, len(ids))])
    return values[order], ids[order]


def repeated(values, ids):
    return torch.cat([values[:1], values]), torch.cat([ids[:1], ids])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (extra, "nobody asked for 'spy'"),
        (number(-1, 9066), "its 'item' has a row that is none of the server's 9066"),
        (number(0, -1), "its 'item' has a row that is none of the server's 9066"),
        (rows(repeated), "its row numbers of 'item' do not grow"),
        (rows(swapped), "its row numbers of 'item' do not grow"),
        (column("weights", 0.0), "its weight is not above 0 and at most 2389"),
        (column("weights", -1.0), "its weight is not above 0"),
        (column("weights", float("nan")), "its weight is not above 0"),
        (column("weights", float("inf")), "its weight is not above 0"),
        (column("weights", 2390.0), "its weight is not above 0 and at most 2389"),
        (
            column("losses", float("nan")),
            "its delta or loss is not finite; lower local_lr, or look at its data",
        ),
        (column("losses", float("inf")), "its delta or loss is not finite"),
        (put(3, float("nan")), "its delta or loss is not finite"),
        (put(0, float("inf")), "its delta or loss is not finite"),
        (put(-1, -float("inf")), "its delta or loss is not finite"),
        (put(0, 3e38), "its delta or loss is not finite"),
    ],
)
def test_who_sends_no_update_is_refused_and_the_others_count_as_if_it_were_not_there(
    model, clicks, change, reason
):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(change)))
    victim = int(clean.cohort[VICTIM])
    assert list(done.rejected) == [victim]
    assert done.rejected[victim].startswith(reason)
    fewer = next(federate(model, clicks, FEW, local=sending(lambda sent: sent.only(OTHERS))))
    assert done.cohort.tolist() == clean.cohort[OTHERS].tolist() == fewer.cohort.tolist()
    for name in ("losses", "norms"):
        assert torch.equal(getattr(done, name), getattr(clean, name)[OTHERS])
    assert all(torch.equal(done.params[n], fewer.params[n]) for n in model.rows)
    assert torch.equal(done.params["user"][victim], model.init(0)["user"][victim])


def narrow(sent):
    item = sent.deltas["item"]
    return replace(sent, deltas=sent.deltas | {"item": replace(item, values=item.values[:, :1])})


def cast(dtype, ids=torch.int64):
    def change(sent):
        item = sent.deltas["item"]
        other = Rows(item.values.to(dtype), item.ids.to(ids), item.client)
        return replace(sent, deltas=sent.deltas | {"item": other})

    return change


def without(name):
    return lambda sent: replace(sent, deltas={n: d for n, d in sent.deltas.items() if n != name})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sent: replace(sent, deltas={}), "'item' is missing"),
        (without("item"), "'item' is missing"),
        (without("bias"), "'bias' is missing"),
        (narrow, "its 'item' has rows of shape (1,), the server's have (8,)"),
        (
            cast(torch.float64),
            "its 'item' holds torch.float64 at torch.int64; send float32 at int64",
        ),
        (
            cast(torch.float16),
            "its 'item' holds torch.float16 at torch.int64; send float32 at int64",
        ),
        (cast(torch.int64), "its 'item' holds torch.int64 at torch.int64; send float32 at int64"),
        (
            cast(torch.float32, torch.int32),
            "its 'item' holds torch.float32 at torch.int32; send float32 at int64",
        ),
    ],
)
def test_what_is_wrong_with_all_of_a_chunk_skips_the_round(model, clicks, change, reason):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert sorted(done.rejected) == sorted(clean.cohort.tolist())
    assert set(done.rejected.values()) == {reason}
    assert done.skipped.startswith("no client is left")
    assert not len(done.cohort)
    assert all(torch.equal(done.params[n], value) for n, value in model.init(0).items())


def test_a_missing_name_of_one_chunk_costs_that_chunk_alone(model, clicks):
    chunks = []

    def change(sent):
        chunks.append(sent.cohort)
        return without("item")(sent) if len(chunks) == 2 else sent

    done = next(
        federate(model, clicks, Settings(rounds=1, cohort=200, memory_mb=2), local=sending(change))
    )
    assert len(chunks) > 2
    assert sorted(done.rejected) == sorted(chunks[1].tolist())
    assert len(done.cohort) == 200 - len(chunks[1])
    assert not done.skipped


def test_who_was_not_invited_is_refused(model, clicks):
    clean = next(federate(model, clicks, FEW))
    stranger = next(k for k in range(671) if k not in clean.cohort.tolist())
    done = next(federate(model, clicks, FEW, local=sending(column("cohort", stranger))))
    victim = int(clean.cohort[VICTIM])
    assert done.rejected == {stranger: "it was not invited", victim: "no update of it came"}
    assert torch.equal(done.cohort, clean.cohort[OTHERS])


def test_a_client_counts_once(model, clicks):
    clean = next(federate(model, clicks, FEW))
    other = int(clean.cohort[VICTIM - 1])
    done = next(federate(model, clicks, FEW, local=sending(column("cohort", other))))
    victim = int(clean.cohort[VICTIM])
    again = "it has already sent an update, which counts"
    assert done.rejected == {other: again, victim: "no update of it came"}
    assert torch.equal(done.cohort, clean.cohort[OTHERS])

    class Again(SGD):
        """Sends each chunk twice."""

        def train(self, context, cohort):
            for sent in super().train(context, cohort):
                yield sent
                yield sent

    twice = next(federate(model, clicks, FEW, local=Again()))
    assert set(twice.rejected.values()) == {"it has already sent an update, which counts"}
    assert sorted(twice.rejected) == sorted(clean.cohort.tolist())
    assert all(torch.equal(twice.params[n], clean.params[n]) for n in model.rows)


class Stretch(Stage):
    """Claims to keep the clip, and does not."""

    name, keeps = "stretch", ("clipped", "equal")

    def each(self, update, context):
        factor = torch.ones(len(update.cohort))
        factor[VICTIM] = 1.001
        return replace(update, deltas={n: r.scaled(factor) for n, r in update.deltas.items()})


def test_who_is_longer_than_the_clip_is_refused(model, clicks):
    clipped = FEW.replace(clip=0.01)
    honest = next(federate(model, clicks, clipped, uplink=[Clip()]))
    assert honest.rejected == {}
    torch.testing.assert_close(honest.norms, torch.full((12,), 0.01))
    done = next(federate(model, clicks, clipped, uplink=[Clip(), Stretch()]))
    assert done.rejected == {int(honest.cohort[VICTIM]): "it is longer than the clip of 0.01"}


def test_a_clip_that_does_not_hold_any_more_bounds_nobody(model, clicks):
    settings = FEW.replace(clip=0.01, factor=50.0)
    done = next(
        federate(model, clicks, settings, uplink=[Clip(), Poison(clients=torch.arange(671))])
    )
    assert done.rejected == {}
    assert float(done.norms.max()) > 0.4


@pytest.mark.parametrize("kind", ["matrix factorisation", "interaction", "linear"])
def test_honest_updates_pass(kind, build, clicks, stars):
    for data, task in ((clicks, "clicks"), (stars, "ratings")):
        done = next(federate(build(kind, data.train, task), data, FEW.replace(local_lr=0.05)))
        assert done.rejected == {}
        assert len(done.cohort) == 12


@pytest.mark.parametrize(
    "run",
    [
        {"local": Scaffold()},
        {"local": Implicit()},
        {"schedule": Buffered()},
        {"uplink": [ErrorFeedback(), Clip()]},
        {"uplink": [Clip(quantile=0.5)]},
        {"participation": Participation(sampling="poisson")},
    ],
)
def test_honest_updates_of_every_method_pass(run, clicks):
    model = matrix_factorisation(671, clicks.train.item_count, 4)
    for done in federate(model, clicks, Settings(rounds=2, cohort=12), **run):
        assert done.rejected == {}
        assert len(done.cohort) > 3
    for done in federate(
        perceptron(1, 4, task="ratings"),
        Curves(20, 5, 5),
        Settings(rounds=2, cohort=5, local_lr=0.01),
        local=Meta(),
    ):
        assert done.rejected == {}


def test_one_decision_hangs_on_no_other_client(model, clicks):
    bad = float("nan"), 1.0, -1.0, float("inf"), 5e6

    def change(sent):
        weights = sent.weights.clone()
        weights[: len(bad)] = torch.tensor(bad)
        return replace(sent, weights=weights)

    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert sorted(done.rejected) == sorted(int(clean.cohort[k]) for k in (0, 2, 3, 4))


def test_the_books_count_all_that_came_and_keep_what_came_through(model, clicks):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(column("losses", float("nan")))))
    # its bytes were sent, even if they count for nothing
    assert (done.bytes_up, done.bytes_down) == (clean.bytes_up, clean.bytes_down)
    held = []

    def spy(sent):
        held.append(sent)
        return sent

    again = next(federate(model, clicks, FEW, local=sending(spy)))
    floats = sum(d.values.numel() for sent in held for n, d in sent.deltas.items() if n != "user")
    ids = sum(len(sent.deltas["item"].ids) for sent in held)  # a bias has the rows of its vector
    assert (again.bytes_down, again.bytes_up) == (4 * floats, 4 * floats + 4 * ids)
    expected = (
        sum(
            sum(
                d.values[d.client == 0].square().sum()
                for n, d in sent.deltas.items()
                if n != "user"
            )
            for sent in held[:1]
        )
        ** 0.5
    )
    assert float(again.norms[0]) == pytest.approx(float(expected), rel=1e-5)


def test_a_name_that_nobody_asked_for_is_in_no_book(model, clicks):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(extra)))
    assert (done.bytes_up, done.bytes_down) == (clean.bytes_up, clean.bytes_down)


def test_a_code_tells_its_own_bytes(model, clicks):
    plain = next(federate(model, clicks, FEW))
    coded = next(federate(model, clicks, FEW, uplink=[ErrorFeedback(codec="4 bits")]))
    assert coded.bytes_down == plain.bytes_down
    assert coded.bytes_up < plain.bytes_up / 4


def test_nothing_sent_costs_nothing():
    nobody = torch.empty(0)
    assert payload(Update({}, nobody, nobody, nobody.long(), nobody), {}) == (0, 0)
    one = Update(
        {
            "w": Rows(torch.zeros(2, 3), torch.tensor([0, 4]), torch.tensor([0, 0])),
            "b": Rows(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0])),
        },
        torch.ones(1),
        torch.zeros(1),
        torch.tensor([0]),
        torch.ones(1),
    )
    asked = {"w": (torch.zeros(9, 3), "item"), "b": (torch.zeros(1, 2), "one")}
    assert payload(one, asked) == (4 * 8, 4 * 8 + 4 * 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_goes_on_without_who_always_fails(model, clicks, value):
    for done in federate(model, clicks, FEW.replace(rounds=3), local=sending(put(0, value))):
        assert len(done.cohort) == 11
        assert all(bool(p.isfinite().all()) for p in done.params.values())


def test_private_rows_that_are_not_finite_are_refused_as_well(model, clicks):
    def change(sent):
        user = sent.deltas["user"]
        values = user.values.clone()
        values[user.client == VICTIM] = float("nan")
        return replace(sent, deltas=sent.deltas | {"user": replace(user, values=values)})

    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert list(done.rejected.values()) == [
        "its delta or loss is not finite; lower local_lr, or look at its data"
    ]
    assert bool(done.params["user"].isfinite().all())


def test_another_users_private_row_stays_as_it_was(model, clicks):
    def change(values, ids):
        return values + 5, (ids + 1) % 671

    done = next(federate(model, clicks, FEW, local=sending(rows(change, "user"))))
    victim = int(next(federate(model, clicks, FEW)).cohort[VICTIM])
    assert done.rejected == {victim: "its 'user' has a row of another client's"}
    start = model.init(0)["user"]
    assert torch.equal(done.params["user"][victim + 1], start[victim + 1])


def test_a_platform_may_move_the_rows_of_all_its_users(model, clicks):
    owner = torch.arange(671) % 5
    platforms = Federation(clicks.train, owner)
    settings = Settings(rounds=1, cohort=5, memory_mb=1000)  # in one chunk
    done = next(federate(model, platforms, settings))
    assert not done.rejected

    def change(values, ids):  # a user of platform (k + 1) in place of its own first one
        return values, torch.cat([ids[:1] + 1, ids[1:]])

    longest = int(done.cohort[VICTIM])
    done = next(federate(model, platforms, settings, local=sending(rows(change, "user"))))
    assert done.rejected == {longest: "its 'user' has a row of another client's"}


def test_who_sends_no_rows_is_refused(model, clicks):
    def change(sent):
        kept = {}
        for name, every in sent.deltas.items():
            mine = every.client != VICTIM
            kept[name] = Rows(every.values[mine], every.ids[mine], every.client[mine])
        return replace(sent, deltas=kept)

    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert set(done.rejected.values()) == {"it sends no rows"}


def test_who_was_invited_and_sends_nothing_is_in_the_books(model, clicks):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(lambda sent: sent.only(OTHERS))))
    assert done.rejected == {int(clean.cohort[VICTIM]): "no update of it came"}


@pytest.mark.parametrize("value", [1e7, 1e15])
def test_no_update_is_longer_than_the_bound(model, clicks, value):
    done = next(federate(model, clicks, FEW, local=sending(put(0, value))))
    assert list(done.rejected.values()) == ["it is longer than longest=1e+06"]
    tight = FEW.replace(longest=0.01)
    done = next(federate(model, clicks, tight))
    assert len(done.rejected) == 12
    assert set(done.rejected.values()) == {"it is longer than longest=0.01"}


def test_an_update_is_held_against_the_lengths_of_earlier_rounds_alone(model, clicks):
    def change(sent):
        factor = torch.ones(len(sent.cohort))
        factor[VICTIM] = 1000.0
        return replace(sent, deltas={n: r.scaled(factor) for n, r in sent.deltas.items()})

    asked = Settings(rounds=6, cohort=12, outlier=100.0)
    rounds = list(federate(model, clicks, asked, local=sending(change)))
    seen = sum(len(done.cohort) for done in rounds[:2])
    assert seen < 32  # too few to tell what is usual
    assert not rounds[0].rejected
    assert not rounds[1].rejected
    for number, done in enumerate(rounds[3:], 3):
        (why,) = done.rejected.values()
        before = torch.cat([r.norms for r in rounds[:number]])[-32:]
        assert (
            why == f"it is longer than 100 times {float(before.median()):.3g}, the median of "
            "earlier ones"
        )
    free = list(federate(model, clicks, asked.replace(outlier=0.0), local=sending(change)))
    assert not any(done.rejected for done in free)
    again = federate(model, clicks, asked, local=sending(change), start=rounds[3])
    assert [done.rejected for done in again] == [done.rejected for done in rounds[4:]]


def test_what_is_usual_begins_anew_when_a_knob_is_turned(model, clicks):
    lr = iter([1e-4] * 5 + [1.0] * 5)
    rounds = list(
        federate(
            model, clicks, lambda: Settings(rounds=8, cohort=40, local_lr=next(lr), outlier=100.0)
        )
    )
    assert float(rounds[-1].norms.median()) > 1000 * float(rounds[0].norms.median())
    assert not any(done.rejected for done in rounds)


def test_all_671_honest_users_pass_at_any_step(model, clicks):
    for lr, epochs in ((0.01, 1), (1.0, 1), (5.0, 3)):
        asked = Settings(rounds=3, cohort=671, local_lr=lr, local_epochs=epochs, outlier=100.0)
        for done in federate(model, clicks, asked):
            assert not done.rejected
            assert len(done.cohort) == 671


def test_behind_a_clip_nobody_weighs_more_than_one(model, clicks):
    class Heavy(Clip):
        """Says that it weighs much, once it is clipped."""

        name = "heavy"

        def each(self, update, context):
            sent = super().each(update, context)
            sent.weights[VICTIM] = 100.0
            return sent

    noise = Settings(rounds=1, cohort=12, noise=1e-3, teaching_seed=0)
    done = next(federate(model, clicks, noise, uplink=[Heavy(), GaussianNoise()]))
    assert list(done.rejected.values()) == ["its weight is not above 0 and at most 1"]


def test_noise_of_a_clients_own_is_not_too_long(model, clicks):
    asked = Settings(rounds=2, cohort=12, noise=1e5, clip=10.0, teaching_seed=0)
    for done in federate(model, clicks, asked, uplink=[Clip(), LocalNoise()]):
        assert not done.rejected
        assert float(done.norms.min()) > 1e6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: replace(s, weights=s.weights[:-1]), "its weights are not one number for each"),
        (
            lambda s: replace(s, losses=s.losses.long()),
            "its losses hold torch.int64; send torch.float32",
        ),
        (lambda s: replace(s, steps=None), "its steps are not one number for each sender"),
        (lambda s: replace(s, deltas=s.deltas | {"item": "rows"}), "its 'item' are no rows"),
        (
            lambda s: replace(
                s,
                deltas=s.deltas
                | {"item": replace(s.deltas["item"], client=s.deltas["item"].client + 900)},
            ),
            "its 'item' has rows of no sender",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_senders_named(model, clicks, change, reason):
    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert sorted(done.rejected) == sorted(clean.cohort.tolist())
    assert all(why.startswith(reason) for why in done.rejected.values())
    assert done.bytes_up == 0


def test_an_update_without_a_sender_is_in_the_books_of_nobody(model, clicks):
    def change(sent):
        return replace(sent, cohort=sent.cohort.double())

    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert done.rejected[NOBODY] == "it is not an Update with the numbers of its senders"
    assert list(done.rejected.values()).count("no update of it came") == 12


def test_fedasync_looks_up_no_row_before_the_gate_has(model, clicks):
    def change(sent):
        item = sent.deltas["item"]
        return replace(sent, deltas=sent.deltas | {"item": replace(item, ids=item.ids + 9000)})

    schedule = Buffered(method="fedasync")
    for done in federate(
        model, clicks, Settings(rounds=3, cohort=4), local=sending(change), schedule=schedule
    ):
        assert "none of the server's 9066" in next(iter(done.rejected.values()))


@pytest.mark.parametrize("name", ["heaviest", "longest", "outlier"])
def test_behind_a_clip_a_cap_that_would_do_nothing_is_refused(model, clicks, name):
    with pytest.raises(ParameterError, match=f"{name}=0.5: gate does not read it"):
        next(federate(model, clicks, FEW.replace(**{name: 0.5}), uplink=[Clip()]))


def test_the_heaviest_client_is_a_setting_as_well(model, clicks):
    done = next(federate(model, clicks, FEW.replace(heaviest=100.0)))
    counts = clicks.counts[next(federate(model, clicks, FEW)).cohort]
    assert len(done.rejected) == int((counts > 100).sum()) > 0
    assert set(done.rejected.values()) == {"its weight is not above 0 and at most heaviest=100"}


def test_where_everything_stays_with_its_client_nobody_has_to_send(stars):
    features = item_features(stars.train.catalogue), user_features(stars.train)
    alone = linear(*features, clients=len(stars), task="ratings")
    asked = Settings(rounds=2, cohort=20, local_lr=0.01)
    for done in federate(alone, stars, asked):
        assert not done.rejected
        assert done.bytes_up == 0
    start = alone.init(0)["theta"]
    moved = (done.params["theta"] != start).flatten(1).any(1)
    assert set(done.cohort.tolist()) <= set(moved.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: replace(s, weights=s.weights.double()), "its weights hold torch.float64"),
        (lambda s: replace(s, bytes_up=s.weights.half()), "its bytes_up hold torch.float16; send"),
        (lambda s: replace(s, bytes_up=s.weights * float("nan")), "its bytes_up are no numbers"),
        (lambda s: replace(s, bytes_up=-s.cohort - 1), "its bytes_up are no numbers from 0"),
        (lambda s: replace(s, bytes_up="many"), "its bytes_up are not one number for each"),
        (lambda s: replace(s, weights=s.weights.to("meta")), "its weights are not one number"),
        (lambda s: replace(s, deltas=None), "its rows are not given by name"),
        (
            lambda s: replace(
                s,
                deltas=s.deltas
                | {
                    "item": replace(
                        s.deltas["item"],
                        values=s.deltas["item"].values.clone().requires_grad_(True),
                    )
                },
            ),
            "its 'item' are no rows",
        ),
    ],
)
def test_odd_types_cost_their_senders_alone(model, clicks, change, reason):
    class Odd(Synchronous):
        """The first chunk of one client is odd."""

        def land(self, sent, context):
            for every in super().land(sent, context):
                yield replace(every.only(~OTHERS), update=change(every.only(~OTHERS).update))
                yield every.only(OTHERS)

    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, schedule=Odd()))
    assert list(done.rejected) == [int(clean.cohort[VICTIM])]
    assert done.rejected[int(clean.cohort[VICTIM])].startswith(reason)
    assert len(done.cohort) == 11


def test_a_stranger_takes_nobodys_private_rows_away(model, clicks):
    class Strange(Synchronous):
        """A stranger is first."""

        def land(self, sent, context):
            none = torch.ones(1)
            yield Sent(Update({}, none, none, torch.tensor([9999]), none), {})
            yield from super().land(sent, context)

    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, schedule=Strange()))
    assert done.rejected == {9999: "it was not invited"}
    assert torch.equal(done.params["user"], clean.params["user"])


@pytest.mark.parametrize("place", [0, 5, 11])
def test_who_keeps_no_private_row_takes_nobody_elses(model, clicks, place):
    class Bare(Synchronous):
        """One client has learned nothing for itself."""

        def land(self, sent, context):
            for every in super().land(sent, context):
                for k in range(len(every.update.cohort)):
                    one = every.only(torch.arange(len(every.update.cohort)) == k)
                    yield replace(one, own={}) if k == place else one

    clean = next(federate(model, clicks, FEW))
    done = next(federate(model, clicks, FEW, schedule=Bare()))
    moved = clean.params["user"].clone()
    moved[clean.cohort[place]] = model.init(0)["user"][clean.cohort[place]]
    assert torch.equal(done.params["user"], moved)


def test_rows_that_lie_over_each_other_in_memory_are_looked_at_each(model, clicks):
    def change(sent):
        item = sent.deltas["item"]
        over = item.ids.as_strided((len(item.ids),), (0,))
        bias = Rows(sent.deltas["bias"].values, over, item.client)
        return replace(sent, deltas=sent.deltas | {"bias": bias})

    done = next(federate(model, clicks, FEW, local=sending(change)))
    assert set(done.rejected.values()) == {"its row numbers of 'bias' do not grow"}


def test_an_extra_private_name_is_refused(model, clicks):
    class More(Synchronous):
        """Keeps a row of a shared table to itself."""

        def land(self, sent, context):
            for every in super().land(sent, context):
                yield replace(every, own=every.own | {"item": every.update.deltas["item"]})

    done = next(federate(model, clicks, FEW, schedule=More()))
    assert set(done.rejected.values()) == {"nobody keeps 'item' to itself"}


def test_what_the_gate_lets_pass_a_secure_sum_takes(model, clicks):
    class Edge(Clip):
        """Ends a little beyond the clip, on one number."""

        def each(self, update, context):
            sent = super().each(update, context)
            values = torch.zeros_like(sent.deltas["item"].values)
            mine = (sent.deltas["item"].client == VICTIM).nonzero()[0, 0]
            values[mine, 0] = 1.000008
            return replace(
                sent,
                deltas={
                    "item": replace(sent.deltas["item"], values=values),
                    "bias": sent.deltas["bias"].scaled(torch.zeros(len(sent.cohort))),
                },
            )

    done = next(federate(model, clicks, FEW, uplink=[Edge(), SecureSum()]))
    assert not done.rejected
