"""A batch of samples: what is moved to a device, sliced and passed to networks."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples and what is known of them.

    inputs: a tensor, or a (named) tuple or dict of tensors, each (batch, ...).
    labels: (batch,) int64 for multiclass, (batch, classes) float of 0 and 1 for multilabel.
    ids: (batch,) int64, unique per sample; None where the data cannot tell its samples apart.
    draw: which of its deterministic augmentations each sample is shown in; None where unknown.
    ids_on_cpu: the ids of a batch that was moved to a device, so that to look samples up need not wait for it.
    """

    inputs: Any
    labels: Tensor
    ids: Tensor | None = None
    draw: int | None = None
    ids_on_cpu: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`, copied without waiting where its memory is pinned."""
        if self.labels.device == device:
            return self
        ids = None if self.ids is None else self.ids.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return replace(self, inputs=moved(self.inputs, device), labels=labels, ids=ids, ids_on_cpu=self.ids)

    def rows(self, rows: Tensor) -> "Batch":
        """Return some of its samples, (samples,) int64 on the CPU."""
        here = rows.to(self.labels.device, non_blocking=True)
        return replace(
            self,
            inputs=_each(self.inputs, lambda tensor: tensor[here]),
            labels=self.labels[here],
            ids=None if self.ids is None else self.ids[here],
            ids_on_cpu=None if self.ids_on_cpu is None else self.ids_on_cpu[rows],
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory (called by torch's DataLoader); what is on a device stays there."""
        ids = None if self.ids is None else _pinned(self.ids)
        return replace(self, inputs=_each(self.inputs, _pinned), labels=_pinned(self.labels), ids=ids)

    def __len__(self) -> int:
        return self.labels.shape[0]


def as_targets(labels: Tensor) -> Tensor:
    """Return labels as losses take them: indicator columns as floats, all else as it is."""
    indicators = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return labels.float() if indicators else labels


def moved(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a (named) tuple, list or dict of tensors, on `device`."""
    return _each(value, lambda tensor: tensor.to(device, non_blocking=True))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_each(item, change) for item in value)
    return value
