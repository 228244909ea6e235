"""Carries bytes over Flower, a site's side: from a message to the site's seat, and back.

Flower starts this anew for each message, so the node connects to a seat that stays, `seat.py`.
"""

import json
import socket

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlab_relay.wire import receive, send

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Ask this site's node."""
    record = message.content["fedlab"]
    order = {"op": "ask", "to": ["node"], "seconds": float(record["seconds"])}
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(context.node_config["seat"]))
            send(line, 0, json.dumps(order).encode())
            send(line, 0, bytes(record["bytes"]))
            why, answer = receive(line)[1].decode(), receive(line)[1]
    except OSError as problem:
        why, answer = f"its seat gave no answer: {problem}", b""
    content = RecordDict({"fedlab": ConfigRecord({"why": why, "bytes": answer})})
    return Message(content, reply_to=message)
