"""Losses to what a teacher decides, not to how sure it is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext, Loss, asked_by
from kdkit.losses.validation import same_outputs, validate_share


@dataclass(frozen=True, slots=True)
class HardTargets:
    """Cross-entropy to the class that the teacher decides for.

    In nats, mean over the batch. On a student with a head for it, as DeiT has for its distillation token, tap that
    head: Match(teacher, HardTargets(), student=Tap(net.module.head_dist)). The paper adds the labels' own term:
    Truth(...).

    Formula: -1/N · Σ log q[argmax t], with q = softmax(s)
    Shapes: logits (N, C)
    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
        arXiv:2012.12877, eq. 3
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, which goes to 0 as the student becomes sure of the teacher's class."""
        same_outputs(student, target, self)
        return F.cross_entropy(student, target.argmax(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelHardTargets:
    """Binary cross-entropy to the labels that the teacher decides for, the multi-label form of HardTargets.

    In nats, mean over batch and classes. threshold: the teacher's probability above which it says yes.

    Formula: -1/(N C) · Σ (y log q + (1 - y) log(1 - q)), with q = sigmoid(s) and y = 1 where sigmoid(t) > threshold,
        else 0
    Shapes: logits (N, C)
    Source: ours, after Touvron et al. 2021, arXiv:2012.12877
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        validate_share("threshold", self.threshold)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, which goes to 0 as the student becomes sure of what the teacher decides."""
        same_outputs(student, target, self)
        return F.binary_cross_entropy_with_logits(student, (target.sigmoid() > self.threshold).to(student.dtype))


class SecondHead(nn.Module):
    """A loss on outputs through a head of its own, for a student that has no second one.

    The unit and the reduction are those of `loss`, which is HardTargets() where None. The head is linear, trained with
    the student and no part of it after, whereas DeiT, with a token and a head built in, averages both heads when it
    predicts.

    Formula: loss(W a + b, t), with a the mean of s over positions
    Shapes: features (N, C); the student's may have positions, the target is outputs
    Source: ours, after Touvron et al. 2021, arXiv:2012.12877, sec. 4
    """

    def __init__(self, loss: Loss | None = None) -> None:
        super().__init__()
        self.loss = HardTargets() if loss is None else loss
        if isinstance(self.loss, type) or not callable(self.loss) or hasattr(self.loss, "build") or asked_by(self.loss):
            raise RecipeError(f"SecondHead takes a loss on outputs that needs nothing beside them; got {self.loss!r}")
        self.head: nn.Module = nn.Identity()

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        facts: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Make the head. Raises RecipeError for several taps or a target that is no output."""
        if len(student) != 1 or len(target) != 1 or len(target[0]) != 2:
            raise RecipeError(
                "SecondHead takes one tap of the student and the teacher's outputs (batch, classes); got "
                f"{[tuple(each) for each in student]} and {[tuple(each) for each in target]}; Hint() meets features"
            )
        self.head = nn.Linear(student[0][1], target[0][1])

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return what the loss says of the head's outputs."""
        pooled = student.flatten(2).mean(2) if student.ndim > 2 else student
        return self.loss(self.head(pooled), target)
