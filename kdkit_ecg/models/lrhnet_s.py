"""LRH-Net-S, a student for small devices: a strided stem, and convolutions that are separable by channel."""

from torch import Tensor, nn

from kdkit_ecg.models.blocks import PERSON, PERSON_FEATURES, MeanOverTime, SqueezeExcite, ThreeBlocks, check_sizes

STEM_KERNEL, STEM_STRIDE = 15, 4
KERNEL = 9  # odd kernels have equal padding on both sides, so int8 runtimes need no extra layer


class LRHNetS(ThreeBlocks):
    """A variant of LRH-Net with less than a quarter of its multiply-adds, for signals of any length.

    For 12 leads and 4,096 samples it has 22 M multiply-adds instead of 102 M, and 80,116 parameters instead of 84,516.
    The stem has a stride of 4, and each convolution of a block is one by channel and one by time step (depthwise and
    pointwise), which saves enough for twice as many channels. Norms directly follow convolutions, so an export folds
    them into the weights; those of LRH-Net follow ReLUs.

    width: channels of the stem and of the first block; the others have twice and four times as many.

    To tap: `stem` and `block1` (N, width, T/4), `block2` (N, 2 width, T/8) and `block3` (N, 4 width, T/16), lengths
    rounded up; `pool` (N, 4 width). A block's pre-activation is the input of its `activation`.

    Raises RecipeError for a size below 1.
    Source: ours; the convolutions are those of MobileNet, Howard et al. 2017, arXiv:1704.04861.
    """

    block1: "SeparableBlock"
    block2: "SeparableBlock"
    block3: "SeparableBlock"

    def __init__(self, leads: int = 12, classes: int = 24, *, width: int = 32) -> None:
        super().__init__()
        check_sizes(leads=leads, classes=classes, width=width)
        self.stem = nn.Sequential(
            nn.Conv1d(leads, width, STEM_KERNEL, STEM_STRIDE, padding=STEM_KERNEL // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.block1 = SeparableBlock(width, width)
        self.block2 = SeparableBlock(width, 2 * width, stride=2)
        self.block3 = SeparableBlock(2 * width, 4 * width, stride=2)
        self.pool = MeanOverTime()
        self.person = nn.Linear(PERSON, PERSON_FEATURES)
        self.hidden = nn.Linear(PERSON_FEATURES + 4 * width, 4 * width)
        self.hidden_activation = nn.ReLU()
        self.classifier = nn.Linear(4 * width, classes)


class SeparableBlock(nn.Module):
    """Residual block of two separable convolutions with squeeze-excite, in the order of ResNet: norms before ReLUs."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = separable(inputs, outputs, stride)
        self.inner_activation = nn.ReLU()
        self.conv2 = separable(outputs, outputs)
        self.squeeze_excite = SqueezeExcite(outputs, reduction=8)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Conv1d(inputs, outputs, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
        main = self.squeeze_excite(self.conv2(self.inner_activation(self.conv1(features))))
        out: Tensor = self.activation(main + self.shortcut(features))
        return out


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution by channel and one by time step: (N, inputs, T) -> (N, outputs, ceil(T / stride))."""
    return nn.Sequential(
        nn.Conv1d(inputs, inputs, KERNEL, stride, padding=KERNEL // 2, groups=inputs, bias=False),
        nn.BatchNorm1d(inputs),
        nn.Conv1d(inputs, outputs, 1, bias=False),
        nn.BatchNorm1d(outputs),
    )
