"""Load trained weights into networks: from files of any training program, and from folders of runs."""

from kdkit.nets.weights.folders import (
    TRAINING_NAMES,
    find_weights,
    names_in_run,
    runs_hint,
    runs_in,
    stage_number,
    stage_weights,
)
from kdkit.nets.weights.load import LoadedWeights, load_weights
from kdkit.nets.weights.state_dicts import read_state_dicts

__all__ = [
    "TRAINING_NAMES",
    "LoadedWeights",
    "find_weights",
    "load_weights",
    "names_in_run",
    "read_state_dicts",
    "runs_hint",
    "runs_in",
    "stage_number",
    "stage_weights",
]
