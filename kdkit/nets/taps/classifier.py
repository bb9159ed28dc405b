"""Compute the outputs of a classifier at every position of a map, for a network that pools before the classifier."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.nets.taps.base import Tap
from kdkit.utils.modules import recompute_weights


@dataclass(frozen=True, slots=True)
class ClassifierTap(Tap):
    """The outputs of `classifier` at every position of a tapped map, as (batch, classes, *positions).

    classifier: the layer that maps channels to classes, a Linear layer or a convolution with kernel size 1, such as
    net.module.fc. The other arguments are those of `Tap`. The module is usually the last one before pooling, or the
    pooling layer with at="input". If the network pools by averaging, its output is the mean over the positions. The
    classifier is also trained through the tap. Raises RecipeError for another kind of layer, or in the first forward
    pass if it does not fit the map.

    Class activation maps of Zhou et al. 2016, "Learning Deep Features for Discriminative Localization",
    arXiv:1512.04150, sec. 2.
    """

    classifier: nn.Module = field(kw_only=True)

    def __post_init__(self) -> None:
        Tap.__post_init__(self)
        layer: Any = self.classifier
        is_map = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if not is_map or layer.weight.numel() != layer.weight.shape[0] * layer.weight.shape[1]:
            raise RecipeError(
                "a ClassifierTap takes the classifier behind the tapped map, a Linear layer or a convolution with "
                f"kernel size 1, as in ClassifierTap(net.module.layer4, classifier=net.module.fc); got {layer!r}"
            )

    @property
    def outputs(self) -> int:
        """The number of outputs of the classifier."""
        layer: Any = self.classifier
        return len(layer.weight)

    def classify(self, features: Tensor) -> Tensor:
        """Return the outputs at every position: (batch, channels, *positions) -> (batch, classes, *positions)."""
        layer: Any = self.classifier
        recompute_weights(layer)  # it runs later in this forward pass
        weight = layer.weight.flatten(1)  # a convolution's weight is (classes, channels, 1, ...)
        if features.shape[1] != weight.shape[1]:
            raise RecipeError(
                f"the classifier of a ClassifierTap takes {weight.shape[1]} channels, but the map of {self.form.layer} "
                f"is {tuple(features.shape)}; tap the layer before the pooling"
            )
        # Not by a call of the classifier, which would fire taps on it.
        return F.linear(features.movedim(1, -1), weight, layer.bias).movedim(-1, 1)

    def _feature(self, value: Any) -> Tensor:
        return self.classify(Tap._feature(self, value))
