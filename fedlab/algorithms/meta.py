"""Meta-learning: learn a start that adapts to a client in a few steps.

MAML and its relatives are what clients do in `federate`.

    phi   = theta - a dL_support(theta) / dtheta        `local_epochs` times, a = `local_lr`
    delta = - dL_query(phi) / dtheta                    what it sends; the server steps as ever

| method     | what it is |
| ---        | --- |
| `maml`     | as above, through the steps: 2nd order (Finn et al.; in a federation, Per-FedAvg) |
| `fomaml`   | phi taken as theta plus a constant: first order |
| `meta-sgd` | `maml` with a rate `a` learned for each number, see `with_rates` (Li) |
| `ridge`    | the adapted weights solved from support at once, for a model that is linear in them |
| `reptile`  | delta = phi - theta on all examples; at server_lr=1 their mean |

`adapts` names what adapts: with the last layer alone it is ANIL. With learn_start='no' what adapts
is never sent, and starts from what the model starts with: FedRecon. `proximal` pulls a client to
its start while it adapts: then `reptile` is pFedMe with one local round, and adapting from FedAvg's
model is Ditto's personal model.

Letters: C clients, S support and Q query examples each, R rows held, D numbers that adapt. Sources:
Finn, Abbeel, Levine 2017; Nichol, Achiam, Schulman 2018 (first-order MAML, Reptile); Li et al. 2017
(Meta-SGD); Raghu et al. 2020 (ANIL); Bertinetto et al. 2019, section 3.2 (ridge); Fallah et al.
2020 (Per-FedAvg); Singhal et al. 2021, algorithm 1 (FedRecon); T. Dinh et al. 2020, algorithm 1
(pFedMe); Li et al. 2021, algorithm 1 (Ditto).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedlab.core import (
    Key,
    Local,
    Round,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    arranged,
    as_tensor,
    knob,
    known,
    like,
    register,
    require,
)
from fedlab.data import Episodes
from fedlab.engine import Batches, Correction, LocalSettings, RowIndex, holdings, updates
from fedlab.evaluation import own_score
from fedlab.models import Model

METHODS = ("maml", "fomaml", "meta-sgd", "ridge", "reptile")
RATE = "rate of "
GROUP = "meta-learning"


def with_rates(model: Model, rate: float = 0.1) -> Model:
    """The model with a learned rate for each number of each parameter, as `meta-sgd` needs it.

    rate: where all of them start.
    """

    def init(seed: int) -> Tree:
        params = model.init(seed)
        return params | {
            RATE + name: torch.full_like(value, rate) for name, value in params.items()
        }

    return replace(
        model,
        init=init,
        rows={**model.rows, **{RATE + n: kind for n, kind in model.rows.items()}},
        pullback=None,
    )


@dataclass(frozen=True)
class Part:
    """The support or the query of C clients.

    columns: (C, B, ...). there (C, B): 0 on padding. index: for each kind of rows, the row of each
    example (C, B), or None where a client holds a single one.
    """

    columns: Tree
    there: Tensor
    index: dict[str, Tensor | None]

    def predict(self, model: Model, leaves: Tree) -> Tensor:
        """The predictions (C, B) from parameters that were looked up."""
        return model.predict(leaves | model.constants, self.columns)

    def leaves(self, model: Model, values: Tree) -> Tree:
        """The parameters of each example, looked up in the clients' rows (R, ...)."""
        return {
            name: self.leaf(values[name], kind)
            for name, kind in model.rows.items()
            if not name.startswith(RATE)
        }

    def leaf(self, value: Tensor, kind: str) -> Tensor:
        """The rows (R, ...) of one parameter at the examples."""
        rows = self.index[kind]
        if rows is not None:
            return arranged(value, rows)
        return value.unsqueeze(1) if kind in self.columns else value

    def loss(self, model: Model, values: Tree) -> Tensor:
        """The mean loss (C,) of each client, 0 for one without examples."""
        losses = model.loss(self.predict(model, self.leaves(model, values)), self.columns["target"])
        return (losses * self.there).sum(1) / self.there.sum(1).clamp(min=1)


def parted(
    model: Model, params: Tree, examples: Tree, cohort: Tensor
) -> tuple[dict[str, RowIndex], Tree, Part, Part]:
    """Look up clients' rows: (which rows they hold, these rows, their support, their query).

    Examples come client after client, with a column `query`.
    """
    query = examples["query"] > 0
    support, asked = (_padded(examples, chosen, len(cohort)) for chosen in (~query, query))
    kinds = {kind for kind in model.rows.values() if kind in examples}
    both = {
        kind: torch.cat([as_tensor(support[0][kind]), as_tensor(asked[0][kind])], 1)
        for kind in kinds
    }
    everyone, cut = torch.arange(len(cohort), device=query.device), support[1].shape[1]
    held = holdings(model, params, Batches(both, support[1], everyone, [len(cohort)]), cohort)
    first = {kind: None if h.index is None else h.index[:, :cut] for kind, h in held.items()}
    second = {kind: None if h.index is None else h.index[:, cut:] for kind, h in held.items()}
    values = {
        name: params[name].index_select(0, held[kind].ids).requires_grad_()
        for name, kind in model.rows.items()
    }
    return held, values, Part(*support, first), Part(*asked, second)


def _padded(examples: Tree, chosen: Tensor, clients: int) -> tuple[Tree, Tensor]:
    """The chosen examples of each client, padded: (columns (C, B, ...), there (C, B)).

    Padding repeats a client's first example.
    """
    client = examples["client"]
    rows, everyone = chosen.nonzero()[:, 0], torch.bincount(client, minlength=clients)
    count = torch.bincount(client[chosen], minlength=clients)
    slot = torch.arange(max(1, int(count.max())), device=client.device)
    there = slot < count[:, None]
    own = (everyone.cumsum(0) - everyone)[:, None].expand_as(there).clone()
    own[there] = rows
    columns = {
        name: arranged(c, own)
        for name, c in examples.items()
        if name not in ("client", "epoch", "query")
    }
    return {name: as_tensor(column) for name, column in columns.items()}, there.float()


@register
class Meta(Local):
    """What clients send so that a start is learned.

    The data must have a column `query`, as `Episodes` do. adapts: the names of the parameters that
    adapt, joined by ' + '.
    """

    adaptation: str = knob(
        "maml",
        0,
        0,
        "",
        "meta-learning: how a client adapts, and what it sends",
        choices=METHODS,
        live=False,
        group=GROUP,
    )
    adapts: str = knob(
        "all",
        0,
        0,
        "",
        "meta-learning: names of the parameters that adapt, joined by ' + '",
        live=False,
        group=GROUP,
    )
    learn_start: str = knob(
        "yes",
        0,
        0,
        "",
        "meta-learning: whether the start of what adapts is learned",
        choices=("yes", "no"),
        live=False,
        group=GROUP,
    )
    strength: float = knob(
        1.0,
        1e-9,
        1e9,
        "",
        "ridge: pull to the start, in squared units of the targets",
        log=True,
        usual=(0.01, 100.0),
        group=GROUP,
    )
    local_epochs: int = like(LocalSettings, "local_epochs")
    local_lr: float = like(LocalSettings, "local_lr")
    negatives: int = like(LocalSettings, "negatives")
    proximal: float = like(LocalSettings, "proximal")
    weight_decay: float = like(LocalSettings, "weight_decay")

    def __post_init__(self) -> None:
        """Check `adapts` against the method."""
        require(
            self.adaptation != "ridge" or bool(self.only),
            "adapts",
            self.adapts,
            "name the parameters to solve for",
        )
        require(
            self.learn_start == "yes" or bool(self.only),
            "adapts",
            self.adapts,
            "name what starts anew at each client",
        )
        require(
            self.adaptation != "reptile" or not self.only,
            "adapts",
            self.adapts,
            "all of a model adapts in reptile",
        )

    @property
    def only(self) -> frozenset[str]:
        """The names of the parameters that adapt; none means all."""
        return frozenset() if self.adapts == "all" else frozenset(self.adapts.split(" + "))

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The knobs that this way to adapt does not read.

        Solving takes no steps, so it has neither a rate nor a number of them; learned rates replace
        `local_lr`; only ridge has a strength.
        """
        unread = {"ridge": ("local_lr", "local_epochs", "proximal"), "meta-sgd": ("local_lr",)}
        alone = () if self.adaptation == "ridge" else ("strength",)
        drawn = () if facts.get("negatives") else ("negatives",)
        return (*unread.get(self.adaptation, ()), *alone, *drawn)

    def source(self, data: Any) -> Any:
        """The episodes of a federation."""
        return Episodes(data)

    def learns(self, model: Model) -> Model:
        """The model, with a rate for each number where these are learned."""
        return with_rates(model) if self.adaptation == "meta-sgd" else model

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model that lacks what the method adapts or learns."""
        self.check_model(context.model)

    def work(self, context: RoundContext, cohort: Tensor) -> Tensor:
        """(C,) examples that each client goes through: its support in each step, its query once."""
        counts: Tensor = context.data.counts[cohort]
        return counts * self.local_epochs * (1 + self.negatives * (context.data.task == "clicks"))

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield what each client of the cohort sends, chunk by chunk, as `engine.updates` does."""
        reptile = self.adaptation == "reptile"
        local = LocalSettings(
            local_epochs=self.local_epochs if reptile else 1,
            batch_size=0,
            local_lr=self.local_lr,
            negatives=self.negatives,
            proximal=self.proximal,
            weight_decay=self.weight_decay,
        )
        graphs = self.local_epochs + 1 if self.adaptation in ("maml", "meta-sgd") else 2
        return updates(
            context.model,
            context.data,
            context.params,
            cohort,
            local,
            seed=context.seed,
            number=context.number,
            train=None if reptile else self._sent,
            graphs=graphs,
        )

    def check_model(self, model: Model) -> None:
        """Raise `ParameterError` for a model that lacks what the method adapts or learns."""
        known(list(model.rows), dict.fromkeys(self.only))
        require(
            not model.private,
            "private",
            set(model.private),
            "meta keeps nothing from round to round; make the model with private_users=False, and "
            "name in `adapts` what adapts (with learn_start='no' it is never sent)",
        )
        rates = any(name.startswith(RATE) for name in model.rows)
        require(
            rates == (self.adaptation == "meta-sgd"),
            "adaptation",
            self.adaptation,
            "rates are learned by 'meta-sgd' of a model from `with_rates`, and by nothing else",
        )
        wide = [name for name in self.only if model.rows[name] not in ("one", "client")]
        require(
            self.adaptation != "ridge" or not wide,
            "adapts",
            wide,
            "ridge solves for what a client has one row of",
        )

    def score(self, model: Model, data: Any, done: Round) -> Score:
        """Let each user's client adapt to all its own examples, and predict with the result."""
        everyone = torch.arange(len(data))
        support = data.draw(everyone, 1, self.negatives, Key(int(done.settings.seed), "adapt"))
        support.pop("epoch")
        learned = self.adapt(model, done.params, support)
        return own_score(model, done.params, learned, everyone, data.owner)

    def _sent(
        self,
        model: Model,
        params: Tree,
        examples: Tree,
        cohort: Tensor,
        local: LocalSettings,
        correction: Correction | None,
    ) -> tuple[dict[str, Rows], Tensor, Tensor]:
        """What each client sends, its query loss, and its number of inner steps.

        It sends the negative gradient of the query loss by the start.
        """
        require(
            "query" in examples,
            "data",
            sorted(examples),
            "examples need a column `query`; see fedlab.data.Episodes",
        )
        held, values, support, query = parted(model, params, examples, cohort)
        adapted = self._adapted(
            model, values, support, self.local_epochs, self.adaptation != "fomaml"
        )
        loss = query.loss(model, adapted)
        learned = {name: value for name, value in values.items() if self._sends(name)}
        grads = torch.autograd.grad(
            loss.sum(), list(learned.values()), allow_unused=True, materialize_grads=True
        )
        if self.weight_decay:
            grads = tuple(
                grad + self.weight_decay * value.detach()
                for grad, value in zip(grads, learned.values(), strict=True)
            )
        deltas = {
            name: _rows(held[model.rows[name]], -grad)
            for name, grad in zip(learned, grads, strict=True)
        }
        return deltas, loss.detach(), torch.full_like(loss.detach(), self.local_epochs)

    def _sends(self, name: str) -> bool:
        """Whether a parameter's start is learned."""
        return self.learn_start == "yes" or name.removeprefix(RATE) not in self.only

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """The parameters whose start is learned."""
        return {name: pair for name, pair in super().asks(context).items() if self._sends(name)}

    def _adapted(self, model: Model, values: Tree, support: Part, steps: int, second: bool) -> Tree:
        """The rows after each client adapted to its support, in `steps` steps.

        second: whether gradients of the result go through the steps, for second order.
        """
        names = [n for n in model.rows if not n.startswith(RATE) and n in (self.only or model.rows)]
        if self.adaptation == "ridge":
            return self._solved(model, values, support, names)
        now = dict(values)
        for _ in range(steps):
            grads = torch.autograd.grad(
                support.loss(model, now).sum(), [now[name] for name in names], create_graph=second
            )
            now |= {
                name: now[name]
                - now.get(RATE + name, self.local_lr)
                * (grad + self.proximal * (now[name] - values[name]))
                for name, grad in zip(names, grads, strict=True)
            }
        return now

    def _solved(self, model: Model, values: Tree, support: Part, names: list[str]) -> Tree:
        """Solve least squares on the support, with a pull to the start.

        W = w0 + (A'A + strength)^-1 A'(y - y(w0)).
        """
        sizes, leaves = [values[name][0].numel() for name in names], support.leaves(model, values)

        def at(change: Tensor) -> Tensor:  # (D,) -> predictions (C, S) from w0 + change
            moved = {
                name: values[name] + part.view(values[name].shape[1:])
                for name, part in zip(names, change.split(sizes), strict=True)
            }
            ready = {name: support.leaf(value, model.rows[name]) for name, value in moved.items()}
            return support.predict(model, leaves | ready)

        there, every = support.there, torch.eye(sum(sizes), device=support.there.device)
        y = at(torch.zeros_like(every[0]))
        # (C, S, D), as the model is linear
        a = (vmap(at)(every) - y).permute(1, 2, 0) * there[..., None]
        gram = a.transpose(1, 2) @ a + self.strength * every
        found = torch.linalg.solve(
            gram, torch.einsum("csd,cs->cd", a, support.columns["target"] - y)
        )
        return values | {
            name: values[name] + step.view_as(values[name])
            for name, step in zip(names, found.split(sizes, 1), strict=True)
        }

    def adapt(
        self, model: Model, params: Tree, support: Tree, steps: int | None = None
    ) -> dict[str, Rows]:
        """Deltas of the rows that clients hold, learned from their support alone, all at once.

        support: columns client (n,) from 0, growing, those of the model, and target. steps: another
        number than `local_epochs`; with 0, or without support, nothing changes. For predictions see
        `own_score`.
        """
        self.check_model(model)
        if not len(support["client"]):
            none = support["client"]
            return {n: Rows(params[n].index_select(0, none), none, none) for n in model.rows}
        for name, kind in model.rows.items():
            last = int(support[kind].max()) if kind in support else 0
            require(
                last < len(params[name]),
                kind,
                last,
                f"{name!r} has rows 0 to {len(params[name]) - 1}; leave out what the model does "
                "not know",
            )
        cohort = torch.arange(int(support["client"].max()) + 1, device=support["client"].device)
        examples = support | {"query": torch.zeros_like(support["client"])}
        held, values, part, _ = parted(model, params, examples, cohort)
        steps = self.local_epochs if steps is None else steps
        after = self._adapted(model, values, part, steps, second=False) if steps else values
        return {
            name: _rows(held[kind], (after[name] - values[name]).detach())
            for name, kind in model.rows.items()
        }


def _rows(held: RowIndex, values: Tensor) -> Rows:
    return Rows(values.contiguous(), held.ids, held.client)
