"""NVFLARE on this machine, from nothing: `python -m deploy.nvflare start`, and `stop`.

`start` makes the environment, keys and certificates where they are missing, and starts what is not
there: the server, each site and each site's node, all on 127.0.0.1. With names (`server`, `site-1`,
`site-1.node`) it starts those alone. `stop` ends them.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.launch import environment, private, start, stop, until_up

HERE = Path(__file__).parent
PROJECT = """\
api_version: 4
name: federation
description: carries fedlab's bytes
participants:
  - {{name: server, type: server, org: fedlab, fed_learn_port: {port}, admin_port: {port},
     default_host: {host}, host_names: [{host}]}}
{sites}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
  - {{path: nvflare.lighter.impl.static_file.StaticFileBuilder,
     args: {{config_folder: config, scheme: grpc}}}}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""
LARGEST = 1 << 28  # bytes of a question or an answer; NVFLARE refuses what is longer
SETTINGS = ["secure_train=true", "org=fedlab", "config_folder=config", "heart_beat_interval=2"]


def kits(folder: Path, sites: list[str], port: int, host: str = "127.0.0.1") -> Path:
    """Make keys and certificates for a server and its sites; return the folder with a kit of each.

    A kit is a folder to hand over: certificate, key, the project's root certificate, settings. The
    root's key stays in `folder/federation/state`, and a later call with more sites signs with it.
    """
    rows = "\n".join(f"  - {{name: {site}, type: client, org: fedlab}}" for site in sites)
    (folder / "project.yml").write_text(PROJECT.format(port=port, host=host, sites=rows))
    tool = [environment(HERE).parent / "nvflare", "provision"]
    made = subprocess.run(
        [*tool, "-p", folder / "project.yml", "-w", folder],
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(f"NVFLARE could not make the kits: {made.stdout}{made.stderr}")
    made_kits = max((folder / "federation").glob("prod_*"))
    for name in ["server", *sites]:
        equip(folder, made_kits / name, sites)
    return made_kits


def equip(folder: Path, kit: Path, sites: list[str]) -> None:
    """Put the relay into a kit, and take out what it does not need."""
    private(kit)
    name, local = kit.name, kit / "local"
    private(local / "custom")
    shutil.copy(HERE / "relay.py", local / "custom/fedlab_relay.py")
    shutil.copy(HERE.parent / "wire.py", local / "custom/fedlab_wire.py")
    resources = json.loads((local / "resources.json.default").read_text())
    if name == "server":
        args = {
            "socket": str(folder / "coordinator.sock"),
            "sites": sites,
            "key": str(kit / "startup/server.key"),
        }
        part = {"id": "fedlab", "path": "fedlab_relay.ServerRelay", "args": args}
        resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "states")
        for other in resources["components"]:
            if other["id"] == "job_manager":
                other["args"]["uri_root"] = str(kit / "jobs")
    else:
        args = {"socket": str(folder / f"{name}.sock")}
        part = {"id": "fedlab", "path": "fedlab_relay.SiteRelay", "args": args}
        resources["client"] |= {"maint_msg_timeout": 5.0}
    resources["components"].append(part)
    resources["class_allow_list"].append(part["path"])
    (local / "resources.json").write_text(json.dumps(resources, indent=2))
    inner = {"scheme": "tcp", "resources": {"host": "127.0.0.1", "connection_security": "mtls"}}
    limits = {"streaming_max_blob_size": LARGEST, "internal": inner}
    (local / "comm_config.json").write_text(json.dumps(limits, indent=2))


def command(folder: Path, kit: Path) -> list:
    """Return what starts the process of a kit."""
    python = environment(HERE)
    if kit.name == "server":
        program, config, more = "server.server_train", "fed_server.json", ["host=127.0.0.1"]
    else:
        program, config, more = "client.client_train", "fed_client.json", [f"uid={kit.name}"]
    where = ["-m", f"nvflare.private.fed.app.{program}", "-m", kit, "-s", config]
    return [python, *where, "--set", *SETTINGS, *more]


def main() -> None:
    """Start or stop what the command line says."""
    parser = argparse.ArgumentParser("python -m deploy.nvflare", description=__doc__)
    parser.add_argument("do", choices=["kits", "start", "stop"])
    parser.add_argument("names", nargs="*", help="what to start or stop; all, unless named")
    parser.add_argument("--folder", type=Path, default=HERE / "run", help="keys, sockets and logs")
    parser.add_argument("--sites", type=int, default=2, help="how many, when kits are made")
    parser.add_argument("--port", type=int, default=8702, help="of the server, on 127.0.0.1")
    parser.add_argument(
        "--node",
        default=f"{sys.executable} {HERE.parent / 'answer.py'} {{socket}}",
        help="what starts a site's node; {name} and {socket} are filled in",
    )
    said = parser.parse_args()
    folder = private(said.folder.resolve())
    sites = [f"site-{number + 1}" for number in range(said.sites)]
    if said.do == "kits" or not (folder / "federation").exists():
        kits(folder, sites, said.port)
    made = max((folder / "federation").glob("prod_*"))
    sites = sorted(kit.name for kit in made.iterdir() if kit.name.startswith("site-"))
    every = ["server", *[f"{site}.node" for site in sites], *sites]
    for name in said.names or every:
        if name not in every:
            parser.error(f"there is no {name!r} in {folder}; there are {', '.join(every)}")
        if said.do == "stop":
            stop(folder, name)
        elif said.do == "start" and name.endswith(".node"):
            site = name.removesuffix(".node")
            line = said.node.format(name=site, socket=folder / f"{site}.sock")
            start(folder, name, line.split())
        elif said.do == "start":
            start(folder, name, command(folder, made / name), {"HOME": str(folder)})
    if said.do == "start" and not said.names:
        until_up(folder / "coordinator.sock", sites, folder)
        print(f"{len(sites)} sites are up; the coordinator's socket is {folder}/coordinator.sock")


if __name__ == "__main__":
    main()
