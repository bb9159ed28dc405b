"""Export to the runtimes of phones and small boards: ExecuTorch and LiteRT, for one sample of a fixed size."""

import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.errors import KdkitError, first_line
from kdkit.export.base import Arrays, Exported, Exporter, Model, require_packages
from kdkit.export.source import ExportSource
from kdkit.utils.files import to_json
from kdkit.utils.modules import eval_mode

METADATA = "kdkit"  # the name of a method (ExecuTorch) or of an entry of metadata (LiteRT)


class EdgeExporter(Exporter):
    """Base class of formats whose files take one sample of a fixed size, so that their memory is planned.

    A subclass implements `lower`, which returns the content of a file, and `open_one`.
    """

    dynamic = False

    def export(self, source: ExportSource) -> Exported:
        """Return the network for inputs of the size of a validation sample."""
        inputs = tuple(tensor[:1].clone() for tensor in source.example)
        try:
            # LiteRT prints its progress.
            with eval_mode(source.module), torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
                warnings.simplefilter("ignore")  # warnings of the packages about their own code
                content = self.lower(source.module, inputs)
        except Exception as error:  # these packages raise errors of any kind
            raise KdkitError(
                f"net {source.net.name!r} cannot be lowered to {self.suffix}: {type(error).__name__}: "
                f"{first_line(error)}; the runtime may not support an operation of its forward"
            ) from error
        return Exported(content=content)

    @abstractmethod
    def lower(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
        """Return the content of a file that computes what a module does for inputs of these sizes."""

    @abstractmethod
    def open_one(self, content: bytes) -> Model:
        """Return a function that runs the content of a file for one sample."""

    def open(self, content: bytes) -> Model:
        """Return a function that runs the content of a file sample by sample."""
        run_sample = self.open_one(content)

        def model(inputs: Arrays) -> NDArray[np.float32]:
            count = len(next(iter(inputs.values())))
            rows = [run_sample({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(count)]
            return np.concatenate(rows).astype(np.float32)

        return model


class ExecutorchExporter(EdgeExporter):
    """ExecuTorch in float32, whose layers run on XNNPACK; its method "kdkit" returns the metadata as JSON."""

    suffix = ".pte"

    def require(self) -> None:
        """Raise PluginError if executorch is missing."""
        require_packages("executorch", "executorch", "executorch.exir", "executorch.runtime")

    def lower(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
        """Return the program. Metadata is added when it is lowered again."""
        # Kept, because constant methods are added while a program is lowered.
        self._program = torch.export.export(module, inputs, strict=False)
        return self._lowered({})

    def with_metadata(self, content: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Return the program of the last export with metadata."""
        return self._lowered({METADATA: to_json(metadata)})

    def open_one(self, content: bytes) -> Model:
        """Return the program in the runtime."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() > 1:  # a reset is logged
            portable_lib._unsafe_reset_threadpool(1)  # like the network, whose times are compared with its own
        method = Runtime.get().load_program(content).load_method("forward")

        def model(inputs: Arrays) -> NDArray[np.float32]:
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values()]
            # a copy, because the next call writes into the same memory
            outputs: NDArray[np.float32] = method.execute(tensors)[0].clone().numpy()
            return outputs

        return model

    def _lowered(self, methods: dict[str, str]) -> bytes:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # warnings of the package about its own code
            edge = to_edge_transform_and_lower(
                self._program, partitioner=[XnnpackPartitioner()], constant_methods=methods or None
            )
            return bytes(edge.to_executorch().buffer)


class LitertExporter(EdgeExporter):
    """LiteRT (TensorFlow Lite) in float32; the entry "kdkit" of its metadata is a JSON text."""

    suffix = ".tflite"

    def require(self) -> None:
        """Raise PluginError if litert-torch (the converter) or ai-edge-litert (the runtime) is missing."""
        require_packages("litert", "litert", "litert_torch", "ai_edge_litert.interpreter")

    def lower(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
        """Return the model."""
        import litert_torch

        with tempfile.TemporaryDirectory(prefix="kdkit-") as folder:
            path = Path(folder, "model.tflite")
            litert_torch.convert(module, inputs).export(str(path))
            return path.read_bytes()

    def with_metadata(self, content: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Return the model with metadata."""
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(to_json(metadata).encode(), dtype=np.uint8)
        entry.name, entry.buffer = METADATA, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
        # The whole model is packed again, because offsets in a flatbuffer cannot be shifted.
        builder = flatbuffers.Builder(len(content))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def open_one(self, content: bytes) -> Model:
        """Return the interpreter on one thread."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        # Their names have the numbers of the arguments: serving_default_args_0:0.
        numbers = {int(item["name"].split(":")[0].split("_")[-1]): item for item in interpreter.get_input_details()}
        indices = [item["index"] for _, item in sorted(numbers.items())]
        output = interpreter.get_output_details()[0]["index"]

        def model(inputs: Arrays) -> NDArray[np.float32]:
            for index, array in zip(indices, inputs.values(), strict=True):
                interpreter.set_tensor(index, np.ascontiguousarray(array))
            interpreter.invoke()
            outputs: NDArray[np.float32] = interpreter.get_tensor(output)
            return outputs

        return model
