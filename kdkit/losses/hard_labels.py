"""Losses to the teacher's decisions instead of its probabilities, and a second head to learn them with (DeiT)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildableLoss, BuildContext, Loss, extra_kwargs_of
from kdkit.losses.features import upcast_half
from kdkit.losses.validation import require_same_outputs, validate_share


@dataclass(frozen=True, slots=True)
class HardTargets:
    """Cross-entropy with the teacher's predicted class.

    In nats, mean over the batch. If the student has a head for it, as DeiT has for its distillation token, tap that
    head: Match(teacher, HardTargets(), student=Tap(net.module.head_dist)). The paper's term for the labels is separate:
    Truth(...).

    Formula: -1/N · Σ log q[argmax t], with q = softmax(s)
    Shapes: logits (N, C)
    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
        arXiv:2012.12877, eq. 3
    """

    per_position = True

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, which approaches 0 as the student becomes sure of the teacher's class."""
        require_same_outputs(student, target, self)
        return F.cross_entropy(upcast_half(student), target.argmax(1))  # eq. 3, its second term


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelHardTargets:
    """Binary cross-entropy with the labels that the teacher predicts, the multi-label form of HardTargets.

    In nats, mean over batch and classes. threshold: the probability above which the teacher predicts a label.

    Formula: -1/(N C) · Σ (y log q + (1 - y) log(1 - q)), with q = sigmoid(s) and y = 1 if sigmoid(t) > threshold, else
        0
    Shapes: logits (N, C)
    Source: ours, after Touvron et al. 2021, arXiv:2012.12877
    """

    threshold: float = 0.5

    per_position = True

    def __post_init__(self) -> None:
        validate_share("threshold", self.threshold)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, which approaches 0 as the student becomes sure of the predicted labels."""
        require_same_outputs(student, target, self)
        student, decisions = upcast_half(student), upcast_half(target).sigmoid() > self.threshold
        return F.binary_cross_entropy_with_logits(student, decisions.to(student.dtype))


class SecondHead(nn.Module):
    """Apply a loss on outputs through an additional linear head, for a student without a distillation head.

    The unit and the reduction are those of `loss`, by default HardTargets(). The head is trained with the student and
    discarded after training. DeiT, whose distillation token and head are built in, averages both heads for prediction.

    Formula: loss(W a + b, t), with a the mean of s over positions
    Shapes: features (N, C); the student's may have positions, the target is outputs
    Source: ours, after Touvron et al. 2021, arXiv:2012.12877, sec. 4
    """

    def __init__(self, loss: Loss | None = None) -> None:
        super().__init__()
        self.loss = HardTargets() if loss is None else loss
        takes_outputs_only = callable(self.loss) and not isinstance(self.loss, type | BuildableLoss)
        if not takes_outputs_only or extra_kwargs_of(self.loss):
            raise RecipeError(
                f"SecondHead takes a loss on outputs without weights or extra keyword arguments; got {self.loss!r}"
            )
        self.head: nn.Module = nn.Identity()

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        context: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Create the head. Raises RecipeError for several taps, or if the target is not outputs."""
        if len(student) != 1 or len(target) != 1 or len(target[0]) != 2:
            raise RecipeError(
                "SecondHead takes one tap of the student and the teacher's outputs (batch, classes); got "
                f"{[tuple(shape) for shape in student]} and {[tuple(shape) for shape in target]}; for features use "
                "Hint()"
            )
        self.head = nn.Linear(student[0][1], target[0][1])

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss between the head's outputs and the target."""
        # (batch, channels, *positions) -> (batch, channels)
        pooled = student.flatten(2).mean(2) if student.ndim > 2 else student
        return self.loss(self.head(pooled), target)
