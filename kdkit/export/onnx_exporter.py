"""Export to ONNX: one file with dynamic sizes, and with metadata that onnxruntime reads."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.errors import KdkitError, first_line
from kdkit.export.base import Arrays, Exported, Exporter, Model, require_packages
from kdkit.export.source import ExportSource
from kdkit.utils.files import to_json
from kdkit.utils.modules import weights_bytes

METADATA = "kdkit"  # the key of the metadata in the file
_MOST_BYTES = 2**31 - 2**24  # of weights, with room for the graph: protobuf does not allow larger messages


class OnnxExporter(Exporter):
    """ONNX in float32, for onnxruntime on any device and in browsers; `kdkit.export.onnx_rewrites` makes it fast."""

    suffix = ".onnx"

    def require(self) -> None:
        """Raise PluginError if onnx, onnxscript or onnxruntime is missing."""
        require_packages("onnx", "export", "onnx", "onnxscript", "onnxruntime")

    def export(self, source: ExportSource) -> Exported:
        """Return the network as a model."""
        from kdkit.export.onnx_rewrites import with_2d_convolutions

        return Exported(content=with_2d_convolutions(onnx_model(source)).SerializeToString())

    def with_metadata(self, content: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Return the model with metadata as a JSON text under the key "kdkit"."""
        import onnx

        model = onnx.ModelProto.FromString(content)
        onnx.helper.set_model_props(model, {METADATA: to_json(metadata)})
        return bytes(model.SerializeToString())

    def open(self, content: bytes) -> Model:
        """Return a session of onnxruntime on one thread of the CPU."""
        session = cpu_session(content)
        (output,) = (value.name for value in session.get_outputs())

        def model(inputs: Arrays) -> NDArray[np.floating[Any]]:
            (outputs,) = session.run([output], dict(inputs))
            return np.asarray(outputs, dtype=np.float64 if outputs.dtype == np.float64 else np.float32)

        return model

    def peak_activation_bytes(self, content: bytes, inputs: Arrays) -> int | None:
        """Return the peak memory of all values, from their measured sizes, if the nodes run in their order."""
        import onnx

        from kdkit.export.onnx_graph import peak_bytes, with_all_outputs

        model = onnx.ModelProto.FromString(content)
        verbose, names = with_all_outputs(model)
        # Without optimization, because fusing nodes removes values.
        values = cpu_session(verbose.SerializeToString(), optimize=False).run(names, dict(inputs))
        sizes = {
            name: sum(array.nbytes for array in (value if isinstance(value, list) else [value]))  # a list is a sequence
            for name, value in zip(names, values, strict=True)
        }
        return peak_bytes(model, {**sizes, **{name: array.nbytes for name, array in inputs.items()}})


class Int8OnnxExporter(OnnxExporter):
    """ONNX in int8: weights symmetric by channel, activations by tensor; operators of onnxruntime.

    Ranges are chosen on training samples. Weights use 7 of the 8 bits: processors without VNNI sum 8-bit products in 16
    bits, which overflow, so the file could give other results there than on the machine that checked it.
    """

    label = "-int8"
    precision = "int8"
    tolerance = None

    def export(self, source: ExportSource) -> Exported:
        """Return the quantized network. Raises KdkitError if it has nothing to quantize."""
        from kdkit.export.onnx_int8 import calibration_arrays, choose_ranges, quantizable, quantized

        if source.precision != "fp32":
            raise KdkitError(
                f"int8 needs a network in float32; the weights of net {source.net.name!r} are {source.precision}: "
                "convert it in the recipe (module.float())"
            )
        if source.quantized:
            raise KdkitError(
                f"int8 needs a network in float32; net {source.net.name!r} is quantized already ({source.quantized}): "
                "export it to pt2 or onnx"
            )
        model = quantizable(source)
        self._float, self._ranges = model, choose_ranges(model, calibration_arrays(source))
        self._quantized = quantized(model, self._ranges)
        return self._described(self._quantized, source)

    def improvements(self, source: ExportSource) -> Iterator[Exported]:
        """Yield the network after some epochs of learning from the float network; then with int8 only in its layers."""
        from kdkit.export.finishing import finish
        from kdkit.export.onnx_int8 import quantized

        if epochs := source.options.finish_epochs:
            try:
                trained = finish(source, self._quantized)
            except KdkitError as error:  # the other file does not depend on it
                reason = " ".join(str(error).split())  # one line, because a check lists all problems
                self.notices = (
                    f"int8 was not finished: {reason}; only its layers with weights are tried in int8 instead",
                )
            else:
                finishing = {"epochs": epochs, "loss": "mean squared error of outputs", "teacher": source.net.name}
                yield self._described(trained, source, finishing=finishing)
        # Attention and norms may need more than 256 steps.
        layers = quantized(self._float, self._ranges, only_layers=True)
        yield self._described(layers, source, operators="layers with weights")

    def _described(self, model: Any, source: ExportSource, **details: Any) -> Exported:
        """Return the file of a model with a description of its quantization."""
        batches = source.calibration
        ids = [sample for batch in batches if batch.ids is not None for sample in batch.ids.tolist()]
        described = {
            "operators": "all",
            "finishing": None,
            "weights": {"bits": 7, "symmetric": True, "by": "channel"},
            "activations": {"bits": 8, "symmetric": False, "by": "tensor"},
            "calibration": {"split": "train", "samples": sum(map(len, batches)), "seed": source.options.seed},
            **details,
        }
        return Exported(content=model.SerializeToString(), details=described, record={"calibration_ids": ids})


def onnx_model(source: ExportSource) -> Any:
    """Return a network as a model of standard operators, with the names of its inputs and of their dimensions.

    Raises KdkitError if torch cannot convert it.
    """
    import onnx

    from kdkit.export.onnx_graph import name_values
    from kdkit.export.onnx_rewrites import with_computed_constants

    if "onnx" in source.shared:
        return source.shared["onnx"]
    weights = weights_bytes(source.module)
    if weights > _MOST_BYTES:
        raise KdkitError(
            f"the weights of net {source.net.name!r} have {weights / 2**30:.1f} GiB, and one file in ONNX format holds "
            "at most 2 GiB; export it to pt2"
        )
    program = source.program
    try:
        try:
            converted = _converted(program)
        except Exception:
            # In basic operations, for example of attention on tensors with three dimensions, torch may convert it.
            converted = _converted(program.run_decompositions())
        model = with_computed_constants(converted)
        name_values(model, source.shapes, source.output_name)
        onnx.checker.check_model(model, full_check=True)
    except KdkitError:
        raise
    except Exception as error:  # the exporter of torch raises errors of many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones have advice for developers of torch
            cause = cause.__cause__
        raise KdkitError(
            f"net {source.net.name!r} cannot be converted to ONNX: {type(cause).__name__}: {first_line(cause)}; "
            "torch.onnx may not support an operation of its forward; export it to pt2"
        ) from error
    source.shared["onnx"] = model
    return model


def _converted(program: torch.export.ExportedProgram) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # warnings of torch about its own code
        converted = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    assert converted is not None  # without a file, torch returns the program
    return converted.model_proto


def cpu_session(content: bytes, *, optimize: bool = True) -> Any:
    """Return a session of onnxruntime on one thread of the CPU. Raises KdkitError if it cannot run the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are not logged, because they are raised
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each kind of failure
        raise KdkitError(
            f"onnxruntime cannot run the network on a CPU: {first_line(error)}; it has few operators in float64 and "
            "bfloat16: convert the net to float32 in the recipe (module.float()), or export it to pt2"
        ) from error
