"""LRH-Net-S, a variant of LRH-Net for small devices: a quarter of its multiply-adds, and norms that fold away."""

from torch import Tensor, nn

from kdkit_ecg.models.blocks import SqueezeExcite
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d, SameConv1d
from kdkit_ecg.models.lrhnet import LRHNet

STEM_KERNEL, STEM_STRIDE = 15, 4
KERNEL = 7  # odd kernels are padded alike on both sides, which int8 runtimes compute without an extra layer


class LRHNetS(LRHNet):
    """LRH-Net with a strided stem and norms before the ReLUs, for signals of any length.

    For 12 leads and 4,096 samples it has 24 M multiply-adds instead of 102 M, and 77,892 parameters instead of 84,516.
    All layers after the stem compute a quarter as many steps. A norm that follows its convolution becomes part of the
    weights in an exported model; those of LRH-Net follow ReLUs, and cannot.

    width: channels of the stem and of the first block; the others have twice and four times as many.

    To tap: `stem` and `block1` (N, width, T/4), `block2` (N, 2 width, T/8) and `block3` (N, 4 width, T/16), lengths
    rounded up; `pool` (N, 4 width).

    Raises RecipeError for a size below 1.
    """

    def __init__(self, leads: int = 12, classes: int = 24, *, width: int = 16) -> None:
        super().__init__(leads, classes, width=width)
        self.stem = nn.Sequential(
            SameConv1d(leads, width, STEM_KERNEL, STEM_STRIDE),
            BatchNorm1d(width),
            nn.ReLU(),
        )
        self.block1 = SmallBlock(width, width)
        self.block2 = SmallBlock(width, 2 * width, stride=2)
        self.block3 = SmallBlock(2 * width, 4 * width, stride=2)


class SmallBlock(nn.Module):
    """Residual block with squeeze-excite and the order of ResNet: convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = SameConv1d(inputs, outputs, KERNEL, stride)
        self.norm1 = BatchNorm1d(outputs)
        self.inner_activation = nn.ReLU()
        self.conv2 = SameConv1d(outputs, outputs, KERNEL)
        self.norm2 = BatchNorm1d(outputs)
        self.squeeze_excite = SqueezeExcite(outputs, reduction=8)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same_shape else nn.Sequential(Conv1d(inputs, outputs, 1, stride), BatchNorm1d(outputs))
        )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        main = self.inner_activation(self.norm1(self.conv1(features)))
        main = self.squeeze_excite(self.norm2(self.conv2(main)))
        out: Tensor = self.activation(main + self.shortcut(features))
        return out
