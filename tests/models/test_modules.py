"""Any module through the engine: equal to a loop with torch's own, or refused with a reason."""

import pytest
import torch
from oracle import train_module
from torch import nn
from torch.nn import functional

from fedlab.algorithms import federate
from fedlab.core import Key, ParameterError, Settings, as_tensor
from fedlab.data import Columns
from fedlab.engine import SGD
from fedlab.evaluation import scorer
from fedlab.models import from_module, perceptron

CLIENTS = 6
G = torch.Generator().manual_seed(0)
OWNER = torch.arange(CLIENTS).repeat_interleave(torch.tensor([40, 33, 25, 9, 7, 1]))
COUNT = len(OWNER)
COLUMNS = {
    "x": torch.randn(COUNT, 10, generator=G),
    "user": OWNER,
    "item": torch.randint(6, (COUNT,), generator=G) * 5,
    "target": (torch.rand(COUNT, generator=G) < 0.5).float(),
}
DATA = Columns(COLUMNS, OWNER)


class Attention(nn.Module):
    """A step of a Transformer over five positions."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)

    def forward(self, x):
        return self.last(self.layer(self.first(x.view(-1, 5, 2))).mean(1))


class Films(nn.Module):
    """Embeddings looked up by item and user, a scale in a buffer, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.film, self.who = nn.Embedding(30, 4), nn.Embedding(CLIENTS, 4)
        self.last = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, user, item):
        return (self.last(self.film(item)) * self.who(user)).sum(1) * self.scale


class Apply(nn.Module):
    """A linear layer after any function, to try what vmap says to it."""

    def __init__(self, function):
        super().__init__()
        self.function, self.last = function, nn.Linear(10, 1)

    def forward(self, x):
        return self.last(self.function(x))


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last = nn.Linear(10, 1)

    def forward(self, x):
        self.calls += 1
        return self.last(x)


def mlp(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 12), *between, nn.ReLU(), nn.Linear(12, 1))


MODULES = {
    "mlp": mlp,
    "dropout": lambda: mlp(nn.Dropout(0.3)),
    "layer norm": lambda: mlp(nn.LayerNorm(12)),
    "group norm": lambda: mlp(nn.GroupNorm(3, 12)),
    "two dropouts": lambda: mlp(nn.Dropout(0.1), nn.Dropout(0.5)),
    "frozen": lambda: nn.Sequential(mlp()[0].requires_grad_(False), nn.Tanh(), nn.Linear(12, 1)),
    "attention": Attention,
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 5)), nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(12, 1)
    ),
}


def check(module, inputs, local, task="clicks", **kwargs):
    model = from_module(module, {n: COLUMNS[n][:3] for n in inputs}, task=task, **kwargs)
    data = Columns(COLUMNS, OWNER, task)
    done = next(federate(model, data, Settings(rounds=1, cohort=CLIENTS), local=local))
    examples = data.draw(done.cohort, local.local_epochs, 0, Key(0, "examples", 1))
    examples |= model.noise(done.cohort, torch.bincount(examples["client"]), Key(0, "noise", 1))
    weights = data.counts[done.cohort] / data.counts[done.cohort].sum()
    total = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for c, share in enumerate(weights):
        here = examples["client"] == c
        own = {n: as_tensor(column)[here] for n, column in examples.items()}
        delta, loss = train_module(module, own, local, inputs, task)
        assert done.losses[c] == pytest.approx(loss, abs=1e-5)
        for n in total:
            total[n] += delta[n] * (1 if n in model.private else share)
    start = dict(module.named_parameters())
    for n in model.rows:
        torch.testing.assert_close(
            done.params[n].view_as(start[n]), start[n].detach() + total[n], atol=1e-5, rtol=1e-5
        )
    assert max(float(t.abs().max()) for t in total.values()) > 1e-3
    return model, done


@pytest.mark.parametrize("name", MODULES)
def test_a_module_trains_as_each_client_by_itself(name):
    check(MODULES[name](), ["x"], SGD(local_epochs=2, batch_size=8, local_lr=0.1))


def test_ratings_adamw_and_decay_equal_the_loop_too():
    local = SGD(batch_size=16, optimizer="adamw", local_lr=0.01, weight_decay=0.1)
    check(mlp(nn.Dropout(0.2)), ["x"], local, "ratings")


def test_tables_are_looked_up_by_row_and_cost_only_their_rows():
    torch.manual_seed(1)
    rows = {"film.weight": "item", "who.weight": "user"}
    local = SGD(batch_size=8, local_lr=1.0)
    model, done = check(
        Films(), ["user", "item"], local, rows=rows, private=frozenset({"who.weight"})
    )
    films = sum(len(COLUMNS["item"][c == OWNER].unique()) for c in range(CLIENTS))
    # 4 floats a film, up with its number
    assert (done.bytes_down, done.bytes_up) == (films * 16, films * 20)
    assert list(model.constants) == ["last.weight", "last.bias", "scale"]
    whole, _ = check(Films(), ["user", "item"], local)  # every table in one piece: same maths
    assert set(whole.rows.values()) == {"one"}


def test_a_module_is_scored_as_it_predicts():
    torch.manual_seed(1)
    net = Films()
    model = from_module(
        net, {n: COLUMNS[n][:3] for n in ("user", "item")}, rows={"film.weight": "item"}
    )
    users, items = torch.tensor([[0, 1], [2, 5]]), torch.tensor([[3, 29], [0, 7]])
    score = scorer(model, model.init(0))(users, items)
    torch.testing.assert_close(score, net(users.flatten(), items.flatten()).detach().view(2, 2))


def test_the_module_as_given_is_not_touched_and_nothing_is_dropped_when_scoring():
    net = mlp(nn.Dropout(0.5))
    before = {n: p.clone() for n, p in net.named_parameters()}
    model = from_module(net, {"x": COLUMNS["x"][:3]})
    list(federate(model, DATA, Settings(rounds=2, cohort=2)))
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert isinstance(net[1], nn.Dropout)
    expected = net.eval()(COLUMNS["x"])[:, 0].detach()
    torch.testing.assert_close(model.predict(model.init(0), {"x": COLUMNS["x"][None]})[0], expected)


def test_the_same_network_built_in_and_as_a_module_agree():
    net, built = mlp(), perceptron(10, 12)
    first = {
        "w1": net[0].weight.T[None],
        "b1": net[0].bias[None],
        "w2": net[2].weight,
        "b2": net[2].bias[None],
    }
    leaves = {n: p.detach().expand(2, *p.shape[1:]) for n, p in first.items()}
    x = COLUMNS["x"][:8].view(2, 4, 10)
    torch.testing.assert_close(built.predict(leaves, {"x": x}), net(x).squeeze(-1).detach())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            mlp(nn.BatchNorm1d(12)),
            "module 1='BatchNorm1d': its running statistics mix clients .* use nn.GroupNorm",
        ),
        (
            mlp(nn.AlphaDropout(0.1)),
            "module 1='AlphaDropout': its draws cannot be keyed; use nn.Dropout",
        ),
        (mlp(nn.Dropout(1.0)), r"module 1=1\.0: choose a share below 1"),
        (nn.Sequential(nn.LazyLinear(1)), "these weights have no shape yet"),
        (nn.Linear(10, 1).requires_grad_(False), "no weight has requires_grad"),
        (
            nn.Linear(10, 2),
            r"module=\(3, 2\): give answers=1 for each of 3 examples: \(3,\) or \(3, 1\)",
        ),
        (Counts(), "module='calls': this buffer changes as it runs"),
        (
            Attention(dropout=0.1),
            "cannot be stacked over clients .*random operation.* nn.Dropout for chance",
        ),
        (
            Apply(lambda x: x - x.mean(0)),
            "an example's prediction changes with the others of its batch",
        ),
        (
            Apply(lambda x: functional.dropout(x, 0.5)),
            "cannot be stacked over clients .*random operation",
        ),
        (Apply(lambda x: x * x.max().item()), r"cannot be stacked over clients .*\.item\(\)"),
        (
            Apply(lambda x: x * torch.unique(x).sum()),
            "cannot be stacked over clients .*dynamic shape",
        ),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_a_reason(module, message):
    with pytest.raises(ParameterError, match=message):
        from_module(module, {"x": COLUMNS["x"][:3]})


def test_recurrent_layers_have_no_batching_rule_and_are_refused():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.GRU(2, 6, batch_first=True), nn.Linear(6, 1)

        def forward(self, x):
            return self.last(self.inner(x.view(-1, 5, 2))[0][:, -1])

    with pytest.raises(
        ParameterError, match=r"cannot be stacked over clients .Batching rule not implemented"
    ):
        from_module(Recurrent(), {"x": COLUMNS["x"][:3]})


def test_an_operation_without_a_batching_rule_runs_client_by_client_and_torch_says_so():
    net = Apply(torch.special.log_ndtr)
    message = "have not yet implemented the batching rule for aten::special_log_ndtr"
    with pytest.warns(UserWarning, match=message):
        check(net, ["x"], SGD(local_lr=0.01, batch_size=8))


def test_bad_names_and_wrong_tables_are_refused():
    inputs = {n: COLUMNS[n][:3] for n in ("user", "item")}
    message = r"film\.wieght='item': no such parameter; did you mean film\.weight\?"
    with pytest.raises(ParameterError, match=message):
        from_module(Films(), inputs, rows={"film.wieght": "item"})
    message = r"private='film\.weight': only parameters with rows by user, pair or client"
    with pytest.raises(ParameterError, match=message):
        from_module(
            Films(), inputs, rows={"film.weight": "item"}, private=frozenset({"film.weight"})
        )
    message = r"cannot be stacked .* in rows the column that a table is looked up by"
    with pytest.raises(ParameterError, match=message):
        from_module(Films(), inputs, rows={"film.weight": "user"})
    with pytest.raises(ParameterError, match="inputs='film'"):
        from_module(Films(), inputs, rows={"film.weight": "film"})
    table = nn.Embedding(30, 1, max_norm=1.0)
    message = "module itself='Embedding': max_norm and sparse change tables in place"
    with pytest.raises(ParameterError, match=message):
        from_module(table, {"item": COLUMNS["item"][:3]})
    with pytest.raises(ParameterError, match="padding_idx counts whole tables"):
        from_module(
            nn.Embedding(30, 1, padding_idx=0),
            {"item": COLUMNS["item"][:3]},
            rows={"weight": "item"},
        )


def test_a_column_used_for_more_than_its_table_is_noticed():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.film = nn.Embedding(30, 1)

        def forward(self, item):
            return self.film(item)[:, 0] + item

    message = "a table in rows must be looked up by its column and by nothing else"
    with pytest.raises(ParameterError, match=message):
        from_module(Both(), {"item": torch.tensor([7, 9, 20])}, rows={"film.weight": "item"})
