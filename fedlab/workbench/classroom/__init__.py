"""A class on the screen: what a learner rates and sees, and the teacher's workbench."""

from fedlab.workbench.classroom.ratings import Ratings, familiar
from fedlab.workbench.classroom.teacher import Classroom

__all__ = ["Classroom", "Ratings", "familiar"]
