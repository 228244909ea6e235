"""The same loop over real machines: messages, nodes, a coordinator, and what carries the bytes."""

from fedlab.nodes.classroom import join
from fedlab.nodes.coordinator import Coordinator, Line, Roster, gathered, metrics
from fedlab.nodes.folders import cut_into, read_node, write_node
from fedlab.nodes.lines import Loop, Lost, Relay, Sockets, Transport, serve
from fedlab.nodes.messages import Message, MessageError, pack, unpack
from fedlab.nodes.node import Held, Node

__all__ = [
    "Coordinator",
    "Held",
    "Line",
    "Loop",
    "Lost",
    "Message",
    "MessageError",
    "Node",
    "Relay",
    "Roster",
    "Sockets",
    "Transport",
    "cut_into",
    "gathered",
    "join",
    "metrics",
    "pack",
    "read_node",
    "serve",
    "unpack",
    "write_node",
]
