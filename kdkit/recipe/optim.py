"""Optimizers and learning-rate schedules: torch's by class, timm's by name, created when a stage starts."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kdkit.errors import RecipeError, did_you_mean


class Scheduler(Protocol):
    """A learning-rate scheduler of a running stage."""

    def step(self) -> None:
        """Advance by one interval."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        ...


Named = Iterable[tuple[str, nn.Parameter]]
Groups = Callable[[Named], Iterable[dict[str, Any]]]


class Optimizer:
    """An optimizer by class, `Optimizer(torch.optim.Adam, lr=3e-3)`, or by timm's name, `Optimizer("lamb", lr=3e-3)`.

    groups: a function that returns torch's parameter groups from the named parameters; all are in one group if None. A
    name is that of the network and the path in its module, "student.head.weight"; parameters of losses are called
    "losses.0.projector.weight" or similar. Here norms and biases have no weight decay, and the backbone a lower rate:

        def groups(named):
            backbone = [param for name, param in named if name.startswith("student.backbone.")]
            rest = [param for name, param in named if not name.startswith("student.backbone.")]
            return [
                {"params": backbone, "lr": 1e-4},
                {"params": [param for param in rest if param.ndim > 1]},
                {"params": [param for param in rest if param.ndim <= 1], "weight_decay": 0.0},
            ]

        Optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.05, groups=groups)

    Adam and AdamW use torch's fused step on CPU and CUDA, unless the options choose another: the same formula in one
    pass over each parameter. timm is imported when the optimizer is created, because the import takes seconds.
    Raises RecipeError for an unknown option, and for an optimizer that computes the loss again within a step (LBFGS),
    which is not supported.
    """

    __slots__ = ("groups", "make", "options")

    def __init__(
        self, make: Callable[..., TorchOptimizer] | str, *, groups: Groups | None = None, **options: Any
    ) -> None:
        if isinstance(make, str):
            _refuse_module_options(options)
        else:
            _validate_options(make, options)
            _refuse_closures(make)
        if groups is not None and not callable(groups):
            raise RecipeError(f"groups must be a function of the named parameters, or None; got {groups!r}")
        self.make = make
        self.groups = groups
        self.options = options

    def build(self, named: Named) -> TorchOptimizer:
        """Return the optimizer of these parameters. Raises RecipeError if it refuses its options or groups."""
        named = list(named)
        try:
            parameters: list[Any] = [parameter for _, parameter in named]
            if self.groups is not None:
                parameters = self._grouped(named, self.groups)
            if isinstance(self.make, str):
                return self._timm_optimizer(self.make, parameters)
            return self.make(parameters, **self._fused_options(parameters), **self.options)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be created: {error}") from error

    def __repr__(self) -> str:
        text = _describe("Optimizer", self.make, self.options)
        if self.groups is None:
            return text
        # The repr of a function has its address, which differs in each process; a resumed run compares this text.
        name = getattr(self.groups, "__name__", type(self.groups).__name__)
        return f"{text[:-1]}, groups={name})"

    def _grouped(self, named: Sequence[tuple[str, nn.Parameter]], groups: Groups) -> list[dict[str, Any]]:
        """Return the groups. Raises ValueError if a parameter is in none: it would silently not be trained."""
        result = groups(named)
        listed = list(result) if isinstance(result, Iterable) else [result]
        if not all(isinstance(group, dict) and "params" in group for group in listed):
            raise ValueError("its groups must be dicts with 'params', and the options that differ in that group")
        listed = [{**group, "params": list(group["params"])} for group in listed]
        grouped = {id(parameter) for group in listed for parameter in group["params"]}
        missing = [name for name, parameter in named if id(parameter) not in grouped]
        if missing:
            raise ValueError(f"its groups leave out {len(missing)} of {len(named)} parameters, {missing[0]!r} first")
        return listed

    def _fused_options(self, parameters: Sequence[nn.Parameter | dict[str, Any]]) -> dict[str, bool]:
        """Return the options of the fused step if it applies: not for SGD, which gains little and may be sparse."""
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
    """A learning-rate schedule by class, or by timm's name ("cosine", "step", ...).

    interval: whether it advances after every "epoch" or every optimizer "update". A length (`T_max`, `total_steps`,
    `total_iters`; timm's `num_epochs`) that is not passed, and for which the schedule has no default, is the length of
    the stage in that unit. So ConstantLR, LinearLR and PolynomialLR keep torch's 5 steps unless total_iters is passed.
    """

    __slots__ = ("interval", "make", "options")

    def __init__(
        self, make: Callable[..., LRScheduler] | str, *, interval: Literal["epoch", "update"] = "epoch", **options: Any
    ) -> None:
        if interval not in ("epoch", "update"):
            raise RecipeError(f"the interval of an LRSchedule must be 'epoch' or 'update'; got {interval!r}")
        if make in ("plateau", ReduceLROnPlateau):
            raise RecipeError("a plateau schedule depends on a metric, which is not supported; choose another schedule")
        if not isinstance(make, str):
            _validate_options(make, options)
        self.make = make
        self.interval = interval
        self.options = options

    def build(self, optimizer: TorchOptimizer, *, epochs: int, updates: int) -> Scheduler:
        """Return the scheduler of an optimizer for a stage of this length. Raises RecipeError for wrong options."""
        try:
            if isinstance(self.make, str):
                return _TimmScheduler(self.make, optimizer, self.options, epochs, updates, self.interval)
            parameters = inspect.signature(self.make).parameters
            length = epochs if self.interval == "epoch" else updates
            lengths = [parameters[name] for name in ("T_max", "total_steps", "total_iters") if name in parameters]
            defaults = {option.name: length for option in lengths if option.default in (option.empty, None)}
            return self.make(optimizer, **{**defaults, **self.options})
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be created: {error}") from error

    def __repr__(self) -> str:
        return _describe("LRSchedule", self.make, {"interval": self.interval, **self.options})


def _validate_options(make: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise RecipeError for an option that `make` does not have. Its first parameter is passed by `build`."""
    parameters = inspect.signature(make).parameters
    names = list(parameters)[1:]
    unknown = [name for name in options if name not in names]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if unknown and not takes_any:
        raise RecipeError(f"{make.__name__} has no option {unknown[0]!r}; {did_you_mean(unknown[0], names)}")


def _refuse_module_options(options: dict[str, Any]) -> None:
    # timm reads these off a module. It gets parameters here, and would ignore them without a warning.
    for name in ("layer_decay", "param_group_fn"):
        if options.get(name) is not None:
            raise RecipeError(
                f"timm's {name} needs a whole model, but an optimizer gets the parameters of a stage; create groups by "
                "name with Optimizer(..., groups=...)"
            )


def _refuse_closures(make: Callable[..., Any]) -> None:
    while isinstance(make, partial):
        make = make.func
    step = getattr(make, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if step is not None else None
    if closure is not None and closure.default is closure.empty:
        name = getattr(make, "__name__", repr(make))
        raise RecipeError(
            f"{name} computes the loss again within a step (a closure), which is not supported; choose an optimizer "
            "whose step() needs no argument, such as torch.optim.Adam"
        )


class _TimmScheduler:
    """A scheduler of timm behind torch's `step()`."""

    def __init__(
        self, name: str, optimizer: TorchOptimizer, options: dict[str, Any], epochs: int, updates: int, interval: str
    ) -> None:
        from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # late: takes seconds

        self._interval = interval
        self._count = 0
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            step_on_epochs=interval == "epoch",
            updates_per_epoch=max(1, updates // epochs),
            **{"num_epochs": epochs, **options},
        )
        if self._scheduler is None:
            raise RecipeError(f"timm has no learning-rate schedule {name!r}")

    def step(self) -> None:
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
    first = repr(make) if isinstance(make, str) else getattr(make, "__name__", repr(make))
    return f"{name}({', '.join([first, *(f'{option}={value!r}' for option, value in options.items())])})"
