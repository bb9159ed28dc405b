"""Rewrite graphs into equivalent graphs that run faster or can be quantized."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from kdkit.errors import KdkitError
from kdkit.export.onnx_exporter import cpu_session
from kdkit.export.onnx_graph import OnnxGraph, attributes, node, ranks, taken_by

_ELEMENTWISE = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Elu", "Selu", "Softplus", "HardSigmoid", "HardSwish",
                "Gelu", "Mish", "Erf", "Identity"}  # fmt: skip
_BINARY = {"Add", "Sub", "Mul", "Div"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_SMALL = 2**14  # bytes of a computed constant that may be larger than those it is computed from


def with_computed_constants(model: ModelProto) -> ModelProto:
    """Return an equivalent model in which values that depend on no input are constants, such as normalized weights.

    Other rewrites and the quantizer need the weights of a layer as constants. A value that is larger than those it is
    computed from, such as a mask, is still computed, because it would make the file larger. Notes of the exporter, such
    as lines of source code, are left out.
    """
    graph = OnnxGraph(model)
    fixed, steps = {*graph.constants}, list[NodeProto]()
    for step in graph.nodes:
        if fixed.issuperset(taken_by(step)) and step.op_type not in _RANDOM:
            steps.append(step)
            fixed.update(step.output)
    values = _computed(graph, steps) if steps else {}
    for step in steps:
        names = taken_by(step)
        results = [values.get(name) for name in step.output if name]
        if not all(name in graph.constants for name in names) or any(result is None for result in results):
            continue
        largest = max(_SMALL, sum(graph.constants[name].nbytes for name in names))
        if sum(values[name].nbytes for name in step.output if name) <= largest:
            graph.constants.update({name: values[name] for name in step.output if name})
            graph.nodes.remove(step)
    return graph.to_model()


def _computed(graph: OnnxGraph, steps: Sequence[NodeProto]) -> dict[str, NDArray[Any]]:
    """Return the arrays that nodes without inputs compute, by name; empty if onnxruntime lacks one of them."""
    outputs = [name for step in steps for name in step.output if name]
    needed = {name for step in steps for name in taken_by(step)}
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in needed]
    part = helper.make_graph(steps, "constants", [], [ValueInfoProto(name=name) for name in outputs], constants)
    model = helper.make_model(part, opset_imports=graph.model.opset_import, ir_version=10)
    try:
        # Without optimization, because fusing nodes removes values.
        values = cpu_session(model.SerializeToString(), optimize=False).run(outputs, {})
    except KdkitError:  # for example, of an operator in float64
        return {}
    return {name: value for name, value in zip(outputs, values, strict=True) if isinstance(value, np.ndarray)}


def with_2d_convolutions(model: ModelProto) -> ModelProto:
    """Return an equivalent model whose 1-D convolutions, and the nodes between them, work on images of height 1.

    Runtimes have faster kernels for two dimensions: onnxruntime blocks channels only for these, and some int8 runtimes
    have no 1-D convolution at all. A model without 1-D convolutions is returned unchanged.
    """
    graph = OnnxGraph(model)
    is_1d = [
        step.op_type == "Conv" and step.input[1] in graph.constants and graph.constants[step.input[1]].ndim == 3
        for step in graph.nodes
    ]
    return _Images(graph, ranks(model)).rewritten().to_model() if any(is_1d) else model


class _Images:
    """Rewrites a graph node by node. images: the names of values that exist as (batch, channels, 1, length)."""

    def __init__(self, graph: OnnxGraph, dimensions: dict[str, int]) -> None:
        self.graph = graph
        self.ranks = dimensions
        self.images: dict[str, str] = {}
        self.signals = {*graph.inputs}  # the values that exist in their original form
        self.axis = graph.constant(np.array([2], dtype=np.int64), "axis")
        self.nodes: list[NodeProto] = []

    def rewritten(self) -> OnnxGraph:
        """Return the graph with all nodes rewritten that can work on images."""
        for step in self.graph.nodes:
            if not self._as_image(step):
                for name in taken_by(step):
                    self._signal(name)
                self.nodes.append(step)
                self.signals.update(step.output)
        for name in self.graph.outputs:
            self._signal(name)
        self.graph.nodes = self.nodes
        return self.graph

    def _as_image(self, step: NodeProto) -> bool:
        """Add a node that works on images; return False if there is none."""
        options, constants = attributes(step), self.graph.constants
        if step.op_type == "Conv" and step.input[1] in constants and constants[step.input[1]].ndim == 3:
            weight = constants[step.input[1]]
            image = self._image(step.input[0])
            kernel = self.graph.constant(weight[:, :, None, :], step.input[1])
            before, after = options.get("pads", [0, 0])
            self._add(
                step, [image, kernel, *step.input[2:]],
                kernel_shape=[1, weight.shape[2]], pads=[0, before, 0, after], group=options.get("group", 1),
                strides=[1, *options.get("strides", [1])], dilations=[1, *options.get("dilations", [1])],
            )  # fmt: skip
            return True
        if not step.input or step.input[0] not in self.images:
            return False
        if step.op_type in _ELEMENTWISE or (step.op_type == "BatchNormalization" and len(step.output) == 1):
            options.pop("training_mode", None)  # 0 for a batch norm with one output
            self._add(step, [self.images[step.input[0]], *step.input[1:]], **options)
            return True
        if step.op_type in _BINARY:
            return self._binary(step)
        if step.op_type == "ReduceMean" and self._reduces_length(step):
            pooled = self.graph.fresh(step.output[0])
            self.nodes.append(node("GlobalAveragePool", [self.images[step.input[0]]], pooled))  # (N, C, 1, 1)
            if options.get("keepdims", 1):
                self.images[step.output[0]] = pooled
            else:
                self.nodes.append(node("Flatten", [pooled], step.output[0]))
                self.signals.add(step.output[0])
            return True
        return False

    def _binary(self, step: NodeProto) -> bool:
        inputs = []
        for name in step.input:
            if name in self.graph.constants:
                values = self.graph.constants[name]
                # (C, 1) and (1, C, 1) get the height before their last dimension; fewer dimensions broadcast as before
                image = values if values.ndim < 2 else np.expand_dims(values, -2)
                inputs.append(self.graph.constant(image, name))
            elif name in self.images or self.ranks.get(name) == 3:
                inputs.append(self._image(name))
            else:
                return False
        self._add(step, inputs)
        return True

    def _reduces_length(self, step: NodeProto) -> bool:
        """Whether a mean is over the last dimension only."""
        axes = self.graph.constants.get(step.input[1]) if len(step.input) > 1 else None
        return axes is not None and axes.tolist() in ([2], [-1])

    def _add(self, step: NodeProto, inputs: list[str], **options: Any) -> None:
        name = self.graph.fresh(step.output[0])
        self.nodes.append(node(step.op_type, inputs, name, **options))
        self.images[step.output[0]] = name

    def _image(self, name: str) -> str:
        if name not in self.images:
            self.images[name] = self.graph.fresh(name)
            self.nodes.append(node("Unsqueeze", [name, self.axis], self.images[name]))
        return self.images[name]

    def _signal(self, name: str) -> None:
        """Add the node that restores the original form of a value, if a node or an output needs it."""
        if name in self.images and name not in self.signals:
            self.nodes.append(node("Squeeze", [self.images[name], self.axis], name))
            self.signals.add(name)


def return_float_outputs(graph: OnnxGraph) -> None:
    """Let the last linear layer of an int8 graph return floats, in place: 256 steps of a logit are too coarse."""
    uses = graph.uses()
    producers: dict[str, NodeProto] = {name: step for step in graph.nodes for name in step.output}
    for step in [*graph.nodes]:
        if step.op_type != "DequantizeLinear" or step.output[0] not in graph.outputs:
            continue
        linear = producers.get(step.input[0])
        if linear is not None and linear.op_type == "QGemm" and len(uses[step.input[0]]) == 1:
            del linear.input[7:]  # without the scale and zero point of the output, QGemm returns floats
            linear.output[0] = step.output[0]
            graph.nodes.remove(step)


def without_batch_norms(model: ModelProto) -> ModelProto:
    """Return an equivalent model without batch norms, which have no quantized form.

    A batch norm after a convolution is folded into it. Any other becomes a depthwise convolution, or a product and a
    sum for (batch, channels).
    """
    graph = OnnxGraph(model)
    dimensions, uses = ranks(model), graph.uses()
    producers = {name: step for step in graph.nodes for name in step.output}
    nodes: list[NodeProto] = []
    for step in graph.nodes:
        if step.op_type != "BatchNormalization" or not graph.constants.keys() >= {*step.input[1:5]}:
            nodes.append(step)  # statistics of the batch are no constants
            continue
        weight, bias, mean, variance = (graph.constants[name].astype(np.float64) for name in step.input[1:5])
        scale = weight / np.sqrt(variance + attributes(step).get("epsilon", 1e-5))  # (channels,)
        shift = bias - mean * scale
        before = producers.get(step.input[0])
        is_fixed = before is not None and graph.constants.keys() >= {*before.input[1:]}
        if before is not None and before.op_type == "Conv" and is_fixed and len(uses[step.input[0]]) == 1:
            _fold(graph, before, scale, shift)
            before.output[0] = step.output[0]  # so that the nodes after the norm take the convolution's output
        else:
            nodes += _scaled(graph, step, scale, shift, dimensions.get(step.input[0], 2))
    graph.nodes = nodes
    return graph.to_model()


def _fold(graph: OnnxGraph, conv: NodeProto, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Multiply the outputs of a convolution by `scale` and add `shift`, in its weights."""
    weight = graph.constants[conv.input[1]]
    # New constants, because other layers may share the old ones.
    bias = graph.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(scale))
    scaled = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    inputs = (graph.constant(scaled.astype(np.float32), conv.input[1]),
              graph.constant((bias * scale + shift).astype(np.float32), f"{conv.input[1]}.bias"))  # fmt: skip
    conv.input[:] = [conv.input[0], *inputs]


def _scaled(
    graph: OnnxGraph, step: NodeProto, scale: NDArray[np.float64], shift: NDArray[np.float64], rank: int
) -> Iterator[NodeProto]:
    """Yield the nodes that multiply channels by `scale` and add `shift`."""
    name, bias = step.output[0], graph.constant(shift.astype(np.float32), f"{step.output[0]}.shift")
    if rank > 2:
        shape = (-1, 1, *(1 for _ in range(rank - 2)))
        weight = graph.constant(scale.astype(np.float32).reshape(shape), f"{name}.scale")
        yield node("Conv", [step.input[0], weight, bias], name, group=len(scale), kernel_shape=[1] * (rank - 2))
        return
    product = graph.fresh(name)
    yield node("Mul", [step.input[0], graph.constant(scale.astype(np.float32), f"{name}.scale")], product)
    yield node("Add", [product, bias], name)
