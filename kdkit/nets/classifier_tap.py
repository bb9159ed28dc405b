"""Take the outputs of a classifier at every position of a map, from a network that pools before it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.nets.taps import Tap


@dataclass(frozen=True, slots=True)
class ClassifierTap(Tap):
    """The outputs of `classifier` at every position of a tapped map, as (batch, classes, *positions).

    classifier: the layer from the map's channels to the classes, a Linear layer or a convolution with a kernel of 1,
    such as net.module.fc. The other arguments are those of `Tap`; the module is usually the last one before pooling, or
    the pooling layer with at="input". The mean over positions is the network's output if it pools by averaging. The
    classifier is trained through the tap as well. Raises RecipeError for another layer, or in the first forward pass if
    it does not fit the map.

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
                "a ClassifierTap takes the classifier behind the tapped map, a Linear layer or a convolution with a "
                f"kernel of 1, as in ClassifierTap(net.module.layer4, classifier=net.module.fc); got {layer!r}"
            )

    @property
    def outputs(self) -> int:
        """The number of outputs of the classifier."""
        layer: Any = self.classifier
        return len(layer.weight)

    def classify(self, features: Tensor) -> Tensor:
        """Return the outputs at every position: (batch, channels, *positions) -> (batch, classes, *positions)."""
        layer: Any = self.classifier
        weight = layer.weight.flatten(1)  # a convolution's weight is (classes, channels, 1, ...)
        if features.shape[1] != weight.shape[1]:
            raise RecipeError(
                f"the classifier of a ClassifierTap takes {weight.shape[1]} channels; the map of {self.form.layer} is "
                f"{tuple(features.shape)}: tap the layer before the pooling"
            )
        # by its weights, so that the call does not fire taps on the classifier
        return F.linear(features.movedim(1, -1), weight, layer.bias).movedim(-1, 1)

    def _feature(self, value: Any) -> Tensor:
        return self.classify(Tap._feature(self, value))
