"""Write the tables of README.md and of docs from benchmarks/results, and the pictures.

    python benchmarks/tables.py [--check]

The pictures are docs/peers.svg and docs/arrays.svg. What names the repository or the version
(README.md, docs/start.md, CITATION.cff) is written from pyproject.toml. --check writes nothing and
fails when something is not current.
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterable

from common import RESULTS, ROOT, label

from fedlab.evaluation import figures

DOCUMENTS = (
    "README.md",
    "CITATION.cff",
    "docs/start.md",
    "docs/results.md",
    "docs/performance.md",
    "docs/trust.md",
    "docs/workbench.md",
    "docs/deployment.md",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
FIRST = "notebooks/01_local_training.ipynb"
COLAB = """import sys

if "google.colab" in sys.modules:
    %pip install --quiet "fedlab-workbench @ git+{address}"
    from google.colab import output

    output.enable_custom_widget_manager()
"""
MARKS = re.compile(
    r"(<!-- table (\w+): made by benchmarks/tables.py -->\n).*?(<!-- end of table -->)", re.S
)
BEST = {
    "full": "**the model that it found**",
    "alike_full": "the same without recency",
    "best_pooled_full": "the best pooled baseline",
    "popularity_full": "popularity",
}
QUALITY = {
    "local": "each user alone",
    "popularity": "popularity",
    "fedavg": "FedAvg, every user a client",
    "pooled": "the same model on pooled data",
    "federated": "**federated iALS, last clicks first, every user a client**",
    "federated_plain": "the same, all clicks alike",
    "federated_10pct": "last clicks first, a tenth of the clients a round",
    "central": "iALS on pooled data, last clicks first",
    "central_plain": "the same, all clicks alike",
    "ease_recent": "EASE on pooled data, last clicks first",
    "ease": "the same, all clicks alike",
}
CATALOGUES = {
    "mean": "always the mean",
    "user_mean": "the user's mean",
    "alone": "each platform trains its own",
    "together": "**one perceptron for all platforms**",
}
COLD = {
    "chance": "nothing",
    "genres": "genres and year",
    "tfidf": "the same and words (TF-IDF)",
    "minilm": "MiniLM of the text alone",
    "text": "MiniLM of text and title, genres, year",
    "year": "the same, and a popularity predicted from the year",
    "popular": "the same, and a popularity predicted from text, genres, year",
    "familiar": "**the same, and both know how familiar SmolLM2 is with the title**",
    "popularity": "how often they will be rated, which nobody knows",
}
TUNED = {
    "frozen": "the encoder frozen, a head on top",
    "head": "the head trained for longer",
    "lora": "**LoRA on all linear layers, and the head**",
    "full": "all weights",
}
LEAKS = ("published_way", "clean")
PUBLISHED = {
    "fedmf": "FedMF (Chai et al. 2020): `matrix factorisation`",
    "fedncf": "FedNCF (Perifanis, Efraimidis 2022): `neural collaborative filtering`",
    "pfedrec": "PFedRec (Zhang et al. 2023): `personal scores`, `pfedrec`",
    "gpfedrec": "GPFedRec (Zhang et al. 2024): `personal perceptron`, `gpfedrec`",
    "fedrap": "FedRAP (Li et al. 2024): `additive items`, `fedrap`",
}
PAPERS = {"pfedrec": "0.716", "gpfedrec": "0.727 at second hand"}  # HR@10 on MovieLens-100K
SEQUENCES = {
    "both": "**text and a row of its own**",
    "ids": "a row alone",
    "text": "text alone",
    "pooled_both": "text and a row, on pooled data",
    "pooled_ids": "a row alone, on pooled data",
    "popularity": "popularity",
    "knn": "item kNN on pooled data, last clicks first",
    "ease": "EASE on pooled data, last clicks first",
}
WAYS = {
    "fedavg": "FedAvg, fine-tuned",
    "ditto": "Ditto",
    "pfedme": "pFedMe",
    "fedper": "FedPer",
    "fedrecon": "FedRecon",
    "fomaml": "FOMAML (Per-FedAvg)",
    "maml": "MAML",
    "anil": "ANIL",
    "meta_sgd": "Meta-SGD of the user's vector",
    "ridge": "**ridge**",
}
HOUSE = {
    "composition_pairs": "pairs of parts tried, synchronous and asynchronous",
    "composition_silent": "parts without effect beside another",
    "composition_raw_errors": "refusals without names and a way out, and errors of other kinds",
    "knobs_ignored": "knobs that change nothing and raise nothing",
    "resume_unequal": "runs that go on to other bits from a Round",
    "files_in_a_round": "files that a default round runs through",
    "lines_in_a_round": "statements that it runs",
    "statements": "statements of the package",
    "names_in_package": "entries of `fedlab/`",
    "long_lines": "lines of more than 100 characters",
    "speed_vs_0_5": "rounds a second over edition 0.5.0's, in turn, the least of five jobs",
}
DOOR = {
    "layouts_read": "layouts of other people's data that are read in one line",
    "read_1m_vs_columnar": "a million ratings, over polars' own read and numbering",
    "read_1m_memory_vs_columns": "memory that this takes, over that of the columns read",
    "read_10m_peak_mb": "peak memory of a process that reads ten million",
    "fuzz_files": "files that were spoiled at random",
    "fuzz_tracebacks": "of them end in neither data nor an error that says why",
    "wheel_mb": "the wheel",
    "import_over_torch": "seconds that `import fedlab` takes over those of `import torch`, in turn",
    "pythons_tried": "versions of Python on which the wheel was installed and trained with",
}
TRUST = {
    "fault_runs": "runs with clients that send what they should not",
    "fault_crashes": "of them end in an error",
    "fault_nonfinite": "end with a model that is not finite",
    "fault_accepted": "bad updates that were taken",
    "fault_honest_refused": "honest updates that were refused beside them",
    "fault_honest_refused_671": "updates of all 671 MovieLens users, honest, that were refused",
    "fault_wrong_books": "rounds whose books do not say what came",
    "kills": "kills at random moments, with all kinds of state",
    "kills_bit_equal": "of them resumed to the bits of the run that was not killed",
    "rounds_lost_most": "the most that a kill lost",
    "checkpoint_cost": "rounds a second that checkpoints cost",
    "run_mutations": "changes of run folders",
    "run_mutations_silent": "of them not noticed, or a folder that does not open",
    "settings_fuzz": "made-up settings files and pasted settings",
    "settings_fuzz_tracebacks": "of them end in a traceback",
    "message_fuzz": "made-up messages of a browser",
    "message_fuzz_tracebacks": "of them end in a traceback",
    "secagg_attempts": "attacks of a lying server on a secure sum",
    "secagg_opened": "of them open a single vector",
    "secagg_dropout_runs": "secure sums with clients that drop out",
    "secagg_dropout_wrong": "of them neither exact nor aborted",
    "secagg_active_server_s_50x100k": "server's time, 50 clients of 100,000 numbers",
    "ledger_cases": "cases of the ledger, worked out by hand",
    "ledger_cases_wrong": "of them wrong",
    "rounds_at_budget_2": "rounds that a budget of 2 allows (z = 1, q = 0.05, delta 1e-4)",
    "audit_runs": "honest private runs audited with canaries",
    "audit_above_claim": "of them with a lower bound above the claim",
    "audit_faults": "planted faults in clip, noise, sampler, delivery",
    "audit_faults_found": "of them found, in one run each",
}
DATASETS = {"ml100k": "MovieLens-100K", "mlsmall": "ml-latest-small"}
TIMED = DATASETS | {"shop": "a shop"}
SPEED = {
    "stacked_vs_loop_100": "MLP, 100 clients, against a loop over clients",
    "compiled_vs_loop_100": "the same, compiled",
    "module_vs_loop_100": "the same as an `nn.Module` of your own",
    "mf_vs_dense_10k": "matrix factorisation, 10,000 items, against a loop with dense tables",
    "mf_vs_dense_50k": "the same, 50,000 items",
    "mf_vs_rows_10k": "10,000 items, against a loop over touched rows only",
    "lesson2_vs_loop_100": "lesson 2, 100 users, against a loop with dense tables",
}
CORES = {
    "fused_vs_0_5_lesson2_20": "lesson 2, 20 users, over edition 0.5.0",
    "fused_vs_0_5_lesson2_100": "lesson 2, 100 users, over edition 0.5.0",
    "fused_vs_0_5_lesson2_671": "lesson 2, all 671 users, over edition 0.5.0",
    "fused_vs_0_5_mlp": "the perceptron, 100 clients, over edition 0.5.0",
    "fused_vs_0_5_10k_items": "matrix factorisation, 10,000 items, over edition 0.5.0",
    "fused_vs_0_5_50k_items": "the same, 50,000 items",
    "two_cores": "two cores over one",
    "fused_over_floor": "lesson 2, all 671 users, over the floor below",
    "fused_over_floor_lesson2_100": "the same, 100 users",
    "fused_over_floor_10000_1000": "10,000 items, 1,000 clients, over its floor",
    "fused_over_floor_mlp_100": "the perceptron, 100 clients, over its floor",
    "sweep_two_cores": "a sweep of 16 runs on two processes, over one by one on one thread",
    "sweep_over_threads": "the same, over one by one on two threads each",
    "same_bits_on_any_cores": "the same bits on 1, 2 and 3 threads (1 for yes)",
    "per_client_1000_over_100": "time for each client, 1,000 clients a round against 100",
    "million_items_vs_10k": "a round over a million items against 10,000",
    "full_ranks_speedup": "full ranking of 671 users over 9,066 films, over edition 0.7.0",
    "ials_over_implicit_100k": "iALS, a round of everybody against a sweep of `implicit`, ML-100K",
    "ials_over_implicit_1m": "the same at the size of ML-1M",
}
COST = {
    "mf_50k_over_10k": "time of a round at 5 times the items",
    "per_client_1000_vs_100": "time for each client, 1,000 clients a round against 100",
    "million_vs_10k_users": "time of a round of 1,000 clients, from a million users on disk "
    "against 10,000",
    "million_users_peak_mb": "peak memory of the process, from a million users",
    "round_s_671": "a round of all 671 users of lesson 2",
    "peak_mb_671": "peak memory of the process, the same",
    "knob_delay_s": "worst delay of the first compiled round after a turned knob",
}
PEERS = ("fedlab", "loop", "student's loop", "Flower", "pfl", "fedjax")
LIVE = {
    "lab_key_to_visible_ms": "from a key on a slider to the new value in use, on the screen, "
    "JupyterLab",
    "voila_key_to_visible_ms": "the same, Voilà",
    "stop_ms": "Stop, beyond the round under way, the longest",
    "redraws_per_s": "redraws while training",
    "blank_frames": "frames with an empty chart",
    "start_during_run_all_s": "click on Start to a round, beside a cell that runs",
    "start_during_run_all_ok": "the same, within a second",
    "redraw_kernel_ms": "kernel time of a redraw",
    "live_vs_headless": "rounds per second, over those without a view",
}
JOBS = {
    "mlp_100": "MLP 64-64-1, 100 of 100 clients",
    "mlp_20": "MLP 64-64-1, 20 of 100 clients",
    "mf10k_20": "matrix factorisation, 10,000 items, 20 of 100 clients",
    "mf50k_20": "the same, 50,000 items",
}
ARRAYS = {
    "perceptron_100": "MLP 64-64-1, 100 clients",
    "perceptron_1000": "the same, 1,000 clients",
    "private_mf10k_100": "private users, 10,000 items, 100 clients",
    "private_mf10k_1000": "the same, 1,000 clients",
    "private_mf50k_100": "private users, 50,000 items, 100 clients",
    "private_mf50k_1000": "the same, 1,000 clients",
    "lesson2_20": "lesson 2, 20 of 671 users",
    "lesson2_100": "the same, 100 users",
    "lesson2_671": "the same, all users",
}
BY_HAND = ("fedlab", "hand loop", "vmap(grad)")
JAX = ("JAX", "JAX 0.4")
FORMS = ("vmap", "vmap hand", "scan", "scan hand", "flat", "lanes")
STAGES = (
    "draw examples",
    "cut into batches",
    "find the rows",
    "look up, loss",
    "predict",
    "gradients",
    "update",
    "aggregate",
    "norms",
    "rest",
    "round",
)


def measured(name: str) -> dict:
    """The measured figures of one results file; none when it does not exist."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["measured"] if path.exists() else {}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def links() -> dict[str, str]:
    """A button for each place that opens the first lesson in a browser."""
    path = ADDRESS.removeprefix("https://github.com/")
    buttons = {
        "Codespaces": ("github.com/codespaces/badge.svg", f"codespaces.new/{path}"),
        "Binder": (
            "mybinder.org/badge_logo.svg",
            f"mybinder.org/v2/gh/{path}/main?urlpath=lab/tree/{FIRST}",
        ),
        "Colab": (
            "colab.research.google.com/assets/colab-badge.svg",
            f"colab.research.google.com/github/{path}/blob/main/{FIRST}",
        ),
    }
    return {
        place: f"[![Open in {place}](https://{badge})](https://{target})"
        for place, (badge, target) in buttons.items()
    }


def ways() -> str:
    """The buttons, and that they lead nowhere as long as the repository has no address."""
    told = "In Colab, run [this cell](docs/start.md#in-a-browser-with-nothing-installed) first."
    if "/OWNER/" in ADDRESS:
        told += (
            " The repository has no public address yet: the buttons work once `OWNER` in "
            "`pyproject.toml` is who publishes it."
        )
    return f"{' '.join(links().values())}\n\n{told}"


def places() -> str:
    """Where to run without installing, what happens there, and Colab's first cell."""
    what = {
        "Codespaces": "`.devcontainer/` makes `.venv` in some minutes and opens the first lesson; "
        "choose the kernel `.venv`. `make lab` and `make app` work in its terminal.",
        "Binder": "`binder/` installs this checkout with its pinned versions and opens the first "
        "lesson in JupyterLab, in `notebooks/`; the first start after a change builds for long.",
        "Colab": "Put the cell below on top of a lesson and run it first. It replaces Colab's "
        "versions of torch and others by the pinned ones; Colab may ask for a new start of the "
        "runtime, and the cell is then run again.",
    }
    rows = [(links()[place], text) for place, text in what.items()]
    return (
        f"{table(('', 'what happens'), rows)}\n\nNone of the three was tried: that needs a public "
        "repository. repo2docker was seen to read `binder/` and to write a Dockerfile from it.\n\n"
        "Colab's first cell, which does nothing elsewhere, as a test sees:\n\n"
        f"```python\n{COLAB.format(address=ADDRESS)}```"
    )


def quality() -> str:
    """Held-out ranking on both datasets."""
    held = measured("quality")

    def cell(data: str, name: str, metric: str) -> str:
        row = held.get(f"{data}_{name}_{metric}")
        return f"{row['value']:.3f}" if row else "-"

    seeds, metrics = (
        held["mlsmall_fedavg_hr10"]["seeds"],
        ("hr10", "ndcg10", "full_hr10", "full_ndcg10"),
    )
    parts = [
        f"Leave-one-out by time, clean negatives, ties against us, fit on train, mean of {seeds} "
        "seeds:"
    ]
    for data, title in DATASETS.items():
        head = (title, "HR@10", "NDCG@10", "HR@10, full ranking", "NDCG@10, full ranking")
        parts.append(
            table(
                head,
                (
                    [label, *(cell(data, name, m) for m in metrics)]
                    for name, label in QUALITY.items()
                ),
            )
        )
    soon = {name: held[f"{data}_within_an_hour"]["value"] for data, name in DATASETS.items()}
    shares = ", ".join(f"{share:.0%} on {name}" for name, share in soon.items())
    parts.append(
        "How much of the test came within an hour of the same user's last train rating: "
        f"{shares}. What 'last clicks first' gains over 'all clicks alike' rests on such sessions."
    )
    return "\n\n".join(parts)


def best() -> str:
    """What `fit_best` gives on ML-100K with no settings, beside the baselines."""
    held = measured("quality")
    rows = [
        (title, f"{row['value']:.4f}", f"{row['seeds']}", row["note"])
        for name, title in BEST.items()
        if (row := held.get(f"ml100k_{name}_ndcg10"))
    ]
    soon = held["ml100k_within_an_hour"]["value"]
    head = ("MovieLens-100K", "NDCG@10, full ranking", "seeds", "settings, and how sure")
    return (
        f"{table(head, rows)}\n\n{soon:.0%} of the test came within an hour of the user's last "
        "train rating: what recency gains rests on that."
    )


def leak() -> str:
    """Published recommenders with their leak, and with it closed, on every set measured."""
    held = measured("leak")

    def cell(name: str) -> str:
        return f"{held[name]['value']:.3f}" if name in held else "-"

    def few(name: str, usual: int) -> str:
        count = held[name]["seeds"]
        return "" if count == usual else f" ({count} seed{'s' * (count > 1)})"

    ending = "popularity_hr10"
    parts = []
    for prefix in sorted(name.removesuffix(ending) for name in held if name.endswith(ending)):
        seeds = held[f"{prefix}popularity_hr10"]["seeds"]
        head = (
            f"{prefix.strip('_') or 'MovieLens-100K'}, {seeds} seed{'s' * (seeds > 1)}",
            *("the paper, HR@10", "published way, HR@10", "NDCG@10", "clean, HR@10", "NDCG@10"),
        )
        rows = [
            [
                title + few(f"{prefix}{name}_clean_hr10", seeds),
                "-" if prefix else PAPERS.get(name, "-"),
                *(cell(f"{prefix}{name}_{way}_{m}") for way in LEAKS for m in ("hr10", "ndcg10")),
            ]
            for name, title in PUBLISHED.items()
            if f"{prefix}{name}_clean_hr10" in held
        ]
        simple = [cell(f"{prefix}popularity_{m}") for m in ("hr10", "ndcg10")]
        alone = cell(f"{prefix}negatives_alone_hr10")
        rows.append(["popularity", "-", *simple, *simple])
        nothing = "**nothing but which items were never a negative**"
        rows.append([nothing, "-", alone, "-", "0.100", "-"])
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def language() -> str:
    """Hidden films by what is known of them, and what texts add to ratings."""
    held = measured("quality")

    def gained(name: str) -> str:
        key = "gain" if name == "familiar" else f"{name}_gain"
        if (row := held.get(f"ml100k_cold_{key}_ndcg10")) is None:
            return ""
        return f"{row['value']:+.3f}, {row['note'].split(';')[0].removeprefix('paired by fold, ')}"

    rows = [
        (
            label,
            *(f"{held[f'ml100k_cold_{name}_{m}']['value']:.3f}" for m in ("auc", "ndcg10")),
            gained(name),
        )
        for name, label in COLD.items()
    ]
    gain, ratio = (
        held["mlsmall_hybrid_minus_id_ndcg10"],
        measured("language")["cached_vs_encode_round"],
    )
    return "\n\n".join(
        [
            "Each fifth of MovieLens-100K's films in turn hidden from the federation, ranked among "
            f"themselves, mean of {held['ml100k_cold_text_auc']['seeds']} folds. Gains are in "
            "NDCG@10 over the text, genres and year, which were tuned on the same warm films:",
            table(("the server knows of a film", "AUC", "NDCG@10", "gain"), rows),
            "On ml-latest-small, half of what texts say added to rows of ratings gains "
            f"{gain['value']:+.3f} NDCG@10 ({gain['note']}). A round with vectors looked up is "
            f"{ratio['value']:.0f} times as fast as one in which each client encodes its texts.",
        ]
    )


def catalogues() -> str:
    """Platforms that share no item: alone and together."""
    held = measured("catalogues")
    columns = [(share, films) for share in ("all", "tenth") for films in ("warm", "cold")]
    rows = [
        [text, *(f"{held[f'{share}_{films}_{way}']['value']:.3f}" for share, films in columns)]
        for way, text in CATALOGUES.items()
    ]
    gains = [held[f"{share}_{films}_gain"] for share, films in columns]
    better = [row["note"].rpartition("better in ")[2] for row in gains]
    last = [f"{row['value']:+.3f} ({wins})" for row, wins in zip(gains, better, strict=True)]
    head = ("stars off", "warm films", "cold films", "warm, a tenth of the users", "cold, the same")
    seeds = gains[0]["seeds"]
    return (
        "Eight platforms divide the films of ml-latest-small by genre; whoever is on several is "
        f"another user on each. Mean of {seeds} seeds; the last line is paired:\n\n"
        + table(head, [*rows, ["what sharing gains", *last]])
    )


def tuning() -> str:
    """What ten shops gain by fine-tuning, and what it takes to send."""
    held = measured("language")
    rows = (
        (
            label,
            f"{held[f'tuned_{name}_ndcg10']['value']:.3f}",
            held[f"tuned_{name}_ndcg10"]["note"],
        )
        for name, label in TUNED.items()
    )
    gain, sent = held["lora_gain_share"], held["lora_bytes_share"]
    return "\n\n".join(
        [
            "Ten shops fine-tune MiniLM on 'title (year)' alone; ml-latest-small, films rated 25 "
            f"times or more, mean of {gain['seeds']} seeds:",
            table(("what is trained and sent", "NDCG@10", ""), rows),
            f"LoRA sends {sent['value']:.1%} of the bytes of full fine-tuning ({sent['note']}) and "
            f"keeps {gain['value']:.2f} of its gain ({gain['note']}).",
        ]
    )


def sequences() -> str:
    """What histories say of the next item, on every set that was measured."""
    held = measured("quality")
    sets = {key: n for key, n in TIMED.items() if f"{key}_sequence_ids_ndcg10" in held}
    heads = [f"{n}, {metric}" for n in sets.values() for metric in ("HR@10", "NDCG@10")]

    def line(way: str) -> list[str]:
        keys = [f"{key}_sequence_{way}_{metric}" for key in sets for metric in ("hr10", "ndcg10")]
        return [f"{held[key]['value']:.3f}" if key in held else "-" for key in keys]

    rows = [(label, *line(way)) for way, label in SEQUENCES.items() if set(line(way)) != {"-"}]
    seeds = ", ".join(
        f"{n}: {held[f'{key}_sequence_ids_ndcg10']['seeds']}" for key, n in sets.items()
    )
    less = held["sasrec_federated_minus_pooled"]
    gains = [(n, held.get(f"{key}_sequence_text_and_ids_minus_ids")) for key, n in sets.items()]
    told = ", ".join(f"{gain['value']:+.3f} on {n}" for n, gain in gains if gain)
    return "\n\n".join(
        [
            "SASRec over the last 20 items, trained by sampled softmax among five platforms, each "
            "with a fifth of the users; leave-one-out with 99 negatives as above, the best round "
            f"on validation. Seeds: {seeds}.",
            table(("what it knows of an item", *heads), rows),
            "NDCG@10 of the platforms less that of the same model on pooled data: "
            f"{less['value']:+.3f} (goal: at least {less['goal']}; {less['note']}). Text beside "
            f"rows gains {told}.",
        ]
    )


def known() -> str:
    """Errors of ratings of users whom the federation knows."""
    held = measured("quality")

    def line(way: str, key: str) -> tuple[str, ...]:
        rows = [held[f"ml100k_{cut}_{key}"] for cut in ("u1", "random")]
        return way, *(f"{row['value']:.3f}" for row in rows), goal(rows[0])

    always = [
        held[f"ml100k_{cut}_rmse"]["note"].split(": ")[1].split(",")[0] for cut in ("u1", "random")
    ]
    rows = [
        ("a federation of all users, vectors solved by ridge regression", "rmse"),
        ("means of users and films, shrunk", "biases_rmse"),
    ]
    lines = [*(line(*row) for row in rows), ("always the mean", *always, "")]
    return table(("RMSE in stars", "u1", "a random tenth", "goal of u1"), lines)


def newcomers() -> str:
    """Errors of users whom the federation does not know, and what meta-learning takes."""
    held, meta = measured("quality"), measured("meta")
    rows = [
        (
            f"after {k} ratings",
            f"{(row := held[f'ml100k_newuser_rmse_k{k}'])['value']:.3f}",
            row["note"].split("counting ")[1].split(",")[0],
            f"{row['note'].rpartition('better ')[2]} of {row['seeds']}",
            goal(row),
        )
        for k in (3, 5, 10, 20)
    ]

    def told(name: str, digits: int) -> str:
        return f"{meta[name]['value']:.{digits}f}" if name in meta else ""

    ways = [
        (
            label,
            *(
                told(key, digits)
                for task in ("ratings", "clicks")
                for key, digits in ((f"{task}_{name}", 3), (f"rounds_fedavg_over_{name}_{task}", 2))
            ),
        )
        for name, label in WAYS.items()
    ]
    second, many = meta["second_vs_first_order_time"], meta["adapt_1000_vs_loop"]
    return "\n\n".join(
        [
            "A fifth of MovieLens-100K's users are new; 20 random ratings of each arrive, all "
            "others judge. RMSE in stars, the users' vectors solved by ridge regression from films "
            "that were learned for it, beside counting (means of users and films, shrunk); mean of "
            "5 folds of users:",
            table(("", "RMSE", "counting", "better", "goal"), rows),
            "Who starts from films that know nothing, and has ten ratings of a newcomer, or ten "
            "clicks: the error after 60 rounds, and FedAvg's rounds to its least error over a "
            "way's own (0 in a fold where that never gets there; mean of "
            f"{meta['ratings_fedavg']['seeds']} folds):",
            table(("", "ratings, RMSE", "rounds", "clicks, cross-entropy", "rounds"), ways),
            f"A second-order round takes {second['value']:.2f} times a first-order one; a thousand "
            f"newcomers adapt {many['value']:.0f} times faster at once than one by one.",
        ]
    )


def privacy() -> str:
    """What a budget leaves."""
    held = measured("privacy")
    sums = measured("reliability")["secagg_active_server_s_50x100k"]

    def cell(name: str) -> str:
        row = held.get(f"hr10_{name}")
        return f"{row['value']:.3f}" if row else ""

    def beside(budget: str) -> tuple[str, str]:
        names = (f"{way}_{budget}_hr10" for way in ("private_ials", "dpals"))
        return tuple(f"{held[name]['value']:.3f}" for name in names)

    head = ("epsilon", "counts and texts", "counts, pairs and texts", "goal", "iALS", "DPALS")
    rows = [
        (
            f"{budget}",
            cell(f"counts_eps{budget}"),
            cell(f"pairs_eps{budget}"),
            goal(held[f"ml100k_dp_eps{budget}_hr10"]) if budget < 20 else "",
            *beside(f"eps{budget}"),
        )
        for budget in (20, 8, 2, 1)
    ]
    rows.append(("no noise", cell("counts_eps0"), cell("pairs_eps0"), "", *beside("plain")))
    slow = ", ".join(
        f"{held[f'{name}_over_plain_round']['value']:.2f} times {label}"
        for name, label in (
            ("central", "with noise at the server"),
            ("adaptive", "with a clip that follows a quantile"),
        )
    )
    return "\n\n".join(
        [
            "HR@10 under user-level differential privacy, delta 1e-4, every user of MovieLens-100K "
            f"in each sum, protocol as above, mean of {held['ml100k_dp_eps8_hr10']['seeds']} "
            "seeds:",
            table(head, rows),
            "The settings of counts, pairs and texts were chosen on MovieLens-100K's own "
            "validation part, without privacy. iALS with its sums clipped and noised, and DPALS "
            "(Chien et al. 2021), read no texts. Each has one setting for all budgets, chosen on "
            "other people, whose data is public (MovieLens latest-small), for the mean over the "
            "budgets; without noise, other settings reach more. Of these people only the "
            "well-rated films count, a choice that was made after two earlier settings had been "
            "scored here.",
            f"Texts and one's own history alone, which release nothing, reach {cell('own')}; "
            f"popularity without noise {cell('popularity')}; DP-FedAvg at epsilon 8 "
            f"{cell('fedavg_eps8')}. A round of 100 clients takes {slow}.",
            "Which films a client's user rated, read from one plain upload: precision "
            f"{held['rowleak_plain_precision']['value']:.2f}, recall "
            f"{held['rowleak_plain_recall']['value']:.2f}; under the masks of a secure sum, AUC "
            f"{held['rowleak_masked_auc']['value']:.2f}. Such a sum takes the server "
            f"{sums['value']:.2f} s ({sums['note']}, the server may lie).",
            "One client in a hundred that pushes a film's bias shows it to "
            f"{held['aimed_mean_er10']['value']:.0%} of the users under a mean, to "
            f"{held['aimed_normbound_er10']['value']:.0%} under a norm bound, and to "
            f"{held['aimed_rowbound_er10']['value']:.1%} under a row bound. Deltas of rank one in "
            f"four bits take {held['rank1_int4_bytes_ratio']['value']:.0f} times fewer bytes up, "
            f"at a loss of {max(0.0, held['rank1_int4_ndcg_loss']['value']):.1%} of NDCG@10.",
        ]
    )


def attacks() -> str:
    """A film pushed by a few clients under each rule; who is told apart; words read."""
    held = measured("privacy")

    def cell(attack: str, rule: str) -> str:
        return " / ".join(f"{held[f'{attack}_{rule}_{of}10']['value']:.3f}" for of in ("er", "hr"))

    rules = {
        "mean": "mean",
        "normbound": "norm bound",
        "trimmed": "trimmed mean",
        "median": "median",
        "krum": "Krum, half of them",
        "rowbound": "row bound",
    }
    rows = [("no attack, mean", *[cell("clean", "mean")] * 4)]
    rows += [
        (label, *(cell(attack, rule) for attack in ("boosted", "aimed", "aimed5", "flipped")))
        for rule, label in rules.items()
    ]
    noises = {"plain": "no noise", "z0.3": "z = 0.3", "z1": "z = 1", "z3": "z = 3"}
    told = [
        (
            label,
            "none" if name == "plain" else f"{held[f'members_{name}_epsilon']['value']:.1f}",
            *(f"{held[f'members_{name}_{of}']['value']:.3f}" for of in ("auc", "tpr")),
        )
        for name, label in noises.items()
    ]
    words = ", ".join(f"{held[f'words_of_{n}_recall']['value']:.0%} of {n}" for n in (1, 4, 16))
    right = min(held[f"words_of_{n}_precision"]["value"] for n in (1, 4))
    return "\n\n".join(
        [
            table(("ER@10 / HR@10", "boosted, 1%", "aimed, 1%", "aimed, 5%", "flipped, 10%"), rows),
            table(
                (
                    "members told apart by lesson 9's score",
                    "epsilon",
                    "AUC",
                    "found at 5% mistaken",
                ),
                told,
            ),
            f"Words read from the sum over some clients' deltas of one layer of MiniLM: {words} "
            f"clients' words; of one and of four, {right:.0%} of those read are right.",
        ]
    )


def codes() -> str:
    """Bytes and quality of each code."""
    held = measured("privacy")
    labels = {
        "int8": "8 bits",
        "int4": "4 bits",
        "int2": "2 bits",
        "sign": "signs",
        "top10": "largest tenth",
        "random10": "random tenth",
        "rank1": "rank 1",
        "rank1_int4": "rank 1 in 4 bits",
    }

    def share(name: str) -> str:
        return f"{held[name]['value']:.1%}"

    return table(
        ("code", "times fewer bytes up", "NDCG@10 lost", "without feedback"),
        (
            (
                label,
                f"{held[f'{name}_bytes_ratio']['value']:.1f}",
                share(f"{name}_ndcg_loss"),
                share(f"{name}_ndcg_loss_forgotten"),
            )
            for name, label in labels.items()
        ),
    )


def goal(row: dict) -> str:
    """What a figure was to reach."""
    if row["goal"] is None:
        return ""
    return f"{'at least' if row['higher_is_better'] else 'at most'} {row['goal']:g}"


def speed() -> str:
    """How many times faster than loops."""
    held = measured("speed")
    return table(
        ("the engine, one CPU thread, fp32", "times faster", "goal"),
        ((label, f"{held[name]['value']:.1f}", goal(held[name])) for name, label in SPEED.items()),
    )


def amount(row: dict) -> str:
    """A figure with its unit, as people write it."""
    return f"{row['value']:.3g} {row['unit'].replace('ratio', 'times')}"


def cost() -> str:
    """What grows and what does not."""
    held = measured("speed")
    return table(
        ("", "measured", "goal"),
        ((label, amount(held[n]), goal(held[n])) for n, label in COST.items()),
    )


def listed(results: str, labels: dict[str, str]) -> str:
    """What was measured of some names, with goals and notes."""
    held = measured(results)
    rows = (
        (text, amount(held[name]), goal(held[name]), held[name]["note"])
        for name, text in labels.items()
        if name in held
    )
    return table(("", "measured", "goal", ""), rows)


def cores() -> str:
    """What compiled clients bring."""
    return listed("speed", CORES)


def live() -> str:
    """How the workbench answers."""
    held = measured("workbench")
    return table(
        ("", "measured", "goal", ""),
        ((label, amount(held[n]), goal(held[n]), held[n]["note"]) for n, label in LIVE.items()),
    )


def aggregation() -> str:
    """What each way to aggregate adds to a round."""
    rows = measured("aggregation")
    return table(
        ("a round of 100 clients, over the round of the mean", "times", "goal"),
        (
            (name.removesuffix("_over_mean").replace("_", " "), f"{row['value']:.2f}", goal(row))
            for name, row in rows.items()
            if name != "mean_round_s"
        ),
    )


def asynchronous() -> str:
    """Simulated time to the target."""
    return table(
        ("", "measured", "goal", ""),
        (
            (name.replace("_", " "), amount(row), goal(row), row["note"])
            for name, row in measured("asynchronous").items()
        ),
    )


def peers() -> str:
    """Every peer on every job, and the ratios."""
    held, parts = measured("peers"), []
    for key, job in JOBS.items():
        rows = []
        for name in PEERS:
            found = f"{key}_{label(name)}"
            if f"{found}_seconds" in held:
                value = {
                    what: held[f"{found}_{what}"]["value"]
                    for what in ("seconds", "first", "mb", "loss")
                }
                rows.append(
                    (
                        name,
                        f"{value['seconds'] * 1e3:.0f}",
                        f"{value['first']:.1f}",
                        f"{value['mb']:.0f}",
                        f"{value['loss']:.3f}",
                    )
                )
        head = (job, "a round, ms", "start to first round, s", "memory, MB", "loss at the end")
        parts.append(table(head, rows))
    ratios = (
        ("vs_flower", "Flower's simulation"),
        ("vs_pfl", "pfl-research"),
        ("vs_fedjax", "fedjax"),
    )
    rows = [
        (f"times faster than {peer}", f"{held[name]['value']:.1f}", goal(held[name]))
        for name, peer in ratios
        if name in held
    ]
    if "memory_vs_flower" in held:
        rows.append(
            (
                "memory of our processes over Flower's",
                f"{held['memory_vs_flower']['value']:.2f}",
                goal(held["memory_vs_flower"]),
            )
        )
    return "\n\n".join([table(("MLP, 100 of 100 clients", "measured", "goal"), rows), *parts])


def arrays() -> str:
    """Our default engine beside JAX on whole arrays and PyTorch by hand, on every job."""
    held = measured("peers")

    def ms(key: str, name: str) -> str:
        row = held.get(f"{key}_{label(name)}_seconds")
        return f"{row['value'] * 1e3:.1f}" if row else ""

    def best(key: str) -> str:
        row = held.get(f"{key}_vs_jax_best")
        return row["note"].split(",")[0] if row else ""

    def times(key: str, name: str) -> str:
        row = held.get(f"{key}_{name}")
        return f"{row['value']:.2f}" if row else ""

    ratios = (
        (
            job,
            *(ms(key, name) for name in ("fedlab", best(key), "hand loop", "vmap(grad)")),
            *(times(key, name) for name in ("vs_jax_best", "vs_hand_loop")),
            best(key),
        )
        for key, job in ARRAYS.items()
    )
    head = (
        "milliseconds a round, one thread",
        "fedlab",
        "fastest JAX",
        "torch by hand",
        "vmap(grad)",
        "JAX over fedlab, at least 1.5",
        "by hand over fedlab",
        "which JAX",
    )
    forms = (
        (f"{title} {form}", *(ms(key, f"{title} {form}") for key in ARRAYS))
        for title in JAX
        for form in FORMS
    )
    return "\n\n".join(
        [
            table(head, ratios),
            table(("every form of JAX, ms", *(key.replace("_", " ") for key in ARRAYS)), forms),
        ]
    )


def fastest(key: str) -> list[str]:
    """Who trained a job on whole arrays: ours, the fastest form of each JAX, and by hand."""
    held = measured("peers")
    found = []
    for title in JAX:
        ran = [n for form in FORMS if f"{key}_{label(n := f'{title} {form}')}_seconds" in held]
        found += sorted(ran, key=lambda n: held[f"{key}_{label(n)}_seconds"]["value"])[:1]
    return [BY_HAND[0], *found, *BY_HAND[1:]]


def pictures() -> None:
    """docs/peers.svg and docs/arrays.svg: a bar for every peer on some jobs."""
    bars("peers", {"mlp_100": PEERS, "mf50k_20": PEERS}, 4.8, 5)
    shown = ("perceptron_100", "private_mf10k_100", "lesson2_100")
    bars("arrays", {key: fastest(key) for key in shown}, 4.8, 1)


def bars(name: str, jobs: dict[str, Iterable[str]], width: float, least: float) -> None:
    """A picture with a panel `width` inches wide for each job: milliseconds, from `least`."""
    held, titles = measured("peers"), JOBS | ARRAYS
    with figures.panels(len(jobs), width, 2.8) as (figure, axes):
        for axis, (key, peers_of) in zip(axes, jobs.items(), strict=True):
            found = {peer: held.get(f"{key}_{label(peer)}_seconds") for peer in peers_of}
            shown = {peer: row["value"] * 1e3 for peer, row in found.items() if row}
            drawn = axis.barh(
                list(shown),
                list(shown.values()),
                color=[figures.COLOURS[0 if peer.startswith("fedlab") else 6] for peer in shown],
            )
            axis.bar_label(
                drawn,
                [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in shown.values()],
                padding=3,
                fontsize=9,
            )
            axis.set(
                title=titles[key].replace(
                    "the same", "lesson 2" if key in ARRAYS else "matrix factorisation"
                ),
                xlabel="milliseconds a round",
                xscale="log",
                xlim=(least, 10 * max(shown.values())),
            )
            # the look takes no formulas, and a logarithmic axis would write its labels as such
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
            axis.invert_yaxis()
        figure.savefig(ROOT / "docs" / f"{name}.svg", metadata={"Date": None})


def stages() -> str:
    """Milliseconds of each stage, and the floors."""
    held = measured("round")

    def cell(key: str, stage: str) -> str:
        row = held.get(f"{key}_{stage.replace(',', '').replace(' ', '_')}_ms")
        return f"{row['value']:.2f}" if row else ""

    keys = ("mlp", "mlp_compiled", "lesson2")
    floors = [
        (held[name]["note"], f"{held[name]['value']:.2f}")
        for name in held
        if name.endswith(("products_ms", "bytes_ms"))
    ]
    head = ("milliseconds", "MLP, 100 clients", "the same, compiled", "lesson 2, 100 users")
    return (
        table(head, ([stage, *(cell(k, stage) for k in keys)] for stage in STAGES))
        + "\n\n"
        + table(
            (f"the least, at a copy of {held['copy_gb_s']['value']:.1f} GB/s", "milliseconds"),
            floors,
        )
    )


def gpu() -> str:
    """Figures of a GPU, or that there was none."""
    path = RESULTS / "gpu.json"
    held = json.loads(path.read_text())
    found, sizes = held["measured"], ("100", "1000", "10000")
    if not found:
        return f"{held['remark']}."

    def rate(way: str, size: str) -> str:
        row = found.get(f"{way}_{size}_rounds_s")
        return f"{row['value']:.3g}" if row else ""

    ways = [
        (way, *(rate(way, size) for size in sizes), f"{found[f'{way}_1000_mb']['value']:.0f}")
        for way in ("loop", "fused", "eager", "compiled", "captured", "module", "bf16")
        if f"{way}_1000_mb" in found
    ]
    people = [name.removesuffix("_vs_cores") for name in found if name.endswith("_vs_cores")]
    rounds = [
        (
            found[f"{name}_vs_cores"]["note"].split(", against")[0],
            *(f"{found[f'{name}_{where}_rounds_s']['value']:.3g}" for where in ("cuda", "cpu")),
            amount(found[f"{name}_vs_cores"]),
        )
        for name in people
    ]
    others = (
        (row["note"].split(";")[0], amount(row), goal(row))
        for name, row in found.items()
        if not any(f"_{size}_" in name for size in sizes) and not name.startswith(tuple(people))
    )
    about = ("rounds a second, people", "on the GPU", "on all cores", "GPU over cores")
    head = ("MLP 64-64-1, rounds a second", *(f"{size} clients" for size in sizes), "MB at 1000")
    last = table((held["remark"], "measured", "goal"), others)
    return "\n\n".join([table(about, rounds), table(head, ways), last])


def architecture() -> str:
    """What the house is made of, and whether its parts go together."""
    found = measured("architecture")
    rows = (
        (text, amount(found[name]), goal(found[name]))
        for name, text in HOUSE.items()
        if name in found
    )
    return table(("", "measured", "goal"), rows)


def door() -> str:
    """What it costs to read other people's data, and to install and import the package."""
    return listed("data", DOOR)


def trust() -> str:
    """What was tried to break the package, and what came of it."""
    found = measured("reliability")

    def told(row: dict) -> str:
        whole = float(row["value"]).is_integer()
        return f"{row['value']:,.0f}" if whole else amount(row)

    rows = ((text, told(found[n]), goal(found[n])) for n, text in TRUST.items() if n in found)
    return table(("", "measured", "goal"), rows)


def faults() -> str:
    """What was put in front of the gate."""
    found = measured("reliability")
    rows = (
        (name.removeprefix("fault: "), row["note"], f"{row['value']:g}")
        for name, row in found.items()
        if name.startswith("fault: ")
    )
    return table(("what three in ten clients send", "tried", "taken"), rows)


def slow_links() -> str:
    """Rounds through NVFLARE over slow links."""
    found = measured("nodes")
    rows = []
    for count in (2, 4, 8):
        seconds, bytes_ = found[f"link_round_s_{count}"], found[f"link_mb_{count}"]
        told = seconds["note"].split(" in ")[0]
        load = seconds["note"].rpartition("load ")[2]
        many = f"{seconds['value']:.1f} ({told})", f"{bytes_['value']:.1f}", bytes_["note"]
        rows.append((str(count), *many, load))
    return table(("nodes", "s a round", "MB on the links", "of which, MB", "load"), rows)


def on_paper() -> str:
    """What rounds of many clients would take, computed from what was measured of few."""
    found = measured("nodes")
    names = ("mb_down_a_node", "mb_up_a_client", "node_s_a_client", "server_mb_a_site")
    down, up, work, site = (found[name]["value"] for name in names)
    base = found["server_mb"]["value"] - 8 * site
    rows = []
    for clients in (10**3, 10**4, 10**5, 10**6):
        cohort, nodes = clients // 100, max(1, clients // 1000)
        there, back = down * nodes, up * cohort
        own = (8 * (down + up * cohort / nodes)) / 10
        rows.append(
            (
                f"{clients:,}",
                f"{cohort:,}",
                f"{nodes:,}",
                f"{there:,.0f}",
                f"{back:,.0f}",
                f"{(there + back) * 8 / 1000:,.1f}",
                f"{own:.1f}",
                f"{work * cohort / nodes:.2f}",
                f"{(base + site * nodes + there + back) / 1000:,.1f}",
            )
        )
    head = ("clients", "a round", "nodes", "MB down", "MB up", "s at the server, 1 Gbit/s")
    last = ("s at a node, 10 Mbit/s", "s of its work", "GB of memory at the server")
    return table((*head, *last), rows)


def filled(text: str) -> str:
    """A document with every table, and what a citation names, made anew."""
    cited = {"version": PROJECT["version"], "repository-code": ADDRESS}
    text = re.sub(
        r'^(version|repository-code): ".*"$', lambda m: f'{m[1]}: "{cited[m[1]]}"', text, flags=re.M
    )
    return MARKS.sub(lambda m: f"{m[1]}{globals()[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = ROOT / document
        old = path.read_text()
        new = filled(old)
        if sys.argv[1:] == ["--check"]:
            if new != old:
                raise SystemExit(
                    f"{document} is not what the results say; run python benchmarks/tables.py"
                )
        else:
            path.write_text(new)
    if not sys.argv[1:]:
        pictures()
