"""How a stage is trained: epochs, optimizer, learning rate, averaging, and which epoch is kept."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdkit.errors import RecipeError, did_you_mean


class Scheduler(Protocol):
    """A learning-rate schedule at work."""

    def step(self) -> None:
        """Advance by one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where it stood."""
        ...


class Optimizer:
    """An optimizer by class, `Optimizer(torch.optim.Adam, lr=3e-3)`, or by timm's name, `Optimizer("lamb", lr=3e-3)`.

    timm is imported when the optimizer is made: it costs seconds. Raises RecipeError for options it does not have.
    """

    __slots__ = ("make", "options")

    def __init__(self, make: Callable[..., TorchOptimizer] | str, **options: Any) -> None:
        if not isinstance(make, str):
            _fits(make, options, skip=1)
        self.make = make
        self.options = options

    def build(self, parameters: Iterable[nn.Parameter]) -> TorchOptimizer:
        """Return the optimizer of these parameters. Raises RecipeError where it refuses its options."""
        try:
            if isinstance(self.make, str):
                return _timm_optimizer(self.make, parameters, self.options)
            return self.make(parameters, **self.options)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be made: {error}") from error

    def __repr__(self) -> str:
        return _called("Optimizer", self.make, self.options)


class LearningRate:
    """A learning-rate schedule by class, or by timm's name ("cosine", "step", ...).

    each: whether it advances after every "epoch" or every optimizer "update". Where its length is asked for and not
    given (`T_max`, `total_steps`, `total_iters`; timm's `num_epochs`), it is that of the stage, in the same unit.
    """

    __slots__ = ("each", "make", "options")

    def __init__(
        self, make: Callable[..., LRScheduler] | str, *, each: Literal["epoch", "update"] = "epoch", **options: Any
    ) -> None:
        if each not in ("epoch", "update"):
            raise RecipeError(f"a learning-rate schedule advances each 'epoch' or each 'update'; got {each!r}")
        if make in ("plateau", ReduceLROnPlateau):
            raise RecipeError("a plateau schedule waits for a figure, and kdkit's advance by the clock; choose another")
        if not isinstance(make, str):
            _fits(make, options, skip=1)
        self.make = make
        self.each = each
        self.options = options

    def build(self, optimizer: TorchOptimizer, *, epochs: int, updates: int) -> Scheduler:
        """Return the schedule of this optimizer over a stage of so many epochs and updates."""
        try:
            if isinstance(self.make, str):
                return _TimmScheduler(self.make, optimizer, self.options, epochs, updates, self.each)
            known = inspect.signature(self.make).parameters
            length = epochs if self.each == "epoch" else updates
            filled = {key: length for key in ("T_max", "total_steps", "total_iters") if key in known}
            return self.make(optimizer, **{**filled, **self.options})
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be made: {error}") from error

    def __repr__(self) -> str:
        return _called("LearningRate", self.make, {"each": self.each, **self.options})


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageWeights:
    """Keep an exponential moving average of the weights and buffers, and validate and keep that (torch's EMA).

    decay: the share of the old average that is kept at each update.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise RecipeError(f"the decay of an average lies between 0 and 1; got {self.decay}")

    def build(self, module: nn.Module) -> AveragedModel:
        """Return the average of this module, equal to it as yet."""
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the nets of a stage are trained.

    batch_size: samples in a micro-batch. A last batch of a single sample is left out, since batch norm cannot take it.
    accumulate: micro-batches to an optimizer update; losses that relate samples see the micro-batch.
    clip: largest norm of the gradient, over all that is trained; None leaves it.
    keep: the weights of the "best" epoch on the selection split, by the score named `by` (the recipe's first one
    where None), or of the "last" one.
    average: keep a moving average of the weights instead of the weights.
    workers: processes that fetch batches; 0 fetches them in this one.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=1e-3))
    learning_rate: LearningRate | None = None
    accumulate: int = 1
    clip: float | None = None
    keep: Literal["best", "last"] = "best"
    by: str | None = None
    average: AverageWeights | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"{name} is a whole number of at least {least}; got {value!r}")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise RecipeError(f"clip is the largest norm of the gradient, a number above 0; got {self.clip!r}")
        if self.keep not in ("best", "last"):
            raise RecipeError(f"keep is 'best' or 'last'; got {self.keep!r}")
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(f"optimizer is Optimizer(torch.optim.Adam, lr=...) or the like; got {self.optimizer!r}")
        if not isinstance(self.average, AverageWeights | None):
            raise RecipeError(f"average is AverageWeights(decay=...) or None; got {self.average!r}")
        if not isinstance(self.learning_rate, LearningRate | None):
            raise RecipeError(f"learning_rate is LearningRate(torch_class, ...) or None; got {self.learning_rate!r}")


def _timm_optimizer(name: str, parameters: Iterable[nn.Parameter], options: dict[str, Any]) -> TorchOptimizer:
    from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # late: takes seconds

    known = [str(each) for each in list_optimizers()]
    if name not in known:
        raise RecipeError(f"timm has no optimizer {name!r}; {did_you_mean(name, known)}")
    made: TorchOptimizer = create_optimizer_v2(list(parameters), opt=name, **options)
    return made


class _TimmScheduler:
    """One of timm's schedules behind torch's `step()`."""

    def __init__(
        self, name: str, optimizer: TorchOptimizer, options: dict[str, Any], epochs: int, updates: int, each: str
    ) -> None:
        from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # late: takes seconds

        self._each = each
        self._count = 0
        self._inner, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            step_on_epochs=each == "epoch",
            updates_per_epoch=max(1, updates // epochs),
            **{"num_epochs": epochs, **options},
        )
        if self._inner is None:
            raise RecipeError(f"timm has no learning-rate schedule {name!r}")

    def step(self) -> None:
        self._count += 1
        if self._each == "epoch":
            self._inner.step(self._count)
        else:
            self._inner.step_update(self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "inner": self._inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["count"]
        self._inner.load_state_dict(state["inner"])


def _fits(make: Callable[..., Any], options: dict[str, Any], *, skip: int) -> None:
    known = list(inspect.signature(make).parameters)[skip:]
    unknown = [key for key in options if key not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values()):
        raise RecipeError(f"{make.__name__} has no option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")


def _called(name: str, make: Callable[..., Any] | str, options: dict[str, Any]) -> str:
    what = repr(make) if isinstance(make, str) else getattr(make, "__name__", repr(make))
    return f"{name}({', '.join([what, *(f'{key}={value!r}' for key, value in options.items())])})"
