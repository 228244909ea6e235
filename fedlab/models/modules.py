"""Any `nn.Module` as a model: the module sees one client's batch, `vmap` adds the clients.

Each weight is a parameter with a single row. A table that is looked up by a column of the examples
can be named in `rows`: then a client holds only the rows it touches. `nn.Dropout` draws from the
round's keyed stream. What cannot be stacked is refused when the model is made, by a trial with two
clients.

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
    """`nn.Dropout` with its mask handed in.

    The buffer `keep` is replaced for each batch of training.
    """

    keep: Tensor

    def __init__(self, p: float) -> None:
        """p: the share that is dropped."""
        super().__init__()
        self.p, self.shape = p, torch.Size()
        self.register_buffer("keep", torch.tensor(1 - p))

    def forward(self, x: Tensor) -> Tensor:
        """Drop what the mask says and scale up the rest; without a mask, x itself."""
        self.shape = x.shape[1:]
        return x * self.keep / (1 - self.p)


def from_module(module: nn.Module, inputs: Mapping[str, Tensor], *, task: str = "clicks",
                rows: Mapping[str, str] | None = None, private: frozenset[str] = frozenset(),
                answers: int = 1) -> Model:
    """A model from `module(*inputs)`, which gives (B,) or (B, answers).

    Logits for clicks, values for ratings.

    inputs: the columns that the module takes, in its order, each with a few examples (B, ...) to
    try it on. rows: for a table of the module the column that it is looked up by, say
    {'film.weight': 'item'}; the module must use the column for nothing else. private: names in
    `rows` that never leave a client. Training starts from the weights that the module has; those
    without `requires_grad` stay as they are. The module is copied. Raises `ParameterError` for what
    cannot be stacked: batch-norm, state that changes, random draws of its own.
    """
    net, by_row = copy.deepcopy(module).train(), dict(rows or {})
    _refuse(net)
    _key_dropout(net)
    drops = {f"{name}.keep": part for name, part in net.named_modules() if isinstance(part,
                                                                                      KeyedDropout)}
    weights = {name: p.detach() for name, p in net.named_parameters()}
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    require(bool(trained), "module", type(module).__name__,
            "no weight has requires_grad; there is nothing to train")
    _check_rows(net, trained, by_row, inputs)
    fixed = {name: p for name, p in weights.items() if name not in trained}
    fixed |= {name: b.detach() for name, b in net.named_buffers() if name not in drops}

    def one(own: Tree, shared: Tree, batch: Tree) -> Tensor:
        """Predictions (B,) of one client.

        In place of its row number, an example gets its place in `own`.
        """
        looked_up = {column: len(own[name]) for name, column in by_row.items()}
        given = [_places(batch[n], looked_up[n]) if n in looked_up else batch[n] for n in inputs]
        masks = {name: batch[name] for name in drops if name in batch}
        found = functional_call(net, own | shared | masks, tuple(given))
        return found.reshape((len(given[0]), answers) if answers > 1 else (len(given[0]),))

    def predict(p: Tree, batch: Tree) -> Tensor:
        given = {name: batch[name] for name in (*inputs, *drops) if name in batch}
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that vmap can batch on every device
            return vmap(one, (0, None, 0))({n: p[n] for n in trained}, {n: p[n] for n in fixed},
                                           given)

    activity = _trial(net, trained, by_row, inputs, predict, fixed, answers)

    def noise(client: Tensor, counts: Tensor, key: Key) -> Tree:
        def masks(name: str, d: KeyedDropout) -> Tensor:
            return key.of(name).keep(client, counts, d.shape.numel(), d.p).view(-1, *d.shape)
        return {name: masks(name, d) for name, d in drops.items()}

    def init(seed: int) -> Tree:
        return {name: weights[name].clone() if name in by_row else weights[name][None].clone()
                for name in trained}
    kinds = {name: by_row.get(name, "one") for name in trained}
    return Model(type(module).__name__, task, init, predict, kinds, private, fixed, noise,
                 activity=activity, module=net)


def loaded(module: nn.Module, params: Tree) -> nn.Module:
    """A copy of the module with a Round's parameters in it.

    As far as it has weights of these names.
    """
    net, weights = copy.deepcopy(module).eval(), dict(module.named_parameters())
    state = {name: value if value.shape == weights[name].shape else value[0]
             for name, value in params.items() if name in weights}
    require(bool(state), "params", sorted(params),
            f"{type(module).__name__} has none of these weights")
    net.load_state_dict(state, strict=False)
    return net


def _places(column: Tensor, held: int) -> Tensor:
    """Where each example finds its row.

    At its own place, or at 0 when the client holds one row for all.
    """
    return torch.zeros_like(column) if held == 1 else torch.arange(len(column),
                                                                   device=column.device)


def _refuse(net: nn.Module) -> None:
    """Raise `ParameterError` for parts that cannot be stacked, naming them."""
    for name, part in net.named_modules():
        kind, where = type(part).__name__, name or "itself"
        running = isinstance(part, _NormBase) and part.track_running_stats
        fix = "its running statistics mix clients and outlive the round; use nn.GroupNorm or nn.LayerNorm"
        require(not (isinstance(part, _BatchNorm) or running), f"module {where}", kind, fix)
        odd = isinstance(part, _DropoutNd) and type(part) is not nn.Dropout
        require(not odd, f"module {where}", kind, "its draws cannot be keyed; use nn.Dropout")
        if isinstance(part, nn.Embedding):
            plain = part.max_norm is None and not part.sparse
            require(plain, f"module {where}", kind,
                    "max_norm and sparse change tables in place; leave both out")
    lazy = [n for n, p in net.named_parameters() if isinstance(p,
                                                               nn.parameter.UninitializedParameter)]
    require(not lazy, "module", ", ".join(lazy),
            "these weights have no shape yet; run the module once on a batch")


def _check_rows(net: nn.Module, trained: list[str], by_row: Mapping[str, str], inputs: Mapping[str, Tensor]) -> None:
    """Raise `ParameterError` unless each of `rows` is a trained table and a column that the module takes."""
    known(trained, by_row)
    for name, column in by_row.items():
        require(column in inputs, "inputs", column,
                f"rows names this column; inputs has {', '.join(inputs)}")
        part = net.get_submodule(name.rpartition(".")[0])
        padded = isinstance(part, nn.Embedding) and part.padding_idx is not None
        require(not padded, f"rows[{name!r}]", column,
                "padding_idx counts whole tables; leave it out or the row here")


def _key_dropout(net: nn.Module) -> None:
    for part in list(net.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Dropout:
                require(child.p < 1, f"module {name}", child.p, "choose a share below 1")
                setattr(part, name, KeyedDropout(child.p))


def _trial(net: nn.Module, trained: list[str], by_row: Mapping[str, str], inputs: Mapping[str,
                                                                                          Tensor],
           predict: Callable[[Tree, Tree], Tensor], fixed: Tree, answers: int) -> int:
    """Run the module, then two stacked clients of it; the floats it keeps for an example."""
    expected, activity = _by_itself(net, inputs, answers)
    named = dict(net.named_parameters())

    def twice(name: str) -> Tensor:  # for two clients; a table's rows for each example
        value = named[name][inputs[by_row[name]]] if name in by_row else named[name]
        return value.detach().expand(2, *value.shape).clone().requires_grad_()
    try:
        leaves = {name: twice(name) for name in trained}
        stacked = predict(leaves | fixed, {name: c.expand(2, *c.shape) for name,
                                           c in inputs.items()})
        stacked.sum().backward()
        single = net(*(column[:1] for column in inputs.values())).detach()
    except (RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(
            f"module={type(net).__name__!r}: cannot be stacked over clients ({reason}); use "
            "operations that torch.func.vmap knows, nn.Dropout for chance, and in rows the column "
            "that a table is looked up by") from error
    close = torch.allclose(single.reshape(expected[:1].shape), expected[:1], rtol=1e-3, atol=1e-4)
    require(close, "module", type(net).__name__,
            "an example's prediction changes with the others of its batch; "
            "batches are padded, so predict each by itself")
    close = torch.allclose(stacked, expected.expand(2, *expected.shape), rtol=1e-3, atol=1e-4)
    require(close, "rows", dict(by_row),
            "stacked predictions differ from the module's own; a table in rows must be "
            "looked up by its column and by nothing else")
    return activity


def _by_itself(net: nn.Module, inputs: Mapping[str, Tensor], answers: int) -> tuple[Tensor, int]:
    """(predictions, floats its parts put out for an example).

    Refuses state that changes and odd shapes.
    """
    outputs: list[int] = []
    hooks = [part.register_forward_hook(lambda _, __, y: outputs.append(y.numel() if isinstance(y, Tensor) else 0))
             for part in net.modules()]
    before = {name: b.clone() for name, b in net.named_buffers()}
    count = len(next(iter(inputs.values())))
    with torch.no_grad():
        expected = net(*inputs.values())
    for hook in hooks:
        hook.remove()
    shapes = ((count,), (count, 1)) if answers == 1 else ((count, answers),)
    require(expected.shape in shapes, "module", tuple(expected.shape),
            f"give answers={answers} for each of {count} examples: {' or '.join(map(str, shapes))}")
    changed = [name for name, b in net.named_buffers() if not torch.equal(b, before[name])]
    require(not changed, "module", ", ".join(changed),
            "this buffer changes as it runs; clients cannot share it")
    return expected.reshape(shapes[0]), sum(outputs) // count
