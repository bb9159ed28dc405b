"""The stored predictions of a network: their file, its content, and the check that a file that is read is valid."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.engine.storage.run_files import FORMAT
from kdkit.errors import RunFolderError
from kdkit.metrics.base import Predictions
from kdkit.utils.files import Content, exists
from kdkit.utils.sealed import explain_unreadable_file, read_tensors, tensor_parts

REDUCED = "reduced."  # prefix of the name of a metric, see `Predictions.reduced`
_ARRAYS = {"labels": "biuf", "outputs": "biuf", "ids": "iu", "groups": "iu"}  # names, and kinds of dtypes


def predictions_file(stage: Path, net: str, split: str) -> Path:
    """Return the file of the predictions of a network for a split. stage: the folder of a stage."""
    return stage / f"predictions-{net}-{split}.safetensors"


def predictions_parts(predictions: Predictions) -> list[Content]:
    """Return the content of a file: labels, outputs and classes, and ids and groups if the data has them."""
    arrays = {"labels": predictions.labels, "outputs": predictions.outputs}
    if predictions.ids is not None:
        arrays["ids"] = predictions.ids
    if predictions.groups is not None:
        arrays["groups"] = predictions.groups
    arrays |= {REDUCED + name: values for name, values in predictions.reduced.items()}
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
    facts = {"format": FORMAT, "classes": predictions.classes, "per_position": predictions.per_position}
    return tensor_parts(tensors, facts)


def read_predictions(path: Path) -> Predictions:
    """Return the predictions in a file. Raises RunFolderError with the file and the reason if they are invalid.

    Labels beyond the classes, outputs that are not finite, and shapes that do not match are invalid.
    """
    advice = "restore it from a copy, or run the recipe again"
    with explain_unreadable_file(path, advice):
        if not exists(path):
            raise RunFolderError(f"{path} is missing; {advice}")
        predictions = _read(path)
        problem = _problem(predictions)
        if problem is not None:
            raise ValueError(problem)
        return predictions


def _read(path: Path) -> Predictions:
    tensors, facts = read_tensors(path)
    for name in ("labels", "outputs"):
        if name not in tensors:
            raise ValueError(f"it has no {name!r}")
    for name in sorted(tensors):
        if name not in _ARRAYS and not name.startswith(REDUCED):
            raise ValueError(f"predictions have no {name[:40]!r}")
    arrays: dict[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in _ARRAYS.get(name, "biuf") or array.ndim == 0:
            raise ValueError(f"{name} are {array.dtype} of shape {array.shape}")
    classes = facts.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("the classes are not a list of names")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have the same name")
    reduced = {name.removeprefix(REDUCED): arrays.pop(name) for name in tensors if name.startswith(REDUCED)}
    return Predictions(classes=tuple(classes), per_position=bool(facts.get("per_position")), reduced=reduced, **arrays)


def _problem(predictions: Predictions) -> str | None:
    """Return why predictions cannot be those of a run; None if they can."""
    labels, outputs, count = predictions.labels, predictions.outputs, len(predictions.classes)
    shapes = f"labels {labels.shape} and outputs {outputs.shape}"
    for name, array in (("ids", predictions.ids), ("groups", predictions.groups)):
        if array is not None and array.ndim != 1:
            return f"{name} have the shape {array.shape}, but there must be one per sample"
    if not len(outputs):
        return "it has no samples"
    if predictions.per_position:
        if labels.shape != outputs.shape or labels.ndim < 2:
            return f"it has decisions {outputs.shape} for labels per position {labels.shape}"
        if labels.dtype.kind not in "iu" or outputs.dtype.kind not in "biu":
            return f"labels per position are {labels.dtype} and decisions {outputs.dtype}, but must be whole numbers"
        is_multilabel = outputs.dtype.kind == "b"
        if is_multilabel and labels.shape[1] != count:
            return f"it has labels {labels.shape} for {count} classes"
        most = 1 if is_multilabel else count - 1
        return _beyond(labels, -1, most) or _beyond(outputs, 0, most, "a decision")
    if outputs.dtype.kind == "f" and not np.isfinite(outputs).all():
        sample = int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(1).argmax())
        return f"the outputs of sample {sample} are not finite numbers"
    if outputs.dtype.kind != "f":
        return f"outputs are {outputs.dtype}, but logits must be floats"
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        return "a label is infinite"
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        if outputs.shape != (len(labels), count):
            return f"it has {shapes} for {count} classes"
        return _beyond(labels, 0, count - 1)
    # Numbers may have any shape, such as packed boxes, or similarities of pairs, whose outputs are embeddings.
    if labels.dtype.kind == "f":
        return None
    # Labels by class. A single one per sample may lack its dimension.
    if labels.size != outputs.size or (labels.ndim > 1 and labels.shape[1] != count):
        return f"it has {shapes} for {count} classes"
    return _beyond(labels, 0, 1)


def _beyond(values: NDArray[Any], least: int, most: int, name: str = "a label") -> str | None:
    """Return a description of a value outside of the range, or None."""
    if values.size == 0 or (int(values.min()) >= least and int(values.max()) <= most):
        return None
    is_beyond = (values < least) | (values > most)
    sample = int(is_beyond.reshape(len(values), -1).any(1).argmax())
    value = values[is_beyond].flat[0]
    return f"{name} of sample {sample} is {value}, but must be from {least} to {most}"


def require_same_kind(path: Path, validation: Predictions, test: Predictions) -> None:
    """Raise RunFolderError, with the path of `test`, if two splits have different classes or kinds of labels."""
    for name, first, second in (
        ("classes", validation.classes, test.classes),
        ("kind of labels", validation.labels.ndim, test.labels.ndim),
        ("kind of labels", validation.per_position, test.per_position),
    ):
        if first != second:
            raise RunFolderError(f"{path} does not have the {name} of the validation split; run the recipe again")
