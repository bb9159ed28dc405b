"""Find out on a tiny batch whether a teacher may be asked once: it answers alike, and of each sample on its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import CacheError, first_line
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.cache.codec import apart
from kdkit.utils.randomness import preserve_rng_state

_MOST = {torch.float16: 0.05, torch.bfloat16: 0.05}  # of the largest figure: what more than rounding is
_MOST_ELSE = 1e-3  # TF32, in which convolutions are computed on a GPU by default, comes near it


@dataclass(frozen=True, slots=True)
class Probe:
    """What a teacher said of a batch, and how far its figures moved when it was asked in other batches."""

    answer: TeacherOutput
    rounding: float


def probe(session: TeacherSession, batch: Batch, *, autocast: bool) -> Probe:
    """Ask for a batch twice, and for its halves turned round, and leave all random states as they were.

    Raises CacheError, whose text is the reason, where answers cannot be kept by sample.
    """
    if batch.ids is None or batch.draw is None:
        raise CacheError("its batches have no ids, or do not say which draw they are")
    with preserve_rng_state():
        before = _random()
        first = _whole(session(batch), len(batch))
        again = session(batch)
        if not all(torch.equal(one, other) for one, other in zip(before, _random(), strict=True)):
            raise CacheError("it draws random numbers as it answers")
        worst = 0.05 if autocast else max(_MOST.get(each.dtype, _MOST_ELSE) for each in tensors_of(first))
        _require_near(first, again, worst, "it answers the same samples differently each time")
        if len(batch) == 1:
            return Probe(first, 0.0)
        turned = _turned(len(batch))
        parts = [_part(session, batch, rows) for rows in turned]
    halves = TeacherOutput(*_joined([each.output for each in parts]), _features(parts))
    order = torch.cat(turned).to(first.output.device)
    whole = TeacherOutput(first.output[order], tuple(each[order] for each in first.features))
    moved = _require_near(whole, halves, worst, "what it says of a sample depends on the others in its batch")
    return Probe(first, moved)


def tensors_of(answer: TeacherOutput) -> tuple[Tensor, ...]:
    """Return outputs and features of an answer."""
    return (answer.output, *answer.features)


def _whole(answer: TeacherOutput, samples: int) -> TeacherOutput:
    """Return an answer that has a row for each sample, or raise CacheError."""
    if answer.mask is not None or not all(
        each.ndim and len(each) == samples and each.layout is torch.strided for each in tensors_of(answer)
    ):
        raise CacheError("what it gives has no row for each sample")
    return answer


def _turned(samples: int) -> list[Tensor]:
    middle = (samples + 1) // 2
    return [torch.arange(middle).flip(0), torch.arange(middle, samples).flip(0)]


def _part(session: TeacherSession, batch: Batch, rows: Tensor) -> TeacherOutput:
    try:
        return _whole(session(batch.rows(rows)), len(rows))
    except CacheError:
        raise
    except Exception as error:  # a stranger's net may ask for batches of one size
        raise CacheError(f"it cannot answer a part of a batch ({first_line(error)})") from error


def _joined(parts: Sequence[Tensor]) -> tuple[Tensor]:
    if len({each.shape[1:] for each in parts}) > 1:
        raise CacheError("the shape of what it gives depends on the others in its batch")
    return (torch.cat(list(parts)),)


def _features(parts: Sequence[TeacherOutput]) -> tuple[Tensor, ...]:
    return tuple(_joined(each)[0] for each in zip(*(part.features for part in parts), strict=True))


def _require_near(one: TeacherOutput, other: TeacherOutput, worst: float, reason: str) -> float:
    """Return how far apart two answers are. Raises CacheError with the reason where that is more than rounding."""
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    moved = float(apart(pairs).max()) if same else torch.inf
    if not moved <= worst:
        raise CacheError(reason)
    return moved


def _random() -> list[Tensor]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
