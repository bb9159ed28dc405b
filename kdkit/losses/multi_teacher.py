"""Losses for several teachers."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext, Loss, asked_by, needs_of
from kdkit.losses.features import Projected, Shapes, Sided, several
from kdkit.losses.validation import is_number

_TRIED = 4  # samples


def confidence(teacher_outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return how much each teacher counts for each sample, (batch, teachers), which sum to 1 over the teachers.

    answers: (batch, classes) logits of each. labels: (batch,) classes, or (batch, classes) in [0, 1], whose binary
    cross-entropies are averaged.
    """
    errors = torch.stack([_errors(answer.float(), labels) for answer in teacher_outputs], 1)
    return (1 - errors.softmax(1)) / (len(teacher_outputs) - 1)


def by_sample(loss: Any, student: Tensor, target: Tensor, asked: dict[str, Any]) -> Tensor:
    """Return a loss for each sample by itself, (batch,). A projector sees the whole batch, as its norms need."""
    if isinstance(loss, Projected):
        student, loss = loss.projector(student), loss.between
    names = [name for name in ("labels", "ids") if asked.get(name) is not None]
    fixed = {name: value for name, value in asked.items() if name not in names}

    def alone(one: Tensor, other: Tensor, *rows: Tensor) -> Tensor:
        beside = {name: row[None] for name, row in zip(names, rows, strict=True)}
        value: Tensor = loss(one[None], other[None], **beside, **fixed)
        return value

    rows = [asked[name] for name in names]
    values: Tensor = vmap(alone, randomness="different")(student, target, *rows)
    return values


def require_apart(loss: Any, student: torch.Size, target: torch.Size, facts: BuildContext) -> None:
    """Raise RecipeError for a loss whose slope at one sample depends on the others of its batch.

    Tried on made-up sides of these shapes; a loss that fails on them is told of where it is computed in earnest.
    """
    trial = copy.deepcopy(loss)  # one that remembers must not remember this
    call = trial.between if isinstance(trial, Projected) else trial
    ours, theirs = (target if isinstance(trial, Projected) else student)[1:], target[1:]
    asked = asked_by(loss)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            beside = {name: each for name, each in _made_up(student, target, facts).items() if name in asked}
            one, others = ((torch.randn(_TRIED, *ours), torch.randn(_TRIED, *theirs)) for _ in range(2))
            mixed = tuple(torch.cat([first[:1], other[1:]]) for first, other in zip(one, others, strict=True))
            here, there = (_slope(call, sides, beside) for sides in (one, mixed))
    except Exception:  # a stranger's loss may raise anything
        return
    if not torch.allclose(here, there, rtol=1e-3, atol=1e-3 * float(here.abs().max()), equal_nan=True):
        raise RecipeError(
            f"weights='confidence' weighs each sample by itself, but in {type(loss).__name__} the samples of a batch "
            "depend on each other, by relations or a batch norm; take weights='equal', 'learned' or shares"
        )


def _made_up(student: torch.Size, target: torch.Size, facts: BuildContext) -> dict[str, Any]:
    """Return what a loss may ask for beside its sides."""
    hard = facts.task == "multiclass"
    return {
        "labels": torch.zeros(_TRIED, dtype=torch.int64) if hard else torch.zeros(_TRIED, *student[1:]),
        "ids": torch.arange(_TRIED),
        "progress": torch.tensor(0.5),
        "teacher_outputs": (torch.zeros(_TRIED, *target[1:]),),
    }


def _slope(call: Any, sides: tuple[Tensor, ...], beside: dict[str, Any]) -> Tensor:
    """Return the slope of a loss at the first sample, under the same random numbers each time."""
    torch.manual_seed(0)
    student, target = sides
    student.requires_grad_()
    (slope,) = torch.autograd.grad(call(student, target, **beside), student)
    return slope[0]


def _errors(teacher_outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 1:
        return F.cross_entropy(teacher_outputs, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(teacher_outputs, labels.to(teacher_outputs.dtype), reduction="none").mean(
        1
    )


TeacherWeighting = Literal["equal", "confidence", "learned"]


class PerTeacher(nn.Module):
    """A loss against each teacher of a Panel, weighted teacher by teacher.

    In the unit of the loss. The student's side is one tensor for all teachers, or a tuple of one for each; the target
    is a tuple of one for each. Each teacher has a loss of its own, a copy, with its own projector where one is made.
    weights: the shares of the teachers, such as (0.6, 0.4), or "equal"; "confidence" weighs them for each sample by how
    well they say its label, (1 - softmax(cross-entropy)) / (teachers - 1), and takes a loss that is a mean over samples
    (CA-MKD); "learned" trains a log variance v for each, exp(-v) * loss + v / 2, the mean over teachers, so that none
    can be learned away.

    Formula: Σ w_i loss(s_i, t_i), with w_i the weight of teacher i
    Shapes: those of `loss`; a target of each teacher
    Source: ours; "confidence" of Zhang et al. 2022, "Confidence-Aware Multi-Teacher Knowledge Distillation",
        arXiv:2201.00007; "learned" of Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for
        Scene Geometry and Semantics", arXiv:1705.07115
    """

    def __init__(self, loss: Loss, *, weights: TeacherWeighting | Sequence[float] = "equal") -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss):
            raise RecipeError(f"PerTeacher takes a loss, such as SoftTargets(); got {loss!r}")
        self._loss = (loss,)  # in a tuple, so that it is not trained beside its copies
        self._copies = nn.ModuleList()
        self.weights = _validated(weights)
        self.log_variances = nn.Parameter(torch.zeros(0)) if weights == "learned" else None
        self._asked = asked_by(loss)
        self.asks = self._asked | ({"labels", "teacher_outputs"} if weights == "confidence" else frozenset())
        self.needs = needs_of(loss)

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: Any) -> None:
        """Make and build a loss for each teacher. teacher: the modules that answer, one for each.

        Raises RecipeError for teachers and shapes that do not fit, and for confidence in a loss that relates samples.
        """
        count = len(target)
        if count < 2 or len(student) not in (1, count):
            raise RecipeError(
                f"PerTeacher compares one side of the student, or one for each teacher, with a Panel of teachers; got "
                f"{len(student)} and {count}: Match(Panel(first, second), PerTeacher(...))"
            )
        if isinstance(self.weights, tuple) and len(self.weights) != count:
            raise RecipeError(f"PerTeacher takes a weight for each of {count} teachers; got {self.weights}")
        if self.log_variances is not None:
            self.log_variances = nn.Parameter(torch.zeros(count))
        (loss,) = self._loss
        self._copies = nn.ModuleList(copy.deepcopy(loss) for _ in target if isinstance(loss, nn.Module))
        teachers = teacher if isinstance(teacher, tuple) else (None,) * count
        sides = student * count if len(student) == 1 else student
        for place, each in enumerate(self._copies):
            build: Any = getattr(each, "build", None)
            if build is not None:
                known = replace(facts, tapped=facts.tapped[place : place + 1])
                build((sides[place],), (target[place],), known, teachers[place])
        if self.weights == "confidence":
            self._require_confidence(list(zip(sides, target, strict=True)), facts, teacher)

    def _require_confidence(
        self, sides: list[tuple[torch.Size, torch.Size]], facts: BuildContext, teacher: Any
    ) -> None:
        """Raise RecipeError where there is no telling how well each teacher says each sample."""
        instead = "take weights='equal', 'learned' or shares"
        if facts.task == "regression":
            raise RecipeError(
                "weights='confidence' asks how well each teacher says the class or the labels, and this data is "
                f"regression; {instead}"
            )
        if not isinstance(teacher, tuple):
            raise RecipeError(
                f"weights='confidence' weighs the teachers of a Panel, and this is one teacher; {instead}"
            )
        (loss,) = self._loss
        losses: list[Any] = list(self._copies) or [loss] * len(sides)
        for each, (ours, theirs) in zip(losses, sides, strict=True):
            require_apart(each, ours, theirs, facts)

    def extra_repr(self) -> str:
        """Return what is asked of each teacher, for plans."""
        (loss,) = self._loss
        return f"{type(loss).__name__ if isinstance(loss, nn.Module) else loss!r}, weights={self.weights!r}"

    def forward(self, student: Sided, target: tuple[Tensor, ...], **beside: Any) -> Tensor:
        """Return the weighted sum over teachers."""
        ours = several(student)
        sides = list(zip(ours * len(target) if len(ours) == 1 else ours, target, strict=True))
        asked = {name: beside[name] for name in self._asked}
        losses: list[Any] = list(self._copies) or [*self._loss] * len(sides)
        if self.weights == "confidence":
            counts = confidence(beside["teacher_outputs"], beside["labels"]).unbind(1)
            values = [
                (count * by_sample(loss, one, other, asked)).mean()
                for loss, (one, other), count in zip(losses, sides, counts, strict=True)
            ]
            return torch.stack(values).sum()
        values = [loss(one, other, **asked) for loss, (one, other) in zip(losses, sides, strict=True)]
        if self.log_variances is not None:
            return ((-self.log_variances).exp() * torch.stack(values) + self.log_variances / 2).mean()
        shares = self.weights if isinstance(self.weights, tuple) else (1 / len(values),) * len(values)
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()


def _validated(weights: Any) -> TeacherWeighting | tuple[float, ...]:
    if isinstance(weights, str):
        if weights not in get_args(TeacherWeighting):
            raise RecipeError(f"weights are shares, or one of {', '.join(get_args(TeacherWeighting))}; got {weights!r}")
        return weights  # type: ignore[return-value]  # one of them, as was just seen
    shares = tuple(weights) if isinstance(weights, Sequence) else ()
    if not shares or not all(is_number(share) and share >= 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise RecipeError(f"the shares of teachers are at least 0 and sum to 1; got {weights!r}")
    return shares
