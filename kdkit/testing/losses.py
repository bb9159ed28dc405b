"""Check a loss: what it says of many shapes, at the edges of numbers, and what it leaves as it was."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.losses import Loss
from kdkit.testing import loss_state, loss_values
from kdkit.testing.loss_case import Given, Trial

Shape = tuple[int, ...]

# Without the batch: (C,), and for features also (C, L) and (C, H, W).
_SHAPES: dict[str, tuple[Shape, ...]] = {"outputs": ((5,),), "features": ((5,), (5, 6), (5, 4, 3))}
_BATCH = 4


def check_loss(
    make_loss: Callable[[], Loss],
    *,
    on: Literal["outputs", "features"] = "outputs",
    shapes: Sequence[Shape | tuple[Shape, Shape]] | None = None,
    layers: tuple[int, int] | None = None,
    least_when_equal: bool = True,
    task: Literal["multiclass", "multilabel"] = "multiclass",
) -> None:
    """Check a loss against frozen targets. Raises ContractError with the first thing that does not hold.

    make_loss: returns a new loss at each call; what it asks for (labels, ids, progress, answers) it is given.
    on: "outputs" tries (batch, classes), and logits of +-1e4; "features" tries (batch, channels), (batch, channels,
    length) and (batch, channels, height, width).
    shapes: other shapes to try, without the batch, of both sides or as a pair of the student's and the target's.
    layers: how many taps the tuples of the student and of the target hold, for a loss over several layers.
    least_when_equal: whether no target is better met than by itself, as holds for most losses without weights.
    task: what its labels are if it asks for them, a class for each sample or an answer for each label.

    Held to: a finite scalar with a finite gradient, also of one sample, of sides that are equal or without any spread,
    and of labels that are nobody's; the same to 2 % under autocast in bf16 and fp16; a gradient to the student, none
    to the teacher that it may be built with, of which it holds no weights; both sides left as they were; the same value
    for the same seed, for memory that is not contiguous, and if it is built again or restored from its state_dict();
    no change of state in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        for shape in shapes if shapes is not None else _SHAPES[on]:
            trial = Trial(make_loss, _given(shape, layers, task), task)
            for check in _checks(on, least_when_equal=least_when_equal):
                check(trial)


def _checks(on: str, *, least_when_equal: bool) -> list[Callable[[Trial], None]]:
    return [
        loss_state.moves_the_student_alone,
        loss_state.repeats,
        loss_state.builds_again,
        loss_state.comes_back_from_its_state,
        loss_state.keeps_nothing_in_eval_mode,
        loss_values.takes_any_memory,
        loss_values.takes_any_batch,
        loss_values.takes_any_precision,
        *([loss_values.is_least_when_equal] if least_when_equal else []),
        loss_values.takes_sides_without_spread,
        loss_values.takes_empty_classes,
        *([loss_values.takes_saturated_logits] if on == "outputs" else []),
    ]


def _given(shape: Any, layers: tuple[int, int] | None, task: str) -> Given:
    """Return a batch of random sides of a shape or of a pair of shapes, with labels for the target's channels."""
    student, target = shape if isinstance(shape[0], tuple) else (shape, shape)
    torch.default_generator.manual_seed(0)
    counts = layers or (1, 1)
    alike = len(student) == len(target)
    sides = [
        tuple(torch.randn(_BATCH, *_deeper(shape, layer, alike)) for layer in range(count))
        for shape, count in zip((student, target), counts, strict=True)
    ]
    right = torch.arange(_BATCH) % target[0]
    labels: Tensor = right if task == "multiclass" else torch.eye(target[0])[right]
    return Given(student=sides[0], target=sides[1], labels=labels, tuples=layers is not None)


def _deeper(shape: Shape, layer: int, alike: bool) -> Shape:
    """Return the shape so many layers deeper: more channels, and half the positions if tokens need not meet a map."""
    channels, *positions = shape
    return (channels + layer, *(max(each >> layer, 1) if alike else each for each in positions))
