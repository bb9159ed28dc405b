"""A loss against each of several teachers at once, and how much each of them counts."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.conditions import is_number
from kdkit.losses.confidence import by_sample, confidence, require_apart
from kdkit.losses.loss import Facts, Loss, asked_by, needs_of
from kdkit.losses.projected import Shapes, Sided, several

Weighing = Literal["equal", "confidence", "learned"]


class FromEach(nn.Module):
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

    def __init__(self, loss: Loss, *, weights: Weighing | Sequence[float] = "equal") -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss):
            raise RecipeError(f"FromEach takes a loss, such as SoftTargets(); got {loss!r}")
        self._loss = (loss,)  # in a tuple, so that it is not trained beside its copies
        self._copies = nn.ModuleList()
        self.weights = _validated(weights)
        self.log_variances = nn.Parameter(torch.zeros(0)) if weights == "learned" else None
        self._asked = asked_by(loss)
        self.asks = self._asked | ({"labels", "answers"} if weights == "confidence" else frozenset())
        self.needs = needs_of(loss)

    def build(self, student: Shapes, target: Shapes, facts: Facts, teacher: Any) -> None:
        """Make and build a loss for each teacher. teacher: the modules that answer, one for each.

        Raises RecipeError for teachers and shapes that do not fit, and for confidence in a loss that relates samples.
        """
        count = len(target)
        if count < 2 or len(student) not in (1, count):
            raise RecipeError(
                f"FromEach compares one side of the student, or one for each teacher, with a Panel of teachers; got "
                f"{len(student)} and {count}: Match(Panel(first, second), FromEach(...))"
            )
        if isinstance(self.weights, tuple) and len(self.weights) != count:
            raise RecipeError(f"FromEach takes a weight for each of {count} teachers; got {self.weights}")
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

    def _require_confidence(self, sides: list[tuple[torch.Size, torch.Size]], facts: Facts, teacher: Any) -> None:
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
            counts = confidence(beside["answers"], beside["labels"]).unbind(1)
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


def _validated(weights: Any) -> Weighing | tuple[float, ...]:
    if isinstance(weights, str):
        if weights not in get_args(Weighing):
            raise RecipeError(f"weights are shares, or one of {', '.join(get_args(Weighing))}; got {weights!r}")
        return weights  # type: ignore[return-value]  # one of them, as was just seen
    shares = tuple(weights) if isinstance(weights, Sequence) else ()
    if not shares or not all(is_number(share) and share >= 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise RecipeError(f"the shares of teachers are at least 0 and sum to 1; got {weights!r}")
    return shares
