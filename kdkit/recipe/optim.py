"""Optimizers and learning-rate schedules, torch's by class and timm's by name, made when a stage begins."""

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


Named = Iterable[tuple[str, nn.Parameter]]
Groups = Callable[[Named], Iterable[dict[str, Any]]]


class Optimizer:
    """An optimizer by class, `Optimizer(torch.optim.Adam, lr=3e-3)`, or by timm's name, `Optimizer("lamb", lr=3e-3)`.

    groups: makes torch's parameter groups of the named parameters, each with options of its own. A name is the net's
    and the path in its module, "student.head.weight"; parameters of losses are "losses.0.projector.weight" or the like,
    and `check` leaves them out. All are in one group where None. Here norms and biases do not decay, and a backbone
    learns slowly:

        def groups(named):
            backbone = [each for name, each in named if name.startswith("student.backbone.")]
            others = [each for name, each in named if not name.startswith("student.backbone.")]
            return [
                {"params": backbone, "lr": 1e-4},
                {"params": [each for each in others if each.ndim > 1]},
                {"params": [each for each in others if each.ndim <= 1], "weight_decay": 0.0},
            ]

        Optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.05, groups=groups)

    Adam and AdamW take torch's fused step on a CPU, unless the options choose another: the same formula in one pass
    over each parameter. timm is imported when the optimizer is made: it costs seconds. Raises RecipeError for options
    that it does not have, and for an optimizer that has to compute the loss again (LBFGS), which no step here can.
    """

    __slots__ = ("groups", "make", "options")

    def __init__(
        self, make: Callable[..., TorchOptimizer] | str, *, groups: Groups | None = None, **options: Any
    ) -> None:
        if isinstance(make, str):
            _without_modules(options)
        else:
            _fits(make, options, skip=1)
            _steps_alone(make)
        if groups is not None and not callable(groups):
            raise RecipeError(f"groups is a function of the named parameters, or None; got {groups!r}")
        self.make = make
        self.groups = groups
        self.options = options

    def build(self, named: Named) -> TorchOptimizer:
        """Return the optimizer of these parameters. Raises RecipeError where it refuses its options or groups."""
        named = list(named)
        try:
            parameters = [interval for _, interval in named] if self.groups is None else _grouped(self.groups, named)
            if isinstance(self.make, str):
                return _timm_optimizer(self.make, parameters, self.options)
            return self.make(parameters, **_fused(self.make, parameters, self.options), **self.options)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be made: {error}") from error

    def __repr__(self) -> str:
        said = _called("Optimizer", self.make, self.options)
        if self.groups is None:
            return said
        name = getattr(self.groups, "__name__", type(self.groups).__name__)  # its repr has an address, new in each run
        return f"{said[:-1]}, groups={name})"


class LRSchedule:
    """A learning-rate schedule by class, or by timm's name ("cosine", "step", ...).

    each: whether it advances after every "epoch" or every optimizer "update". A length (`T_max`, `total_steps`,
    `total_iters`; timm's `num_epochs`) that is not given, and that the schedule has no default for, is that of the
    stage, in the same unit. So ConstantLR, LinearLR and PolynomialLR keep torch's 5 steps unless total_iters is given.
    """

    __slots__ = ("interval", "make", "options")

    def __init__(
        self, make: Callable[..., LRScheduler] | str, *, interval: Literal["epoch", "update"] = "epoch", **options: Any
    ) -> None:
        if interval not in ("epoch", "update"):
            raise RecipeError(f"a learning-rate schedule advances each 'epoch' or each 'update'; got {interval!r}")
        if make in ("plateau", ReduceLROnPlateau):
            raise RecipeError("a plateau schedule waits for a figure, and kdkit's advance by the clock; choose another")
        if not isinstance(make, str):
            _fits(make, options, skip=1)
        self.make = make
        self.interval = interval
        self.options = options

    def build(self, optimizer: TorchOptimizer, *, epochs: int, updates: int) -> Scheduler:
        """Return the schedule of this optimizer over a stage of so many epochs and updates."""
        try:
            if isinstance(self.make, str):
                return _TimmScheduler(self.make, optimizer, self.options, epochs, updates, self.interval)
            known = inspect.signature(self.make).parameters
            length = epochs if self.interval == "epoch" else updates
            lengths = [known[key] for key in ("T_max", "total_steps", "total_iters") if key in known]
            filled = {interval.name: length for interval in lengths if interval.default in (interval.empty, None)}
            return self.make(optimizer, **{**filled, **self.options})
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self} cannot be made: {error}") from error

    def __repr__(self) -> str:
        return _called("LRSchedule", self.make, {"interval": self.interval, **self.options})


def _fused(
    make: Callable[..., TorchOptimizer], parameters: Sequence[nn.Parameter | dict[str, Any]], options: dict[str, Any]
) -> dict[str, bool]:
    """Return the option of a fused step where it is the better one; SGD gains little, and learns sparsely without."""
    groups = [interval if isinstance(interval, dict) else {"params": [interval]} for interval in parameters]
    chosen = {"fused", "foreach", "capturable", "differentiable"} & {*options}.union(*groups)
    rates = [options.get("lr"), *(group.get("lr") for group in groups)]
    if make not in (Adam, AdamW) or chosen or any(isinstance(rate, Tensor) for rate in rates):
        return {}
    held = [interval for group in groups for interval in group["params"]]
    fits = all(
        isinstance(interval, Tensor) and interval.device.type == "cpu" and interval.is_floating_point()
        for interval in held
    )
    return {"fused": True} if fits else {}


def _grouped(groups: Groups, named: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Return the groups, which have to hold every parameter: what is in none would silently not be trained."""
    made = [{**group, "params": list(group["params"])} for group in _as_groups(groups(named))]
    held = {id(interval) for group in made for interval in group["params"]}
    left = [name for name, parameter in named if id(parameter) not in held]
    if left:
        raise ValueError(f"its groups leave out {len(left)} of {len(named)} parameters, {left[0]!r} first")
    return made


def _as_groups(made: Any) -> list[dict[str, Any]]:
    listed = list(made) if isinstance(made, Iterable) else [made]
    if not all(isinstance(group, dict) and "params" in group for group in listed):
        raise ValueError("its groups are dicts with 'params', and the options that differ in that group")
    return listed


def _without_modules(options: dict[str, Any]) -> None:
    """Refuse what timm reads off a module: its optimizer is given parameters, and would pass over it in silence."""
    for key in ("layer_decay", "param_group_fn"):
        if options.get(key) is not None:
            raise RecipeError(
                f"timm's {key} needs a whole model, and an optimizer here is given the parameters of a stage; make "
                "groups by name with Optimizer(..., groups=...)"
            )


def _steps_alone(make: Callable[..., Any]) -> None:
    while isinstance(make, partial):
        make = make.func
    step = getattr(make, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if step is not None else None
    if closure is not None and closure.default is closure.empty:
        name = getattr(make, "__name__", repr(make))
        raise RecipeError(
            f"{name} has to compute the loss again within a step (a closure), which a stage does not do; "
            "choose an optimizer whose step() needs nothing, such as torch.optim.Adam"
        )


def _timm_optimizer(
    name: str, parameters: list[nn.Parameter] | list[dict[str, Any]], options: dict[str, Any]
) -> TorchOptimizer:
    from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # late: takes seconds

    known = [str(interval) for interval in list_optimizers()]
    if name not in known:
        raise RecipeError(f"timm has no optimizer {name!r}; {did_you_mean(name, known)}")
    made: TorchOptimizer = create_optimizer_v2(parameters, opt=name, **options)
    return made


class _TimmScheduler:
    """One of timm's schedules behind torch's `step()`."""

    def __init__(
        self, name: str, optimizer: TorchOptimizer, options: dict[str, Any], epochs: int, updates: int, interval: str
    ) -> None:
        from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # late: takes seconds

        self._each = interval
        self._count = 0
        self._inner, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            step_on_epochs=interval == "epoch",
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
