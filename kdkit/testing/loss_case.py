"""Call a loss on one pair of inputs, and turn failures into ContractErrors that name the loss and the inputs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task
from kdkit.errors import ContractError
from kdkit.losses.base import BUILD_ARGUMENTS, BuildableLoss, BuildContext, Loss, extra_kwargs_of, loss_name

_TRAINING_SAMPLES = 12  # more than a batch holds, for losses that remember samples

BOTH_SIDES = ("student", "target")
# The end of messages about values under autocast.
IN_HALF_PRECISION = (
    "; convert both sides with .float() first: in fp16, an eps below 6e-8 is 0; under autocast, matrix products (@, "
    "einsum, cdist, linear layers) are in half precision, also of tensors after .float(): compute them in "
    "`with torch.autocast(student.device.type, enabled=False):`"
)
_NEAR_ZERO = (
    "; if it divides by a norm or takes a root, the gradient near 0 is about 1 / eps, which must not exceed the range "
    "of fp16: pass a larger eps, such as F.normalize(..., eps=1e-4)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The inputs of a loss: one tensor per tap on each side, and the labels.

    tuples: whether the loss gets tuples of taps instead of single tensors. description: of the inputs, for error
    messages.
    """

    student: tuple[Tensor, ...]
    target: tuple[Tensor, ...]
    labels: Tensor
    tuples: bool = False
    description: str = ""

    def transform(
        self, description: str, change: Callable[[Tensor], Tensor], sides: tuple[str, ...] = BOTH_SIDES
    ) -> "LossInputs":
        """Return copies of the inputs, with `change` applied to every tensor of these sides."""
        student, target = (
            tuple(change(tensor.detach().clone()) if name in sides else tensor for tensor in side)
            for name, side in zip(BOTH_SIDES, (self.student, self.target), strict=True)
        )
        return replace(self, description=description, student=student, target=target)

    def select_rows(self, description: str, rows: Tensor) -> "LossInputs":
        """Return these rows of the batch."""
        student, target = (tuple(tensor[rows] for tensor in side) for side in (self.student, self.target))
        return replace(self, description=description, student=student, target=target, labels=self.labels[rows])

    def with_equal_sides(self) -> "LossInputs":
        """Return inputs whose student is a copy of the target."""
        student = tuple(tensor.clone() for tensor in self.target)
        return replace(self, description="two equal sides", student=student)

    @property
    def same_shapes(self) -> bool:
        """Whether both sides have the same shapes."""
        return [tensor.shape for tensor in self.student] == [tensor.shape for tensor in self.target]

    def arguments(self) -> tuple[Any, Any]:
        """Return the student and the target for the loss: each is a tensor, or a tuple of taps."""
        return (self.student, self.target) if self.tuples else (self.student[0], self.target[0])

    def __str__(self) -> str:
        student, target = (
            " ".join(str(tuple(tensor.shape)) for tensor in side) for side in (self.student, self.target)
        )
        shapes = student if self.same_shapes else f"{student} and {target}"
        return f"{self.description + ' of ' if self.description else ''}{shapes}"


class LossCase:
    """A loss and a batch of inputs for it. Each check creates a new loss, built for the shapes of these inputs."""

    def __init__(self, make_loss: Callable[[], Loss], inputs: LossInputs, task: Task) -> None:
        self.make_loss = make_loss
        self.inputs = inputs
        first = make_loss()
        self.name = loss_name(first)
        self._kwargs = extra_kwargs_of(first)
        self._is_buildable = isinstance(first, BuildableLoss)  # stored, because testing for a protocol is slow
        classes = inputs.target[0].shape[1]
        names = tuple(str(index) for index in range(classes))
        self.context = BuildContext(
            classes=names, task=task, samples=_TRAINING_SAMPLES, ids=True, batch_size=len(inputs.labels)
        )
        torch.default_generator.manual_seed(0)
        # has a Linear layer and a batch norm, for losses that read the teacher's classifier or norm
        self.teacher = nn.Sequential(nn.Linear(classes, classes), nn.BatchNorm1d(classes)).eval()

    def build_loss(self, *, builds: int = 1) -> Loss:
        """Return a new loss. If it can be built, it is built this many times, always from the same seed."""
        loss = self.make_loss()
        student, target = (tuple(tensor.shape for tensor in side) for side in (self.inputs.student, self.inputs.target))
        for _ in range(builds if self._is_buildable else 0):
            torch.default_generator.manual_seed(1)
            with self.contract_errors("in build()", BUILD_ARGUMENTS):
                loss.build(student, target, self.context, self.teacher)  # type: ignore[attr-defined]  # see the range
        return loss

    def value(self, inputs: LossInputs, loss: Loss | None = None, *, autocast: torch.dtype | None = None) -> Tensor:
        """Return the value of a loss, by default of a new one. Raises ContractError unless it is a finite scalar."""
        loss = self.build_loss() if loss is None else loss
        torch.default_generator.manual_seed(2)
        context: AbstractContextManager[Any] = torch.autocast("cpu", autocast) if autocast else nullcontext()
        with self.contract_errors(f"on {inputs}"), context:
            value = loss(*inputs.arguments(), **self._loss_kwargs(inputs))
        if not isinstance(value, Tensor) or value.ndim != 0:
            result = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise self.error(inputs, f"returns {result}, not a scalar; reduce it")
        if not value.isfinite():
            hint = IN_HALF_PRECISION if autocast else ""
            raise self.error(inputs, f"is {value.item()}, not a finite number{hint}")
        return value

    def backward(self, inputs: LossInputs, loss: Loss | None = None, *, autocast: torch.dtype | None = None) -> Tensor:
        """Return the value after a backward pass. Raises ContractError if a gradient is missing or not finite.

        The student's tensors become leaves, which hold the gradients.
        """
        for tensor in inputs.student:
            tensor.requires_grad_()
        value = self.value(inputs, loss, autocast=autocast)
        if not value.requires_grad:
            raise self.error(inputs, "returns a value without a gradient")
        with self.contract_errors(f"on {inputs} in its backward pass"):
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        for tensor in inputs.student:
            if tensor.grad is None:
                raise self.error(inputs, "gives the student no gradient")
            if not tensor.grad.isfinite().all():
                raise self.error(inputs, f"gives a gradient that is not finite{_NEAR_ZERO}")
        return value.detach()

    def error(self, inputs: LossInputs, problem: str) -> ContractError:
        """Return the error that names the loss, its inputs and the problem."""
        return ContractError(f"{self.name} on {inputs} {problem}")

    @contextmanager
    def contract_errors(self, situation: str, advice: str = "") -> Iterator[None]:
        """Turn any exception of the loss into a ContractError that names the situation and ends with the advice."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}{advice}"
            raise ContractError(f"{self.name} {situation} raises {reason}") from error

    def _loss_kwargs(self, inputs: LossInputs) -> dict[str, Any]:
        batch = len(inputs.student[0])
        # Functions, because a loss is called hundreds of times and takes only some of these.
        values: dict[str, Callable[[], Any]] = {
            "labels": lambda: inputs.labels,
            "ids": lambda: torch.arange(batch),
            "progress": lambda: torch.tensor(0.5),
            "teacher_outputs": lambda: inputs.target,
            "sample_weights": lambda: torch.ones(batch),
            "inputs": lambda: torch.zeros(batch, 1),
        }
        return {name: values[name]() for name in self._kwargs}
