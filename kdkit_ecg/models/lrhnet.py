"""LRH-Net, the small student: three residual blocks that detect heart conditions in an ECG."""

from torch import Tensor, nn

from kdkit.utils.validation import validate_choice
from kdkit_ecg.models.blocks import (
    PERSON,
    PERSON_FEATURES,
    MeanOverTime,
    Preset,
    SqueezeExcite,
    ThreeBlocks,
    check_sizes,
)
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d, SameConv1d

KERNEL = 8


class LRHNet(ThreeBlocks):
    """LRH-Net, for signals of any length.

    width: channels of the stem and of the first block; the others have twice and four times as many.
    preset: "paper" leaves out the ReLU between the last two linear layers, as in the authors' code; "corrected" has it,
    as in their figure.

    To tap: `stem` (N, width, T); `block1` (N, width, T), `block2` (N, 2 width, T/2) and `block3` (N, 4 width, T/4),
    lengths rounded up; `pool` (N, 4 width). A block's pre-activation is the input of its `activation`.

    Raises RecipeError for a size below 1 or an unknown preset.
    Source: Chauhan et al., 2022, arXiv:2204.08000.
    """

    block1: "Block"
    block2: "Block"
    block3: "Block"

    def __init__(self, leads: int = 12, classes: int = 24, *, width: int = 16, preset: Preset = "corrected") -> None:
        super().__init__()
        check_sizes(leads=leads, classes=classes, width=width)
        validate_choice("preset", preset, Preset)
        self.stem = Stem(leads, width)
        self.block1 = Block(width, width)
        self.block2 = Block(width, 2 * width, stride=2)
        self.block3 = Block(2 * width, 4 * width, stride=2)
        self.pool = MeanOverTime()
        self.person = nn.Linear(PERSON, PERSON_FEATURES)
        self.hidden = nn.Linear(PERSON_FEATURES + 4 * width, 8 * width)
        self.hidden_activation = nn.ReLU() if preset == "corrected" else nn.Identity()
        self.classifier = nn.Linear(8 * width, classes)


class Stem(nn.Module):
    """Convolution and ReLU at the full rate."""

    def __init__(self, leads: int, channels: int) -> None:
        super().__init__()
        self.conv = SameConv1d(leads, channels, KERNEL)
        self.activation = nn.ReLU()

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, leads, T) -> (N, channels, T)."""
        features: Tensor = self.activation(self.conv(signal))
        return features


class Block(nn.Module):
    """Residual block with the norms after the ReLUs, unlike ResNet's."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        # The authors pad a strided convolution with 3 and 3 zeros. The fourth zero on the right has an effect only if T
        # is odd: it adds one output, so that the length is that of the shortcut.
        self.conv1 = SameConv1d(inputs, outputs, KERNEL, stride)
        self.inner_activation = nn.ReLU()
        self.norm1 = BatchNorm1d(outputs)
        self.conv2 = SameConv1d(outputs, outputs, KERNEL)
        self.squeeze_excite = SqueezeExcite(outputs, reduction=8)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else Conv1d(inputs, outputs, 1, stride)
        self.activation = nn.ReLU()
        self.norm2 = BatchNorm1d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        # ReLUs are not in place: a tap on the input of `activation` must see the pre-activation.
        main = self.norm1(self.inner_activation(self.conv1(features)))
        main = self.squeeze_excite(self.conv2(main))
        out: Tensor = self.norm2(self.activation(main + self.shortcut(features)))
        return out
