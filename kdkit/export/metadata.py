"""The metadata in the file of an export: everything that a program without kdkit and torch needs to use it."""

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdkit.engine.predict import note_on_classes
from kdkit.engine.run_record import versions
from kdkit.engine.storage.run_folder import can_resume, read_record
from kdkit.export.gates import Reference
from kdkit.export.source import ExportSource
from kdkit.metrics.base import Metric
from kdkit.metrics.thresholds import BestF1
from kdkit.nets.net import described_inputs
from kdkit.nets.views import Inputs
from kdkit.nets.weights import find_weights
from kdkit.utils.modules import plain_state, stored_tensors

FORMAT = 1  # of the metadata; increased when a reading program could misread them
_ACTIVATIONS = {"multilabel": "sigmoid", "multiclass": "softmax", "regression": None}


def metadata_of(reference: Reference, weights: Path) -> dict[str, Any]:
    """Return the metadata of a network, as values for JSON. weights: its file, or the folder of its run."""
    source = reference.source
    data = source.data
    # of the tensors, because files of a run and a checkpoint with the same weights differ
    digest = hashlib.sha256()
    for key, value in sorted(plain_state(source.net.network).items()):
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        for tensor in stored_tensors(value.detach()):
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    trained_on = read_record(weights).get("data") if can_resume(weights) else None
    is_other = trained_on is not None and trained_on != data.fingerprint
    return {
        "format": FORMAT,
        "task": data.task,
        "classes": list(source.classes),
        "output": {"name": source.output_name, "activation": _ACTIVATIONS[data.task]},
        "thresholds": _thresholds(reference),
        "preparation": preparation_of(source),
        "scores": {"split": reference.split, "samples": len(reference.test), "metrics": reference.scores},
        "run": {
            "net": source.net.name,
            "weights_sha256": digest.hexdigest(),
            "data": data.fingerprint,
            **_origin(weights),
        },
        "versions": versions(),
        "notices": [
            *(str(notice) for notice in data.notices),
            *_undescribed_inputs(source),
            *(["scores are of other data or splits than those of the run, which may have trained on them"] * is_other),
            # for example, that a stage is not finished
            *(f"weights: {fact}" for fact in find_weights(weights, source.net.name, None).facts),
            *filter(None, [note_on_classes(source.net, data, reference.test)]),
        ],
    }


def inputs_of(source: ExportSource, shapes: Iterable[Sequence[int | str]]) -> list[dict[str, Any]]:
    """Return the name, the shape and the dtype of each input. shapes: in the order of the inputs."""
    return [
        {"name": name, "shape": list(shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, shape, tensor in zip(source.input_names, shapes, source.example, strict=True)
    ]


def preparation_of(source: ExportSource) -> dict[str, Any]:
    """Return how raw samples become inputs of the network, as described by the data and then by the view of the net.

    {} if the view may change the inputs, but does not describe how.
    """
    return {} if _undescribed_inputs(source) else dict(described_inputs(source.net, source.data.preparation))


def _undescribed_inputs(source: ExportSource) -> list[str]:
    """Return a notice if the data describes its inputs, but the view of the net may change these, and does not say."""
    view = source.net.view
    if not source.data.preparation or isinstance(view, Inputs) or getattr(view, "describe", None) is not None:
        return []
    return [
        f"the view {view!r} does not describe how it changes the inputs, so the preparation of inputs is not in the "
        "file; give the view a method describe(preparation), which returns that of the inputs of the network"
    ]


def _thresholds(reference: Reference) -> dict[str, Any] | None:
    """Return the thresholds, in logits, at which classes are predicted; None for a task without thresholds.

    They are the thresholds of the recipe's first metric that has any, otherwise those of the best F1.
    """
    source = reference.source
    if source.data.task != "multilabel" or reference.validation.per_position:
        return None
    fitted: list[Metric] = [metric for metric in reference.metrics if getattr(metric, "thresholds", None)]
    rule, metric = "best_f1", None
    if fitted:
        metric, chooser = fitted[0].name, getattr(fitted[0], "thresholds_by", None)
        rule = metric if chooser is None else chooser.name
        logits = fitted[0].thresholds  # type: ignore[attr-defined]  # tested above
    else:
        logits = BestF1().choose(reference.validation)
    by_class = dict(zip(reference.validation.classes, logits, strict=True))
    # -inf, for a class that is always predicted, becomes a number that JSON can represent
    chosen = [max(by_class.get(name, math.inf), -sys.float_info.max) for name in source.classes]
    return {
        "rule": rule,
        "metric": metric,
        "split": "validation",
        # JSON has no infinity: null stands for a class that is never predicted.
        "logits": [value if math.isfinite(value) else None for value in chosen],
        # beyond -700, exp would overflow
        "probabilities": [1 / (1 + math.exp(-max(x, -700.0))) if math.isfinite(x) else None for x in chosen],
    }


def _origin(weights: Path) -> dict[str, Any]:
    """Return the name and the record of the run, if there is one. A path is left out, because it may name a user."""
    origin: dict[str, Any] = {"folder": weights.resolve().name}
    if can_resume(weights):
        record = read_record(weights)
        keys = ("recipe", "recipe_sha256", "options", "seed", "precision")
        origin |= {**{key: record.get(key) for key in keys}, "trained_with": record.get("versions")}
    return origin
