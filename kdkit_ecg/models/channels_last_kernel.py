"""A 1-D convolution and its gradients with channels last in memory, faster than torch's own on a CPU.

torch stores (N, channels, T) with time last. On a CPU, oneDNN converts signals, weights and outputs to its own layouts
and back in every call, and few channels do not fill its kernels for these layouts. With channels last, strides (T *
channels, 1, channels), it convolves without conversion, at nine tenths of the peak of a core instead of half. It has no
such kernel for the gradient of the weights on AVX2: here, that is a product of matrices, which are views of the
features. Results differ from torch's only by rounding. `python benchmarks/conv_kernels.py` measures the gain.

Features are copied once to rows (N * length, channels), one row per time step, with the zero padding included. A
convolution is then over all rows of a batch at once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ChannelsLastConvolution(torch.autograd.Function):
    """Convolve (N, inputs, T) by (outputs, inputs, kernel) -> (N, outputs, 1, T'), with zeros added left and right.

    The output has four dimensions, because autograd does not allow in-place changes of a view that a Function returns.
    """

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: tuple[int, int]
    ) -> Tensor:
        """Convolve the padded signal."""
        rows = _padded_rows(signal, pads[0], _padded_length(signal, weight, stride, pads), spare=stride)
        ctx.save_for_backward(signal, weight, rows)
        ctx.stride, ctx.pads = stride, pads
        image = _as_image(rows[:-stride], len(signal))
        return functional.conv2d(image, weight.unsqueeze(2), bias, (1, stride))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of signal, weight and bias, by operations that can be differentiated again."""
        # torch's own convolution also ignores autocast in the backward pass.
        with torch.autocast("cpu", enabled=False):
            grad = grads[0].squeeze(2)
            (signal, weight, rows), stride, pads = ctx.saved_tensors, ctx.stride, ctx.pads
            signal_grad = weight_grad = bias_grad = None
            kernel, length = weight.shape[2], _padded_length(signal, weight, stride, pads)
            keeps_length = stride == 1 and sum(pads) == kernel - 1
            before = kernel - 1 - pads[0] if keeps_length else 0
            # One gradient row for each window that starts in the padded signal, so that both have the same strides.
            grad_rows = _padded_rows(grad, before, length // stride, spare=1)
            if ctx.needs_input_grad[0] and keeps_length:
                # The gradient of a "same" convolution is a "same" convolution with the kernel reversed.
                reversed_weight = weight.flip(2).transpose(0, 1).contiguous()
                image = _as_image(grad_rows[:-1], len(grad))
                signal_grad = functional.conv2d(image, reversed_weight.unsqueeze(2)).squeeze(2)
            elif ctx.needs_input_grad[0]:
                image = grad.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (N, outputs, 1, T')
                padded_grad = functional.conv_transpose2d(image, weight.unsqueeze(2), stride=(1, stride))
                # With a stride, the last samples may not be in any window: their gradient is 0.
                end = pads[0] + signal.shape[2]
                padded_grad = functional.pad(padded_grad, [0, max(0, end - padded_grad.shape[3])])[..., pads[0] : end]
                signal_grad = padded_grad.contiguous(memory_format=torch.channels_last).squeeze(2)
            if ctx.needs_input_grad[1]:
                if torch.is_grad_enabled():  # for a second derivative, the rows must depend on the signal in the graph
                    rows = _padded_rows(signal, pads[0], length, spare=stride)
                weight_grad = _weight_gradient(rows, grad_rows[before:], weight, stride)
            if ctx.needs_input_grad[2]:
                bias_grad = grad.sum((0, 2))
            return signal_grad, weight_grad, bias_grad, None, None


def _padded_length(signal: Tensor, weight: Tensor, stride: int, pads: tuple[int, int]) -> int:
    """Return the multiple of the stride at which the padded signal has as many windows as the output has steps."""
    kernel = weight.shape[2]
    windows = (signal.shape[2] + sum(pads) - kernel) // stride + 1
    return (windows - 1 + -(-kernel // stride)) * stride  # -(-a // b) is a / b rounded up


def _padded_rows(features: Tensor, before: int, length: int, spare: int) -> Tensor:
    """Return (N, C, T) as rows (N * length + spare, C): `before` zeros, the features, and zeros up to `length`."""
    samples, channels, steps = features.shape
    copied = max(0, min(steps, length - before))
    rows = features.new_empty((samples * length + spare, channels))
    padded = rows[: samples * length].view(samples, length, channels)
    padded[:, :before] = 0
    padded[:, before : before + copied] = features[..., :copied].transpose(1, 2)
    padded[:, before + copied :] = 0
    rows[samples * length :] = 0  # for windows that start in the last rows
    return rows


def _as_image(rows: Tensor, samples: int) -> Tensor:
    """View rows (N * length, C) as (N, C, 1, length): torch has a channels-last layout for four dimensions only."""
    return rows.view(samples, 1, -1, rows.shape[1]).permute(0, 3, 1, 2)


def _weight_gradient(signal: Tensor, grad: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the gradient (outputs, inputs, kernel) from rows of the signal and of the gradients of its windows.

    Windows that do not overlap are the rows of a matrix without a copy. The windows are therefore divided into several
    such matrices, one for each phase. Neighbouring windows are taken in pairs, because a product of matrices with few
    columns is faster the wider they are; the products of a window with its neighbour's gradient are discarded.
    """
    outputs, inputs, kernel = weight.shape
    pair = 2 if stride == 1 and kernel > 1 else 1
    span = kernel + (pair - 1) * stride  # rows that a pair of windows covers
    apart = -(-span // (pair * stride)) * pair  # windows from one row of a matrix to the next
    products = weight.new_zeros(pair * outputs, span * inputs)
    for first in range(0, apart, pair):
        count = (len(signal) - first * stride - span) // (apart * stride) + 1
        windows = signal[first * stride :].as_strided((count, span * inputs), (apart * stride * inputs, 1))
        grads = grad[first:].as_strided((count, pair * outputs), (apart * outputs, 1))
        products = products.addmm(grads.t(), windows)
    blocks = products.view(pair, outputs, span, inputs)
    # The window of each gradient in the pair starts `index` rows into the span.
    return torch.stack([block[:, index : index + kernel] for index, block in enumerate(blocks)]).sum(0).transpose(1, 2)
