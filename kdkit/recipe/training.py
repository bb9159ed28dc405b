"""The training options of a stage: epochs, optimizer, LR schedule, balancing, EMA, and which epoch is kept."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdkit.errors import RecipeError, describe, shortened
from kdkit.nets.net import Net
from kdkit.recipe.balancing.base import Balancing, WeightedSum
from kdkit.recipe.optim import LRSchedule, Optimizer
from kdkit.utils.validation import is_number, validate_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageWeights:
    """Validate and keep an exponential moving average of the weights and buffers (torch's AveragedModel).

    decay: the share of the old average at each update.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 < self.decay < 1):
            raise RecipeError(f"the decay of an average must be between 0 and 1; got {self.decay!r}")

    def build(self, net: Net[Any]) -> AveragedModel:
        """Return the average of a network, which is equal to it at first. Raises RecipeError if it cannot be copied."""
        return _Average(net.copy_network(), multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Average(AveragedModel):
    """An AveragedModel that copies whole numbers, such as counters and tables of indices, instead of averaging them.

    It does not read its number of updates at each one either, for which the CPU would wait for a GPU. Of trained
    numbers in half precision it has a copy in float32, since an update by 1 - decay is mostly lost in their rounding.
    """

    has_values = False  # whether it was updated

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        for index, average in enumerate(chain(self.module.parameters(), self.module.buffers())):
            is_frozen = isinstance(average, nn.Parameter) and not average.requires_grad
            if average.dtype in (torch.float16, torch.bfloat16) and not is_frozen:
                self.register_buffer(f"precise_{index}", average.detach().float())

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights and buffers of a module; the first update copies them."""
        self.has_values = self.has_values or bool(self.n_averaged > 0)  # read once, as it may have been resumed
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        current = chain(model.parameters(), model.buffers())
        assert self.multi_avg_fn is not None  # `build` passes it
        rounded: list[tuple[Tensor, Tensor]] = []
        tensors = zip(chain(self.module.parameters(), self.module.buffers()), current, strict=True)
        for index, (average, value) in enumerate(tensors):
            precise = self._buffers.get(f"precise_{index}")
            if precise is not None:
                rounded.append((average.detach(), precise))
                average, value = precise, value.float()
            averages, values = by_dtype[average.dtype]
            averages.append(average.detach())
            values.append(value.detach())
        with torch.no_grad():
            for dtype, (averages, values) in by_dtype.items():
                if self.has_values and (dtype.is_floating_point or dtype.is_complex):
                    self.multi_avg_fn(averages, values, self.n_averaged)
                else:
                    torch._foreach_copy_(averages, values)
            for average, precise in rounded:
                average.copy_(precise)
        self.n_averaged += 1
        self.has_values = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the networks of a stage are trained.

    batch_size: samples per micro-batch, of all ranks together. A last batch of a single sample is dropped, because
    batch norm needs two.
    steps_per_epoch: batches of an epoch, after which it is validated; the next one resumes where it stopped, and passes
    over the data follow each other. None is one pass; a stream without a length needs a number.
    accumulate_steps: micro-batches per optimizer update, whose gradient is that of one batch of all their samples, also
    if micro-batches differ in size or in the number of labels that a loss averages over. Losses that relate samples,
    and batch norm, see one micro-batch.
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
