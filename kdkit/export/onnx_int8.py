"""Export to int8: static quantization of an ONNX graph, with ranges chosen on training samples."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from kdkit.errors import KdkitError, first_line
from kdkit.export.base import Arrays
from kdkit.export.onnx_exporter import cpu_session, onnx_model
from kdkit.export.onnx_graph import OnnxGraph, with_all_outputs
from kdkit.export.onnx_rewrites import return_float_outputs, with_2d_convolutions, without_batch_norms
from kdkit.export.source import ExportSource

Ranges = dict[str, tuple[float, float]]

_CANDIDATES = np.linspace(0.5, 1.0, 26)  # factors of a range; the one with the smallest error is used
_VALUES = 2**16  # numbers per value and batch used to measure the error
_MASK = 1e30  # the smallest range of a masking value, such as -inf or the lowest number
_WHERE = "FloatWhere"  # an operator that the quantizer does not know
_LAYERS = ("Conv", "Gemm", "MatMul")
_CONTRIB = "com.microsoft"  # the operators of onnxruntime


def quantizable(source: ExportSource) -> ModelProto:
    """Return the network as a float model whose large operators all have a quantized form."""
    return named_nodes(without_batch_norms(with_2d_convolutions(onnx_model(source))))


def named_nodes(model: ModelProto) -> ModelProto:
    """Name unnamed nodes in place, so that a quantizer can exclude them by name."""
    for index, step in enumerate(model.graph.node):
        step.name = step.name or f"node{index}"
    return model


def calibration_arrays(source: ExportSource) -> list[Arrays]:
    """Return the inputs of the network for the calibration samples, in batches. Raises KdkitError for other sizes."""
    batches: list[Arrays] = [
        {name: tensor.numpy() for name, tensor in zip(source.input_names, source.inputs_of(batch), strict=True)}
        for batch in source.calibration
    ]
    for arrays in batches:
        if advice := source.size_advice(arrays):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise KdkitError(f"int8 is calibrated on training samples, which have {shapes}{advice}")
    return batches


def choose_ranges(model: ModelProto, batches: Iterable[Arrays]) -> Ranges:
    """Return the range of each value of a model, which is divided into 256 steps.

    It is the part of the full range, including 0, that minimizes the squared error of rounding and clipping together;
    for a masking value, it is the full range.
    """
    verbose, names = with_all_outputs(model)
    # Without optimization, which would fuse nodes and lose the values between them.
    session = cpu_session(verbose.SerializeToString(), optimize=False)
    inputs = [value.name for value in model.graph.input]
    collected: dict[str, list[NDArray[np.float32]]] = {}
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    random = np.random.default_rng(0)
    for arrays in batches:
        outputs = dict(zip(names, session.run(names, dict(arrays)), strict=True))
        for name, values in {**outputs, **{name: arrays[name] for name in inputs}}.items():
            if not isinstance(values, np.ndarray) or values.dtype != np.float32:
                continue  # such as a sequence
            flat = values.ravel()
            flat = flat[~np.isnan(flat)]  # for example, a sample that is only padding
            if not flat.size:
                continue
            # 0 is always included, because padding and ReLU need it exactly
            lowest[name] = min(lowest.get(name, 0.0), float(flat.min()))
            highest[name] = max(highest.get(name, 0.0), float(flat.max()))
            few = flat if flat.size <= _VALUES else flat[random.integers(flat.size, size=_VALUES)]
            collected.setdefault(name, []).append(few)
    return {
        name: _best_range(np.concatenate(parts), lowest[name], highest[name])
        if highest[name] - lowest[name] < _MASK
        else (lowest[name], highest[name])
        for name, parts in collected.items()
    }


def _best_range(values: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Return the part of a range that minimizes the squared error of quantized values."""
    if high <= low:
        return 0.0, 1.0  # a value that is always 0
    if len(values) > _VALUES:
        values = values[:: len(values) // _VALUES]

    def error(factor: float) -> float:
        start, scale = factor * low, factor * (high - low) / 255
        steps = np.clip(np.rint((values - start) / scale), 0, 255)
        return float(np.square(steps * scale + start - values).mean(dtype=np.float64))

    best = min(_CANDIDATES, key=error)
    return float(best * low), float(best * high)


def quantized(model: ModelProto, ranges: Mapping[str, tuple[float, float]], *, only_layers: bool = False) -> ModelProto:
    """Return a float model in int8. Raises KdkitError if none of its operators has a quantized form.

    only_layers: keep everything between layers with weights, such as norms and attention, in float.
    Operators with a mask of -inf or the lowest number stay in float, because all other numbers would be in one step.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode
    from onnxruntime.quantization.registry import QLinearOpsRegistry

    data = {
        name: TensorData(lowest=np.array(low, dtype=np.float32), highest=np.array(high, dtype=np.float32))
        for name, (low, high) in ranges.items()
        if high - low < _MASK
    }
    masks = {*ranges} - {*data}
    masking = [step.name for step in model.graph.node if masks.intersection((*step.input, *step.output))]
    model = onnx.shape_inference.infer_shapes(model)
    for step in model.graph.node:
        # The quantizer would keep a `Where` in float, but not dequantize its inputs.
        step.op_type = _WHERE if step.op_type == "Where" else step.op_type
    quantizer = ONNXQuantizer(
        model,
        True,  # weights by channel
        True,  # weights in 7 of the 8 bits
        QuantizationMode.QLinearOps,
        True,  # static
        QuantType.QInt8,
        QuantType.QUInt8,  # with int8 activations, the convolutions of onnxruntime on x86 take ten times as long
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        masking,
        [*(_LAYERS if only_layers else QLinearOpsRegistry)],
        {"WeightSymmetric": True, "ActivationSymmetric": False, "MatMulConstBOnly": only_layers},
    )
    try:
        quantizer.quantize_model()
    except Exception as error:  # of any kind: the quantizer does not expect some operators with some types or values
        raise KdkitError(
            f"onnxruntime cannot quantize the network: {type(error).__name__}: {first_line(error)}; export it to onnx"
        ) from error
    graph = OnnxGraph(quantizer.model.model)
    for step in graph.nodes:
        step.op_type = "Where" if step.op_type == _WHERE else step.op_type
    if not any(step.op_type.startswith("Q") for step in graph.nodes):
        raise KdkitError("the network has no operator with a form in int8, such as a convolution or a linear layer")
    return_float_outputs(graph)
    graph.shorten_names()
    return graph.to_model({_CONTRIB: 1})
