"""What the live view draws and what it may send, as plain data.

Everything that is drawn is small whatever the length of a run: lines keep at most `POINTS` points,
spreads `BINS` bars. What comes from a browser is checked as a whole before anything is done.
"""

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NoReturn

import torch

from fedlab.core import (
    ParameterError,
    Round,
    Settings,
    described,
    differing,
    knobs,
    known,
    require,
    shown,
    tidy,
)
from fedlab.privacy import bet_in_words
from fedlab.workbench.experiment import Choices, stream
from fedlab.workbench.guide import Attempt, Card
from fedlab.workbench.runs import PLAIN, Run, size, usual
from fedlab.workbench.session import Session, Swept

Turn = Mapping[str, tuple[Any, ...] | None]  # knobs to show -> the ends of the slider, or choices
POINTS, BINS, ROWS = 300, 24, 100
MARKS = 30  # of turned knobs, in a chart
FIRST = ("cohort", "local_lr", "server_lr")  # of all knobs, those that are in sight at once
TRAFFIC = ("MB up", "MB down", "seconds")  # sums over the run so far
CLOCK = "simulated s"  # a line as well, where the run has a clock
TIMED = {"schedule", "deadline", "pace", "spread", "delay"}  # who turns one of these looks at it
MEANINGS = {
    "epsilon": "What all releases tell of one client. Somebody bets at even odds on whether its "
    "data are in them: after having seen all, the bet is right with probability at most "
    f"e^ε / (1 + e^ε), but for δ: at ε 0 50 of 100 times, at ε 1 {bet_in_words(1.0)}, at ε 3 "
    f"{bet_in_words(3.0)}."
}
PREPARING = (
    "Preparing the first round; what trains clients is compiled once on a machine, "
    "which takes about half a minute."
)
SPREADS = {
    "loss by client": "mean local loss",
    "norm by client": "L2 norm of what a client sent",
    "rounds by client": "rounds taken part in",
}
# command -> what it is given: the names and types
COMMANDS: dict[str, dict[str, type]] = {
    "start": {},
    "pause": {},
    "step": {},
    "stop": {},
    "reset": {},
    "undo": {},
    "pin": {"run": str, "on": bool},
    "preset": {"preset": str},
    "settings": {"text": str},
    "resume": {"run": str},
    "rename": {"run": str, "name": str},
    "delete": {"run": str},
    "folder": {"folder": str},
    "sweep": {"over": dict, "metric": str, "runs": int},
    "find": {"objective": str, "budget": str},
    "export": {"kind": str},
    "tensorboard": {},
    "see": {"on": bool},
    "follow": {"what": str, "name": str},
    "at": {"round": int},
    "branch": {"round": int},
    "compare": {"run": str},
    "challenge": {"challenge": str},
    "accuse": {"client": int},
}
WORDS = {str: "a short text", bool: "true or false", int: "a whole number", dict: "short texts"}


def describe_knob(
    name: str, span: tuple[Any, ...] | None, start: Any, folded: bool = False
) -> dict[str, Any]:
    """What the view needs to know of a knob; no knob has code of its own there.

    span: (lowest, highest) of its slider, or the choices; None for the usual. start: where it
    stands at first. folded: whether it is folded away with the others of its group, unless it is
    one of `FIRST`. Raises `ParameterError` for a bad span.
    """
    found = described()[name]
    knob, kind, default = found.knob, found.kind, found.default
    if kind is str:
        for value in span or ():
            knob.check(name, value, str)
        closed = "choice" if knob.options and not knob.others else "text"
        ends: dict[str, Any] = {
            "choices": list(span or knob.options),
            "kind": "several" if knob.many else closed,
        }
    else:
        low, high = span or knob.usual or (knob.low, knob.high)
        require(
            knob.low <= low < high <= knob.high,
            f"turn[{name!r}]",
            span,
            f"choose two growing numbers from {knob.low:g} to {knob.high:g}",
        )
        ends = {
            "low": low,
            "high": high,
            "whole": kind is int,
            "log": knob.log and low > 0,
            "kind": "number",
        }
    label = re.sub(r"lr$", "learning rate", name).replace("_", " ")
    return {
        "name": name,
        "label": label,
        "unit": knob.unit,
        "meaning": knob.meaning,
        "live": knob.live,
        "group": (knob.group or "the run") if folded and name not in FIRST else "",
        "default": default,
        "start": start,
    } | ends


def describe_knobs(settings: Settings, turn: Turn | None) -> list[dict[str, Any]]:
    """What the view needs to know of the knobs that it shows, which are all where turn is None.

    settings: where they stand at first. turn: name -> the span of `describe_knob`. Raises
    `ParameterError` for an unknown name and for a bad span.
    """
    every = dict.fromkeys([*knobs(Choices), *described()])  # the choices first
    known(list(every), turn or {})
    return [
        describe_knob(name, span, settings[name], folded=turn is None)
        for name, span in (every if turn is None else turn).items()
    ]


def cards(presets: Iterable[str], known: Mapping[str, Card]) -> dict[str, dict[str, str]]:
    """What stands beside each preset that has a card."""
    return {name: asdict(known[name]) for name in presets if name in known}


def challenge(attempt: Attempt | None, runs: list[Run]) -> dict[str, Any]:
    """The challenge that is on, and how it stands after what these runs have reached; {} for none.

    liar: whether a client is to be named.
    """
    if attempt is None:
        return {}
    attempt.look(runs)
    return {
        "name": attempt.name,
        "ask": attempt.challenge.ask,
        "liar": attempt.challenge.liar,
        "met": attempt.met,
        "words": attempt.words,
    }


def unspoilt(seen: dict[str, Any]) -> dict[str, Any]:
    """What was seen in a round, without what only an attacker knows: who lies, what was learned."""
    found = dict(seen)
    if "arrows" in found.get("steps", {}):
        found["steps"] = found["steps"] | {"liars": []}
    if "upload" in found.get("person", {}):
        sent = found["person"]["upload"]
        told = {"learned": sent["sent"]} | ({"alone": sent["auc"]} if "auc" in sent else {})
        found["person"] = found["person"] | {"upload": sent | told}
    return found


def check_message(data: object) -> None:
    """Raise `ParameterError` for what is neither an update, a command nor a request for all."""
    found = data if isinstance(data, dict) else {}
    method = found.get("method")
    inside = {"update": "state", "custom": "content"}.get(str(method), "")
    if method != "request_state" and not isinstance(found.get(inside), dict):
        _refuse("message", data, "give an update or a command")
    if found.get("buffer_paths"):
        _refuse("message", "buffers", "the view sends none")


def command(content: object) -> tuple[str, list[Any]]:
    """The command that a message gives and its arguments.

    Raises `ParameterError` for anything else, so that nothing is done by half.

    >>> command({"command": "pin", "given": ["20260131-120000-000000-1f2e", True]})
    ('pin', ['20260131-120000-000000-1f2e', True])
    """
    found = content if isinstance(content, dict) else {}
    name, given = found.get("command"), found.get("given", [])
    if not (isinstance(name, str) and name in COMMANDS):
        _refuse("command", name, f"choose one of {', '.join(COMMANDS)}")
    kinds = COMMANDS[name]
    if not (isinstance(given, list) and len(given) == len(kinds)):
        _refuse(name, given, f"give {', '.join(kinds) or 'nothing'}")
    for (what, kind), value in zip(kinds.items(), given, strict=True):
        if not (isinstance(value, str) if what == "text" else _is(value, kind)):
            _refuse(f"{name} {what}", value, f"give {WORDS[kind]}")
    return name, given


def _is(value: object, kind: type) -> bool:
    """Whether a value of a message is what it should be, and of a size that it may have."""
    if kind is str:
        return isinstance(value, str) and tidy(value)
    if isinstance(value, dict):
        return kind is dict and all(_is(v, str) for pair in value.items() for v in pair)
    if isinstance(value, bool):
        return kind is bool
    return kind is int and isinstance(value, int) and abs(value) < 2**31


def check_state(state: object, spec: Mapping[str, Any]) -> None:
    """Raise `ParameterError` for traits that a browser may not set so.

    It may turn knobs and choose charts. Whether a knob's value fits is checked behind this.
    """
    if not isinstance(state, dict):
        _refuse("state", state, "give values or charts")
    for name, value in state.items():
        if name == "values":
            _check_values(value)
        elif name == "charts":
            names = [*spec["lines"], *spec["spreads"]]
            good = isinstance(value, list) and all(isinstance(n, str) for n in value)
            if not (good and len({*value}) == len(value) and {*value} <= {*names}):
                _refuse("charts", value, f"choose some of {', '.join(names)}, each once")
        else:
            _refuse("state", name, "a view sets values and charts only")


def _check_values(values: object) -> None:
    if not (isinstance(values, dict) and all(_is(name, str) for name in values)):
        _refuse("values", values, "give a number or a short text for each knob")
    for name, value in values.items():
        if not (_is(value, str) or (isinstance(value, int | float) and abs(value) < 2**63)):
            _refuse(name, value, "give a number or a short text")


def _refuse(name: str, value: object, fix: str) -> NoReturn:
    raise ParameterError(f"{name}={shown(value)}: {fix}")


def check_turn(shown: Mapping[str, Any], value: object) -> None:
    """Raise `ParameterError` for a number that leaves its slider.

    The rest is for the Settings to check.
    """
    if shown["kind"] == "number":
        inside = isinstance(value, int | float) and shown["low"] <= value <= shown["high"]
        require(inside, shown["name"], value, f"choose from {shown['low']:g} to {shown['high']:g}")


class Trace:
    """The lines of one run, kept up as records come in.

    `lines()` costs the same however long the run is.
    """

    def __init__(self, run: Run) -> None:
        """run: it is read from its first record on."""
        self.run, self.done = run, 0
        self.now: dict[str, Any] = dict(run.settings)  # as the last round was given them
        self.marks: list[tuple[int, str]] = []  # (round, which knobs were turned before it)
        self.points: dict[str, tuple[list[int], list[float | None]]] = {}
        self.sums = dict.fromkeys(TRAFFIC, 0.0)

    def lines(self, wanted: Iterable[str]) -> dict[str, tuple[list[int], list[float | None]]]:
        """Series -> (rounds, values), None where a value was not finite."""
        for record in self.run.records[self.done :]:
            self._add(record)
            self.done += 1
        return {name: _thin(*self.points.get(name, ([], []))) for name in wanted}

    def _add(self, record: Mapping[str, Any]) -> None:
        turned = record.get("turned", {})
        if turned:
            words = ", ".join(
                f"{name} {show(self.now.get(name, usual(name)))} → {show(value)}"
                for name, value in turned.items()
            )
            self.marks = [*self.marks, (record["round"], words)][-MARKS:]
            self.now |= turned
        for name, key, unit in zip(
            TRAFFIC, ("bytes_up", "bytes_down", "seconds"), (1e-6, 1e-6, 1), strict=True
        ):
            self.sums[name] += record[key] * unit
        series = (
            {n: v for n, v in record.items() if n not in PLAIN}
            | {"loss": record["loss"]}
            | self.sums
        )
        series |= {CLOCK: record[CLOCK]} if CLOCK in record else {}
        for name, value in series.items():
            rounds, values = self.points.setdefault(name, ([], []))
            rounds.append(record["round"])
            values.append(None if value is None else float(f"{value:.5g}"))


def _thin(rounds: list[int], values: list[float | None]) -> tuple[list[int], list[float | None]]:
    """Every n-th point, and always the last."""
    if len(rounds) <= POINTS:
        return list(rounds), list(values)
    step = math.ceil(len(rounds) / POINTS)
    kept = range((len(rounds) - 1) % step, len(rounds), step)
    return [rounds[i] for i in kept], [values[i] for i in kept]


def spread(name: str, rounds: list[Round]) -> dict[str, Any]:
    """Bars of a number over clients.

    They show the last round, or in how many rounds each client took part.
    """
    whole = name == "rounds by client"
    if whole:
        found = torch.bincount(torch.cat([r.cohort for r in rounds]))
        values = found[found > 0].float()
    else:
        values = rounds[-1].losses if name == "loss by client" else rounds[-1].norms
    values = values[values.isfinite()]
    if not len(values):
        return {"low": 0.0, "high": 1.0, "counts": [], "median": None, "clients": 0, "whole": whole}
    low, high = float(values.min()), float(values.max())
    if whole or low == high:
        room = max(0.5, abs(low) / 1000)  # half is nothing beside a loss that has grown beyond 1e16
        low, high = low - room, high + room
    counts = (
        torch.histc(values, min(BINS, int(high - low)) if whole else BINS, low, high).int().tolist()
    )
    return {
        "low": low,
        "high": high,
        "counts": counts,
        "median": float(values.median()),
        "clients": len(values),
        "whole": whole,
    }


def table(
    runs: list[Run], shown: Mapping[str, int], metrics: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each run: its name, state, best metrics and their rounds, and settings that differ.

    beside: see `level`. lead: by how much it is ahead of the best of that. verdict: the same in
    words.

    shown: run id -> colour of those in the charts. Settings are compared among these, or among all
    runs when fewer than two are shown.
    """
    used = {run.id: run.used() for run in runs}
    turned = dict.fromkeys(name for each in used.values() for name in each)
    used = {
        id_: {name: each.get(name, [usual(name)]) for name in turned} for id_, each in used.items()
    }
    names = differing([each for id_, each in used.items() if len(shown) < 2 or id_ in shown])

    def row(run: Run) -> dict[str, Any]:
        best = {metric: run.best(metric, mode) for metric, mode in metrics.items()}
        return {
            "id": run.id,
            "name": run.name,
            "state": run.state,
            "error": run.error,
            "open": run.open,
            "pinned": run.pinned,
            "colour": shown.get(run.id),
            "rounds": len(run.records),
            "best": {m: None if r is None else [r[m], r["round"]] for m, r in best.items()},
            "beside": level(run),
            "lead": size(run.lead) if run.lead else "",
            "verdict": run.verdict,
            "differs": {
                n: " → ".join(map(show, used[run.id][n])) for n in names if n in used[run.id]
            },
        }

    return [row(run) for run in runs]


def level(run: Run) -> dict[str, float]:
    """What a run is measured beside: 'name metric' -> value; of a ranking the NDCG@10 alone."""
    return {
        f"{name} {metric}": value
        for name, row in run.beside.items()
        for metric, value in row.items()
        if metric == "ndcg@10" or "ndcg@10" not in row
    }


def show(value: object) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


class Pens:
    """Which run has which colour, and the lines drawn so far."""

    def __init__(self) -> None:
        """Nothing drawn yet."""
        self.colours: dict[str, int] = {}
        self._traces: dict[str, Trace] = {}
        self._listed: object = None

    def picture(
        self,
        shown: list[Run],
        last: Run | None,
        charts: list[str],
        rounds: int,
        progress: float,
        reference: Run | None = None,
    ) -> dict[str, Any]:
        """The charts: lines of the shown runs, and spreads of the last one.

        A run keeps its colour while it is shown. rounds: where the axis ends, at least. progress:
        the share of all rounds that are done. reference: the run behind the others; it has a line
        of its own only if it is the last. alike: the same number for runs that differ in nothing
        but their seed.
        """
        behind = [reference] if reference else []
        shown = [run for run in shown if run is not reference or run is last]
        kept = {run.id: self.colours[run.id] for run in shown if run.id in self.colours}
        for run in shown:
            if run.id not in kept:
                kept[run.id] = min(set(range(len(shown))) - set(kept.values()))
        self.colours = kept
        before = {trace.run: trace for trace in self._traces.values()}  # not of a resumed one
        self._traces = {run.id: before.get(run) or Trace(run) for run in [*shown, *behind]}
        seen = list(last.rounds) if last else []
        drawn = {run.id: self._line(run, charts) for run in [*shown, *behind]}
        keys = {id_: repr((line.pop("key"), line["marks"])) for id_, line in drawn.items()}
        first = list(keys.values())
        every = [run for run in [*shown, *behind] if run.records]
        return {
            "total": max([rounds, *(run.records[-1]["round"] for run in every)]),
            "done": len(last.records) if last else 0,
            "progress": progress,
            "lines": [drawn[run.id] | {"alike": first.index(keys[run.id])} for run in shown],
            "reference": drawn[reference.id] | {"alike": -1} if reference else None,
            "spreads": {name: spread(name, seen) for name in charts if name in SPREADS and seen},
        }

    def _line(self, run: Run, charts: list[str]) -> dict[str, Any]:
        """A run in the charts; key: its settings but for the seed."""
        trace = self._traces[run.id]
        return {
            "id": run.id,
            "name": run.name,
            "colour": self.colours.get(run.id, 0),
            "series": trace.lines(name for name in charts if name not in SPREADS),
            "marks": trace.marks,
            "beside": run.beside,
            "seed": run.settings.get("seed", usual("seed")),
            "key": sorted((n, v) for n, v in run.settings.items() if n != "seed"),
        }

    def changed(self, listed: list[Run]) -> bool:
        """Whether the table must be made again."""
        now = (
            [(run.id, run.name, run.state, run.pinned, bool(run.beside)) for run in listed],
            dict(self.colours),
        )
        same, self._listed = now == self._listed, now
        return not same

    def sums(self, run: Run | None) -> Mapping[str, float]:
        """What a run has sent and taken so far."""
        return (
            self._traces[run.id].sums
            if run and run.id in self._traces
            else dict.fromkeys(TRAFFIC, 0.0)
        )


def heat(swept: Swept | None, kept: Collection[str]) -> dict[str, Any]:
    """The map of a sweep: its two settings with their values, and a cell for each run begun.

    kept: ids of the runs that there are; one that was deleted keeps its place in the map.
    """
    if swept is None:
        return {}
    sweep, runs, planned = swept
    return {
        "over": [{"name": name, "values": list(values)} for name, values in sweep.over.items()],
        "random": sweep.count > 0,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "planned": planned,
        "cells": [
            sweep.cell(run) | ({} if run.id in kept else {"state": "deleted"}) for run in runs
        ],
    }


def status(session: Session, sums: Mapping[str, float]) -> str:
    """The status line: how far it is, the time of the rest, what was sent, what trains slowly."""
    state = session.runner.state
    if session.trying:
        return _of_sweep(session, state)
    if session.finding:
        return f"{state.capitalize()}: {session.told}"
    run = session.members[-1] if session.members else None
    if run is None or not run.records:
        return {"running": PREPARING, "ready": "Press Start."}.get(state, f"{state.capitalize()}.")
    last, ends, total = run.records[-1], list(run.clock), session.settings.rounds
    pace = statistics.median([b - a for a, b in pairwise(ends)] or [last["seconds"]])
    left = max(total - last["round"], 0)
    device = (
        next((f" on {p.device}" for p in run.rounds[-1].params.values()), "") if run.rounds else ""
    )
    total = max(total, last["round"])
    text = f"{state.capitalize()}: round {last['round']} of {total}, {pace:.2f} s a round{device}"
    text += f", about {left * pace:.0f} s left" if state == "running" and left else ""
    text += f"; {sums['MB up']:.1f} MB up, {sums['MB down']:.1f} MB down"
    own = session.live is not stream  # nobody knows what such a stream turns
    if CLOCK in last and (own or TIMED & run.used().keys()):
        text += f"; {last[CLOCK]:.0f} s on the simulated clock"
    if "skipped" in last:
        text += f"; the round was skipped: {last['skipped']}"
    elif "rejected" in last:
        why = Counter(last["rejected"].values()).most_common(1)[0]
        text += f"; {len(last['rejected'])} clients did not count ({why[1]}: {why[0]})"
    text += _spent(session, run)
    text += _told(run.rounds[-1]) if run.rounds else ""
    return f"{text}; {run.verdict}" if run.verdict and not session.runner.busy else text


def _spent(session: Session, run: Run) -> str:
    """What a run has spent of privacy, as a bet on one client: a person, where those are users."""
    spent, now = run.records[-1].get("epsilon"), run.last_settings
    if spent is None:
        return ""
    alone = session.live is stream and now.get("partition", usual("partition")) == "one per user"
    often = bet_in_words(spent, now.get("delta", usual("delta")))
    who = "person" if alone else "client"
    return f"; ε {spent:.2f} spent: a bet on whether one {who}'s data are in it is right {often}"


def _of_sweep(session: Session, state: str) -> str:
    """The status line of a sweep."""
    ended = [run for run in session.members if run.state != "running"]
    failed = sum(run.state == "failed" for run in ended)
    text = f"{state.capitalize()}: {len(ended)} of {session.planned} runs of the sweep ended"
    text += f", {failed} of them failed" if failed else ""
    text += f"; {session.turns}" if session.turns else ""
    share, took = session.progress, time.monotonic() - session.began
    left = f", about {took / share - took:.0f} s left" if share else ""
    return text + (left if state == "running" else "")


def _told(last: Round) -> str:
    """What a Round has to say: a warning, why the run ended early, why clients are stacked."""
    _, _, why = last.engine.partition("eager: ")
    said = last.warning, last.ended, why and f"clients are stacked: {why}"
    return "".join(f"; {words}" for words in said if words)
