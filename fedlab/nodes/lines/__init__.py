"""What carries bytes between a coordinator and its nodes: a call, sockets, an engine of others."""

from fedlab.nodes.lines.relay import Relay
from fedlab.nodes.lines.sockets import Sockets, serve
from fedlab.nodes.lines.transport import Loop, Lost, Transport

__all__ = ["Loop", "Lost", "Relay", "Sockets", "Transport", "serve"]
