"""The events that callbacks receive: plain values that describe a run, never a live model.

`hooks.py` imports this module, and `kdkit --help` imports `hooks.py`. So no type here comes from torch, or from
`kdkit.metrics`, which imports torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsFloat


class StopTraining(Exception):  # noqa: N818  # a request like StopIteration, not an error
    """Raised by a callback in `step_ended` or `epoch_ended` to end the stage after its current epoch.

    The epoch is finished and validated, the best epoch is kept, and later stages run. The name of the callback and the
    message, such as `StopTraining("accuracy is above 0.9")`, are recorded in the history and in the run folder.
    """


class ReportedMetric(Protocol):
    """The result of a metric; see `kdkit.MetricResult` for the meaning of each attribute."""

    @property
    def value(self) -> float:
        """The value on the reported split; NaN if it is undefined."""
        ...

    @property
    def by_class(self) -> Mapping[str, float]:
        """The value of each class, if the metric has one per class."""
        ...

    @property
    def note(self) -> str:
        """A warning about the value, such as classes without positives; empty if there is none."""
        ...

    @property
    def interval(self) -> tuple[float, float] | None:
        """The (low, high) bounds of a confidence interval, or None if it was not computed."""
        ...

    @property
    def intervals_by_class(self) -> Mapping[str, tuple[float, float]]:
        """The (low, high) bounds of each class."""
        ...


class Figures(Mapping[str, float]):
    """Named scalars that are copied from their device only when read."""

    __slots__ = ("_scalars",)

    def __init__(self, scalars: Mapping[str, SupportsFloat]) -> None:
        self._scalars = scalars  # usually 0-dimensional tensors

    def __getitem__(self, name: str) -> float:
        return float(self._scalars[name])  # for a tensor on a GPU, this waits until the device has computed it

    def __iter__(self) -> Iterator[str]:
        return iter(self._scalars)

    def __len__(self) -> int:
        return len(self._scalars)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run starts.

    recipe: the name of the recipe. stages: their names, in the order of training. device, seed: of the run. folder: the
    run folder, or None. notices: warnings that a reader of the results must know.
    resumed: whether the run was stopped before and continues from its folder.
    options: the arguments of recipe() by name; empty if a recipe was run from Python. settings: the numbers and choices
    of the run and its stages for loggers, flat, such as "precision", "student/epochs" and "student/learning_rate".
    parameters: the number of parameters by network. versions: of kdkit, torch, Python and plugins.
    """

    recipe: str
    stages: tuple[str, ...]
    device: str
    seed: int
    folder: Path | None
    notices: tuple[str, ...] = ()
    resumed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """A stage starts, or resumes at `epoch` and its `batch` (counted from 0).

    index, name: the stage, counted from 0. epochs: their number. batches: their number per epoch.
    notices: the teachers that are called at every step although other teacher outputs are cached, and the reasons.
    samples: the number of training samples per epoch; None if a DataLoader does not know it. learning_rate: of the
    first parameter group, at the start. weights: of the terms by label, at the start. monitor: the metric that selects
    the best epoch. best_value: its value in the best epoch before the stage was resumed; None if there is none.
    """

    index: int
    name: str
    epoch: int
    epochs: int
    batches: int
    batch: int = 0
    notices: tuple[str, ...] = ()
    samples: int | None = None
    learning_rate: float = math.nan
    weights: Mapping[str, float] = field(default_factory=dict)
    monitor: str = ""
    best_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """The training step of a batch ended.

    stage, epoch, batch: the position in the run, counted from 0. terms: the value of each term by label, without its
    weight, on the first rank; reading a value may wait for the device.
    learning_rate: of the first parameter group after this step; `float(event.learning_rate)` may wait too.
    """

    stage: str
    epoch: int
    batch: int
    terms: Mapping[str, float]
    learning_rate: SupportsFloat = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """An epoch was trained and validated.

    stage, epoch: the position in the run, counted from 0. terms: the mean of each term over the epoch by label, without
    its weight. weights: the current weight of each term. term_nets: the net that each term trains.
    monitor, monitor_value: the metric on the validation split that selects the best epoch, as a mean over the nets in
    training. monitor_values: by net. best: whether this epoch is the best so far.
    seconds: the duration of its training. learning_rate: the current one, of the first parameter group.
    gradients: "norms" of the weighted terms by label and "cosines" by "label | label", as means over the updates of the
    epoch at which they were recorded; None if the run does not record them (`--gradients N`).
    peak_memory_bytes: the peak memory of tensors on a CUDA device in this stage so far; None on other devices.
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
    term_nets: Mapping[str, str] = field(default_factory=dict)
    monitor_values: Mapping[str, float] = field(default_factory=dict)
    gradients: Mapping[str, Mapping[str, float]] | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineDifference:
    """A metric of a distilled student minus that of its baseline, with a bootstrap interval over the samples.

    student, baseline: the names of the nets. verdict: "better", "worse" or "not distinguishable", for these nets;
    another seed gives other nets.
    """

    student: str
    baseline: str
    metric: str
    value: float
    interval: tuple[float, float]
    level: float
    verdict: str
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run ended, with its metrics by net and metric name, or with the error that stopped it.

    metrics: empty after an error. parameters: the number of parameters by network. reported_on: the split of the
    metrics, "test" or "validation". folder: the run folder, or None. seconds: the duration of the run. error: the
    exception that ended it, or None. differences: of each student from its baseline, for each metric, if the run has
    baselines.
    """

    metrics: Mapping[str, Mapping[str, ReportedMetric]]
    parameters: Mapping[str, int]
    reported_on: str
    folder: Path | None
    seconds: float
    error: BaseException | None = None
    differences: tuple[BaselineDifference, ...] = ()
