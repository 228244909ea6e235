"""A node: a platform or a device with its own data, private rows and disk. It answers questions.

    hello     who is there: how many clients and users, of which task
    train     the client half of a round: `local`, then the client stages, as in one process
    secure    a step of a secure sum over the nodes, see `fedlab.nodes.secure`
    measure   sums over its own users, from which the coordinator works out the metrics

A question brings the tables that have changed since the node last answered. What clients learn for
themselves stays here, see `fedlab.nodes.keeping`. Whatever is wrong with a question, the answer is
{"error": why}, and the node lives on.

Letters: C clients in the node's part of a cohort.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedlab.aggregation.mean import joined_updates
from fedlab.algorithms.loop import checked, draws_negatives
from fedlab.algorithms.participation import longest_first
from fedlab.core import (
    REGISTRY,
    DataError,
    Local,
    ParameterError,
    Part,
    Plan,
    Recipe,
    Round,
    RoundContext,
    Rows,
    Settings,
    SparseTable,
    Stage,
    Tree,
    Update,
    knobs,
    one_thread,
    turned,
    walk,
)
from fedlab.data import Interactions
from fedlab.evaluation import Candidates, scorer
from fedlab.evaluation.metrics import gains
from fedlab.models import Model
from fedlab.nodes.keeping import BehindError, Keeping, Kept, cut, joined, readable
from fedlab.nodes.messages import Message, MessageError, pack, put_rows, tables_from, unpack
from fedlab.nodes.secure import Membership
from fedlab.nodes.share import ColumnsShare, FederationShare, Own, Place, check_own, placed

FAULTS = (
    *(MessageError, BehindError, ParameterError, DataError, OSError),
    *(RuntimeError, ValueError, TypeError, KeyError, IndexError, OverflowError),
)
Share = FederationShare | ColumnsShare
K = 10  # length of the list that clicks are ranked for


@dataclass(frozen=True)
class Held:
    """What a node keeps apart to measure by, under its own numbers of users.

    clicks: each user's held-out item and what it is ranked against. ratings: held-out ones, of
    which `std` stars are one unit.
    """

    clicks: Candidates | None = None
    ratings: Interactions | None = None
    std: float = 1.0

    def sums(self, score: Any, first: int) -> dict[str, float]:
        """What its users add to each metric, and their number; first: the node's first user."""
        if self.clicks is not None:
            ranks = replace(self.clicks, users=self.clicks.users + first).ranks(score)
            hits = {"hr@10": float((ranks <= K).sum()), "ndcg@10": float(gains(ranks, K).sum())}
            return {"count": float(len(ranks)), **hits}
        if self.ratings is not None:
            held = self.ratings
            error = (score(held.users + first, held.items) - held.values).double() * self.std
            return {"count": float(len(error)), "squares": float(error.square().sum())}
        return {"count": 0.0}


class Node:
    """Answers the coordinator's questions about its own clients; `answer` is all that is needed.

    name: different from all other nodes'. data: of its own clients, numbered from 0. folder: where
    it keeps what its clients learn; None keeps it in memory alone. model: makes the model from the
    node's data under the numbers of the whole; by default as the recipe says that the coordinator
    names. held: what it measures by.
    """

    def __init__(
        self,
        name: str,
        data: Own,
        folder: str | Path | None = None,
        *,
        model: Callable[[Any], Model] | None = None,
        held: Held | None = None,
    ) -> None:
        """Raises `ParameterError` for data that cannot be a part of larger ones."""
        check_own(data)
        self.name, self.data, self.held = name, data, held or Held()
        self.folder = None if folder is None else Path(folder)
        self._model = model
        self._runs: dict[str, Running] = {}

    @cached_property
    def member(self) -> Membership:
        """The node in secure sums."""
        return Membership(self.folder)

    def answer(self, question: bytes) -> bytes:
        """The answer to a question, whatever that is."""
        try:
            asked, do = unpack(question), self.does()
            wanted = asked.get("ask", str)
            if wanted not in do:
                raise MessageError(f"it asks for {wanted!r}; a node knows {', '.join(do)}")
            with one_thread():
                return do[wanted](asked)
        except FAULTS as error:
            return pack({"error": f"{type(error).__name__}: {error}"[:500]})

    def does(self) -> dict[str, Callable[[Message], bytes]]:
        """The questions that it knows, by name: what answers them."""
        return {
            "hello": self._hello,
            "train": self._train,
            "secure": self._secure,
            "measure": self._measure,
        }

    def params(self) -> Tree:
        """What it has of its last run: the server's tables, and private rows of its own users.

        Empty before it was asked anything.
        """
        found = next(iter(self._runs.values()), None)
        if found is None or found.tables is None:
            return {}
        rows, first = self.own_rows(found), found.place.user
        users = {n for n in rows if found.model.rows[n] == "user"}
        own = torch.arange(first, first + len(getattr(self.data, "owner", ())))
        rows |= {name: rows[name].index_select(0, own) for name in users}
        return found.tables | rows

    def own_rows(self, running: "Running") -> Tree:
        """The private tables that it recommends and measures by: what its clients have learned."""
        return running.private_rows()

    def _hello(self, asked: Message) -> bytes:
        tables = isinstance(self.data, ColumnsShare) or not hasattr(self.data, "train")
        train = None if tables else cast(Any, self.data).train
        counts = self.data.counts if asked.get("counts", bool) else torch.ones(len(self.data))
        return pack(
            {
                "name": self.name,
                "task": self.data.task,
                "negatives": draws_negatives(self.data),
                "users": train.user_count if train else 0,
                "items": train.item_count if train else 0,
                "key": self.member.identity.public.hex(),
            },
            {"counts": counts.long()},
        )

    def _running(self, asked: Message) -> "Running | None":
        """The run that a question belongs to, settled; None where its tables are needed whole."""
        run = asked.get("run", str)
        if not re.fullmatch("[0-9a-f]{16}", run):
            raise MessageError(f"its run {run[:20]!r} is no 16 hexadecimal digits")
        place = Place(*(asked.get(n, int) for n in ("clients", "client", "users", "user")))
        found = self._runs.get(run)
        if found is None or found.place != place:
            keeping = readable(self.folder / run) if self.folder else _Memory()
            found = self._runs[run] = self._begun(asked, place, keeping)
            self._runs = {run: found}  # an earlier one is on the disk
        number, told = asked.get("round", int), zip(*map(asked.numbers, TOLD), strict=True)
        found.keeping.settle(number, dict(told))
        whole = asked.get("whole", bool)
        if not whole and asked.get("base", int) != found.version:
            return None
        found.tables, found.version = tables_from(asked, {} if whole else found.tables), number - 1
        return found

    def _begun(self, asked: Message, place: Place, keeping: Keeping) -> "Running":
        data = placed(self.data, place)
        if self._model:
            model = self._model(data)
        else:
            name, turns = asked.get("model", str), asked.get("recipe", dict)
            if name not in REGISTRY["model"]:
                raise MessageError(f"its model {name!r} is not known here")
            recipe = cast(Recipe, REGISTRY["model"][name](**turns))
            model = recipe.build(cast(FederationShare, data).train, data.task)
        first = model.init(asked.get("seed", int))
        private = {name: first[name] for name in sorted(model.private)}
        shapes = {n: value.shape for n, value in first.items() if n not in private}
        return Running(place, data, model, private, shapes, keeping)

    def _train(self, asked: Message) -> bytes:
        running = self._running(asked)
        if running is None:
            return pack({"stale": True})
        update, context = running.trained(asked)
        if update is None:
            raise MessageError("it asks for nobody")
        places, tensors = put_rows(update.deltas, len(update.cohort))
        head = {
            "round": context.number,
            "cohort": update.cohort.tolist(),
            "rows": places,
            "engine": context.notes.get("engine", ""),
        }
        return pack(
            head, tensors | {"losses": update.losses.float(), "steps": update.steps.float()}
        )

    def _secure(self, asked: Message) -> bytes:
        """A step of a secure sum; what clients send leaves the node under masks alone."""
        if asked.get("step", str) != "masked":
            return pack(self.member.step(self.name, asked))
        running = self._running(asked)
        if running is None:
            return pack({"stale": True})
        update, context = running.trained(asked)
        words = self.member.masked(asked, update, context)
        loss = 0.0 if update is None else float(update.losses.mean())
        return pack({"loss": loss}, {"masked": torch.from_numpy(words.view(np.int32))})

    def _measure(self, asked: Message) -> bytes:
        running = self._running(asked)
        if running is None:
            return pack({"stale": True})
        params = running.tables | self.own_rows(running)
        mine = {name: params[name] for name in running.model.rows}
        owner = getattr(running.data, "owner", None)
        score = scorer(running.model, mine, owner)
        return pack(
            {"round": asked.get("round", int), "sums": self.held.sums(score, running.place.user)}
        )


TOLD = ("counted", "trained")  # clients, and for each the round whose update counted


class _Memory(Keeping):
    """What a node keeps without a disk, for tests and first steps."""

    def __init__(self) -> None:
        super().__init__(Path("there is no such folder"))

    def keep(self, number: int, clients: Mapping[int, Kept]) -> None:
        self.trained = {n: kept for n, kept in self.trained.items() if n < number}
        self.trained[number] = dict(clients)

    def _forget(self, number: int) -> None:
        del self.trained[number]

    def _write_counted(self) -> None:
        pass


@dataclass
class Running:
    """A run as a node sees it. private: first private rows. tables: the server's, of `version`."""

    place: Place
    data: Share
    model: Model
    private: Tree
    shapes: Mapping[str, torch.Size]
    keeping: Keeping
    tables: Tree = None  # type: ignore[assignment]
    version: int = -1

    def private_rows(self) -> Tree:
        """The private tables, with what this node's clients have learned."""
        found = dict(self.private)
        kept = [self.keeping.of(client) for client in self.keeping.counted]
        for name, table in self.private.items():
            own = [each["rows"][name] for each in kept if name in each.get("rows", {})]
            if own:
                ids, values = (torch.cat(parts) for parts in zip(*own, strict=True))
                found[name] = _put(table, ids, values)
        return found

    def trained(self, asked: Message) -> tuple[Update | None, RoundContext]:
        """What the clients asked for send in a round, longest first; None for no clients.

        What they keep is written before anybody knows.
        """
        cohort = torch.tensor(asked.numbers("cohort"), dtype=torch.int64)
        outside = cohort[(cohort >= self.place.clients) | (cohort < self.place.client)]
        if len(outside) or not bool((self.data.counts[cohort] > 0).all()):
            raise MessageError(f"it asks for clients of others: {outside[:4].tolist()}")
        cohort = longest_first(self.data, cohort)
        local, stages, context = self._context(asked, cohort)
        own: list[dict[str, Rows]] = []
        sent: list[Update] = []
        for update in local.train(context, cohort) if len(cohort) else ():
            private = self.model.private & update.deltas.keys()
            own.append({name: update.deltas[name] for name in private})
            out = replace(
                update, deltas={n: r for n, r in update.deltas.items() if n not in private}
            )
            for stage in stages:
                out = checked(stage, out, context)
            sent.append(out)
        self._keep(context, sent, own)
        return (joined_updates(sent) if sent else None), context

    def _context(self, asked: Message, cohort: Tensor) -> tuple[Local, list[Stage], RoundContext]:
        """The parts that the question names, and what they may know of the round."""
        settings = Settings(**asked.get("settings", dict))
        local = cast(Local, _part("local", asked.get("local", str))(**asked.get("knobs", dict)))
        names = asked.get("uplink", list)
        stages = [cast(Stage, turned(_part("stage", name)(), settings)) for name in names]
        params, number = self.tables | self.private_rows(), asked.get("round", int)
        own = {name: params[name] for name in self.model.rows if name in params}
        before = Round(number - 1, settings, own)
        facts = walk([local, *stages], {"negatives": True} if draws_negatives(self.data) else {})
        kept = [self.keeping.of(client).get("memory", {}) for client in cohort.tolist()]
        context = RoundContext(
            self.model, self.data, settings, before, own, joined(kept), settings.seed, facts
        )
        shapes = {n: own[n].shape for n in self.shapes if n in own}
        if shapes != self.shapes:
            raise MessageError(f"its tables are {shapes}; the model here has {dict(self.shapes)}")
        context.local = local
        local.check(context)
        context.asked = local.asks(context)
        told = {name: self.tables[name] for name in self.tables.keys() - own.keys()}
        local.hears(context, told)
        context.plan = Plan(cohort, dict.fromkeys(cohort.tolist(), number), {}, 0.0)
        for stage in stages:
            stage.begin(context)
        return local, stages, context

    def _keep(self, context: RoundContext, sent: list[Update], own: list[dict[str, Rows]]) -> None:
        """Write down what each client had after it trained."""
        found: dict[int, Kept] = {}
        for update, private in zip(sent, own, strict=True):
            for place, client in enumerate(update.cohort.tolist()):
                rows = {
                    name: self._own(name, r, place, client, context) for name, r in private.items()
                }
                found[client] = {"rows": rows, "memory": cut(context.state, client)}
        self.keeping.keep(context.number, found)

    def _own(
        self, name: str, rows: Rows, place: int, client: int, context: RoundContext
    ) -> tuple[Tensor, Tensor]:
        """All private rows that a client has moved so far: (ids, values)."""
        mine = rows.client == place
        ids = rows.ids[mine]
        values = context.params[name].index_select(0, ids) + rows.values[mine]
        before = self.keeping.of(client).get("rows", {}).get(name)
        if before is None:
            return ids.clone(), values
        other = ~torch.isin(before[0], ids)
        return torch.cat([before[0][other], ids]), torch.cat([before[1][other], values])


def _part(kind: str, name: Any) -> type[Part]:
    """A registered part; raises `MessageError` for one that this node does not know."""
    if name not in REGISTRY[kind]:
        raise MessageError(
            f"its {kind} {name!r} is not known here; load the file that has it, --parts FILE.py"
        )
    return REGISTRY[kind][name]


def _put(table: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """A private table in which some rows, each once, have these values."""
    if isinstance(table, SparseTable):
        order = ids.argsort()
        return cast(Tensor, replace(table, ids=ids[order], values=values[order]))
    return table.index_copy(0, ids, values)


def knobs_of(part: Part) -> dict[str, Any]:
    """The knobs of a part with their values, as a message carries them."""
    return {name: getattr(part, name) for name in knobs(type(part))}
