"""How answers are kept: as they are, or in fewer bytes, in which case all of them are used that way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.errors import CacheError
from kdkit.teachers.base import TeacherOutput
from kdkit.teachers.cache.settings import CacheSettings

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that is kept of each answer: shape and dtype are of one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """How many each sample takes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Codec:
    """Turns answers into parts that are kept, and parts into answers; made for a net from one of its answers.

    Raises CacheError for outputs of which the largest cannot be taken.
    """

    def __init__(self, settings: CacheSettings, answer: TeacherOutput) -> None:
        tensors = (answer.output, *answer.features)
        self._given = tuple(each.dtype for each in tensors)
        wanted = None if settings.dtype is None else _DTYPES[settings.dtype]
        floats = [each.is_floating_point() for each in tensors]
        self._kept = tuple(
            wanted if wanted is not None and real else given for given, real in zip(self._given, floats, strict=True)
        )
        self._top = settings.top
        self._classes = answer.output.shape[-1]
        if self._top is not None and (answer.output.ndim != 2 or not floats[0]):
            raise CacheError(f"top is of outputs (batch, classes); it gives {tuple(answer.output.shape)}")
        if self._top is not None and self._top >= self._classes:
            self._top = None  # all of them are kept
        self._plain = self._top is None and self._kept == self._given
        self.parts = tuple(
            Part(name, tuple(each.shape[1:]), each.dtype)
            for name, each in zip(self._names(), self.packed(answer), strict=True)
        )

    @property
    def rounding(self) -> float:
        """How far equal answers may lie apart in this form, as a share of the largest."""
        return max(4 * torch.finfo(each).eps if each in _HALF else 1e-5 for each in self._kept)

    def packed(self, answer: TeacherOutput) -> tuple[Tensor, ...]:
        """Return the parts of an answer, on the CPU, a row for each sample."""
        kept = [
            each.detach().to("cpu", dtype, copy=False).contiguous()
            for each, dtype in zip((answer.output, *answer.features), self._kept, strict=True)
        ]
        return tuple(kept) if self._top is None else (*self._of_largest(answer.output, self._top), *kept[1:])

    def answer(self, parts: Sequence[Tensor], device: torch.device) -> TeacherOutput:
        """Return the answer that parts make, on a device."""
        if self._plain and device.type == "cpu":
            return TeacherOutput(parts[0], tuple(parts[1:]))
        moved = [each.to(device, non_blocking=True) for each in parts]
        if self._top is not None:
            largest, classes, *features = moved
            moved = [self._spread(largest.to(self._given[0]), classes.long()), *features]
        output, *features = (
            each if each.dtype == given else each.to(given) for each, given in zip(moved, self._given, strict=True)
        )
        return TeacherOutput(output, tuple(features))

    def compared(self, answer: TeacherOutput, kept: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return what is to be equal up to rounding where an answer is given again: the kept part, and what it is now.

        Of the largest outputs the kept classes are compared, since two that are nearly equal may change places.
        """
        now = self.packed(answer)
        if self._top is None:
            return list(zip(kept, now, strict=True))
        classes = kept[1].long()
        again = answer.output.detach().cpu().gather(1, classes)
        return [(kept[0][:, :-1], again.to(kept[0].dtype)), *zip(kept[2:], now[2:], strict=True)]

    def _names(self) -> list[str]:
        features = [f"feature-{place}" for place in range(len(self._given) - 1)]
        return [*(["output"] if self._top is None else ["output", "classes"]), *features]

    def _of_largest(self, output: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """(batch, classes) -> the largest outputs and the log of the others' mass, and the classes of the former."""
        said = output.detach().cpu()
        said = said if said.dtype == torch.float64 else said.float()
        largest, classes = said.topk(top, dim=1)
        others = said.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
        kept = torch.cat([largest, others], dim=1).to(self._kept[0]).contiguous()
        return kept, classes.to(torch.int32 if self._classes > torch.iinfo(torch.int16).max else torch.int16)

    def _spread(self, largest: Tensor, classes: Tensor) -> Tensor:
        """Put every class that was not kept at an equal share of the others' mass."""
        others = self._classes - classes.shape[1]
        each = largest[:, -1:] - math.log(others)
        return each.expand(-1, self._classes).scatter(1, classes, largest[:, :-1])


def apart(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return how far each sample of two answers lies apart, (samples,), as a share of the largest figure of a part.

    Where both are not finite in the same places these count as equal; where only one is, as infinitely far.
    """
    worst = torch.zeros(len(pairs[0][0]), dtype=torch.float64)
    for one, other in pairs:
        a, b = (each.detach().cpu().double().reshape(len(one), -1) for each in (one, other))
        finite = a.isfinite() & b.isfinite()
        scale = a[finite].abs().max().clamp(min=torch.finfo(torch.float64).tiny) if bool(finite.any()) else 1.0
        distance = torch.where(finite, (a - b).abs() / scale, torch.inf)
        distance[~finite & ((a == b) | (a.isnan() & b.isnan()))] = 0.0
        worst = torch.maximum(worst, distance.amax(1))
    return worst
