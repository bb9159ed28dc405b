"""The `batch_transform` of the data, such as mixup, which changes the inputs and labels of a whole batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch, as_targets, map_tensors, nested_tensors
from kdkit.data.dataset import Data
from kdkit.data.label_check import DeferredLabelCheck, LabelCheck
from kdkit.data.samples import MISSING_LABEL
from kdkit.errors import DataError, KdkitError, first_line
from kdkit.utils.randomness import preserve_rng_state


@dataclass(frozen=True, slots=True)
class BatchTransform:
    """The `batch_transform` of the data.

    columns: the number of classes, for labels that may be soft; None for others. per_position: whether labels are
    classes of positions. label_check: checks the changed labels.
    """

    function: Callable[[Any, Tensor], Any]
    columns: int | None
    per_position: bool
    label_check: LabelCheck

    @classmethod
    def from_data(cls, data: Data) -> "BatchTransform | None":
        """Return the transform of the data, or None if it has none."""
        function = data.batch_transform
        if function is None:
            return None
        per_position = data.task == "multiclass" and data.position_dims > 0
        columns = None if data.task == "regression" or per_position else len(data.classes)
        check = LabelCheck(
            split="train",
            task=data.task,
            classes=tuple(data.classes),
            accepts_unknown=data.has_unknown,
            ignored=tuple(data.ignored_labels) if data.has_labels else (MISSING_LABEL,),
            source="batch_transform",
        )
        return cls(function, columns, per_position, check)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with changed inputs and labels, without sample ids.

        Raises DataError if the function fails, or does not return inputs and labels of the data's classes.
        """
        try:
            changed = self.function(batch.inputs, batch.labels)
        except (KdkitError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # user code may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            hint = ""
            if "type Byte" in reason and any(tensor.dtype is torch.uint8 for tensor in nested_tensors(batch.inputs)):
                hint = "; uint8 images cannot be mixed: add v2.ToDtype(torch.float32, scale=True) to their transforms"
            if "4 dims, but got 5" in reason:  # of MixUp and CutMix of torchvision
                hint = (
                    "; videos need tv_tensors.Video of torchvision: lambda videos, labels: mix(Video(videos), labels)"
                )
            raise DataError(f"batch_transform fails for a batch of {len(batch)} samples: {reason}{hint}") from error
        if not isinstance(changed, tuple | list) or len(changed) != 2 or not isinstance(changed[1], Tensor):
            raise DataError(f"batch_transform must return (inputs, labels), but returned a {type(changed).__name__}")
        inputs, labels = changed[0], as_targets(changed[1], per_position=self.per_position)
        if self.columns is not None and labels.ndim == 2 and labels.shape[1] != self.columns:
            raise DataError(
                f"batch_transform returns labels of shape {tuple(labels.shape)}, but there are {self.columns} classes; "
                f"pass it their number, such as num_classes={self.columns}"
            )
        # A changed sample may be a mixture of several, so it has no id.
        return replace(batch, inputs=inputs, labels=labels, ids=None, ids_on_cpu=None, draw=None)

    def apply_to(self, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
        """Yield each batch on the device and transformed. Raises DataError if its labels are then invalid."""
        check = DeferredLabelCheck(self.label_check)
        for batch in batches:
            moved = batch.to(device)
            changed = self(_copied(batch) if moved is batch else moved)
            check.add(changed.labels)
            yield changed
        check.finish()


def transformed(data: Data, batch: Batch) -> Batch:
    """Return a batch after the data's `batch_transform`, as it is trained on. Random states are restored."""
    transform = BatchTransform.from_data(data)
    if transform is None:
        return batch
    with preserve_rng_state(cuda=batch.labels.is_cuda):
        return transform(_copied(batch))


def _copied(batch: Batch) -> Batch:
    """Return a copy of a batch that may be changed in place: the dataset may yield its own tensors."""
    return replace(batch, inputs=map_tensors(batch.inputs, torch.clone), labels=batch.labels.clone())
