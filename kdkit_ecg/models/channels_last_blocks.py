"""A 1-D convolution of few channels on a GPU, as one of more channels over blocks of time steps.

The tensor cores of a GPU multiply tiles of at least 64 channels, which a convolution to 16 channels leaves empty. With
channels last in memory, four successive steps of 16 channels are one step of 64 channels, without a copy. A convolution
over such blocks has the kernel of each of the four outputs in its weight, shifted by its position in the block, and
zeros elsewhere. It computes a few more products, with zeros, and is faster. A stride becomes a larger block of inputs,
and an uneven padding becomes an even one, so that cuDNN has fast kernels for the gradients. Results differ only by
rounding.
"""

from torch import Tensor
from torch.nn import functional

_CHANNELS = 64  # of a block of outputs, if a convolution has fewer outputs


def convolve_blocks(signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int, left: int) -> Tensor:
    """Convolve (N, inputs, T) by (outputs, inputs, kernel) -> (N, outputs, T / stride), which has channels last.

    left: zeros before the signal. There are as many after it as the output's length needs. See `fits_blocks`.
    """
    samples, inputs, length = signal.shape
    outputs = len(weight)
    steps, size = _block_sizes(weight, stride)
    merged, reach = _merged_weight(weight, stride, left)
    blocks = signal.transpose(1, 2).reshape(samples, length // size, size * inputs)  # a view if channels are last
    image = blocks.transpose(1, 2).unsqueeze(2)  # (N, size * inputs, 1, T / size)
    result = functional.conv2d(image, merged, None if bias is None else bias.repeat(steps), padding=(0, reach))
    return result.permute(0, 2, 3, 1).reshape(samples, length // stride, outputs).transpose(1, 2)


def blocks_are_faster(signal: Tensor, weight: Tensor, stride: int, pads: tuple[int, int]) -> bool:
    """Return whether to use `convolve_blocks`, if it can compute this convolution. pads: zeros on the left and right.

    cuDNN is slow for uneven padding, and for the gradient of a stride that skips inputs. Otherwise, blocks gained
    nothing for SE-ResNet of width 16 and 64.
    """
    uneven, skips = pads[0] != pads[1], weight.shape[2] < stride and len(weight) <= _CHANNELS
    return (uneven or skips) and fits_blocks(signal, weight, stride, pads)


def fits_blocks(signal: Tensor, weight: Tensor, stride: int, pads: tuple[int, int]) -> bool:
    """Return whether the signal can be divided into blocks, and the output has a step for each `stride` of its steps.

    pads: zeros on the left and on the right. False for other channels than those of the weight, so that torch raises
    its own error.
    """
    length, kernel = signal.shape[-1], weight.shape[2]
    _, size = _block_sizes(weight, stride)
    keeps_rate = (length + sum(pads) - kernel) // stride + 1 == length // stride
    return length % size == 0 and keeps_rate and signal.shape[1] == weight.shape[1]


def _block_sizes(weight: Tensor, stride: int) -> tuple[int, int]:
    """Return the steps of a block of outputs, and of the block of inputs with the same duration."""
    steps = 2 ** max(0, (_CHANNELS // len(weight)).bit_length() - 1)  # a power of two, as most lengths are multiples of
    return steps, steps * stride


def _merged_weight(weight: Tensor, stride: int, left: int) -> tuple[Tensor, int]:
    """Return the weight over blocks, (steps * outputs, size * inputs, 1, taps), and how many blocks it reaches ahead.

    It reaches as many blocks back, so taps = 2 reach + 1.
    """
    outputs, inputs, kernel = weight.shape
    steps, size = _block_sizes(weight, stride)
    last = stride * (steps - 1) - left + kernel - 1  # input of the block's outputs, relative to the start of the block
    reach = max(-(-left // size), last // size)
    taps = 2 * reach + 1
    # The outputs of a block depend on a window of taps * size inputs, in which the kernel of output i starts at reach *
    # size - left + stride * i. Such windows are slices of one kernel with zeros around it, from the last output on.
    before = reach * size - left + stride * (steps - 1)
    after = (reach + 1) * size + left - kernel
    windows = functional.pad(weight, (before, after)).unfold(2, taps * size, stride)
    windows = windows.reshape(outputs, inputs, steps, taps, size)  # a view
    parts = windows.permute(2, 0, 3, 4, 1).flip(0)  # (steps, outputs, taps, size, inputs)
    merged = parts.reshape(steps * outputs, taps, size * inputs)
    return merged.transpose(1, 2).unsqueeze(2), reach
