"""Encode teacher outputs for storage, either exactly or in fewer bytes, and decode them again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.errors import CacheError
from kdkit.nets.taps import is_left_out, left_out
from kdkit.teachers.base import TeacherOutput
from kdkit.teachers.cache.settings import CacheSettings

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_HALF_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that is stored for each output. shape, dtype: for one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """The number of bytes per sample."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Codec:
    """Encodes the outputs of one teacher as parts, and decodes parts. Shapes and dtypes are taken from an example.

    If a HeadTap leaves the output out, only the features are stored.
    Raises CacheError if `top` is set, but the outputs are not floats of shape (batch, classes, ...).
    """

    def __init__(self, settings: CacheSettings, example: TeacherOutput) -> None:
        self._left_out = example.output[0] if is_left_out(example.output) else None
        tensors = self._tensors(example)
        self._dtypes = tuple(tensor.dtype for tensor in tensors)
        # Integer tensors keep their dtype: float16 cannot represent large indices.
        self._stored_dtypes = tuple(
            _DTYPES[settings.dtype] if settings.dtype is not None and tensor.is_floating_point() else tensor.dtype
            for tensor in tensors
        )
        self._top = settings.top if self._left_out is None else None
        if self._top is not None and (example.output.ndim < 2 or not example.output.is_floating_point()):
            raise CacheError(
                f"top needs float outputs of shape (batch, classes, ...), but it returns {tuple(example.output.shape)} "
                f"of {example.output.dtype}"
            )
        self._classes = example.output.shape[1] if example.output.ndim > 1 else 1
        if self._top is not None and self._top >= self._classes:
            self._top = None  # nothing would be left out
        self._exact = self._top is None and self._stored_dtypes == self._dtypes
        names = ["output"] if self._left_out is None else []
        names += [] if self._top is None else ["classes"]
        names += [f"feature-{index}" for index in range(len(example.features))]
        self.parts = tuple(
            Part(name, tuple(tensor.shape[1:]), tensor.dtype)
            for name, tensor in zip(names, self.encode(example), strict=True)
        )

    @property
    def tolerance(self) -> float:
        """The largest relative distance that counts as rounding, for the stored dtypes."""
        return max(4 * torch.finfo(dtype).eps if dtype in _HALF_PRECISION else 1e-5 for dtype in self._stored_dtypes)

    def encode(self, output: TeacherOutput) -> tuple[Tensor, ...]:
        """Return the parts of an output, on the CPU, with one row per sample."""
        stored = [
            tensor.detach().to("cpu", dtype, copy=False).contiguous()
            for tensor, dtype in zip(self._tensors(output), self._stored_dtypes, strict=True)
        ]
        return tuple(stored) if self._top is None else (*self._largest(output.output, self._top), *stored[1:])

    def decode(self, parts: Sequence[Tensor], device: torch.device) -> TeacherOutput:
        """Return the output that is encoded in the parts, on a device."""
        if self._exact and device.type == "cpu":
            return self._output(parts)
        moved = [part.to(device, non_blocking=True) for part in parts]
        if self._top is not None:
            largest, classes, *features = moved
            moved = [self._spread(largest.to(self._dtypes[0]), classes.long()), *features]
        return self._output(
            [
                tensor if tensor.dtype == dtype else tensor.to(dtype)
                for tensor, dtype in zip(moved, self._dtypes, strict=True)
            ]
        )

    def comparable(self, output: TeacherOutput, parts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return pairs (stored, computed) that are equal up to rounding if the teacher has not changed.

        With `top`, the logits of the stored classes are compared: two nearly equal logits may change places.
        """
        computed = self.encode(output)
        if self._top is None:
            return list(zip(parts, computed, strict=True))
        logits = output.output.detach().cpu().gather(1, parts[1].long())
        return [(parts[0][:, :-1], logits.to(parts[0].dtype)), *zip(parts[2:], computed[2:], strict=True)]

    def _tensors(self, output: TeacherOutput) -> tuple[Tensor, ...]:
        return output.features if self._left_out is not None else (output.output, *output.features)

    def _output(self, tensors: Sequence[Tensor]) -> TeacherOutput:
        if self._left_out is None:
            return TeacherOutput(tensors[0], tuple(tensors[1:]))
        scalar = self._left_out.new_zeros((), device=tensors[0].device)
        return TeacherOutput(left_out(scalar, (len(tensors[0]), *self._left_out.shape)), tuple(tensors))

    def _largest(self, output: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Return the largest logits of each position, followed by the log mass of all other classes, and their classes.

        (batch, classes, ...) -> (batch, top + 1, ...) and (batch, top, ...).
        """
        logits = output.detach().cpu()
        logits = logits if logits.dtype == torch.float64 else logits.float()
        largest, classes = logits.topk(top, dim=1)
        rest = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
        stored = torch.cat([largest, rest], dim=1).to(self._stored_dtypes[0]).contiguous()  # (batch, top + 1, ...)
        dtype = torch.int32 if self._classes > torch.iinfo(torch.int16).max else torch.int16
        return stored, classes.to(dtype).contiguous()

    def _spread(self, largest: Tensor, classes: Tensor) -> Tensor:
        """Return logits (batch, classes, ...) in which the classes that were not stored share the rest equally."""
        others = self._classes - classes.shape[1]
        share = largest[:, -1:] - math.log(others)  # (batch, 1, ...): the log of mass / number of classes
        return share.repeat_interleave(self._classes, 1).scatter_(1, classes, largest[:, :-1])


def relative_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the largest difference for each sample, (samples,), relative to the largest absolute value of its tensor.

    Values that are not finite count as equal if they are the same in both tensors, otherwise as infinitely far apart.
    """
    worst = torch.zeros(len(pairs[0][0]), dtype=torch.float64)
    for pair in pairs:
        first, second = (tensor.detach().cpu().double().reshape(len(tensor), -1) for tensor in pair)
        finite = first.isfinite() & second.isfinite()
        # `tiny` avoids a division by zero for a tensor of zeros
        tiny = torch.finfo(torch.float64).tiny
        scale = first[finite].abs().max().clamp(min=tiny) if bool(finite.any()) else 1.0
        distance = torch.where(finite, (first - second).abs() / scale, torch.inf)
        distance[~finite & ((first == second) | (first.isnan() & second.isnan()))] = 0.0
        worst = torch.maximum(worst, distance.amax(1))
    return worst
