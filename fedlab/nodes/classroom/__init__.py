"""A class: a coordinator that a teacher starts, and learners who join from their notebooks."""

from fedlab.nodes.classroom.entrance import LIMIT, Entrance, Invitation
from fedlab.nodes.classroom.learner import Learner, join
from fedlab.nodes.classroom.teacher import PRIVATE, USUAL, saved, started, taught, welcome

__all__ = [
    "LIMIT",
    "PRIVATE",
    "USUAL",
    "Entrance",
    "Invitation",
    "Learner",
    "join",
    "saved",
    "started",
    "taught",
    "welcome",
]
