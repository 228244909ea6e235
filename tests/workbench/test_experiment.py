"""A whole experiment from settings, in Python and on the command line."""

import json
import math
from importlib import metadata

import pytest
import torch
from composition import folder, small_reader
from conftest import tiny

from fedlab.__main__ import main
from fedlab.core import (
    REGISTRY,
    Aggregation,
    Dataset,
    Metric,
    ParameterError,
    Partition,
    Recipe,
    Settings,
    Stage,
    described,
    knob,
    knobs,
    read_settings,
    register,
    several,
    write_settings,
)
from fedlab.data import DataError
from fedlab.workbench import PRESETS, Experiment, Runs, Workbench, better, stream

SHORT = next(iter(PRESETS.values())).replace(rounds=2, cohort=5)
CHOICES = ("partition", "model", "local", "aggregation", "schedule")
# what a choice wants beside it
WITH = {
    "implicit": {"recency": 1.0},
    "dp-sgd": {"task": "ratings", "model": "linear", "teaching_seed": 0},
    "meta": {"model": "user factors"},
    "ease": {"model": "item-item", "least_clicks": 2, "recency": 1.0},
    "item-item": {"local": "ease"},
    "fedrap": {"model": "additive items"},
    "gpfedrec": {"model": "personal perceptron"},
    "item counts": {"model": "popularity"},
    "pair counts": {"model": "genre pairs"},
    "popularity": {"local": "item counts"},
    "genre pairs": {"local": "pair counts"},
    "mean of products": {"model": "lora", "layers": 1},
    "matched": {"model": "content"},
    "lora": {"layers": 1},
    "equal": {"platforms": 4},
    "by activity": {"platforms": 4},
    "by genre": {"platforms": 4},
    "gaussian noise": {"uplink": "clip + gaussian noise", "delta": 0.01, "teaching_seed": 0},
    "local noise": {"uplink": "clip + local noise", "delta": 0.01, "teaching_seed": 0},
    "secure sum": {"uplink": "clip + secure sum"},
    "distributed gaussian": {
        "uplink": "clip + distributed gaussian",
        "delta": 0.01,
        "teaching_seed": 0,
    },
    "buffered": {"buffer": 3},
}
# ways to combine that are not one choice
TOGETHER = {
    "noise whose clip follows a quantile, Poisson": {
        "uplink": "clip + gaussian noise",
        "sampling": "poisson",
        "quantile": 0.5,
        "cohort": 24,
        "delta": 0.01,
        "budget": 50.0,
        "teaching_seed": 0,
        "noise": 0.5,
    },
    "secure sums with noise": {
        "uplink": "clip + secure sum + gaussian noise",
        "delta": 0.01,
        "teaching_seed": 0,
    },
    "codes behind an attack": {
        "uplink": "poison + error feedback",
        "liars": 0.4,
        "codec": "rank 1 in 4 bits",
        "attack": "noisy",
    },
    "codes under SCAFFOLD": {"uplink": "error feedback", "local": "scaffold"},
    "a clip in front of buffered updates": {"uplink": "clip", "schedule": "buffered", "buffer": 2},
    "meta-sgd": {"local": "meta", "model": "user factors", "adaptation": "meta-sgd"},
    "ridge on the last layer": {
        "local": "meta",
        "model": "user factors",
        "adaptation": "ridge",
        "adapts": "user",
        "task": "ratings",
    },
    "FedRecon": {"local": "meta", "model": "user factors", "adapts": "user", "learn_start": "no"},
    "models of one's own": {"personal": "fine tuned", "model": "content"},
    "sequences on platforms, the best selected": {
        "model": "sasrec",
        "history": 4,
        "partition": "equal",
        "platforms": 3,
        "aggregation": "best models",
    },
    "texts, stars and an adaptive server": {
        "model": "text content",
        "task": "ratings",
        "server_optimizer": "yogi",
    },
    "who comes and goes": {"late": 0.3, "early": 0.3, "drop_out": 0.2},
    "a deadline": {"deadline": 3.0},
    "item counts with noise": {
        "local": "item counts",
        "model": "popularity",
        "uplink": "clip + gaussian noise",
        "delta": 0.01,
        "teaching_seed": 0,
    },
}


def trained(settings):
    """The last Round, after checking that every number that was measured is one."""
    *_, last = stream(lambda: settings)
    assert last.number == settings.rounds
    assert not last.skipped
    assert last.metrics
    assert all(math.isfinite(value) for value in last.metrics.values())
    return last


def settings_of(tiny_settings, **change):
    """Tiny settings; stars are not ranked against anything."""
    left = {
        name: value
        for name, value in tiny_settings.items()
        if not (name == "against" and change.get("task") == "ratings")
    }
    return Settings(**left | change)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (*CHOICES, "stage") for name in REGISTRY[kind]]
)
def test_each_choice_trains_two_rounds(tiny_settings, kind, name, tmp_path, monkeypatch):
    if name in ("text content", "hybrid", "sasrec", "lora", "mean of products"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # texts that nobody has encoded
    own = {"uplink" if kind == "stage" else kind: name}
    found = trained(settings_of(tiny_settings, **own | WITH.get(name, {})))
    assert set(found.metrics) - {"secure_s"} <= set(better())


@pytest.mark.parametrize("name", TOGETHER)
def test_choices_work_together(tiny_settings, name):
    trained(settings_of(tiny_settings, **TOGETHER[name]))


def test_every_registered_part_is_a_choice():
    for kind in CHOICES:
        assert described()[kind].knob.options == tuple(REGISTRY[kind])
    assert described()["uplink"].knob.options == tuple(REGISTRY["stage"])
    assert several("none") == []
    for wrong in ("clip + nois", "clip+poison", "", "none + clip"):
        with pytest.raises(ParameterError, match=f"uplink='{wrong[:4]}.*': choose none, or some"):
            Settings(uplink=wrong)


@pytest.mark.parametrize("name", [name for name in PRESETS if "adapters" not in name])
def test_a_preset_trains_and_gets_better(name):
    settings = PRESETS[name].replace(rounds=6)
    assert not set(settings) & set(Experiment(settings).unread())
    rounds = list(stream(lambda: settings))
    measured = {
        metric: [r.metrics[metric] for r in rounds if metric in r.metrics]
        for metric in rounds[-1].metrics
    }
    assert set(measured) <= set(better())
    for metric, values in measured.items():
        if metric in ("staleness", "epsilon") or len(values) == 1:
            continue
        assert (values[-1] > values[0]) == (better()[metric] == "max"), metric
    assert rounds[-1].settings.rounds == 6
    if settings.schedule == "synchronous" and settings.sampling == "fixed":
        assert rounds[-1].settings.cohort == len(rounds[-1].cohort)


@pytest.mark.parametrize("name", [name for name in PRESETS if "adapters" in name])
def test_a_preset_that_takes_minutes_is_read_whole(name):
    experiment = Experiment(PRESETS[name])
    assert not set(experiment.settings) & set(experiment.unread())


def test_liars_and_codes_are_those_that_were_asked_for():
    def run(**change):
        return next(stream(lambda: SHORT.replace(cohort=100, **change)))

    plain, spoilt = run(), run(uplink="poison", liars=1.0)
    small = run(uplink="error feedback")
    # biases start at 0, and all clients send -5 times what they learned
    torch.testing.assert_close(spoilt.params["bias"], -5 * plain.params["bias"])
    assert 7 < plain.bytes_up / small.bytes_up < 8
    with pytest.raises(ParameterError, match="gaussian noise: needs updates of this very round"):
        run(schedule="buffered", uplink="clip + gaussian noise", weighting="examples")


def test_a_cohort_larger_than_the_federation_is_all_of_it():
    settings = SHORT.replace(partition="equal", platforms=3, cohort=500, rounds=1)
    (done,) = stream(lambda: settings)
    assert len(done.cohort) == done.settings.cohort == 3


def test_knobs_that_count_from_the_next_round_do():
    asked = iter([SHORT, SHORT, SHORT.replace(cohort=9), SHORT.replace(cohort=9)])
    assert [len(done.cohort) for done in stream(lambda: next(asked))] == [5, 9]
    asked = iter([SHORT, SHORT, SHORT.replace(model="content")])
    with pytest.raises(ParameterError, match="model='content': it is fixed while a run lasts"):
        list(stream(lambda: next(asked)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "/nowhere"}, "no such file or folder"),
        ({"device": "cudo"}, "device='cudo'"),
        ({"clip": 0.5}, "clip=0.5: nothing in this run reads it; clip would; leave it as it was"),
        (
            {"alpha": 0.5, "partition": "equal"},
            "alpha=0.5: nothing in this run reads it beside equal; by genre",
        ),
        (
            {"server_momentum": 0.5},
            "server_momentum=0.5: server step does not read it in this comb",
        ),
        (
            {"uplink": "gaussian noise"},
            "gaussian noise: needs a bound on the length of every update",
        ),
        ({"uplink": "clip + clip"}, "clip.: it is there twice"),
        ({"local": "meta"}, "private="),
        (
            {"personal": "fine tuned", "model": "sasrec"},
            "personal='fine tuned': experiment does not",
        ),
        ({"model": "lora", "task": "ratings"}, "task='ratings': lora learns from clicks"),
        ({"model": "sasrec", "task": "ratings"}, "task='ratings': sasrec learns from clicks"),
        (
            {"model": "sasrec", "local": "meta"},
            "local='Episodes': sasrec makes examples of its own",
        ),
    ],
)
def test_what_cannot_be_built_says_why(tiny_settings, change, message):
    asked = settings_of(tiny_settings, **change) if "data" not in change else Settings(**change)
    with pytest.raises((DataError, ParameterError), match=message):
        list(stream(lambda: asked))


def test_what_nothing_reads_is_told_with_the_reason():
    plain = Experiment(Settings()).unread()
    assert plain["clip"] == "nothing in this run reads it; clip would"
    assert plain["platforms"] == (
        "nothing in this run reads it beside one per user; equal, by activity, by genre would"
    )
    assert plain["server_momentum"] == "server step does not read it in this combination"
    assert not {"cohort", "local_lr", "negatives", "personal", "against", "deadline"} & set(plain)
    private = Experiment(Settings(uplink="clip + gaussian noise")).unread()
    assert not {"clip", "noise", "delta", "budget"} & set(private)
    assert private["weighting"] == "weighted mean does not read it in this combination"
    stars = Experiment(Settings(task="ratings", local="implicit")).unread()
    assert {"against", "negatives", "local_lr", "personal"} <= set(stars)
    assert "negatives" in Experiment(Settings(model="lora")).unread()
    # what does not go together is told by the run; until then by the parts that are named
    torn = Experiment(Settings(uplink="gaussian noise", adaptation="ridge", local="meta")).unread()
    assert "clip" in torn
    assert not {"noise", "adapts", "negatives"} & set(torn)


def test_first_weights_of_modules_follow_the_seed(tiny_settings):
    model = Experiment(settings_of(tiny_settings, model="sasrec")).model
    first, again, other = model.init(1), model.init(1), model.init(2)
    assert all(torch.equal(first[name], again[name]) for name in model.rows)
    assert not torch.equal(first["rows"], other["rows"])


def own():
    """Parts as somebody writes them in a cell."""

    @register
    class Halves(Stage):
        """Multiplies every update by a share."""

        keeps = ("clipped",)
        share: float = knob(0.5, 0.0, 1.0, "", "what is left of an update")

        def each(self, update, context):
            deltas = {
                name: rows.scaled(torch.full_like(update.weights, self.share))
                for name, rows in update.deltas.items()
            }
            return type(update)(deltas, update.weights, update.losses, update.cohort, update.steps)

    @register
    class Nothing(Aggregation):
        """Leaves the server as it is."""

        def __call__(self, updates, server):
            assert updates
            return {name: torch.zeros_like(value) for name, value in server.items()}

    @register
    class OddAndEven(Partition):
        """Platforms by the number of a user."""

        sides: int = knob(2, 1, 9, "platforms", "how many", live=False)

        def owner(self, train, seed):
            return torch.arange(train.user_count) % self.sides

    @register
    class Early(Dataset):
        """Users who click five films in a row."""

        users: int = knob(30, 5, 600, "users", "how many there are", live=False)

        def load(self):
            click = torch.arange(5 * self.users)
            return tiny(
                (click // 5).tolist(), ((click // 5 + click % 5) % 40).tolist(), item_count=40
            )

    @register
    class Spread(Metric):
        """How unlike the scores of one user are."""

        modes = {"spread": "max"}  # noqa: RUF012

        def measure(self, score, experiment):
            items = torch.arange(experiment.split.train.item_count)
            return {"spread": float(score(torch.zeros_like(items), items).std())}


@pytest.mark.usefixtures("own_parts")
def test_parts_of_your_own_are_choices_at_once(tiny_settings):
    own()
    chosen = settings_of(
        tiny_settings, uplink="halves + clip", share=0.25, partition="odd and even", sides=3
    )
    assert read_settings(write_settings(chosen), Settings()) == chosen
    done = trained(chosen)
    assert len(done.cohort) == 3
    assert done.metrics["spread"] > 0
    assert better()["spread"] == "max"
    whole = trained(
        settings_of(
            tiny_settings, partition="odd and even", sides=3, uplink="halves", share=1.0, rounds=1
        )
    )
    half = trained(
        settings_of(tiny_settings, partition="odd and even", sides=3, uplink="halves", rounds=1)
    )
    torch.testing.assert_close(half.params["bias"], whole.params["bias"] / 2)
    still = trained(settings_of(tiny_settings, aggregation="nothing"))
    assert not still.params["bias"].any()
    assert [
        len(Experiment(Settings(data="early", users=users)).federation) for users in (7, 9)
    ] == [7, 9]
    bench = Workbench(stream, chosen, metrics=better())
    shown = {each["name"]: each for each in bench.spec["knobs"]}
    assert "halves" in shown["uplink"]["choices"]
    assert "nothing" in shown["aggregation"]["choices"]
    assert "early" in shown["data"]["choices"]
    assert (shown["share"]["live"], shown["sides"]["live"]) == (True, False)
    assert (shown["users"]["low"], shown["users"]["high"]) == (5, 600)
    assert not {"share", "sides"} & set(bench.unread)
    bench.values = bench.values | {"uplink": "none"}
    assert bench.unread["share"] == "nothing in this run reads it; halves would"
    bench.close()
    with pytest.raises(ParameterError, match=r"wide.width='live': a model stays while a run lasts"):

        @register
        class Wide(Recipe):
            width: int = knob(1, 1, 9, "", "live by mistake")


OWN = '''
import torch
from fedlab.core import Metric, Stage, knob, register


@register
class Thirds(Stage):
    """A third of every update."""

    parts: int = knob(3, 1, 9, "", "into how many an update is cut")

    def each(self, update, context):
        cut = torch.full_like(update.weights, 1 / self.parts)
        deltas = {name: rows.scaled(cut) for name, rows in update.deltas.items()}
        return type(update)(deltas, update.weights, update.losses, update.cohort, update.steps)


@register
class Mean(Metric):
    """The mean of a user's scores."""

    modes = {"mean": "max"}

    def measure(self, score, experiment):
        items = torch.arange(experiment.split.train.item_count)
        return {"mean": float(score(torch.zeros_like(items), items).mean())}
'''


@pytest.mark.usefixtures("own_parts")
def test_parts_of_a_file_are_choices_of_the_command_line(tiny_settings, tmp_path, capsys):
    file, start, folder = tmp_path / "mine.py", tmp_path / "start.json", str(tmp_path / "runs")
    file.write_text(OWN)
    start.write_text(write_settings(Settings(**tiny_settings)))
    words = [str(start), "--parts", str(file), "--folder", folder]
    assert main(["run", *words, "--set", "uplink=thirds", "--set", "parts=4"]) == 0
    assert (
        main(
            [
                "sweep",
                *words,
                "--over",
                "uplink=none, thirds, thirds + clip, poison + clip",
                "--metric",
                "mean",
            ]
        )
        == 0
    )
    assert "best mean" in capsys.readouterr().out
    runs = Runs(folder).listed()
    assert [run.settings.get("uplink", "none") for run in runs] == [
        "thirds",
        "none",
        "thirds",
        "thirds + clip",
        "poison + clip",
    ]
    assert runs[0].settings == tiny_settings | {"uplink": "thirds", "parts": 4}
    assert {run.state for run in runs} == {"done"}
    assert len({run.records[-1]["mean"] for run in runs[:3]}) == 3
    assert main(["compare", folder, "--parts", str(file)]) == 0
    assert main(["run", *words[:1], "--parts", str(tmp_path / "no.py")]) == 2
    assert "no.py" in capsys.readouterr().err


def test_run_sweep_and_compare_on_the_command_line(tmp_path, capsys):
    file, folder = tmp_path / "settings.json", str(tmp_path / "runs")
    file.write_text(write_settings(Settings(rounds=3, cohort=5)))
    assert (
        main(["run", str(file), "--set", "local_lr=0.4", "--folder", folder, "--name", "mine"]) == 0
    )
    (run,) = Runs(folder).listed()
    assert (run.name, run.state, len(run.records)) == ("mine", "done", 3)
    assert run.settings == {"rounds": 3, "cohort": 5, "local_lr": 0.4}
    same = [done.loss for done in stream(lambda: Settings(rounds=3, cohort=5, local_lr=0.4))]
    assert [record["loss"] for record in run.records] == same  # the same numbers as in a notebook
    capsys.readouterr()
    assert (
        main(
            [
                "sweep",
                str(file),
                "--over",
                "local_lr=0.5,1",
                "--over",
                "weighting=equal,examples",
                "--folder",
                folder,
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "12/12" in err
    assert max(map(len, out.splitlines())) <= 80
    assert {*out.splitlines()[0].split()[1:3]} == {"local_lr", "weighting"}
    (same,) = (line for line in out.splitlines() if line.startswith("In all of them: "))
    assert "; state done" in same
    assert "popularity ndcg@10 0." in same
    assert (
        main(["sweep", str(file), "--over", "server_lr=1,50", "--random", "3", "--folder", folder])
        == 0
    )
    capsys.readouterr()
    assert main(["compare", folder]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    lines = out.split("\n\n")[0].splitlines()
    numbers = [line.split()[0] for line in lines[1 : 1 + 1 + 4 + 3]]
    assert numbers == [str(k) for k in range(1, 9)]  # of runs, as a name is long
    assert set(lines[0].split()[1:4]) == {"local_lr", "server_lr", "weighting"}
    assert "1  mine" in out.splitlines()


@pytest.mark.parametrize(
    ("started", "turned"),
    [
        ({"local_lr": 1.0}, "local_lr"),
        ({"server_lr": 5.0}, "server_lr"),
        ({"uplink": "clip", "clip": 3.0}, "clip"),
    ],
)
def test_a_knob_is_turned_back_to_its_usual_value_while_it_trains(tiny_settings, started, turned):
    now = [Settings(**tiny_settings | {"rounds": 3} | started)]
    found = []
    for done in stream(lambda: now[0]):
        found.append(done.settings[turned])
        if done.number == 2:
            now[0] = now[0].replace(**{turned: Settings()[turned]})
    assert found == [started[turned], started[turned], Settings()[turned]]
    assert found[-1] != found[0]


def test_without_a_command_there_is_help_and_the_version_is_told(capsys):
    assert main([]) == 0
    assert "fedlab" in (said := capsys.readouterr().out)
    assert all(f"    {name} " in said for name in ("run", "best", "data", "top"))
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedlab-workbench {metadata.version('fedlab-workbench')}\n"


def test_long_names_and_errors_stand_below_the_table(tiny_settings, tmp_path, capsys):
    runs = Runs(tmp_path, better())
    for lr in (0.1, 0.2):
        settings = Settings(**tiny_settings | {"local_lr": lr})
        run = runs.begin(settings, f"a name that is longer than thirty letters, for {lr}")
        runs.end(run, "failed", "no luck")
    assert main(["compare", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run  local_lr",
        "1    0.1",
        "2    0.2",
        "In all of them: state failed",
        "1  a name that is longer than thirty letters, for 0.1: no luck",
        "2  a name that is longer than thirty letters, for 0.2: no luck",
    ]


def test_what_a_preset_has_for_another_combination_is_left_out(tmp_path):
    folder = str(tmp_path)
    words = [
        "--preset",
        "private: a clip, and noise on the sum",
        "--set",
        "rounds=1",
        "--set",
        "cohort=5",
        "--folder",
        folder,
    ]
    assert main(["run", *words, "--set", "uplink=none"]) == 0
    assert main(["sweep", *words, "--set", "clip=0.7", "--over", "uplink=none,clip"]) == 0
    first, *both = Runs(folder).listed()
    assert not {"clip", "noise", "delta", "uplink"} & set(first.settings)
    assert [run.settings.get("clip") for run in both] == [None, 0.7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--set", "rouds=4"], "rouds='4': no such parameter; did you mean rounds?"),
        (["run", "--set", "rounds=x"], "rounds='x': choose a whole number"),
        (["run", "--set", "rounds"], "'rounds': write NAME=VALUE"),
        (["run", "--set", "clip=2"], "clip=2.0: nothing in this run reads it; clip would"),
        (
            ["run", "missing.json"],
            "settings='missing.json': no such file; name one, or leave it out",
        ),
        (["sweep", "--over", "local_lr=a"], "local_lr='a': choose a number"),
        (
            ["sweep", "--over", "uplink=clip + nois"],
            "uplink='clip + nois': choose none, or some of",
        ),
        (
            ["sweep", "--over", "uplink=none,clip", "--over", "clip=2,3"],
            "clip=2.0: nothing in this run reads it; clip would, in the run uplink=none, clip=2.0",
        ),
        (
            ["sweep", "--over", "seed=1,2", "--set", "noise=2"],
            "noise=2.0: nothing in this run reads",
        ),
        (["compare", "missing"], "folder='missing': there is no such folder"),
    ],
)
def test_wrong_words_are_explained_in_a_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_a_run_that_fails_is_kept_as_failed(tmp_path, capsys):
    assert main(["run", "--set", "data=/nowhere", "--folder", str(tmp_path)]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (file,) = tmp_path.glob("*/log.jsonl")
    assert json.loads(file.read_text().splitlines()[-1])["end"] == "failed"


def test_what_a_file_leaves_out_is_as_where_it_is_left_out_of_the_command(tiny_settings, tmp_path):
    """A file of one's own is over the preset, as `--set` is; one that was written is whole."""
    own, whole, runs = tmp_path / "own.json", tmp_path / "whole.json", str(tmp_path / "runs")
    tiny = {**tiny_settings, "rounds": 1}
    own.write_text(json.dumps({"fedlab": 2, "settings": tiny}))
    whole.write_text(write_settings(Settings(**tiny)))
    told = [word for name, value in tiny.items() for word in ("--set", f"{name}={value}")]
    for words in (
        [str(own)],
        told,
        [str(own), "--preset", "few clients: 8 users a round"],
        ["--preset", "few clients: 8 users a round", *told],
        [str(whole)],
    ):
        assert main(["run", *words, "--folder", runs]) == 0
    first, same, few, again, last = (run.settings for run in Runs(runs).listed())
    assert first == same == dict(next(iter(PRESETS.values())).replace(**tiny))
    assert few == again == dict(PRESETS["few clients: 8 users a round"].replace(**tiny))
    assert last == dict(Settings(**tiny))


def test_a_preset_that_a_whole_file_leaves_nothing_of_is_refused(tmp_path, capsys):
    (tmp_path / "whole.json").write_text(write_settings(Settings(rounds=1)))
    words = ["run", str(tmp_path / "whole.json"), "--preset", next(iter(PRESETS))]
    assert main([*words, "--folder", str(tmp_path / "runs")]) == 2
    assert "whole.json says all that it would; leave one of the two" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_says_all_that_it_reads_and_its_header_runs_again(tiny_settings, tmp_path):
    runs = str(tmp_path / "runs")
    told = [word for name, value in tiny_settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", *told, "--folder", runs]) == 0
    (run,) = Runs(runs).listed()
    line = (tmp_path / "runs" / run.id / "log.jsonl").read_text().splitlines()[0]
    header = json.loads(line)
    assert run.usual == header["usual"]
    assert not header["usual"].keys() & header["settings"].keys()
    said = header["settings"] | header["usual"]
    for kind in ("data", "partition", "model", "local", "uplink", "aggregation", "schedule"):
        assert said[kind] == Settings(**run.settings)[kind]
    assert (said["seed"], said["rounds"], said["cohort"]) == (0, 2, 8)
    experiment = Experiment(Settings(**run.settings))
    read = {name for part in experiment.parts for name in knobs(type(part))}
    assert said.keys() == read - experiment.unread().keys()
    assert "noise" not in said  # nothing here reads it
    (tmp_path / "again.json").write_text(line)
    assert main(["run", str(tmp_path / "again.json"), "--folder", runs]) == 0
    before, after = Runs(runs).listed()
    assert after.settings == before.settings
    assert [r["loss"] for r in after.records] == [r["loss"] for r in before.records]


def test_lora_reads_with_the_language_model_that_is_asked_for():
    asked = Settings(data=folder(), model="lora", reader=small_reader())
    made = Experiment(asked)
    shapes = {name: tuple(value.shape) for name, value in made.model.init(0).items()}
    adapters = {shape for name, shape in shapes.items() if name.endswith("query.a")}
    assert adapters == {(1, 4, 16)}  # rank 4, beside layers of width 16
    with pytest.raises(ParameterError, match=r"model='/no/such/folder': not to be had"):
        _ = Experiment(asked.replace(reader="/no/such/folder")).model


def test_a_file_of_ones_own_trains_and_short_users_are_left_out(tmp_path, capsys):
    rows = [(user, (user * 7 + k * k) % 40) for user in range(30) for k in range(6)]
    clicks = "".join(f"{user},{item}\n" for user, item in [*set(rows), (99, 1)])
    (tmp_path / "shop.csv").write_text("customer,sku\n" + clicks)
    settings = {
        "data": str(tmp_path / "shop.csv"),
        "rounds": 2,
        "cohort": 10,
        "dim": 4,
        "against": 20,
    }
    *_, done = stream(lambda: settings)
    assert done.number == 2
    assert 0 <= done.metrics["hr@10"] <= 1
    split = Experiment(Settings(**settings)).split
    assert split.train.user_count == 30
    why = "are left out, as validation and test take one each"
    assert f"1 users with fewer than 3 interactions {why}" in split.train.notes
    (tmp_path / "shop.csv").write_text("customer,sku\n" + clicks + "0,999\n1,999\n2,999\n")
    again = Experiment(Settings(**settings)).split
    assert again.train.item_count == split.train.item_count + 1  # a file that changed is read anew
    told = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", *told, "--folder", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().err
    assert all(note in said.splitlines() for note in again.train.notes)
    assert main(["run", str(tmp_path / "shop.csv"), "--folder", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert f'; for a file of data, say --set "data={tmp_path}/shop.csv"' in said


def test_what_is_read_of_a_file_is_printed(tmp_path, capsys):
    rows = "ann;tea\nann;cup\nann;pot\nbob;tea\nbob;jam\n"
    (tmp_path / "till.csv").write_text("who;what\n" + rows)
    assert main(["data", f"{tmp_path}/till.csv?user=who&item=what"]) == 0
    said = capsys.readouterr().out
    assert "5 interactions of 2 users with 4 items" in said
    assert "1 have fewer than 3; runs that rank leave them out, as validation and test" in said
    train = f'Train on it: fedlab run --set "data={tmp_path}/till.csv?user=who&item=what"'
    assert said.splitlines()[-2] == f"{train} --set against=1"
    assert "fedlab best" in said.splitlines()[-1]
    assert main(["data", f"{tmp_path}/till.csv"]) == 0
    said = capsys.readouterr().out
    assert "6 interactions of 3 users" in said  # words alone: nothing tells the header
    assert "till.csv: if 'who;what' names columns, say header=True" in said
    (tmp_path / "few.csv").write_text("user,item\nann,tea\nbob,tea\n")
    assert main(["data", f"{tmp_path}/few.csv"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "Nothing can be held out and measured: no user has 3 interactions."
    assert said[-1].endswith('few.csv" --set train_on=everything')
    assert main(["data", f"{tmp_path}/till.csv?header=True"]) == 2
    said = capsys.readouterr().err
    assert "till.csv:1: no column of users and none of items among 'who', 'what'; say" in said
    assert f"behind the file's name: '{tmp_path}/till.csv?header=True&user=...&item=...'" in said
    words = ["run", "--set", f"data={tmp_path}/till.csv?header=True"]
    assert main([*words, "--folder", str(tmp_path / "runs")]) == 2
    assert (
        f"behind the file's name: '{tmp_path}/till.csv?header=True&user=...&item=...'"
        in capsys.readouterr().err
    )
