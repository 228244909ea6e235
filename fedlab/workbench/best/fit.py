"""`fit_best`: from data to the best federated model for them, and what it is worth.

    split -> search on validation -> baselines, tuned in the same way -> the test, once -> the model

The figures are of models fitted to the train part alone, as those of all methods. The model that is
handed over is trained with the same settings on everything, the test included: nothing is measured
on it.
"""

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedlab.core import DataError, ParameterError, Settings, require
from fedlab.data import Interactions
from fedlab.evaluation import popularity, unmet
from fedlab.workbench.best.methods import POOLED, federated, pooled
from fedlab.workbench.best.model import Best
from fedlab.workbench.best.report import Facts, Ranks, Row, chance, on_card, text
from fedlab.workbench.best.search import METRICS, Budget, Search, Trial, test_ranks, tested
from fedlab.workbench.experiment import WHOLE, Experiment, better, usual_knobs
from fedlab.workbench.export import data_fingerprint
from fedlab.workbench.processes import dismissed
from fedlab.workbench.runner import Job
from fedlab.workbench.runs import Runs

SHARES = (0.5, 0.9)  # of the seconds: when the federated search ends, and that of the baselines
PART = 4  # one trial of each baseline for so many federated ones
AGAINST = 99  # items in the sampled ranking, or as many as the busiest user has never met
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
    folder: where runs are kept, a temporary one without; what a search left there is not done
    again, so give it to go on, or to add trials. processes: trials that run side by side, 0 for one
    on each core. say: told of each trial. stop: asked after each round; once it says True, or after
    Ctrl-C, the search ends, and its best is measured, trained and returned.

    Raises `ParameterError` for an objective or a budget that is none, `DataError` for data that
    cannot be ranked, and KeyboardInterrupt where not even one trial is done.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=100, users=5)
    >>> best = fit_best(few, budget=1, processes=1, say=lambda line: None)
    >>> best.report.split(":")[0]
    'federated iALS beats popularity'
    >>> len(best.top("2", k=3)), len(best.top(["Toy Story", "Fargo"], k=3))
    (3, 3)
    """
    require(objective in METRICS, "objective", objective, f"choose one of {', '.join(METRICS)}")
    allowed, began = Budget.of(budget), time.monotonic()
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="fedlab-best-"))
    runs = Runs(place, better(), usual_knobs)
    require(not runs.trouble, "folder", str(place), runs.trouble)
    base = _base(data, place, seed)
    experiment = Experiment(base)
    label = f"best {data_fingerprint(experiment.split)[7:15]}"
    search = Search(base, runs, label, METRICS[objective], processes, say)
    for note in _left_out(experiment):
        say(note)
    try:
        done = _driven(_searched(search, experiment, allowed, began), stop)
        if search.best() is None:
            _nothing(search, done)
        return _handed_over(search, experiment, objective, cancelled=not done)
    finally:
        dismissed(search.crew)


def _base(data: str | Path | Interactions, place: Path, seed: int) -> Settings:
    """What all runs of a search have in common: the data, and how they are measured."""
    name = _written(data, place) if isinstance(data, Interactions) else str(data)
    base = Settings(data=name, full_ranking="on", seed=seed)
    split = Experiment(base).split
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
    until = [began + share * allowed.seconds for share in SHARES]
    seed = experiment.settings.seed
    yield from search.tune(federated(train), allowed.trials, until[0], seed, {})
    timed = math.isinf(allowed.trials)
    baselines, part = pooled(train), math.inf if timed else max(1, allowed.trials // PART)
    now = min(until[0], time.monotonic())
    for place, method in enumerate(baselines, 1):
        twin = search.best(method.name.replace("pooled", "federated"))
        ends = now + (until[1] - now) * place / len(baselines)
        ends = ends if math.isfinite(ends) else math.inf
        yield from search.tune([method], part, ends, seed + place, twin.point.knobs if twin else {})


def _driven(job: Job, stop: Callable[[], bool]) -> bool:
    """Take the steps of a job; whether it came to its end, and nobody cancelled it."""
    with closing(job):
        try:
            for _ in job:
                if stop():
                    return False
        except KeyboardInterrupt:
            return False
    return True


def _nothing(search: Search, done: bool) -> None:
    """Raise for a search without a single trial that is done."""
    if not done:
        raise KeyboardInterrupt("cancelled before the first trial was done")
    errors = [run.error for run in search.runs.listed() if run.name.startswith(search.label)]
    raise ParameterError(f"budget: not one of the trials could be trained; {errors[-1]}")


def _handed_over(
    search: Search, experiment: Experiment, objective: str, *, cancelled: bool
) -> Best:
    """Measure the best of each method on the test, and train the best of all on everything."""
    winner = search.best()
    assert winner is not None
    rows = _measured(search, experiment)
    trials = [each for each in search.tried if each.point.method.settings]
    names = [method.name for method in pooled(experiment.split.train)]
    facts = Facts(
        split=experiment.split,
        objective=objective,
        winner=winner.point.method.name,
        against=experiment.choices.against,
        trials=len(trials),
        pooled=len(search.tried) - len(trials),
        left_out=_left_out(experiment),
        cancelled=cancelled,
        missing=[name for name in names if search.best(name) is None],
    )
    settings = _released(winner)
    search.say(f"training the best on everything: {winner.point}")
    if search.run(settings) is None:
        name = f"{search.label}: {winner.point}, on everything"
        for _ in search.train([(name, settings)]):
            pass
    run = search.run(settings)
    require(run is not None, "data", settings.data, "the model could not be trained on everything")
    assert run is not None
    return Best(
        report=text(rows, facts),
        table=tuple(rows),
        method=facts.winner,
        settings=settings,
        objective=objective,
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


def _measured(search: Search, experiment: Experiment) -> list[Row]:
    """The table: the test is read here, and nowhere else."""
    seed = experiment.settings.seed
    ranks: dict[str, Ranks] = {}
    words = {"popularity": ""}
    ranks["popularity"] = test_ranks(experiment, popularity(experiment.split.train))
    names = sorted({each.point.method.name for each in search.tried}, key=ORDER.index)
    tops = [each for name in names if (each := search.best(name))]
    fitted = [each.point for each in tops if not each.point.method.settings]
    calls = [(each.settings, each.method.name, each.knobs) for each in fitted]
    for _ in search.each(tested, calls, lambda at, found: ranks.update({calls[at][1]: found})):
        pass
    for each in tops:
        words[each.point.method.name] = str(each.point).partition(", ")[2]
        if each.run:
            own = Experiment(each.point.settings)
            done = search.last(search.runs.get(each.run))
            ranks[each.point.method.name] = test_ranks(own, own.score(done))
    order = sorted(ranks, key=ORDER.index)
    rows = [Row.of(name, words[name], ranks[name], seed) for name in order]
    return [chance(experiment.choices.against, unmet(experiment.split)), *rows]
