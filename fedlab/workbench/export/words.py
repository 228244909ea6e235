"""The card of a model in English, as Markdown."""

from typing import Any

Card = dict[str, Any]
MEANINGS = {
    "hr@10": "HR@10: the share of users whose held-out item is among the first ten of their list.",
    "ndcg@10": "NDCG@10: the same, but a place further down counts less: the first 1, the second "
    "0.63, the tenth 0.29; the mean over users.",
    "[95%]": "[95%]: users were drawn anew many times, with repeats (bootstrap), and 95% of the "
    "means lie in between: a gap as small as that may be luck.",
}
HIDDEN = (
    "A server that keeps to the protocol of the secure sum sees no single upload: it could not do "
    "this, whoever breaks the protocol could."
)


def in_words(about: Card) -> str:
    """The card in English, as Markdown."""
    blocks = [
        _title(about),
        _quality(about["metrics"]),
        _privacy(about["privacy"]),
        _attacks(about["attacks"]),
        _data(about["data"]),
        _training(about),
    ]
    return "\n\n".join(blocks) + "\n"


def _title(about: Card) -> str:
    model, load = about["model"], about["load"]
    rows = [f"- `{name}` {tuple(shape)}" for name, shape in model["weights"].items()]
    out = [f"- `{name}`: {why}" for name, why in model["left out"].items()]
    own = [f"- `{name}` {tuple(shape)}" for name, shape in model["people"].items()]
    people = "`people.safetensors` holds rows of single people; no noise hides them, so it is for "
    return "\n\n".join(
        [
            f"# {model['recipe'].capitalize()}, after round {model['round']}",
            f"A recommender that was trained by federated learning with fedlab, for the task "
            f"'{model['task']}'. Written on {about['written']}.",
            "## How to load it, with torch and safetensors alone",
            "```python\n" + "\n".join(load["lines"]) + "\n```",
            load["in words"],
            "In `model.safetensors`:\n\n" + "\n".join(rows),
            *([people + "their owners only:\n\n" + "\n".join(own)] if own else []),
            *(["Left out:\n\n" + "\n".join(out)] if out else []),
        ]
    )


def _quality(metrics: Card) -> str:
    names = list(dict.fromkeys(name for row in metrics["table"].values() for name in row))
    lines = [f"|  | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for name, row in metrics["table"].items():
        cells = ("" if row.get(n) is None else f"{row[n]:.4f}" for n in names)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = ["\n".join(lines)] if names else []
    said = [meaning for name, meaning in MEANINGS.items() if name in names]
    return "\n\n".join(["## What it reaches", metrics["in words"], *table, *said])


def _privacy(found: Card) -> str:
    lines = ["## What it proves", *([found["in words"]] if "in words" in found else [])]
    if "epsilon" in found:
        size = "more than any number" if found["epsilon"] is None else f"{found['epsilon']:.4g}"
        lines += [
            f"- epsilon: {size}, at delta {found['delta']:g}\n"
            f"- sampler: {'; '.join(found['sampler'])}\n"
            f"- neighbouring relation: {found['relation']}, {found['neighbours differ in']}",
            found["not in it"],
        ]
    return "\n\n".join(lines)


def _attacks(found: Card) -> str:
    read = found["reading uploads"]
    lines = ["## What attackers reached"]
    if "auc" in read:
        behind = ", ".join(read["stages behind it"]) or "none"
        lines.append(
            f"Reading {read['read from']} in the uploads of {read['clients']} clients: precision "
            f"{read['precision']:.3f}, recall {read['recall']:.3f}, AUC {read['auc']:.3f}. "
            f"{read['in words']} Stages behind that in these settings: {behind}."
            + (f" {HIDDEN}" if read["hidden"] else "")
        )
    else:
        lines.append(f"Reading uploads: {read['in words']}.")
    others = [name for name in found if name != "reading uploads"]
    return "\n\n".join([*lines, *(f"{n.capitalize()}: {found[n]['in words']}." for n in others)])


def _data(data: Card) -> str:
    return "\n".join(
        [
            "## What it was trained on\n",
            f"{data['title']} (`{data['name']}`): {data['train']} train, {data['validation']} "
            f"validation and {data['test']} test interactions of {data['items']} items by "
            f"{data['users']} users, at {data['clients']} clients ({data['partition']}).\n",
            f"- licence: {data['licence']}",
            *([f"- citation: {data['citation']}"] if "citation" in data else []),
            f"- fingerprint: `{data['fingerprint']}`",
            f"- fingerprint of the federation: `{data['fingerprint of the federation']}`",
        ]
    )


def _training(about: Card) -> str:
    told = [
        f"- {name}: {value}"
        for name, value in about["training"].items()
        if name != "turned on the way"
    ]
    turned = [
        f"- round {number}: {', '.join(f'{n} {v}' for n, v in values.items())}"
        for number, values in about["training"].get("turned on the way", {}).items()
    ]
    own = [f"- `{name}`: {value}" for name, value in about["settings"]["settings"].items()]
    return "\n".join(
        [
            "## How it was trained\n",
            *told,
            *(["\nKnobs that were turned on the way:\n", *turned] if turned else []),
            "\nSettings that are not as usual (`settings.json` trains it again):\n",
            *(own or ["- none"]),
        ]
    )
