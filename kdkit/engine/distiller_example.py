"""The example of a Distiller, and what it shows of the data that the Distiller will be called with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch, as_targets
from kdkit.data.dataset import Task
from kdkit.data.label_forms import SplitLabels, position_dims, require_form
from kdkit.data.labels import ignored_labels
from kdkit.data.samples import missing_labels
from kdkit.engine.failures.network_errors import describe_failure
from kdkit.errors import CheckError, KdkitError, RecipeError
from kdkit.losses.base import BuildContext
from kdkit.nets.net import Net, as_class_names, output_shape


class ExampleData:
    """The example of a Distiller: its batch on the device of the student, and what it shows of the data.

    per_position: whether labels are classes of positions.
    """

    def __init__(self, student: Net[Any], example: object, task: Task, samples: int | None) -> None:
        self.student, self.task, self.samples = student, task, samples
        inputs, labels, weights = _parts_of(example)
        self.has_labels = labels is not None
        if labels is None:
            labels = missing_labels(inputs)
        # Integers of two dimensions or more are classes of positions, unless they are 0 and 1 by class.
        forms = [SplitLabels("example", labels, is_complete=False)]
        self._position_dims = position_dims(forms, task)
        self.per_position = task == "multiclass" and self._position_dims > 0
        if self.per_position:
            require_form(forms, task)
        device = next((parameter.device for parameter in student.network.parameters()), torch.device("cpu"))
        ids = torch.arange(len(labels)) if samples is not None else None
        targets = as_targets(labels, per_position=self.per_position)
        self.batch = Batch(inputs, targets, ids, weights=weights).to(device)

    def context(self, classes: Sequence[str] | int | None, ignore_index: int | None) -> BuildContext:
        """Return the properties of the data. The arguments are those of the Distiller."""
        dims = self._position_dims
        if classes is not None:
            classes = as_class_names(classes, "a Distiller")
        if classes is None or not self.has_labels:
            try:
                shape = output_shape(self.student, self.batch)
            except KdkitError:
                raise
            except Exception as error:  # a network may raise anything
                raise CheckError([describe_failure(self.student, self.batch, error)]) from error
            classes = [str(index) for index in range(shape[1])] if classes is None else classes
            # Without labels, the outputs show whether there are positions; all of them are compared.
            dims = dims if self.has_labels or self.task == "regression" else len(shape) - 2
        return BuildContext(
            classes=tuple(classes),
            task=self.task,
            samples=self.samples,
            ids=self.samples is not None,
            has_labels=self.has_labels,
            has_weights=self.batch.weights is not None,
            position_dims=dims,
            ignored_labels=ignored_labels(ignore_index, len(classes), self.task, has_positions=self.per_position),
        )


def _parts_of(example: object) -> tuple[Any, Tensor | None, Tensor | None]:
    """Return the inputs, the labels and the weights of an example. Raises RecipeError if it has another form."""
    parts: Sequence[Any] = example if isinstance(example, tuple | list) else [example]
    is_pair = len(parts) in (2, 3) and isinstance(parts[1], Tensor | None)
    if not is_pair or not all(isinstance(part, Tensor) for part in parts[2:]):
        got = ", ".join(type(part).__name__ for part in parts)
        raise RecipeError(
            "example must be a pair (inputs, labels) of a batch; labels are a tensor, or None if no term uses them, as "
            "if a loop adds its own loss on `outputs`; a third element may have the weights of the samples; got "
            f"{got}"
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None
