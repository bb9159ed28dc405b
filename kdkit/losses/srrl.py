"""Losses through the teacher's own classifier: what it makes of the student's features (SRRL)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import Shapes, Sided, full, one, several
from kdkit.losses.projectors.layers import BatchNorm, Pointwise
from kdkit.losses.projectors.linear import fitted, positions_of
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.validation import validate_weights


class SRRL(nn.Module):
    """Squared error between features, and between what the teacher's classifier makes of the student's and its own.

    `feature` times the mean over all entries of the features plus `regression` times the mean over batch and classes.
    Both sides are the last features before the classifier, pooled or not. A map over channels with batch norm and ReLU
    brings the student to the teacher. As targets, the teacher's features, or these and its logits as a tuple of two
    taps. classifier: a Linear layer (or a convolution with a kernel of 1); the teacher's last that fits where None. It
    is not trained.

    Formula: feature · mean (f - t)² + regression · mean (W f + b - z)², with f the mapped student, W and b the
        classifier and z the teacher's logits
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning", ICLR,
        OpenReview:ZzwDy_wiWv
    """

    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, classifier: nn.Module | None = None, *, feature: float = 1.0, regression: float = 1.0) -> None:
        super().__init__()
        validate_weights(feature=feature, regression=regression)
        if classifier is not None and not isinstance(classifier, nn.Module):
            raise RecipeError(f"classifier is a layer, such as teacher.module.fc; got a {type(classifier).__name__}")
        self._classifier = (classifier,)  # in a tuple, so that the teacher's weights are not taken for the loss's
        self.feature, self.regression = feature, regression
        self.connector: nn.Module = nn.Identity()
        self.positions: tuple[int, ...] = ()
        self.register_buffer("classifier_weight", torch.zeros(0, 0), persistent=False)  # both are the teacher's
        self.register_buffer("classifier_bias", torch.zeros(0), persistent=False)

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the connector and copy the classifier. Raises RecipeError where there is none, or shapes cannot meet."""
        if len(target) > 2:
            raise RecipeError(f"SRRL takes the teacher's features and perhaps its logits; got {len(target)} taps")
        given, wanted = one(student, self), target[0]
        self.positions = positions_of(given, wanted)
        self.connector = nn.Sequential(Pointwise(given[1], wanted[1], bias=False), BatchNorm(wanted[1]), nn.ReLU())
        classifier: Any = self._classifier[0] or _last_classifier(teacher, wanted[1])
        if not _fits(classifier, wanted[1]):
            raise RecipeError(
                f"SRRL's classifier is a Linear layer from the {wanted[1]} channels of the teacher's features; "
                f"got {classifier}"
            )
        self.classifier_weight = classifier.weight.detach().flatten(1).clone()
        bias = classifier.bias
        self.classifier_bias = torch.zeros(len(classifier.weight)) if bias is None else bias.detach().clone()

    def forward(self, student: Tensor, target: Sided) -> Tensor:
        """Return the error, least (0) where the connected features are the teacher's."""
        features, *logits = several(target)
        ours = self.connector(fitted(student, self.positions))
        wanted = logits[0] if logits else self.classify(features)
        loss = self.feature * F.mse_loss(full(ours), full(features))
        return loss + self.regression * F.mse_loss(full(self.classify(ours)), full(wanted))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits that the teacher's classifier gives, (batch, classes)."""
        return F.linear(resize(features, ()), self.classifier_weight, self.classifier_bias)


def _last_classifier(teacher: nn.Module | None, channels: int) -> nn.Module:
    fitting = [module for module in (teacher.modules() if teacher is not None else ()) if _fits(module, channels)]
    if not fitting:
        raise RecipeError(
            f"SRRL needs the teacher's classifier, but it has no Linear layer from {channels} channels; "
            "tap the features that its classifier is given, or say which with SRRL(teacher.module.fc)"
        )
    return fitting[-1]


def _fits(module: nn.Module, channels: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.in_features == channels
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return module.in_channels == channels and module.weight[0].numel() == channels
