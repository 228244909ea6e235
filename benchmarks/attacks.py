"""Attacks and what stops them: pushed films, members told from others, words read from sums.

    python benchmarks/attacks.py [--quick]

Lesson 2's federation on ml-latest-small, 64 of 671 clients a round, 60 rounds, and clients that
lie: *boosted* ones made up a click on the film and send what they learned fifty times as long,
*aimed* ones send a push of the film's bias alone, *flipped* ones want to spoil the model and send
the opposite of what they learned, five times as long. ER@10 is the share of users that are shown a
film which three people watched. HR@10 on test, 99 clean negatives. Members are told apart by lesson
9's score, from the biases after lesson 8's 20 rounds over half of the users. 5 seeds: other films,
liars, members and first weights. Goes into results/privacy.json.
"""

from statistics import mean

import torch
from common import by_seed, entry, is_quick, record
from torch import Tensor, nn

from fedlab import (
    SGD,
    Clip,
    CoordinateMedian,
    Federation,
    GaussianNoise,
    Krum,
    Membership,
    NormBound,
    Participation,
    Poison,
    RowBound,
    Settings,
    TrimmedMean,
    WeightedMean,
    candidates,
    federate,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
    ranking,
    scorer,
)
from fedlab.attacks import (
    aimed,
    exposure,
    membership_metrics,
    membership_scores,
    rated_items,
    recover_tokens,
    scaled,
    with_clicks,
)
from fedlab.core import stream
from fedlab.data import Split
from fedlab.engine import updates
from fedlab.models import from_module
from fedlab.models.text import Backbone, TextEncoder, encoder, item_texts, mean_state

RULES = {
    "mean": WeightedMean(weighting="equal"),
    "normbound": NormBound(bound=1.5, weighting="equal"),
    "trimmed": TrimmedMean(),
    "median": CoordinateMedian(),
    "krum": Krum(byzantine=2, keep=32),
    "rowbound": RowBound(bound=0.05, weighting="equal"),
}
LAYER = "layer.0.attention.self.query"


def pushed(split: Split, seed: int, quick: bool) -> dict[str, float]:
    """ER@10 and HR@10 of each rule under each attack."""
    train, test, found = split.train, candidates(split, seed=seed), {}
    owner, draw = one_per_user(train), stream(seed, "attack")
    rare = (train.item_counts() == 3).nonzero()[:, 0]
    target = int(rare[torch.randint(len(rare), (1,), generator=draw)])
    order = torch.randperm(train.user_count, generator=draw)
    model = matrix_factorisation(train.user_count, train.item_count, 32)
    settings = Settings(
        rounds=6 if quick else 60, cohort=64, local_lr=1.0, server_lr=50.0, seed=seed
    )
    aim = aimed(target, 100.0)
    for attack, share, lie in (
        ("clean", 0.0, aim),
        ("boosted", 0.01, scaled(50.0)),
        ("aimed", 0.01, aim),
        ("aimed5", 0.05, aim),
        ("flipped", 0.1, scaled(-5.0)),
    ):
        liars = order[: round(share * train.user_count)]
        data = Federation(
            with_clicks(train, liars, target) if attack == "boosted" else train, owner
        )
        for name, rule in RULES.items() if share else [("mean", RULES["mean"])]:
            *_, done = federate(
                model, data, settings, uplink=[Poison(clients=liars, craft=lie)], aggregate=rule
            )
            score = scorer(model, done.params)
            found[f"{attack}_{name}_er10"] = exposure(score, train, target)
            found[f"{attack}_{name}_hr10"] = ranking(score, test)["hr@10"]
    return found


def members(split: Split, seed: int, quick: bool) -> dict[str, float]:
    """The AUC of telling members from others, without noise and with some."""
    data = Federation(split.train, one_per_user(split.train))
    inside = torch.rand(len(data), generator=stream(seed, "members")) < 0.5
    half = Participation(members=Membership.only(inside), warm=False)
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 8)
    plain = Settings(rounds=3 if quick else 20, cohort=200, local_lr=15.0, seed=seed)
    noisy = plain.replace(clip=5.0, sampling="poisson", teaching_seed=seed)
    runs = {"plain": federate(model, data, plain.replace(weighting="equal"), participation=half)}
    runs |= {
        f"z{z}": federate(
            model,
            data,
            noisy.replace(noise=z),
            participation=half,
            uplink=[Clip(), GaussianNoise()],
        )
        for z in (0.3, 1, 3)
    }
    watched, found = rated_items(data, torch.arange(len(data))), {}
    for name, rounds in runs.items():
        *_, done = rounds
        scores = membership_scores(done.params["bias"], watched, split.train.item_counts())
        metrics = membership_metrics(scores, inside)
        found |= {f"members_{name}_{key}": metrics[key] for key in ("auc", "tpr")}
        found[f"members_{name}_epsilon"] = done.metrics.get("epsilon", 0.0)
    return found


class Stars(nn.Module):
    """A model of clicked or not, from a film's title."""

    def __init__(self, titles: list[str]) -> None:
        """Titles (I,) are those of the items that the model is asked about."""
        super().__init__()
        self.text, self.head = TextEncoder(encoder(), titles, length=12), nn.Linear(384, 1)

    def forward(self, item: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        return self.head(mean_state(*self.text(item)))[:, 0]


def read(split: Split, seed: int) -> dict[str, float]:
    """The words read from sums over some of the hundred quietest clients.

    Returns the share of the clients' words that is read, and the share of those read that is right.
    """
    torch.manual_seed(seed)
    titles, data = (
        item_texts(split.train.catalogue, "{title}"),
        Federation(split.train, one_per_user(split.train)),
    )
    net, body, found = Stars(titles), Backbone(encoder()), {}
    for name, weight in net.named_parameters():
        weight.requires_grad_(name.startswith("head") or name.endswith(f"{LAYER}.weight"))
    model = from_module(net, {"item": torch.arange(3)})
    start = model.init(seed)
    quiet = data.counts.argsort(stable=True)[torch.randperm(100, generator=stream(seed, "quiet"))]
    for count in (1, 4, 16):
        clients = quiet[:count][data.counts[quiet[:count]].argsort(descending=True)]
        parts = updates(
            model, data, start, clients, SGD(local_lr=0.1, negatives=0, batch_size=8), seed=seed
        )
        total = sum(
            part.deltas[f"text.body.model.encoder.{LAYER}.weight"].values.sum(0) for part in parts
        )
        outside, _ = recover_tokens(total, body, LAYER, 12)
        items = split.train.items[torch.isin(split.train.users, clients)].tolist()
        theirs = encoder().tokenizer([titles[i] for i in items], truncation=True, max_length=12)[
            "input_ids"
        ]
        got, true = (
            set((outside < 0.01).nonzero()[:, 0].tolist()),
            {word for ids in theirs for word in ids},
        )
        found[f"words_of_{count}_recall"] = len(got & true) / len(true)
        found[f"words_of_{count}_precision"] = len(got & true) / max(1, len(got))
    return found


def one(seed: int, quick: bool) -> dict[str, float]:
    """All figures of one seed."""
    split = leave_one_out(load())
    found = pushed(split, seed, quick) | members(split, seed, quick) | read(split, seed)
    print(seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def report(every: list[dict[str, float]], quick: bool) -> None:
    """Write the figures of the seeds that have ended so far."""
    table, note = {}, ", quick" if quick else ""

    def row(name: str, values: list[float], unit: str, goal: float | None, *, higher: bool) -> None:
        table[name] = entry(
            mean(values),
            unit,
            goal,
            higher=higher,
            seeds=len(values),
            note=f"from {min(values):.3f} to {max(values):.3f}{note}",
        )

    for name in every[0]:
        row(
            name,
            [found[name] for found in every],
            "epsilon" if name.endswith("epsilon") else "share",
            None,
            higher=name.endswith("hr10"),
        )
    for attack, rule in (("boosted", "normbound"), ("aimed", "rowbound")):
        name = f"promotion_{rule}"
        row(
            f"{name}_er10",
            [found[f"{attack}_{rule}_er10"] for found in every],
            "share",
            0.01,
            higher=False,
        )
        row(
            f"{name}_hr_loss",
            [1 - found[f"{attack}_{rule}_hr10"] / found["clean_mean_hr10"] for found in every],
            "share",
            0.05,
            higher=False,
        )
    record("privacy", table, quick)


if __name__ == "__main__":
    by_seed(one, report, is_quick())
