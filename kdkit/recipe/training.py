"""The training options of a stage: epochs, optimizer, LR schedule, balancing, EMA, and which epoch is kept."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from kdkit.errors import RecipeError, describe, shortened
from kdkit.nets.moving_average import MovingAverage
from kdkit.nets.net import Net
from kdkit.recipe.balancing.base import Balancing, WeightedSum
from kdkit.recipe.optim import LRSchedule, Optimizer
from kdkit.utils.validation import is_number, validate_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageWeights:
    """Validate and keep an exponential moving average of the weights and buffers, as torch's AveragedModel computes it.

    decay: the share of the old average at each update but the first one, which copies the weights.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 < self.decay < 1):
            raise RecipeError(f"the decay of an average must be between 0 and 1; got {self.decay!r}")

    def build(self, net: Net[Any]) -> MovingAverage:
        """Return the average of a network, which is equal to it at first. Raises RecipeError if it cannot be copied."""
        return MovingAverage(net.copy_network(), self.decay, ramp=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the networks of a stage are trained.

    batch_size: samples per micro-batch, of all ranks together. A last batch of a single sample is dropped, because
    batch norm needs two.
    steps_per_epoch: batches of an epoch, after which it is validated; the next one resumes where it stopped, and passes
    over the data follow each other. None is one pass; a stream without a length needs a number.
    accumulate_steps: micro-batches per optimizer update, whose gradient is that of one batch of all their samples, also
    if micro-batches differ in size or in the number of labels that a loss averages over. Losses that relate samples,
    batch norm, and the balancing PCGrad, CAGrad and GradNorm see one micro-batch.
    max_grad_norm: clip the norm of the gradient over all trained parameters; None does not clip.
    balancing: how terms become gradients: WeightedSum, UncertaintyWeighting, GradNorm, CAGrad or PCGrad.
    keep: the weights of the "best" epoch by the metric `monitor` on the validation split (the recipe's first metric if
    None), or of the "last" epoch. If None, the best one; but the last one, without `patience`, of a stage whose terms
    do not train the outputs, such as terms on features alone, since then the metric means nothing.
    ema: validate and keep a moving average of the weights instead of the weights.
    patience: end the stage early if the monitored metric did not improve for so many epochs; None trains all epochs.
    Schedules of learning rates and weights keep the length of all epochs.
    workers: processes that fetch batches; 0 fetches them in this process. None chooses: some with a GPU, if the data
    recommends it, and none on the CPU, which the network needs. Results do not depend on it.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=1e-3))
    lr_schedule: LRSchedule | None = None
    accumulate_steps: int = 1
    max_grad_norm: float | None = None
    balancing: Balancing = field(default_factory=WeightedSum)
    keep: Literal["best", "last"] | None = None
    monitor: str | None = None
    ema: AverageWeights | None = None
    patience: int | None = None
    steps_per_epoch: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        validate_counts(self, "epochs", "batch_size", "accumulate_steps")
        validate_counts(self, "workers", least=0, optional=True)
        validate_counts(self, "patience", "steps_per_epoch", optional=True)
        norm = self.max_grad_norm
        if norm is not None and not (is_number(norm) and norm > 0):
            raise RecipeError(f"max_grad_norm must be a number above 0, or None; got {norm!r}")
        if self.keep not in ("best", "last", None):
            raise RecipeError(f"keep must be 'best' or 'last', or None; got {self.keep!r}")
        if not isinstance(self.monitor, str | None):
            raise RecipeError(
                f"monitor must be the name of a metric, such as 'accuracy', or None; got {self.monitor!r}"
            )
        if self.patience is not None and self.keep == "last":
            raise RecipeError("patience waits for a better epoch, and keep='last' keeps any; leave out one of the two")
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(
                "optimizer must be Optimizer(torch.optim.Adam, lr=...) or similar, kdkit's class, which gets the "
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
