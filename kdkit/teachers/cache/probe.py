"""Find out on a tiny batch whether a teacher may be asked once: it answers alike, and of each sample on its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import AnswersError, first_line
from kdkit.teachers.base import Answer, Respondent
from kdkit.teachers.cache.codec import apart
from kdkit.utils.randomness import own_randomness

_MOST = {torch.float16: 0.05, torch.bfloat16: 0.05}  # of the largest figure: what more than rounding is
_MOST_ELSE = 1e-3  # TF32, in which convolutions are computed on a GPU by default, comes near it


@dataclass(frozen=True, slots=True)
class Trial:
    """What a teacher said of a batch, and how far its figures moved when it was asked in other batches."""

    answer: Answer
    rounding: float


def tried(respondent: Respondent, batch: Batch, *, autocast: bool) -> Trial:
    """Ask for a batch twice, and for its halves turned round, and leave all random states as they were.

    Raises AnswersError, whose text is the reason, where answers cannot be kept by sample.
    """
    if batch.ids is None or batch.draw is None:
        raise AnswersError("its batches have no ids, or do not say which draw they are")
    with own_randomness():
        before = _random()
        first = _whole(respondent.ask(batch), len(batch))
        again = respondent.ask(batch)
        if not all(torch.equal(one, other) for one, other in zip(before, _random(), strict=True)):
            raise AnswersError("it draws random numbers as it answers")
        worst = 0.05 if autocast else max(_MOST.get(each.dtype, _MOST_ELSE) for each in tensors_of(first))
        _require_near(first, again, worst, "it answers the same samples differently each time")
        if len(batch) == 1:
            return Trial(first, 0.0)
        turned = _turned(len(batch))
        parts = [_part(respondent, batch, rows) for rows in turned]
    halves = Answer(*_joined([each.output for each in parts]), _features(parts))
    order = torch.cat(turned).to(first.output.device)
    whole = Answer(first.output[order], tuple(each[order] for each in first.features))
    moved = _require_near(whole, halves, worst, "what it says of a sample depends on the others in its batch")
    return Trial(first, moved)


def tensors_of(answer: Answer) -> tuple[Tensor, ...]:
    """Return outputs and features of an answer."""
    return (answer.output, *answer.features)


def _whole(answer: Answer, samples: int) -> Answer:
    """Return an answer that has a row for each sample, or raise AnswersError."""
    if answer.known is not None or not all(
        each.ndim and len(each) == samples and each.layout is torch.strided for each in tensors_of(answer)
    ):
        raise AnswersError("what it gives has no row for each sample")
    return answer


def _turned(samples: int) -> list[Tensor]:
    middle = (samples + 1) // 2
    return [torch.arange(middle).flip(0), torch.arange(middle, samples).flip(0)]


def _part(respondent: Respondent, batch: Batch, rows: Tensor) -> Answer:
    try:
        return _whole(respondent.ask(batch.rows(rows)), len(rows))
    except AnswersError:
        raise
    except Exception as error:  # a stranger's net may ask for batches of one size
        raise AnswersError(f"it cannot answer a part of a batch ({first_line(error)})") from error


def _joined(parts: Sequence[Tensor]) -> tuple[Tensor]:
    if len({each.shape[1:] for each in parts}) > 1:
        raise AnswersError("the shape of what it gives depends on the others in its batch")
    return (torch.cat(list(parts)),)


def _features(parts: Sequence[Answer]) -> tuple[Tensor, ...]:
    return tuple(_joined(each)[0] for each in zip(*(part.features for part in parts), strict=True))


def _require_near(one: Answer, other: Answer, worst: float, reason: str) -> float:
    """Return how far apart two answers are. Raises AnswersError with the reason where that is more than rounding."""
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    moved = float(apart(pairs).max()) if same else torch.inf
    if not moved <= worst:
        raise AnswersError(reason)
    return moved


def _random() -> list[Tensor]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
