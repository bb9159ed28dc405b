"""The module that a stage trains: its students and their losses, called once per batch."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Task
from kdkit.engine.stage.term_binding import TermBinding
from kdkit.errors import RecipeError
from kdkit.losses.base import BUILD_ARGUMENTS, BuildContext
from kdkit.losses.features import as_tuple
from kdkit.nets.recompute import Recomputation
from kdkit.nets.taps import HeadTap, OpenTaps, TapLike
from kdkit.nets.taps.open_taps import Slot
from kdkit.recipe.objective import Taps, taps_of
from kdkit.recipe.recipe import Stage, weighted_terms
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
        self._slots: dict[str, tuple[Slot, ...]] = {}  # of the taps on each student
        for net in self.students:
            parts = set(net.network.modules())  # students may share layers, so a tap may be on several students
            self._slots[net.name] = tuple(slot for slot in self.open_taps.slots if slot.tap.module in parts)
        taps = {name: tuple(slot.tap for slot in slots) for name, slots in self._slots.items()}
        self.recomputation = Recomputation(module for net in self.students for module in net.recomputed)
        self.peers = tuple({match.teacher for match in stage.matches if isinstance(match.teacher, Peer)})
        try:
            self.terms = tuple(
                TermBinding(net, weighted, stage, taps, context).bind() for net, weighted in weighted_terms(stage)
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
        return self.term_values(batch, outputs)

    def run_students(self, batch: Batch, teacher_outputs: TeacherOutputs) -> dict[str, TeacherOutput]:
        """Run the students, and return the outputs and features of students, peers and teachers by name."""
        outputs = {**teacher_outputs}
        for net in self.students:
            outputs[net.name] = TeacherOutput(*self.open_taps.run(net, batch, self._slots[net.name]))
        for peer in self.peers:
            # A peer is a teacher, so it gets no gradient from the network that matches it.
            output, features, _ = outputs[peer.net.name]
            outputs[peer.name] = TeacherOutput(output.detach(), tuple(feature.detach() for feature in features))
        return outputs

    def term_values(self, batch: Batch, outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Return the unweighted value of every term by label. outputs: those of `run_students`."""
        progress = self.progress
        return {term.label: term.value(batch, outputs, progress) for term in self.terms}

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for frozen submodules: the statistics of a frozen batch norm must not change."""
        super().train(mode)
        self.open_taps.compute_heads(enabled=not mode)
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
            inputs = term.gather_inputs(batch, outputs, fill=True)
            modules = tuple(teachers.get(name) for name in term.teachers)
            teacher = modules if len(modules) > 1 else next(iter(modules), None)
            source = term.weighted.term
            of_term = replace(
                context,
                tapped=tuple(tap.module for tap in taps_of(source.target)),
                teacher_classes=getattr(source.teacher, "classes", None),
                heads=(_head(source.student), _head(source.target)),
                columns=term.columns,
            )
            sides = as_tuple(inputs.student), as_tuple(inputs.target_or_labels())
            try:
                build(*(tuple(tensor.shape for tensor in side) for side in sides), of_term, teacher)
            except RecipeError as error:
                problems.append(f"term {term.label!r}: {error}")
            except Exception as error:  # a user-defined loss may raise anything
                reason = f"{type(error).__name__}: {error}{BUILD_ARGUMENTS}"
                problems.append(f"term {term.label!r}: its build raises {reason}")
        self.losses.to(batch.labels.device)  # their new parameters are on the CPU
        return problems

    def close(self) -> None:
        """Remove the taps, and end the recomputation of activations."""
        self.recomputation.close()
        self.open_taps.close()


def _student_taps(stage: Stage) -> Iterator[TapLike]:
    """Yield the taps on networks in training: those of student sides, and of targets that are peers."""
    for term in stage.terms:
        yield from taps_of(term.student)
        if isinstance(term.teacher, Peer):
            yield from taps_of(term.target)


def _head(side: Taps) -> nn.Module | None:
    """Return the module that the HeadTap of a side is on, or None."""
    return side.module if isinstance(side, HeadTap) else None
