"""A stage made runnable: the nets in training and their losses as one module, batch and answers in, terms out."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Task
from kdkit.engine.class_alignment import TermInputs
from kdkit.engine.terms import BoundTerm, bind_term
from kdkit.errors import RecipeError
from kdkit.losses import BuildContext
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.recipe.objective import as_objective, taps_of
from kdkit.recipe.recipe import Stage
from kdkit.teachers import Peer, TeacherOutput, TeacherOutputs


class DistillationModule(nn.Module):
    """The nets in training and their losses: the one module that is compiled.

    Terms are returned unweighted, under their labels; in a stage of several nets "net: label".
    said: what the nets said of the last batch, (batch, classes) by name, without a gradient; empty where not observed.
    """

    progress: Tensor

    def __init__(self, stage: Stage, facts: BuildContext) -> None:
        super().__init__()
        self.students = tuple(stage.objectives)
        self.task: Task = facts.task
        self.observed = True
        self.said: dict[str, Tensor] = {}
        self.nets = nn.ModuleList(net.network for net in self.students)
        self.open_taps = OpenTaps(_own_taps(stage))
        self.peers = tuple({match.teacher for match in stage.matches if isinstance(match.teacher, Peer)})
        try:
            self.lines = tuple(
                bind_term(net, each, stage, self.open_taps.taps, facts)
                for net, objective in stage.objectives.items()
                for each in as_objective(objective)
            )
        except BaseException:
            self.close()
            raise
        self.losses = nn.ModuleList(line.loss for line in self.lines if isinstance(line.loss, nn.Module))
        self.shared = nn.ModuleList(line.shared for line in self.lines if line.shared is not None)
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def forward(self, batch: Batch, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Return the unweighted value of every term, by label."""
        heard = self.heard(batch, teacher_outputs)
        if self.observed:
            self.said = {net.name: heard[net.name].output.detach() for net in self.students}
        return {line.label: self.value(line, batch, heard) for line in self.lines}

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but for parts of which nothing is trained: a frozen batch norm must not drift."""
        super().train(mode)
        for module in self.nets.modules() if mode else ():
            parameters = list(module.parameters())
            if parameters and not any(each.requires_grad for each in parameters):
                module.eval()
        return self

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of every term at this progress of the stage, in [0, 1]."""
        return {line.label: line.weighted.weight(progress) for line in self.lines}

    def heard(self, batch: Batch, teacher_outputs: TeacherOutputs) -> dict[str, TeacherOutput]:
        """Run the nets in training, and return what everybody says of a batch, by name: they, their peers, the asked.

        The features of those in training are all that the lesson listens to.
        """
        self.open_taps.clear()
        outputs = {net.name: net(batch) for net in self.students}
        features = self.open_taps.take()
        heard = {**teacher_outputs}
        for name, output in outputs.items():
            heard[name] = TeacherOutput(output, features)
        for peer in self.peers:
            heard[peer.name] = TeacherOutput(outputs[peer.net.name].detach(), tuple(each.detach() for each in features))
        return heard

    def value(self, line: BoundTerm, batch: Batch, heard: TeacherOutputs) -> Tensor:
        """Return the unweighted value of one term."""
        if line.plain:  # the most common term by far, and a step of a small net is a few microseconds long
            target = batch.labels if line.target is None else line.target.of(heard)
            return line.loss(line.student.of(heard), target)
        return self.compare(line, self.compared(line, batch, heard))

    def compared(self, line: BoundTerm, batch: Batch, heard: TeacherOutputs) -> TermInputs:
        """Return what a term compares: both sides and what is known beside, cut down to the classes they share.

        Where a source knows nothing of a sample, what the net that learns from it says now stands for its answer.
        """
        now = heard[line.student_net.name].output
        partly = {name: _completed(name, heard[name], now) for name in line.teachers if heard[name].known is not None}
        heard = {**heard, **partly} if partly else heard
        given = TermInputs(
            student=line.student.of(heard),
            target=None if line.target is None else line.target.of(heard),
            labels=batch.labels,
            ids=batch.ids,
            teacher_outputs=tuple(heard[name].output for name in line.teachers)
            if "teacher_outputs" in line.asks
            else (),
        )
        return given if line.shared is None else line.shared(given)

    def compare(self, line: BoundTerm, given: TermInputs) -> Tensor:
        """Return the unweighted value of one term from what it compares."""
        target = given.labels if given.target is None else given.target
        if line.shared is not None and not len(_first(given.student)):
            return _first(given.student).sum() * 0.0  # nobody's class is known
        return line.loss(given.student, target, **self.asked(line, given))

    def asked(self, line: BoundTerm, given: TermInputs) -> dict[str, Any]:
        """Return what the loss of a term asks for by keyword."""
        if not line.asks:
            return {}
        known = {
            "labels": given.labels,
            "ids": given.ids,
            "progress": self.progress,
            "teacher_outputs": given.teacher_outputs,
        }
        return {name: value for name, value in known.items() if name in line.asks}

    def close(self) -> None:
        """Take the taps away again."""
        self.open_taps.close()


def _completed(name: str, answer: TeacherOutput, now: Tensor) -> TeacherOutput:
    """Return an answer in which what is said now stands for what is not known."""
    if answer.known is None:
        return answer
    if answer.output.shape != now.shape:
        raise RecipeError(
            f"what {name!r} does not know is filled in with what the net says now, so its answer has the shape "
            f"{tuple(now.shape)}; got {tuple(answer.output.shape)}"
        )
    known = answer.known.view(-1, *(1 for _ in now.shape[1:]))
    return TeacherOutput(torch.where(known, answer.output.to(now.dtype), now.detach()), answer.features)


def _own_taps(stage: Stage) -> Iterator[TapLike]:
    """Give the taps on the nets in training: those of students, and those on peers."""
    for match in stage.matches:
        yield from taps_of(match.student)
        if isinstance(match.teacher, Peer):
            yield from taps_of(match.target)


def build_losses(
    lesson: DistillationModule,
    batch: Batch,
    teacher_outputs: TeacherOutputs,
    facts: BuildContext,
    teachers: Mapping[str, Any],
) -> list[str]:
    """Build every loss that has to know shapes, from one forward pass; return what went wrong, term by term."""
    heard = lesson.heard(batch, teacher_outputs)
    problems = []
    for line in lesson.lines:
        build = getattr(line.loss, "build", None)
        if build is None:
            continue
        given = lesson.compared(line, batch, heard)
        target = given.labels if given.target is None else given.target
        found = tuple(teachers.get(name) for name in line.teachers)
        teacher = found if len(found) > 1 else next(iter(found), None)
        known = replace(facts, tapped=tuple(tap.module for tap in taps_of(getattr(line.weighted.term, "target", None))))
        try:
            build(_shapes(given.student), _shapes(target), known, teacher)
        except RecipeError as error:
            problems.append(f"term {line.label!r}: {error}")
        except Exception as error:  # a stranger's loss may raise anything
            problems.append(f"term {line.label!r}: its build raises {type(error).__name__}: {error}")
    lesson.to(batch.labels.device)
    return problems


def _shapes(side: TensorOrTuple) -> tuple[torch.Size, ...]:
    return tuple(each.shape for each in side) if isinstance(side, tuple) else (side.shape,)


def _first(side: TensorOrTuple) -> Tensor:
    return side[0] if isinstance(side, tuple) else side
