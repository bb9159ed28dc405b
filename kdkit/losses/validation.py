"""Check the options of a loss (`validate_...`, at its creation) and its tensors (`require_...`, in a call).

All raise RecipeError with the expected and the actual value.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.base import accepts_no_rows
from kdkit.utils.validation import is_number as is_number
from kdkit.utils.validation import validate_above_zero as validate_above_zero
from kdkit.utils.validation import validate_at_least_zero as validate_at_least_zero
from kdkit.utils.validation import validate_choice as validate_choice
from kdkit.utils.validation import validate_count as validate_count
from kdkit.utils.validation import validate_share as validate_share
from kdkit.utils.validation import validate_switches as validate_switches

Reduction = Literal["batchmean", "mean"]

ONE_OUTPUT = "a single output is (batch, 1): leave squeeze out of the network, and pass labels[:, None]"


def validate_reduction(reduction: str) -> None:
    """Raise RecipeError unless the reduction is "batchmean" or "mean"."""
    validate_choice("reduction", reduction, Reduction)


def validate_temperature(temperature: float) -> None:
    """Raise RecipeError unless the temperature is a finite number above 0."""
    validate_above_zero("a temperature", temperature)


def validate_weights(**weights: float) -> None:
    """Raise RecipeError unless all weights are finite and at least 0, and one of them is above 0."""
    for name, weight in weights.items():
        if not is_number(weight) or weight < 0:
            raise RecipeError(f"{name} is a weight, a finite number of at least 0; got {weight!r}")
    if not any(weights.values()):
        raise RecipeError(f"{' and '.join(weights)} are all 0, so there is nothing to learn; set one weight above 0")


def require_sides(
    student: object, target: object, loss: Any, *, form: str = "features (batch, channels, ...)", taps: bool = False
) -> None:
    """Raise RecipeError unless both sides are floating-point tensors of one batch, which is not empty.

    form: the shape that the loss takes, for the message. taps: whether a side may be a tuple of one tensor per tap. A
    loss that accepts no rows also takes an empty batch.
    """
    sides = tuple(side if taps and isinstance(side, tuple) else (side,) for side in (student, target))
    tensors = [tensor for side in sides for tensor in side]
    advice = _advice_for_tensors(tensors, empty=accepts_no_rows(loss)) if all(sides) else "tap at least one layer"
    if advice is not None:
        got = " and ".join(", ".join(map(describe_tensor, side)) or "no tap" for side in sides)
        raise RecipeError(
            f"{type(loss).__name__} compares floating-point {form} of one batch on both sides; got {got}: {advice}"
        )


def require_built(is_built: object, loss: object) -> None:
    """Raise RecipeError unless a loss with weights or memory was built for the shapes that it gets."""
    if not is_built:
        raise RecipeError(
            f"{type(loss).__name__} is not built: before the optimizer, in a loop without a Distiller, call "
            "loss.build((student.shape,), (target.shape,), BuildContext(...), teacher)"
        )


def describe_tensor(value: object) -> str:
    """Describe one side of a loss for an error message: its shape, and its dtype unless that is floating-point."""
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(map(describe_tensor, value))})"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)}" if value.is_floating_point() else f"{tuple(value.shape)} of {value.dtype}"


def _advice_for_tensors(tensors: Sequence[object], *, empty: bool) -> str | None:
    """Return what to do about tensors that a loss cannot compare, or None. empty: whether a batch may be empty."""
    batch = None
    for tensor in tensors:
        if isinstance(tensor, tuple):
            return (
                "Teachers(...) returns a tuple, and PerTeacher(loss) applies a loss to each element; of several taps, "
                "write a term for each pair"
            )
        if not isinstance(tensor, Tensor):
            return "select a tensor of the output, such as with Net(..., element=...)"
        if tensor.ndim < 2:
            return ONE_OUTPUT
        if not tensor.is_floating_point():
            return "convert integers with .float(), and compare labels with a loss on labels"
        batch = len(tensor) if batch is None else batch
        if len(tensor) != batch:
            return f"both must be of the same samples{_advice_for_frames(*sorted((batch, len(tensor))))}"
        if not tensor.numel() and not (empty and not batch):
            return "leave out empty batches, channels and positions"
    return None


def _advice_for_frames(samples: int, frames: int) -> str:
    if not samples or frames % samples:
        return ""
    count = frames // samples
    return (
        f"; if a layer gets the {count} frames of a sample one by one, make them a dimension again: "
        f"Tap(layer, element=lambda frames: frames.unflatten(0, (-1, {count})).movedim(1, 2))"
    )


def require_class_labels(labels: Tensor, student: Tensor, loss: object) -> Tensor:
    """Return the class indices (batch,) as int64. Raises RecipeError for mixed labels or several per sample."""
    if labels.shape != student.shape[:1] or labels.is_floating_point():
        raise RecipeError(
            f"{type(loss).__name__} needs one class per sample, integer labels of shape ({len(student)},); got "
            f"{tuple(labels.shape)} of {labels.dtype}; for mixed or several labels use a PerLabel... loss"
        )
    return labels.to(torch.int64)


def require_label_matrix(labels: Tensor, student: Tensor, loss: object) -> Tensor:
    """Return the labels (batch, classes) in the student's precision. Raises RecipeError for any other shape."""
    if labels.shape != student.shape:
        raise RecipeError(
            f"{type(loss).__name__} needs a value in [0, 1] for every label, of the outputs' shape "
            f"{tuple(student.shape)}; got {tuple(labels.shape)}; for one class per sample use the loss without PerLabel"
        )
    return labels.to(student.dtype)


def require_same_outputs(student: Tensor, target: Tensor, loss: object, *, dense: bool = False) -> None:
    """Raise RecipeError unless both are outputs (batch, classes) of one shape; `dense` allows more dimensions."""
    require_sides(student, target, loss, form="outputs (batch, classes)")
    if student.ndim > 2 and not dense:
        raise RecipeError(
            f"{type(loss).__name__} compares outputs (batch, classes); got {tuple(student.shape)}; "
            "PerToken(loss) takes each token as a sample, PerPosition(loss) each position of (batch, classes, ...)"
        )
    if student.shape != target.shape:
        raise RecipeError(
            f"{type(loss).__name__} compares outputs (batch, classes) of one shape; got {tuple(student.shape)} and "
            f"{tuple(target.shape)}; SecondHead() gives the student a head for the target's classes"
        )


def require_two_classes(student: Tensor, loss: object) -> None:
    """Raise RecipeError unless there are two classes or more."""
    if student.shape[1] < 2:
        raise RecipeError(f"{type(loss).__name__} compares classes with each other and needs two; got one")
