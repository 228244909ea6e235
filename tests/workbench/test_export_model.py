"""A model in files: what plain torch and peft make of it, and whether its card tells the truth."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedlab.core import ParameterError, Settings
from fedlab.data import DATA
from fedlab.evaluation import at_k, dot, ials, popularity, ranking
from fedlab.models import adapted, loaded
from fedlab.models.text import MINILM, SASRec, encoder, item_texts, last_films
from fedlab.privacy import proven_for_examples
from fedlab.workbench import Experiment, Runs, record, stream
from fedlab.workbench.export import (
    data_fingerprint,
    export_model,
    in_words,
    peft_layout,
    zipped_model,
)
from fedlab.workbench.export.card import card, described_data, metrics_beside, privacy

# run beside the files, by an interpreter that has not read the package
ALONE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
people, found = load_file("people.safetensors"), []
lines = "\\n".join(json.load(open("card.json"))["load"]["lines"])
for user in people.get("user", people.get("user_features", torch.zeros(3, 0)))[:3]:
    space = {"user": user}
    exec(lines, space)
    found.append(space["scores"])
save_file({"scores": torch.stack(found)}, "scores.safetensors")
assert not [name for name in sys.modules if name.partition(".")[0] == "fedlab"]
"""


@pytest.fixture(scope="module")
def trained(tiny_settings):
    """A function: settings beside the tiny ones -> (its experiment, its last Round, records)."""
    kept = {}

    def run(**turned):
        clicks = turned.get("task") != "ratings"  # only these are ranked against others
        tiny = {n: v for n, v in tiny_settings.items() if clicks or n != "against"}
        settings = Settings(**tiny | turned)
        if settings not in kept:
            records, done = [], None
            for done in stream(lambda: settings):
                records.append(record(done, settings, settings))
            kept[settings] = Experiment(settings), done, records
        return kept[settings]

    return run


@pytest.mark.parametrize(
    "turned",
    [
        {},
        {"model": "interaction", "dim": 4},
        {"model": "hybrid", "dim": 4},
        {"model": "content", "dim": 4},
        {"model": "text content", "dim": 4},
        {"model": "user factors", "dim": 4},
        {"model": "linear", "task": "ratings", "local_lr": 0.01, "rounds": 3},
    ],
    ids=lambda turned: turned.get("model", turned.get("local", "matrix factorisation")),
)
def test_plain_torch_scores_as_the_package_does(trained, tmp_path, turned):
    """The lines on the card, run without the package, give the scores of the package."""
    experiment, done, records = trained(**turned)
    folder = export_model(experiment, done, tmp_path / "m", records=records, people=True)
    words = [sys.executable, "-c", ALONE]
    if turned.get("model") == "user factors":  # one vector for all, which is in the weights
        words[2] = ALONE.replace('people.get("user"', 'people.get("nobody"')
    subprocess.run(words, cwd=folder, check=True, env={"PATH": ""})
    theirs = load_file(folder / "scores.safetensors")["scores"]
    users = torch.arange(3)[:, None].expand(-1, experiment.split.train.item_count)
    items = torch.arange(users.shape[1]).expand_as(users)
    ours = experiment.score(done)(users, items)
    assert ours.std() > 1e-4
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_plain_torch_adds_up_the_rows_of_what_was_clicked(trained, tmp_path):
    experiment, done, _ = trained(local="ease", model="item-item", cohort=24, least_clicks=4)
    folder = export_model(experiment, done, tmp_path / "m", baselines=[])
    about = json.loads((folder / "card.json").read_text())
    kept = load_file(folder / "model.safetensors")["kept"]
    train, ours = experiment.split.train, experiment.score(done).rows(torch.arange(24))
    assert 0 < len(kept) < train.item_count
    for user in range(24):
        own = torch.isin(kept, train.items[train.users == user]).nonzero()[:, 0]
        lines = "\n".join(about["load"]["lines"]).replace('"model', f'"{folder}/model')
        space = {"clicked": own}
        exec(lines, space)
        torch.testing.assert_close(space["scores"], ours[user, kept])
    assert "`clicked` are the rows" in about["load"]["in words"]


def test_plain_torch_solves_the_vector_of_who_clicked(trained, tmp_path):
    experiment, done, _ = trained(local="implicit", cohort=24, recency=1.0)
    folder = export_model(experiment, done, tmp_path / "m", baselines=[])
    about = json.loads((folder / "card.json").read_text())
    train, score = experiment.split.train, experiment.score(done)
    for user in range(24):
        mine = (train.users == user).nonzero()[:, 0]
        own = train.items[mine[train.times[mine].argsort(stable=True)]]
        lines = "\n".join(about["load"]["lines"]).replace('"model', f'"{folder}/model')
        space = {"clicked": own}
        exec(lines, space)
        every = torch.arange(train.item_count)
        ours = score(torch.full_like(every, user), every)
        torch.testing.assert_close(space["scores"], ours, atol=1e-5, rtol=1e-4)
    assert "the oldest first" in about["load"]["in words"]


def test_what_belongs_to_people_is_left_out_unless_asked_for(trained, tmp_path):
    for turned, name in (({}, "user"), ({"model": "content", "dim": 4}, "user_features")):
        experiment, done, _ = trained(**turned)
        for people in (False, True):
            folder = export_model(experiment, done, tmp_path / f"{name}{people}", people=people)
            assert (folder / "people.safetensors").exists() == people
            assert name not in load_file(folder / "model.safetensors")
            about = json.loads((folder / "card.json").read_text())["model"]
            assert (name in about["left out"], name in about["people"]) == (not people, people)
            rows = json.loads((folder / "rows.json").read_text())
            assert ("user" in rows) == people
            assert rows["item"] == list(experiment.split.train.catalogue.item_ids)
    assert "people=True" in (tmp_path / "userFalse" / "card.md").read_text()


def test_the_conditions_of_the_data_go_with_the_model(trained, tmp_path):
    text = (DATA / "README.md").read_bytes()
    for data, name in (({}, "own"), ({"data": "ml-latest-small", "rounds": 1}, "movielens")):
        experiment, done, _ = trained(**data)
        folder = export_model(experiment, done, tmp_path / name, baselines=[])
        card = (folder / "card.md").read_text()
        theirs = folder / "data-licence.md"
        assert theirs.exists() == ("data-licence.md, beside this card" in card) == bool(data)
    assert theirs.read_bytes() == text
    assert "no commercial use without permission" in card
    assert "acknowledged in publications" in card
    assert "citation: F. Maxwell Harper and Joseph A. Konstan" in card


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_peft_loads_the_adapters_onto_the_same_backbone(trained, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    experiment, done, _ = trained(model="lora", cohort=4, rank=2, local_lr=1.0)
    folder = export_model(experiment, done, tmp_path / "m")
    reader = encoder(MINILM)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (2, 128.0, 12)
    base = AutoModel.from_pretrained(reader.model.config._name_or_path)
    plain = AutoModel.from_pretrained(reader.model.config._name_or_path).eval()
    adapted = PeftModel.from_pretrained(base, str(folder)).eval()
    texts = item_texts(experiment.split.train.catalogue, "{title} ({year})")[:4]
    given = reader.tokenizer(texts, padding=True, truncation=True, max_length=12)
    given = {name: torch.tensor(column) for name, column in given.items()}
    net, item = loaded(experiment.model.module, done.params), torch.arange(4)
    with torch.no_grad():
        theirs, without = (model(**given).last_hidden_state for model in (adapted, plain))
        ours, there = net.text(item)
        mask = given["attention_mask"].bool()
        assert torch.allclose(theirs[mask], ours[there], atol=1e-4)
        assert not torch.allclose(theirs[mask], without[mask], atol=1e-3)
    assert (
        'from_pretrained("sentence-transformers/all-MiniLM-L6-v2")'
        in (folder / "card.md").read_text()
    )
    heads = load_file(folder / "model.safetensors")  # and the rest is beside it
    assert torch.equal(heads["head.out.weight"], net.head.out.weight)
    assert torch.equal(heads["user.weight"], net.user.weight)
    assert (
        "all that was not trained"
        in json.loads((folder / "card.json").read_text())["model"]["left out"]
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_peft_loads_adapters_of_a_module_of_your_own(tmp_path, seed):
    """Without a pretrained model around them, and with frozen A: the scores are the same."""
    from peft import PeftModel
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    ours = adapted(net, ["0", "2"], rank=1, alpha=3.0, freeze_a=seed == 1, seed=seed)
    params = {n: torch.randn_like(w)[None] for n, w in ours.named_parameters() if w.requires_grad}
    weights, config = peft_layout(ours, params)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    theirs, x = PeftModel.from_pretrained(net, str(tmp_path)), torch.randn(6, 5)
    assert torch.allclose(theirs(x), loaded(ours, params)(x), atol=1e-6)
    assert not torch.allclose(theirs(x), ours(x), atol=1e-3)


def test_a_module_of_its_own_takes_the_weights_back(trained, tmp_path):
    experiment, done, _ = trained(model="sasrec", dim=4, history=5, cohort=4)
    weights = load_file(export_model(experiment, done, tmp_path / "m") / "model.safetensors")
    train = experiment.split.train
    net = SASRec(train.item_count, torch.randn(train.item_count, 40), dim=4, length=5)
    net.load_state_dict(weights)
    items = torch.arange(train.item_count)
    history = last_films(train, 5)[:1].expand(len(items), -1)
    ours = experiment.score(done)(torch.zeros_like(items), items)
    assert torch.allclose(net.eval()(history, items), ours, atol=1e-5)


def test_the_metrics_on_the_card_are_worked_out_and_stand_beside_baselines(trained):
    experiment, done, _ = trained()
    table = metrics_beside(experiment, done, ["chance", "popularity", "ials", "ease"])["table"]
    against, train = experiment.candidates, experiment.split.train
    assert table["this model"] == pytest.approx(done.metrics, abs=1e-6)
    assert table["popularity"] == pytest.approx(ranking(popularity(train), against), abs=1e-6)
    assert table["ials"] == pytest.approx(ranking(dot(*ials(train)), against), abs=1e-6)
    assert 0 < table["ease"]["hr@10"] <= 1
    # a random rank among 21: hit by 10 in 21, over 480 draws of it
    assert abs(table["chance"]["hr@10"] - 10 / 21) < 4 * (10 / 21 * 11 / 21 / 480) ** 0.5
    gains = sum(float(at_k(torch.tensor([rank]))["ndcg@10"]) for rank in range(1, 22)) / 21
    assert abs(table["chance"]["ndcg@10"] - gains) < 4 * (0.34**2 / 480) ** 0.5
    with pytest.raises(ParameterError, match="did you mean popularity"):
        metrics_beside(experiment, done, ["popularty"])


def test_ratings_stand_beside_means(trained):
    experiment, done, _ = trained(model="linear", task="ratings", local_lr=0.01, rounds=3)
    table = metrics_beside(experiment, done)["table"]
    held = experiment.split.validation
    assert table["mean rating"]["rmse"] == pytest.approx(
        float(held.values.square().mean().sqrt()) * experiment.split.std, abs=1e-5
    )
    assert set(table) == {"this model", "mean rating", "mean of each user", "mean of each item"}


NOISE = {"uplink": "clip + gaussian noise", "noise": 1.0, "delta": 0.01}


@pytest.mark.parametrize(
    ("turned", "proven", "relation", "words"),
    [
        ({}, False, None, "no noise was added"),
        (NOISE | {"sampling": "poisson"}, True, "add-remove", "by a chance of its own"),
        (NOISE, True, "replace-one", "cohorts of a fixed size"),
        (NOISE | {"teaching_seed": 3}, False, "replace-one", "teaching_seed=3"),
        ({"uplink": "clip + local noise", "delta": 0.01}, True, "replace-one", "adds itself"),
    ],
)
def test_epsilon_stands_with_delta_sampler_and_relation_or_nothing_is_proven(
    trained, turned, proven, relation, words
):
    experiment, done, records = trained(**turned)
    found = privacy(experiment, done)
    text = in_words(card(experiment, done, records, weights={}, baselines=["popularity"]))
    assert found["proven"] == proven
    assert ("Nothing is proven" in text) != proven
    assert words in text
    assert found.get("relation") == relation
    if relation:
        assert found["epsilon"] == pytest.approx(done.metrics["epsilon"], abs=1e-5)
        assert found["delta"] == 0.01
        assert f"epsilon: {found['epsilon']:.4g}, at delta 0.01" in text
        assert "no epsilon here counts them" in text  # metrics are releases, too


def test_what_dp_sgd_proves_is_of_single_ratings(trained):
    experiment, done, _ = trained(
        local="dp-sgd", task="ratings", model="linear", partition="by activity", platforms=4,
        cohort=4, batch_size=8, example_noise=2.0,
    )  # fmt: skip
    found = privacy(experiment, done)
    assert found["proven"]
    assert found["epsilon"] == pytest.approx(
        max(proven_for_examples(done.state["ledger"], 1e-5).values()), abs=1e-5
    )
    assert "one rating" in found["neighbours differ in"]


def test_what_an_upload_gives_away_is_measured(trained):
    experiment, done, _ = trained()
    read = card(experiment, done, weights={}, baselines=[])["attacks"]["reading uploads"]
    assert read["recall"] == 1.0  # whatever was clicked moved a bias
    assert read["precision"] > 0.9
    assert not read["hidden"]
    experiment, done, _ = trained(uplink="clip + secure sum")
    about = card(experiment, done, weights={}, baselines=[])
    assert about["attacks"]["reading uploads"]["hidden"]
    assert "sees no single upload" in in_words(about)
    for turned, why in (
        ({"model": "content", "dim": 4}, None),
        ({"local": "implicit", "cohort": 24}, "clients do implicit"),
        (
            {"model": "linear", "task": "ratings", "local_lr": 0.01, "rounds": 3},
            "these are ratings",
        ),
    ):
        experiment, done, _ = trained(**turned)
        read = card(experiment, done, weights={}, baselines=[])["attacks"]["reading uploads"]
        assert ("auc" in read) if why is None else (why in read["in words"])
    experiment, done, _ = trained(uplink="poison", liars=0.2)
    found = card(experiment, done, weights={}, baselines=[])["attacks"]
    assert found["poisoning"]["liars"] == 0.2


def test_the_card_tells_data_settings_and_cost(trained, tmp_path):
    experiment, done, records = trained()
    records = [*records[:-1], {**records[-1], "turned": {"cohort": 3}, "rejected": {"4": "late"}}]
    folder = export_model(experiment, done, tmp_path / "m", records=records)
    about = json.loads((folder / "card.json").read_text())
    assert about["training"]["updates rejected"] == 1
    assert about["training"]["turned on the way"] == {"2": {"cohort": 3}}
    assert about["training"]["megabytes up"] == round(sum(r["bytes_up"] for r in records) / 1e6, 3)
    assert (about["data"]["users"], about["data"]["items"], about["data"]["clients"]) == (
        24,
        40,
        24,
    )
    assert about["data"]["train"] == 24 * 10
    assert about["data"]["fingerprint"].startswith("sha256:")
    again = (folder / "settings.json").read_text()
    assert json.loads(again) == about["settings"]
    text = (folder / "card.md").read_text()
    for said in ("## What it proves", "round 2: cohort 3", about["data"]["fingerprint"], "licence"):
        assert said in text
    other, _, _ = trained(model="interaction", dim=4)
    assert described_data(other) == about["data"]


def test_a_round_of_other_data_is_not_exported(trained, tiny_settings, tmp_path):
    """The same films and people, of whom one rated less."""
    experiment, done, _ = trained()
    data = tmp_path / "data"
    data.mkdir()
    for name in ("movies.csv", "ratings.csv"):
        lines = Path(tiny_settings["data"], name).read_text().splitlines()
        (data / name).write_text("\n".join(lines[:-1] if name == "ratings.csv" else lines))
    settings = experiment.settings.replace(data=str(data))
    with pytest.raises(ParameterError, match=r"done='a Round of other data'.*give the data of its"):
        export_model(Experiment(settings), done, tmp_path / "m", baselines=[])
    kept = Runs(tmp_path / "runs")
    run = kept.begin(experiment.settings)
    kept.add(run, done, experiment.settings)
    kept.end(run, "done")
    with pytest.raises(ParameterError, match="a Round of other data"):
        export_model(Experiment(settings), kept.best(run.id), tmp_path / "m", baselines=[])
    export_model(experiment, kept.best(run.id), tmp_path / "m", baselines=[])


def test_a_changed_rating_changes_the_fingerprint(trained):
    split = trained()[0].split
    values = split.test.values.clone()
    values[0] += 0.5
    other = replace(split, test=split.test.having(values=values))
    assert data_fingerprint(other) != data_fingerprint(split)


def test_a_folder_is_there_as_a_whole_or_not_at_all(trained, tmp_path):
    experiment, done, _ = trained()
    other, theirs, _ = trained(model="interaction", dim=4)
    full, place = tmp_path / "full", tmp_path / "new" / "m"
    full.mkdir()
    (full / "mine").write_text("kept")
    for call, message in (
        (lambda: export_model(experiment, done, full), "something is there already"),
        (lambda: export_model(experiment, done, full / "mine"), "something is there already"),
        (lambda: export_model(experiment, done.light(), place), "without parameters"),
        (lambda: export_model(experiment, theirs, place), "give the settings of its own run"),
        (lambda: export_model(other, done, place), "give the settings of its own run"),
        (lambda: export_model(experiment, done, place, baselines=["luck"]), "no such parameter"),
    ):
        with pytest.raises(ParameterError, match=message):
            call()
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine"]
    place.mkdir(parents=True)  # an empty one will do
    export_model(experiment, done, place, baselines=[])
    assert {p.name for p in place.parent.iterdir()} == {"m"}
    zipped = zipfile.ZipFile(BytesIO(zipped_model(experiment, done, [], baselines=[])))
    assert {f"fedlab-model/{p.name}" for p in place.iterdir()} == set(zipped.namelist())
