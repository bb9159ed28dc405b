"""Check the contract of a loss: finite values and gradients for many inputs, and no side effects."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdkit.errors import ContractError, describe
from kdkit.losses.base import Loss
from kdkit.testing import loss_state, loss_values
from kdkit.testing.loss_case import LossCase, LossInputs
from kdkit.utils.signatures import parameters_by_name
from kdkit.utils.validation import is_whole_number

Shape = tuple[int, ...]

# Without the batch: (C,), and for features also (C, L) and (C, H, W).
_SHAPES: dict[str, tuple[Shape, ...]] = {"outputs": ((5,),), "features": ((5,), (5, 6), (5, 4, 3))}
_BATCH = 4
# Confident logits, and large features. At 1e4, the gradient of SemCKD's weighted squared error would exceed fp16.
_SATURATED = {"outputs": 1e4, "features": 1e3}


def check_loss(
    make_loss: Callable[[], Loss],
    *,
    on: Literal["outputs", "features"] = "outputs",
    shapes: Sequence[Shape | tuple[Shape, Shape]] | None = None,
    layers: tuple[int, int] | None = None,
    least_when_equal: bool = True,
    task: Literal["multiclass", "multilabel"] = "multiclass",
) -> None:
    """Check a loss against frozen targets. Raises ContractError for the first check that fails.

    make_loss: returns a new loss on each call. The loss gets the keyword arguments that it accepts (labels, ids,
    progress, teacher_outputs, sample_weights, and zeros (batch, 1) as inputs).
    on: "outputs" checks (batch, classes), also of +-1e4; "features" checks (batch, channels), (batch, channels, length)
    and (batch, channels, height, width), also of +-1e3.
    shapes: other shapes to check, without the batch: one for both sides, or pairs for student and target.
    layers: the number of taps in the tuples of the student and of the target, for a loss over several layers.
    least_when_equal: whether the value is minimal if both sides are equal, as for most losses without a projector.
    task: the kind of labels for a loss that accepts them: a class per sample, or a value per label.

    The value must be a finite scalar with a finite gradient, even for one sample and missing classes, and, in float32
    and under autocast in bf16 and fp16, for equal sides and for numbers on either side that are constant, 0, tiny or
    large. Only for large numbers may a gradient exceed the range of fp16, if the float32 gradient exceeds it too.
    It agrees to 2 % under autocast in bf16 and fp16. The student gets a gradient; the teacher that the loss is
    built with gets none, and none of its weights are parameters of the loss. Both sides stay unchanged. The value is
    the same for the same seed, in non-contiguous memory, after a second build, and after restoring the state_dict().
    The state does not change in eval mode. The value does not grow with the batch, so the weight of a term does not
    depend on the batch size, unless the loss has an attribute `reduction` of "sum", like those of torch.nn. On outputs,
    a single sample has a gradient; with a softmax over the batch instead of the classes, it would have none.
    """
    _validate_arguments(make_loss, on=on, shapes=shapes, layers=layers, task=task)
    checks: list[Callable[[LossCase], None]] = [
        loss_state.gradient_reaches_only_the_student,
        loss_state.trains_only_its_own_weights,
        loss_state.is_deterministic,
        loss_state.can_be_rebuilt,
        loss_state.restores_from_state_dict,
        loss_state.keeps_state_in_eval_mode,
        loss_values.accepts_any_memory_layout,
        loss_values.accepts_any_batch_size,
        loss_values.accepts_any_precision,
        *([loss_values.is_minimal_when_equal] if least_when_equal else []),
        loss_values.accepts_degenerate_inputs,
        loss_values.accepts_missing_classes,
        partial(loss_values.accepts_saturated_inputs, size=_SATURATED[on]),
        *([loss_values.compares_each_sample] if on == "outputs" else []),
    ]
    # the checks seed torch's generator; its state is restored at the end
    with torch.random.fork_rng(devices=[]):
        for shape in shapes if shapes is not None else _SHAPES[on]:
            case = LossCase(make_loss, _random_inputs(shape, layers, task), task)
            try:
                for check in checks:
                    check(case)
            except ContractError as error:
                if shapes is not None or error.__cause__ is None or check is not checks[0]:
                    raise
                # The loss raised an error for random numbers: perhaps it takes only maps, only vectors, or a tuple.
                advice = "if it compares features, pass on='features'"
                if on == "features":
                    others = [default for default in _SHAPES[on] if default != shape]
                    advice = (
                        "if it does not take features of this shape, pass the shapes that it takes, without the batch: "
                        f"check_loss(..., shapes={others})"
                    )
                tuples = "" if layers is not None else "; if it takes a tuple of taps, pass layers=(3, 3)"
                raise ContractError(f"{error}; {advice}{tuples}") from error


def _validate_arguments(make_loss: Any, *, on: str, shapes: Any, layers: Any, task: str) -> None:
    """Raise ContractError if an argument of check_loss has the wrong form, such as a loss instead of a function."""
    for name, value, choices in (("on", on, [*_SHAPES]), ("task", task, ["multiclass", "multilabel"])):
        if value not in choices:
            raise ContractError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    are_shapes = isinstance(shapes, Sequence) and all(
        _are_counts(shape) or (isinstance(shape, tuple) and len(shape) == 2 and all(map(_are_counts, shape)))
        for shape in shapes
    )
    if shapes is not None and not (shapes and are_shapes):
        raise ContractError(
            f"shapes must be a list of shapes without the batch, such as [(5, 6)] or [((5, 6), (3, 4))]; got {shapes!r}"
        )
    if layers is not None and not (_are_counts(layers) and len(layers) == 2):
        raise ContractError(f"layers must be the numbers of taps of student and target, such as (3, 3); got {layers!r}")
    is_loss = isinstance(make_loss, nn.Module) or not callable(make_loss)
    needed = () if is_loss else _required_parameters(make_loss)
    if is_loss or needed:
        needs = f", which needs {', '.join(needed)}" if needed else ""
        raise ContractError(
            "check_loss takes a function without arguments that returns a new loss, such as lambda: my_loss or MyLoss; "
            f"got {getattr(make_loss, '__name__', repr(make_loss))}{needs}"
        )
    loss = make_loss()
    if isinstance(loss, type) or not callable(loss):
        raise ContractError(f"check_loss takes a function that returns a new loss; it returns {describe(loss)}")
    if isinstance(loss, nn.Module) and make_loss() is loss:  # its state would seem to be restored
        raise ContractError(
            f"check_loss takes a function that returns a new loss on each call, such as {type(loss).__name__} or "
            f"lambda: {type(loss).__name__}(...); it returns the same one twice"
        )


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(is_whole_number(item) and item > 0 for item in value)


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a function cannot be called without."""
    try:
        parameters = parameters_by_name(function).values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in parameters if item.default is item.empty and item.kind not in variable]


def _random_inputs(shape: Any, layers: tuple[int, int] | None, task: str) -> LossInputs:
    """Return random inputs of a shape or a pair of shapes, with labels for the target's channels."""
    student_shape, target_shape = shape if isinstance(shape[0], tuple) else (shape, shape)
    torch.default_generator.manual_seed(0)
    # Each deeper layer has one more channel and half the positions. If one side is tokens and the other a map, the
    # positions are kept, because their numbers must match.
    halve = len(student_shape) == len(target_shape)
    student, target = (
        tuple(
            torch.randn(_BATCH, channels + layer, *(max(extent >> layer * halve, 1) for extent in positions))
            for layer in range(count)
        )
        for (channels, *positions), count in zip((student_shape, target_shape), layers or (1, 1), strict=True)
    )
    classes = torch.arange(_BATCH) % target_shape[0]
    labels: Tensor = classes
    if task == "multilabel":
        # Half of the labels, plus one, are present, because losses on the labels of a sample may compare three of them.
        shifts = range(target_shape[0] // 2 + 1)
        labels = torch.stack([torch.eye(target_shape[0]).roll(shift, 1) for shift in shifts]).amax(0)[classes]
    return LossInputs(student=student, target=target, labels=labels, tuples=layers is not None)
