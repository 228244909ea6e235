"""Runs that last: kills at any moment, what checkpoints cost, and run folders that were changed.

- `kills`: a command, or a workbench in a process, is killed (SIGKILL) at a random moment and then
  resumed. `kills_bit_equal` counts ends whose Round, state and log equal those of a run that nobody
  killed, bit for bit. `rounds_lost_most` is the time of finished rounds that were trained again; a
  single one does not count.
- `checkpoint_cost`: the share of a processor that saving takes from training, on 671 users, and
  with what 671 clients have left over in error feedback of vectors of 16 numbers, 73 MB.
- `run_mutations`: one random change of a folder of runs at a time. It is silent if anything that
  can be read then (a run, a checkpoint, the best model) is other than before and nobody says so,
  if the folder does not open, or if anything outside the run is touched.

Each kill takes about ten seconds, most of them to import torch.
"""

import hashlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import entry, is_quick, record
from composition import completed

from fedlab.__main__ import main as command
from fedlab.core import ParameterError, Round, Settings, load_round, write_settings
from fedlab.core.checkpoints import checkpoints_in
from fedlab.workbench import PRESETS, Runs, better, follow, stream
from fedlab.workbench.runs.folder import BEST, CHECKPOINT, kept
from fedlab.workbench.runs.log import CLOSING, HEAD, LOG, OPENING, START, link
from fedlab.workbench.session import Session

# every kind of state that a run may have
KINDS: dict[str, dict[str, Any]] = {
    "adam": {"server_optimizer": "adam"},
    "momentum": {"server_optimizer": "momentum"},
    "scaffold": {"local": "scaffold"},
    "error feedback": {"uplink": "error feedback"},
    "FedBuff": {"schedule": "buffered"},
    "FedAsync": {"schedule": "buffered", "method": "fedasync", "server_lr": 0.1},
    "private": {"uplink": "clip + gaussian noise", "delta": 0.01},
    "private, adaptive clip": {
        "uplink": "clip + gaussian noise",
        "delta": 0.01,
        "quantile": 0.5,
        "sampling": "poisson",
    },
    "local noise": {"uplink": "clip + local noise", "delta": 0.01},
    "implicit": {"local": "implicit"},
    "meta": {"local": "meta", "model": "content"},
    "buffered error feedback": {"schedule": "buffered", "uplink": "error feedback"},
}
ROUNDS = 150
WORKBENCH = """
import sys
from fedlab.core import Settings, read_settings
from fedlab.workbench import better, stream
from fedlab.workbench.session import Session
settings = read_settings(open(sys.argv[1]).read(), Settings())
session = Session(stream, settings, better(), sys.argv[2], {}, lambda: None)
session.start()
while session.runner.busy:
    session.runner._thread.join(1)
"""


def digest(value: Any) -> Any:
    """Something that is equal for equal values only, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else value
        return str(value.dtype), tuple(value.shape), hashlib.sha256(flat.numpy()).hexdigest()
    if is_dataclass(value):
        return type(value).__name__, [digest(getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, Mapping):
        return {
            digest(key) if isinstance(key, str) else repr(key): digest(v)
            for key, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value).__name__, [digest(each) for each in value]
    return repr(value)


def told(done: Round) -> Any:
    """A Round without its seconds."""
    return {f.name: digest(getattr(done, f.name)) for f in fields(done) if f.name != "seconds"}


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without their seconds."""
    return [{name: v for name, v in each.items() if name != "seconds"} for each in records]


# Kills


@cache
def whole(kind: str) -> tuple[Settings, Any, list[dict[str, Any]]]:
    """The settings of a kind, and the last Round and the records of a run that nobody killed."""
    settings = completed({"rounds": ROUNDS, "measure_every": 4} | KINDS[kind])
    runs = Runs()
    run = runs.begin(settings)
    for _ in follow(stream, lambda: settings, run, runs):
        pass
    return settings, told(run.rounds[-1]), timeless(run.records)


def killed(kind: str, desk: bool, wait: float, home: Path) -> float:
    """Kill a run so many seconds after its first round; return how long it had trained then."""
    (home / "settings.json").write_text(write_settings(whole(kind)[0]))
    words = [str(home / "settings.json"), str(home / "runs")]
    call = (
        ["-c", WORKBENCH, *words]
        if desk
        else ["-m", "fedlab", "run", words[0], "--folder", words[1]]
    )
    live = subprocess.Popen([sys.executable, *call], stderr=subprocess.PIPE, text=True)
    logs: list[Path] = []
    while not logs or logs[0].read_bytes().count(b"\n") < 2:
        logs = list(home.glob(f"runs/*/{LOG}"))
        if live.poll() is not None:
            raise RuntimeError(live.stderr.read() if live.stderr else "")
        time.sleep(0.002)
    began = time.monotonic()
    time.sleep(wait)
    live.send_signal(signal.SIGKILL)
    live.wait()
    return time.monotonic() - began


def kill(number: int) -> tuple[str, bool, float, int]:
    """One kill: its kind, whether the end is bit-equal, seconds of rounds lost, rounds lost."""
    kind, luck = list(KINDS)[number % len(KINDS)], random.Random(number)
    desk = (number + number // len(KINDS)) % 2 == 1
    with tempfile.TemporaryDirectory(prefix="fedlab") as folder:
        home, (_, last, records) = Path(folder), whole(kind)
        wait = luck.uniform(0, 2.5)
        trained = killed(kind, desk, wait, home)
        (run,) = Runs(home / "runs").listed()
        while run.state != "interrupted":  # it had ended by then
            wait /= 3
            shutil.rmtree(home / "runs")
            trained = killed(kind, desk, wait, home)
            (run,) = Runs(home / "runs").listed()
        done = len(run.records)
        at = [int(p.name) for p in checkpoints_in(home / "runs" / run.id / CHECKPOINT)]
        lost = done - max(at, default=0)
        seconds = trained / max(1, done - 1) * lost if lost > 1 else 0.0
        resumed(home, run.id, desk)
        (again,) = Runs(home / "runs").listed()
        end = load_round(home / "runs" / run.id)
        equal = told(end) == last and timeless(again.records) == records
    print(
        f"{number:3} {kind:24} {'workbench' if desk else 'command':10} killed at {done}, "
        f"{lost} rounds ({seconds:.2f} s) lost, {'equal' if equal else 'NOT EQUAL'}",
        flush=True,
    )
    return kind, equal, seconds, lost


def resumed(home: Path, id_: str, desk: bool) -> None:
    """Go on with a run on the road on which it was begun."""
    if not desk:
        if command(["resume", id_, "--folder", str(home / "runs")]) != 0:
            raise RuntimeError("resume failed")
        return
    session = Session(stream, Settings(), better(), home / "runs", {}, lambda: None)
    session.resume(id_)
    while session.runner.busy:
        time.sleep(0.01)
    if session.runner.error:
        raise RuntimeError(session.runner.error)


# What checkpoints cost


def cost(settings: Settings, warm: int, rounds: int, times: int) -> list[float]:
    """The share of a processor that a folder takes from training, for each of several runs.

    That is the processor time of the threads that save, over the seconds of the run, and of adding
    to the log, over the processor time of training: what is lost where no second core is free. It
    stays the same on a machine that does other things as well. warm: rounds until the state has
    grown; rounds: those that are measured.
    """
    found = []
    for _ in range(times):
        with tempfile.TemporaryDirectory(prefix="fedlab") as folder:
            runs, noted = Runs(folder, better()), [0.0]
            add = runs.add

            def timed(*given: Any, add: Any = add, noted: list[float] = noted) -> None:
                began = time.thread_time()
                add(*given)
                noted[0] += time.thread_time() - began

            runs.add = timed  # type: ignore[method-assign]
            run = runs.begin(settings)
            job = follow(stream, lambda: settings, run, runs)
            for _ in range(warm):
                next(job)
            saving = [
                time.pthread_getcpuclockid(thread.ident or 0)
                for thread in threading.enumerate()
                if thread.name == "fedlab checkpoints"
            ]
            noted[0], beside = 0.0, sum(map(time.clock_gettime, saving))
            began, own = time.perf_counter(), time.thread_time()
            for _ in range(rounds):
                next(job)
            seconds, own = time.perf_counter() - began, time.thread_time() - own
            beside = sum(map(time.clock_gettime, saving)) - beside
            job.close()
            runs.end(run, "stopped")
            found.append(beside / seconds + noted[0] / (own - noted[0]))
    return found


# Mutations


def original(home: Path) -> None:
    """Three runs: done, interrupted, and resumed after a kill with a knob turned on the way."""
    settings = completed({"rounds": 6, "server_optimizer": "adam"})
    for name, live, more in (("done", 6, 0), ("killed", 4, 0), ("resumed", 3, 3)):
        runs = Runs(home, better())
        asked = [settings]
        run = runs.begin(settings, name)
        job = follow(stream, lambda asked=asked: asked[0], run, runs)
        for number in range(live):
            if number == 2:
                asked[0] = settings.replace(server_lr=0.1)
            next(job)
        if live < 6:
            runs._live.pop(run.id).close()
        else:
            list(job)
        if more:
            runs = Runs(home, better())
            again, start = runs.resume(run.id)
            list(follow(stream, lambda asked=asked: asked[0], again, runs, start))


def seen(home: Path) -> dict[str, Any]:
    """All that can be read of each run in a folder, and what is said of it.

    run -> (said, (name, state, settings, records), Rounds by place).
    """
    runs, found = Runs(home, better()), {}
    for run in runs.listed():
        said, rounds, path = run.error + runs.trouble, {}, home / run.id
        for shelf in (CHECKPOINT, BEST) if run.open else ():
            try:
                done, more = kept(path, shelf)
                said += more
                if done is None:
                    said += f"nothing in {shelf}"
                else:
                    rounds[shelf, done.number] = told(done)
            except ParameterError as error:
                said += str(error)
        found[run.id] = said, (run.name, run.state, run.settings, run.records), rounds
    return found


def genuine(home: Path) -> dict[Any, Any]:
    """Every Round in a folder of runs, by run, shelf and number."""
    found = {}
    for shelf in (CHECKPOINT, BEST):
        for place in home.glob(f"*/{shelf}/*"):
            found[place.parents[1].name, shelf, int(place.name)] = told(load_round(place))
    return found


def lines_of(home: Path, luck: random.Random) -> tuple[Path, list[bytes]]:
    """The log of some run, and its lines."""
    path = luck.choice(sorted(home.glob(f"*/{LOG}")))
    return path, path.read_bytes().splitlines(keepends=True)


def flip(home: Path, luck: random.Random) -> None:
    """One bit of a file."""
    path = some_file(home, luck)
    content = bytearray(path.read_bytes())
    content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
    path.write_bytes(content)


def truncate(home: Path, luck: random.Random) -> None:
    """A file that is cut short."""
    path = some_file(home, luck)
    content = path.read_bytes()
    path.write_bytes(content[: luck.randrange(len(content))])


def append(home: Path, luck: random.Random) -> None:
    """Something behind the end of a file."""
    path = some_file(home, luck)
    path.write_bytes(path.read_bytes() + luck.randbytes(luck.randrange(1, 9)))


def some_file(home: Path, luck: random.Random) -> Path:
    """A file that is not empty; each kind is as likely as another."""
    every = [p for p in sorted(home.rglob("*")) if p.is_file() and p.stat().st_size]
    name = luck.choice(sorted({p.name for p in every}))
    return luck.choice([p for p in every if p.name == name])


def lines(home: Path, luck: random.Random) -> None:
    """A line taken out, written twice, or in another place."""
    path, texts = lines_of(home, luck)
    way, place = luck.choice(["out", "twice", "moved", "end"]), luck.randrange(len(texts))
    text = texts[place]
    if way == "end":
        del texts[luck.randrange(1, len(texts)) :]
    elif way in ("out", "moved"):
        del texts[place]
    if way == "twice":
        texts.insert(place, text)
    elif way == "moved":
        texts.insert((place + luck.randrange(1, len(texts))) % (len(texts) + 1), text)
    path.write_bytes(b"".join(texts))


def rename(home: Path, luck: random.Random) -> None:
    """A file or folder under another name, of another run or checkpoint too."""
    path = luck.choice([p for p in sorted(home.rglob("*")) if p.name != "lock"])
    numbers = "".join(luck.choice("0123456789") for _ in range(8))
    new = luck.choice([path.name + ".bak", numbers, "20250101-000000-000000-abcd"])
    path.rename(path.with_name(new))


def swap(home: Path, luck: random.Random) -> None:
    """Two files or folders of one name that change places."""
    path = luck.choice([p for p in sorted(home.glob("*/*/**")) if p != home])
    others = [p for p in sorted(home.rglob(path.name)) if p != path]
    if others:
        other = luck.choice(others)
        path.rename(home.parent / "between")
        other.rename(path)
        (home.parent / "between").rename(other)


def remove(home: Path, luck: random.Random) -> None:
    """A file or folder that is gone."""
    path = luck.choice(sorted(home.glob("*/**")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def symlink(home: Path, luck: random.Random) -> None:
    """A link to somebody else's in a file's place, or in a folder's."""
    path = luck.choice(sorted(home.rglob("*")))
    there = home.parent / "victim" / luck.choice([path.name, ".", "nothing"])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(there)


def forge(home: Path, luck: random.Random) -> None:
    """A log whose header has another id, with chains that fit."""
    path, texts = lines_of(home, luck)
    id_ = luck.choice(
        ["", ".", "..", "../../victim", str(home.parent / "victim"), "a b", "x" * 300]
    )
    chain, made = START, []
    for number, text in enumerate(texts):
        body = "{" + text.decode()[len(OPENING) + 64 + len(CLOSING) :].rstrip("\n")
        if not number:
            body = json.dumps(json.loads(body) | {"run": id_})
        chain = link(chain, body)
        made.append(f"{OPENING}{chain}{CLOSING}{body[1:]}\n")
    path.write_text("".join(made))
    (path.parent / HEAD).write_text(chain)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    flip, flip, flip, truncate, append, lines, lines, rename, swap, remove, symlink, forge,
]  # fmt: skip


def mutations(count: int) -> Iterator[tuple[str, str]]:
    """What each mutation did, and what came of it: as it was, said, or SILENT."""
    luck = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="fedlab") as folder:
        source, home, victim = (Path(folder, name) for name in ("source", "runs", "victim"))
        original(source)
        victim.mkdir()
        shutil.copytree(source, victim, dirs_exist_ok=True)
        before, known, precious = seen(source), genuine(source), contents(victim)
        for _ in range(count):
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(source, home)
            which = luck.choice(MUTATIONS)
            which(home, luck)
            try:
                yield which.__name__, judged(home, before, known, victim, precious)
            except Exception as error:  # noqa: BLE001 - whatever is raised is what is counted
                yield which.__name__, f"SILENT {type(error).__name__}: {error}"


def judged(home: Path, before: Any, known: Any, victim: Path, precious: Any) -> str:
    """What came of a mutation."""
    after, same = seen(home), True
    words = " ".join(said for said, _, _ in after.values())
    for id_, (said, content, rounds) in before.items():
        if id_ not in after:
            same = False
            continue
        now_said, now, now_rounds = after[id_]
        same &= (now, now_rounds, now_said) == (content, rounds, said)
        if now_said == said and now != content:
            return f"SILENT {id_} is other"
        if any(done != known[id_, *where] for where, done in now_rounds.items()):
            return f"SILENT another Round in {id_}"
    gone = before.keys() - after.keys()
    if gone and not words and any(home.iterdir()):
        return f"SILENT {gone} is gone"
    runs = Runs(home, better())
    for run in runs.listed():
        if run.state in ("damaged", "interrupted"):
            try:
                runs.delete(run.id)
            except (ParameterError, OSError):
                continue
    if contents(victim) != precious:
        return "SILENT the victim was touched"
    return "as it was" if same else "said"


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def record_mutations(every: Iterable[tuple[str, str]], quick: bool) -> None:
    """Record what came of mutations."""
    found = Counter[str]()
    for name, came in every:
        if came.startswith("SILENT"):
            print(name, came, flush=True)
        found[came.split()[0]] += 1
    same = f"{found['said']} said, {found['as']} read as they were"
    bad = "silent, not opened, or others touched"
    measured = {
        "run_mutations": entry(found.total(), "mutations", 1000, higher=True, seeds=1, note=same),
        "run_mutations_silent": entry(
            found["SILENT"], "mutations", 0, higher=False, seeds=1, note=bad
        ),
    }
    record("reliability", measured, quick)


def record_cost(shares: list[float], heavy: list[float], quick: bool) -> None:
    """Record what a folder costs; heavy: with error feedback of 671 clients, 73 MB."""
    middle = statistics.median(shares)
    span = f"{len(shares)} runs, {min(shares):.3f} to {max(shares):.3f}"
    note = f"{span}; with 73 MB of state {statistics.median(heavy):.2f}"
    share = entry(max(0.0, middle), "share", 0.05, higher=False, seeds=1, note=note)
    record("reliability", {"checkpoint_cost": share}, quick)


def record_kills(kills: list[tuple[str, bool, float, int]], quick: bool) -> None:
    """Record what became of kills."""
    equal, lost = sum(ok for _, ok, _, _ in kills), max(seconds for _, _, seconds, _ in kills)
    kinds = f"{len({kind for kind, *_ in kills})} kinds of state, command line and workbench"
    rounds = f"of finished rounds; at most {max(each[3] for each in kills)} rounds"
    measured = {
        "kills": entry(len(kills), "kills", 50, higher=True, seeds=1, note=kinds),
        "kills_bit_equal": entry(
            equal, "ends", len(kills), higher=True, seeds=1, note="Round, state and log"
        ),
        "rounds_lost_most": entry(lost, "s", 1.0, higher=False, seeds=1, note=rounds),
    }
    record("reliability", measured, quick)


def main() -> None:
    """Measure, print and record."""
    quick = is_quick()
    record_mutations(mutations(40 if quick else 1000), quick)
    settings = PRESETS["671 users, matrix factorisation"]
    settings = settings.replace(rounds=10_000)
    shares = cost(settings, 50, 200 if quick else 1_000, 1 if quick else 5)
    large = settings.replace(dim=16, uplink="error feedback")
    heavy = cost(large, 40, 20 if quick else 80, 1 if quick else 3)
    record_cost(shares, heavy, quick)
    record_kills([kill(number) for number in range(3 if quick else 50)], quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
