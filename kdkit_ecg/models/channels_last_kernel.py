"""A convolution and its gradients with the channels last in memory.

torch keeps (N, channels, T) with time last. oneDNN, which convolves on a CPU, turns signals, weights and answers into
layouts of its own and back at every call, and few channels do not fill its kernels for those. With the channels last,
strides (T * channels, 1, channels), it convolves what lies there at nine tenths of what a core can do, instead of half.
For the weights' gradient it has no such kernel on AVX2: here that is a product of matrices, which are views of the
features. Only rounding differs. `python benchmarks/kernels.py` measures what it gains.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ChannelsLast(torch.autograd.Function):
    """Convolve (N, inputs, T) by (outputs, inputs, kernel) -> (N, outputs, 1, T'), with zeros left and right.

    It answers with four dimensions, since a view that it made itself could not be changed in place.
    """

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: tuple[int, int]
    ) -> Tensor:
        """Convolve what is framed by zeros."""
        framed = _rows(signal, sides[0], _framed_length(signal, weight, stride, sides), spare=stride)
        ctx.save_for_backward(signal, weight, framed)
        ctx.stride, ctx.sides = stride, sides
        image = _image(framed[:-stride], len(signal))
        return functional.conv2d(image, weight.unsqueeze(2), bias, (1, stride))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of signal, weight and bias, by operations that can be differentiated again."""
        with torch.autocast("cpu", enabled=False):  # as of torch's own, which autocast around it does not change
            return _gradients(ctx, grads[0].squeeze(2))


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (signal, weight, windows), stride, sides = ctx.saved_tensors, ctx.stride, ctx.sides
    of_signal = of_weight = of_bias = None
    kernel, length = weight.shape[2], _framed_length(signal, weight, stride, sides)
    keeps_length = stride == 1 and sum(sides) == kernel - 1
    before = kernel - 1 - sides[0] if keeps_length else 0
    # As many rows as windows begin in the framed signal, so that both can be walked through in step.
    framed = _rows(grad, before, length // stride, spare=1)
    if ctx.needs_input_grad[0] and keeps_length:
        turned = weight.flip(2).transpose(0, 1).contiguous()
        of_signal = functional.conv2d(_image(framed[:-1], len(grad)), turned.unsqueeze(2)).squeeze(2)
    elif ctx.needs_input_grad[0]:
        of_signal = _spread(grad, weight, stride, sides[0], signal.shape[2])
    if ctx.needs_input_grad[1]:
        if torch.is_grad_enabled():  # to be differentiated again, so it has to be seen where windows come from
            windows = _rows(signal, sides[0], length, spare=stride)
        of_weight = _weight_gradient(windows, framed[before:], weight, stride)
    if ctx.needs_input_grad[2]:
        of_bias = grad.sum((0, 2))
    return of_signal, of_weight, of_bias, None, None


def _framed_length(signal: Tensor, weight: Tensor, stride: int, sides: tuple[int, int]) -> int:
    """Return the multiple of the stride at which a signal with zeros on its sides has the windows that it should."""
    kernel = weight.shape[2]
    windows = (signal.shape[2] + sum(sides) - kernel) // stride + 1
    return (windows - 1 + -(-kernel // stride)) * stride


def _rows(features: Tensor, before: int, length: int, spare: int) -> Tensor:
    """Return each record's features (N, C, T), a time step a row, with zeros around -> (N * length + spare, C)."""
    number, channels, given = features.shape
    kept = max(0, min(given, length - before))
    rows = features.new_empty((number * length + spare, channels))
    framed = rows[: number * length].view(number, length, channels)
    framed[:, :before] = 0
    framed[:, before : before + kept] = features[..., :kept].transpose(1, 2)
    framed[:, before + kept :] = 0
    rows[number * length :] = 0
    return rows


def _image(rows: Tensor, number: int) -> Tensor:
    """View rows (N * length, C) as (N, C, 1, length): torch knows the layout by four dimensions only."""
    return rows.view(number, 1, -1, rows.shape[1]).permute(0, 3, 1, 2)


def _spread(grad: Tensor, weight: Tensor, stride: int, left: int, length: int) -> Tensor:
    """Return the gradient (N, inputs, length) of a signal with so many zeros on its left."""
    image = grad.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    whole = functional.conv_transpose2d(image, weight.unsqueeze(2), stride=(1, stride))
    missing = max(0, left + length - whole.shape[3])
    cut = functional.pad(whole, [0, missing])[..., left : left + length]
    return cut.contiguous(memory_format=torch.channels_last).squeeze(2)


def _weight_gradient(signal: Tensor, grad: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the gradient (outputs, inputs, kernel) from rows of the signal and of the gradients of its windows.

    Windows far enough apart do not overlap, and are the rows of a matrix without a copy; so there are a few such
    matrices, one for each phase. Neighbours are taken two at a time: a matrix of few channels is multiplied the faster
    the wider it is, and of the products of a window with the other's gradient only a share is for nothing.
    """
    outputs, inputs, kernel = weight.shape
    pair = 2 if stride == 1 and kernel > 1 else 1
    span = kernel + (pair - 1) * stride
    apart = -(-span // (pair * stride)) * pair
    found = weight.new_zeros(pair * outputs, span * inputs)
    for first in range(0, apart, pair):
        number = (len(signal) - first * stride - span) // (apart * stride) + 1
        windows = signal[first * stride :].as_strided((number, span * inputs), (apart * stride * inputs, 1))
        grads = grad[first:].as_strided((number, pair * outputs), (apart * outputs, 1))
        found = found.addmm(grads.t(), windows)
    parts = found.view(pair, outputs, span, inputs)
    return torch.stack([part[:, at : at + kernel] for at, part in enumerate(parts)]).sum(0).transpose(1, 2)
