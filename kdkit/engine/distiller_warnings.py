"""Warn if a loop trains the student of a Distiller, but not what should change with it."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdkit.engine.stage.open_stage import OpenStage
from kdkit.teachers.base import TeacherSession
from kdkit.utils.reprs import describe_names

_STEPS = 10  # of the optimizer, after which weights that should be trained have changed
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
        self._first_weights = {term.label: _first_weight(term.loss) for term in self.terms}  # until they are compared
        self._versions: set[int] = set()  # of a weight of the student

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
        weight = next((weight for weight in student.parameters() if weight.requires_grad), None)
        self._versions.add(0 if weight is None else weight._version)  # torch counts changes in place
        if self.followers and len(self._versions) > 2:  # one change may be that of loaded weights
            warnings.warn(
                f"{describe_names(map(repr, self.followers))} follows the student, but distiller.on_step() is not "
                "called after optimizer steps: its outputs stay those of the first weights",
                stacklevel=5,  # the caller of the module
            )
            self.followers = []
        is_captured = weight is not None and weight.is_cuda and torch.cuda.is_current_stream_capturing()
        # The comparison waits for the device, which a CUDA graph must not.
        if self._first_weights and len(self._versions) > _STEPS and not is_captured:
            same = self._unchanged(weights)
            if same:
                warnings.warn(
                    f"the student is trained, but the loss of {describe_names(same)} has weights, such as those of a "
                    "projector, that are not: pass distiller.parameters() to the optimizer",
                    stacklevel=5,  # the caller of the module
                )
            self._first_weights = {}

    def _unchanged(self, weights: Mapping[str, float | Tensor]) -> list[str]:
        """Return the labels of terms whose loss has the same weights as at first."""
        now = {term.label: _first_weight(term.loss) for term in self.terms if weights[term.label] != 0}
        return [
            repr(label)
            for label, before in self._first_weights.items()
            if before is not None and (after := now.get(label)) is not None and torch.equal(after.to(before), before)
        ]


def _first_weight(loss: object) -> Tensor | None:
    """Return some values of the first trained weight of a loss, such as of a projector; None if it has none.

    Vectors, such as biases, may have no gradient.
    """
    for weight in loss.parameters() if isinstance(loss, nn.Module) else ():
        if weight.requires_grad and weight.ndim > 1 and type(weight).__name__ != "DTensor":
            return weight.detach().flatten()[:_COMPARED].clone()
    return None
