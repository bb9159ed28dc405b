"""An ONNX graph for rewriting: its nodes, its constants as arrays, and its inputs and outputs."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

# Operators with one input that a runtime can compute in the memory of their input.
_IN_PLACE = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSwish", "Identity", "Reshape", "Flatten", "Squeeze",
             "Unsqueeze", "BatchNormalization", "Cast", "QLinearSigmoid", "QLinearLeakyRelu"}  # fmt: skip


class OnnxGraph:
    """The parts of a model. `to_model` assembles them again, without parts that no output depends on.

    nodes: in topological order. constants: by name.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model = ModelProto.FromString(model.SerializeToString())  # rewriting changes nodes in place
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            else:
                self.nodes.append(node)
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self._made = 0

    def uses(self) -> dict[str, list[NodeProto]]:
        """Return the nodes that take each value. An output of the graph counts as taken by an extra node."""
        uses: dict[str, list[NodeProto]] = {name: [NodeProto()] for name in self.outputs}
        for node in self.nodes:
            for name in taken_by(node):
                uses.setdefault(name, []).append(node)
        return uses

    def constant(self, values: NDArray[Any], name: str) -> str:
        """Add a constant, and return its name, which begins with `name`."""
        unique = self.fresh(name)
        self.constants[unique] = np.ascontiguousarray(values)
        return unique

    def fresh(self, name: str) -> str:
        """Return an unused name."""
        self._made += 1
        return f"{name}.{self._made}"

    def to_model(self, domains: Mapping[str, int] | None = None) -> ModelProto:
        """Return the graph as a model without notes of the exporter. domains: versions of additional operator sets."""
        needed: set[str] = {*self.outputs}
        kept: list[NodeProto] = []
        # from the end, so that a node is reached after all that take its outputs
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(taken_by(node))
                kept.append(_without_notes(node))
        old = self.model.graph
        graph = helper.make_graph(
            kept[::-1],
            "main",
            [_without_notes(value) for value in old.input],
            [_without_notes(value) for value in old.output],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in needed],
        )
        imports = {entry.domain: entry.version for entry in self.model.opset_import} | dict(domains or {})
        used = {node.domain for node in kept} | {""}
        operator_sets = [helper.make_opsetid(domain, version) for domain, version in imports.items() if domain in used]
        model = helper.make_model(graph, opset_imports=operator_sets, producer_name="kdkit")
        model.ir_version = min(self.model.ir_version, 10)  # readable since onnxruntime 1.18
        return model

    def shorten_names(self) -> None:
        """Shorten the names of all values except inputs and outputs of the graph, and remove the names of nodes."""
        inner = {name for node in self.nodes for graph in _subgraphs(node) for name in _made_in(graph)}
        fixed = {*self.inputs, *self.outputs, *inner, ""}
        short: dict[str, str] = {}
        for name in [*(name for node in self.nodes for name in (*node.input, *node.output)), *self.constants]:
            if name not in fixed and name not in short:
                short[name] = f"{len(short):x}"
                while short[name] in fixed:
                    short[name] += "_"
        for node in self.nodes:
            node.name = ""
            _rename(node, short)
        self.constants = {short.get(name, name): array for name, array in self.constants.items()}


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def taken_by(node: NodeProto) -> list[str]:
    """Return the names of the values that a node takes, also inside its subgraphs, such as the body of a loop."""
    names = [name for name in node.input if name]
    for graph in _subgraphs(node):
        inner = [name for step in graph.node for name in taken_by(step)] + [value.name for value in graph.output]
        made = _made_in(graph)
        names += [name for name in inner if name not in made]
    return names


def _subgraphs(node: NodeProto) -> list[onnx.GraphProto]:
    return [graph for item in node.attribute for graph in (*([item.g] if item.HasField("g") else []), *item.graphs)]


def _made_in(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the values of a subgraph that are not those of the graph around it."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return names | {name for step in graph.node for name in step.output}


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename the values that a node takes and computes, in place, also inside its subgraphs."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in _subgraphs(node):
        for step in graph.node:
            _rename(step, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def node(operator: str, inputs: Sequence[str], output: str, **options: Any) -> NodeProto:
    """Return a node with one output."""
    return helper.make_node(operator, list(inputs), [output], name=f"{operator}:{output}", **options)


def name_values(model: ModelProto, shapes: Mapping[str, Sequence[int | str]], output: str) -> None:
    """Name the inputs of a model, their dynamic dimensions and its output, in place. shapes: of inputs by name."""
    names = dict(zip([value.name for value in model.graph.input], shapes, strict=True))
    names[model.graph.output[0].name] = output
    symbols: dict[str, str] = {}
    for value, shape in zip(model.graph.input, shapes.values(), strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(size, str):
                symbols[dim.dim_param] = dim.dim_param = size
            else:
                dim.dim_value = size  # even for a symbol with only one value
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.isdecimal():
                dim.dim_value = int(dim.dim_param)
            elif dim.dim_param:
                dim.dim_param = symbols.get(dim.dim_param, dim.dim_param)
    # An inner value with the name of an input would be confused with it.
    taken = {*names.values()} - {*names}
    inner = {name for step in model.graph.node for name in step.output} | {
        tensor.name for tensor in model.graph.initializer
    }
    names.update({name: f"{name}.value" for name in taken & inner})
    for step in model.graph.node:
        _rename(step, names)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)


def ranks(model: ModelProto) -> dict[str, int]:
    """Return the number of dimensions of each value, if it can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    # a value of unknown rank has no shape at all; unknown sizes are dimensions without a number
    shaped = {value.name: value.type.tensor_type for value in values if value.type.tensor_type.HasField("shape")}
    return {name: len(tensor.shape.dim) for name, tensor in shaped.items()}


def with_all_outputs(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """Return a model whose outputs are all values that its nodes compute, and their names."""
    copy = ModelProto.FromString(model.SerializeToString())
    names = [name for node in copy.graph.node for name in node.output if name]
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy, names


def peak_bytes(model: ModelProto, sizes: Mapping[str, int]) -> int:
    """Return the peak bytes of values that are alive while the nodes run in their order.

    sizes: bytes of each input and of each value that nodes compute. A value lives from its node to the last node that
    takes it. Some operators write over their input, if no other node takes it later. Constants do not count.
    """
    nodes = model.graph.node
    last = {name: index for index, node in enumerate(nodes) for name in taken_by(node)}
    last.update({value.name: len(nodes) for value in model.graph.output})
    # The caller holds the inputs before the first node.
    alive = {value.name: sizes[value.name] for value in model.graph.input}
    peak = sum(alive.values())
    for index, step in enumerate(nodes):
        first = step.input[0] if step.input else ""
        if step.op_type in _IN_PLACE and last.get(first) == index and sizes.get(step.output[0]) == alive.get(first):
            del alive[first]
        alive.update({name: sizes[name] for name in step.output if name})
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return peak


Noted = TypeVar("Noted", NodeProto, onnx.ValueInfoProto)


def _without_notes(proto: Noted) -> Noted:
    """Return a copy of a node or value without an exporter's notes, such as lines of source code."""
    plain: Noted = type(proto).FromString(proto.SerializeToString())
    del plain.metadata_props[:]
    plain.doc_string = ""
    return plain
