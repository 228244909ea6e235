"""One federation on several processes, its ranks, that `torchrun` starts.

Each rank runs the same loop on the same data and settings. It trains its share of the clients, and
all ranks exchange what these learned, piece by piece, in the order of the cohort: so they end a
round with the bits of one process. What the operating system draws is drawn by rank 0 for all.

Source: Li et al. 2020, "PyTorch distributed: experiences on accelerating data parallel training".
"""

import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

P = TypeVar("P")
R = TypeVar("R")
TURNS = 4  # pieces of each rank that are exchanged at once
_here = threading.local()  # of each thread, whether it works on a piece of its own


@contextmanager
def joined(seconds: float = 600) -> Iterator[int]:
    """Be one of the ranks that torchrun started, as its environment says; gives the number.

    seconds: how long a rank waits for the others before it ends with an error. Each has a session
    of its own: Linux shares cores among sessions. Without torchrun this process is rank 0 of one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    with suppress(PermissionError):  # torchrun has done so
        os.setsid()
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def several() -> bool:
    """Whether other ranks run the same loop, and this thread is not at a piece of its own."""
    return dist.is_available() and dist.is_initialized() and not getattr(_here, "alone", False)


def follows() -> bool:
    """Whether rank 0 is another process, which keeps and shows what they train together."""
    return several() and dist.get_rank() > 0


def beside() -> int:
    """How many ranks share the cores of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several() else 1


def agreed(make: Callable[[], R]) -> R:
    """What `make` gives on rank 0, on all of them; raises there what it raises here."""
    if not several():
        return make()
    found = [_tried(make) if dist.get_rank() == 0 else None]
    _together(dist.broadcast_object_list, found)
    return _value(found[0])


def shared(
    run: Callable[[Callable[[P], R], Sequence[P]], Iterator[R]],
    work: Callable[[P], R],
    pieces: Sequence[P],
) -> Iterator[R]:
    """Yield what `work` makes of each piece, in their order, on every rank.

    run: yields that of some pieces, in their order; a rank runs one of every so many. Raises on
    all what is raised on one.
    """
    rank, count = dist.get_rank(), dist.get_world_size()

    def own(piece: P) -> tuple[R | None, Exception | None]:
        _here.alone = True
        try:
            return _tried(partial(work, piece))
        finally:
            _here.alone = False

    mine = run(own, pieces[rank::count])  # type: ignore[arg-type]
    for first in range(0, len(pieces), TURNS * count):
        parts = _gathered(list(islice(mine, TURNS)))
        for place in range(min(TURNS * count, len(pieces) - first)):
            yield _value(parts[place % count][place // count])


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays, which takes a tenth of the time of torch's own way."""

    def reducer_override(self, value: Any) -> Any:
        """How a tensor is made anew; all else as it usually is."""
        if type(value) is Tensor and value.device.type == "cpu" and not value.requires_grad:
            with suppress(TypeError):  # numpy has no such numbers
                return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _gathered(value: list[R]) -> list[list[R]]:
    """The values of all ranks."""
    out, count, rank = io.BytesIO(), dist.get_world_size(), dist.get_rank()
    _Pickler(out, protocol=5).dump(value)
    size = torch.tensor([out.tell()])
    sizes = [torch.empty_like(size) for _ in range(count)]
    _together(dist.all_gather, sizes, size)
    own = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    own[: int(size)] = torch.frombuffer(out.getbuffer(), dtype=torch.uint8)
    every = [torch.empty_like(own) for _ in range(count)]
    _together(dist.all_gather, every, own)
    return [
        value if k == rank else pickle.loads(part.numpy().data[: int(sizes[k])])
        for k, part in enumerate(every)
    ]


def _together(exchange: Callable[..., None], *given: object) -> None:
    """Exchange with all ranks; raises `ConnectionError` where one is gone."""
    try:
        exchange(*given)
    except RuntimeError as error:
        raise ConnectionError(
            "another rank has ended, or is silent for too long; what it printed says why. What is "
            "done is kept: `fedlab resume` goes on, on any number of ranks"
        ) from error


def _tried(make: Callable[[], R]) -> tuple[R | None, Exception | None]:
    """What it gives, or raises: others wait for either."""
    try:
        return make(), None
    except Exception as error:  # noqa: BLE001 - raised again on every rank
        return None, error


def _value(found: Any) -> Any:
    """The value of what was tried; raises its error."""
    value, error = found
    if error is not None:
        raise error
    return value
