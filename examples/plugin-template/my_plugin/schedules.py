"""A schedule: which network learns from which teacher, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdkit import Match, Net, Stage, Training, Truth
from kdkit.losses import Loss


@dataclass(frozen=True)
class Pretrained:
    """The student first learns from the teacher alone, and then from the labels alone.

    A teacher that is not trained yet has a stage before both. truth: the term of the labels. kd_loss: the loss against
    the outputs of the teacher.
    """

    teacher: Net[Any]
    student: Net[Any]
    truth: Truth
    kd_loss: Loss
    training: Training

    def stages(self) -> Sequence[Stage]:
        """Return the stages in the order they run."""
        stages = [] if self.teacher.trained else [Stage({self.teacher: self.truth}, self.training)]
        return [
            *stages,
            Stage({self.student: Match(self.teacher, self.kd_loss)}, self.training, name="imitation"),
            Stage({self.student: self.truth}, self.training, name="finetuning"),
        ]
