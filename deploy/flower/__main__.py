"""Flower on this machine, from nothing: `python -m deploy.flower start`, and `stop`.

`start` makes the environment, keys and certificates where they are missing, and starts what is not
there: the SuperLink with the relay, each site's SuperNode and seat, and each site's node, all on
127.0.0.1. With names (`server`, `site-1`, `site-1.seat`, `site-1.node`) it starts those alone.
`stop` ends them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.launch import environment, group, private, start, stop, until_up, wait

HERE = Path(__file__).parent
HOST = "127.0.0.1"


class Flower:
    """What is started, where `folder` has keys, sockets and logs."""

    def __init__(self, folder: Path, port: int) -> None:
        """Make the environment and what of keys is missing."""
        self.folder, self.port = folder, port
        self.bin = environment(HERE).parent
        self.keys, self.home = private(folder / "keys"), private(folder / "home")
        self.env = {
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }
        self.tls = [
            *("--ssl-certfile", self.keys / "server.crt"),
            *("--ssl-keyfile", self.keys / "server.key"),
            *("--ssl-ca-certfile", self.keys / "authority.crt"),
        ]

    def make_keys(self, sites: list[str]) -> None:
        """Make keys for sites that have none, and tell the flwr command where the SuperLink is."""
        made = [self.bin / "python", HERE / "keys.py", self.keys, HOST, *sites]
        subprocess.run(made, check=True)
        link = {"address": f"{HOST}:{self.port}", "certificates": str(self.keys / "authority.crt")}
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "{link["address"]}"\nroot-certificates = "{link["certificates"]}"\n'
        )

    def sites(self) -> list[str]:
        """Return the names of all sites that have keys."""
        return sorted(path.stem for path in self.keys.glob("*.pub"))

    def flwr(self, *words: object) -> str:
        """Return what a flwr command says; "" where it fails."""
        done = subprocess.run(
            [self.bin / "flwr", *map(str, words)],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if done.returncode else done.stdout

    def server(self) -> None:
        """Start the SuperLink, register the sites' keys, and run the relay on it."""
        if group(self.folder, "server"):
            return
        where = ["--host", HOST, "--port", self.port, "--database", self.folder / "state.db"]
        more = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        link = [self.bin / "flower-superlink", *self.tls, *where, *more]
        start(self.folder, "server", link, self.env)
        wait(lambda: self.flwr("supernode", "list", "here"), 120, "the SuperLink is not up")
        known = self.folder / "sites.json"
        numbers = json.loads(known.read_text()) if known.exists() else {}
        for site in self.sites():
            if site not in numbers:
                key = self.keys / f"{site}.pub"
                said = self.flwr("supernode", "register", key, "here", "--format", "json")
                numbers[site] = int(json.loads(said)["node-id"])
        known.write_text(json.dumps(numbers))
        app = self.folder / "app"
        shutil.copytree(HERE / "app", app, dirs_exist_ok=True)
        shutil.copy(HERE.parent / "wire.py", app / "fedlab_relay/wire.py")
        (self.folder / "run.toml").write_text(
            f"socket = \"{self.folder / 'coordinator.sock'}\"\nsites = '{json.dumps(numbers)}'\n"
        )
        if not self.flwr("run", app, "here", "--run-config", self.folder / "run.toml"):
            raise SystemExit(f"Flower does not take the relay; see {self.folder}/server.log")

    def part(self, name: str, line: str) -> None:
        """Start one part; `line` starts a node."""
        site, _, what = name.partition(".")
        socket, seat = self.folder / f"{site}.sock", self.folder / f"{site}.seat.sock"
        if name == "server":
            self.server()
        elif what == "node":
            start(self.folder, name, line.format(name=site, socket=socket).split())
        elif what == "seat":
            path = {"PYTHONPATH": str(HERE.parent)}
            start(self.folder, name, [self.bin / "python", HERE / "seat.py", socket, seat], path)
        else:
            own = [
                *("--root-certificates", self.keys / "authority.crt"),
                *("--auth-supernode-private-key", self.keys / f"{site}.key"),
                *("--superlink", f"{HOST}:{self.port}", "--host", HOST),
                *("--port", self.port + 1 + self.sites().index(site)),
                *("--node-config", f'seat="{seat}"'),
            ]
            start(self.folder, name, [self.bin / "flower-supernode", *self.tls, *own], self.env)


def main() -> None:
    """Start or stop what the command line says."""
    parser = argparse.ArgumentParser("python -m deploy.flower", description=__doc__)
    parser.add_argument("do", choices=["start", "stop"])
    parser.add_argument("names", nargs="*", help="what to start or stop; all, unless named")
    parser.add_argument("--folder", type=Path, default=HERE / "run", help="keys, sockets and logs")
    parser.add_argument("--sites", type=int, default=2, help="how many, when keys are made")
    parser.add_argument("--port", type=int, default=8710, help="of the SuperLink; sites follow it")
    parser.add_argument(
        "--node",
        default=f"{sys.executable} {HERE.parent / 'answer.py'} {{socket}}",
        help="what starts a site's node; {name} and {socket} are filled in",
    )
    said = parser.parse_args()
    flower = Flower(private(said.folder.resolve()), said.port)
    if not flower.sites():
        flower.make_keys([f"site-{number + 1}" for number in range(said.sites)])
    parts = [f"{site}{part}" for part in ("", ".seat", ".node") for site in flower.sites()]
    every = ["server", *parts]
    for name in said.names or every:
        if name not in every:
            parser.error(f"there is no {name!r} in {flower.folder}; there are {', '.join(every)}")
        if said.do == "stop":
            stop(flower.folder, name)
        else:
            flower.part(name, said.node)
    if said.do == "start" and not said.names:
        until_up(flower.folder / "coordinator.sock", flower.sites(), flower.folder)
        socket = flower.folder / "coordinator.sock"
        print(f"{len(flower.sites())} sites are up; the coordinator's socket is {socket}")


if __name__ == "__main__":
    main()
