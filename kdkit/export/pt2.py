"""Export to PT2, the archive of torch.export, which torch runs, compiles and lowers to other formats."""

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit.export.base import Arrays, Exported, Exporter, Model, quiet_packages
from kdkit.export.source import ExportSource
from kdkit.utils.files import to_json
from kdkit.utils.modules import stored_tensors

METADATA = "kdkit.json"  # the name of the file of metadata in the archive


class Pt2Exporter(Exporter):
    """A program of torch.export with dynamic sizes, for torch.export.load, AOTInductor and ExecuTorch."""

    suffix = ".pt2"

    def require(self) -> None:
        """Nothing but torch is needed."""

    def export(self, source: ExportSource) -> Exported:
        """Return the program."""
        return Exported(content=_saved(source.program, {}))

    def with_metadata(self, content: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Return the archive with metadata as the file kdkit.json in it."""
        return _saved(_loaded(content), {METADATA: to_json(metadata)})

    def open(self, content: bytes) -> Model:
        """Return the program for torch, in eval mode as it was traced."""
        module = _loaded(content).module()

        def model(inputs: Arrays) -> NDArray[np.floating[Any]]:
            with torch.no_grad():
                outputs: Tensor = module(*(torch.from_numpy(array) for array in inputs.values()))
            return (outputs if outputs.dtype == torch.float64 else outputs.float()).numpy()

        return model

    def peak_activation_bytes(self, content: bytes, inputs: Arrays) -> int | None:
        """Return the peak memory of all values if the operations run in their order."""
        return _Peak(_loaded(content).module()).measure(tuple(map(torch.from_numpy, inputs.values())))


def read_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata in an archive; empty if it has no metadata of kdkit."""
    files = {METADATA: ""}
    _loaded(content, files)
    metadata: dict[str, Any] = json.loads(files[METADATA] or "{}")
    return metadata


def _loaded(content: bytes, files: dict[str, str] | None = None) -> torch.export.ExportedProgram:
    """Return the program of an archive. files: names of files in it, which are set to their content."""
    with quiet_packages():  # torch logs a traceback for a damaged archive before it raises
        return torch.export.load(io.BytesIO(content), extra_files=files)


def _saved(program: torch.export.ExportedProgram, files: dict[str, str]) -> bytes:
    # An archive stores the inputs of the trace, which are samples of the data, perhaps of patients.
    program.example_inputs = None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        torch.export.save(program, buffer, extra_files=files)
    return buffer.getvalue()


class _Peak(torch.fx.Interpreter):
    """Runs a graph and measures the storage of all values that are alive, without weights."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.weights = {*_storages(module.state_dict().values())}
        self.peak = 0

    def measure(self, inputs: tuple[Tensor, ...]) -> int:
        """Return the largest number of bytes."""
        with torch.no_grad():
            self.run(*inputs)
        return self.peak

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run a node. Afterwards, the interpreter drops the values that no later node takes."""
        value = super().run_node(n)  # views have no memory of their own
        storages = _storages((*self.env.values(), value))
        self.peak = max(self.peak, sum(size for pointer, size in storages.items() if pointer not in self.weights))
        return value


def _storages(values: Iterable[Any]) -> dict[int, int]:
    """Return the bytes of each storage of the tensors among values, by address. Views share that of their base."""
    tensors = [stored for value in values if isinstance(value, Tensor) for stored in stored_tensors(value)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
