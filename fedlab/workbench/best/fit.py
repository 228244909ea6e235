"""`fit_best`: from data to the best federated model for them, and what it is worth.

    split -> search on validation -> baselines, tuned in the same way -> the test, once -> the model

The figures are of models fitted to the train part alone, as those of all methods. The model that is
handed over is trained with the same settings on everything, the test included: nothing is measured
on it.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedlab.core import DataError, ParameterError, Settings, check_read, knobs, require
from fedlab.data import Interactions
from fedlab.evaluation import popularity, unmet
from fedlab.privacy import SecureSum, spends
from fedlab.workbench.beside import beside
from fedlab.workbench.best.memory import PROCESS, free_memory, needed
from fedlab.workbench.best.methods import POOLED, Method, federated, pooled, settings_of, shortened
from fedlab.workbench.best.model import Best
from fedlab.workbench.best.report import ALIKE, Facts, Ranks, Row, chance, on_card, text
from fedlab.workbench.best.search import METRICS, Budget, Point, Search, Trial, test_ranks, tested
from fedlab.workbench.experiment import WHOLE, Experiment, better, usual_knobs
from fedlab.workbench.export import data_fingerprint
from fedlab.workbench.processes import dismissed
from fedlab.workbench.runner import Job
from fedlab.workbench.runs import Run, Runs

SHARES = (0.5, 0.9)  # of the seconds: when the federated search ends, and that of the baselines
PART = 4  # one trial of each baseline for so many federated ones
AGAINST = 99  # items in the sampled ranking, or as many as the busiest user has never met
MOST_SEEDS = 100
CHOSEN = (
    "the search chooses it, or has no use for it; leave it as it was: trials share the data, the "
    "uplink and the knobs of these"
)
UNCOUNTED = (
    "it adds noise for privacy, but the search chooses settings by what people's validation clicks "
    "say, a release that no epsilon would count; search without noise, or choose settings on "
    "public data and train them with `federate` or `fedlab run`"
)
MASKED = (
    "everybody takes part in each round of a search, and each would mask all numbers against "
    "everybody else, which takes hours; masks change no sum, so search without 'secure sum', and "
    "train the settings that are found with it, in smaller cohorts"
)
ORDER = ["popularity", *POOLED, "federated EASE", "federated iALS"]  # of the table


def never() -> bool:
    """No stop."""
    return False


def fit_best(
    data: str | Path | Interactions,
    *,
    objective: str = "sampled",
    budget: int | str = 24,
    seed: int = 0,
    seeds: int = 1,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    processes: int = 0,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = never,
) -> Best:
    """The best federated recommender for these data, tuned, trained and measured.

    data: `Interactions`; or a name as settings have it, of a file, a folder or a registered data
    set. objective: 'sampled' or 'full', the ranking whose NDCG@10 chooses; both are reported.
    budget: a number of federated trials, each baseline gets a fourth of them; or a time, such as
    '90 s', '10 min' or '1 h', of which half goes to the federated search and two fifths to the
    baselines. By default it is 24 trials: a seed then gives the same model on every machine. Of
    each method four trials are made, whatever the time.
    seed: of all draws. seeds: how many seeds, from `seed` on, the figures of the report are means
    of; the search has one, and each further one trains the best of each method once more. settings:
    what all trials share beside the data: an `uplink` with its knobs, say Settings(uplink='error
    feedback', bits=8), and knobs of a registered data set. Noise is refused, as nothing would count
    what choosing by validation gives away.
    folder: where runs are kept, a temporary one without; what a search left there is not done
    again, so give it to go on, or to add trials. processes: trials that run side by side, 0 for one
    on each core. say: told of each trial. stop: asked after each round; once it says True, or after
    Ctrl-C, the search ends, and its best is measured, trained and returned.

    Raises `ParameterError` for an objective, a budget or seeds that are none, and for settings that
    the search chooses or no method takes; `DataError` for data that cannot be ranked;
    KeyboardInterrupt where not even one trial is done.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=100, users=5)
    >>> best = fit_best(few, budget=1, processes=1, say=lambda line: None)
    >>> best.report.split(":")[0]
    'federated iALS beats popularity'
    >>> len(best.top("2", k=3)), len(best.top(["Toy Story", "Fargo"], k=3))
    (3, 3)
    """
    asked = Asked(objective, budget, seeds)
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="fedlab-best-"))
    runs = Runs(place, better(), usual_knobs, beside)
    require(not runs.trouble, "folder", str(place), runs.trouble)
    name = _written(data, place) if isinstance(data, Interactions) else str(data)
    given = (settings or Settings()).replace(data=name, seed=seed)
    base, found = common(given), list[Best]()
    for turned_ in given:
        require(turned_ in base, turned_, given[turned_], CHOSEN)
    find = Finding(base, runs, asked, say, found.append, processes=processes)
    try:
        with closing(find.job()) as job:
            for _ in job:
                if stop():
                    break
    except KeyboardInterrupt:  # between two steps; the job has handed over its best
        if not found:
            raise
    if not found:
        raise KeyboardInterrupt("cancelled before the first trial was done")
    return found[0]


@dataclass(frozen=True)
class Asked:
    """What a search is asked for: see `fit_best`; raises `ParameterError`."""

    objective: str = "sampled"
    budget: int | str = 24
    seeds: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        objectives = ", ".join(METRICS)
        require(
            self.objective in METRICS, "objective", self.objective, f"choose one of {objectives}"
        )
        whole = isinstance(self.seeds, int) and 1 <= self.seeds <= MOST_SEEDS
        require(whole, "seeds", self.seeds, f"choose a whole number from 1 to {MOST_SEEDS}")
        Budget.of(self.budget)


def common(settings: Settings) -> Settings:
    """What all trials of a search share: data, seed, uplink, and the knobs of these.

    >>> common(Settings(seed=3, rounds=5, uplink="clip", clip=2.0))
    Settings(seed=3, uplink='clip', clip=2.0)
    """
    experiment = Experiment(settings)
    parts = [type(part) for part in experiment.parts if part.kind in ("data", "stage")]
    names = {"data", "seed", "uplink", *(name for part in parts for name in knobs(part))}
    return Settings(**{name: value for name, value in settings.items() if name in names})


@dataclass
class Finding:
    """A search, from the data to the model that is handed over.

    shared: what all trials share; see `common`. done: given the best, once it is there. begin:
    makes a run of settings and a name, by default `runs.begin`. search: once the data are read.
    """

    shared: Settings
    runs: Runs
    asked: Asked
    say: Callable[[str], None]
    done: Callable[[Best], None]
    begin: Callable[[Settings, str], Run] | None = None
    processes: int = 0
    search: Search | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        """The share of the search that is done, by its trials or by its time."""
        if self.search is None:
            return 0.0
        allowed = Budget.of(self.asked.budget)
        if math.isinf(allowed.trials):
            return min((time.monotonic() - self.began) / allowed.seconds, 1.0)
        return min(len(self.search.tried) / self.search.planned, 1.0)

    def job(self) -> Job:
        """The search as a job; closed before its end, or at Ctrl-C, it hands over its best."""
        base = _base(self.shared)
        experiment = Experiment(base)
        label = f"best {data_fingerprint(experiment.split)[7:15]}"
        metric, begin = METRICS[self.asked.objective], self.begin or self.runs.begin
        search = Search(base, self.runs, begin, label, metric, self.processes, self.say)
        self.search, ended = search, False
        for note in _left_out(experiment):
            self.say(note)
        try:
            try:
                yield from _searched(search, experiment, Budget.of(self.asked.budget), self.began)
                ended = True
            except (GeneratorExit, KeyboardInterrupt):
                kept = "no trial is done" if search.best() is None else "the best so far is kept"
                self.say(f"cancelled: {kept}")
            if search.best() is not None:
                self.done(_handed_over(search, experiment, self.asked, cancelled=not ended))
            elif ended:
                raise _nothing(search)
        finally:
            dismissed(search.crew)


def _base(shared: Settings) -> Settings:
    """What all runs of a search have in common: the data, and how they are measured."""
    base = shared.replace(full_ranking="on")
    name, split = base.data, Experiment(base).split
    held = split.validation.user_counts() + split.test.user_counts()
    left = split.train.item_count - int((split.train.user_counts() + held).max())
    if left < 1:
        raise DataError(
            f"data={name!r}: its busiest user has clicked all {split.train.item_count} items, so "
            "there is nothing to rank against; leave such users out, or give more items"
        )
    # iALS wants everybody in every round; EASE, one round of everybody
    return base.replace(against=min(AGAINST, left), cohort=split.train.user_count)


def _written(data: Interactions, place: Path) -> str:
    """The name of data that were in memory alone, after writing them beside their runs."""
    import polars as pl  # noqa: PLC0415 - takes a tenth of a second

    known = data.catalogue
    table: dict[str, Any] = {
        "user": pl.Series(known.user_ids).gather(data.users.numpy()),
        "item": pl.Series(known.item_ids).gather(data.items.numpy()),
    }
    roles = {"values": "rating", "times": "time"}
    table |= {role: data.columns[n].numpy() for n, role in roles.items() if n in data.columns}
    items: dict[str, Any] = {"item": list(known.item_ids), "title": list(known.names)}
    if "years" in known.columns:
        items["year"] = known.years.tolist()
    files = (pl.DataFrame(table), pl.DataFrame(items))
    own = f"{sum(map(_hashed, files)) % (1 << 32):08x}"
    paths = [place / f"{what}-{own}.parquet" for what in ("data", "items")]
    for path, frame in zip(paths, files, strict=True):
        frame.write_parquet(path)
    absent = "".join(f"&{role}=False" for role in roles.values() if role not in table)
    return f"{paths[0]}?items={quote(str(paths[1]))}{absent}"


def _hashed(frame: Any) -> int:
    return int(frame.hash_rows().sum())


def _searched(search: Search, experiment: Experiment, allowed: Budget, began: float) -> Job:
    """The job of the whole search: the federated methods, then each baseline."""
    train = experiment.split.train
    for line in shortened(train):
        search.say(line)
    methods = _in_memory(search, _fitting(search, federated(train)), train)
    if not methods:
        raise _too_large(search, train)
    until = [began + share * allowed.seconds for share in SHARES]
    seed = experiment.settings.seed
    timed = math.isinf(allowed.trials)
    baselines = _in_memory(search, pooled(train), train)
    part = math.inf if timed else max(1, allowed.trials // PART)
    search.planned = allowed.trials + len(baselines) * part
    yield from search.tune(methods, allowed.trials, until[0], seed, {})
    now = min(until[0], time.monotonic())
    for place, method in enumerate(baselines, 1):
        twin = search.best(method.name.replace("pooled", "federated"))
        ends = now + (until[1] - now) * place / len(baselines)
        ends = ends if math.isfinite(ends) else math.inf
        yield from search.tune([method], part, ends, seed + place, twin.point.knobs if twin else {})


def _fitting(search: Search, methods: Sequence[Method]) -> list[Method]:
    """The methods that go with the uplink; raises `ParameterError` where none does."""
    fit, why = list[Method](), ""
    for method in methods:
        made = Experiment(settings_of(search.base, method, method.first[0]))
        if spends(made.parts):
            raise ParameterError(f"uplink={search.base.uplink!r}: {UNCOUNTED}")
        if any(isinstance(part, SecureSum) for part in made.parts):
            raise ParameterError(f"uplink={search.base.uplink!r}: {MASKED}")
        try:
            check_read(made.parts, made.facts, made.settings)
            fit.append(method)
        except ParameterError as error:
            why = str(error)
            search.say(f"{method} is left out: {why}")
    require(len(fit) > 0, "uplink", search.base.uplink, f"no method of the search takes it; {why}")
    return fit


def _in_memory(search: Search, methods: Sequence[Method], train: Interactions) -> list[Method]:
    """The methods that memory has room for; the search is told what a process takes at most."""
    fit, free = list[Method](), free_memory()
    for method in methods:
        most = needed(method, train)
        if most <= free:
            fit.append(method)
            search.needed = max(search.needed, PROCESS + most)
        else:
            search.say(f"{method} is left out: {_takes(most, free)}")
    return fit


def _takes(most: float, free: float) -> str:
    return f"it takes up to {most / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free"


def _too_large(search: Search, train: Interactions) -> DataError:
    """The error for data that no method has the memory for."""
    return DataError(
        f"data={search.base.data!r}: {train.item_count:,} items and {len(train):,} clicks are too "
        "many for the memory that is free; leave rare items out with at_least(data, items=5) or "
        "more, or search where there is more memory"
    )


def _nothing(search: Search) -> ParameterError:
    """The error for a search without a single trial that is done."""
    errors = [run.error for run in search.runs.listed() if run.name.startswith(search.label)]
    return ParameterError(f"budget: not one of the trials could be trained; {errors[-1]}")


def _handed_over(search: Search, experiment: Experiment, asked: Asked, *, cancelled: bool) -> Best:
    """Measure the best of each method on the test, and train the best of all on everything."""
    winner = search.best()
    assert winner is not None
    rows = _measured(search, experiment, winner, asked.seeds)
    trials = [each for each in search.tried if each.point.method.settings]
    names = [method.name for method in pooled(experiment.split.train)]
    facts = Facts(
        split=experiment.split,
        objective=asked.objective,
        winner=winner.point.method.name,
        against=experiment.choices.against,
        trials=len(trials),
        pooled=len(search.tried) - len(trials),
        left_out=_left_out(experiment),
        cancelled=cancelled,
        missing=[name for name in names if search.best(name) is None],
        seeds=asked.seeds,
    )
    settings = _released(winner)
    name = f"{search.label}: {winner.point}, on everything"
    search.say(f"training the best on everything: {winner.point}")
    run = search.trained([(name, settings)])[0]
    require(run is not None, "data", settings.data, "the model could not be trained on everything")
    assert run is not None
    return Best(
        report=text(rows, facts),
        table=tuple(rows),
        method=facts.winner,
        settings=settings,
        objective=asked.objective,
        cancelled=cancelled,
        folder=Path(str(search.runs.folder)),
        run=run.id,
        _done=search.last(run),
        _records=run.records,
        _card=on_card(rows, facts),
    )


def _left_out(experiment: Experiment) -> list[str]:
    """What was left out of the data, and why."""
    return [note for note in experiment.split.train.notes if "left out" in note]


def _released(winner: Trial) -> Settings:
    """The settings that train the winner on everything."""
    asked = winner.point.settings.replace(train_on=WHOLE)
    clients = len(Experiment(asked).federation)
    return asked.without(Experiment(asked).unread()).replace(cohort=clients)


def _measured(search: Search, experiment: Experiment, winner: Trial, seeds: int) -> list[Row]:
    """The table: the test is read here, and nowhere else."""
    names = sorted({each.point.method.name for each in search.tried}, key=ORDER.index)
    points = {name: each.point for name in names if (each := search.best(name))}
    words = {name: str(point).partition(", ")[2] for name, point in points.items()}
    if winner.point.knobs.get("recency"):
        points[ALIKE] = winner.point.turned(recency=0.0)
        words[ALIKE] = f"{winner.point.method}, recency 0"
    first = experiment.settings.seed
    found: dict[str, list[Ranks]] = {name: [] for name in ("popularity", *points)}
    for seed in range(first, first + seeds):
        mine = {name: point.turned(seed=seed) for name, point in points.items()}
        for name, ranks in _ranked(search, mine).items():
            found[name].append(ranks)
        own = Experiment(experiment.settings.replace(seed=seed))
        found["popularity"].append(test_ranks(own, popularity(own.split.train)))
    rows = [
        Row.of(name, words.get(name, ""), found[name], first)
        for name in sorted(found, key=[*ORDER, ALIKE].index)
        if len(found[name]) == seeds
    ]
    return [chance(experiment.choices.against, unmet(experiment.split)), *rows]


def _ranked(search: Search, points: Mapping[str, Point]) -> dict[str, Ranks]:
    """The test ranks of these proposals, by name; those that are not trained yet are."""
    ranks: dict[str, Ranks] = {}
    fitted = [(name, point) for name, point in points.items() if not point.method.settings]
    calls = [(point.settings, point.method.name, point.knobs) for _, point in fitted]
    for _ in search.each(tested, calls, lambda at, got: ranks.update({fitted[at][0]: got})):
        pass
    trained = [(name, point) for name, point in points.items() if point.method.settings]
    named = [(f"{search.label}: {point}, for the test", point.settings) for _, point in trained]
    for (name, point), run in zip(trained, search.trained(named), strict=True):
        if run:
            own = Experiment(point.settings)
            ranks[name] = test_ranks(own, own.score(search.last(run)))
    return ranks
