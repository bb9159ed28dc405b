"""Losses on the teacher's decisions instead of its probabilities, and a second head to learn them with (DeiT)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import (
    BuildableLoss,
    BuildContext,
    Loss,
    accepts_unknown,
    extra_kwargs_of,
    option_of,
    requirements_of,
)
from kdkit.losses.numerics import cast_for, upcast_half
from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import require_built, require_same_outputs, require_sides, validate_count, validate_share


@dataclass(frozen=True, slots=True, kw_only=True)
class HardTargets:
    """Cross-entropy with the teacher's predicted class.

    In nats, mean over the batch. If the student has a separate head for it, as DeiT has for its distillation token, tap
    that head: Match(teacher, HardTargets(), student=Tap(net.module.head_dist)). The paper's term for the labels is
    separate: Truth(...).
    threshold: a sample counts as 0 if the teacher gives its class a lower probability, as in FixMatch (Sohn et al.
    2020, arXiv:2001.07685, eq. 4), with 0.95.

    Formula: -1/N · Σ log q[argmax t] over samples with max p ≥ threshold, with q = softmax(s) and p = softmax(t)
    Shapes: logits (N, C)
    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
        arXiv:2012.12877, eq. 3
    """

    threshold: float = 0.0

    per_position = True
    mean_over_rows = True

    def __post_init__(self) -> None:
        validate_share("threshold", self.threshold)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, which approaches 0 as the student becomes sure of the teacher's class."""
        require_same_outputs(student, target, self)
        if not self.threshold:
            return F.cross_entropy(upcast_half(student), target.argmax(1))  # eq. 3, its second term
        probability, classes = upcast_half(target).softmax(1).max(1)
        values = F.cross_entropy(upcast_half(student), classes, reduction="none")
        return values.masked_fill(probability < self.threshold, 0).mean()


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

    The unit and the reduction are those of `loss`, by default HardTargets(); it may take labels. The head is trained
    with the student and discarded after training. DeiT has a built-in distillation token and head, and averages both
    heads for prediction.

    blocks: the number of blocks before the head, for an exit from an early stage, as in OFA (Hao et al. 2023,
    arXiv:2310.19444). A block has two depthwise separable convolutions with batch norm and ReLU, which halve the
    positions and double the channels. OFA's exit from stage k of four has 4 - k blocks. Its last block has the channels
    of the wider network instead; the exit from stage 4 maps to them.

    Formula: loss(W a + b, t), with a the mean over positions of s, or of its blocks
    Shapes: features (N, C); the student's may have positions, the target is outputs
    Source: ours, after Touvron et al. 2021, arXiv:2012.12877, sec. 4
    """

    def __init__(self, loss: Loss | None = None, *, blocks: int = 0) -> None:
        super().__init__()
        self.loss = HardTargets() if loss is None else loss
        takes_outputs_only = callable(self.loss) and not isinstance(self.loss, type | BuildableLoss)
        if not takes_outputs_only or extra_kwargs_of(self.loss) - {"labels"}:
            raise RecipeError(
                "SecondHead takes a loss on outputs without weights, and without extra keyword arguments other than "
                f"labels; got {self.loss!r}"
            )
        validate_count("blocks, the number of blocks before the head,", blocks, least=0)
        self.blocks = blocks
        self.extra_kwargs, self.requires = extra_kwargs_of(self.loss), requirements_of(self.loss)
        self.accepts_unknown = accepts_unknown(self.loss)
        self.reduction = option_of(self.loss, "reduction")
        self.trunk: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the head. Raises RecipeError for several taps, or if the target is not outputs."""
        if len(student) != 1 or len(student[0]) < 2 or len(target) != 1 or len(target[0]) != 2:
            raise RecipeError(
                "SecondHead takes one tap of the student and the teacher's outputs (batch, classes); got "
                f"{[tuple(shape) for shape in student]} and {[tuple(shape) for shape in target]}; for features use "
                "Hint()"
            )
        _batch, channels, *positions = student[0]
        if self.blocks and not positions:
            raise RecipeError(
                f"SecondHead(blocks={self.blocks}) takes features with positions; got {tuple(student[0])}: tap a layer "
                "before it is pooled"
            )
        self.trunk = nn.Sequential(*(_exit_block(len(positions), channels << block) for block in range(self.blocks)))
        self.head = Pointwise(channels << self.blocks, target[0][1])

    def forward(self, student: Tensor, target: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the loss between the head's outputs and the target. kwargs: the labels, if the loss takes them."""
        require_sides(student, target, self)
        require_built(not isinstance(self.head, nn.Identity), self)
        # (batch, channels, *positions) -> (batch, channels)
        features = self.trunk(cast_for(self.head, student))
        pooled = features.flatten(2).mean(2) if features.ndim > 2 else features
        return self.loss(self.head(pooled), target, **kwargs)


def _exit_block(dimensions: int, channels: int) -> nn.Module:
    """Return a block from (batch, channels, *positions) to twice the channels at half the positions."""

    def separable(outputs: int, stride: int) -> list[nn.Module]:
        """Return a depthwise convolution, a map over channels, and their batch norm and ReLU."""
        depthwise = convolution(
            dimensions, (channels, channels), 3, stride=stride, padding=1, bias=False, groups=channels
        )
        return [depthwise, Pointwise(channels, outputs, bias=False), BatchNorm(outputs), nn.ReLU()]

    return nn.Sequential(*separable(channels, 2), *separable(2 * channels, 1))
