"""What every folder stands on: trees and rows, keyed randomness, settings and knobs, Rounds."""

from fedlab.core.knobs import (
    MADE_ONCE,
    REGISTRY,
    Knob,
    ParameterError,
    described,
    knob,
    knobs,
    known,
    like,
    register,
    require,
    several,
    strict,
    title_of,
)
from fedlab.core.parts import (
    Aggregation,
    Dataset,
    Drawn,
    Local,
    Metric,
    Part,
    Partition,
    Plan,
    Recipe,
    RoundContext,
    Schedule,
    Sent,
    Stage,
    check_read,
    turned,
    unread,
    walk,
)
from fedlab.core.randomness import Key, below, ramp, stream
from fedlab.core.rounds import Round, best_round, measured, stop_early
from fedlab.core.settings import VERSION, Settings, differing, parsed, read_settings, write_settings
from fedlab.core.tree import (
    Delta,
    Lookup,
    Rows,
    Score,
    SparseTable,
    Tree,
    Update,
    arranged,
    as_tensor,
    joined,
    moved,
    norms,
    one_thread,
    pieces,
    to,
    whole,
)

__all__ = ["MADE_ONCE", "REGISTRY", "VERSION", "Aggregation", "Dataset", "Delta", "Drawn", "Key",
           "Knob", "Local", "Lookup", "Metric", "ParameterError", "Part", "Partition", "Plan",
           "Recipe", "Round", "RoundContext", "Rows", "Schedule", "Score", "Sent", "Settings",
           "SparseTable", "Stage", "Tree", "Update", "arranged", "as_tensor", "below", "best_round",
           "check_read", "described", "differing", "joined", "knob", "knobs", "known", "like",
           "measured", "moved", "norms", "one_thread", "parsed", "pieces", "ramp", "read_settings",
           "register", "require", "several", "stop_early", "stream", "strict", "title_of", "to",
           "turned", "unread", "walk", "whole", "write_settings"]
