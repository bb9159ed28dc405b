"""A stage made runnable: the nets in training and their losses as one module, batch and answers in, terms out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdkit.classes import SharedClasses, shared
from kdkit.data import Batch, Task
from kdkit.errors import RecipeError
from kdkit.goal import Match, Taps, Truth, Weighted, as_goal, taps_of
from kdkit.losses import Facts, Loss, asked_by
from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.sources import Answers
from kdkit.taps import Listening, Tapping


@dataclass(frozen=True, slots=True)
class Side:
    """Where one side of a term comes from: the outputs where `taps` is None, otherwise one tap or several."""

    taps: tuple[int, ...] | None
    several: bool = False

    def of(self, features: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return the tapped tensor, or the tuple of them."""
        chosen = tuple(features[index] for index in self.taps or ())
        return chosen if self.several else chosen[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A term made ready: what is compared to what, and what its loss asks for beside."""

    label: str
    weighted: Weighted
    learner: Net[Any]
    loss: Loss
    student: Side
    target: Side
    source: str | None
    asks: frozenset[str]
    shared: SharedClasses | None


class Lesson(nn.Module):
    """The nets in training and their losses: the one module that is compiled.

    Terms are returned unweighted, under their labels; in a stage of several nets "net: label".
    """

    progress: Tensor

    def __init__(self, stage: Stage, facts: Facts) -> None:
        super().__init__()
        self.learners = tuple(stage.goals)
        self.task: Task = facts.task
        self.nets = nn.ModuleList(net.network for net in self.learners)
        self.listening = Listening(tap for match in stage.matches for tap in taps_of(match.student))
        asked = {source.name: taps for source, taps in stage.sources.items()}
        try:
            self.lines = tuple(
                _line(net, each, self, facts, asked) for net, goal in stage.goals.items() for each in as_goal(goal)
            )
        except BaseException:
            self.close()
            raise
        self.losses = nn.ModuleList(line.loss for line in self.lines if isinstance(line.loss, nn.Module))
        self.shared = nn.ModuleList(line.shared for line in self.lines if line.shared is not None)
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def forward(self, batch: Batch, answers: Answers) -> dict[str, Tensor]:
        """Return the unweighted value of every term, by label."""
        self.listening.clear()
        outputs = {net.name: net(batch) for net in self.learners}
        features = self.listening.take()
        return {line.label: self.compare(line, batch, outputs, features, answers) for line in self.lines}

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

    def compare(
        self,
        line: Line,
        batch: Batch,
        outputs: Mapping[str, Tensor],
        features: tuple[Tensor, ...],
        answers: Answers,
    ) -> Tensor:
        """Return the unweighted value of one term."""
        student, target = self.sides(line, batch, outputs, features, answers)
        if isinstance(target, Tensor) and line.shared is not None and not len(target):
            return student.sum() * 0.0  # type: ignore[union-attr]  # outputs are one tensor; nobody's class is known
        return line.loss(student, target, **self.asked(line, batch))

    def asked(self, line: Line, batch: Batch) -> dict[str, Tensor | None]:
        """Return what the loss of a term asks for by keyword."""
        known = {"labels": batch.labels, "ids": batch.ids, "progress": self.progress}
        return {name: value for name, value in known.items() if name in line.asks}

    def sides(
        self,
        line: Line,
        batch: Batch,
        outputs: Mapping[str, Tensor],
        features: tuple[Tensor, ...],
        answers: Answers,
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor | tuple[Tensor, ...]]:
        """Return what a term compares: the student's side and the target's."""
        output = outputs[line.learner.name]
        student = output if line.student.taps is None else line.student.of(features)
        target: Tensor | tuple[Tensor, ...]
        if line.source is None:
            target = batch.labels
        elif line.target.taps is None:
            target = answers[line.source].output
        else:
            target = line.target.of(answers[line.source].features)
        if line.shared is None:
            return student, target
        if line.source is None and self.task == "multiclass":
            return line.shared.rows(output, batch.labels)
        return line.shared.columns(output, target)  # type: ignore[arg-type]  # shared classes go with outputs only

    def close(self) -> None:
        """Take the taps away again."""
        self.listening.close()


def _line(
    net: Net[Any], weighted: Weighted, lesson: Lesson, facts: Facts, asked: Mapping[str, tuple[Tapping, ...]]
) -> Line:
    term = weighted.term
    source = term.source.name if isinstance(term, Match) else None
    student = _side(term.student, lesson.listening.taps) if isinstance(term, Match) else Side(None)
    target = _side(term.target, asked[term.source.name]) if isinstance(term, Match) else Side(None)
    compares_outputs = student.taps is None and target.taps is None
    return Line(
        label=term.label if len(lesson.learners) == 1 else f"{net.name}: {term.label}",
        weighted=weighted,
        learner=net,
        loss=term.loss,
        student=student,
        target=target,
        source=source,
        asks=asked_by(term.loss),
        shared=_shared(net, term, facts) if compares_outputs else None,
    )


def _side(taps: Taps, listening: tuple[Tapping, ...]) -> Side:
    if taps is None:
        return Side(None)
    return Side(tuple(listening.index(tap) for tap in taps_of(taps)), several=isinstance(taps, tuple))


def _shared(net: Net[Any], term: Truth | Match, facts: Facts) -> SharedClasses | None:
    if facts.task == "regression":
        return None
    mine = net.classes or facts.classes
    if isinstance(term, Match):
        theirs = getattr(term.source, "classes", None) or facts.classes
        what = f"net {net.name!r} and {term.source.name!r}"
    else:
        theirs, what = facts.classes, f"net {net.name!r} and the data"
    positions = shared(mine, theirs, what)
    return None if positions is None else SharedClasses(positions)


def build_losses(
    lesson: Lesson, batch: Batch, answers: Answers, facts: Facts, teachers: Mapping[str, Any]
) -> list[str]:
    """Build every loss that has to know shapes, from one forward pass; return what went wrong, term by term."""
    outputs = {net.name: net(batch) for net in lesson.learners}
    features = lesson.listening.take()
    problems = []
    for line in lesson.lines:
        build = getattr(line.loss, "build", None)
        if build is None:
            continue
        student, target = lesson.sides(line, batch, outputs, features, answers)
        teacher = teachers.get(line.source) if line.source is not None else None
        try:
            build(_shapes(student), _shapes(target), facts, teacher)
        except RecipeError as error:
            problems.append(f"term {line.label!r}: {error}")
        except Exception as error:  # a stranger's loss may raise anything
            problems.append(f"term {line.label!r}: its build raises {type(error).__name__}: {error}")
    lesson.to(batch.labels.device)
    return problems


def _shapes(side: Tensor | tuple[Tensor, ...]) -> tuple[torch.Size, ...]:
    return tuple(each.shape for each in side) if isinstance(side, tuple) else (side.shape,)
