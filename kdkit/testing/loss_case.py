"""A loss tried on both sides of a comparison, and what is wrong with what it says of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task
from kdkit.errors import ContractError
from kdkit.losses import BuildContext, Loss, asked_by, loss_name

_SAMPLES = 12  # that the data trains on, of which a batch shows a few


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a loss is given: both sides, one tensor per tap, the labels, and in words how it was made."""

    student: tuple[Tensor, ...]
    target: tuple[Tensor, ...]
    labels: Tensor
    tuples: bool = False
    what: str = ""

    def changed(self, what: str, change: Callable[[Tensor], Tensor], sides: str = "student target") -> "Given":
        """Return the same with one side changed, or both, tensor by tensor."""
        student, target = (
            tuple(change(each.detach().clone()) if name in sides else each for each in side)
            for name, side in (("student", self.student), ("target", self.target))
        )
        return replace(self, what=what, student=student, target=target)

    def rows(self, what: str, rows: Tensor) -> "Given":
        """Return other rows of the same batch."""
        student, target = (tuple(each[rows] for each in side) for side in (self.student, self.target))
        return replace(self, what=what, student=student, target=target, labels=self.labels[rows])

    def equal(self) -> "Given":
        """Return the student's side as the target's is."""
        return replace(self, what="two equal sides", student=tuple(each.clone() for each in self.target))

    @property
    def meets_itself(self) -> bool:
        """Whether both sides are of the same shapes."""
        return [each.shape for each in self.student] == [each.shape for each in self.target]

    def sides(self) -> tuple[Any, Any]:
        """Return both sides as a loss takes them: a tensor, or a tuple of several taps."""
        return (self.student, self.target) if self.tuples else (self.student[0], self.target[0])

    def __str__(self) -> str:
        said = [" ".join(str(tuple(each.shape)) for each in side) for side in (self.student, self.target)]
        shapes = said[0] if self.meets_itself else f"{said[0]} and {said[1]}"
        return f"{self.what + ' of ' if self.what else ''}{shapes}"


class Trial:
    """A loss that is made anew for each thing that is tried of it, and built for the shapes of the same batch."""

    def __init__(self, make_loss: Callable[[], Loss], given: Given, task: Task) -> None:
        self.make_loss = make_loss
        self.given = given
        self.name = loss_name(make_loss())
        classes = given.target[0].shape[1]
        names = tuple(str(index) for index in range(classes))
        batch = len(given.labels)
        self.facts = BuildContext(classes=names, task=task, samples=_SAMPLES, ids=True, batch_size=batch)
        torch.default_generator.manual_seed(0)
        self.teacher = nn.Sequential(nn.Linear(classes, classes), nn.BatchNorm1d(classes)).eval()

    def built(self, *, builds: int = 1) -> Loss:
        """Return a new loss, built so many times, each time from the same seed, where it is to be built at all."""
        loss = self.make_loss()
        build = getattr(loss, "build", None)
        shapes = [tuple(each.shape for each in side) for side in (self.given.student, self.given.target)]
        for _ in range(builds if build is not None else 0):
            torch.default_generator.manual_seed(1)
            with self.blaming("its build"):
                build(*shapes, self.facts, self.teacher)  # type: ignore[misc]  # it is not None here
        return loss

    def value(self, given: Given, loss: Loss | None = None, *, autocast: torch.dtype | None = None) -> Tensor:
        """Return what a loss says, a new one where it is None. Raises ContractError where that is no finite scalar."""
        loss = self.built() if loss is None else loss
        torch.default_generator.manual_seed(2)
        context: AbstractContextManager[Any] = torch.autocast("cpu", autocast) if autocast else nullcontext()
        with self.blaming(str(given)), context:
            value = loss(*given.sides(), **self._asked(loss, given))
        said = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        self.require(isinstance(value, Tensor) and value.ndim == 0, given, f"gives {said}, not a scalar; reduce it")
        self.require(bool(value.isfinite()), given, f"is {value.item()}, not a finite number")
        return value

    def learned(self, given: Given, loss: Loss | None = None, *, autocast: torch.dtype | None = None) -> Tensor:
        """Return the value after a backward pass. Raises ContractError where a gradient is missing or not finite.

        The gradients are those of the tensors of the student's side, which are leaves from then on.
        """
        for each in given.student:
            each.requires_grad_()
        value = self.value(given, loss, autocast=autocast)
        self.require(value.requires_grad, given, "gives a value without a gradient")
        with self.blaming(f"{given}, in its backward pass,"):
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        for each in given.student:
            self.require(each.grad is not None, given, "moves nothing: no gradient flows to the student")
            finite = each.grad is not None and bool(each.grad.isfinite().all())
            self.require(finite, given, "gives a gradient that is not finite")
        return value.detach()

    def require(self, holds: bool, on: "Given | str", otherwise: str) -> None:
        """Raise ContractError where something does not hold."""
        if not holds:
            raise ContractError(f"{self.name} on {on} {otherwise}")

    def blaming(self, on: str) -> "_Blaming":
        """Return the context in which an error of the loss is one of its contract."""
        return _Blaming(f"{self.name} on {on}")

    def _asked(self, loss: Loss, given: Given) -> dict[str, Any]:
        known = {
            "labels": given.labels,
            "ids": torch.arange(len(given.student[0])),
            "progress": torch.tensor(0.5),
            "teacher_outputs": given.target,
        }
        return {name: known[name] for name in asked_by(loss)}


class _Blaming:
    """Raise an error that a loss raises as a ContractError that says where."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            raise ContractError(f"{self.where} raises {type(error).__name__}: {error}") from error
