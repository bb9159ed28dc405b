"""Optimizers and learning rate schedules: torch's by class, timm's by name. They are created when a stage starts."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from kdkit.errors import RecipeError, did_you_mean, first_line
from kdkit.utils.reprs import with_names
from kdkit.utils.signatures import parameters_by_name
from kdkit.utils.validation import is_number, validate_choice


class Scheduler(Protocol):
    """The learning rate scheduler of a running stage."""

    def step(self, *metric: float) -> None:
        """Advance by one interval. metric: the monitored one, if the schedule follows it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        ...


Named = Iterable[tuple[str, nn.Parameter]]
Groups = Callable[[Named], Iterable[dict[str, Any]]]
Interval = Literal["epoch", "update"]

# The options of torch and transformers for the length of a schedule.
_LENGTHS = ("T_max", "total_steps", "total_iters", "num_training_steps")


class Optimizer:
    """An optimizer by class, `Optimizer(torch.optim.Adam, lr=3e-3)`, or by timm's name, `Optimizer("lamb", lr=3e-3)`.

    groups: a function that returns torch's parameter groups from the named parameters; if None, all parameters are in
    one group. A name consists of the network's name and the path in its module, "student.head.weight"; parameters of
    losses have names such as "losses.0.projector.weight". In this example, norms and biases have no weight decay, and
    the backbone has a lower learning rate:

        def groups(named):
            backbone = [param for name, param in named if name.startswith("student.backbone.")]
            rest = [param for name, param in named if not name.startswith("student.backbone.")]
            return [
                {"params": backbone, "lr": 1e-4},
                {"params": [param for param in rest if param.ndim > 1]},
                {"params": [param for param in rest if param.ndim <= 1], "weight_decay": 0.0},
            ]

        Optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.05, groups=groups)

    The groups of timm's `param_groups_layer_decay(module, weight_decay=0.05, layer_decay=0.65)` have an `lr_scale`. The
    learning rate is multiplied by it. Add a group for parameters that are not in the module, such as those of a
    projector.

    Adam and AdamW use torch's fused step on CPU and CUDA, unless the options choose another step. It computes the same
    formula in one pass over each parameter. timm is imported when the optimizer is created, because the import takes
    seconds.
    Raises RecipeError for an unknown option, or for an optimizer that recomputes the loss within a step (LBFGS), which
    is not supported.
    """

    __slots__ = ("groups", "make", "options")

    def __init__(
        self, make: Callable[..., TorchOptimizer] | str, *, groups: Groups | None = None, **options: Any
    ) -> None:
        if not callable(make) and not isinstance(make, str):
            raise RecipeError(
                "Optimizer takes a class, such as Optimizer(torch.optim.Adam, lr=1e-3), or the name of a timm "
                f"optimizer; got an instance of {type(make).__name__}"
            )
        if isinstance(make, str):
            _refuse_module_options(options)
        else:
            _validate_options(make, options, passed=next(iter(parameters_by_name(make)), ""))
            _refuse_closures(make)
        if groups is not None and not callable(groups):
            raise RecipeError(f"groups must be a function of the named parameters, or None; got {groups!r}")
        self.make = make
        self.groups = groups
        self.options = options

    def build(self, named: Named) -> TorchOptimizer:
        """Return the optimizer for these parameters. Raises RecipeError if it does not accept its options or groups."""
        named = list(named)
        try:
            parameters: list[Any] = [parameter for _, parameter in named]
            if self.groups is not None:
                parameters = self._grouped(named, self.groups)
            if isinstance(self.make, str):
                optimizer = self._timm_optimizer(self.make, parameters)
            else:
                optimizer = self.make(parameters, **self._fused_options(parameters), **self.options)
            if all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")):
                raise ValueError(
                    "it has the modes train() and eval(), as schedule-free optimizers do, which kdkit does not set; "
                    "use another optimizer with an LRSchedule, or with Training(ema=AverageWeights())"
                )
            if self.groups is not None:
                for group in optimizer.param_groups:
                    _refuse_misspelt_option(group, optimizer.defaults)
                    group["lr"] = group["lr"] * group.get("lr_scale", 1)
            return optimizer
        except (ValueError, TypeError, AssertionError) as error:  # timm asserts that CUDA and packages are available
            is_muon = "Muon only supports 2D" in str(error)
            advice = "; timm's Optimizer('muon') updates the others as AdamW does" if is_muon else ""
            raise RecipeError(f"{self} cannot be created: {error}{advice}") from error

    def __repr__(self) -> str:
        text = _describe("Optimizer", self.make, self.options)
        if self.groups is None:
            return text
        # The repr of a function has an address that differs between processes, but a resumed run compares this text.
        name = getattr(self.groups, "__name__", type(self.groups).__name__)
        return f"{text[:-1]}, groups={name})"

    def _grouped(self, named: Sequence[tuple[str, nn.Parameter]], groups: Groups) -> list[dict[str, Any]]:
        """Return the groups. Raises ValueError if a parameter is in no group, because it would not be trained."""
        try:
            result = groups(named)
        except Exception as error:  # user code may raise anything
            raise ValueError(f"groups raises {type(error).__name__}: {first_line(error)}") from error
        listed = list(result) if isinstance(result, Iterable) else [result]
        if not all(isinstance(group, dict) and "params" in group for group in listed):
            raise ValueError("its groups must be dicts with 'params' and the options that differ in the group")
        listed = [{**group, "params": list(group["params"])} for group in listed]
        grouped = {id(parameter) for group in listed for parameter in group["params"]}
        missing = [name for name, parameter in named if id(parameter) not in grouped]
        if missing:
            raise ValueError(f"its groups leave out {len(missing)} of {len(named)} parameters, {missing[0]!r} first")
        return listed

    def _fused_options(self, parameters: Sequence[nn.Parameter | dict[str, Any]]) -> dict[str, bool]:
        """Return the options for the fused step if it applies. It does not for SGD, which gains little from it."""
        groups = [entry if isinstance(entry, dict) else {"params": [entry]} for entry in parameters]
        chosen = {"fused", "foreach", "capturable", "differentiable"} & {*self.options}.union(*groups)
        rates = [self.options.get("lr"), *(group.get("lr") for group in groups)]
        if self.make not in (Adam, AdamW) or chosen or any(isinstance(rate, Tensor) for rate in rates):
            return {}
        tensors = [tensor for group in groups for tensor in group["params"]]
        if not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors):
            return {}
        devices = {tensor.device.type for tensor in tensors}
        if devices == {"cuda"}:
            return {"fused": True, "capturable": True}  # capturable: a CUDA graph may contain the step
        return {"fused": True} if devices == {"cpu"} else {}

    def _timm_optimizer(self, name: str, parameters: list[Any]) -> TorchOptimizer:
        from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # late: takes seconds

        names = [str(known_name) for known_name in list_optimizers()]
        if name not in names:
            raise RecipeError(f"timm has no optimizer {name!r}; {did_you_mean(name, names)}")
        optimizer: TorchOptimizer = create_optimizer_v2(parameters, opt=name, **self.options)
        return optimizer


class LRSchedule:
    """A learning rate schedule by class, or by timm's name ("cosine", "step", ...).

    interval: whether it advances after every "epoch" or every optimizer "update". If the length (`T_max`,
    `total_steps`, `total_iters`; `num_training_steps` in transformers; `num_epochs` in timm) is not passed, it is the
    length of the stage in that unit. Only ConstantLR, and a LinearLR whose rate grows, take torch's default of 5 steps.

    SequentialLR and ChainedScheduler take LRSchedules, which advance with them. In this example, the learning rate
    grows for 5 epochs and falls in the remaining epochs, which are the length of the cosine:

        warmup, cosine = LRSchedule(LinearLR, start_factor=0.1), LRSchedule(CosineAnnealingLR)
        LRSchedule(SequentialLR, schedulers=[warmup, cosine], milestones=[5])

    ReduceLROnPlateau follows the monitored metric of the stage after each epoch. Unless it is passed, its `mode` is
    "max" if a higher metric is better, otherwise "min". Any other schedule is a function of the optimizer:
    `LRSchedule(function)`.
    """

    __slots__ = ("interval", "make", "options")

    def __init__(self, make: Callable[..., LRScheduler] | str, *, interval: Interval = "epoch", **options: Any) -> None:
        validate_choice("the interval of an LRSchedule", interval, Interval)
        if not callable(make) and not isinstance(make, str):
            raise RecipeError(
                "LRSchedule takes a class of torch.optim.lr_scheduler, such as LRSchedule(StepLR, step_size=10), or "
                f"the name of a timm schedule; got an instance of {type(make).__name__}"
            )
        if make == "plateau":  # its state does not include the number of bad epochs
            raise RecipeError("timm's plateau schedule cannot be resumed; use torch's: LRSchedule(ReduceLROnPlateau)")
        if not isinstance(make, str):
            _validate_options(make, options, passed=_optimizer_parameter(make))
        self.make = make
        self.interval = interval
        self.options = options
        if self.follows_metric and interval == "update":
            raise RecipeError("ReduceLROnPlateau follows a metric after each epoch, so its interval must be 'epoch'")

    @property
    def follows_metric(self) -> bool:
        """Whether the schedule depends on the monitored metric."""
        return isinstance(self.make, type) and issubclass(self.make, ReduceLROnPlateau)

    @property
    def _decays(self) -> bool:
        """Whether the rate falls for the length of the schedule, for which torch's default of 5 steps is too short."""
        start, end = self.options.get("start_factor", 1 / 3), self.options.get("end_factor", 1.0)
        return self.make is PolynomialLR or (self.make is LinearLR and end < start)

    def for_metric(self, *, higher_is_better: bool) -> "LRSchedule":
        """Return the schedule for a monitored metric. A schedule that follows the metric gets its mode."""
        if not self.follows_metric:
            return self
        return LRSchedule(self.make, **{"mode": "max" if higher_is_better else "min", **self.options})

    def build(self, optimizer: TorchOptimizer, *, epochs: int, updates: int) -> Scheduler:
        """Return the scheduler of an optimizer for a stage of this length. Raises RecipeError for invalid options."""
        try:
            if isinstance(self.make, str):
                return _TimmScheduler(self.make, optimizer, self.options, epochs, updates, self.interval)
            return self._build(optimizer, epochs if self.interval == "epoch" else updates)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be created: {error}") from error

    def __repr__(self) -> str:
        return _describe("LRSchedule", self.make, {"interval": self.interval, **self.options})

    def _build(self, optimizer: TorchOptimizer, length: int) -> Scheduler:
        """Return a torch scheduler. length: the number of its steps."""
        if isinstance(self.make, str):
            raise ValueError(f"a timm schedule cannot be part of another one; got {self!r}")
        if is_number(self.options.get("max_lr")) and len({float(group["lr"]) for group in optimizer.param_groups}) > 1:
            raise ValueError(
                "max_lr is one rate for all groups of the optimizer, but they have different ones; pass max_lr=[...] "
                "with a rate for each group"
            )
        parameters = parameters_by_name(self.make)
        lengths = [parameters[name] for name in _LENGTHS if name in parameters]
        fills = [option for option in lengths if option.default in (option.empty, None) or self._decays]
        options = {option.name: length for option in fills} | self.options
        if "epochs" in self.options and "total_steps" not in self.options:  # OneCycleLR would ignore its epochs
            options.pop("total_steps", None)
        if self.make in (SequentialLR, ChainedScheduler) and "schedulers" in options:
            options["schedulers"] = self._build_parts(options["schedulers"], optimizer, length)
        make: Callable[..., Any] = self.make
        by_name = _optimizer_parameter(make) == "optimizer"
        scheduler: Scheduler = make(optimizer=optimizer, **options) if by_name else make(optimizer, **options)
        if isinstance(scheduler, ReduceLROnPlateau) and not self.follows_metric:
            raise ValueError("it follows a metric; pass LRSchedule(ReduceLROnPlateau, ...) instead of a function")
        steps = getattr(scheduler, "total_steps", length)
        if steps < length:  # OneCycleLR raises in the step after its last one
            raise ValueError(
                f"it ends after {steps} steps, but this stage has {length}; leave out its length to use that of the "
                "stage"
            )
        return scheduler

    def _build_parts(self, parts: Sequence[Any], optimizer: TorchOptimizer, length: int) -> list[Scheduler]:
        """Return the schedulers that follow one another or are combined."""
        milestones = self.options.get("milestones")
        bounds = [0, *milestones, length] if milestones is not None else []
        # At least 1: the check does not know the number of updates, and passes a smaller number.
        lengths = [max(1, end - start) for start, end in pairwise(bounds)] or [length] * len(parts)
        if len(lengths) != len(parts):
            raise ValueError(f"{len(parts)} schedulers need {len(parts) - 1} milestones; got {milestones}")
        schedulers = []
        for part, part_length in zip(parts, lengths, strict=True):
            if not isinstance(part, LRSchedule):
                kind = type(part).__name__
                raise ValueError(f"its schedulers must be LRSchedule(LinearLR, ...) or similar; got a {kind}")
            if self.make is SequentialLR and part.make in (SequentialLR, ChainedScheduler):
                raise ValueError(
                    f"torch cannot start a {_name_of(part.make)} at a milestone of a SequentialLR; list its parts in "
                    "the SequentialLR, or compute the factor yourself: LRSchedule(LambdaLR, lr_lambda=...)"
                )
            if part.interval == "update" and self.interval == "epoch":
                raise ValueError("its schedulers advance with it; pass interval='update' to the whole schedule")
            schedulers.append(part._build(optimizer, part_length))
        return schedulers


def _refuse_misspelt_option(group: dict[str, Any], options: Iterable[str]) -> None:
    # torch accepts any key, such as a name for the group.
    for key in group.keys() - {"params", *options}:
        similar = get_close_matches(key, options, n=1, cutoff=0.8)
        if similar:
            raise ValueError(f"its groups have an option {key!r}; did you mean {similar[0]!r}?")


def _optimizer_parameter(make: Callable[..., Any]) -> str:
    """Return the name of the parameter that takes the optimizer, which in ChainedScheduler is not the first one."""
    parameters = parameters_by_name(make)
    return "optimizer" if "optimizer" in parameters else next(iter(parameters), "")


def _validate_options(make: Callable[..., Any], options: dict[str, Any], *, passed: str) -> None:
    """Raise RecipeError for an option that `make` does not have. passed: the parameter that `build` fills in."""
    parameters = parameters_by_name(make)
    names = [name for name in parameters if name != passed]
    unknown = [name for name in options if name not in names]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if unknown and not takes_any:
        raise RecipeError(f"{_name_of(make)} has no option {unknown[0]!r}; {did_you_mean(unknown[0], names)}")


def _refuse_module_options(options: dict[str, Any]) -> None:
    # timm needs a module for these options. Here it gets parameters, and would silently ignore them.
    for name in ("layer_decay", "param_group_fn"):
        if options.get(name) is not None:
            raise RecipeError(
                f"timm's {name} needs a whole model, but an optimizer gets the parameters of a stage; pass "
                "Optimizer(..., groups=...) with groups by name, or of timm.optim.param_groups_layer_decay(module, ...)"
            )


def _refuse_closures(make: Callable[..., Any]) -> None:
    while isinstance(make, partial):
        make = make.func
    step = getattr(make, "step", None)
    closure = parameters_by_name(step).get("closure") if step is not None else None
    if closure is not None and closure.default is closure.empty:
        raise RecipeError(
            f"{_name_of(make)} recomputes the loss within a step (a closure), which is not supported; choose an "
            "optimizer whose step() needs no argument, such as torch.optim.Adam"
        )


class _TimmScheduler:
    """A timm scheduler with the `step()` method of torch."""

    def __init__(
        self, name: str, optimizer: TorchOptimizer, options: dict[str, Any], epochs: int, updates: int, interval: str
    ) -> None:
        from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # late: takes seconds

        self._interval = interval
        self._count = 0
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] / group.get("lr_scale", 1)  # timm's schedules multiply by it themselves
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            step_on_epochs=interval == "epoch",
            updates_per_epoch=max(1, updates // epochs),
            **{"num_epochs": epochs, **options},
        )
        if self._scheduler is None:
            raise RecipeError(f"timm has no learning rate schedule {name!r}")

    def step(self, *metric: float) -> None:
        self._count += 1
        if self._interval == "epoch":
            self._scheduler.step(self._count)
        else:
            self._scheduler.step_update(self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["count"]
        self._scheduler.load_state_dict(state["scheduler"])


def _describe(name: str, make: Callable[..., Any] | str, options: dict[str, Any]) -> str:
    first = repr(make) if isinstance(make, str) else _name_of(make)
    return with_names(f"{name}({', '.join([first, *(f'{option}={value!r}' for option, value in options.items())])})")


def _name_of(make: Callable[..., Any]) -> str:
    return getattr(make, "__name__", repr(make))  # a partial has no name
