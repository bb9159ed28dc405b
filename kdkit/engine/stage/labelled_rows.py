"""Turn the inputs of a term into rows, one per position or sample with a label."""

from dataclasses import dataclass

from kdkit.data.dataset import Task
from kdkit.data.labels import is_ignored
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.errors import RecipeError
from kdkit.losses.positions import as_rows
from kdkit.losses.sides import as_tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """Selects the rows of a term that have a label.

    position_dims: see `Data`. If it is above 0, both sides are (batch, classes, *positions), and each position becomes
    a row. ignored: class indices that stand for no label; their rows are left out. uses_labels: whether the loss takes
    the labels, which must then have the positions of the outputs.
    """

    position_dims: int
    ignored: tuple[int, ...]
    task: Task
    uses_labels: bool

    def __call__(self, inputs: TermInputs) -> TermInputs:
        """Return the inputs as rows. Raises RecipeError if the sides and the labels have different positions."""
        if self.position_dims:
            self._require_same_positions(inputs)
            labels, weights = inputs.labels, inputs.weights
            # In a Distiller without labels, there is one placeholder per sample.
            labels = labels.flatten() if self.task == "multiclass" or labels.ndim == 1 else as_rows(labels)
            positions = as_tuple(inputs.student)[0].shape[2:].numel()
            inputs = inputs.map_sides(as_rows)
            if weights is not None:  # each position has the weight of its sample
                weights = weights.repeat_interleave(positions)
            # An id belongs to a sample, not to a position.
            inputs = inputs._replace(labels=labels, ids=None, weights=weights, are_positions=True)
        # Soft labels cannot be ignored. Features with other positions than the labels are compared at all positions.
        if not self.ignored or inputs.labels.shape != as_tuple(inputs.student)[0].shape[:1]:
            return inputs
        return inputs.rows((~is_ignored(inputs.labels, self.ignored)).nonzero().squeeze(1))

    def _require_same_positions(self, inputs: TermInputs) -> None:
        target = () if inputs.target is None else as_tuple(inputs.target)
        sides = [*as_tuple(inputs.student), *target, *inputs.teacher_outputs]
        positions = {side.shape[2:] for side in sides}
        if self.uses_labels:
            positions.add(inputs.labels.shape[-self.position_dims :])
        if len(positions) > 1:
            raise RecipeError(
                f"its sides {' '.join(str(tuple(side.shape)) for side in sides)} and the labels "
                f"{tuple(inputs.labels.shape)} have different positions; resize the outputs, for example with "
                "nn.functional.interpolate in the network or in Tap(..., element=...), or select the tokens to compare"
            )
