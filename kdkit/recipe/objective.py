"""The objective of a network, written as in a paper: `0.3 * Truth(bce) + 0.7 * Match(teacher, soft_targets)`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdkit.errors import RecipeError, describe
from kdkit.losses.base import Loss, describe_loss, loss_name
from kdkit.nets.taps import TapLike
from kdkit.recipe.ramps import Ramp, reciprocal
from kdkit.teachers.base import Teacher
from kdkit.utils.reprs import describe_options
from kdkit.utils.validation import is_number

Factor = float | Ramp
Taps = TapLike | Sequence[TapLike] | None


class _Summand:
    """A part of an objective: a term, or a sum of terms. It can be added, and multiplied by a number or a ramp."""

    __slots__ = ()

    def weighted_terms(self) -> "tuple[WeightedTerm, ...]":
        """Return the terms with their factors: a single term, unless a sum overrides this."""
        return (WeightedTerm(self),)  # type: ignore[arg-type]  # a Truth or a Match

    def __add__(self, term: "_Summand | int") -> "Objective":
        if term == 0:  # the start value of sum()
            return Objective(self.weighted_terms())
        if not isinstance(term, _Summand):
            raise RecipeError(f"an objective is a sum of Truth(...) and Match(...) terms; got {term!r} in it")
        return Objective(self.weighted_terms() + term.weighted_terms())

    __radd__ = __add__

    def __mul__(self, factor: Factor) -> "Objective":
        _validate_factor(factor)
        if not callable(factor) and not isinstance(factor, float | int):
            factor = float(factor)  # such as a numpy scalar
        return Objective(tuple(WeightedTerm(part.term, (*part.factors, factor)) for part in self.weighted_terms()))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Objective":
        return self * reciprocal(divisor)


@dataclass(frozen=True, slots=True)
class Truth(_Summand):
    """Learn from the labels (ground truth): `loss(student side, labels)`.

    label: the name of the term in tables; if several terms of a network have the default one, a `Stage` numbers them.
    student: the tap or tuple of taps to compare with the labels, for example on an auxiliary head; None for the
    outputs. A tapped head follows the order of the network's `classes` if these are the classes of the data in another
    order. Otherwise it must follow the classes of the data, even if the network has other `classes`. teacher, target:
    None, unlike those of a `Match`.
    """

    teacher: ClassVar[None] = None
    target: ClassVar[None] = None

    loss: Loss
    label: str = "truth"
    student: Taps = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _validate_loss(self.loss)
        _validate_label(self.label)
        object.__setattr__(self, "student", _as_taps("student", self.student, self))

    @property
    def default_label(self) -> str:
        """The label if none is passed."""
        return "truth"

    def __repr__(self) -> str:
        options = [describe_loss(self.loss), *describe_options(self, "label", "student")]
        return f"Truth({', '.join(options)})"


def model_loss(student: Tensor, _target: object) -> Tensor:
    """Return the loss that a model computes itself, such as a transformers model with labels among its inputs.

    Use it in a term that taps this loss: `Truth(model_loss, student=Tap(net.module, element="loss"))`. Raises
    RecipeError if the tapped tensor is not a scalar.
    """
    if student.ndim:
        raise RecipeError(
            f"model_loss takes the loss that a model computes, a scalar, but the tap has a tensor "
            f'{tuple(student.shape)}; tap the loss, such as Tap(net.module, element="loss")'
        )
    return student


@dataclass(frozen=True, slots=True)
class Match(_Summand):
    """Learn from a teacher: `loss(student side, target side)`.

    student, target: the tap or tuple of taps to compare on either side; None for the outputs. If the student side is a
    tapped head, it is compared with the teacher's outputs class by class, see `Truth`.
    label: the name of the term in tables; "<teacher>/<loss>" if empty, numbered if several terms of a network have it.
    """

    teacher: Teacher
    loss: Loss
    student: Taps = field(default=None, kw_only=True)
    target: Taps = field(default=None, kw_only=True)
    label: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Teacher) or not isinstance(self.teacher.name, str):
            raise RecipeError(
                "Match takes a teacher first, such as Net('teacher', module, trained=True); "
                f"got {type(self.teacher).__name__}"
            )
        try:
            hash(self.teacher)
        except TypeError as error:
            raise RecipeError(
                f"a teacher must be hashable, because outputs are stored by teacher, but {self.teacher.name!r} is not "
                f"({error}); use @dataclass(frozen=True), or a plain class"
            ) from error
        _validate_loss(self.loss)
        _validate_label(self.label)
        for side in ("student", "target"):
            object.__setattr__(self, side, _as_taps(side, getattr(self, side), self))
        if not self.label:
            object.__setattr__(self, "label", self.default_label)

    def __repr__(self) -> str:
        options = [repr(self.teacher.name), describe_loss(self.loss), *describe_options(self, "student", "target")]
        if self.label != self.default_label:
            options.append(f"label={self.label!r}")
        return f"Match({', '.join(options)})"

    @property
    def default_label(self) -> str:
        """The label if none is passed."""
        return f"{self.teacher.name}/{loss_name(self.loss)}"


Term = Truth | Match


@dataclass(frozen=True, slots=True)
class WeightedTerm:
    """A term with its factors, whose product is its weight."""

    term: Term
    factors: tuple[Factor, ...] = ()

    def __repr__(self) -> str:
        return " * ".join([*map(describe_factor, self.factors), repr(self.term)])

    def weight(self, progress: float) -> float:
        """Return the product of the factors. progress: the position in the stage, in [0, 1]."""
        return math.prod(float(factor(progress) if callable(factor) else factor) for factor in self.factors)

    @property
    def is_constant(self) -> bool:
        """Whether the weight is the same in the whole stage."""
        return not any(map(callable, self.factors))

    @property
    def has_weight(self) -> bool:
        """Whether the weight is above 0 at any time in the stage; a ramp may start or end at 0."""
        return any(self.weight(step / 100) > 0 for step in range(101))


@dataclass(frozen=True, slots=True)
class Objective(_Summand):
    """A weighted sum of terms, such as `0.3 * Truth(loss) + 0.7 * Match(teacher, loss)`."""

    terms: tuple[WeightedTerm, ...]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))  # as written in a recipe

    def weighted_terms(self) -> tuple[WeightedTerm, ...]:
        """Return the terms with their factors."""
        return self.terms

    def __iter__(self) -> Iterator[WeightedTerm]:
        return iter(self.terms)

    def weights(self, progress: float) -> Mapping[str, float]:
        """Return the weight of each term, by label. progress: the position in the stage, in [0, 1]."""
        return {weighted.term.label: weighted.weight(progress) for weighted in self.terms}


AnyObjective = Objective | Term | Literal[0]  # 0 because type checkers regard it as a possible value of sum()


def describe_factor(factor: Factor) -> str:
    """Return a factor as written in a recipe."""
    return describe_loss(factor) if callable(factor) else f"{float(factor):g}"


def as_objective(objective: AnyObjective) -> Objective:
    """Return an objective or a single term as an Objective. Raises RecipeError for anything else."""
    if not isinstance(objective, _Summand):
        raise RecipeError(f"an objective is a sum of Truth(...) and Match(...) terms; got {type(objective).__name__}")
    return Objective(objective.weighted_terms())


def taps_of(side: Any) -> tuple[TapLike, ...]:
    """Return the taps of one side of a match as a tuple; empty for None."""
    if side is None:
        return ()
    return side if isinstance(side, tuple) else (side,)


def _as_taps(side: str, taps: Any, term: object) -> Taps:
    """Return the taps of a side, with a list as a tuple. Raises RecipeError if one is not a tap."""
    taps = tuple(taps) if isinstance(taps, list) else taps
    for tap in taps_of(taps):
        if not isinstance(tap, TapLike):
            raise RecipeError(
                f"the {side} side of a {type(term).__name__} must be a tap, such as Tap(net.module.layer3), or a tuple "
                f"of taps; got {type(tap).__name__}"
            )
    checked: Taps = taps
    return checked


def _validate_factor(factor: Any) -> None:
    if isinstance(factor, type):
        raise RecipeError(f"the weight of a term must be a number or a ramp; got {describe(factor)}")
    if callable(factor):
        # A ramp may be user-defined, so it is tried over the whole stage now, not in the middle of a run.
        for progress in (step / 100 for step in range(101)):
            value = factor(progress)
            if not is_number(value) or value < 0:
                kind = f"a {type(value).__name__} of " if hasattr(value, "shape") else ""
                raise RecipeError(
                    f"a ramp must return finite factors of at least 0; {factor!r} returns {kind}{value} at {progress}"
                )
    elif isinstance(factor, bool) or not isinstance(factor, Real):
        raise RecipeError(f"the weight of a term must be a number or a ramp; got {type(factor).__name__}")
    elif not math.isfinite(factor) or factor < 0:
        raise RecipeError(f"the weight of a term must be finite and at least 0; got {factor!r}")


def _validate_label(label: object) -> None:
    if not isinstance(label, str):
        raise RecipeError(f"the label of a term must be a text; got {label!r}")


def _validate_loss(loss: Any) -> None:
    if isinstance(loss, type) or not callable(loss):
        advice = f"; kdkit.registry('losses')[{loss!r}]() creates a loss by name" if isinstance(loss, str) else ""
        raise RecipeError(
            f"a loss must be callable with (student, target) and return a scalar; got {describe(loss)}{advice}"
        )
