"""A node that lies: what it makes of an honest answer, way by way."""

import torch

from fedlab.nodes import pack, unpack


def changed(change):
    """A lie that changes head and tensors of an answer; it is packed anew, its digest right."""

    def lie(answer):
        found = unpack(answer)
        head, tensors = dict(found.head), dict(found.tensors)
        change(head, tensors)
        return pack(head, tensors)

    return lie


def put(name, change):
    def lie(head, tensors):
        tensors[name] = change(tensors[name])

    return changed(lie)


def _renamed(head, tensors):
    head["rows"]["items"] = head["rows"].pop("item")
    tensors["values items"] = tensors.pop("values item")


def _missing(head, tensors):
    del head["rows"]["bias"]


def _unasked(head, tensors):
    head["rows"]["extra"] = 0
    tensors["values extra"] = tensors["values item"]


def _others(head, tensors):
    head["cohort"] = [client + 1 for client in head["cohort"]]


def _twice(head, tensors):
    head["cohort"] = head["cohort"][:1] * len(head["cohort"])


def _round(head, tensors):
    head["round"] += 1


def _at(place, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[place] = value
        return tensor

    return change


def _swapped(ids):
    return torch.cat([ids[1:2], ids[:1], ids[2:]])


def _doubled(ids):
    return torch.cat([ids[:1], ids[:1], ids[2:]])


LIES = {
    "another name": changed(_renamed),
    "a name is missing": changed(_missing),
    "a name that nobody asked for": changed(_unasked),
    "another type": put("values item", torch.Tensor.double),
    "another shape": put("values item", lambda v: torch.cat([v, v], 1)),
    "fewer rows": put("values item", lambda v: v[1:]),
    "a row that does not exist": put("ids 0", _at(-1, 10**6)),
    "a row below 0": put("ids 0", _at(0, -1)),
    "rows out of order": put("ids 0", _swapped),
    "a row twice": put("ids 0", _doubled),
    "not a number": put("values item", _at(3, torch.nan)),
    "infinite": put("values bias", _at(0, torch.inf)),
    "a loss that is none": put("losses", _at(0, torch.nan)),
    "far too long": put("values item", lambda v: v * 1e12),
    "other counts": put("counts 0", _at(0, 0)),
    "counts below 0": put("counts 0", _at(0, -5)),
    "another round": changed(_round),
    "others' clients": changed(_others),
    "one client for all": changed(_twice),
    "cut short": lambda answer: answer[: len(answer) // 2],
    "a bit flipped": lambda answer: answer[:-9] + bytes([answer[-9] ^ 4]) + answer[-8:],
    "nothing": lambda answer: b"",
    "nonsense": lambda answer: b"fedlab 1" + bytes(1000),
}
