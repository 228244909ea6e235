"""The best model for the data at hand: one call that tunes, trains, measures and hands it over."""

from fedlab.workbench.best.fit import fit_best
from fedlab.workbench.best.model import Best
from fedlab.workbench.best.report import Row

__all__ = ["Best", "Row", "fit_best"]
