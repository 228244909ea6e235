"""Carries bytes over Flower, the server's side: from the coordinator's socket to Flower's grid."""

import json
import os
import threading
import time
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlab_relay.wire import LATE, Answer, listen, serve

app = ServerApp()


class Relay:
    """Asks SuperNodes what the coordinator asks.

    Args:
        grid: Flower's door to its SuperNodes.
        sites: Name of each site that belongs to the federation -> number of its SuperNode, which
            Flower derives from the key that was registered for it.
        grace: Seconds after a start during which a site that was not there yet is waited for.

    """

    def __init__(self, grid: Grid, sites: dict[str, int], grace: float = 45.0) -> None:
        self.grid, self.sites, self.grace = grid, sites, grace
        self.began, self.lock = time.monotonic(), threading.Lock()
        self.seen: set[str] = set()

    def nodes(self) -> dict[str, str]:
        """Return all sites, and why each is out of reach."""
        while True:
            with self.lock:
                there = set(self.grid.get_node_ids())
            away = "its SuperNode is not connected"
            found = {name: "" if n in there else away for name, n in self.sites.items()}
            self.seen |= {name for name, why in found.items() if not why}
            if self.seen.issuperset(found) or time.monotonic() > self.began + self.grace:
                return found
            time.sleep(0.5)

    def ask(self, site: str, question: bytes, seconds: float, hung_up: Callable) -> Answer:
        """Ask one site."""
        until = time.monotonic() + seconds
        if why := self.nodes().get(site, "no site of this name belongs to the federation"):
            return why, b""
        content = RecordDict({"fedlab": ConfigRecord({"bytes": question, "seconds": seconds})})
        message = Message(content, self.sites[site], "query", ttl=seconds + 10)
        with self.lock:
            (number,) = self.grid.push_messages([message])
        while time.monotonic() < until and not hung_up():
            with self.lock:
                replies = list(self.grid.pull_messages([number]))
            for reply in replies:
                if reply.has_error():
                    return f"Flower says: {reply.error.code}, {reply.error.reason}"[:300], b""
                record = reply.content["fedlab"]
                return str(record["why"]), bytes(record["bytes"])
            time.sleep(0.1)
        return LATE, b""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Listen for the coordinator as long as the SuperLink lives."""
    relay = Relay(grid, json.loads(str(context.run_config["sites"])))
    listen(str(context.run_config["socket"]), lambda line: serve(line, relay.nodes, relay.ask))
    parent = os.getppid()
    while os.getppid() == parent:  # Flower leaves it behind when the SuperLink is killed
        time.sleep(1)
