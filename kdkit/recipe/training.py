"""The training options of a stage: epochs, optimizer, LR schedule, balancing, EMA, and the epoch to keep."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from kdkit.errors import RecipeError, describe, shortened
from kdkit.nets.moving_average import MovingAverage, validate_decay
from kdkit.nets.net import Net
from kdkit.recipe.balancing.base import Balancing, WeightedSum
from kdkit.recipe.optim import LRSchedule, Optimizer
from kdkit.utils.validation import validate_above_zero, validate_choice, validate_counts

Keep = Literal["best", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageWeights:
    """Validate and keep an exponential moving average of the weights and buffers, computed as in torch's AveragedModel.

    decay: the weight of the old average in each update except the first, which copies the weights.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        validate_decay(self.decay)

    def build(self, net: Net[Any]) -> MovingAverage:
        """Return the average of a network, which starts as a copy. Raises RecipeError if it cannot be copied."""
        return MovingAverage(net.copy_network(), self.decay, ramp=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the networks of a stage are trained.

    batch_size: the number of samples per micro-batch, over all ranks. A last batch with a single sample is dropped,
    because batch norm needs two.
    steps_per_epoch: the number of batches per epoch, after which the networks are validated. The next epoch continues
    where the last one stopped, through one pass over the data after another. None means one pass per epoch; a stream
    without a length needs a number.
    accumulate_steps: the number of micro-batches per optimizer update. The gradient is that of one batch with all their
    samples, even if micro-batches differ in size or in the number of labels that a loss averages over. Batch norm,
    losses that relate samples, and the balancing PCGrad, CAGrad and GradNorm see one micro-batch at a time.
    max_grad_norm: clip the gradient norm over all trained parameters; None does not clip.
    balancing: how terms become gradients: WeightedSum, UncertaintyWeighting, GradNorm, CAGrad or PCGrad.
    keep: whether to keep the weights of the "best" epoch, by the metric `monitor` on the validation split (the recipe's
    first metric if None), or of the "last" epoch. None keeps the best epoch; but if no term trains the outputs, for
    example if all terms are on features, the metric means nothing, and None without `patience` keeps the last epoch.
    If several epochs have the best value, the first of them is kept; the last one if the stage begins with them, when
    the metric has not changed yet.
    ema: validate and keep a moving average of the weights instead of the weights.
    patience: end the stage early if the monitored metric has not improved for this many epochs; None trains all epochs.
    Schedules of learning rates and weights keep the length of all epochs.
    workers: the number of processes that load batches; 0 loads them in this process. None uses processes next to a GPU
    if the data recommends it, and none on a CPU, whose cores the network needs. Results do not depend on it.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=1e-3))
    lr_schedule: LRSchedule | None = None
    accumulate_steps: int = 1
    max_grad_norm: float | None = None
    balancing: Balancing = field(default_factory=WeightedSum)
    keep: Keep | None = None
    monitor: str | None = None
    ema: AverageWeights | None = None
    patience: int | None = None
    steps_per_epoch: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        validate_counts(self, "epochs", "batch_size", "accumulate_steps")
        validate_counts(self, "workers", least=0, optional=True)
        validate_counts(self, "patience", "steps_per_epoch", optional=True)
        validate_above_zero("max_grad_norm", self.max_grad_norm, optional=True)
        validate_choice("keep", self.keep, Keep, optional=True)
        if not isinstance(self.monitor, str | None):
            raise RecipeError(
                f"monitor must be the name of a metric, such as 'accuracy', or None; got {self.monitor!r}"
            )
        if self.patience is not None and self.keep == "last":
            raise RecipeError(
                "patience waits for a better epoch, but keep='last' keeps the last one; leave out one of the two"
            )
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(
                "optimizer must be a kdkit.Optimizer, such as Optimizer(torch.optim.Adam, lr=...), which gets the "
                f"parameters when the stage starts; got {shortened(self.optimizer, 80)}"
            )
        if not isinstance(self.ema, AverageWeights | None):
            raise RecipeError(f"ema must be AverageWeights(decay=...) or None; got {self.ema!r}")
        if not isinstance(self.lr_schedule, LRSchedule | None):
            raise RecipeError(f"lr_schedule must be LRSchedule(torch_class, ...) or None; got {self.lr_schedule!r}")
        if isinstance(self.balancing, type) or not isinstance(self.balancing, Balancing):
            raise RecipeError(
                "balancing must be WeightedSum(), PCGrad() or another subclass of Balancing with build(trained); "
                f"got {describe(self.balancing)}"
            )
