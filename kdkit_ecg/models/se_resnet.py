"""SE-ResNet, the large teacher: residual blocks with squeeze-excite, 18 layers in all."""

from collections import OrderedDict

from torch import Tensor, nn

from kdkit.utils.validation import validate_share
from kdkit_ecg.models.blocks import (
    PERSON,
    PERSON_FEATURES,
    EcgNet,
    Head,
    MeanOverTime,
    SqueezeExcite,
    check_sizes,
    join_person,
)
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d

KERNEL = 7


class SEResNet(EcgNet):
    """SE-ResNet of 18 layers, for signals of any length.

    width: channels of the stem and of the first group; each further group has twice as many.
    dropout: the probability, between the two convolutions of each block.

    To tap: `stem` (N, width, T/2); `max_pool` and `group1` (N, width, T/4); `group2` (N, 2 width, T/8); `group3`
    (N, 4 width, T/16); `group4` (N, 8 width, T/32), lengths rounded up; `pool` (N, 8 width). A group's pre-activation
    is the input of its `block2.activation`.

    Raises RecipeError for a size below 1 or a dropout outside [0, 1).
    Source: Chauhan et al., 2022, arXiv:2204.08000, after Zhao et al., Computing in Cardiology 2020.
    """

    def __init__(self, leads: int = 12, classes: int = 24, *, width: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        check_sizes(leads=leads, classes=classes, width=width)
        validate_share("dropout", dropout, below_one=True)
        # Eighteen layers: the stem, eight blocks of two convolutions, and the classifier.
        self.stem = Stem(leads, width)
        self.max_pool = nn.MaxPool1d(3, stride=2, padding=1)
        self.group1 = Group(width, width, stride=1, dropout=dropout)
        self.group2 = Group(width, 2 * width, stride=2, dropout=dropout)
        self.group3 = Group(2 * width, 4 * width, stride=2, dropout=dropout)
        self.group4 = Group(4 * width, 8 * width, stride=2, dropout=dropout)
        self.pool = MeanOverTime()
        self.person = nn.Linear(PERSON, PERSON_FEATURES)
        self.classifier = nn.Linear(PERSON_FEATURES + 8 * width, classes)
        # He initialisation (He et al., 2015, section 2.2) by fan-out, as in torchvision's ResNet.
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, signal: Tensor, person: Tensor) -> Tensor:
        """Map signal (N, leads, T), person (N, 5) -> logits (N, classes), for any T >= 1."""
        # The time axis: T/2 after the stem, T/4 after the pool and group 1, then halved by each group.
        features = self.group1(self.max_pool(self.stem(signal)))
        features = self.group4(self.group3(self.group2(features)))
        logits: Tensor = self.classifier(join_person(self.person(person), self.pool(features)))
        return logits

    def body(self) -> nn.Sequential:
        """Return the layers before the pool: signal (N, leads, T) -> (N, 8 width, T/32), rounded up."""
        groups = [(f"group{number}", getattr(self, f"group{number}")) for number in (1, 2, 3, 4)]
        return nn.Sequential(OrderedDict([("stem", self.stem), ("max_pool", self.max_pool), *groups]))

    def head(self) -> Head:
        """Return the layers from the pool on: features (N, 8 width, T), person (N, 5) -> logits (N, classes)."""
        return Head(self.pool, self.person, self.classifier)


class Stem(nn.Module):
    """Strided convolution, norm and ReLU."""

    def __init__(self, leads: int, channels: int) -> None:
        super().__init__()
        self.conv = Conv1d(leads, channels, 15, stride=2, padding=7, bias=False, on_cpu=False)
        self.norm = BatchNorm1d(channels)
        self.activation = nn.ReLU()

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, leads, T) -> (N, channels, ceil(T / 2))."""
        features: Tensor = self.activation(self.norm(self.conv(signal)))
        return features


class Group(nn.Module):
    """Two blocks; the first one changes the shape."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.block1 = Block(inputs, outputs, stride=stride, dropout=dropout)
        self.block2 = Block(outputs, outputs, stride=1, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        out: Tensor = self.block2(self.block1(features))
        return out


class Block(nn.Module):
    """Basic residual block with squeeze-excite."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        # No biases: the norms that follow would subtract them.
        self.conv1 = Conv1d(inputs, outputs, KERNEL, stride, padding=KERNEL // 2, bias=False, on_cpu=False)
        self.norm1 = BatchNorm1d(outputs)
        self.inner_activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv1d(outputs, outputs, KERNEL, padding=KERNEL // 2, bias=False, on_cpu=False)
        self.norm2 = BatchNorm1d(outputs)
        self.squeeze_excite = SqueezeExcite(outputs, reduction=16)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else Shortcut(inputs, outputs, stride)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        # ReLUs are not in place: a tap on the input of `activation` must see the pre-activation.
        main = self.inner_activation(self.norm1(self.conv1(features)))
        main = self.norm2(self.conv2(self.dropout(main)))
        out: Tensor = self.activation(self.squeeze_excite(main) + self.shortcut(features))
        return out


class Shortcut(nn.Module):
    """Strided 1 x 1 convolution and norm, for blocks that change the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs, 1, stride, bias=False, on_cpu=False)
        self.norm = BatchNorm1d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        out: Tensor = self.norm(self.conv(features))
        return out
