"""The module that a stage trains: its students and their losses, called once per batch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.engine.stage.term_binding import TermBinding
from kdkit.losses.base import BuildContext
from kdkit.nets.recompute import Recomputation
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.nets.taps.open_taps import Slot
from kdkit.recipe.objective import taps_of
from kdkit.recipe.recipe import Stage, weighted_terms
from kdkit.teachers.base import TeacherOutput, TeacherOutputs
from kdkit.teachers.peer import Peer
from kdkit.utils.modules import drop_compiled_code, preserve_buffers


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
        """Set training mode, except for frozen submodules: the statistics of a frozen batch norm must not change.

        A loss may hold a frozen network too, such as a perceptual loss. The loss itself stays in training mode: it may
        update a memory bank that is a frozen parameter.
        """
        super().train(mode)
        self.open_taps.compute_heads(enabled=not mode)
        if not mode:
            return self
        held_by_losses = (module for loss in self.losses for part in loss.children() for module in part.modules())
        for module in (*self.nets.modules(), *held_by_losses):
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of every term at this progress of the stage, in [0, 1]."""
        return {term.label: term.weighted.weight(progress) for term in self.terms}

    def close(self) -> None:
        """Remove the taps, and end the recomputation of activations."""
        self.recomputation.close()
        self.open_taps.close()


@contextmanager
def temporary_training(module: DistillationModule, buffers_of: Iterable[nn.Module]) -> Iterator[None]:
    """Set training mode, turn gradients on and clear them, and restore all of it at the end.

    Random states and these buffers are restored too.
    """
    modes = {part: part.training for part in module.modules()}
    gradients: list[tuple[Any, Tensor | None]] = [(parameter, parameter.grad) for parameter in module.parameters()]
    devices = [module.progress.device] if module.progress.is_cuda else []
    with torch.enable_grad(), torch.random.fork_rng(devices=devices), preserve_buffers(buffers_of):
        module.train()
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            module.open_taps.pause()  # features keep the graph of the forward pass alive
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for part, training in modes.items():
                part.training = training


def _student_taps(stage: Stage) -> Iterator[TapLike]:
    """Yield the taps on networks in training: those of student sides, and of targets that are peers."""
    for term in stage.terms:
        yield from taps_of(term.student)
        if isinstance(term.teacher, Peer):
            yield from taps_of(term.target)
