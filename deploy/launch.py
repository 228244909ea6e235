"""What starts an engine and stops it: its environment, its processes, each in a session of its own.

A process has a session of its own, so that it outlives the terminal, is killed with all it started,
and gets its own share of the processor: Linux shares that by session.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.wire import receive, send


def environment(folder: Path) -> Path:
    """Return the Python of `folder/.venv`, made anew where `folder/requirements.txt` is another."""
    wanted, made = folder / "requirements.txt", folder / ".venv/requirements.txt"
    python = folder / ".venv/bin/python"
    with (folder / "requirements.txt").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two that start at once make it once
        if not made.exists() or made.read_text() != wanted.read_text():
            print(f"making {folder / '.venv'}", flush=True)
            shutil.rmtree(folder / ".venv", ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
            pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-deps", "-r", wanted], check=True)
            shutil.copy(wanted, made)
    return python


def private(folder: Path) -> Path:
    """Return the folder, made where it is missing, and open to nobody else."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def start(folder: Path, name: str, command: list, env: Mapping[str, str] | None = None) -> None:
    """Start a process that stays, unless it is there; `folder` has its log and its number."""
    if not group(folder, name):
        with (folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (folder / f"{name}.pid").write_text(str(process.pid))


def group(folder: Path, name: str) -> int:
    """Return the number of the process `name` that was started in `folder`, 0 where it is gone."""
    noted = folder / f"{name}.pid"
    number = noted.read_text() if noted.exists() else "0"
    # The number may be another program's by now: ours has this folder in its command.
    look = ["ps", "-ww", "-o", "stat=", "-o", "command=", "-p", number]
    line = subprocess.run(look, capture_output=True, text=True, check=False).stdout
    return int(number) if str(folder) in line and not line.startswith("Z") else 0


def stop(folder: Path, name: str, how: signal.Signals = signal.SIGKILL) -> None:
    """End a process and all that it started."""
    if number := group(folder, name):
        os.killpg(number, how)
        wait(lambda: not group(folder, name), 30, f"{name} does not end")
    (folder / f"{name}.pid").unlink(missing_ok=True)


def wait(there: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait until `there()` is true.

    Raises:
        SystemExit: `seconds` went by; it says `otherwise`.

    """
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            raise SystemExit(f"{otherwise} after {seconds:.0f} s")
        time.sleep(0.2)


def until_up(path: Path, sites: list[str], folder: Path) -> None:
    """Wait until the coordinator could ask each of `sites` through the socket at `path`."""

    def there() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(path))
                send(line, 0, b'{"op": "nodes"}')
                found = json.loads(receive(line)[1])
        except OSError:
            return False
        return not any(found.get(site, "unknown") for site in sites)

    wait(there, 180, f"not all sites are up, see the logs in {folder},")
