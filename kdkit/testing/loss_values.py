"""Check values and gradients for extreme numbers, small batches, memory layouts and precisions."""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from kdkit.losses.base import extra_kwargs_of, is_sum
from kdkit.testing.loss_case import BOTH_SIDES, IN_HALF_PRECISION, LossCase, LossInputs

_SIDES = (("student",), ("target",), BOTH_SIDES)
_SHORT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# The precisions of autocast, the student and the target. The last layer of either net may return half precision or,
# like a softmax under autocast, float32.
_PRECISIONS = (
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.float16),
)
_NO_GRADIENT = 1e-9  # up to rounding
_HALF_RTOL = 2e-2  # bf16 has 8 significant bits; about six are left after a layer and a mean


def is_minimal_when_equal(case: LossCase) -> None:
    """Check that no student has a lower value than a student that equals the target."""
    if not case.inputs.same_shapes:
        return
    equal = case.inputs.with_equal_sides()
    least = case.value(equal)
    # Also along the gradient: random directions may all lead up even if the value is not minimal here.
    students = [_after_a_step(case, equal)]
    for distance in (1e-2, 1.0, 10.0):
        torch.default_generator.manual_seed(0)
        students.append(tuple(tensor + distance * torch.randn_like(tensor) for tensor in equal.student))
    for student in students:
        value = case.value(replace(equal, description="", student=student))
        if not least <= value + 1e-6:  # up to rounding
            problem = (
                f"is {least.item()} if both sides are equal, but {value.item()} if they differ; pass "
                "least_when_equal=False if this is intended, as with a projector or a margin"
            )
            raise case.error(case.inputs, problem)


def _after_a_step(case: LossCase, inputs: LossInputs) -> tuple[Tensor, ...]:
    """Return the student's tensors after a small step down the gradient, which is 0 at a minimum."""
    leaves = inputs.transform(inputs.description, torch.clone)
    case.backward(leaves)
    gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in leaves.student]
    # As long as the random steps of 1e-2. At a minimum, the gradient has only rounding errors, a random direction.
    return tuple(
        tensor.detach() - 1e-2 * tensor.numel() ** 0.5 * gradient / gradient.norm().clamp(min=1e-30)
        for tensor, gradient in zip(leaves.student, gradients, strict=True)
    )


def accepts_any_batch_size(case: LossCase) -> None:
    """Check that a loss built for one batch size takes a batch of one and a larger one, and is not a sum."""
    case.backward(case.inputs.select_rows("a batch of one", torch.tensor([1])))
    case.backward(case.inputs.select_rows("a batch of seven", torch.arange(7) % len(case.inputs.labels)))
    loss = case.build_loss()
    if is_sum(loss):  # training takes this into account
        return
    count = len(case.inputs.labels)
    once = case.value(case.inputs).item()
    twice = case.value(case.inputs.select_rows("", torch.arange(2 * count) % count), loss).item()
    if once and any(math.isclose(twice / once, factor, rel_tol=1e-3) for factor in (2, 4)):  # 4: a sum over pairs
        raise case.error(
            case.inputs,
            f"is {once:g}, but {twice:g} for each sample twice, so its weight depends on the batch size; take the mean "
            'over the samples, or give the loss an attribute reduction = "sum", so that the batches of an update add '
            "up",
        )


def compares_each_sample(case: LossCase) -> None:
    """Check that a batch of one has a gradient: a loss must compare classes, not samples of the batch."""
    gradients = []
    for row in range(len(case.inputs.labels)):  # a loss with a margin may be flat for some of them
        inputs = case.inputs.select_rows("", torch.tensor([row]))
        case.backward(inputs)
        gradients.append(torch.stack([tensor.grad.abs().max() for tensor in inputs.student if tensor.grad is not None]))
    if max(float(gradient.max()) for gradient in gradients) < _NO_GRADIENT:
        raise case.error(
            case.inputs.select_rows("batches of one", torch.tensor([0])),
            "gives the student no gradient, so it compares the samples of a batch, not the outputs of each; take "
            'a softmax over the classes, dim=1, or check a loss on relations between samples with on="features"',
        )


def accepts_any_memory_layout(case: LossCase) -> None:
    """Check that the value does not depend on strides: taps that move the channels return channels-last features."""
    contiguous = case.value(case.inputs)
    changes = {
        "non-contiguous memory": _strided,
        # (batch, channels, ...) whose memory is laid out as (batch, ..., channels)
        "channels-last memory": lambda tensor: tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    }
    for description, change in changes.items():
        value = case.backward(case.inputs.transform(description, change))
        if not torch.allclose(contiguous, value, rtol=1e-5, atol=1e-6):
            problem = f"is {value.item()} in {description}, but {contiguous.item()} for the same numbers in contiguous"
            raise case.error(case.inputs, f"{problem} memory")


def accepts_degenerate_inputs(case: LossCase) -> None:
    """Check that value and gradient are finite in every precision if a norm, deviation or distance is (nearly) 0.

    An epsilon that keeps a gradient finite in float32 may not do so in fp16, whose range ends at 65504.
    """
    changes = {
        # the first position of each channel at all positions
        "constant channels": lambda tensor: tensor[:, :, *[slice(1)] * (tensor.ndim - 2)].expand_as(tensor).clone(),
        "equal samples": lambda tensor: tensor[:1].expand_as(tensor).clone(),
        "zeros": torch.zeros_like,
        "ones": torch.ones_like,
        "numbers of 0.7": lambda tensor: torch.full_like(tensor, 0.7),  # the mean of these is rounded
        "a zero sample": lambda tensor: torch.cat([torch.zeros_like(tensor[:1]), tensor[1:]]),
        "a constant sample": lambda tensor: torch.cat([torch.full_like(tensor[:1], 0.7), tensor[1:]]),
        "numbers of about 1e-6": lambda tensor: tensor * 1e-6,  # below the normal numbers of fp16
        "numbers of about 1e-30": lambda tensor: tensor * 1e-30,
    }
    if case.inputs.same_shapes:
        _backward_in_every_precision(case, case.inputs.with_equal_sides())
    if all(tensor.ndim == 2 for tensor in (*case.inputs.student, *case.inputs.target)):
        del changes["constant channels"]  # without positions, these are the inputs themselves
        _backward_in_every_precision(case, case.inputs)
    for (description, change), sides in product(changes.items(), _SIDES):
        description = f"{description} ({' and '.join(sides)})"
        _backward_in_every_precision(case, case.inputs.transform(description, change, sides))


def accepts_saturated_inputs(case: LossCase, *, size: float) -> None:
    """Check that numbers of +-size, such as confident logits, right or wrong, have a finite value and gradient."""
    # only the signs of the random numbers are kept
    one_sided = [case.inputs.transform("", lambda tensor: tensor.sign() * size, sides) for sides in _SIDES]
    agreeing = one_sided[-1]
    batches = [agreeing, agreeing.transform("", torch.neg, ("target",)), *one_sided[:-1]]
    if agreeing.same_shapes:
        batches.append(agreeing.with_equal_sides())
    for inputs in batches:
        _backward_in_every_precision(case, replace(inputs, description=f"numbers of +-{size:g}"), may_exceed_range=True)


def accepts_missing_classes(case: LossCase) -> None:
    """Check that a loss with labels is finite if a class has no samples in the batch, or all of them."""
    if "labels" not in extra_kwargs_of(case.make_loss()):
        return
    labels = case.inputs.labels
    if case.context.task == "multiclass":
        variants = {"one class for all samples": torch.zeros_like(labels)}
    else:
        mixed = labels.clone()
        # the first label is absent and the last one present in every sample
        mixed[:, 0], mixed[:, -1] = 0, 1
        variants = {
            "one label always absent and one always present": mixed,
            "labels that are all 0": torch.zeros_like(labels),
            "labels that are all 1": torch.ones_like(labels),
        }
    # all variants are valid labels, so the loss must handle them; a mean over no samples would be NaN
    for description, variant in variants.items():
        case.backward(replace(case.inputs.transform(description, torch.clone), labels=variant))


def accepts_any_precision(case: LossCase) -> None:
    """Check that values agree to 2 % under autocast in bf16 and fp16, and to 0.1 % in float64."""
    for half, student, target in _PRECISIONS:
        description = f"{_SHORT_NAMES[half]} autocast ({_SHORT_NAMES[student]} and {_SHORT_NAMES[target]})"
        inputs = case.inputs.transform(description, partial(Tensor.to, dtype=student), ("student",))
        inputs = inputs.transform(description, partial(Tensor.to, dtype=target), ("target",))
        value = case.backward(inputs, autocast=half)
        # compared on the rounded inputs, so that only the precision of the computation counts
        full = case.value(inputs.transform("", Tensor.float))
        if not torch.allclose(value.float(), full.float(), rtol=_HALF_RTOL, atol=1e-3):
            problem = f"is {value.item()}, but {full.item()} in float32 for the same numbers; compute it in float32"
            raise case.error(inputs, problem + IN_HALF_PRECISION)
    single = case.value(case.inputs)
    loss = case.build_loss()
    double_loss = loss.double() if isinstance(loss, nn.Module) else loss
    double = case.backward(case.inputs.transform("float64", Tensor.double), double_loss)
    if not torch.allclose(single.double(), double.double(), rtol=1e-3, atol=1e-5):
        problem = f"is {single.item()}, but {double.item()} in float64; avoid differences of large numbers"
        raise case.error(case.inputs, problem)


def _backward_in_every_precision(case: LossCase, inputs: LossInputs, *, may_exceed_range: bool = False) -> None:
    """Check that value and gradient are finite in float32, and under autocast in both half precisions.

    may_exceed_range: whether the gradient may exceed the range of a half precision if the float32 gradient exceeds it
    too, as for a power of large features.
    """
    single = inputs.transform(inputs.description, torch.clone)
    case.backward(single)
    largest = max(float(tensor.grad.abs().max()) for tensor in single.student if tensor.grad is not None)
    for half in (torch.bfloat16, torch.float16):
        description = f"{inputs.description} in {_SHORT_NAMES[half]}"
        check = case.value if may_exceed_range and largest > torch.finfo(half).max else case.backward
        check(inputs.transform(description, partial(Tensor.to, dtype=half)), autocast=half)


def _strided(tensor: Tensor) -> Tensor:
    """Return the same numbers with a stride of two in every dimension."""
    # repeat every number; the slices skip the copies
    repeated = tensor
    for dimension in range(tensor.ndim):
        repeated = repeated.repeat_interleave(2, dimension)
    return repeated[(slice(None, None, 2),) * tensor.ndim]
