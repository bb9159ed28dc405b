"""When to write a checkpoint, and the position in an epoch that it holds."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdkit.engine.meters import RunningMeans
from kdkit.utils import collectives
from kdkit.utils.randomness import rng_state, set_rng_state
from kdkit.utils.validation import parse_interval


@dataclass(slots=True, kw_only=True)
class BestCheckpoint:
    """The epoch with the best value of the monitored metric so far, and the weights of its networks."""

    epoch: int = -1
    value: float = -math.inf
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(slots=True)
class EpochPosition:
    """The position in an epoch.

    batches: trained so far. seconds: of training. terms: the means of the terms, if all batches are trained and only
    validation is left.
    """

    batches: int = 0
    seconds: float = 0.0
    means: RunningMeans = field(default_factory=RunningMeans)
    terms: dict[str, float] | None = None

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """Return the state with the random states, of all ranks; every rank calls this."""
        rank_state = {"rng": rng_state(device), "means": self.means.state_dict()}
        return {
            "batches": self.batches,
            "seconds": self.seconds,
            "terms": self.terms,
            "ranks": collectives.all_gather_objects([rank_state]),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "EpochPosition":
        """Return a saved position; `restore_rng` sets the random states."""
        position = cls(state["batches"], state["seconds"], terms=state["terms"])
        ranks = state["ranks"]
        if len(ranks) == collectives.world_size():
            position.means.load_state_dict(ranks[collectives.rank()]["means"])
        return position


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Set the random states of this rank to those of a saved position."""
    ranks = state["ranks"]
    if collectives.rank() < len(ranks):
        set_rng_state(ranks[collectives.rank()]["rng"], device)


class CheckpointInterval:
    """Decides after which updates of an epoch to write a checkpoint, in the same way on all ranks.

    every: a number of updates, or a time such as "30s", "10min" or "2h"; 0 for the ends of epochs only.
    Raises RecipeError for anything else.
    """

    def __init__(self, every: int | str) -> None:
        self.updates, self.seconds = parse_interval(every)
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: a checkpoint was written, or an epoch begins."""
        self._done = 0
        self._began = time.perf_counter()
        self._next_agreement = 1

    def is_due(self) -> bool:
        """Whether to write a checkpoint after this update."""
        self._done += 1
        if self.updates:
            return self._done >= self.updates
        if not self.seconds:
            return False
        if not collectives.is_distributed():
            return time.perf_counter() - self._began >= self.seconds
        # Clocks of ranks differ, so the first one decides. A decision after every update would cost a message.
        if self._done < self._next_agreement:
            return False
        elapsed = time.perf_counter() - self._began
        remaining = (self.seconds - elapsed) / elapsed * self._done  # updates, at this speed
        is_due, self._next_agreement = collectives.broadcast((remaining <= 0, self._done + max(1, int(remaining))))
        return is_due
