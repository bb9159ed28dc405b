"""Open a network with its metadata: an exported file, or a net of a run. ONNX files are opened without torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, KdkitError
from kdkit.errors import first_line
from kdkit.utils.files import exists, to_json
from kdkit_ecg.person import FEATURES
from kdkit_ecg.records.description import read_description
from kdkit_ecg.records.preparation import Preparation

METADATA, FORMAT = "kdkit", 1  # the entry of a file, see docs/export.md, and the version of its keys
_ACTIVATIONS = {"multilabel": "sigmoid", "multiclass": "softmax", "regression": None}

# {input: (batch, ...)} -> outputs (batch, classes)
Run = Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A network that runs, and the parts of its metadata that a prediction needs.

    classes: names of the outputs. task: "multilabel", "multiclass" if exactly one of them is true for a record, or
    "regression" if they are numbers.
    thresholds, logits: the lowest probability and logit for which a class is predicted, infinite if never; () unless
    multilabel. inputs: names in the order of the file. signal, person: two of these names; the second may be absent.
    length: samples of a window. features: of the person's vector; HIDDEN for those that are 0.
    """

    metadata: Mapping[str, Any]
    run: Run
    classes: tuple[str, ...]
    task: str
    thresholds: tuple[float, ...]
    logits: tuple[float, ...]
    inputs: tuple[str, ...]
    signal: str
    person: str | None
    preparation: Preparation
    length: int
    features: tuple[str, ...]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], run: Run, name: str) -> "Model":
        """Return the model with this metadata. name: for errors. Raises DataError if it does not take ECGs."""
        try:
            if metadata.get("format") != FORMAT:
                raise DataError(f"expected metadata of format {FORMAT}, got {metadata.get('format')!r}")
            task, activation = metadata["task"], metadata["output"]["activation"]
            if task not in _ACTIVATIONS or _ACTIVATIONS[task] != activation:
                raise DataError(
                    f"expected a network for {', '.join(_ACTIVATIONS)} with its activation, got {task!r} with "
                    f"{activation!r}"
                )
            preparation, length, features = read_description(metadata["preparation"])
            signal, person = _input_names(metadata["inputs"], len(preparation.leads))
            classes = tuple(map(str, metadata["classes"]))
            chosen = metadata["thresholds"] if task == "multilabel" else {"probabilities": (), "logits": ()}
            # null means that a class is never predicted; no probability reaches infinity.
            thresholds, logits = (
                tuple(np.inf if value is None else float(value) for value in chosen[key])
                for key in ("probabilities", "logits")
            )
            if task == "multilabel" and not len(thresholds) == len(logits) == len(classes):
                raise DataError(f"expected a threshold for each of {len(classes)} classes, got {len(thresholds)}")
        except DataError as error:
            raise DataError(f"{name} cannot be used: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{name} cannot be used: its metadata are damaged ({type(error).__name__}: {first_line(error)}); "
                "export it again"
            ) from error
        return cls(
            metadata=metadata,
            run=run,
            classes=classes,
            task=task,
            thresholds=thresholds,
            logits=logits,
            inputs=tuple(item["name"] for item in metadata["inputs"]),
            signal=signal,
            person=person,
            preparation=preparation,
            length=length,
            features=features,
        )

    def probabilities(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probabilities of outputs, both (windows, classes)."""
        if self.task == "multiclass":
            # The largest output becomes 0, so that no exponential overflows.
            shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            softmax: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
            return softmax
        return 1 / (1 + np.exp(-np.clip(outputs, -700, 700)))  # beyond, exp would overflow


def open_model(path: Path) -> Model:
    """Open an exported file: .onnx by onnxruntime, .pt2 by torch, on one thread of the CPU.

    Raises DataError if the file cannot be read or has no metadata of an ECG network, KdkitError without onnxruntime.
    """
    openers: dict[str, Callable[[Path], tuple[Mapping[str, Any], Run]]] = {".onnx": _open_onnx, ".pt2": _open_pt2}
    expected = f"expected a file of kdkit export ({' or '.join(openers)}), or the folder of a run"
    if not exists(path):
        raise DataError(f"{path} does not exist; {expected}")
    if not path.is_file() or path.suffix.lower() not in openers:
        raise DataError(f"{path} is not an exported network; {expected}")
    try:
        metadata, run = openers[path.suffix.lower()](path)
    except KdkitError:
        raise
    except Exception as error:  # onnxruntime and torch raise many kinds of exceptions for a damaged file
        raise DataError(f"{path} cannot be opened: {first_line(error)}; export it again") from error
    return Model.from_metadata(metadata, run, str(path))


def model_of_run(recipe: Any, weights: Path, net: str | None) -> Model:
    """Return a net of a recipe with trained weights; see `kdkit.export.export.open_net`."""
    from kdkit.export.export import open_net  # imports torch

    run, metadata = open_net(recipe, weights, net=net)
    # Through JSON, so that the metadata are the same as in a file.
    return Model.from_metadata(json.loads(to_json(metadata)), run, str(weights))


def _open_onnx(path: Path) -> tuple[Mapping[str, Any], Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise KdkitError(f"{path} needs onnxruntime: pip install 'kdkit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    # Records are divided among processes; threads within a window of 16 s would help less.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # not even errors, because they are also raised
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name

    def run(inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        (outputs,) = session.run([output], dict(inputs))
        return np.asarray(outputs, dtype=np.float32)

    return _parsed(session.get_modelmeta().custom_metadata_map.get(METADATA), path), run


def _open_pt2(path: Path) -> tuple[Mapping[str, Any], Run]:
    from kdkit.export.pt2 import Pt2Exporter, read_metadata

    content = path.read_bytes()
    try:
        metadata = read_metadata(content)
    except Exception as error:  # its message would point to torch's warnings
        raise DataError(
            f"{path} cannot be opened: it is damaged, or no archive that this version of torch reads; export it again"
        ) from error
    return _parsed(json.dumps(metadata), path), Pt2Exporter().open(content)


def _parsed(text: str | None, path: Path) -> Mapping[str, Any]:
    metadata = json.loads(text or "{}")
    if not metadata or not isinstance(metadata, dict):
        raise DataError(f"{path} has no metadata of kdkit; expected a file that kdkit export wrote")
    return metadata


def _input_names(inputs: Any, leads: int) -> tuple[str, str | None]:
    """Return the names of the signal, (batch, leads, time), and of the vector of age and sex, by their shapes."""
    signals = [item["name"] for item in inputs if len(item["shape"]) == 3 and item["shape"][1] == leads]
    persons = [
        item["name"]
        for item in inputs
        # A size with a name is any size: a network that does not use the vector takes any number of features.
        if len(item["shape"]) == 2 and (item["shape"][1] == len(FEATURES) or isinstance(item["shape"][1], str))
    ]
    if len(signals) != 1 or len(persons) > 1 or len(inputs) != len(signals) + len(persons):
        shapes = ", ".join(f"{item['name']} {item['shape']}" for item in inputs)
        raise DataError(
            f"expected the inputs signal (batch, {leads}, time) and person (batch, {len(FEATURES)}), got {shapes}"
        )
    return signals[0], persons[0] if persons else None
