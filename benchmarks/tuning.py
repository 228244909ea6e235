"""Fine-tuning a BERT-type encoder among ten shops: in full, by adapters, or its head alone.

    python benchmarks/tuning.py [--quick]

It also measures what each way has to send. Films rated 25 times or more, known by 'title (year)'
alone; shops by taste, each with its own users. The head of the frozen encoder is trained first, and
all three go on from there: gains are over it, on the test part, leave-one-out as in quality.py. The
share of the gain is of the AUC, the steadier figure. Step sizes were chosen on the validation part
with seed 0. Each seed runs in a process of its own; figures are written after each.
"""

from collections import defaultdict
from statistics import mean, stdev

from common import by_seed, entry, is_quick, record
from torch import nn

from fedlab import (
    Federation,
    Settings,
    by_genre,
    candidates,
    federate,
    leave_one_out,
    load,
    ranking,
)
from fedlab.data import ItemQueries, at_least
from fedlab.evaluation import Candidates
from fedlab.models import adapted, from_module, loaded
from fedlab.models.text import TextEncoder, TwoTower, encoder, item_texts, vectors

SHOPS, LEAST, LENGTH = 10, 25, 12
HEAD = Settings(
    rounds=240,
    cohort=SHOPS,
    batch_size=128,
    local_lr=0.1,
    server_optimizer="adam",
    server_lr=4e-3,
    server_epsilon=1e-6,
)
TUNE = HEAD.replace(rounds=60, batch_size=16, warm_up=10)
LINEAR = ("query", "key", "value", "dense")


def run(net: nn.Module, shops: ItemQueries, settings: Settings) -> tuple[nn.Module, int]:
    """Run all rounds; return the module after them, and the bytes that clients sent in all."""
    model, sent = from_module(net, shops.few(), answers=shops.users), 0
    for done in federate(model, shops, settings):
        sent += done.bytes_up
    return loaded(net, done.params), sent


def figures(net: nn.Module, against: Candidates) -> dict[str, float]:
    """HR@10, NDCG@10, and the share of the negatives that rank behind the held-out film."""
    score = net.scores()
    ranks = against.ranks(score).float()
    return ranking(score, against) | {
        "auc": float(1 - (ranks - 1).mean() / against.negatives.shape[1])
    }


def tuned(seed: int, quick: bool) -> dict[str, tuple[dict[str, float], int]]:
    """Test figures of each way, and the bytes it sent after the head."""
    every = load()
    ratings, _, kept = at_least(every, items=LEAST)
    split = leave_one_out(ratings)
    train, against = split.train, candidates(split, seed=seed)
    known = vectors(item_texts(every.catalogue), progress=False)[kept]
    clients = Federation(train, by_genre(train, SHOPS, 1.0, seed))
    texts, minilm = item_texts(ratings.catalogue, "{title} ({year})"), encoder()
    much, few = ItemQueries(clients, 128, 64), ItemQueries(clients, 16, 64)
    head, tune = (
        each.replace(seed=seed, rounds=2 if quick else each.rounds) for each in (HEAD, TUNE)
    )
    frozen = TwoTower(TextEncoder(minilm, texts, top=0, length=LENGTH), train, known, seed=seed)
    start, _ = run(frozen, much, head)
    whole = TwoTower(TextEncoder(minilm, texts, length=LENGTH), train, known, seed=seed)
    whole.head, whole.user = start.head, start.user
    ways = {
        "head": (start, much, tune.replace(server_lr=1e-3)),
        "full": (whole.requires_grad_(True), few, tune.replace(server_lr=1.5e-4)),
        "lora": (
            adapted(whole, LINEAR, 4, 128.0, train=("head", "user"), seed=seed),
            few,
            tune.replace(rounds=2 * tune.rounds, server_lr=2.5e-4),
        ),
    }
    found = {"frozen": (figures(start, against), 0)}
    for name, (net, shops, settings) in ways.items():
        after, sent = run(net, shops, settings)
        found[name] = figures(after, against), sent
        print(f"seed {seed} {name}: {found[name]}", flush=True)
    return found


def report(every: list[dict[str, tuple[dict[str, float], int]]], quick: bool) -> None:
    """Write the figures of the seeds that have ended so far."""
    note, gains = ", quick" if quick else "", defaultdict(list)
    for found in every:
        for name in ("head", "full", "lora"):
            for metric in ("ndcg@10", "auc"):
                gains[name, metric].append(found[name][0][metric] - found["frozen"][0][metric])
    measured = {}
    for name in ("frozen", "head", "full", "lora"):
        values = [found[name][0]["ndcg@10"] for found in every]
        spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
        won = sum(g > 0 for g in gains[name, "ndcg@10"])
        more = f", over the frozen encoder in {won} of {len(every)}"
        measured[f"tuned_{name}_ndcg10"] = entry(
            mean(values),
            "NDCG@10",
            None,
            higher=True,
            seeds=len(every),
            note=f"ten shops, {spread}{'' if name == 'frozen' else more}{note}",
        )
    share, other = (
        mean(gains["lora", metric]) / mean(gains["full", metric]) for metric in ("auc", "ndcg@10")
    )
    measured["lora_gain_share"] = entry(
        share,
        "of full fine-tuning",
        0.95,
        higher=True,
        seeds=len(every),
        note="gain in test AUC over the frozen encoder with a trained head, "
        f"{mean(gains['full', 'auc']):.3f} in full; of the gain in NDCG@10 {other:.2f}{note}",
    )
    measured["lora_bytes_share"] = entry(
        mean(found["lora"][1] / found["full"][1] for found in every),
        "of full fine-tuning",
        0.02,
        higher=False,
        seeds=len(every),
        note=f"bytes up of the whole run, 120 rounds against 60{note}",
    )
    record("language", measured, quick)


if __name__ == "__main__":
    by_seed(tuned, report, is_quick())
