"""Warn if a loop trains the student of a Distiller, but not what should change with it."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdkit.engine.stage.open_stage import OpenStage
from kdkit.teachers.base import TeacherSession
from kdkit.utils.reprs import describe_names

_CALLS = (10, 100, 1000)  # the training calls in which weights are compared, which waits for the device
_COMPARED = 64  # values of a weight
_EPOCHS = 2  # the most passes over the samples in an epoch


class UntrainedWarnings:
    """Warns once of teachers that do not follow a student that changes, and once of losses whose weights do not change.

    samples: the number of training samples; None if it is unknown.
    followers: the names of teachers that follow the student; empty once `on_step` was called, or its absence was
    reported. until_epoch_end: the training samples until a missing call of `on_epoch_end` is reported; 0 if it is not.
    """

    def __init__(self, open_stage: OpenStage, samples: int | None) -> None:
        self.terms = open_stage.module.terms
        self.followers = [
            name for name, session in open_stage.sessions.items() if type(session).on_step is not TeacherSession.on_step
        ]
        self._with_epochs = [
            name
            for name, session in open_stage.sessions.items()
            if type(session).on_epoch_end is not TeacherSession.on_epoch_end
        ]
        self.until_epoch_end = _EPOCHS * samples + 1 if self._with_epochs and samples is not None else 0
        self._first_weights = self._read_weights()
        self._calls = 0
        self._student_before: Tensor | None = None

    @property
    def is_watching(self) -> bool:
        """Whether a warning is still possible."""
        return bool(self.followers or self._first_weights or self.until_epoch_end)

    def look(self, student: nn.Module, weights: Mapping[str, float | Tensor], samples: int) -> None:
        """Warn if it is time. Call it in each forward pass in training mode.

        weights: of the terms, by label. samples: of the batch.
        """
        if self.until_epoch_end:
            self.until_epoch_end = max(0, self.until_epoch_end - samples)
            if not self.until_epoch_end:
                warnings.warn(
                    f"{describe_names(map(repr, self._with_epochs))} changes after each epoch, but "
                    "distiller.on_epoch_end() is not called: it stays as at first, when a Past has no outputs",
                    stacklevel=5,  # the caller of the module
                )
        if not (self.followers or self._first_weights):
            return
        self._calls += 1
        if self._calls == 1:  # weights may have been loaded after the Distiller was created
            self._student_before, self._first_weights = _last_weight(student), self._read_weights()
        before = self._student_before
        if self._calls not in _CALLS or before is None or (before.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        after = _last_weight(student)
        if after is None or torch.equal(after.to(before), before):
            if self._calls == _CALLS[-1]:  # the student is not trained
                self.followers, self._first_weights = [], {}
            return
        if self.followers:
            warnings.warn(
                f"{describe_names(map(repr, self.followers))} follows the student, but distiller.on_step() is not "
                "called after optimizer steps: its outputs stay those of the first weights",
                stacklevel=5,  # the caller of the module
            )
            self.followers = []
        if same := self._unchanged(weights):
            warnings.warn(
                f"the student is trained, but the loss of {describe_names(same)} has weights, such as those of a "
                "projector, that are not: pass distiller.parameters() to the optimizer",
                stacklevel=5,  # the caller of the module
            )
        self._first_weights = {}

    def _unchanged(self, weights: Mapping[str, float | Tensor]) -> list[str]:
        """Return the labels of terms whose loss has the same weights as at first."""
        current = {label: weight for label, weight in self._read_weights().items() if weights[label] != 0}
        return [
            repr(label)
            for label, before in self._first_weights.items()
            if label in current and torch.equal(current[label].to(before), before)
        ]

    def _read_weights(self) -> dict[str, Tensor]:
        """Return some values of the first trained weight of each loss that has one, such as of a projector."""
        losses = {term.label: term.loss for term in self.terms if isinstance(term.loss, nn.Module)}
        values = {label: _values([*loss.parameters()]) for label, loss in losses.items()}
        return {label: weight for label, weight in values.items() if weight is not None}


def _last_weight(student: nn.Module) -> Tensor | None:
    """Return some values of the last trained weight of a student. The first may be embeddings that no sample has."""
    return _values([*student.parameters()][::-1])


def _values(weights: Sequence[Tensor]) -> Tensor | None:
    """Return some values of the first matrix that is trained: vectors, such as biases, may have no gradient."""
    for weight in weights:
        if weight.requires_grad and weight.ndim > 1 and type(weight).__name__ != "DTensor":
            return weight.detach().flatten()[:_COMPARED].clone()
    return None
