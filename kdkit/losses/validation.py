"""Check the options of a loss (`validate_...`, at its creation) and its tensors (`require_...`, in a call).

All raise RecipeError with the expected and the actual value.
"""

from typing import Literal

import torch
from torch import Tensor

from kdkit.errors import RecipeError
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
    if student.ndim > 2 and not dense:
        raise RecipeError(
            f"{type(loss).__name__} compares outputs (batch, classes); got {tuple(student.shape)}; "
            "PerToken(loss) takes each token as a sample, PerPosition(loss) each position of (batch, classes, ...)"
        )
    if student.ndim < 2 or student.shape != target.shape:
        is_alone = student.ndim == 1 and target.ndim == 1
        advice = ONE_OUTPUT if is_alone else "SecondHead() gives the student a head for the target's classes"
        raise RecipeError(
            f"{type(loss).__name__} compares outputs (batch, classes) of one shape; got {tuple(student.shape)} and "
            f"{tuple(target.shape)}; {advice}"
        )


def require_two_classes(student: Tensor, loss: object) -> None:
    """Raise RecipeError unless there are two classes or more."""
    if student.shape[1] < 2:
        raise RecipeError(f"{type(loss).__name__} compares classes with each other and needs two; got one")
