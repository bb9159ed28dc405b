"""A loss through the teacher's classifier, applied to the student's features (SRRL)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.classifiers import find_classifier, require_classifier
from kdkit.losses.features import require_same_channels, single_tap_shape
from kdkit.losses.numerics import cast_for, upcast_half
from kdkit.losses.projectors.layers import BatchNorm, Pointwise
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.sides import Shapes, TensorOrTuple, as_tuple
from kdkit.losses.validation import require_built, require_sides, validate_weights


class SRRL(nn.Module):
    """Squared error between features, and between the teacher classifier's outputs for the features of both nets.

    `feature` times the mean over batch and channels plus `regression` times the mean over batch and classes. Both sides
    are the last features before the classifier, pooled or not. A map over channels with batch norm and ReLU projects
    the student to the teacher's channels, at each of its own positions; both sides are then averaged over positions, as
    in the authors' code. The target is the teacher's features, or a tuple of two taps with its features and its logits.
    classifier: a Linear layer (or a convolution with a kernel of 1), by default the teacher's last one that fits. It is
    not trained.

    Formula: feature · mean (f - t)² + regression · mean (W f + b - z)², with f the mapped student and t the target,
        both averaged over positions, W and b the classifier and z the teacher's logits
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning", ICLR,
        OpenReview:ZzwDy_wiWv
    """

    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, classifier: nn.Module | None = None, *, feature: float = 1.0, regression: float = 1.0) -> None:
        super().__init__()
        validate_weights(feature=feature, regression=regression)
        require_classifier(classifier)
        self._classifier = (classifier,)  # a tuple hides the teacher's weights from self.parameters()
        self.feature, self.regression = feature, regression
        self.connector: nn.Module = nn.Identity()
        # copies of the teacher's weights, which are not saved with the loss
        self.register_buffer("classifier_weight", torch.zeros(0, 0), persistent=False)
        self.register_buffer("classifier_bias", torch.zeros(0), persistent=False)

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the connector and copy the classifier. Raises RecipeError if there is none, or shapes do not fit."""
        if len(target) > 2:
            raise RecipeError(f"SRRL takes the teacher's features and optionally its logits; got {len(target)} taps")
        student_shape, channels = single_tap_shape(student, self), single_tap_shape(target[:1], self)[1]
        self.connector = nn.Sequential(
            Pointwise(student_shape[1], channels, bias=False), BatchNorm(channels), nn.ReLU()
        )
        classifier = find_classifier(self._classifier[0], teacher, channels, self)
        # a convolution's weight is (classes, channels, 1, ...)
        self.classifier_weight = classifier.weight.detach().flatten(1).clone()
        bias = classifier.bias
        self.classifier_bias = torch.zeros(len(classifier.weight)) if bias is None else bias.detach().clone()

    def forward(self, student: Tensor, target: TensorOrTuple) -> Tensor:
        """Return the error, minimal (0) if the projected features are the teacher's."""
        for side in target if isinstance(target, tuple) and target else (target,):
            require_sides(student, side, self)
        require_built(self.classifier_weight.numel(), self)
        target_features, *target_logits = as_tuple(target)
        projected = _pool(self.connector(cast_for(self.connector, student)))
        require_same_channels(projected, _pool(target_features), self)
        logits = target_logits[0] if target_logits else self.classify(target_features)
        # the paper's feature matching term, then its softmax regression term with a squared error between logits
        loss = self.feature * F.mse_loss(projected, _pool(target_features))
        return loss + self.regression * F.mse_loss(upcast_half(self.classify(projected)), upcast_half(logits))

    def classify(self, features: Tensor) -> Tensor:
        """Return the outputs of the teacher's classifier, (batch, classes), for features with or without positions."""
        pooled = _pool(features)
        # the classifier has the precision of the teacher, such as bf16
        return F.linear(pooled, self.classifier_weight.to(pooled.dtype), self.classifier_bias.to(pooled.dtype))


def _pool(features: Tensor) -> Tensor:
    """Return the mean over positions, (batch, channels), in float32 or better."""
    return upcast_half(resize(features, ()))
