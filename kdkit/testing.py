"""What every plugin must hold: checks of a loss, a tap and a schedule, to be called in a plugin's own tests."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdkit.data import Batch, Task
from kdkit.errors import ContractError
from kdkit.losses import Facts, Loss, asked_by, loss_name
from kdkit.modes import evaluating
from kdkit.net import Net
from kdkit.recipe import Schedule, Stage, nets_of
from kdkit.taps import Listening, Tapping
from kdkit.views import Inputs

Shape = tuple[int, ...]

# Without the batch: (C,), and for features also (C, L) and (C, H, W).
_SHAPES: dict[str, tuple[Shape, ...]] = {"outputs": ((5,),), "features": ((5,), (5, 6), (5, 4, 3))}
_BATCH = 4
_SATURATED = 1e4
_HALF_AS_EXACT = 2e-2  # bf16 has 8 significant bits, of which a layer and a mean leave about six


def check_loss(
    make_loss: Callable[[], Loss],
    *,
    on: Literal["outputs", "features"] = "outputs",
    shapes: Sequence[Shape] | None = None,
    least_when_equal: bool = True,
    task: Literal["multiclass", "multilabel"] = "multiclass",
) -> None:
    """Check a loss against frozen targets. Raises ContractError with the first thing that does not hold.

    make_loss: returns a new loss at each call; what it asks for (labels, ids, progress) it is given.
    on: "outputs" tries (batch, classes), and logits of +-1e4; "features" tries (batch, channels), (batch, channels,
    length) and (batch, channels, height, width). shapes: other shapes to try, without the batch.
    least_when_equal: whether no target is better met than by itself, as holds for most losses without weights.
    task: what its labels are if it asks for them, a class for each sample or an answer for each label.

    Held to: a finite scalar, also of one sample; under bf16 autocast the same to 2 %; a gradient to the student, none
    to the teacher that it may be built with; both sides left as they were; the same value for the same seed and for
    memory that is not contiguous; the same weights, and as many, if it is built again.
    """
    name = loss_name(make_loss())
    for shape in shapes if shapes is not None else _SHAPES[on]:
        with torch.random.fork_rng():
            trial = _Trial(make_loss, (_BATCH, *shape), name, task)
            trial.moves_the_student_alone()
            trial.repeats()
            trial.builds_again()
            trial.takes_any_memory()
            trial.takes_one_sample()
            trial.takes_autocast()
            if least_when_equal:
                trial.is_least_when_equal()
            if on == "outputs":
                trial.takes_saturated_logits()


class _Trial:
    """A loss on one shape of features or outputs."""

    def __init__(self, make_loss: Callable[[], Loss], shape: Shape, name: str, task: Task) -> None:
        self.make_loss = make_loss
        self.shape = shape
        self.name = name
        self.task: Task = task
        torch.manual_seed(0)
        self.student, self.target = torch.randn(shape), torch.randn(shape)
        self.teacher = nn.Sequential(nn.Linear(shape[1], shape[1]), nn.BatchNorm1d(shape[1]))

    def moves_the_student_alone(self) -> None:
        student, target = self.student.clone().requires_grad_(), self.target.clone()
        value = self.value(student, target)
        gradient = self.gradient(value, student)
        self.require(bool(gradient.any()), "moves nothing: the gradient to the student is zero")
        self.require(torch.equal(student.detach(), self.student), "changes the student's side in place")
        self.require(torch.equal(target, self.target), "changes the target's side in place")
        moved = [name for name, parameter in self.teacher.named_parameters() if parameter.grad is not None]
        self.require(not moved, f"moves the teacher: {', '.join(moved)} of it got a gradient")

    def repeats(self) -> None:
        first, again = (self.value(self.student, self.target) for _ in range(2))
        self.require(torch.equal(first, again), f"is not a function of its seed: {first.item()}, then {again.item()}")

    def builds_again(self) -> None:
        """Build one loss twice, as happens when a recipe is checked and then run."""
        once, twice = (self.value(self.student, self.target, builds=builds) for builds in (1, 2))
        counts = [_parameters(self.built(self.make_loss(), self.student, self.target, builds)) for builds in (1, 2)]
        self.require(
            counts[0] == counts[1], f"has {counts[0]} parameters once it is built, and {counts[1]} built again"
        )
        self.require(torch.equal(once, twice), f"is {once.item()} once it is built, and {twice.item()} built again")

    def takes_any_memory(self) -> None:
        plain = self.value(self.student, self.target)
        strided = self.value(_strided(self.student), _strided(self.target), "memory that is not contiguous")
        close = torch.allclose(plain, strided, rtol=1e-5, atol=1e-6)
        self.require(close, f"is {strided.item()} on memory that is not contiguous, and {plain.item()} on the same")

    def takes_one_sample(self) -> None:
        student = self.student[:1].clone().requires_grad_()
        self.gradient(self.value(student, self.target[:1], "a batch of one"), student, "a batch of one")

    def takes_autocast(self) -> None:
        what = "bf16 autocast"
        for kind in (torch.bfloat16, torch.float32):  # a net ends in bf16 or, after some layers, in fp32
            student, target = self.student.to(kind, copy=True).requires_grad_(), self.target.to(kind)
            value = self.value(student, target, what, autocast=True)
            self.gradient(value, student, what)
            full = self.value(student.detach().float(), target.float())
            close = torch.allclose(value.float(), full, rtol=_HALF_AS_EXACT, atol=1e-3)
            self.require(close, f"is {value.item()}, but {full.item()} in float32 on the same; compute it there", what)

    def is_least_when_equal(self) -> None:
        least = self.value(self.target, self.target)
        for distance in (1e-2, 1.0, 10.0):
            other = self.value(self.target + distance * torch.randn(self.shape), self.target)
            self.require(
                bool(least <= other + 1e-6), f"is {least.item()} where both sides are equal, but {other.item()} apart"
            )

    def takes_saturated_logits(self) -> None:
        what = f"logits of +-{_SATURATED:g}"
        for target in (self.target, -self.student, self.student):
            student = (self.student.sign() * _SATURATED).requires_grad_()
            self.gradient(self.value(student, target.sign() * _SATURATED, what), student, what)

    def value(
        self, student: Tensor, target: Tensor, what: str = "", *, autocast: bool = False, builds: int = 1
    ) -> Tensor:
        """Return what a new loss says of both sides. Raises ContractError where that is no finite scalar."""
        torch.manual_seed(1)
        context = torch.autocast(student.device.type, torch.bfloat16) if autocast else nullcontext()
        try:
            loss = self.built(self.make_loss(), student, target, builds)
            with context:
                value = loss(student, target, **_asked(loss, len(student), self.shape[1], self.task))
        except Exception as error:
            raise ContractError(f"{self._on(what)} raises {type(error).__name__}: {error}") from error
        given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        self.require(isinstance(value, Tensor) and value.ndim == 0, f"gives {given}, not a scalar", what)
        self.require(bool(value.isfinite()), f"is {value.item()}", what)
        return value

    def built(self, loss: Loss, student: Tensor, target: Tensor, builds: int) -> Loss:
        """Build a loss so many times, each time from the same seed, where it is to be built at all."""
        build = getattr(loss, "build", None)
        if build is not None:
            for _ in range(builds):
                torch.manual_seed(1)
                build((student.shape,), (target.shape,), _facts(self.shape, self.task), self.teacher)
        return loss

    def gradient(self, value: Tensor, student: Tensor, what: str = "") -> Tensor:
        """Return the gradient to the student. Raises ContractError where there is none or it is not finite."""
        self.require(value.requires_grad, "gives a value without a gradient", what)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        gradient = student.grad
        if gradient is None:
            raise ContractError(f"{self._on(what)} moves nothing: no gradient flows to the student")
        self.require(bool(gradient.isfinite().all()), "gives a gradient that is not finite", what)
        return gradient

    def require(self, holds: bool, otherwise: str, what: str = "") -> None:
        if not holds:
            raise ContractError(f"{self._on(what)} {otherwise}")

    def _on(self, what: str) -> str:
        return f"{self.name} on {what + ' of ' if what else ''}{self.shape}"


def check_tap(make_tap: Callable[[nn.Module], Tapping], module: nn.Module, example: Any) -> None:
    """Check a tap on a module. Raises ContractError with the first thing that does not hold.

    make_tap: puts the tap on the module or on a part of it. example: the module's inputs, as a batch would hold them:
    a tensor, a tuple of arguments or a dict of keywords.

    Held to: it fires at each pass, with a tensor that gradients flow through; the module says the same with it as
    without, while it is open and after; no hook is left behind.
    """
    args, kwargs = Inputs()(Batch(example, torch.empty(0)))
    tap = make_tap(module)
    name = type(tap).__name__
    if not isinstance(tap, Tapping):
        raise ContractError(f"{name} is not a tap: it needs a module and attach(put)")
    if all(tap.module is not each for each in module.modules()):
        raise ContractError(f"{name} sits on a {type(tap.module).__name__} that is no part of the module")
    with evaluating(module), torch.random.fork_rng():
        before, hooks = module(*args, **kwargs), _hooks(module)
        with Listening([tap]) as listening:
            for _ in range(2):
                listening.clear()
                try:
                    during = module(*args, **kwargs)
                except Exception as error:
                    raise ContractError(f"the module raises {type(error).__name__} with {name}: {error}") from error
                if listening.silent():
                    raise ContractError(f"{name} does not fire when the module runs")
                heard = listening[tap]
                if _tensors(during)[0].requires_grad and not heard.requires_grad:
                    raise ContractError(f"{name} gives a tensor that no gradient flows through")
                if not _same(before, during):
                    raise ContractError(f"the module says something else while {name} is open")
        if _hooks(module) != hooks:
            raise ContractError(f"{name} leaves a hook behind when it is closed")
        if not _same(before, module(*args, **kwargs), exactly=True):
            raise ContractError(f"the module says something else after {name} was closed")


def check_schedule(make_schedule: Callable[[], Schedule]) -> None:
    """Check a schedule. Raises ContractError with the first thing that does not hold.

    Held to: it gives stages, at least one; nets and stages have names of their own; each net that teaches comes
    trained or was trained in an earlier stage.
    """
    schedule = make_schedule()
    name = type(schedule).__name__
    if not isinstance(schedule, Schedule):
        raise ContractError(f"{name} is not a schedule: it has no stages()")
    stages = list(schedule.stages())
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        given = ", ".join(type(stage).__name__ for stage in stages)
        raise ContractError(f"{name} gives stages, at least one; got {given or 'none'}")
    for what, names in (("stages", [each.name for each in stages]), ("nets", [net.name for net in nets_of(stages)])):
        if len(set(names)) < len(names):
            raise ContractError(f"{name} gives {what} of the same name: {', '.join(sorted(names))}")
    trained = {net for net in nets_of(stages) if net.trained}
    for stage in stages:
        for source in stage.sources:
            if isinstance(source, Net) and source not in trained:
                raise ContractError(
                    f"in stage {stage.name!r} of {name} net {source.name!r} teaches, but nobody trained it before"
                )
        trained |= set(stage.goals)


def _facts(shape: Shape, task: Task) -> Facts:
    classes = tuple(str(index) for index in range(shape[1]))
    return Facts(classes=classes, task=task, samples=shape[0], ids=True)


def _parameters(loss: Loss) -> int:
    return sum(each.numel() for each in loss.parameters()) if isinstance(loss, nn.Module) else 0


def _asked(loss: Loss, samples: int, classes: int, task: Task) -> dict[str, Tensor]:
    right = torch.arange(samples) % classes
    known = {
        "labels": right if task == "multiclass" else torch.eye(classes)[right],
        "ids": torch.arange(samples),
        "progress": torch.tensor(0.5),
    }
    return {name: known[name] for name in asked_by(loss)}


def _strided(tensor: Tensor) -> Tensor:
    """Return the same numbers with a stride of two in every dimension."""
    wide = tensor
    for dimension in range(tensor.ndim):
        wide = wide.repeat_interleave(2, dimension)
    return wide[(slice(None, None, 2),) * tensor.ndim]


def _hooks(module: nn.Module) -> list[int]:
    return [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _same(one: Any, other: Any, *, exactly: bool = False) -> bool:
    """Whether two outputs are equal; up to rounding where a tap had the module compute in another way."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    rtol, atol = (0.0, 0.0) if exactly else (1e-4, 1e-5)
    return all(torch.allclose(first, second, rtol=rtol, atol=atol) for first, second in pairs)
