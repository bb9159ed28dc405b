"""Convolve signals with the channels last in memory where that is faster, which is in float32 on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdkit_ecg.models.channels_last_kernel import ChannelsLast

WORTH = 2**15  # numbers in a signal: one short record is convolved the faster as it lies


class Conv1d(nn.Conv1d):
    """nn.Conv1d of one group, without dilation; torch.jit.trace takes it, torch.jit.script and fx do not."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.sides = (padding, padding)

    def forward(self, signal: Tensor) -> Tensor:
        """Convolve (N, inputs, T) -> (N, outputs, floor((T + 2 padding - kernel) / stride) + 1)."""
        return convolve(signal, self.weight, self.bias, self.stride[0], self.sides)


class SameConv1d(Conv1d):
    """Convolution that keeps the length, or divides it by the stride and rounds up, whatever its kernel.

    (N, inputs, T) -> (N, outputs, ceil(T / stride)), for any T >= 1. Zeros are added on both sides, one more on the
    right where the kernel is even.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        self.sides = ((kernel - 1) // 2, kernel // 2)


def convolve(signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: tuple[int, int]) -> Tensor:
    """Convolve (N, inputs, T) by (outputs, inputs, kernel) -> (N, outputs, T'), with so many zeros left and right."""
    if _gains(signal, weight, sides):
        answer: Tensor = ChannelsLast.apply(signal, weight, bias, stride, sides).squeeze(2)
        return answer
    if sides[0] == sides[1]:
        return functional.conv1d(signal, weight, bias, stride, sides[0])
    # padding="same" would warn on even kernels, and torch refuses it with a stride.
    return functional.conv1d(functional.pad(signal, sides), weight, bias, stride)


def _gains(signal: Tensor, weight: Tensor, sides: tuple[int, int]) -> bool:
    """Return whether channels last are the faster way. What torch would refuse is left to it."""
    return bool(
        signal.device.type == weight.device.type == "cpu"
        and signal.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        # What is exported runs elsewhere, and is the layer that everyone knows.
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # left out of the stubs
        # vmap takes no tensor that is written part by part; torch's Function asks for it by the same private name.
        and not torch._C._are_functorch_transforms_active()
        # A Function knows gradients backwards only.
        and torch.autograd.forward_ad._current_level < 0
        and signal.ndim == 3
        and signal.numel() >= WORTH
        and signal.shape[1] == weight.shape[1]
        and signal.shape[2] + sum(sides) >= weight.shape[2]
    )


class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d."""

    def forward(self, features: Tensor) -> Tensor:
        """Norm (N, channels, T) -> (N, channels, T)."""
        if not channels_lie_last(features):
            return super().forward(features)
        # torch would turn three dimensions. A sample for each step of time has the same norm, and lies there already.
        steps = features.transpose(1, 2)
        return super().forward(steps.flatten(0, 1)).view(steps.shape).transpose(1, 2)


def mean_over_time(features: Tensor) -> Tensor:
    """Average (N, channels, T) -> (N, channels), so that the gradient lies in memory as the features do."""
    return features.transpose(1, 2).mean(1) if channels_lie_last(features) else features.mean(-1)


def channels_lie_last(features: Tensor) -> bool:
    """Return whether (N, channels, T) lies in memory as (N, T, channels)."""
    return features.ndim == 3 and not features.is_contiguous() and features.transpose(1, 2).is_contiguous()
