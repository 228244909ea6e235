"""The command line: lessons and workbench in a browser, and the workbench without a notebook.

    fedlab lab my-lessons
    fedlab app
    fedlab data "clicks.csv?user=customer&item=sku"
    fedlab run --set "data=clicks.csv?user=customer&item=sku" --set rounds=20
    fedlab run settings.json --set local_lr=0.5 --folder runs
    fedlab sweep --over local_lr=0.5,1,2 --over server_lr=10,50 --metric ndcg@10
    fedlab best clicks.csv --budget "10 min" --to model
    fedlab nodes clicks.csv --into nodes --count 3
    fedlab node nodes/node0 --socket line
    fedlab run settings.json --nodes line --count 3
    fedlab resume "run 1" --set rounds=80
    fedlab compare runs
    fedlab export "run 1" --to model

`python -m fedlab` is the same. Settings and files are those of the workbench. `--parts FILE.py`
runs a file that registers parts of your own: they are choices like all others.
"""

import argparse
import os
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fedlab import namesake  # noqa: F401 - where another project's face hides our own
from fedlab.core import ParameterError, Settings, parsed, read_settings_file, require
from fedlab.course.lessons import WORKBENCH, Copied, copy_lessons, open_lab, open_workbench
from fedlab.data import DataError, described, read_asked
from fedlab.nodes import Sockets, cut_into, gathered, read_node, serve
from fedlab.privacy import spends
from fedlab.workbench import (
    PRESETS,
    Experiment,
    Job,
    Run,
    Runs,
    Sweep,
    Trials,
    better,
    fit_best,
    follow,
    metrics,
    over_nodes,
    shown,
    stream,
    table,
    usual_knobs,
    values,
)
from fedlab.workbench.export import export_model, free_place
from fedlab.workbench.runner import Live

SOCKET = "PATH|127.0.0.1:PORT"


def main(given: Sequence[str] | None = None) -> int:
    """Run the given command; return 0 when it went well, 2 after an error, 130 when interrupted.

    That is 1 where a run could not be saved. An error is printed as one line.
    """
    try:
        _register(given)
        words = _words().parse_args(given)
        return int(words.do(words))
    except (ParameterError, DataError, OSError) as error:
        print(shown(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; what is done is kept.", file=sys.stderr)
        return 130


def _own() -> argparse.ArgumentParser:
    """The parser of `--parts`, which is read first because its files add to the other choices."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument(
        "--parts",
        action="append",
        default=[],
        metavar="FILE.py",
        help="Python that registers parts of your own",
    )
    return own


def _register(given: Sequence[str] | None) -> None:
    for path in _own().parse_known_args(given)[0].parts:
        require(Path(path).is_file(), "--parts", path, "no such file; name a Python file")
        runpy.run_path(path, run_name=Path(path).stem)


def _words() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="fedlab", description="Learn federated recommendation; train and compare federations."
    )
    parts = whole.add_subparsers(required=True)
    _browser_words(parts)
    for name, do, about in (
        ("run", _run, "train one run"),
        ("sweep", _sweep, "train a run for every combination"),
    ):
        part = parts.add_parser(name, help=about, parents=[_own()])
        part.add_argument(
            "settings",
            nargs="?",
            help="JSON as the workbench shows it; what one of your own leaves out is the preset's",
        )
        part.add_argument("--preset", choices=PRESETS, help="start from these; the first without")
        part.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="change a setting, such as data=clicks.csv or rounds=20",
        )
        part.add_argument("--folder", default="runs", help="where runs are kept (%(default)s)")
        part.set_defaults(do=do)
    part.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="NAME=A,B,C",
        help="a setting and its values",
    )
    part.add_argument(
        "--metric",
        default="ndcg@10",
        choices=["loss", *better()],
        help="what to compare (%(default)s)",
    )
    part.add_argument(
        "--random", type=int, default=0, metavar="N", help="N random draws instead of the grid"
    )
    part.add_argument(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="runs that train side by side, each on a core; 0 for all cores (%(default)s)",
    )
    _over_words(parts.choices["run"])
    for name, do, about in (
        ("resume", _resume, "go on with a run"),
        ("export", _export, "write the best model of a run, with a card"),
    ):
        part = parts.add_parser(name, help=about, parents=[_own()])
        part.add_argument("run", help="its id, or its name where no other has it")
        part.add_argument("--folder", default="runs", help="where runs are kept (%(default)s)")
        part.set_defaults(do=do)
    part.add_argument("--to", required=True, metavar="FOLDER", help="a new folder for the model")
    part.add_argument("--people", action="store_true", help="write rows of single people, too")
    parts.choices["resume"].add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="turn a knob, say rounds"
    )
    part = parts.add_parser(
        "compare", help="the best of each run, and what differs", parents=[_own()]
    )
    part.add_argument("folder", nargs="?", default="runs", help="where runs are kept (%(default)s)")
    part.set_defaults(do=_compare)
    _best_words(parts)
    _node_words(parts)
    part = parts.add_parser("data", help="what is read of a file or a folder", parents=[_own()])
    part.add_argument(
        "path", help="a file of interactions, or a folder with one; 'FILE?user=buyer&item=code'"
    )
    part.set_defaults(do=_data)
    return whole


def _node_words(parts: Any) -> None:
    """The commands of a federation over several processes."""
    part = parts.add_parser("nodes", help="cut a data set into the folders of nodes")
    part.add_argument("data", help="as in `fedlab run --set data=...`")
    part.add_argument("--into", required=True, metavar="FOLDER", help="where the folders are made")
    part.add_argument("--count", type=int, default=2, help="how many nodes (%(default)s)")
    part.add_argument("--task", default="clicks", help="clicks or ratings (%(default)s)")
    part.set_defaults(do=_nodes)
    part = parts.add_parser("node", help="be a node, until it is stopped", parents=[_own()])
    part.add_argument("folder", help="the node's data, and where it keeps what it learns")
    part.add_argument("--socket", required=True, metavar=SOCKET, help="where the coordinator is")
    part.set_defaults(do=_node)


def _over_words(part: argparse.ArgumentParser) -> None:
    """What one run takes: its name, and who trains it."""
    part.add_argument("--name", default="", help="what the run is called")
    part.add_argument("--nodes", metavar=SOCKET, help="train over nodes that connect there")
    part.add_argument("--count", type=int, default=1, help="nodes to wait for (%(default)s)")
    part.add_argument(
        "--deadline",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for nodes, at first and in each round (%(default)s)",
    )
    part.add_argument(
        "--quorum",
        type=float,
        default=0.5,
        help="the least share of a cohort that a round counts with (%(default)s)",
    )
    part.add_argument(
        "--resume",
        action="store_true",
        help="over nodes: go on with the last run of the folder, or that of --name",
    )


def _best_words(parts: Any) -> None:
    """The command that finds the best model for some data."""
    part = parts.add_parser("best", help="tune, train and measure the best model for some data")
    part.add_argument(
        "data",
        help="a file or folder of interactions, as 'FILE?user=buyer&item=code'; or a name of data",
    )
    part.add_argument(
        "--objective",
        default="sampled",
        help="the ranking that chooses, sampled or full; both are reported (%(default)s)",
    )
    part.add_argument(
        "--budget",
        default="24",
        help="a number of federated trials, or a time such as '10 min' (%(default)s)",
    )
    part.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    part.add_argument(
        "--folder", default="runs", help="where runs are kept, to go on from (%(default)s)"
    )
    part.add_argument(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="trials that train side by side, each on a core; 0 for all cores (%(default)s)",
    )
    part.add_argument(
        "--to", default="best-model", metavar="FOLDER", help="a new folder for it (%(default)s)"
    )
    part.set_defaults(do=_best)


def _nodes(words: argparse.Namespace) -> bool:
    settings = Settings(data=words.data, task=words.task)
    made = Experiment(settings)
    held = made.candidates if words.task == "clicks" else None
    for place in cut_into(words.into, made.split, words.count, words.task, held):
        print(f"{place}: fedlab node {place} --socket SOCKET")
    return False


def _node(words: argparse.Namespace) -> bool:
    """Answer a coordinator, in a session of its own: one for which the system shares out a core."""
    node = read_node(words.folder)
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it leads a session already
            os.setsid()
    print(f"{node.name}: {len(node.data)} clients", file=sys.stderr, flush=True)
    serve(node.name, node.answer, words.socket, say=lambda line: print(line, file=sys.stderr))
    return False


def _browser_words(parts: Any) -> None:
    """The commands that open something in a browser."""
    for name, do, about in (
        ("lab", _lab, "copy the lessons into a folder and open them in JupyterLab"),
        ("app", _app, "serve the workbench alone, without a notebook around it"),
    ):
        part = parts.add_parser(name, help=about)
        part.add_argument(
            "folder", nargs="?", default="fedlab-lessons", help="where they are (%(default)s)"
        )
        part.add_argument("--port", type=int, help="of the address; a free one without")
        part.add_argument(
            "--no-browser", action="store_true", help="serve, and open no browser here"
        )
        part.set_defaults(do=do)
    parts.choices["lab"].add_argument(
        "--no-open", action="store_true", help="only copy the lessons; start nothing"
    )


def _lab(words: argparse.Namespace) -> bool:
    found = copy_lessons(words.folder)
    _tell(found, words.folder)
    if not words.no_open:
        open_lab(words.folder, _served(words))
    return False


def _app(words: argparse.Namespace) -> bool:
    _tell(copy_lessons(words.folder, [WORKBENCH]), words.folder)
    open_workbench(words.folder, _served(words))
    return False


def _tell(found: Copied, folder: str) -> None:
    """Say what was copied, what was not, and what to do about that."""
    if found.new:
        print(f"Copied to {folder}: {len(found.new)} of the lessons' files.")
    if found.kept:
        print(
            f"Changed, and left as they are: {', '.join(found.kept)}. To have one as it comes, "
            "rename yours and give this command again, or name another folder."
        )
    if not (found.new or found.kept):
        print(f"All files in {folder} are as they come.")


def _served(words: argparse.Namespace) -> list[str]:
    """The arguments of a server in the browser."""
    port = [] if words.port is None else [f"--port={words.port}"]
    return [*port, *["--no-browser"] * words.no_browser]


def _settings(words: argparse.Namespace) -> tuple[Settings, list[str]]:
    """The settings, and the names of those that were asked for and do not come from a preset."""
    base, asked = PRESETS[words.preset or next(iter(PRESETS))], []
    if words.settings:
        own, base = (_read(words.settings, under) for under in (Settings(), base))
        fix = f"{words.settings} says all that it would; leave one of the two out"
        require(not words.preset or own != base, "--preset", words.preset, fix)
        asked = list(own)
    changes = dict(_pair(text) for text in words.set)
    settings = base.replace(**{name: parsed(name, value) for name, value in changes.items()})
    return settings, [*asked, *changes]


def _read(path: str, base: Settings) -> Settings:
    """What a file of settings makes of others; who names a file of data is told what to do."""
    try:
        return read_settings_file(path, base)
    except ParameterError as error:
        if Path(path).suffix.lower() == ".json":
            raise
        raise ParameterError(f"{error}; for a file of data, say {_set_data(path)}") from error


def _set_data(text: str) -> str:
    """How data are named on the command line."""
    return f'--set "data={text}"'


def _unread(settings: Settings) -> dict[str, str]:
    return Experiment(settings).unread()


def _check_asked(base: Settings, asked: Sequence[str], trials: Sequence[Settings]) -> None:
    """Raise `ParameterError` for a setting that was asked for and that no run reads."""
    for name in asked:
        read = name not in base or any(name in trial for trial in trials)
        require(
            read,
            name,
            base[name],
            _unread(base).get(name, "no run reads it") + "; leave it as it was",
        )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ParameterError(f"{text!r}: write NAME=VALUE")
    return name, value


def _kept(words: argparse.Namespace) -> Runs:
    runs = Runs(words.folder, better(), usual_knobs)
    if runs.trouble:
        print(runs.trouble, file=sys.stderr)
    return runs


def _run(words: argparse.Namespace) -> bool:
    base, asked = _settings(words)
    settings = base.without(_unread(base))
    _check_asked(base, asked, [settings])
    require(bool(words.nodes) or not words.resume, "--resume", True, "it goes with --nodes")
    if words.nodes:
        return _run_over(words, settings)
    runs = _kept(words)
    unsaved = _one(runs, _job(stream, runs, settings, words.name), settings.rounds)
    for note in Experiment(settings).split.train.notes:
        print(shown(note), file=sys.stderr)
    return unsaved


def _run_over(words: argparse.Namespace, settings: Settings) -> bool:
    """Train one run over nodes, or go on with one."""
    private = spends(Experiment(settings).parts)
    with Sockets(words.nodes) as line:
        roster = gathered(line, words.deadline, words.count, told=not private)
        fix = "two nodes have this name; give each one of its own"
        require(not line.twice, "nodes", sorted(line.twice), fix)
        live = over_nodes(line, roster, seconds=words.deadline, quorum=words.quorum)
        runs = _kept(words)
        if not words.resume:
            job = _job(live, runs, settings, words.name)
            return _one(runs, job, settings.rounds)
        known = [run.id for run in runs.listed() if words.name in ("", run.name, run.id)]
        require(bool(known), "--resume", words.name, "there is no such run in the folder")
        run, start = runs.resume(known[-1])
        done = start.number if start else 0
        print(f"{run.name} goes on after round {done}.", file=sys.stderr)
        job = follow(live, lambda: settings, run, runs, start)
        return _one(runs, job, settings.rounds - done)


def _one(runs: Runs, job: Job, rounds: int) -> bool:
    """Train one run, and print its line; whether some of it could not be saved."""
    _drive(job, rounds, runs, lambda: _words_of(_last(runs)))
    run = _last(runs)
    _table([run])
    if why := run.rounds[-1].ended:
        print(f"{run.name} ended early, after round {run.rounds[-1].number}: {why}.")
    if lost := run.records[-1].get("rejected"):
        ((why, times),) = Counter(lost.values()).most_common(1)
        print(f"In the last round {len(lost)} clients did not count ({times}: {why}).")
    return bool(runs.unsaved)


def _last(runs: Runs) -> Run:
    """The run that trains here, or did so last."""
    return next(run for run in reversed(runs.listed()) if run.rounds)


def _named(words: argparse.Namespace) -> tuple[Runs, str]:
    """The runs of a folder, and the id of the one that was named."""
    folder = Path(words.folder)
    fix = "there is no such folder; name the one that runs are kept in"
    require(folder.is_dir(), "folder", words.folder, fix)
    runs = _kept(words)
    named = [run.id for run in runs.listed() if words.run in (run.id, run.name)]
    known = ", ".join(run.id for run in runs.listed()) or "none"
    require(bool(named), "run", words.run, f"there is no such run; there are {known}")
    require(len(named) == 1, "run", words.run, f"several have this name; choose of {named}")
    return runs, named[0]


def _export(words: argparse.Namespace) -> bool:
    runs, id_ = _named(words)
    (done, then), run = runs.at_best(id_), runs.get(id_)
    if said := run.better(then.records[-1], runs.metrics):
        print(said, file=sys.stderr)
    experiment = Experiment(Settings(**then.last_settings))
    place = export_model(experiment, done, words.to, records=then.records, people=words.people)
    print(
        f"The model of {run.name} after round {done.number}: {place / 'card.md'} says what it is."
    )
    return False


def _resume(words: argparse.Namespace) -> bool:
    runs, id_ = _named(words)
    known = runs.trouble
    run, start = runs.resume(id_)
    if runs.trouble != known:
        print(runs.trouble, file=sys.stderr)
    done = start.number if start else 0
    try:
        before = Settings(**run.last_settings)
        turned = dict(_pair(text) for text in words.set)
        asked = before.replace(**{name: parsed(name, value) for name, value in turned.items()})
        settings = asked.without(_unread(asked))
        _check_asked(asked, list(turned), [settings])
        fix = f"{run.name} has done {done} rounds; choose more, such as --set rounds={2 * done}"
        require(settings.rounds > done, "rounds", settings.rounds, fix)
    except ParameterError:
        runs.end(run, "stopped")
        raise
    print(f"{run.name} goes on after round {done}, to {settings.rounds}.", file=sys.stderr)
    job = follow(stream, lambda: settings, run, runs, start)
    return _one(runs, job, settings.rounds - done)


def _sweep(words: argparse.Namespace) -> bool:
    (base, asked), pairs = _settings(words), dict(_pair(text) for text in words.over)
    what = Sweep(
        {name: values(name, text) for name, text in pairs.items()},
        words.metric,
        better().get(words.metric, "min"),
        words.random,
    )
    trials = what.trials(base, _unread)
    _check_asked(base, [name for name in asked if name not in pairs], trials)
    runs = _kept(words)
    before = len(runs.listed())
    named = [(what.name(trial), trial) for trial in trials]
    sweep = Trials(stream, named, runs, runs.begin, _said, words.parts)
    _drive(
        sweep.job(words.processes),
        sum(trial.rounds for trial in trials),
        runs,
        lambda: f"{len(runs.listed()) - before} of {len(trials)} runs begun",
    )
    _table(runs.listed()[before:])
    return bool(runs.unsaved)


def _best(words: argparse.Namespace) -> bool:
    free_place(words.to)  # or hours later there would be nowhere to put it
    best = fit_best(
        words.data,
        objective=words.objective,
        budget=words.budget,
        seed=words.seed,
        folder=words.folder,
        processes=words.processes,
        say=lambda line: print(shown(line), file=sys.stderr, flush=True),
    )
    print("\n".join(map(shown, best.report.splitlines())))
    place = best.save(words.to)
    print(f"The model is in {place}: {place / 'card.md'} says what it is. Its run is {best.run}.")
    return False


def _said(why: str) -> None:
    tqdm.write(shown(why[:1].upper() + why[1:]), file=sys.stderr)


def _job(live: Live, runs: Runs, settings: Settings, name: str) -> Job:
    """The job of one run, which is not begun before its first round is asked for."""
    yield from follow(live, lambda: settings, runs.begin(settings, name), runs)


def _drive(job: Job, total: int, runs: Runs, words: Callable[[], str]) -> None:
    """Take all steps of a job, and say at once where something could not be saved."""
    with tqdm(total=total, unit="round", dynamic_ncols=True) as bar:
        said = runs.trouble
        try:
            for _ in job:
                if runs.trouble not in ("", said):
                    said = runs.trouble
                    bar.write(said, file=sys.stderr)
                bar.set_postfix_str(words(), refresh=False)
                bar.update()
        finally:
            job.close()
    if runs.trouble not in ("", said):
        print(runs.trouble, file=sys.stderr)


def _words_of(run: Run) -> str:
    return ", ".join(
        f"{name} {run.records[-1][name]:.4g}"
        for name in metrics([run])
        if run.records[-1].get(name) is not None
    )


def _compare(words: argparse.Namespace) -> bool:
    if not Path(words.folder).is_dir():
        raise ParameterError(
            f"folder={words.folder!r}: there is no such folder; name the one that runs are kept in"
        )
    _table(_kept(words).listed())
    return False


def _data(words: argparse.Namespace) -> bool:
    """Print what is read of a file: no run is begun."""
    found = read_asked(words.path)
    for line in described(found).splitlines():
        print(shown(line))
    unseen = found.item_count - int(torch.bincount(found.users).max())
    few = f" --set against={unseen}" * (0 < unseen < Settings().against)
    print(shown(f"Train on it: fedlab run {_set_data(words.path)}{few}"))
    print(shown(f"Or have the best model sought: fedlab best {words.path!r} --to FOLDER"))
    return False


def _table(runs: list[Run]) -> None:
    """Print a line for each run: its best values with their rounds, then what settings differ."""
    modes = {"loss": "min", **better()}
    lines = table(runs, {}, {name: modes.get(name, "max") for name in metrics(runs)})
    found = [name for name in metrics(runs) if any(row["best"][name] for row in lines)]
    names = dict.fromkeys(name for row in lines for name in row["differs"])
    rows = [["run", "state", *(f"best {n}" for n in found), *names]]
    for row in lines:
        best = [row["best"][name] for name in found]
        rows.append(
            [
                row["name"],
                row["state"] + (f": {row['error']}" if row["error"] else ""),
                *(f"{b[0]:.4f} ({b[1]})" if b else "" for b in best),
                *(row["differs"].get(n, "") for n in names),
            ]
        )
    rows = [[shown(cell) for cell in cells] for cells in rows]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        line = (text.ljust(width) for text, width in zip(cells, wide, strict=True))
        print("  ".join(line).rstrip())


if __name__ == "__main__":
    sys.exit(main())
