"""A batch of samples, which is moved to a device, sliced and passed to networks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with their labels and ids.

    inputs: a tensor, or a (named) tuple, list or dict of tensors, each (batch, ...).
    labels: (batch,) int64 for multiclass, (batch, classes) float of 0 and 1 for multilabel.
    ids: (batch,) int64, unique per sample; None if the data has no ids.
    draw: the index of the deterministic augmentation that the samples are shown in; None if unknown.
    ids_on_cpu: the ids before the batch was moved to a device, so that looking samples up does not wait for the device.
    """

    inputs: Any
    labels: Tensor
    ids: Tensor | None = None
    draw: int | None = None
    ids_on_cpu: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; the copy is asynchronous if the batch is in pinned memory."""
        if self.labels.device == device:  # all tensors of a batch are on one device
            return self
        ids = None if self.ids is None else self.ids.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        inputs = map_tensors(self.inputs, lambda tensor: tensor.to(device, non_blocking=True))
        ids_on_cpu = self.ids if self.ids_on_cpu is None else self.ids_on_cpu
        return replace(self, inputs=inputs, labels=labels, ids=ids, ids_on_cpu=ids_on_cpu)

    def rows(self, rows: Tensor) -> "Batch":
        """Return the samples in these rows, (samples,) int64 on the CPU."""
        index = rows.to(self.labels.device, non_blocking=True)
        return replace(
            self,
            inputs=map_tensors(self.inputs, lambda tensor: tensor[index]),
            labels=self.labels[index],
            ids=None if self.ids is None else self.ids[index],
            ids_on_cpu=None if self.ids_on_cpu is None else self.ids_on_cpu[rows],
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory; torch's DataLoader calls this. Tensors on a device stay there."""
        ids = None if self.ids is None else _pinned(self.ids)
        return replace(self, inputs=map_tensors(self.inputs, _pinned), labels=_pinned(self.labels), ids=ids)

    def __len__(self) -> int:
        return self.labels.shape[0]


def as_targets(labels: Tensor) -> Tensor:
    """Return labels in the form that losses take: (batch, classes) indicators as floats, other labels unchanged."""
    # torch's BCEWithLogitsLoss needs floats, but multi-hot labels often come as integers or bools.
    is_indicator = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return labels.float() if is_indicator else labels


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a tensor, or a (named) tuple, list or dict of tensors, with `change` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple takes its items as arguments
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def nested_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, tuple, list or dict, nested, in the order in which `map_tensors` changes them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from nested_tensors(item)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
