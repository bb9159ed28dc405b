"""An int8 graph as a trainable torch module, which computes with the rounding and the integers of the graph."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, nn
from torch.nn import functional

from kdkit.errors import KdkitError
from kdkit.export.onnx_graph import OnnxGraph, attributes

Values = dict[str, Tensor]

_LARGEST_WEIGHT = 64  # as in onnxruntime, if weights use 7 of the 8 bits


class Int8Module(nn.Module):
    """The operators of a graph in QOperator form, with trainable weights and biases, and everything else fixed.

    Values between operators are real numbers, which are rounded to the steps of the graph. Gradients pass through the
    rounding as if it were not there, but not beyond the ends of a range (straight-through estimator, Bengio et al.
    2013, arXiv:1308.3432).

    Raises KdkitError for an unsupported operator.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.graph = graph
        self.weights = nn.ParameterDict()
        for name, array in graph.constants.items():
            self.register_buffer(_key("constant", name), torch.from_numpy(np.array(array)), persistent=False)
        for step in graph.nodes:
            if step.op_type not in _OPERATORS:
                raise KdkitError(f"the operator {step.op_type} cannot be trained")
            if step.op_type in _WEIGHTED:
                self._add_weights(step)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs for the inputs, in the order of the graph; arguments that are not tensors are ignored."""
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        values: Values = dict(zip(self.graph.inputs, inputs, strict=True))
        for step in self.graph.nodes:
            values[step.output[0]] = _OPERATORS[step.op_type](self, step, values)
        return values[self.graph.outputs[0]]

    def trained_graph(self) -> OnnxGraph:
        """Return the graph, changed in place, with the integers of the trained weights and biases."""
        for step in self.graph.nodes:
            if step.op_type not in _WEIGHTED:
                continue
            weight, bias = step.input[3], _bias_name(step)
            integers = self._integers(self.weights[_key("weight", step.output[0])], self._weight_scale(step))
            # A weight that two layers shared has become two, because each layer trains its own.
            step.input[3] = self.graph.constant(integers.detach().cpu().numpy().astype(np.int8), weight)
            if bias is not None:
                trained = self.weights[_key("bias", step.output[0])].detach().double()
                steps = torch.round(trained / self._bias_scale(step)).cpu().numpy()
                step.input[list(step.input).index(bias)] = self.graph.constant(steps.astype(np.int32), bias)
        return self.graph

    def _add_weights(self, step: NodeProto) -> None:
        weight = self._constant(step.input[3]).float() * self._weight_scale(step)  # symmetric, so its zero point is 0
        self.weights[_key("weight", step.output[0])] = nn.Parameter(weight)
        bias = _bias_name(step)
        if bias is not None:
            real = self._constant(bias).double() * self._bias_scale(step)
            self.weights[_key("bias", step.output[0])] = nn.Parameter(real.float())

    def _integers(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return a weight in steps of its scale."""
        return torch.round((weight / scale).clamp(-_LARGEST_WEIGHT, _LARGEST_WEIGHT))

    def _weight(self, step: NodeProto) -> Tensor:
        """Return a weight, rounded to its steps."""
        weight, scale = self.weights[_key("weight", step.output[0])], self._weight_scale(step)
        rounded: Tensor = weight + (self._integers(weight, scale) * scale - weight).detach()
        return rounded

    def _bias(self, step: NodeProto) -> Tensor | None:
        return self.weights[_key("bias", step.output[0])] if _bias_name(step) is not None else None

    def _weight_scale(self, step: NodeProto) -> Tensor:
        """Return the scale of a weight, in a shape that broadcasts to it if there is one per output channel."""
        scale = self._constant(step.input[4])
        if scale.ndim == 0:
            return scale
        is_second = step.op_type == "QGemm" and not attributes(step).get("transB", 0)
        dims = self.graph.constants[step.input[3]].ndim
        return scale.reshape((1, -1) if is_second else (-1, *(1 for _ in range(dims - 1))))

    def _bias_scale(self, step: NodeProto) -> Tensor:
        """Return input scale times weight scale, the unit in which products are summed."""
        return (self._constant(step.input[1]) * self._constant(step.input[4])).double()

    def _constant(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, _key("constant", name))
        return tensor

    def _real(self, names: Sequence[str], values: Values) -> Tensor:
        """Return an operand, named by (value, scale, zero point), as real numbers."""
        if names[0] in values:
            return values[names[0]]
        return (self._constant(names[0]).float() - self._constant(names[2]).float()) * self._constant(names[1])

    def _rounded(self, value: Tensor, scale: str, zero: str) -> Tensor:
        """Return real numbers, rounded to the uint8 steps of a scale."""
        step, offset = self._constant(scale), self._constant(zero).float()
        steps = (value / step + offset).clamp(0, 255)
        steps = steps + (torch.round(steps) - steps).detach()
        return (steps - offset) * step

    def _quantize(self, step: NodeProto, values: Values) -> Tensor:
        return self._rounded(values[step.input[0]], step.input[1], step.input[2])

    def _same(self, step: NodeProto, values: Values) -> Tensor:
        return values[step.input[0]]

    def _conv(self, step: NodeProto, values: Values) -> Tensor:
        options = attributes(step)
        value, spatial = values[step.input[0]], len(options["kernel_shape"])
        pads = options.get("pads", [0] * 2 * spatial)
        # from the last dimension to the first, as `pad` takes them
        widths = [width for dim in reversed(range(spatial)) for width in (pads[dim], pads[dim + spatial])]
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
        output = convolve(
            functional.pad(value, widths),
            self._weight(step),
            self._bias(step),
            stride=options.get("strides", [1] * spatial),
            dilation=options.get("dilations", [1] * spatial),
            groups=options.get("group", 1),
        )
        return self._rounded(output, step.input[6], step.input[7])

    def _gemm(self, step: NodeProto, values: Values) -> Tensor:
        weight = self._weight(step)
        weight = weight if attributes(step).get("transB", 0) else weight.T
        output = functional.linear(values[step.input[0]], weight, self._bias(step))
        is_float = len(step.input) < 9 or not step.input[7]
        return output if is_float else self._rounded(output, step.input[7], step.input[8])

    def _binary(self, step: NodeProto, values: Values) -> Tensor:
        first, second = self._real(step.input[:3], values), self._real(step.input[3:6], values)
        output = first + second if step.op_type == "QLinearAdd" else first * second
        return self._rounded(output, step.input[6], step.input[7])

    def _sigmoid(self, step: NodeProto, values: Values) -> Tensor:
        return self._rounded(torch.sigmoid(values[step.input[0]]), step.input[3], step.input[4])

    def _pool(self, step: NodeProto, values: Values) -> Tensor:
        value = values[step.input[0]]
        return self._rounded(value.mean(tuple(range(2, value.ndim)), keepdim=True), step.input[3], step.input[4])

    def _concat(self, step: NodeProto, values: Values) -> Tensor:
        parts = [self._real(step.input[index : index + 3], values) for index in range(2, len(step.input), 3)]
        return self._rounded(torch.cat(parts, attributes(step)["axis"]), step.input[0], step.input[1])

    def _flatten(self, step: NodeProto, values: Values) -> Tensor:
        value = values[step.input[0]]
        return value.reshape(math.prod(value.shape[: attributes(step).get("axis", 1)]), -1)  # always two dimensions

    def _unsqueeze(self, step: NodeProto, values: Values) -> Tensor:
        value, axes = values[step.input[0]], self.graph.constants[step.input[1]].tolist()
        for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):  # axes of the result
            value = value.unsqueeze(axis)
        return value

    def _squeeze(self, step: NodeProto, values: Values) -> Tensor:
        return values[step.input[0]].squeeze(self.graph.constants[step.input[1]].tolist())

    def _mean(self, step: NodeProto, values: Values) -> Tensor:
        if len(step.input) < 2 or step.input[1] not in self.graph.constants:
            raise KdkitError("a mean whose axes are not constant cannot be trained")
        axes = self.graph.constants[step.input[1]].tolist()
        return values[step.input[0]].mean(axes, keepdim=bool(attributes(step).get("keepdims", 1)))

    def _reshape(self, step: NodeProto, values: Values) -> Tensor:
        value, shape = values[step.input[0]], self.graph.constants.get(step.input[1])
        if shape is None or (shape == 0).any():
            raise KdkitError("a shape that is not constant cannot be trained")
        return value.reshape(shape.tolist())

    def _relu(self, step: NodeProto, values: Values) -> Tensor:
        return functional.relu(values[step.input[0]])

    def _max_pool(self, step: NodeProto, values: Values) -> Tensor:
        options = attributes(step)
        kernel = options["kernel_shape"]
        pads = options.get("pads", [0] * 2 * len(kernel))
        if pads[: len(kernel)] != pads[len(kernel) :] or options.get("ceil_mode"):
            raise KdkitError("a pooling with uneven padding cannot be trained")
        pool: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
        strides, dilations = options.get("strides", [1] * len(kernel)), options.get("dilations", 1)
        pooled: Tensor = pool(values[step.input[0]], kernel, strides, pads[: len(kernel)], dilations)
        return pooled


_WEIGHTED = ("QLinearConv", "QGemm")
_OPERATORS: dict[str, Callable[[Int8Module, NodeProto, Values], Tensor]] = {
    "QuantizeLinear": Int8Module._quantize,
    "DequantizeLinear": Int8Module._same,
    "Identity": Int8Module._same,
    "QLinearConv": Int8Module._conv,
    "QGemm": Int8Module._gemm,
    "QLinearAdd": Int8Module._binary,
    "QLinearMul": Int8Module._binary,
    "QLinearSigmoid": Int8Module._sigmoid,
    "QLinearGlobalAveragePool": Int8Module._pool,
    "QLinearConcat": Int8Module._concat,
    "Flatten": Int8Module._flatten,
    "Unsqueeze": Int8Module._unsqueeze,
    "Squeeze": Int8Module._squeeze,
    "ReduceMean": Int8Module._mean,
    "Reshape": Int8Module._reshape,
    "Relu": Int8Module._relu,
    "MaxPool": Int8Module._max_pool,
}


def _key(kind: str, name: str) -> str:
    """Return the name of a buffer or parameter for a value. torch does not allow dots in it."""
    return f"{kind} {name}".replace(".", " ")


def _bias_name(step: NodeProto) -> str | None:
    position = 8 if step.op_type == "QLinearConv" else 6
    return step.input[position] if len(step.input) > position and step.input[position] else None
