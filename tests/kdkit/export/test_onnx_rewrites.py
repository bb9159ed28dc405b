"""Rewritten graphs compute the same: padding, batch norms, and 1-D convolutions as images."""

import numpy as np
import onnx
import pytest

from kdkit.export.onnx_exporter import OnnxExporter, cpu_session
from kdkit.export.onnx_graph import OnnxGraph, name_values, peak_bytes
from kdkit.export.onnx_int8 import choose_ranges, named_nodes
from kdkit.export.onnx_rewrites import (
    with_2d_convolutions,
    with_computed_constants,
    without_batch_norms,
)

RANDOM = np.random.default_rng(0)
FLOAT = onnx.TensorProto.FLOAT


def constant(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def model(nodes, constants, shape=("batch", 3, "length"), rank=3):
    """Return a model of nodes (operator, inputs, output, options) from x to y."""
    built = [onnx.helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in nodes]
    graph = onnx.helper.make_graph(
        built,
        "test",
        [onnx.helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [None] * rank)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def assert_equal(first, second, *shapes):
    for shape in shapes:
        inputs = {"x": RANDOM.normal(size=shape).astype(np.float32)}
        outputs = [cpu_session(graph.SerializeToString()).run(None, inputs)[0] for graph in (first, second)]
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_an_error_of_onnxruntime_is_raised_and_not_printed_too(capfd):
    session = cpu_session(model([("Add", ["x", "bias"], "y", {})], {"bias": constant(3, 5)}).SerializeToString())
    with pytest.raises(Exception, match="5 by 7"):
        session.run(None, {"x": constant(1, 3, 7)})
    assert capfd.readouterr() == ("", "")


def kinds(graph):
    return [node.op_type for node in graph.graph.node]


SIGNALS = (2, 3, 20), (1, 3, 33)
NORM = {"scale": constant(4), "bias": constant(4), "mean": constant(4), "variance": np.abs(constant(4)) + 0.5}
NORM_INPUTS = [*NORM]


def test_batch_norms_become_parts_of_convolutions_or_convolutions_of_channels():
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("BatchNormalization", ["a", *NORM_INPUTS], "b", {"epsilon": 1e-3}),
        ("Relu", ["b"], "c", {}),
        ("BatchNormalization", ["c", *NORM_INPUTS], "y", {}),
    ]
    before = model(nodes, {"w": constant(4, 3, 5), **NORM})
    after = without_batch_norms(before)
    assert kinds(after) == ["Conv", "Relu", "Conv"]
    assert_equal(before, after, *SIGNALS)


def test_a_batch_norm_of_features_becomes_a_product_and_a_sum():
    nodes = [("BatchNormalization", ["x", *NORM_INPUTS], "y", {})]
    before = model(nodes, NORM, shape=("batch", 4), rank=2)
    after = without_batch_norms(before)
    assert kinds(after) == ["Mul", "Add"]
    assert_equal(before, after, (3, 4))


def test_a_batch_norm_with_statistics_of_the_batch_and_one_after_a_computed_kernel_stay():
    nodes = [
        ("Conv", ["x", "x"], "a", {}),  # a kernel that depends on the input
        ("BatchNormalization", ["a", *NORM_INPUTS], "b", {}),
        ("ReduceMean", ["b", "axes"], "of_batch", {"keepdims": 0}),
        ("BatchNormalization", ["b", "scale", "bias", "of_batch", "variance"], "y", {}),
    ]
    before = model(nodes, {**NORM, "axes": np.array([0, 2])}, shape=(4, 3, 7))
    after = without_batch_norms(before)
    assert kinds(after) == ["Conv", "Conv", "ReduceMean", "BatchNormalization"]
    assert_equal(before, after, (4, 3, 7))


def test_weights_that_depend_on_no_input_become_constants_and_masks_stay_nodes():
    nodes = [
        ("ReduceL2", ["v", "axes"], "norm", {"keepdims": 1}),
        ("Div", ["v", "norm"], "w", {}),
        ("Conv", ["x", "w"], "a", {}),
        ("Expand", ["one", "shape"], "mask", {}),
        ("ReduceSum", ["mask"], "sum", {"keepdims": 0}),
        ("RandomUniform", [], "noise", {"shape": [1]}),
        ("Mul", ["noise", "zero"], "none", {}),
        ("Add", ["sum", "none"], "shift", {}),
        ("Add", ["a", "shift"], "y", {}),
    ]
    constants = {"v": constant(4, 3, 5), "axes": np.array([1, 2]), "one": np.ones(1, np.float32)}
    before = model(nodes, {**constants, "shape": np.array([100, 100]), "zero": np.zeros(1, np.float32)})
    after = with_computed_constants(before)
    assert kinds(after) == ["Conv", "Expand", "ReduceSum", "RandomUniform", "Mul", "Add", "Add"]
    assert_equal(before, after, *SIGNALS)
    assert kinds(with_2d_convolutions(after))[:2] == ["Unsqueeze", "Conv"]


def test_a_subgraph_keeps_the_values_that_it_takes_from_the_graph_around_it():
    make = onnx.helper.make_node
    output = [onnx.helper.make_tensor_value_info("taken", FLOAT, None)]
    branches = {
        f"{kind}_branch": onnx.helper.make_graph([make(operator, ["a", "b"], ["taken"])], kind, [], output)
        for kind, operator in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Identity", ["x"], "b", {}),
        ("If", ["yes"], "c", branches),
        ("SequenceConstruct", ["c", "x"], "sequence", {}),
        ("SequenceAt", ["sequence", "first"], "y", {}),
    ]
    before = model(nodes, {"w": constant(3, 3, 1), "yes": np.array(True), "first": np.array(0)})
    images = with_2d_convolutions(before)
    assert [len(array.dims) for array in images.graph.initializer if array.name.startswith("w")] == [4]
    assert_equal(before, images, *SIGNALS)
    graph = OnnxGraph(images)
    graph.shorten_names()
    renamed = graph.to_model()
    name_values(renamed, {"x": ("batch", 3, "length")}, "outputs")
    assert_equal(before, renamed, *SIGNALS)
    arrays = {"x": constant(2, 3, 20)}
    peak = OnnxExporter().peak_activation_bytes(renamed.SerializeToString(), arrays)
    assert peak == 4 * arrays["x"].nbytes  # of x, a, b and c
    assert {*choose_ranges(named_nodes(before), [arrays])} == {"x", "a", "b", "c", "y"}


def test_signals_are_images_as_far_as_operators_allow_and_signals_again_at_the_end():
    nodes = [
        ("Conv", ["x", "w"], "a", {"pads": [2, 1], "dilations": [2]}),
        ("BatchNormalization", ["a", *NORM_INPUTS], "b", {}),
        ("Mul", ["b", "by_channel"], "c", {}),
        ("ReduceMean", ["c", "axes"], "d", {"keepdims": 1}),
        ("Sub", ["c", "d"], "e", {}),
        ("Softmax", ["e"], "f", {"axis": 1}),  # has no form for images
        ("Add", ["f", "e"], "g", {}),
        ("Conv", ["g", "v"], "y", {"group": 2}),
    ]
    constants = {"w": constant(4, 3, 3), "by_channel": constant(4, 1), "axes": np.array([-1]), "v": constant(4, 2, 1)}
    before = model(nodes, {**constants, **NORM})
    after = with_2d_convolutions(before)
    assert {"Squeeze", "Unsqueeze", "GlobalAveragePool"} <= {*kinds(after)}
    convolutions = [node for node in after.graph.node if node.op_type == "Conv"]
    assert [len(onnx.helper.get_node_attr_value(node, "kernel_shape")) for node in convolutions] == [2, 2]
    assert_equal(before, after, *SIGNALS)


def test_a_model_without_signals_is_returned_as_it_is():
    before = model([("Relu", ["x"], "y", {})], {})
    assert with_2d_convolutions(before) is before


def test_the_peak_counts_values_that_are_alive_together_and_writes_over_inputs():
    nodes = [
        ("Relu", ["x"], "a", {}),  # over x
        ("Conv", ["a", "w"], "b", {}),  # a and b
        ("Add", ["b", "a"], "c", {}),  # a, b and c
        ("Relu", ["c"], "y", {}),
    ]
    graph = model(nodes, {"w": constant(3, 3, 1)})
    assert peak_bytes(graph, {"x": 10, "a": 10, "b": 10, "c": 10, "y": 10}) == 30
