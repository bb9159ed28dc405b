"""The inputs of a term's loss, and the selection of their rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from kdkit.data.batch import map_tensors
from kdkit.losses.sides import TensorOrTuple, map_side


class TermInputs(NamedTuple):
    """Everything that the loss of a term may be called with. target: None if the labels are the target.

    teacher_outputs: the output of every matched teacher. weights: of the samples, (batch,), if they have any.
    batch_inputs: the inputs of the batch, for a loss that takes them. are_positions: whether rows are positions instead
    of samples; `batch_inputs` then stay those of the whole batch.
    share: the fraction of the batch's samples that have a teacher output; only these are in the inputs.
    """

    student: TensorOrTuple
    target: TensorOrTuple | None
    labels: Tensor
    ids: Tensor | None
    teacher_outputs: tuple[Tensor, ...]
    weights: Tensor | None = None
    batch_inputs: Any = None
    are_positions: bool = False
    share: float = 1.0

    def target_or_labels(self) -> TensorOrTuple:
        """Return the second argument of the loss."""
        return self.labels if self.target is None else self.target

    def rows(self, rows: Tensor) -> "TermInputs":
        """Return the inputs of these rows, (rows,) int64. With a mask, each selection would wait for the device."""

        def select(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows)

        selected = self._replace(
            labels=select(self.labels),
            ids=None if self.ids is None else select(self.ids),
            weights=None if self.weights is None else select(self.weights),
            batch_inputs=self.batch_inputs if self.are_positions else map_tensors(self.batch_inputs, select),
        )
        return selected.map_sides(select)

    def map_sides(self, change: Callable[[Tensor], Tensor]) -> "TermInputs":
        """Return the inputs with `change` applied to the student, the target and the teacher outputs."""
        return self._replace(
            student=map_side(change, self.student),
            target=None if self.target is None else map_side(change, self.target),
            teacher_outputs=tuple(map(change, self.teacher_outputs)),
        )
