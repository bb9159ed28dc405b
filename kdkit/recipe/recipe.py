"""Recipes: a whole experiment as Python objects, from the data to the metrics."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from kdkit.data.dataset import Data
from kdkit.errors import KdkitError, RecipeError, describe, describe_error
from kdkit.metrics.base import Metric
from kdkit.metrics.defaults import default_metrics
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.objective import AnyObjective, Match, Objective, Term, WeightedTerm, as_objective, taps_of
from kdkit.recipe.training import Training
from kdkit.teachers.base import OnlineTeacher, Teacher
from kdkit.teachers.cache.settings import CacheSettings
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer
from kdkit.utils.reprs import describe_count, describe_names
from kdkit.utils.validation import validate_name


@dataclass(frozen=True, slots=True)
class Stage:
    """The networks that are trained together, usually one, with their objectives and the training options.

    name: also the name of the stage's folder; by default, the names of the networks.
    baseline_of: the name of an earlier stage to compare with, whose random numbers this stage repeats, such as the
    order of the data; see `kdkit.run(..., baseline=True)`.
    """

    objectives: Mapping[Net[Any], Objective]
    training: Training
    name: str = ""
    baseline_of: str = ""

    if TYPE_CHECKING:  # an argument may be a single term, the field is an Objective

        def __init__(
            self,
            objectives: Mapping[Net[Any], AnyObjective],
            training: Training,
            name: str = "",
            baseline_of: str = "",
        ) -> None: ...

    def __post_init__(self) -> None:
        if not isinstance(self.objectives, Mapping) or not self.objectives:
            raise RecipeError(
                "a stage takes an objective for each net: Stage({student: 0.3 * Truth(...) + ...}, training)"
            )
        for net in self.objectives:
            if not isinstance(net, Net):
                advice = "; give it a name: Net('student', module)" if isinstance(net, nn.Module) else ""
                raise RecipeError(f"a stage trains nets; got a {type(net).__name__}{advice}")
        if not isinstance(self.training, Training):
            raise RecipeError(f"a stage needs a Training; got {type(self.training).__name__}")
        objectives = {net: _numbered(as_objective(objective)) for net, objective in self.objectives.items()}
        object.__setattr__(self, "objectives", objectives)
        object.__setattr__(self, "name", self.name or "+".join(net.name for net in self.objectives))
        validate_name("stage", self.name, "-_+ ")

    def __repr__(self) -> str:
        objectives = "".join(f"\n  {net.name} learns {objective}" for net, objective in self.objectives.items())
        training = self.training
        return (
            f"Stage({self.name!r}, {describe_count(training.epochs, 'epoch')} of batches of {training.batch_size}, "
            f"{training.optimizer}){objectives}"
        )

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of all objectives."""
        return tuple(weighted.term for _, weighted in weighted_terms(self))

    @property
    def matches(self) -> tuple[Match, ...]:
        """All terms that match a teacher."""
        return tuple(term for term in self.terms if isinstance(term, Match))

    @property
    def teachers(self) -> Mapping[Teacher, tuple[TapLike, ...]]:
        """The teachers that run on their own in this stage, each with the taps on it from all terms."""
        taps: dict[Teacher, dict[TapLike, None]] = {}  # the inner dict is an ordered set
        for term in self.terms:
            for teacher, teacher_taps in teachers_of(term).items():
                taps.setdefault(teacher, {}).update(dict.fromkeys(teacher_taps))
        return {teacher: tuple(teacher_taps) for teacher, teacher_taps in taps.items()}


@runtime_checkable
class Schedule(Protocol):
    """An object that returns stages, and so decides which network learns from which, and when."""

    def stages(self) -> Sequence[Stage]:
        """Return the stages in the order in which they run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An experiment. It holds the networks themselves, so it can run only once.

    data: a Data. schedule: a list of stages, or a Schedule such as `MultiLevel`.
    metrics: the first one decides which epoch is kept, unless Training(monitor=...) names another. The defaults depend
    on the data's task. name: for tables; by default, the name of the recipe file.
    teacher_cache: how outputs of frozen teachers are cached; by default, exactly.
    """

    data: Data
    schedule: Schedule | Sequence[Stage]
    metrics: Sequence[Metric] = ()
    name: str = ""
    teacher_cache: CacheSettings = field(default_factory=CacheSettings)
    _used: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            raise RecipeError(
                "data must be a TorchData(train, validation) or another subclass of kdkit.Data; got a "
                f"{type(self.data).__name__}"
            )
        if not isinstance(self.name, str):
            raise RecipeError(f"the name of a recipe must be a text; got {self.name!r}")
        _validate_schedule(self.schedule)
        if not isinstance(self.teacher_cache, CacheSettings):
            raise RecipeError(
                f"teacher_cache must be CacheSettings(dtype=..., top=..., audit=...); got {self.teacher_cache!r}"
            )
        if not isinstance(self.metrics, Sequence) or isinstance(self.metrics, str):
            raise RecipeError(f"metrics must be a tuple of metrics, such as (MacroF1(),); got {self.metrics!r}")
        metrics = tuple(self.metrics) or default_metrics(self.data.task, self.data.position_dims)
        object.__setattr__(self, "metrics", metrics)
        for metric in self.metrics:
            if isinstance(metric, type) or not isinstance(metric, Metric) or not isinstance(metric.name, str):
                advice = "" if isinstance(metric, type) else "; use one of kdkit.metrics, such as Accuracy()"
                raise RecipeError(f"a metric must have a name, fit and compute; got {describe(metric)}{advice}")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise RecipeError(f"two metrics have the same name: {', '.join(sorted(names))}")

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        stages = "".join("\n" + textwrap.indent(repr(stage), "  ") for stage in self.stages)
        metrics = describe_names(metric.name for metric in self.metrics)
        return f"Recipe({name}{self.data}, metrics: {metrics}){stages}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order in which they run. Raises RecipeError if a schedule of the user cannot make them."""
        if not isinstance(self.schedule, Schedule):
            return tuple(self.schedule)
        method = f"stages() of the schedule {type(self.schedule).__name__}"
        try:
            stages: Any = self.schedule.stages()
            if isinstance(stages, Iterable) and not isinstance(stages, str):
                return tuple(stages)
        except KdkitError:
            raise
        except Exception as error:  # a user-defined schedule may raise anything
            raise RecipeError(f"{method} raises {describe_error(error)}") from error
        raise RecipeError(f"{method} must return a list of Stage(...); got a {type(stages).__name__}")

    def with_stages(self, stages: Sequence[Stage]) -> "Recipe":
        """Return this recipe with other stages. When one of the two runs, both count as used."""
        changed = replace(self, schedule=stages)
        object.__setattr__(changed, "_used", self._used)
        return changed

    def mark_used(self) -> None:
        """Mark the recipe as run."""
        self._used.append(True)

    def require_unused(self) -> None:
        """Raise RecipeError if the recipe has already run."""
        if self._used:
            raise RecipeError(
                "this Recipe has already run, so its nets are trained; call the recipe function to create a new one, "
                "or pass the function itself to kdkit.run"
            )


def as_recipe(recipe: Recipe | Callable[[], Recipe], caller: str) -> Recipe:
    """Return the recipe, or the one that a function returns. caller: the function that is called, for messages.

    Raises RecipeError if it is neither.
    """
    value = recipe() if callable(recipe) else recipe
    if not isinstance(value, Recipe):
        raise RecipeError(
            f"{caller} takes a kdkit.Recipe, or a function that returns one; got a {type(value).__name__}; "
            f"to {caller} a recipe file, use `kdkit {caller} FILE`"
        )
    return value


def nets_of(stages: Sequence[Stage]) -> tuple[Net[Any], ...]:
    """Return every network that is a teacher or is trained, without duplicates, in order of appearance."""
    nets: dict[Net[Any], None] = {}
    for stage in stages:
        nets.update(dict.fromkeys(teacher for teacher in stage.teachers if isinstance(teacher, Net)))
        nets.update(dict.fromkeys(stage.objectives))
    return tuple(nets)


def monitored_metric(recipe: Recipe, stage: Stage) -> Metric:
    """Return the metric that chooses the best epoch of a stage."""
    name = stage.training.monitor or recipe.metrics[0].name
    return next(metric for metric in recipe.metrics if metric.name == name)


def weighted_terms(stage: Stage) -> tuple[tuple[Net[Any], WeightedTerm], ...]:
    """Return all terms of a stage with their factors, each with the network that it trains."""
    return tuple((net, weighted) for net, objective in stage.objectives.items() for weighted in objective)


def teachers_of(term: Term) -> Mapping[Teacher, tuple[TapLike, ...]]:
    """Return the teachers of a term that run on their own, with its taps on each; none for a term on the labels.

    Each member of `Teachers` runs with the tap at its position. A Peer does not run on its own: it is a student of the
    stage.
    """
    teacher, taps = term.teacher, taps_of(term.target)
    if teacher is None or isinstance(teacher, Peer):
        return {}
    if not isinstance(teacher, Teachers):
        return {teacher: taps}
    return {net: taps[index : index + 1] for index, net in enumerate(teacher.members)}


def stage_dependencies(stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """Return, for each stage by name, the earlier stages that must finish before it starts.

    A stage depends on a stage that trains a module that it trains or runs, or that runs a module that it trains. The
    modules that a user-defined teacher or a plain callable runs are unknown, so a stage with one depends on all earlier
    stages, and all later stages depend on it.
    """
    trained = [_parts(net.module for net in stage.objectives) for stage in stages]
    used = [
        # A loss may hold part of a teacher, such as its classifier.
        _parts([*(net.module for net in nets_of([stage])), *(term.loss for term in stage.terms)])
        for stage in stages
    ]
    opaque = [any(map(_is_opaque, stage.teachers)) for stage in stages]

    def depends(stage: int, earlier: int) -> bool:
        shares_modules = trained[earlier] & used[stage] or used[earlier] & trained[stage]
        return opaque[stage] or opaque[earlier] or bool(shares_modules)

    return {
        stage.name: tuple(stages[earlier].name for earlier in range(index) if depends(index, earlier))
        for index, stage in enumerate(stages)
    }


def _numbered(objective: Objective) -> Objective:
    """Number the default labels that several terms have, such as of hints at two layers: teacher/hint 1 and 2."""
    labels = [weighted.term.label for weighted in objective if weighted.term.label == weighted.term.default_label]
    numbers = {label: count(1) for label in labels if labels.count(label) > 1}
    terms = []
    for weighted in objective:
        label = weighted.term.label
        if label in numbers:
            weighted = replace(weighted, term=replace(weighted.term, label=f"{label} {next(numbers[label])}"))
        terms.append(weighted)
    return Objective(tuple(terms))


def _is_opaque(teacher: Teacher) -> bool:
    """Whether the modules that a teacher runs are unknown."""
    if isinstance(teacher, Net):
        return not isinstance(teacher.module, nn.Module)
    return not isinstance(teacher, OnlineTeacher)  # runs a network of its own stage only


def _parts(modules: Iterable[object]) -> set[int]:
    """Return the ids of modules and of their submodules, parameters and buffers."""
    return {
        id(part)
        for module in modules
        if isinstance(module, nn.Module)
        for part in chain(module.modules(), module.parameters(), module.buffers())
    }


def _validate_schedule(schedule: object) -> None:
    if isinstance(schedule, type):
        raise RecipeError(f"schedule must be an object with a stages() method; got {describe(schedule)}")
    if isinstance(schedule, Schedule):
        if not callable(schedule.stages):
            raise RecipeError(
                f"stages of a schedule must be a method that returns stages; got {describe(schedule.stages)}"
            )
        return
    if not isinstance(schedule, Sequence) or isinstance(schedule, str):
        raise RecipeError(
            f"schedule must be a list of stages or an object with a stages() method; got {type(schedule).__name__}"
        )
    for stage in schedule:
        if not isinstance(stage, Stage):
            raise RecipeError(f"a schedule is a list of Stage(...); got a {type(stage).__name__} in it")
