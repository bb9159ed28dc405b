"""The progress of a stage in training: its history, its best epoch, and the position in the next epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdkit.engine.storage.history import History
from kdkit.engine.training.meters import RunningMeans
from kdkit.utils import collectives
from kdkit.utils.randomness import rng_state, set_rng_state


@dataclass(slots=True, kw_only=True)
class BestCheckpoint:
    """The epoch with the best value of the monitored metric so far, and the weights of its networks."""

    epoch: int = -1
    value: float = -math.inf
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class EpochPosition:
    """The position in an epoch.

    batches: trained so far. seconds: of training so far. means: of the terms so far. terms: the means over the whole
    epoch if only the validation is left; otherwise None. stopped_by: the callback that requested in a step that the
    stage ends after this epoch; None if none did. rng: the random states of this rank in the checkpoint that the epoch
    is resumed from.
    """

    batches: int = 0
    seconds: float = 0.0
    means: RunningMeans = field(default_factory=RunningMeans)
    terms: dict[str, float] | None = None
    stopped_by: str | None = None
    rng: Any = None

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """Return the position, with the means and random states of all ranks. Every rank must call this."""
        rank_state = {"rng": rng_state(device), "means": self.means.state_dict()}
        return {
            "batches": self.batches,
            "seconds": self.seconds,
            "terms": self.terms,
            "stopped_by": self.stopped_by,
            "ranks": collectives.all_gather_objects([rank_state]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EpochPosition":
        """Return a saved position."""
        position = cls(**{name: state[name] for name in ("batches", "seconds", "terms", "stopped_by")})
        ranks, rank = state["ranks"], collectives.rank()
        if rank < len(ranks):
            position.rng = ranks[rank]["rng"]
        if len(ranks) == collectives.world_size():
            position.means.load_state_dict(ranks[rank]["means"])
        else:
            position.means.load_share([state["means"] for state in ranks], 1 / collectives.world_size())
        return position

    def restore_rng(self, device: torch.device) -> None:
        """Set the random states to those of the checkpoint if the epoch is resumed."""
        if self.rng is not None:
            set_rng_state(self.rng, device)


@dataclass(slots=True, kw_only=True)
class StageProgress:
    """The progress of a stage. Together with a TrainState, this is everything that a checkpoint holds.

    history: an entry for each finished epoch. best: the best of these epochs. position: in the next epoch.
    cache_entries: the entries of the teacher cache at the start of the stage.
    """

    history: History = field(default_factory=list)
    best: BestCheckpoint = field(default_factory=BestCheckpoint)
    position: EpochPosition = field(default_factory=EpochPosition)
    cache_entries: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak_memory(self) -> int | None:
        """The peak memory of tensors in any epoch, in bytes, including epochs before a resume. None if not measured."""
        return max((entry["peak_memory_bytes"] for entry in self.history if "peak_memory_bytes" in entry), default=None)
