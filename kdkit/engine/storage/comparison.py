"""Compare two runs of the same recipe: weights, predictions, history and metrics, bit for bit."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.engine.storage.history import HISTORY
from kdkit.engine.storage.run_folder import METRICS, read_record
from kdkit.engine.storage.stage_folder import SUMMARY
from kdkit.utils.files import read_file
from kdkit.utils.reprs import describe_array
from kdkit.utils.sealed import explain_unreadable_file, read_sealed_json, read_tensors

_CONDITIONS = (
    "seed",
    "options",
    "device",
    "threads",
    "processes",
    "precision",
    "deterministic",
    "versions",
    "plugin_code",
    "platform",
)
_RESULTS = ("*/weights*.safetensors", "*/predictions-*.safetensors", f"*/{HISTORY}", METRICS)
_MEASURED = ("seconds", "peak_memory_bytes")  # measurements of an epoch, which differ in each run


def differences(first: Path, second: Path) -> list[str]:
    """Return the differences between the results of two runs; empty if they are equal bit for bit.

    Raises RunFolderError if a file cannot be read.
    """
    names = [
        sorted(str(file.relative_to(folder)) for pattern in _RESULTS for file in folder.glob(pattern))
        for folder in (first, second)
    ]
    lines = [f"only one of them has {name}" for name in sorted(set(names[0]) ^ set(names[1]))]
    for name in sorted(set(names[0]) & set(names[1])):
        contents = [_content(folder / name) for folder in (first, second)]
        difference = _difference(*contents)
        if difference is not None:
            lines.append(f"{name}: {difference}")
    return lines


def different_conditions(first: Path, second: Path) -> list[str]:
    """Return the differences between the conditions of two runs. The last bits of results may depend on them."""
    records = [{name: read_record(folder).get(name) for name in _CONDITIONS} for folder in (first, second)]
    for record, folder in zip(records, (first, second), strict=True):
        for file in sorted(folder.glob(f"*/{SUMMARY}")):
            entries = _content(file).get("teacher_cache")
            record[f"cached teacher outputs of {file.parent.name}"] = entries
    names = dict.fromkeys([*records[0], *records[1]])
    return [
        f"{name}: {records[0].get(name)} and {records[1].get(name)}"
        for name in names
        if records[0].get(name) != records[1].get(name)
    ]


def _content(file: Path) -> Any:
    """Return the tensors by name, the epochs of a history, or the value in a JSON file."""
    with explain_unreadable_file(file, "run the recipe again"):
        if file.suffix == ".safetensors":
            return read_tensors(file)[0]
        if file.suffix == ".json":
            return read_sealed_json(file)
        epochs = [json.loads(line) for line in read_file(file).splitlines()]
        return [{key: value for key, value in epoch.items() if key not in _MEASURED} for epoch in epochs]


def _difference(first: Any, second: Any, path: str = "") -> str | None:
    """Return the first difference between two values, or None."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return f"{path} is {describe_array(first)} and {describe_array(second)}"
        if torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8)):
            return None
        return f"{path} differs by up to {(first.double() - second.double()).abs().max().item():.3g}"
    pairs: list[tuple[Any, Any, Any]]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(key, first[key], second[key]) for key in sorted(first)]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = list(zip(range(len(first)), first, second, strict=True))
    else:
        return None if first == second else f"{path or 'it'} is {first!r:.60} and {second!r:.60}"
    parts = (_difference(left, right, f"{path}.{key}" if path else str(key)) for key, left, right in pairs)
    return next((difference for difference in parts if difference is not None), None)
