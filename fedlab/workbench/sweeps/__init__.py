"""Sweeps: which runs they are made of, and how these train side by side."""

from fedlab.workbench.sweeps.grid import Sweep, values
from fedlab.workbench.sweeps.trials import Begin, Trials

__all__ = ["Begin", "Sweep", "Trials", "values"]
