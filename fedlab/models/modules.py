"""Any `nn.Module` as a model: the module sees the batch of one client, and `vmap` adds the clients.

Each weight becomes a parameter with a single row. A table that is looked up by a column of the
examples can be named in `rows`; a client then holds only the rows that it touches. `nn.Dropout`
draws its masks from the keyed generator of the round. A module that cannot be stacked is refused
when the model is made, after a trial with two clients.

Letters: A clients, B examples.

Source: the documentation of `torch.func.functional_call` and `torch.func.vmap`.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fedlab.core import Key, ParameterError, Tree, known, require
from fedlab.models.model import Model


class KeyedDropout(nn.Module):
    """`nn.Dropout` whose mask is handed in: each training batch replaces the buffer `keep`."""

    keep: Tensor

    def __init__(self, p: float) -> None:
        """p: the share of numbers that is dropped, from 0 to below 1."""
        super().__init__()
        self.p, self.shape = p, torch.Size()
        self.register_buffer("keep", torch.tensor(1 - p))

    def forward(self, x: Tensor) -> Tensor:
        """Drop the masked numbers and scale up the rest; without a mask, return x itself."""
        self.shape = x.shape[1:]
        return x * self.keep / (1 - self.p)


def from_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    task: str = "clicks",
    rows: Mapping[str, str] | None = None,
    private: frozenset[str] = frozenset(),
    answers: int = 1,
) -> Model:
    """Make a model of `module(*inputs)`, which returns (B,) or (B, answers).

    It returns logits for clicks and values for ratings. inputs: the columns that the module takes,
    in its order, each with a few examples (B, ...) for the trial. rows: for a table of the module,
    the column that looks it up, such as {'film.weight': 'item'}; the module must use that column
    for nothing else. private: names in `rows` that never leave a client. Training starts from the
    weights of the module, which is copied; weights without `requires_grad` stay as they are. Raises
    `ParameterError` for what cannot be stacked: batch norm, changing state, random draws of its
    own.

    >>> model = from_module(nn.Linear(3, 1), {"x": torch.randn(4, 3)}, task="ratings")
    >>> sorted(model.rows)
    ['bias', 'weight']
    """
    net, by_row = copy.deepcopy(module).train(), dict(rows or {})
    _refuse(net)
    _key_dropout(net)
    drops = {
        f"{name}.keep": part for name, part in net.named_modules() if isinstance(part, KeyedDropout)
    }
    weights = {name: p.detach() for name, p in net.named_parameters()}
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    require(
        bool(trained),
        "module",
        type(module).__name__,
        "no weight has requires_grad; there is nothing to train",
    )
    _check_rows(net, trained, by_row, inputs)
    fixed = {name: p for name, p in weights.items() if name not in trained}
    fixed |= {name: b.detach() for name, b in net.named_buffers() if name not in drops}

    def one(own: Tree, shared: Tree, batch: Tree) -> Tensor:
        """Predictions (B,) of one client; an example's row number becomes its place in `own`."""
        looked_up = {column: len(own[name]) for name, column in by_row.items()}
        given = [_places(batch[n], looked_up[n]) if n in looked_up else batch[n] for n in inputs]
        masks = {name: batch[name] for name in drops if name in batch}
        found = functional_call(net, own | shared | masks, tuple(given))
        return found.reshape((len(given[0]), answers) if answers > 1 else (len(given[0]),))

    def predict(p: Tree, batch: Tree) -> Tensor:
        given = {name: batch[name] for name in (*inputs, *drops) if name in batch}
        own, shared = {n: p[n] for n in trained}, {n: p[n] for n in fixed}
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that vmap can batch on every device
            return vmap(one, (0, None, 0))(own, shared, given)

    activity = _trial(net, trained, by_row, inputs, predict, fixed, answers)

    def noise(client: Tensor, counts: Tensor, key: Key) -> Tree:
        def masks(name: str, d: KeyedDropout) -> Tensor:
            return key.of(name).keep(client, counts, d.shape.numel(), d.p).view(-1, *d.shape)

        return {name: masks(name, d) for name, d in drops.items()}

    def init(seed: int) -> Tree:
        return {
            name: weights[name].clone() if name in by_row else weights[name][None].clone()
            for name in trained
        }

    kinds = {name: by_row.get(name, "one") for name in trained}
    return Model(
        type(module).__name__,
        task,
        init,
        predict,
        kinds,
        private,
        fixed,
        noise,
        activity=activity,
        module=net,
    )


def loaded(module: nn.Module, params: Tree) -> nn.Module:
    """A copy of the module with the parameters of a Round in it, where their names agree.

    params: a `Tree`, such as `round.params`. Raises `ParameterError` when no name agrees.

    >>> net = loaded(nn.Linear(1, 1), {"weight": torch.tensor([[[2.0]]])})
    >>> net.weight.tolist()
    [[2.0]]
    """
    net, weights = copy.deepcopy(module).eval(), dict(module.named_parameters())
    state = {
        name: value if value.shape == weights[name].shape else value[0]
        for name, value in params.items()
        if name in weights
    }
    require(
        bool(state), "params", sorted(params), f"{type(module).__name__} has none of these weights"
    )
    net.load_state_dict(state, strict=False)
    return net


def _places(column: Tensor, held: int) -> Tensor:
    """The row of each example: its own place, or 0 when the client holds one row for all."""
    return (
        torch.zeros_like(column) if held == 1 else torch.arange(len(column), device=column.device)
    )


def _refuse(net: nn.Module) -> None:
    """Raise `ParameterError` for the parts of a module that cannot be stacked, and name them."""
    for name, part in net.named_modules():
        kind, where = type(part).__name__, name or "itself"
        running = isinstance(part, _NormBase) and part.track_running_stats
        require(
            not (isinstance(part, _BatchNorm) or running),
            f"module {where}",
            kind,
            "its running statistics mix clients and outlive the round; use nn.GroupNorm or "
            "nn.LayerNorm",
        )
        require(
            not isinstance(part, _DropoutNd) or type(part) is nn.Dropout,
            f"module {where}",
            kind,
            "its draws cannot be keyed; use nn.Dropout",
        )
        if isinstance(part, nn.Embedding):
            require(
                part.max_norm is None and not part.sparse,
                f"module {where}",
                kind,
                "max_norm and sparse change tables in place; leave both out",
            )
    lazy = [
        name
        for name, weight in net.named_parameters()
        if isinstance(weight, nn.parameter.UninitializedParameter)
    ]
    require(
        not lazy,
        "module",
        ", ".join(lazy),
        "these weights have no shape yet; run the module once on a batch",
    )


def _check_rows(
    net: nn.Module, trained: list[str], by_row: Mapping[str, str], inputs: Mapping[str, Tensor]
) -> None:
    """Raise `ParameterError` unless each of `rows` is a trained table and looked up by an input."""
    known(trained, by_row)
    for name, column in by_row.items():
        require(
            column in inputs,
            "inputs",
            column,
            f"rows names this column; inputs has {', '.join(inputs)}",
        )
        part = net.get_submodule(name.rpartition(".")[0])
        require(
            not isinstance(part, nn.Embedding) or part.padding_idx is None,
            f"rows[{name!r}]",
            column,
            "padding_idx counts whole tables; leave it out or the row here",
        )


def _key_dropout(net: nn.Module) -> None:
    for part in list(net.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Dropout:
                require(child.p < 1, f"module {name}", child.p, "choose a share below 1")
                setattr(part, name, KeyedDropout(child.p))


def _trial(
    net: nn.Module,
    trained: list[str],
    by_row: Mapping[str, str],
    inputs: Mapping[str, Tensor],
    predict: Callable[[Tree, Tree], Tensor],
    fixed: Tree,
    answers: int,
) -> int:
    """Compare the module with two stacked clients; return the floats it keeps for an example."""
    expected, activity = _by_itself(net, inputs, answers)
    named = dict(net.named_parameters())

    def twice(name: str) -> Tensor:  # for two clients; of a table, the row of each example
        value = named[name][inputs[by_row[name]]] if name in by_row else named[name]
        return value.detach().expand(2, *value.shape).clone().requires_grad_()

    try:
        leaves = {name: twice(name) for name in trained}
        stacked = predict(
            leaves | fixed,
            {name: column.expand(2, *column.shape) for name, column in inputs.items()},
        )
        stacked.sum().backward()
        single = net(*(column[:1] for column in inputs.values())).detach()
    except (RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(
            f"module={type(net).__name__!r}: cannot be stacked over clients ({reason}); use "
            "operations that torch.func.vmap knows, nn.Dropout for chance, and in rows the column "
            "that a table is looked up by"
        ) from error
    require(
        torch.allclose(single.reshape(expected[:1].shape), expected[:1], rtol=1e-3, atol=1e-4),
        "module",
        type(net).__name__,
        "an example's prediction changes with the others of its batch; batches are padded, so "
        "predict each by itself",
    )
    require(
        torch.allclose(stacked, expected.expand(2, *expected.shape), rtol=1e-3, atol=1e-4),
        "rows",
        dict(by_row),
        "stacked predictions differ from the module's own; a table in rows must be looked up by "
        "its column and by nothing else",
    )
    return activity


def _by_itself(net: nn.Module, inputs: Mapping[str, Tensor], answers: int) -> tuple[Tensor, int]:
    """Run the module once: (predictions, floats that its parts put out for one example).

    Raises `ParameterError` when the module changes its own state or returns an unexpected shape.
    """
    outputs: list[int] = []
    hooks = [
        part.register_forward_hook(
            lambda _, __, y: outputs.append(y.numel() if isinstance(y, Tensor) else 0)
        )
        for part in net.modules()
    ]
    before = {name: b.clone() for name, b in net.named_buffers()}
    count = len(next(iter(inputs.values())))
    with torch.no_grad():
        expected = net(*inputs.values())
    for hook in hooks:
        hook.remove()
    shapes = ((count,), (count, 1)) if answers == 1 else ((count, answers),)
    require(
        expected.shape in shapes,
        "module",
        tuple(expected.shape),
        f"give answers={answers} for each of {count} examples: {' or '.join(map(str, shapes))}",
    )
    changed = [name for name, b in net.named_buffers() if not torch.equal(b, before[name])]
    require(
        not changed,
        "module",
        ", ".join(changed),
        "this buffer changes as it runs; clients cannot share it",
    )
    return expected.reshape(shapes[0]), sum(outputs) // count
