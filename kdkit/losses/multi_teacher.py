"""Apply a loss to each of several teachers, weighted equally, by fixed weights, by confidence or by learned weights."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import (
    BuildableLoss,
    BuildContext,
    Loss,
    accepts_no_rows,
    allows_any_classes,
    extra_kwargs_of,
    is_per_position,
    option_of,
    requirements_of,
)
from kdkit.losses.features import ProjectedLoss
from kdkit.losses.sides import Shapes, TensorOrTuple, as_tuple
from kdkit.losses.validation import is_number

TeacherWeighting = Literal["equal", "confidence", "learned"]

_PROBE_BATCH = 4  # samples of the random batches in `has_independent_samples`


class PerTeacher(nn.Module):
    """Apply a loss to each of several teachers, and sum the values with a weight per teacher.

    In the unit of the loss. The student's side is one tensor for all teachers, or a tuple of one per teacher; the
    target is a tuple of one per teacher. Each teacher has a copy of the loss, with its own projector if one is made.
    weights: one number per teacher, such as (0.6, 0.4), or "equal"; "confidence" weighs the teachers for each sample by
    the cross-entropy of their outputs with its label, (1 - softmax(cross-entropy)) / (teachers - 1), for a loss that is
    a mean over samples (CA-MKD, whose code also divides by the number of teachers); "learned" trains a log variance v
    per teacher, exp(-v) * loss + v / 2, mean over teachers; the second term keeps the weights from vanishing.

    Formula: Σ w_i loss(s_i, t_i), with w_i the weight of teacher i
    Shapes: those of `loss`; a target of each teacher
    Source: ours; "confidence" of Zhang et al. 2022, "Confidence-Aware Multi-Teacher Knowledge Distillation",
        arXiv:2201.00007; "learned" of Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for
        Scene Geometry and Semantics", arXiv:1705.07115
    """

    def __init__(self, loss: Loss, *, weights: TeacherWeighting | Sequence[float] = "equal") -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss):
            raise RecipeError(f"PerTeacher takes a loss, such as SoftTargets(); got {loss!r}")
        self._loss = (loss,)  # a tuple hides its weights from self.parameters(): only its copies are trained
        self._copies = nn.ModuleList()
        self.weights = _validated_weights(weights)
        self.log_variances = nn.Parameter(torch.zeros(0)) if weights == "learned" else None
        self._loss_kwargs = extra_kwargs_of(loss)
        # "confidence" reads the labels and the logits of all teachers, whatever the loss compares
        self.extra_kwargs = self._loss_kwargs | (
            {"labels", "teacher_outputs"} if weights == "confidence" else frozenset()
        )
        self.requires = requirements_of(loss)
        self.per_position = is_per_position(loss)
        self.any_classes = allows_any_classes(loss)
        self.accepts_no_rows = accepts_no_rows(loss)
        # "confidence" is a mean over samples, whatever the loss is
        self.reduction = None if weights == "confidence" else option_of(loss, "reduction")

    @property
    def loss(self) -> Loss:
        """The loss that compares the student to each teacher, before it is copied."""
        return self._loss[0]

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: Any) -> None:
        """Copy the loss for each teacher, and build the copies. teacher: a tuple of one module per teacher.

        Raises RecipeError if the teachers or shapes do not fit, or for weights="confidence" if the loss of a sample
        depends on other samples.
        """
        count = len(target)
        if count < 2 or len(student) not in (1, count):
            raise RecipeError(
                "PerTeacher compares one tap of the student, or one per teacher, to the outputs of several teachers; "
                f"got {len(student)} and {count}: use Match(Teachers(first, second), PerTeacher(...))"
            )
        if isinstance(self.weights, tuple) and len(self.weights) != count:
            raise RecipeError(f"PerTeacher takes one weight for each of the {count} teachers; got {self.weights}")
        if self.log_variances is not None:
            self.log_variances = nn.Parameter(torch.zeros(count))
        loss = self.loss
        # a loss that is not a module has no state and is shared by all teachers
        self._copies = nn.ModuleList(copy.deepcopy(loss) for _ in target if isinstance(loss, nn.Module))
        teachers = teacher if isinstance(teacher, tuple) else (None,) * count
        students = student * count if len(student) == 1 else student
        for index, copied in enumerate(self._copies):
            if isinstance(copied, BuildableLoss):
                teacher_context = replace(context, tapped=context.tapped[index : index + 1])
                copied.build((students[index],), (target[index],), teacher_context, teachers[index])
        if self.weights == "confidence":
            self._require_confidence(list(zip(students, target, strict=True)), context, teacher)

    def forward(self, student: TensorOrTuple, target: tuple[Tensor, ...], **kwargs: Any) -> Tensor:
        """Return the weighted sum over teachers."""
        students = as_tuple(student)
        pairs = list(zip(students * len(target) if len(students) == 1 else students, target, strict=True))
        loss_kwargs = {name: kwargs[name] for name in self._loss_kwargs if name in kwargs}  # some are optional
        losses = self._losses(len(pairs))
        if self.weights == "confidence":
            # one weight per sample and teacher; unbind gives a (batch,) tensor per teacher
            weights = teacher_confidence(kwargs["teacher_outputs"], kwargs["labels"]).unbind(1)
            values = [
                (weight * per_sample_losses(loss, *pair, loss_kwargs)).mean()
                for loss, pair, weight in zip(losses, pairs, weights, strict=True)
            ]
            return torch.stack(values).sum()
        values = [loss(*pair, **loss_kwargs) for loss, pair in zip(losses, pairs, strict=True)]
        if self.log_variances is not None:
            # Kendall et al. 2018: exp(-v) L + v / 2, with v = log sigma² for numerical stability
            return ((-self.log_variances).exp() * torch.stack(values) + self.log_variances / 2).mean()
        shares = self.weights if isinstance(self.weights, tuple) else (1 / len(values),) * len(values)
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()

    def extra_repr(self) -> str:
        """Return the loss and the weights, for the printed plan of a recipe."""
        loss = self.loss
        return f"{type(loss).__name__ if isinstance(loss, nn.Module) else loss!r}, weights={self.weights!r}"

    def _losses(self, count: int) -> list[Any]:
        """Return one loss per teacher: the copies of a module, or the same plain function for all."""
        return list(self._copies) or [*self._loss] * count

    def _require_confidence(
        self, shapes: list[tuple[torch.Size, torch.Size]], context: BuildContext, teacher: Any
    ) -> None:
        """Raise RecipeError if the confidence of the teachers or the losses of single samples are not defined."""
        remedy = "use weights='equal', 'learned' or a number per teacher"
        if context.task == "regression":
            raise RecipeError(
                "weights='confidence' compares the teachers' outputs to the class or the labels, but the task of this "
                f"data is regression; {remedy}"
            )
        if not isinstance(teacher, tuple):
            raise RecipeError(f"weights='confidence' weighs several Teachers; got one teacher; {remedy}")
        for loss, (student, target) in zip(self._losses(len(shapes)), shapes, strict=True):
            if not has_independent_samples(loss, student, target, context):
                raise RecipeError(
                    "weights='confidence' weighs each sample by itself, but in "
                    f"{type(loss).__name__} the samples of a batch depend on each other, by relations, a batch norm or "
                    "a state; use weights='equal', 'learned' or a number per teacher"
                )


def teacher_confidence(teacher_outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the weight of each teacher for each sample, (batch, teachers), which sum to 1 over the teachers.

    teacher_outputs: (batch, classes) logits of each teacher. labels: (batch,) classes, or (batch, classes) in [0, 1],
    whose binary cross-entropies are averaged.
    """
    errors = torch.stack([_cross_entropy_per_sample(outputs.float(), labels) for outputs in teacher_outputs], 1)
    # A teacher that masks the label by -inf has an infinite error, whose softmax would be NaN instead of 1.
    errors = errors.clamp(max=torch.finfo(errors.dtype).max)
    # CA-MKD's w = (1 - softmax(cross-entropy)) / (K - 1): the lower the error, the higher the weight
    return (1 - errors.softmax(1)) / (len(teacher_outputs) - 1)


def per_sample_losses(loss: Any, student: Tensor, target: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return the loss of each sample by itself, (batch,). A projector gets the whole batch, for its batch norms."""
    if isinstance(loss, ProjectedLoss):
        student, loss = loss.project(student, target), loss.compare
    mapped_names = [name for name in ("labels", "ids") if kwargs.get(name) is not None]
    shared = {name: value for name, value in kwargs.items() if name not in mapped_names}

    def single_sample(student_row: Tensor, target_row: Tensor, *rows: Tensor) -> Tensor:
        # vmap removes the batch dimension; the loss gets a batch of one
        mapped = {name: row[None] for name, row in zip(mapped_names, rows, strict=True)}
        value: Tensor = loss(student_row[None], target_row[None], **mapped, **shared)
        return value

    rows = [kwargs[name] for name in mapped_names]
    values: Tensor = vmap(single_sample, randomness="different")(student, target, *rows)
    return values


def has_independent_samples(loss: Any, student: torch.Size, target: torch.Size, context: BuildContext) -> bool:
    """Return whether the gradient of a loss at one sample does not depend on the other samples of its batch.

    The loss is called on two random batches with the same first sample. If this raises, the result is True: the same
    error is raised when the loss is called in training.
    """
    probe = copy.deepcopy(loss)  # a loss with a memory must not store the random samples
    call = probe.compare if isinstance(probe, ProjectedLoss) else probe
    # `compare` gets the projected student, of the target's shape
    student_shape, target_shape = (target if isinstance(probe, ProjectedLoss) else student)[1:], target[1:]
    names = extra_kwargs_of(loss)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            kwargs = {name: value for name, value in _probe_kwargs(student, target, context).items() if name in names}
            buffers = _buffers(probe)
            first, second = (
                (torch.randn(_PROBE_BATCH, *student_shape), torch.randn(_PROBE_BATCH, *target_shape)) for _ in range(2)
            )
            # the first sample of the first batch among the other samples of the second
            mixed = tuple(torch.cat([a[:1], b[1:]]) for a, b in zip(first, second, strict=True))
            gradient, mixed_gradient = (_first_sample_gradient(call, sides, kwargs) for sides in (first, mixed))
            # a loss that updates a state, such as TAID, uses all samples
            keeps_state = any(not torch.equal(*pair) for pair in zip(buffers, _buffers(probe), strict=True))
    except Exception:  # a user-defined loss may raise anything
        return True
    atol = 1e-3 * float(gradient.abs().max())
    is_same = torch.allclose(gradient, mixed_gradient, rtol=1e-3, atol=atol, equal_nan=True)
    return is_same and not keeps_state


def _buffers(loss: Any) -> list[Tensor]:
    """Return copies of the buffers of a loss, if it is a module."""
    return [buffer.clone() for buffer in loss.buffers()] if isinstance(loss, nn.Module) else []


def _cross_entropy_per_sample(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, (batch,); for multi-label labels, the mean over classes."""
    if labels.ndim == 1:
        return F.cross_entropy(outputs, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype), reduction="none").mean(1)


def _probe_kwargs(student: torch.Size, target: torch.Size, context: BuildContext) -> dict[str, Any]:
    """Return a value for each of LOSS_KWARGS."""
    hard = context.task == "multiclass"
    return {
        "labels": torch.zeros(_PROBE_BATCH, dtype=torch.int64) if hard else torch.zeros(_PROBE_BATCH, *student[1:]),
        "ids": torch.arange(_PROBE_BATCH),
        "progress": torch.tensor(0.5),
        "teacher_outputs": (torch.zeros(_PROBE_BATCH, *target[1:]),),
        "sample_weights": torch.ones(_PROBE_BATCH),
        "inputs": torch.zeros(_PROBE_BATCH, 1),
    }


def _first_sample_gradient(call: Any, sides: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the gradient of a loss to the first sample of the student's side."""
    # So that a loss that draws random numbers draws the same for both batches. These are on the CPU: torch.manual_seed
    # would also seed a GPU, for the rest of the run.
    torch.default_generator.manual_seed(0)
    student, target = sides
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(call(student, target, **kwargs), student)
    return gradient[0]


def _validated_weights(weights: Any) -> TeacherWeighting | tuple[float, ...]:
    if isinstance(weights, str):
        if weights not in get_args(TeacherWeighting):
            names = ", ".join(get_args(TeacherWeighting))
            raise RecipeError(f"weights are a number per teacher, or one of {names}; got {weights!r}")
        return weights  # type: ignore[return-value]  # checked above to be one of the Literal's values
    shares = tuple(weights) if isinstance(weights, Sequence) else ()
    if not shares or not all(is_number(share) and share >= 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise RecipeError(f"the weights of teachers are at least 0 and sum to 1; got {weights!r}")
    return shares
