"""How one net learns from several: the labels, a guide, the balance between them, and each teacher's share."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Required, TypedDict

from torch import nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.losses import Loss, PerTeacher, TeacherWeighting
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, Objective, Term, Truth, as_objective
from kdkit.recipe.recipe import Stage
from kdkit.recipe.training import Training
from kdkit.teachers import Teachers


@dataclass(frozen=True, slots=True)
class Level:
    """A net of a schedule, with what is different for it: its training, its teachers' shares, its balance.

    shares: of its teachers in their order, equal ones where None; or "confidence" or "learned", as `PerTeacher` weighs
    the teachers of a Panel by the guide.
    """

    net: Net[Any]
    training: Training | None = None
    teacher_weights: tuple[float, ...] | TeacherWeighting | None = None
    label_weight: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, Net):
            raise RecipeError(f"a level takes a Net; got a {type(self.net).__name__}")
        if self.teacher_weights is not None and not isinstance(self.teacher_weights, Sequence):
            raise RecipeError(f"shares are a number for each teacher, such as (0.6, 0.4); got {self.teacher_weights!r}")


class GuidingOptions(TypedDict, total=False):
    """The options of `Guidance`, as every schedule takes them."""

    truth: Required[Truth]
    training: Required[Training]
    kd_loss: Loss | None
    match: Callable[[Net[Any], Net[Any]], Objective | Term] | None
    label_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """The goal of a net that learns from teachers: balance * truth + (1 - balance) * sum of share * guide.

    truth: what is learned from the labels. guide: the loss against a teacher's outputs; one with weights of its own is
    copied for each teacher. match: instead of a guide, a function of (net, teacher) that returns any goal, taps and
    all. balance: the share of the truth, in [0, 1]. A net without teachers learns from the truth alone.
    """

    truth: Truth
    training: Training
    kd_loss: Loss | None = None
    match: Callable[[Net[Any], Net[Any]], Objective | Term] | None = None
    label_weight: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.truth, Truth):
            raise RecipeError(f"truth is Truth(loss); got a {type(self.truth).__name__}")
        if (self.kd_loss is None) == (self.match is None):
            raise RecipeError("a schedule takes either kd_loss=loss or match=function(net, teacher)")
        _validate_balance(self.label_weight)

    def stage(self, level: Level, teachers: Sequence[Net[Any]]) -> Stage:
        """Return the stage in which this level's net learns from the labels and from these teachers."""
        training = level.training or self.training
        if not teachers:
            if level.teacher_weights is not None or level.label_weight is not None:
                raise RecipeError(f"net {level.net.name!r} has no teacher, so it takes neither shares nor a balance")
            return Stage({level.net: self.truth}, training)
        label_weight = self.label_weight if level.label_weight is None else level.label_weight
        _validate_balance(label_weight)
        teacher_weights = level.teacher_weights
        if isinstance(teacher_weights, str):
            guided = self._together(level.net, teachers, teacher_weights)
        else:
            guided = self._apart(level.net, teachers, teacher_weights or (1 / len(teachers),) * len(teachers))
        return Stage({level.net: label_weight * self.truth + (1 - label_weight) * guided}, training)

    def _apart(self, net: Net[Any], teachers: Sequence[Net[Any]], teacher_weights: tuple[float, ...]) -> Objective:
        """Return a term or more for each teacher, with its share."""
        _validate_shares(net, teachers, teacher_weights)
        guided = [
            share * self._match(net, teacher) for share, teacher in zip(teacher_weights, teachers, strict=True) if share
        ]
        return Objective(tuple(each for one in guided for each in one))

    def _together(self, net: Net[Any], teachers: Sequence[Net[Any]], weights: TeacherWeighting) -> Objective:
        """Return one term for all teachers, which weighs them by itself."""
        if self.kd_loss is None:
            raise RecipeError(
                f"net {net.name!r} weighs its teachers by teacher_weights={weights!r}, which takes kd_loss=loss; in a match of "
                "your own, write Match(Panel(...), PerTeacher(loss, weights=...))"
            )
        if len(teachers) < 2:
            return self._match(net, teachers[0])
        return as_objective(Match(Teachers(*teachers), PerTeacher(copy.deepcopy(self.kd_loss), weights=weights)))

    def _match(self, net: Net[Any], teacher: Net[Any]) -> Objective:
        if self.match is not None:
            return as_objective(self.match(net, teacher))
        kd_loss = copy.deepcopy(self.kd_loss) if isinstance(self.kd_loss, nn.Module) else self.kd_loss
        return as_objective(Match(teacher, kd_loss))  # type: ignore[arg-type]  # not None: see __post_init__


def guiding_of(options: GuidingOptions) -> Guidance:
    """Return the guiding with these options. Raises RecipeError for one that does not exist or is missing."""
    known = [each.name for each in fields(Guidance)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise RecipeError(f"a schedule has no option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    missing = [name for name in sorted(GuidingOptions.__required_keys__) if name not in options]
    if missing:
        raise RecipeError(f"a schedule takes {' and '.join(f'{name}=...' for name in missing)} too")
    return Guidance(**options)


def levels_of(nets: Sequence[Net[Any] | Level], least: int, schedule: str) -> tuple[Level, ...]:
    """Return nets as levels. Raises RecipeError for fewer than `least`, or for a net that comes twice."""
    levels = tuple(each if isinstance(each, Level) else Level(each) for each in nets)
    if len(levels) < least:
        raise RecipeError(f"{schedule} takes at least {least} nets, the student last; got {len(levels)}")
    if len({level.net for level in levels}) < len(levels):
        raise RecipeError(f"{schedule} takes each net once; got {', '.join(level.net.name for level in levels)}")
    return levels


def _validate_balance(label_weight: float) -> None:
    if not 0 <= label_weight <= 1:
        raise RecipeError(f"label_weight is the share of the truth, in [0, 1]; got {label_weight!r}")


def _validate_shares(net: Net[Any], teachers: Sequence[Net[Any]], teacher_weights: tuple[float, ...]) -> None:
    if len(teacher_weights) != len(teachers):
        raise RecipeError(
            f"net {net.name!r} learns from {len(teachers)} ({', '.join(each.name for each in teachers)}), so it "
            f"takes as many shares; got {teacher_weights}"
        )
    if not all(math.isfinite(share) and share >= 0 for share in teacher_weights) or not math.isclose(
        sum(teacher_weights), 1
    ):
        raise RecipeError(f"the shares of net {net.name!r} are at least 0 and sum to 1; got {teacher_weights}")
