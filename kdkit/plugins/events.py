"""What watchers are told: plain values about a run, never a live model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdkit.metrics import MetricResult


class Figures(Mapping[str, float]):
    """Named scalars that are read off their device only when somebody looks."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> float:
        return float(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run begins. stages: their names in order. notices: what a reader of its figures must know."""

    recipe: str
    stages: tuple[str, ...]
    device: str
    seed: int
    folder: Path | None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """A stage begins, or goes on after an interruption at `epoch` (counted from 0).

    notices: which teachers are asked at every step although others are recorded, and why.
    """

    index: int
    name: str
    epoch: int
    epochs: int
    batches: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """A batch was learned from. terms: the unweighted value of each; reading one may wait for the device."""

    stage: str
    epoch: int
    batch: int
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """An epoch ended. terms: their means over it. score: the figure that decides which epoch is kept.

    gradients: "norms" by label and "cosines" by "label | label", where the run's options ask for them and an update of
    this epoch was looked at; means over these.
    """

    stage: str
    epoch: int
    terms: Mapping[str, float]
    weights: Mapping[str, float]
    monitor: str
    monitor_value: float
    best: bool
    seconds: float
    learning_rate: float
    gradients: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run ended: with scores by net and score name, or with the error that stopped it."""

    metrics: Mapping[str, Mapping[str, MetricResult]]
    parameters: Mapping[str, int]
    reported_on: str
    folder: Path | None
    seconds: float
    error: BaseException | None = None
