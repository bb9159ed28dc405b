"""The objective of a network in a schedule: the labels, the teachers, and their weights."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Required, TypedDict

from torch import nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.losses.base import Loss, describe_loss
from kdkit.losses.multi_teacher import PerTeacher, TeacherWeighting
from kdkit.nets.net import Net
from kdkit.recipe.objective import AnyObjective, Match, Objective, Truth, as_objective
from kdkit.recipe.recipe import Stage
from kdkit.recipe.training import Training
from kdkit.teachers.ensemble import Teachers
from kdkit.utils.reprs import describe_count
from kdkit.utils.validation import is_number, validate_share


@dataclass(frozen=True, slots=True)
class Level:
    """A network of a schedule, with its own options.

    teacher_weights: one number per teacher, which sum to 1; equal weights if None. With "confidence" or "learned",
    `PerTeacher` weights the teachers per sample. label_weight: see `Guidance`.
    """

    net: Net[Any]
    training: Training | None = None
    teacher_weights: tuple[float, ...] | TeacherWeighting | None = None
    label_weight: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, Net):
            raise RecipeError(f"a level takes a Net; got a {type(self.net).__name__}")
        if self.teacher_weights is not None and not isinstance(self.teacher_weights, Sequence):
            raise RecipeError(
                f"teacher_weights must be one number per teacher, such as (0.6, 0.4); got {self.teacher_weights!r}"
            )


class GuidanceOptions(TypedDict, total=False):
    """The fields of `Guidance` as keyword arguments of a schedule."""

    truth: Required[Truth]
    training: Required[Training]
    kd_loss: Loss | None
    match: Callable[[Net[Any], Net[Any]], AnyObjective] | None
    label_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """The objective `label_weight * truth + (1 - label_weight) * sum of teacher_weight * kd_loss`.

    truth: the term for the labels. kd_loss: the loss between the outputs of the network and a teacher; a loss with
    parameters is copied for each teacher. match: instead of kd_loss, a function of (net, teacher) that returns any
    objective, for example with taps. label_weight: the weight of the labels, in [0, 1]; 0 leaves out `truth`. A network
    without teachers learns only from `truth`.
    """

    truth: Truth
    training: Training
    kd_loss: Loss | None = None
    match: Callable[[Net[Any], Net[Any]], AnyObjective] | None = None
    label_weight: float = 0.5

    def __repr__(self) -> str:
        loss = describe_loss(self.match if self.kd_loss is None else self.kd_loss)
        return f"Guidance({self.label_weight:g} * {self.truth} + {1 - self.label_weight:g} * {loss})"

    def __post_init__(self) -> None:
        if not isinstance(self.truth, Truth):
            raise RecipeError(f"truth must be Truth(loss); got a {type(self.truth).__name__}")
        if (self.kd_loss is None) == (self.match is None):
            raise RecipeError("a schedule takes either kd_loss=loss or match=function(net, teacher)")
        validate_share("label_weight", self.label_weight)

    def stage(self, level: Level, teachers: Sequence[Net[Any]]) -> Stage:
        """Return the stage in which this level's network learns from the labels and these teachers."""
        training = level.training or self.training
        if not teachers:
            if level.teacher_weights is not None or level.label_weight is not None:
                raise RecipeError(
                    f"net {level.net.name!r} has no teacher, so it takes neither teacher_weights nor label_weight"
                )
            return Stage({level.net: self.truth}, training)
        label_weight = self.label_weight if level.label_weight is None else level.label_weight
        validate_share("label_weight", label_weight)
        weights = level.teacher_weights
        if isinstance(weights, str):
            distillation = self._weighted_per_sample(level.net, teachers, weights)
        else:
            weights = (1 / len(teachers),) * len(teachers) if weights is None else weights
            _validate_teacher_weights(level.net, teachers, weights)
            parts = [
                weight * self._match(level.net, teacher)
                for weight, teacher in zip(weights, teachers, strict=True)
                if weight  # a teacher with weight 0 does not run
            ]
            distillation = Objective(tuple(term for part in parts for term in part))
        if not label_weight:  # no term for the labels, which the data may lack
            return Stage({level.net: distillation}, training)
        return Stage({level.net: label_weight * self.truth + (1 - label_weight) * distillation}, training)

    def _weighted_per_sample(self, net: Net[Any], teachers: Sequence[Net[Any]], weights: TeacherWeighting) -> Objective:
        """Return a single term that weights all teachers per sample."""
        if self.kd_loss is None:
            raise RecipeError(
                f"net {net.name!r} has teacher_weights={weights!r}, which needs kd_loss=loss; in a user-defined match, "
                "write Match(Teachers(...), PerTeacher(loss, weights=...))"
            )
        if len(teachers) < 2:
            return self._match(net, teachers[0])
        return as_objective(Match(Teachers(*teachers), PerTeacher(copy.deepcopy(self.kd_loss), weights=weights)))

    def _match(self, net: Net[Any], teacher: Net[Any]) -> Objective:
        if self.match is not None:
            return as_objective(self.match(net, teacher))
        kd_loss = copy.deepcopy(self.kd_loss) if isinstance(self.kd_loss, nn.Module) else self.kd_loss
        return as_objective(Match(teacher, kd_loss))  # type: ignore[arg-type]  # not None: see __post_init__


def build_guidance(options: GuidanceOptions) -> Guidance:
    """Return a Guidance with these options. Raises RecipeError if one is unknown or missing."""
    names = [field.name for field in fields(Guidance)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise RecipeError(f"a schedule has no option {unknown[0]!r}; {did_you_mean(unknown[0], names)}")
    missing = [name for name in sorted(GuidanceOptions.__required_keys__) if name not in options]
    if missing:
        raise RecipeError(f"a schedule also needs {' and '.join(f'{name}=...' for name in missing)}")
    return Guidance(**options)


def as_levels(nets: Sequence[Net[Any] | Level], least: int, schedule: str) -> tuple[Level, ...]:
    """Return networks as levels. Raises RecipeError for fewer than `least` networks, or for a duplicate."""
    levels = tuple(net if isinstance(net, Level) else Level(net) for net in nets)
    if len(levels) < least:
        raise RecipeError(f"{schedule} takes at least {least} nets, the student last; got {len(levels)}")
    if len({level.net for level in levels}) < len(levels):
        raise RecipeError(f"{schedule} takes each net once; got {', '.join(level.net.name for level in levels)}")
    return levels


def _validate_teacher_weights(net: Net[Any], teachers: Sequence[Net[Any]], weights: tuple[float, ...]) -> None:
    if len(weights) != len(teachers):
        names = ", ".join(teacher.name for teacher in teachers)
        raise RecipeError(
            f"net {net.name!r} has {describe_count(len(teachers), 'teacher')} ({names}), so it takes "
            f"{describe_count(len(teachers), 'number')} as teacher_weights; got {weights}"
        )
    if not all(is_number(weight) and weight >= 0 for weight in weights) or not math.isclose(sum(weights), 1):
        raise RecipeError(f"the teacher_weights of net {net.name!r} must be at least 0 and sum to 1; got {weights}")
