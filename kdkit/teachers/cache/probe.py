"""Run a teacher on a tiny batch to find out whether its outputs can be cached by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data.batch import Batch, nested_tensors
from kdkit.errors import CacheError, first_line
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.cache.codec import relative_distance
from kdkit.utils.randomness import preserve_rng_state

# Larger relative differences are not rounding. With TF32, the default for convolutions on a GPU, they are up to 1e-3.
_TOLERANCES = {torch.float16: 0.05, torch.bfloat16: 0.05}
_TOLERANCE = 1e-3
_OTHERS = "the other samples in the batch"
_PADDING = "the padding of the batch; pad all samples to one length"


@dataclass(frozen=True, slots=True)
class Probe:
    """The output for a batch, and its largest relative difference from outputs of the same samples in other batches."""

    output: TeacherOutput
    rounding: float


def probe(session: TeacherSession, batch: Batch, *, autocast: bool, padded: Sequence[Batch] = ()) -> Probe:
    """Run a teacher twice on a batch, and on its halves in reverse order. Random states are restored.

    padded: a batch, and its parts that were read as batches of their own. If their shapes are others, because batches
    are padded, the teacher runs on these too.
    Raises CacheError with the reason if outputs cannot be cached by sample.
    """
    if batch.ids is None or batch.draw is None:
        raise CacheError("its batches have no ids or no draw number")
    with preserve_rng_state():
        random_states = _random_states()
        output = session(batch)
        first, second = _tensors(output, len(batch)), _tensors(session(batch), len(batch))
        if not all(torch.equal(before, after) for before, after in zip(random_states, _random_states(), strict=True)):
            raise CacheError("it draws random numbers in its forward pass")
        tolerance = 0.05 if autocast else max(_TOLERANCES.get(tensor.dtype, _TOLERANCE) for tensor in first)
        _require_close(first, second, tolerance, "its outputs for the same batch differ from call to call")
        if len(batch) == 1:
            return Probe(output, 0.0)
        middle = (len(batch) + 1) // 2
        halves = [torch.arange(middle).flip(0), torch.arange(middle, len(batch)).flip(0)]
        expected = [tensor[torch.cat(halves).to(tensor.device)] for tensor in first]
        try:
            parts = [batch.rows(rows) for rows in halves]
            outputs = [session(part) for part in parts]
        except Exception as error:  # a user-defined module may need a fixed batch size
            raise CacheError(f"it fails on part of a batch ({first_line(error)})") from error
        rounding = _require_same(expected, parts, outputs, tolerance, _OTHERS)
        if len({_shapes(part) for part in padded}) > 1:
            try:
                whole, *outputs = [session(part) for part in padded]
            except Exception as error:  # such as for a text that is too long, which the run will report
                raise CacheError(f"it fails on other samples ({first_line(error)})") from error
            expected = _tensors(whole, len(padded[0]))
            rounding = max(rounding, _require_same(expected, padded[1:], outputs, tolerance, _PADDING))
    return Probe(output, rounding)


def _shapes(batch: Batch) -> tuple[torch.Size, ...]:
    """Return the shapes of the inputs of a sample."""
    return tuple(tensor.shape[1:] for tensor in nested_tensors(batch.inputs))


def _require_same(
    expected: Sequence[Tensor],
    parts: Sequence[Batch],
    outputs: Sequence[TeacherOutput],
    tolerance: float,
    cause: str,
) -> float:
    """Return the relative distance between the outputs for a batch and those for its parts.

    Raises CacheError with the cause if it exceeds the tolerance.
    """
    tensors = [_tensors(output, len(part)) for output, part in zip(outputs, parts, strict=True)]
    if any(left.shape[1:] != right.shape[1:] for left, right in zip(*tensors, strict=True)):
        raise CacheError(f"the shape of its outputs depends on {cause}")
    joined = [torch.cat(columns) for columns in zip(*tensors, strict=True)]
    return _require_close(expected, joined, tolerance, f"its output for a sample depends on {cause}")


def _tensors(output: TeacherOutput, samples: int) -> list[Tensor]:
    """Return the output and the features. Raises CacheError if they do not have one row per sample."""
    tensors = [output.output, *output.features]
    has_rows = all(tensor.ndim and len(tensor) == samples and tensor.layout is torch.strided for tensor in tensors)
    if output.mask is not None or not has_rows:  # a mask means that some samples have no output
        raise CacheError("its outputs or features do not have one row per sample")
    return tensors


def _require_close(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float, reason: str) -> float:
    """Return the relative distance between tensors. Raises CacheError with `reason` if it exceeds the tolerance."""
    pairs = list(zip(first, second, strict=True))
    comparable = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    distance = float(relative_distance(pairs).max()) if comparable else torch.inf
    if not distance <= tolerance:  # also refuses NaN
        raise CacheError(reason)
    return distance


def _random_states() -> list[Tensor]:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    devices = range(torch.cuda.device_count()) if used else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
