"""What every folder stands on: trees and rows, keyed randomness, settings and knobs, Rounds."""

from fedlab.core.knobs import ParameterError, knob, knobs, known, require, strict
from fedlab.core.randomness import Key, below, ramp, stream
from fedlab.core.rounds import Round, best_round, measured, one_thread, stop_early
from fedlab.core.settings import VERSION, Config, differing, parsed
from fedlab.core.tables import Lookup, SparseTable, arranged, as_tensor, joined, parts
from fedlab.core.tree import Rows, Score, Tree, Update, norms, to

__all__ = ["VERSION", "Config", "Key", "Lookup", "ParameterError", "Round", "Rows", "Score",
           "SparseTable", "Tree", "Update", "arranged", "as_tensor", "below", "best_round", "differing", "joined", "knob",
           "knobs", "known", "measured", "norms", "one_thread", "parsed", "parts", "ramp", "require",
           "stop_early", "stream", "strict", "to"]
