"""What a dry run shows about an open stage. Problems and notices are functions of these facts."""

from typing import NamedTuple

from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.engine.check.plan import TermSummary
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import TeacherOutput


class CheckedTerm(NamedTuple):
    """A term with the inputs of its loss for a tiny batch. whole: before rows and classes were selected."""

    term: BoundTerm
    inputs: TermInputs
    whole: TermInputs


class Facts:
    """An open stage, a tiny batch, and what a dry run has shown so far.

    problems: what prevents a run. notices: see `Plan`. Without problems, the other facts are complete.
    teacher_outputs, student_outputs: by name, of students in training mode. eval_outputs: of students in eval mode, if
    anything uses them. checked_terms: without their inputs after the dry run. terms: a summary of each term.
    untrained_outputs: whether the outputs of every student depend on parameters that no term trains.
    untrained_weights: by the label of a term, parameters that its loss uses and that the stage does not train.
    computes_ctc: whether a term calls the CTC loss of torch.
    """

    def __init__(self, open_stage: OpenStage, batch: Batch) -> None:
        self.open_stage, self.batch = open_stage, batch
        self.stage, self.module, self.context = open_stage.stage, open_stage.module, open_stage.context
        of_teachers = [tap for taps in self.stage.teachers.values() for tap in taps]
        self.taps: tuple[TapLike, ...] = (*self.module.open_taps.taps, *of_teachers)
        self.problems: list[str] = []
        self.notices: list[str] = []
        self.teacher_outputs: dict[str, TeacherOutput] = {}
        self.student_outputs: dict[str, Tensor] = {}
        self.eval_outputs: dict[str, Tensor] = {}
        self.checked_terms: list[CheckedTerm] = []
        self.terms: list[TermSummary] = []
        self.untrained_outputs = False
        self.untrained_weights: dict[str, set[Tensor]] = {}
        self.computes_ctc = False
