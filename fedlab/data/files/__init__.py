"""The door for data: what a file is, which column is what, and interactions of it."""

from fedlab.data.files.door import (
    asked_for,
    described,
    from_arrays,
    from_frame,
    read,
    read_asked,
    read_split,
)

__all__ = [
    "asked_for",
    "described",
    "from_arrays",
    "from_frame",
    "read",
    "read_asked",
    "read_split",
]
