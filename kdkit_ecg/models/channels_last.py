"""Convolution, batch norm and mean over time that keep channels last in memory if that is faster.

It is faster in float32 on a CPU, and on CUDA for steps captured as CUDA graphs. The layers are drop-in replacements for
torch's own, with the same parameters. `channels_last_kernel` has the convolution on a CPU, and `channels_last_blocks`
one on a GPU; both explain the gain.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdkit.utils.captured import in_captured_step
from kdkit_ecg.models.channels_last_blocks import blocks_are_faster, convolve_blocks
from kdkit_ecg.models.channels_last_kernel import ChannelsLastConvolution

# On CUDA, channels last make captured passes of LRH-Net and SE-ResNet faster, and eager ones slower unless the batch is
# so large that its kernels take longer than launching them.
CUDA_LARGE = 2**20  # records times steps of a large batch
SMALLEST_SIGNAL = 2**15  # numbers in a batch; below it, the time-last layout is as fast (measured: conv_kernels.py)


class Conv1d(nn.Conv1d):
    """nn.Conv1d with one group, without dilation. Supports torch.jit.trace, but not torch.jit.script or torch.fx.

    on_cpu: whether to keep channels last on a CPU too; for many channels, time last is faster there.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int = 0,
        bias: bool = True,
        on_cpu: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.pads = (padding, padding)  # added on the left and on the right
        self.on_cpu = on_cpu

    def forward(self, signal: Tensor) -> Tensor:
        """Convolve (N, inputs, T) -> (N, outputs, floor((T + 2 padding - kernel) / stride) + 1)."""
        if not self.on_cpu and signal.device.type == "cpu":
            return super().forward(signal)
        return convolve(signal, self.weight, self.bias, self.stride[0], self.pads)


class SameConv1d(Conv1d):
    """Convolution with zeros on both sides, so that the output length is ceil(T / stride), for any kernel and T >= 1.

    (N, inputs, T) -> (N, outputs, ceil(T / stride)). For an even kernel, one more zero is added on the right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        self.pads = ((kernel - 1) // 2, kernel // 2)


class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d for features (N, channels, T) that keeps their layout in memory."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, channels, T) -> (N, channels, T)."""
        if not is_channels_last(features):
            return super().forward(features)
        # torch would copy three dimensions to time-last. As (N * T, channels), the norm is the same and needs no copy.
        steps = features.transpose(1, 2)  # (N, T, channels), contiguous
        return super().forward(steps.flatten(0, 1)).view(steps.shape).transpose(1, 2)


def mean_over_time(features: Tensor) -> Tensor:
    """Average (N, channels, T) -> (N, channels); the gradient has the layout of the features."""
    return features.transpose(1, 2).mean(1) if is_channels_last(features) else features.mean(-1)


def is_channels_last(features: Tensor) -> bool:
    """Return whether (N, channels, T) is stored as (N, T, channels)."""
    return features.ndim == 3 and not features.is_contiguous() and features.transpose(1, 2).is_contiguous()


def convolve(signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: tuple[int, int]) -> Tensor:
    """Convolve (N, inputs, T) by (outputs, inputs, kernel) -> (N, outputs, T'); pads: zeros left and right."""
    if channels_last_is_faster(signal, weight, pads):
        output: Tensor = ChannelsLastConvolution.apply(signal, weight, bias, stride, pads).squeeze(2)
        return output
    if channels_last_on_cuda(signal):
        if blocks_are_faster(signal, weight, stride, pads):
            return convolve_blocks(signal, weight, bias, stride, pads[0])
        # cuDNN computes with channels last, and converts any other layout before and after each convolution.
        image = signal.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        kernel = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        if pads[0] == pads[1]:
            return functional.conv2d(image, kernel, bias, (1, stride), (0, pads[0])).squeeze(2)
        return functional.conv2d(functional.pad(image, pads), kernel, bias, (1, stride)).squeeze(2)
    if pads[0] == pads[1]:
        return functional.conv1d(signal, weight, bias, stride, pads[0])
    # Padded by hand: padding="same" warns for even kernels, and is refused with a stride.
    return functional.conv1d(functional.pad(signal, pads), weight, bias, stride)


def channels_last_on_cuda(signal: Tensor) -> bool:
    """Return whether to convolve on CUDA with channels last; compilers and exported graphs choose themselves."""
    return bool(
        signal.is_cuda
        and signal.ndim == 3
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # left out of the stubs
        and not torch._C._are_functorch_transforms_active()
        and (in_captured_step() or is_channels_last(signal) or signal.shape[0] * signal.shape[2] >= CUDA_LARGE)
    )


def channels_last_is_faster(signal: Tensor, weight: Tensor, pads: tuple[int, int]) -> bool:
    """Return whether to convolve with channels last; False for invalid shapes, so that torch raises its own error."""
    return bool(
        signal.device.type == weight.device.type == "cpu"
        and signal.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        # An exported graph runs on other machines, and should contain the standard layer.
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # left out of the stubs
        # vmap does not support tensors written in parts. torch.autograd.Function detects it by the same private name.
        and not torch._C._are_functorch_transforms_active()
        # The Function has no forward-mode gradient.
        and torch.autograd.forward_ad._current_level < 0
        and signal.ndim == 3
        and signal.numel() >= SMALLEST_SIGNAL
        and signal.shape[1] == weight.shape[1]
        and signal.shape[2] + sum(pads) >= weight.shape[2]
    )
