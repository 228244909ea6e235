"""The card of a model: what it is, what it was trained on, what it reaches, proves and gives away.

Everything is worked out anew from an experiment and a Round. The card is plain data; `in_words`
writes it down in English.

Letters: M items that a held-out one is ranked against.

Sources: Mitchell et al. 2019, "Model cards for model reporting"; the attack is that of
`fedlab.attacks.upload_reading`, the baselines are those of `fedlab.evaluation.baselines`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from fedlab.attacks import rated_items, reading_metrics, row_scores, sign_scores
from fedlab.core import VERSION, Key, Round, Score, known, one_thread, several, to
from fedlab.data import DATA, Federation, Split, fingerprint
from fedlab.engine import SGD, updates
from fedlab.evaluation import dot, ease, ials, item_knn
from fedlab.privacy import DPSGD, SecureSum, proven, proven_for_examples
from fedlab.workbench.beside import SIMPLE, ahead, by_chance
from fedlab.workbench.experiment import Experiment
from fedlab.workbench.export.loading import how_to_load
from fedlab.workbench.runs import Record, compared

Card = dict[str, Any]
READ = 32  # clients whose uploads are read
EXAMPLE_DELTA = 1e-5  # of epsilon for single ratings
UNPROVEN = (
    "Nothing is proven: no noise was added to what was learned from people, so this model may give "
    "away who took part in training, and with what."
)
NO_MEMBERS = (
    "not measured, since telling members from others needs models that were trained without some "
    "of the people"
)
EVERYTHING = "It was trained on everything, so nothing was left on which to measure it."
UNTUNED = "The baselines see all data in one place and run as the package has them, untuned."
RELEASES = (
    "The metrics on this card, and any choice of this round or these settings by them, are "
    "releases of private data as well; no epsilon here counts them."
)
SAMPLERS = {
    "poisson": "Poisson: each client joins a round by a chance of its own",
    "fixed": "cohorts of a fixed size, drawn without replacement",
    "all": "everybody in every sum",
}
RELATIONS = {
    "add-remove": "one client more or less, with all its data",
    "replace-one": "other data of one client",
}
LICENCE = "data-licence.md"  # the file that goes with every model trained on bundled data
KNOWN = {
    "ml-latest-small": {
        "title": "MovieLens ml-latest-small (October 2016), GroupLens Research",
        "licence": "GroupLens' own: research only, acknowledged in publications by the citation "
        "here; no endorsement; no commercial use without permission; and whoever passes on the "
        f"data or transformations of it does so under the same conditions. {LICENCE}, beside this "
        "card, has its text",
        "citation": "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: "
        "History and Context. ACM TiiS 5, 4: 19:1-19:19. https://doi.org/10.1145/2827872",
    }
}


BASELINES: dict[str, Mapping[str, Callable[[Experiment], Score]]] = {
    "clicks": {
        **SIMPLE["clicks"],
        "item knn": lambda experiment: item_knn(experiment.split.train),
        "ials": lambda experiment: dot(*ials(experiment.split.train, seed=0)),
        "ease": lambda experiment: ease(experiment.split.train),
    },
    "ratings": SIMPLE["ratings"],
}
WITHOUT = ("ease",)  # takes a minute for nine thousand items, so it has to be asked for


def card(
    experiment: Experiment,
    done: Round,
    records: Sequence[Record] = (),
    *,
    weights: Mapping[str, Sequence[int]],
    people: Mapping[str, Sequence[int]] | None = None,
    left_out: Mapping[str, str] | None = None,
    baselines: Sequence[str] | None = None,
    reached: Card | None = None,
) -> Card:
    """The card of the model of a Round, as plain data.

    records: those of its run. weights, people: name -> shape of what is in the two files. left_out:
    name -> why it is in none. baselines: some of chance, popularity, 'item knn', ials and ease for
    clicks, of 'mean rating', 'mean of each user' and 'mean of each item' for ratings; by default
    all but ease. reached:
    what was measured elsewhere, in place of `metrics_beside`. Raises `ParameterError` for another
    baseline.
    """
    names, settings = experiment.choices, dict(experiment.settings)
    return {
        "fedlab": VERSION,
        "written": f"{datetime.now(UTC):%Y-%m-%d}",
        "model": {
            "name": experiment.model.name,
            "recipe": names.model,
            "task": names.task,
            "round": done.number,
            "weights": dict(weights),
            "people": dict(people or {}),
            "left out": dict(left_out or {}),
        },
        "load": how_to_load(
            experiment.model, experiment.split, experiment.local, experiment.federation
        ),
        "settings": {"fedlab": VERSION, "whole": True, "settings": settings},
        "training": training(experiment, done, records),
        "data": described_data(experiment),
        "metrics": reached or metrics_beside(experiment, done, baselines),
        "privacy": privacy(experiment, done),
        "attacks": attacks(experiment, done),
    }


def training(experiment: Experiment, done: Round, records: Sequence[Record]) -> Card:
    """How it was trained, and what that cost up to this Round as far as the records tell."""
    names = experiment.choices
    parts = {n: getattr(names, n) for n in ("local", "uplink", "aggregation", "schedule")}
    mine = [each for each in records if each["round"] <= done.number]
    turned = {str(each["round"]): each["turned"] for each in mine if each.get("turned")}
    spent = {
        "rounds on record": len(mine),
        "megabytes up": round(sum(each["bytes_up"] for each in mine) / 1e6, 3),
        "megabytes down": round(sum(each["bytes_down"] for each in mine) / 1e6, 3),
        "seconds": round(sum(each["seconds"] for each in mine), 2),
        "updates rejected": sum(len(each.get("rejected", ())) for each in mine),
        "rounds skipped": sum("skipped" in each for each in mine),
    }
    return parts | ({"turned on the way": turned} if turned else {}) | (spent if mine else {})


def described_data(experiment: Experiment) -> Card:
    """What the data are, and whose they are."""
    split, name = experiment.split, experiment.choices.data
    unknown = {"title": "data of your own", "licence": "not known here; ask where they came from"}
    return {
        "name": name,
        **KNOWN.get(name, unknown),
        "users": split.train.user_count,
        "items": split.train.item_count,
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
        "clients": len(experiment.federation),
        "partition": experiment.choices.partition,
        "fingerprint": data_fingerprint(split),
        "fingerprint of the federation": fingerprint(experiment.federation),
    }


def data_licence(experiment: Experiment) -> dict[str, bytes]:
    """The file with the licence of the data, where they are bundled data, by name."""
    bundled = experiment.choices.data in KNOWN
    return {LICENCE: (DATA / "README.md").read_bytes()} if bundled else {}


def data_fingerprint(split: Split) -> str:
    """A name for exactly these data, split as they are: SHA-256 over ids and columns of all parts.

    >>> from fedlab.data import leave_one_out, load
    >>> data_fingerprint(leave_one_out(load()))[:15]
    'sha256:2f8605d3'
    """
    found = hashlib.sha256()
    for ids in (split.train.catalogue.user_ids, split.train.catalogue.item_ids):
        found.update("\n".join(ids).encode() + b"\0")
    for part in (split.train, split.validation, split.test):
        for name, column in {"users": part.users, "items": part.items, **part.columns}.items():
            found.update(f"{name} {len(column)}".encode() + b"\0")
            found.update(column.contiguous().numpy().tobytes())
    return f"sha256:{found.hexdigest()}"


def metrics_beside(
    experiment: Experiment, done: Round, baselines: Sequence[str] | None = None
) -> Card:
    """The metrics of a Round on validation, and those of what it is measured against.

    Where the model was trained on everything there are none.
    """
    task = experiment.choices.task
    if not len(experiment.split.validation):
        return {"part": None, "against": None, "table": {}, "in words": EVERYTHING}
    every = [*(["chance"] if task == "clicks" else []), *BASELINES[task]]
    asked = [n for n in every if n not in WITHOUT] if baselines is None else list(baselines)
    known(every, dict.fromkeys(asked, "asked for"))
    table = {"this model": experiment.measure(done)}
    for name in asked:
        table[name] = (
            by_chance(experiment)
            if name == "chance"
            else experiment.measured(BASELINES[task][name](experiment))
        )
    against = experiment.choices.against if task == "clicks" else None
    how = f", each held-out click among {against} unseen items" if against else ""
    rest = ", ".join(name for name in every if name not in asked)
    said = compared("This model", ahead(experiment, done), "on validation")
    return {
        "part": "validation",
        "against": against,
        "in words": f"{said} On the validation part{how}; all worked out for this card. {UNTUNED}"
        + (f" Not computed: {rest}." if rest else ""),
        "table": {n: {m: _finite(v) for m, v in row.items()} for n, row in table.items()},
    }


def privacy(experiment: Experiment, done: Round) -> Card:
    """What is proven of a Round: epsilon, delta, sampler and neighbours; or that nothing is."""
    if isinstance(experiment.local, DPSGD):
        return _of_examples(experiment.local, done)
    ledger = done.state.get("ledger") or {}
    if not ledger:
        return {"proven": False, "in words": UNPROVEN}
    settings, releases = done.settings, dict(ledger.get("releases", {}))
    samplings = sorted({sampling for _, _, sampling in releases})
    replaced = "fixed" in samplings or "drift" in ledger
    relation = "replace-one" if replaced else "add-remove"
    sampler = [SAMPLERS[name] for name in samplings]
    if "drift" in ledger:
        sampler.append("each client's own update, with noise that it adds itself")
    found = {
        "proven": "no guarantee" not in ledger,
        "epsilon": _finite(proven(ledger, settings.delta)),
        "delta": settings.delta,
        "sampler": sampler,
        "relation": relation,
        "neighbours differ in": RELATIONS[relation],
        "releases": [
            {"noise": noise, "rate": rate, "sampling": sampling, "times": times}
            for (noise, rate, sampling), times in releases.items()
        ],
        "not in it": RELEASES,
    }
    if "no guarantee" in ledger:
        why = f"Nothing is proven: {ledger['no guarantee']}, which others can draw again."
        found["in words"] = f"{why} With real noise epsilon would be the number on this card."
    return found


def _of_examples(local: DPSGD, done: Round) -> Card:
    """What DP-SGD at platforms proves, of single ratings."""
    taught = local.teaching_seed >= 0
    spent = proven_for_examples(done.state.get("ledger", {}), EXAMPLE_DELTA)
    found = {
        "proven": not taught,
        "epsilon": _finite(max(spent.values(), default=0.0)),
        "delta": EXAMPLE_DELTA,
        "sampler": ["Poisson: each rating joins a batch of its platform by a chance of its own"],
        "relation": "add-remove",
        "neighbours differ in": "one rating of one platform; users with many are not hidden by it",
        "not in it": RELEASES,
    }
    if taught:
        found["in words"] = (
            f"Nothing is proven: the noise comes from teaching_seed={local.teaching_seed}, which "
            "others can draw again."
        )
    return found


def attacks(experiment: Experiment, done: Round) -> Card:
    """What attackers reached; where an attack cannot be tried here, why."""
    why = _unread(experiment)
    found = {
        "reading uploads": {"in words": why} if why else _reading(experiment, done),
        "membership": {"in words": NO_MEMBERS},
    }
    names, settings = several(experiment.choices.uplink), experiment.settings
    if "poison" in names:
        found["poisoning"] = {
            "liars": settings["liars"],
            "attack": settings["attack"],
            "in words": "clients of an attacker took part in training, as the settings say: this "
            "model shows what that does",
        }
    return found


def _unread(experiment: Experiment) -> str:
    """Why uploads of this experiment cannot be read by the attack at hand, or ''."""
    model, local = experiment.model, experiment.local
    rows = any(k == "item" and n not in model.private for n, k in model.rows.items())
    for ok, why in (
        (type(local) is SGD, f"the attack reads gradient steps and clients do {local.name}"),
        (isinstance(experiment.source, Federation), "it reads updates by clicks of a federation"),
        (experiment.choices.task == "clicks", "it reads clicks, and these are ratings"),
        (rows, "the model sends no row that belongs to an item"),
    ):
        if not ok:
            return f"not measured, since {why}"
    return ""


def _reading(experiment: Experiment, done: Round) -> Card:
    """Precision, recall and AUC of reading who clicked what from plain uploads."""
    data, model = experiment.federation, experiment.model
    count = min(READ, len(data))
    luck = Key(experiment.settings.seed, "card readers").uniform(torch.arange(len(data)), 1)[:, 0]
    cohort = luck.argsort()[:count]
    cohort = cohort[data.counts[cohort].argsort(descending=True, stable=True)]
    shared = [n for n, kind in model.rows.items() if kind == "item" and n not in model.private]
    name, read = ("bias", sign_scores) if "bias" in shared else (shared[0], row_scores)
    local, seed = experiment.local, experiment.settings.seed
    assert isinstance(local, SGD)
    with one_thread():
        here = to(done.params, "cpu")
        sent = updates(
            model, data, here, cohort, local, seed=seed, number=done.number + 1, purpose="card "
        )
        scores = torch.cat([read(each, data.train.item_count, name) for each in sent])
    truth = rated_items(data, cohort)
    if not bool((truth.any(1) & ~truth.all(1)).any()):
        return {
            "in words": "not measured, since no client that was tried has clicked some items only"
        }
    found = {n: _finite(v) for n, v in reading_metrics(scores, truth).items()}
    hidden = any(isinstance(stage, SecureSum) for stage in experiment.uplink)
    return {
        "clients": count,
        "read from": f"the {'signs' if read is sign_scores else 'numbers'} of the rows of {name}",
        **found,
        "stages behind it": several(experiment.choices.uplink),
        "hidden": hidden,
        "in words": "From one more upload of each of these clients, before any stage of the way "
        "up: how many of the items that it points at the client has clicked (precision), how many "
        "of its clicks it points at (recall), and how well it ranks them (AUC; 0.5 is guessing).",
    }


def _finite(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return round(float(value), 6) if math.isfinite(value) else None
