"""What the server takes for a delta: finite numbers, in the shape of its own parameters.

One bad client harms no other.

Letters: C clients, R rows.
"""

from torch import Tensor

from fedlab.core import Rows, Tree, Update


def misfits(update: Update, server: Tree, finite: Tensor) -> dict[int, str]:
    """Client number -> what is wrong with what it sent. finite (C,): whether its numbers are."""
    bad = dict.fromkeys(update.cohort[~finite].tolist(),
                        "its delta or loss is not finite; lower local_lr, or look at its data")
    for name, delta in update.deltas.items():
        if name in server:
            for place, reason in _strange(name, delta, server[name]).items():
                bad.setdefault(int(update.cohort[place]), reason)
    return bad


def _strange(name: str, delta: Rows, server: Tensor) -> dict[int, str]:
    """Place of a client -> why its rows do not fit the server's."""
    if delta.values.shape[1:] != server.shape[1:]:
        reason = (f"its {name!r} has rows of shape {tuple(delta.values.shape[1:])}, "
                  f"the server's have {tuple(server.shape[1:])}")
        return dict.fromkeys(delta.client.unique().tolist(), reason)
    if len(delta.ids) and not 0 <= int(delta.ids.min()) <= int(delta.ids.max()) < len(server):
        outside = (delta.ids < 0) | (delta.ids >= len(server))
        return dict.fromkeys(delta.client[outside].unique().tolist(),
                             f"its {name!r} has a row that is none of the server's {len(server)}")
    return {}
