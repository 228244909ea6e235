"""A federation in one process, and the same cut into nodes: for the tests of this folder."""

from functools import cache

import torch

from fedlab.algorithms import federate
from fedlab.data import Columns, Federation, leave_one_out, load, of_users, one_per_user
from fedlab.evaluation import Candidates, candidates
from fedlab.models import matrix_factorisation, perceptron
from fedlab.nodes import Coordinator, Held, Loop, Node


@cache
def everybody():
    """All clicks, split, and what the held-out ones are ranked against."""
    split = leave_one_out(load())
    return split, candidates(split, "validation")


class World:
    """ml-latest-small's first users, a client each, in one process and on nodes.

    model, data: of one process. nodes: name -> Node, with disks below `folder` where there is one.
    each: users of a client. build: the model of (users, items, dim, task=...).
    """

    def __init__(
        self,
        users=40,
        count=3,
        dim=4,
        task="clicks",
        folder=None,
        each=1,
        build=matrix_factorisation,
    ):
        split, held = everybody()
        train = of_users(split.train, torch.arange(split.train.user_count) < users)
        self.each, self.build = each, build
        self.data = Federation(train, one_per_user(train) // each, task)
        self.model = build(users, train.item_count, dim, task=task)
        self.dim, self.cuts = dim, [users * k // count for k in range(count + 1)]
        self.held = Candidates(held.users[:users], held.positives[:users], held.negatives[:users])
        self.names = [f"node{k}" for k in range(count)]
        self.folder = folder
        self.nodes = {name: self.node(k) for k, name in enumerate(self.names)}

    @staticmethod
    @cache
    def small():
        """A node of a few users."""
        return World(users=6, count=2).nodes["node0"]

    def own(self, k):
        """The data of a node, its users numbered from 0."""
        first, last = self.cuts[k : k + 2]
        train = self.data.train
        own = of_users(
            train,
            (torch.arange(train.user_count) >= first) & (torch.arange(train.user_count) < last),
        )
        return Federation(own, one_per_user(own) // self.each, self.data.task)

    def node(self, k):
        """A node anew, as after a restart: it knows what is on its disk."""
        first, last = self.cuts[k : k + 2]
        held = self.held
        own = Candidates(
            held.users[first:last] - first, held.positives[first:last], held.negatives[first:last]
        )
        folder = None if self.folder is None else self.folder / self.names[k]
        return Node(
            self.names[k],
            self.own(k),
            folder,
            model=lambda data: self.build(
                data.train.user_count, data.train.item_count, self.dim, task=data.task
            ),
            held=Held(clicks=own),
        )

    @property
    def loop(self):
        """What carries bytes to whichever nodes there are now."""
        return Loop({name: self.asked(name) for name in self.names})

    def asked(self, name):
        return lambda question: self.nodes[name].answer(question)  # noqa: PLW0108 - it may change

    def far(self, **more):
        """A coordinator of these nodes."""
        return Coordinator(self.loop, self.model, **more)

    def private(self, done):
        """Everybody's private rows after a Round, as the nodes have them."""
        found = self.model.init(done.settings.seed)["user"]
        for node in self.nodes.values():
            for running in node._runs.values():
                for client in running.keeping.counted:
                    ids, values = running.keeping.of(client)["rows"]["user"]
                    found = found.index_add(0, ids, values - found.index_select(0, ids))
        return found


def difference(one, far):
    """The largest difference of two trees at the names of the second."""
    return max(float((one[name] - value).abs().max()) for name, value in far.items())


class Table:
    """Made-up columns of twelve clients, and the perceptron."""

    def __init__(self, count=3):
        generator = torch.Generator().manual_seed(0)
        x, owner = torch.randn(240, 5, generator=generator), torch.arange(240) // 20
        target = (x[:, 0] > x[:, 1]).float()
        self.model, self.data = perceptron(5, 8), Columns({"x": x, "target": target}, owner)
        each = 240 // count
        self.nodes = {}
        for k in range(count):
            rows = slice(k * each, (k + 1) * each)
            own = Columns({"x": x[rows], "target": target[rows]}, owner[rows] - owner[rows][0])
            self.nodes[f"n{k}"] = Node(f"n{k}", own, model=lambda data: self.model)

    def far(self, **more):
        return Coordinator(
            Loop({name: node.answer for name, node in self.nodes.items()}), self.model, **more
        )


def rounds_and_bytes(world, settings):
    """Yield each Round over nodes, and the bytes of the rows that it has to carry: down, and up.

    Down go 4 bytes a number of the rows that changed since a node last answered, and the rows'
    numbers; up goes what one process counts.
    """
    ones = list(federate(world.model, world.data, settings))
    tables = [world.model.init(0), *(done.params for done in ones)]
    has, wide = {}, tables[0]["item"].shape[1]
    for number, done in enumerate(world.far().rounds(settings), 1):
        down, now = 0, tables[number - 1]
        for k, name in enumerate(world.names):
            first, last = world.cuts[k : k + 2]
            if not ((done.cohort >= first) & (done.cohort < last)).any():
                continue
            rows = torch.ones(len(now["item"]), dtype=torch.bool)
            if name in has:
                before = tables[has[name]]
                rows = (before["item"] != now["item"]).any(1) | (before["bias"] != now["bias"])
            down += 4 * int(rows.sum()) * (wide + 1 + (name in has))
            has[name] = number - 1
        yield done, down, ones[number - 1].bytes_up
