"""The module that a stage trains: its students and their losses, called once per batch."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Task
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm, bind_term
from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext, accepts_no_rows, fills_missing
from kdkit.losses.features import as_tuple
from kdkit.nets.recompute import Recomputation
from kdkit.nets.taps import HeadTap, OpenTaps, TapLike
from kdkit.recipe.objective import Match, as_objective, taps_of
from kdkit.recipe.recipe import Stage
from kdkit.teachers.base import TeacherOutput, TeacherOutputs
from kdkit.teachers.peer import Peer
from kdkit.utils.modules import drop_compiled_code


class DistillationModule(nn.Module):
    """The students of a stage and their losses, as the one module that is compiled and wrapped by DDP.

    Called with a batch and the teacher outputs, it returns the unweighted value of every term by label, or by
    "net: label" if the stage trains several networks.
    student_outputs: the detached outputs of the last batch, (batch, classes), by name; kept if `track_outputs` is set.
    """

    progress: Tensor

    def __init__(self, stage: Stage, context: BuildContext) -> None:
        super().__init__()
        self.students = tuple(stage.objectives)
        self.task: Task = context.task
        self.track_outputs = True
        self.student_outputs: dict[str, Tensor] = {}
        self.nets = nn.ModuleList(net.network for net in self.students)
        self.open_taps = OpenTaps(_student_taps(stage), self.students)
        if self.open_taps.taps:
            drop_compiled_code(self.nets)
        self._tap_indices: dict[str, tuple[int, ...]] = {}  # indices into the open taps, by student
        taps: dict[str, tuple[TapLike, ...]] = {}
        for net in self.students:
            parts = set(net.network.modules())  # students may share layers, so a tap may be on several students
            on_net = [(index, tap) for index, tap in enumerate(self.open_taps.taps) if tap.module in parts]
            self._tap_indices[net.name] = tuple(index for index, _ in on_net)
            taps[net.name] = tuple(tap for _, tap in on_net)
        self.recomputation = Recomputation(module for net in self.students for module in net.recomputed)
        self.peers = tuple({match.teacher for match in stage.matches if isinstance(match.teacher, Peer)})
        try:
            self.terms = tuple(
                bind_term(net, weighted, stage, taps, context)
                for net, objective in stage.objectives.items()
                for weighted in as_objective(objective)
            )
        except BaseException:
            self.close()
            raise
        self.losses = nn.ModuleList(term.loss for term in self.terms if isinstance(term.loss, nn.Module))
        self.alignments = nn.ModuleList(term.alignment for term in self.terms if term.alignment is not None)
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def forward(self, batch: Batch, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Run the students and return the unweighted value of every term by label."""
        outputs = self.run_students(batch, teacher_outputs)
        if self.track_outputs:
            self.student_outputs = {net.name: outputs[net.name].output.detach() for net in self.students}
        return {term.label: self.term_loss(term, batch, outputs) for term in self.terms}

    def run_students(self, batch: Batch, teacher_outputs: TeacherOutputs) -> dict[str, TeacherOutput]:
        """Run the students, and return the outputs and features of students, peers and teachers by name."""
        outputs = {**teacher_outputs}
        for net in self.students:
            outputs[net.name] = TeacherOutput(*self.open_taps.run(net, batch, self._tap_indices[net.name]))
        for peer in self.peers:
            # A peer is a teacher, so it gets no gradient from the network that matches it.
            output, features, _ = outputs[peer.net.name]
            outputs[peer.name] = TeacherOutput(output.detach(), tuple(feature.detach() for feature in features))
        return outputs

    def term_loss(self, term: BoundTerm, batch: Batch, outputs: TeacherOutputs) -> Tensor:
        """Return the unweighted value of one term."""
        if term.direct:  # a fast path for the most common kind: a step of a small network takes microseconds
            target = batch.labels if term.target is None else term.target.resolve(outputs)
            return term.loss(term.student.resolve(outputs), target)
        return self.apply_loss(term, self.gather_inputs(term, batch, outputs))

    def gather_inputs(
        self, term: BoundTerm, batch: Batch, outputs: TeacherOutputs, *, fill: bool = False
    ) -> TermInputs:
        """Return the inputs of a term's loss, as rows with a label, reduced to the classes that its sides share.

        Samples without a teacher output are left out, unless the loss takes them or `fill` is set.
        """
        inputs = self.whole_inputs(term, batch, outputs, fill=fill)
        if not inputs.share:
            return inputs
        inputs = term.merge_ignored_labels(inputs)
        if term.rows is not None:
            inputs = term.rows(inputs)
        return inputs if term.alignment is None else term.alignment(inputs)

    def whole_inputs(self, term: BoundTerm, batch: Batch, outputs: TeacherOutputs, *, fill: bool = False) -> TermInputs:
        """Return the inputs of a term before rows of labels and classes are selected."""
        student_output = outputs[term.student_net.name].output
        # If a term has several teachers, they are Nets, which have an output for each sample.
        mask = outputs[term.teachers[0]].mask if term.teachers else None
        if mask is not None and (fill or fills_missing(term.loss)):
            (name,) = term.teachers
            outputs, mask = {**outputs, name: _fill(name, outputs[name], mask, student_output)}, None
        passes_outputs = "teacher_outputs" in term.extra_kwargs
        inputs = TermInputs(
            student=term.student.resolve(outputs),
            target=None if term.target is None else term.target.resolve(outputs),
            labels=batch.labels,
            ids=batch.ids,
            teacher_outputs=tuple(outputs[name].output for name in term.teachers) if passes_outputs else (),
            weights=batch.weights,
            batch_inputs=batch.inputs if "inputs" in term.extra_kwargs else None,
        )
        if mask is None:
            return inputs
        rows = mask.nonzero().squeeze(1)
        if len(rows) == len(mask):
            return inputs
        # Filled in, the other rows would also train the student, or take part in comparisons between samples.
        rows = rows.to(inputs.labels.device, non_blocking=True)
        return inputs.rows(rows)._replace(share=len(rows) / len(mask))

    def apply_loss(self, term: BoundTerm, inputs: TermInputs) -> Tensor:
        """Return the unweighted value of one term from its inputs."""
        if term.alignment is not None or term.rows is not None or inputs.share < 1:
            student = as_tuple(inputs.student)[0]
            # The loss is 0 if no row of the batch has a label, a shared class and a teacher output.
            if not len(student) and not accepts_no_rows(term.loss):
                return student.sum() * 0.0
        value = term.loss(inputs.student, inputs.target_or_labels(), **self.loss_kwargs(term, inputs))
        if term.ignore_index is not None:
            # The mean over no labels is 0 / 0 in torch. A branch would wait for the device.
            value = torch.where((inputs.labels == term.ignore_index).all(), 0.0, value)
        return value if inputs.share == 1 else value * inputs.share

    def loss_kwargs(self, term: BoundTerm, inputs: TermInputs) -> dict[str, Any]:
        """Return the extra keyword arguments of a term's loss."""
        if not term.extra_kwargs:
            return {}
        values = {
            "labels": inputs.labels,
            "ids": inputs.ids,
            "progress": self.progress,
            "teacher_outputs": inputs.teacher_outputs,
            "sample_weights": inputs.weights,
            "inputs": inputs.batch_inputs,
        }
        return {name: value for name, value in values.items() if name in term.extra_kwargs}

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for frozen submodules: the statistics of a frozen batch norm must not change."""
        super().train(mode)
        self.open_taps.computes_heads = not mode
        for module in self.nets.modules() if mode else ():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of every term at this progress of the stage, in [0, 1]."""
        return {term.label: term.weighted.weight(progress) for term in self.terms}

    def build_losses(
        self, batch: Batch, teacher_outputs: TeacherOutputs, context: BuildContext, teachers: Mapping[str, Any]
    ) -> list[str]:
        """Build every loss that needs to know shapes, such as one with a projector, and return the problems.

        teachers: the module of each teacher by name, for losses that reuse a part of it.
        """
        outputs = self.run_students(batch, teacher_outputs)
        problems = []
        for term in self.terms:
            build = getattr(term.loss, "build", None)
            if build is None:
                continue
            inputs = self.gather_inputs(term, batch, outputs, fill=True)
            modules = tuple(teachers.get(name) for name in term.teachers)
            teacher = modules if len(modules) > 1 else next(iter(modules), None)
            tapped = tuple(tap.module for tap in taps_of(getattr(term.weighted.term, "target", None)))
            try:
                sides = as_tuple(inputs.student), as_tuple(inputs.target_or_labels())
                shapes = [tuple(tensor.shape for tensor in side) for side in sides]
                names = getattr(getattr(term.weighted.term, "teacher", None), "classes", None)
                heads, columns = _heads(term), term.columns
                of_term = replace(context, tapped=tapped, teacher_classes=names, heads=heads, columns=columns)
                build(*shapes, of_term, teacher)
            except RecipeError as error:
                problems.append(f"term {term.label!r}: {error}")
            except Exception as error:  # a user-defined loss may raise anything
                problems.append(f"term {term.label!r}: its build raises {type(error).__name__}: {error}")
        self.to(batch.labels.device)  # losses create their parameters on the CPU
        return problems

    def close(self) -> None:
        """Remove the taps, and end the recomputation of activations."""
        self.recomputation.close()
        self.open_taps.close()


def _student_taps(stage: Stage) -> Iterator[TapLike]:
    """Yield the taps on networks in training: those of student sides, and of targets that are peers."""
    for term in stage.terms:
        yield from taps_of(term.student)
        if isinstance(term, Match) and isinstance(term.teacher, Peer):
            yield from taps_of(term.target)


def _heads(term: BoundTerm) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the modules that HeadTaps are on, for the student and for the target side."""
    sides = (term.weighted.term.student, getattr(term.weighted.term, "target", None))
    student, target = (side.module if isinstance(side, HeadTap) else None for side in sides)
    return student, target


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
