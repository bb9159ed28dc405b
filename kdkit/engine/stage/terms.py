"""The terms of an open stage: what each of them compares, and its value for a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.data.labels import is_ignored
from kdkit.engine.stage.class_alignment import ClassAlignment, Columns
from kdkit.engine.stage.labelled_rows import LabelledRows
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.errors import RecipeError
from kdkit.losses.base import Loss, accepts_no_rows, extra_kwargs_of, fills_missing
from kdkit.losses.numerics import upcast_half
from kdkit.losses.sides import TensorOrTuple, as_tuple, map_side
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, Term, WeightedTerm, model_loss
from kdkit.teachers.base import TeacherOutput, TeacherOutputs


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Points to one side of a term. entries: pairs of a network's name and a tap index, or None for its output.

    is_tuple: whether the side is a tuple of tensors, even if it has only one element.
    """

    entries: tuple[tuple[str, int | None], ...]
    is_tuple: bool = False

    def resolve(self, outputs: TeacherOutputs) -> TensorOrTuple:
        """Return the tensor, or the tuple of tensors."""
        tensors = [outputs[name].output if tap is None else outputs[name].features[tap] for name, tap in self.entries]
        return tuple(tensors) if self.is_tuple else tensors[0]

    @property
    def is_output(self) -> bool:
        """Whether every tensor is a network output, which has a column per class, and not a feature."""
        return all(tap is None for _, tap in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTerm:
    """A term of an objective with the networks and taps that it compares.

    target: None if the labels are the target. teachers: the names of the matched networks. extra_kwargs: the keyword
    arguments of the loss, such as "labels". rows: selects the rows that have a label; None if the loss takes the inputs
    unchanged. alignment: None if both sides have the same classes.
    direct: whether the loss takes both sides unchanged: it has no extra arguments, every sample has a target, no rows
    are selected, and no classes are aligned.
    columns: the columns of the student's and the target's outputs that a `Chunked` loss compares; it computes them
    itself. None for all.
    ignore_index: the label that a loss on the labels ignores, if the data has such labels; None otherwise.
    ignored: all labels of the data that mean "no label"; `ignore_index` replaces them before the loss is called.
    upcasts: whether both sides are converted from half precision to float32, as for the losses of torch. Losses of
    kdkit do this themselves, and a user-defined loss may hold weights in half precision.
    is_sum: whether the loss is a sum over samples.
    """

    label: str
    weighted: WeightedTerm
    student_net: Net[Any]
    loss: Loss
    student: TensorRef
    target: TensorRef | None
    teachers: tuple[str, ...]
    extra_kwargs: frozenset[str]
    rows: LabelledRows | None
    alignment: ClassAlignment | None
    columns: tuple[Columns | None, Columns | None]
    direct: bool
    ignore_index: int | None
    ignored: tuple[int, ...]
    upcasts: bool
    is_sum: bool

    @property
    def follows_progress(self) -> bool:
        """Whether its weight or its loss changes with the progress of the stage."""
        return "progress" in self.extra_kwargs or not self.weighted.is_constant

    def value(self, batch: Batch, outputs: TeacherOutputs, progress: Tensor) -> Tensor:
        """Return the unweighted value of the term. progress: of the stage, in [0, 1], a scalar."""
        if self.direct:  # a fast path for the most common kind: a step of a small network takes microseconds
            student = self.student.resolve(outputs)
            target = None if self.target is None else self.target.resolve(outputs)
            if self.upcasts:
                student = map_side(upcast_half, student)
                target = None if target is None else map_side(upcast_half, target)
            return self.loss(student, _in_dtype_of(student, batch.labels) if target is None else target)
        inputs = self.gather_inputs(batch, outputs)
        if self.alignment is not None or self.rows is not None or inputs.share < 1:
            student = as_tuple(inputs.student)[0]
            # The loss is 0 if no row of the batch has a label, a shared class and a teacher output.
            if not len(student) and not accepts_no_rows(self.loss):
                return student.sum()
        value = self.loss(inputs.student, inputs.target_or_labels(), **self.loss_kwargs(inputs, progress))
        if self.ignore_index is not None:
            # The mean over no labels is 0 / 0 in torch. A branch would wait for the device.
            value = torch.where((inputs.labels == self.ignore_index).all(), 0.0, value)
        # A sum over the samples with a teacher output needs no factor; their mean counts by their share of the batch.
        return value if inputs.share == 1 or self.is_sum else value * inputs.share

    def gather_inputs(self, batch: Batch, outputs: TeacherOutputs, *, fill: bool = False) -> TermInputs:
        """Return the inputs of the loss, as rows with a label, reduced to the classes that its sides share.

        Samples without a teacher output are left out, unless the loss takes them or `fill` is set.
        """
        inputs = self.whole_inputs(batch, outputs, fill=fill)
        if self.ignore_index is not None and self.ignored != (self.ignore_index,):
            # A loss ignores only one label. Selecting the rows with other labels instead would wait for the device.
            is_missing = is_ignored(inputs.labels, self.ignored)
            inputs = inputs._replace(labels=inputs.labels.masked_fill(is_missing, self.ignore_index))
        if self.rows is not None:
            inputs = self.rows(inputs)
        if self.alignment is not None:
            inputs = self.alignment(inputs)
        if self.upcasts:
            inputs = inputs.map_sides(upcast_half)
        return inputs._replace(labels=_in_dtype_of(inputs.student, inputs.labels))

    def whole_inputs(self, batch: Batch, outputs: TeacherOutputs, *, fill: bool) -> TermInputs:
        """Return the inputs of the loss before rows of labels and classes are selected."""
        student_output = outputs[self.student_net.name].output
        # If a term has several teachers, they are Nets, which have an output for each sample.
        mask = outputs[self.teachers[0]].mask if self.teachers else None
        if mask is not None and (fill or fills_missing(self.loss)):
            (name,) = self.teachers
            outputs, mask = {**outputs, name: _fill(name, outputs[name], mask, student_output)}, None
        passes_outputs = "teacher_outputs" in self.extra_kwargs
        inputs = TermInputs(
            student=self.student.resolve(outputs),
            target=None if self.target is None else self.target.resolve(outputs),
            labels=batch.labels,
            ids=batch.ids,
            teacher_outputs=tuple(outputs[name].output for name in self.teachers) if passes_outputs else (),
            weights=batch.weights,
            batch_inputs=batch.inputs if "inputs" in self.extra_kwargs else None,
        )
        if mask is None:
            return inputs
        rows = mask.nonzero().squeeze(1)
        if len(rows) == len(mask):
            return inputs
        # Filled in, the other rows would also train the student, or take part in comparisons between samples.
        rows = rows.to(inputs.labels.device, non_blocking=True)
        return inputs.rows(rows)._replace(share=len(rows) / len(mask))

    def loss_kwargs(self, inputs: TermInputs, progress: Tensor) -> dict[str, Any]:
        """Return the extra keyword arguments of the loss."""
        if not self.extra_kwargs:
            return {}
        values = {
            "labels": inputs.labels,
            "ids": inputs.ids,
            # A copy, because a loop may set the progress of its next call before the backward pass of this one.
            "progress": progress.clone(),
            "teacher_outputs": inputs.teacher_outputs,
            "sample_weights": inputs.weights,
            "inputs": inputs.batch_inputs,
        }
        return {name: value for name, value in values.items() if name in self.extra_kwargs}


def uses_labels(term: Term) -> bool:
    """Whether the loss of a term takes the labels, as its target or as an extra argument.

    A loss that a model computes does not; the model may have labels among its inputs.
    """
    if term.loss is model_loss:
        return False
    return not isinstance(term, Match) or "labels" in extra_kwargs_of(term.loss)


def _in_dtype_of(student: TensorOrTuple, labels: Tensor) -> Tensor:
    """Return floating-point labels in the precision of the student, which some losses of torch need."""
    dtype = as_tuple(student)[0].dtype
    if labels.dtype == dtype or not labels.is_floating_point() or dtype not in (torch.float32, torch.float64):
        return labels
    return labels.to(dtype)


def _fill(name: str, teacher: TeacherOutput, mask: Tensor, student_output: Tensor) -> TeacherOutput:
    """Replace rows without a teacher output with the student's own output."""
    if teacher.output.shape != student_output.shape:
        raise RecipeError(
            f"{name!r} has no output for some samples, so the student's outputs replace them and its outputs must have "
            f"the shape {tuple(student_output.shape)}; got {tuple(teacher.output.shape)}"
        )
    mask = mask.to(student_output.device).view(-1, *(1 for _ in student_output.shape[1:]))  # (batch, 1, ...)
    output = torch.where(mask, teacher.output.to(student_output.dtype), student_output.detach())
    return TeacherOutput(output, teacher.features)
