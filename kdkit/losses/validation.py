"""Check the options of a loss (`validate_...`, at its creation) and its tensors (`require_...`, in a call).

All raise RecipeError with the expected and the actual value.
"""

import math
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from kdkit.errors import RecipeError

Reduction = Literal["batchmean", "mean"]


def validate_reduction(reduction: str) -> None:
    """Raise RecipeError unless the reduction is "batchmean" or "mean"."""
    validate_choice("reduction", reduction, Reduction)


def validate_choice(name: str, value: str, choices: object) -> None:
    """Raise RecipeError unless a value is one of those of a Literal."""
    allowed = get_args(choices)
    if value not in allowed:
        raise RecipeError(f"{name} is {' or '.join(map(repr, allowed))}; got {value!r}")


def validate_temperature(temperature: float) -> None:
    """Raise RecipeError unless the temperature is a finite number above 0."""
    validate_above_zero("a temperature", temperature)


def validate_above_zero(name: str, value: float) -> None:
    """Raise RecipeError unless a number is finite and above 0."""
    if not is_number(value) or value <= 0:
        raise RecipeError(f"{name} is a finite number above 0; got {value!r}")


def validate_at_least_zero(name: str, value: float) -> None:
    """Raise RecipeError unless a number is finite and at least 0."""
    if not is_number(value) or value < 0:
        raise RecipeError(f"{name} is a finite number of at least 0; got {value!r}")


def validate_count(name: str, value: int | None, *, optional: bool = False) -> None:
    """Raise RecipeError unless a number is an integer of at least 1, or None if it is optional."""
    if value is None and optional:
        return
    # bool is a subclass of int, and True would count as 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} is an integer of at least 1{' or None' if optional else ''}; got {value!r}")


def validate_switches(**switches: bool) -> None:
    """Raise RecipeError unless every value is True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):  # text such as "no" would count as True
            raise RecipeError(f"{name} is True or False; got {value!r}")


def validate_weights(**weights: float) -> None:
    """Raise RecipeError unless all weights are finite and at least 0, and one of them is above 0."""
    for name, weight in weights.items():
        if not is_number(weight) or weight < 0:
            raise RecipeError(f"{name} is a weight, a finite number of at least 0; got {weight!r}")
    if not any(weights.values()):
        raise RecipeError(f"{' and '.join(weights)} are all 0, so there is nothing to learn; set one weight above 0")


def validate_share(name: str, share: float, *, below_one: bool = False) -> None:
    """Raise RecipeError unless a number is in [0, 1], or in [0, 1) if `below_one`."""
    if not is_number(share) or not 0 <= share <= 1 or (below_one and share == 1):
        raise RecipeError(f"{name} is a share, in [0, 1{')' if below_one else ']'}; got {share!r}")


def is_number(value: object) -> bool:
    """Return whether a value is a finite real number, numpy's included; True and False are not numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


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
            "PerToken(loss) takes each token as a sample"
        )
    if student.ndim < 2 or student.shape != target.shape:
        raise RecipeError(
            f"{type(loss).__name__} compares outputs (batch, classes) of one shape; got {tuple(student.shape)} and "
            f"{tuple(target.shape)}; SecondHead() gives the student a head for the target's classes"
        )


def require_two_classes(student: Tensor, loss: object) -> None:
    """Raise RecipeError unless there are two classes or more."""
    if student.shape[1] < 2:
        raise RecipeError(f"{type(loss).__name__} compares classes with each other and needs two; got one")
