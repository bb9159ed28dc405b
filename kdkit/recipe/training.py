"""How a stage is trained: epochs, optimizer, learning rate, balance, averaging, and which epoch is kept."""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdkit.errors import RecipeError, describe
from kdkit.recipe.balancing import Balancing, WeightedSum
from kdkit.recipe.optim import LRSchedule, Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageWeights:
    """Keep an exponential moving average of the weights and buffers, and validate and keep that (torch's EMA).

    decay: the share of the old average that is kept at each update.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not (_is_number(self.decay) and 0 < self.decay < 1):
            raise RecipeError(f"the decay of an average lies between 0 and 1; got {self.decay!r}")

    def build(self, module: nn.Module) -> AveragedModel:
        """Return the average of this module, equal to it as yet."""
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the nets of a stage are trained.

    batch_size: samples in a micro-batch, of all processes together. A last batch of a single sample is left out, since
    batch norm cannot take it.
    accumulate: micro-batches to an optimizer update; losses that relate samples see the micro-batch.
    clip: largest norm of the gradient, over all that is trained; None leaves it.
    balance: how terms become gradients: their WeightedSum, or UncertaintyWeighting, GradNorm, CAGrad or PCGrad.
    keep: the weights of the "best" epoch on the selection split, by the score named `by` (the recipe's first one
    where None), or of the "last" one.
    average: keep a moving average of the weights instead of the weights.
    workers: processes that fetch batches; 0 fetches them in this one. None chooses: some beside a GPU, where the data
    say that it is worth it, and none on the CPU, where they would take the net's time. No number depends on it.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=1e-3))
    lr_schedule: LRSchedule | None = None
    accumulate_steps: int = 1
    max_grad_norm: float | None = None
    balancing: Balancing = field(default_factory=WeightedSum)
    keep: Literal["best", "last"] = "best"
    monitor: str | None = None
    ema: AverageWeights | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate_steps", 1), ("workers", 0)):
            value = getattr(self, name)
            if name == "workers" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"{name} is a whole number of at least {least}; got {value!r}")
        if self.max_grad_norm is not None and not (
            _is_number(self.max_grad_norm) and math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0
        ):
            raise RecipeError(
                f"max_grad_norm is the largest norm of the gradient, a number above 0; got {self.max_grad_norm!r}"
            )
        if self.keep not in ("best", "last"):
            raise RecipeError(f"keep is 'best' or 'last'; got {self.keep!r}")
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(f"optimizer is Optimizer(torch.optim.Adam, lr=...) or the like; got {self.optimizer!r}")
        if not isinstance(self.ema, AverageWeights | None):
            raise RecipeError(f"average is AverageWeights(decay=...) or None; got {self.ema!r}")
        if not isinstance(self.lr_schedule, LRSchedule | None):
            raise RecipeError(f"learning_rate is LRSchedule(torch_class, ...) or None; got {self.lr_schedule!r}")
        if isinstance(self.balancing, type) or not isinstance(self.balancing, Balancing):
            raise RecipeError(
                "balancing is WeightedSum(), PCGrad() or another subclass of Balancing with build(trained); "
                f"got {describe(self.balancing)}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
