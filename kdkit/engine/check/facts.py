"""What a dry run shows about an open stage. Problems and notices are functions of these facts."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdkit.data.batch import Batch
from kdkit.engine.check.plan import TermSummary
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.losses.sides import TensorOrTuple
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import TeacherOutput
from kdkit.utils.modules import preserve_buffers
from kdkit.utils.randomness import preserve_rng_state


class CheckedTerm(NamedTuple):
    """A term with the inputs of its loss for a tiny batch. whole: before rows and classes were selected."""

    term: BoundTerm
    inputs: TermInputs
    whole: TermInputs


class Facts:
    """An open stage, a tiny batch, and what a dry run has shown so far.

    problems: what prevents a run. notices: see `Plan`. Without problems, the other facts are complete.
    teacher_modules: by name, of teachers that have one. teacher_outputs: by name. student_outputs: by name, in training
    mode. eval_outputs: of students in eval mode, if anything uses them. outputs: of students, peers and teachers, with
    features, from the pass that terms compare. checked_terms: without their inputs after the dry run. terms: a summary
    of each term.
    untrained_outputs: whether the outputs of every student depend on parameters that no term trains.
    untrained_weights: by the label of a term, parameters that its loss uses and that the stage does not train.
    computes_ctc: whether a term calls the CTC loss of torch.
    evaluated_norms: by student, batch norms in eval mode, although they are trained and the rest is in training mode.
    """

    def __init__(self, open_stage: OpenStage, batch: Batch) -> None:
        self.open_stage, self.batch = open_stage, batch
        self.stage, self.module, self.context = open_stage.stage, open_stage.module, open_stage.context
        of_teachers = [tap for taps in self.stage.teachers.values() for tap in taps]
        self.taps: tuple[TapLike, ...] = (*self.module.open_taps.taps, *of_teachers)
        modules = {teacher.name: getattr(teacher, "module", None) for teacher in self.stage.teachers}
        self.teacher_modules = {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
        self.problems: list[str] = []
        self.notices: list[str] = []
        self.teacher_outputs: dict[str, TeacherOutput] = {}
        self.student_outputs: dict[str, Tensor] = {}
        self.eval_outputs: dict[str, Tensor] = {}
        self.outputs: dict[str, TeacherOutput] = {}
        self.checked_terms: list[CheckedTerm] = []
        self.terms: list[TermSummary] = []
        self.untrained_outputs = False
        self.untrained_weights: dict[str, set[Tensor]] = {}
        self.computes_ctc = False
        self.evaluated_norms = {net.name: _evaluated_norms(net.module) for net in self.module.students}

    def value_changes(self, term: BoundTerm, inputs: TermInputs, student: Tensor) -> bool:
        """Return whether the value of a term changes if `student` replaces its student side."""
        loss, target = term.loss, inputs.target_or_labels()
        kwargs = term.loss_kwargs(inputs, self.module.progress)

        def value(student: TensorOrTuple) -> Tensor:
            with preserve_rng_state(cuda=False), preserve_buffers([loss] if isinstance(loss, nn.Module) else []):
                result: Tensor = loss(student, target, **kwargs)
            return result

        try:
            with torch.no_grad():
                return not torch.allclose(value(inputs.student), value(student), rtol=1e-3, atol=1e-6)
        except Exception:  # the loss may be user-defined, or only take probabilities
            return True


def _evaluated_norms(module: nn.Module) -> list[str]:
    """Return the names of the batch norms of a module in training mode that are in eval mode, but not frozen."""
    return [
        name
        for name, part in module.named_modules()
        if module.training and isinstance(part, _BatchNorm) and not part.training
        if any(parameter.requires_grad for parameter in part.parameters())
    ]
