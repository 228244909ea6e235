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
    fedlab class --address 192.168.1.7:7000
    fedlab resume "run 1" --set rounds=80
    fedlab compare runs
    fedlab export "run 1" --to model
    fedlab top best-model USER
    torchrun --nproc-per-node 4 -m fedlab run settings.json

`python -m fedlab` is the same. Settings and files are those of the workbench. `--parts FILE.py`
runs a file that registers parts of your own: they are choices like all others.
"""

import argparse
import os
import runpy
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedlab import namesake  # noqa: F401 - where another project's face hides our own
from fedlab.core import ParameterError, Round, Settings, parsed, read_settings_file, require
from fedlab.course.lessons import WORKBENCH, Copied, copy_lessons, open_lab, open_workbench
from fedlab.data import DataError, described, load, read_asked
from fedlab.engine import agreed, compiling, follows, joined, several
from fedlab.nodes import Relay, Sockets, cut_into, gathered, read_node, serve
from fedlab.nodes.classroom import LIMIT, PRIVATE, USUAL, Entrance, saved, started, taught, welcome
from fedlab.nodes.lines.sockets import FIRST
from fedlab.privacy import spends
from fedlab.workbench import (
    PRESETS,
    Experiment,
    Job,
    Run,
    Runs,
    Sweep,
    Trials,
    beside,
    better,
    fit_best,
    follow,
    lead,
    load_model,
    metrics,
    over_nodes,
    shown,
    stream,
    table,
    usual_knobs,
    values,
)
from fedlab.workbench.export import closed, export_model, free_place
from fedlab.workbench.runner import Live

SOCKET = "PATH|127.0.0.1:PORT"

LONG = 30  # letters of a name that a table has beside its cells
GAP = "  "


def main(given: Sequence[str] | None = None) -> int:
    """Run the given command; return 0 when it went well, 2 after an error, 130 when interrupted.

    That is 1 where a run could not be saved. An error is printed as one line.
    """
    who = ""
    try:
        _register(given)
        words = _words().parse_args(given)
        with joined() as rank:
            who = f"rank {rank}: " if rank else ""
            fix = "torchrun is for run and resume; give this command without it"
            require(words.do in (_run, _resume) or not several(), "torchrun", sys.argv[1:], fix)
            return int(words.do(words) or 0)
    except (ParameterError, DataError, OSError) as error:
        print(shown(f"{who}{type(error).__name__}: {error}"), file=sys.stderr)
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
    whole.add_argument("--version", action="version", version=f"fedlab-workbench {_version()}")
    whole.set_defaults(do=lambda words: whole.print_help())
    parts = whole.add_subparsers(metavar="COMMAND", title="commands")
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
        part.add_argument("run", help="its id, its folder, or its name where no other has it")
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
    _top_words(parts)
    return whole


def _version() -> str:
    """The version that is installed."""
    try:
        return metadata.version("fedlab-workbench")
    except metadata.PackageNotFoundError:
        return "from its sources, not installed"


def _top_words(parts: Any) -> None:
    """The commands that tell of data, and that recommend."""
    part = parts.add_parser("data", help="what is read of a file or a folder", parents=[_own()])
    part.add_argument(
        "path", help="a file of interactions, or a folder with one; 'FILE?user=buyer&item=code'"
    )
    part.set_defaults(do=_data)
    part = parts.add_parser("top", help="what a model recommends, of `best` or `export`")
    part.add_argument("model", help="the folder that it is in")
    part.add_argument("user", nargs="?", help="the id of a user of the data")
    part.add_argument(
        "--clicked", nargs="+", metavar="ITEM", help="what a new person clicked, oldest first"
    )
    part.add_argument("-k", type=int, default=10, help="how many items (%(default)s)")
    part.add_argument("--data", help="who clicked what; what the model was trained on without")
    part.set_defaults(do=_top)


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
    part.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help=f"end after so long without a coordinator (without: after {FIRST:g} s, with an error, "
        "if none was ever there; otherwise never)",
    )
    part.set_defaults(do=_node)
    part = parts.add_parser("class", help="a coordinator for learners who join from a notebook")
    part.add_argument(
        "--address",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="of this machine, as learners type it; port 0 for a free one (%(default)s)",
    )
    part.add_argument("--rounds", type=int, default=20, help="how many (%(default)s)")
    part.add_argument("--model", metavar="FOLDER", help="start from it, of `best` or `export`")
    part.add_argument(
        "--count", type=int, default=0, help="begin with so many learners; with Enter without"
    )
    part.add_argument(
        "--deadline",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long a round waits for a learner (%(default)s)",
    )
    part.add_argument(
        "--limit",
        type=int,
        default=LIMIT,
        help="how many learners are let in at a time (%(default)s)",
    )
    part.add_argument("--private", action="store_true", help="clip updates, and add noise")
    part.set_defaults(do=_class)


def _over_words(part: argparse.ArgumentParser) -> None:
    """What one run takes: its name, and who trains it."""
    part.add_argument("--name", default="", help="what the run is called")
    part.add_argument(
        "--nodes",
        metavar=SOCKET,
        help="train over nodes that connect there, or over an engine's, relay:ITS_SOCKET",
    )
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
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="how many seeds the figures of the report are means of (%(default)s)",
    )
    part.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what all trials share: an uplink, and its knobs",
    )
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
    _ = node.member  # what is damaged is said before anybody asks
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it leads a session already
            os.setsid()
    print(f"{node.name}: {len(node.data)} clients", file=sys.stderr, flush=True)
    serve(
        node.name,
        node.answer,
        words.socket,
        patience=words.patience,
        say=lambda line: print(line, file=sys.stderr),
    )
    return False


def _class(words: argparse.Namespace) -> bool:
    """Hold a class, and print who is there, its rounds, and what it cost."""
    keyboard = sys.stdin.isatty() or words.count > 0
    fix = "there is no keyboard to press Enter on; say how many learners to wait for"
    require(keyboard, "--count", words.count, fix)
    fix = f"--limit lets {words.limit} in; wait for no more than that"
    require(words.count <= words.limit, "--count", words.count, fix)
    require(words.deadline > 0, "--deadline", words.deadline, "choose seconds above 0")
    settings = (PRIVATE if words.private else USUAL).replace(rounds=words.rounds)
    films = load()
    how = {"limit": words.limit, "say": lambda line: _aloud(shown(line))}
    with Entrance(words.address, **how) as entrance:
        start = saved(words.model, films.catalogue) if words.model else started()
        entrance.open(welcome(start, films.catalogue))
        line = entrance.invitation
        _aloud("Learners type this into a notebook, and rate films in a widget:\n")
        _aloud(f'    from fedlab.workbench import Ratings\n    me = Ratings("{line}")\n    me\n')
        _aloud("Or this; slice='1 of 8' may stand in place of ratings:\n")
        own = 'name="...", ratings={"Toy Story": 5}'
        _aloud(f'    from fedlab.nodes import join\n    me = join("{line}", {own})\n')
        _all_here(entrance, words.count)
        began, done = time.monotonic(), None
        how = {"seconds": words.deadline, "private": words.private}
        for done in taught(entrance, start, settings, **how):
            _aloud(_of_class(done, len(entrance.here())))
        require(done is not None, "class", words.rounds, "nobody was there; begin with somebody")
        seconds, (down, up) = time.monotonic() - began, entrance.carried
        _aloud(f"It took {seconds:.0f} s, {down / 1e6:.1f} MB to learners and {up / 1e6:.1f} back.")
    return False


def _aloud(line: str) -> None:
    print(line, flush=True)


def _all_here(entrance: Entrance, count: int) -> None:
    """Wait for so many learners, or for Enter."""
    if not count:
        input("Press Enter when all are here.\n")
    while len(entrance.here()) < count:
        time.sleep(0.05)


def _of_class(done: Round, here: int) -> str:
    """A line on a Round of a class."""
    told = [f"{name} {value:.4g}" for name, value in done.metrics.items()]
    first = f"Round {done.number}" if done.number else "Before the class"
    return ", ".join([f"{first}: {here} here", *told, *[done.skipped] * bool(done.skipped)])


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


def _kept(words: argparse.Namespace, *, far: bool = False) -> Runs:
    """The runs of a folder; far: whether nodes have the data, so nothing here stands beside."""
    told = () if far else (beside, lead)
    runs = Runs(words.folder, better(), usual_knobs, *told)
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
    if follows():
        return _beside(settings)
    runs = _kept(words)
    unsaved = _one(runs, _job(stream, runs, settings, words.name), settings.rounds)
    for note in Experiment(settings).split.train.notes:
        print(shown(note), file=sys.stderr)
    return unsaved


def _run_over(words: argparse.Namespace, settings: Settings) -> bool:
    """Train one run over nodes, or go on with one."""
    require(not several(), "--nodes", words.nodes, "nodes share the work; leave torchrun out")
    private = spends(Experiment(settings).parts)
    with _line(words.nodes, words.deadline) as line:
        roster = gathered(line, words.deadline, words.count, told=not private)
        twice = line.twice if isinstance(line, Sockets) else ()
        fix = "two nodes have this name; give each one of its own"
        require(not twice, "nodes", sorted(twice), fix)
        live = over_nodes(line, roster, seconds=words.deadline, quorum=words.quorum)
        runs = _kept(words, far=True)
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


def _line(where: str, seconds: float) -> AbstractContextManager[Sockets | Relay]:
    """What carries bytes to nodes: sockets of this machine, or an engine's server."""
    engine = where.removeprefix("relay:")
    return Sockets(where) if engine == where else nullcontext(Relay(engine, seconds))


def _beside(settings: Settings, start: Round | None = None) -> bool:
    """Train a run that rank 0 keeps and shows."""
    for _ in stream(lambda: settings, start):
        pass
    return False


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
    if run.verdict:
        print(shown(run.verdict))
    return bool(runs.unsaved)


def _last(runs: Runs) -> Run:
    """The run that trains here, or did so last."""
    return next(run for run in reversed(runs.listed()) if run.rounds)


def _named(words: argparse.Namespace) -> tuple[Runs, str]:
    """The runs of a folder, and the id of the one that was named."""
    path = Path(words.run)
    if len(path.parts) > 1 and path.parent.is_dir():
        words.folder, words.run = str(path.parent), path.name
    fix = "there is no such folder; name the one that runs are kept in"
    require(Path(words.folder).is_dir(), "folder", words.folder, fix)
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
    if why := closed(experiment.model.name, experiment.local, people=words.people):
        print(f"fedlab top does not open it: {why}", file=sys.stderr)
    return False


def _resume(words: argparse.Namespace) -> bool:
    opened = list[tuple[Runs, Run]]()
    settings, start = agreed(lambda: _taken_up(words, opened))
    if follows():
        return _beside(settings, start)
    ((runs, run),) = opened
    job = follow(stream, lambda: settings, run, runs, start)
    return _one(runs, job, settings.rounds - (start.number if start else 0))


def _taken_up(
    words: argparse.Namespace, opened: list[tuple[Runs, Run]]
) -> tuple[Settings, Round | None]:
    """The settings and the Round that a run goes on with; opened: gets its folder, and the run."""
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
    opened.append((runs, run))
    return settings, start


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
    with compiling(_say):
        best = fit_best(
            words.data,
            objective=words.objective,
            budget=words.budget,
            seed=words.seed,
            seeds=words.seeds,
            settings=Settings(**{n: parsed(n, v) for n, v in map(_pair, words.set)}),
            folder=words.folder,
            processes=words.processes,
            say=_say,
        )
    print("\n".join(map(shown, best.report.splitlines())))
    place = best.save(words.to)
    print(f"The model is in {place}: {place / 'card.md'} says what it is. Its run is {best.run}.")
    print(f"Recommend by it: fedlab top {place} USER, or --clicked ITEM ITEM for a new person")
    return False


def _top(words: argparse.Namespace) -> bool:
    """Print what a model recommends to somebody."""
    fix = "name a user of the data, or what a new person clicked with --clicked; one of the two"
    require((words.user is None) != (words.clicked is None), "user", words.user, fix)
    found = load_model(words.model, words.data).top(words.clicked or words.user, words.k)
    titled = any(pick.title != pick.item for pick in found)
    rows = [[pick.item, *[pick.title] * titled, f"{pick.score:.4f}"] for pick in found]
    _aligned([["item", *["title"] * titled, "score"], *rows])
    return False


def _said(why: str) -> None:
    _say(why[:1].upper() + why[1:])


def _say(line: str) -> None:
    """Print a line beside what goes on."""
    tqdm.write(shown(line), file=sys.stderr)


def _job(live: Live, runs: Runs, settings: Settings, name: str) -> Job:
    """The job of one run, which is not begun before its first round is asked for."""
    yield from follow(live, lambda: settings, runs.begin(settings, name), runs)


def _drive(job: Job, total: int, runs: Runs, words: Callable[[], str]) -> None:
    """Take all steps of a job, and say at once where something could not be saved."""
    with tqdm(total=total, unit="round", dynamic_ncols=True) as bar, compiling(_say):
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
    each = found.user_counts()
    unseen = found.item_count - int(each.max())
    if int(each.max()) < 3 or unseen < 1:
        all_ = "a user has interactions with all items"
        why = "no user has 3 interactions" if int(each.max()) < 3 else all_
        print(f"Nothing can be held out and measured: {why}.")
        print(shown(f"Train on it: fedlab run {_set_data(words.path)} --set train_on=everything"))
        return False
    few = f" --set against={unseen}" * (unseen < Settings().against)
    print(shown(f"Train on it: fedlab run {_set_data(words.path)}{few}"))
    print(shown(f'Or have the best model sought: fedlab best "{words.path}" --to FOLDER'))
    return False


def _table(runs: list[Run]) -> None:
    """Print what differs between runs, then their best values with their rounds.

    What is equal in all of them stands below, as do names that are long, and why runs failed. What
    is too wide for the terminal goes on in another table beneath.
    """
    modes = {"loss": "min", **better()}
    lines = table(runs, {}, {name: modes.get(name, "max") for name in metrics(runs)})
    columns = {
        n: [row["differs"].get(n, "") for row in lines] for row in lines for n in row["differs"]
    }
    for name in metrics(runs):
        best = [row["best"][name] for row in lines]
        if any(best):
            columns[f"best {name}"] = [f"{b[0]:.4f} ({b[1]})" if b else "" for b in best]
    levels = dict.fromkeys(name for row in lines for name in row["beside"])
    for name in levels:
        found = [row["beside"].get(name) for row in lines]
        columns[name] = ["" if level is None else f"{level:.4f}" for level in found]
    if levels:
        columns["lead [95%]"] = [row["lead"] for row in lines]
    columns["state"] = [row["state"] for row in lines]
    same = {n: cells[0] for n, cells in columns.items() if len(runs) > 1 and len({*cells}) == 1}
    names = [shown(row["name"]) for row in lines]
    long = max(map(len, names), default=0) > LONG
    first = ["run", *([str(k) for k in range(1, len(names) + 1)] if long else names)]
    rest = [[shown(c) for c in (n, *cells)] for n, cells in columns.items() if n not in same]
    for number, block in enumerate(_blocks(first, rest)):
        print(end="\n" * (number > 0))
        _aligned([list(row) for row in zip(first, *block, strict=True)])
    if same:
        print(shown("In all of them: " + "; ".join(f"{n} {cell}" for n, cell in same.items())))
    for own, name, row in zip(first[1:], names, lines, strict=True):
        error = f": {shown(row['error'])}" if row["error"] else ""
        if long or error:
            print(f"{own}  {name}{error}" if long else f"{name}{error}")


def _blocks(first: list[str], columns: list[list[str]]) -> list[list[list[str]]]:
    """Columns in groups, each of which fits the terminal beside the first column."""
    whole, used = shutil.get_terminal_size().columns, 0
    blocks: list[list[list[str]]] = [[]]
    for column in columns:
        width = max(map(len, column)) + len(GAP)
        if blocks[-1] and used + width > whole:
            blocks.append([])
        used = (used if blocks[-1] else max(map(len, first))) + width
        blocks[-1].append(column)
    return blocks


def _aligned(rows: list[list[str]]) -> None:
    """Print rows with their cells below each other."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        line = (text.ljust(width) for text, width in zip(cells, wide, strict=True))
        print(GAP.join(line).rstrip())


if __name__ == "__main__":
    sys.exit(main())
