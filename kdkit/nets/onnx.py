"""Run an ONNX model as a teacher."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import RecipeError, first_line
from kdkit.utils.paths import user_path


class OnnxModel:
    """An ONNX model, run by onnxruntime: `Net("teacher", OnnxModel("teacher.onnx"))`.

    Positional arguments are its inputs in order, keyword arguments its inputs by name. It returns the output, or a dict
    of outputs by name if there are several; `Net(..., element="logits")` selects one. Outputs are on the device of the
    first input, without gradients.

    path: the file; the weights may be in other files next to it. providers: the onnxruntime execution providers, such
    as ["CUDAExecutionProvider"]; the CPU if None.
    Raises RecipeError if onnxruntime is missing, has none of the providers, or cannot load the file, or if the model
    has a fixed batch size.
    """

    def __init__(self, path: str | Path, *, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime  # late: an optional dependency
        except ImportError as error:
            raise RecipeError(f"{path} needs onnxruntime: pip install 'kdkit[onnx]'") from error
        self.path = user_path(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # otherwise each of several jobs would use all cores
        options.log_severity_level = 4  # does not print errors, which are also raised
        try:
            self._session: Any = onnxruntime.InferenceSession(
                self.path, options, providers=list(providers or ["CPUExecutionProvider"])
            )
        except Exception as error:  # onnxruntime has an exception class for each kind of failure
            raise RecipeError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
        # onnxruntime silently falls back to the CPU if it cannot use a GPU.
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers or ()]
        if names and not {*names} & {*self._session.get_providers()}:
            raise RecipeError(
                f"onnxruntime cannot use {', '.join(names)} for {path}; install the package for it, such as "
                "onnxruntime-gpu, or add 'CPUExecutionProvider' to the list"
            )
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]
        for node in self._session.get_inputs():
            if node.shape and isinstance(node.shape[0], int):  # a dynamic size is a str
                raise RecipeError(
                    f"{path} takes batches of exactly {node.shape[0]} samples for {node.name!r}; export it with a "
                    "dynamic first dimension: torch.onnx.export(..., dynamic_shapes=...)"
                )

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the output for a batch, (batch, ...), or a dict of outputs by name.

        Raises RecipeError if the arguments do not match the model's inputs in number, name, dtype or shape.
        """
        inputs = {**dict(zip(self._inputs, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(self._inputs) or {*inputs} != {*self._inputs}:
            passed = ", ".join(filter(None, [f"{len(args)} by position" if args else "", *map(repr, kwargs)]))
            raise RecipeError(
                f"{self.path} takes {', '.join(map(repr, self._inputs))}; got {passed or 'none'}; select them in the "
                "view of its Net"
            )
        device = next(iter(inputs.values())).device
        try:
            arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
            outputs = [torch.from_numpy(array).to(device) for array in self._session.run(self._outputs, arrays)]
        except Exception as error:  # onnxruntime has an exception class for each kind of failure
            expected = ", ".join(f"{node.name} {node.type} {node.shape}" for node in self._session.get_inputs())
            got = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in inputs.items())
            raise RecipeError(
                f"{self.path} takes {expected}, but fails for {got}: {first_line(error)}; convert them in the view of "
                "its Net"
            ) from error
        return outputs[0] if len(outputs) == 1 else dict(zip(self._outputs, outputs, strict=True))

    @cached_property
    def version(self) -> str:
        """A digest of the file, and of the files next to it that it names, such as files of weights."""
        content = self.path.read_bytes()
        digest = hashlib.sha256(content)
        for file in sorted(self.path.parent.iterdir()):
            if file != self.path and file.is_file() and file.name.encode() in content:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]
