"""The same loop over real machines: messages, nodes, a coordinator, and what carries the bytes."""

from fedlab.nodes.transport import Loop, Lost, Transport

__all__ = ["Loop", "Lost", "Transport"]
