"""The whole experiment as Python objects: data, who learns from whom and how, and what is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from kdkit.data.dataset import Data, missing_members
from kdkit.errors import RecipeError, describe
from kdkit.metrics import Metric, default_metrics
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.objective import Match, Objective, Term, as_objective, taps_of
from kdkit.recipe.training import Training
from kdkit.teachers import Ema, Past, Peer
from kdkit.teachers.base import Teacher
from kdkit.teachers.cache import CacheSettings
from kdkit.teachers.ensemble import Teachers

_OF_A_NET = (Ema, Past, Peer)  # sources of which it is known that they ask a net of their own stage, and nobody else


@dataclass(frozen=True, slots=True)
class Stage:
    """Which nets are trained together (mostly one), each toward its goal, and how."""

    objectives: Mapping[Net[Any], Objective | Term]
    training: Training
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.objectives, Mapping) or not self.objectives:
            raise RecipeError("a stage takes its goals by net: Stage({student: 0.3 * Truth(...) + ...}, training)")
        for net in self.objectives:
            if not isinstance(net, Net):
                raise RecipeError(f"a stage trains nets; got a {type(net).__name__}")
        if not isinstance(self.training, Training):
            raise RecipeError(f"a stage needs a Training; got {type(self.training).__name__}")
        object.__setattr__(
            self, "objectives", {net: as_objective(objective) for net, objective in self.objectives.items()}
        )
        object.__setattr__(self, "name", self.name or "+".join(net.name for net in self.objectives))
        if not all(letter.isalnum() or letter in "-_ +" for letter in self.name):
            raise RecipeError(f"a stage's name is made of letters, digits, '-', '_', '+' and spaces; got {self.name!r}")

    @property
    def matches(self) -> tuple[Match, ...]:
        """All terms that learn from a source."""
        terms = [each.term for objective in self.objectives.values() for each in as_objective(objective)]
        return tuple(term for term in terms if isinstance(term, Match))

    @property
    def teachers(self) -> Mapping[Teacher, tuple[TapLike, ...]]:
        """What is asked in this stage, and the taps that are open on each while it answers."""
        taps: dict[Teacher, dict[TapLike, None]] = {}
        for match in self.matches:
            for teacher, theirs in teachers_of(match).items():
                taps.setdefault(teacher, {}).update(dict.fromkeys(theirs))
        return {teacher: tuple(each) for teacher, each in taps.items()}


@runtime_checkable
class Schedule(Protocol):
    """Who learns from whom, and when: turns nets and a way of guiding into stages."""

    def stages(self) -> Sequence[Stage]:
        """Return the stages in the order they run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An experiment. It holds live nets, so it runs once.

    data: a Data. schedule: a Schedule. scores: what is measured; the first one decides which epoch is kept, unless a
    Training says otherwise. The default ones fit the data's task. name: for tables; the recipe file's where empty.
    answers: how what frozen teachers say is kept; exactly as it is by default.
    """

    data: Data
    schedule: Schedule | Sequence[Stage]
    metrics: tuple[Metric, ...] = ()
    name: str = ""
    teacher_cache: CacheSettings = field(default_factory=CacheSettings)
    _used: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if missing := missing_members(self.data):
            raise RecipeError(
                "data is a TorchData(train, validation) or another subclass of kdkit.Data; got a "
                f"{type(self.data).__name__}, which lacks {', '.join(missing)}"
            )
        _validate_schedule(self.schedule)
        if not isinstance(self.teacher_cache, CacheSettings):
            raise RecipeError(f"answers is Answers(dtype=..., top=..., audit=...); got {self.teacher_cache!r}")
        if not isinstance(self.metrics, Sequence) or isinstance(self.metrics, str):
            raise RecipeError(f"scores is a tuple of scores, such as (MacroF1(),); got {self.metrics!r}")
        object.__setattr__(self, "metrics", tuple(self.metrics) or default_metrics(self.data.task))
        for score in self.metrics:
            if isinstance(score, type) or not isinstance(score, Metric):
                raise RecipeError(f"a metric has a name, fit and compute; got {describe(score)}")
        names = [score.name for score in self.metrics]
        if len(set(names)) < len(names):
            raise RecipeError(f"two scores have the same name: {', '.join(sorted(names))}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order they run."""
        return tuple(self.schedule.stages() if isinstance(self.schedule, Schedule) else self.schedule)

    def use(self) -> None:
        """Mark the recipe as run."""
        self._used.append(True)

    def require_unused(self) -> None:
        """Raise RecipeError if the recipe has run."""
        if self._used:
            raise RecipeError(
                "this Recipe has run already, and its nets are trained; make it anew by calling the recipe function, "
                "or pass the function itself to kdkit.run"
            )


def _validate_schedule(schedule: object) -> None:
    if isinstance(schedule, Schedule):
        return
    if not isinstance(schedule, Sequence) or isinstance(schedule, str):
        raise RecipeError(
            f"schedule must be a list of stages or an object with a stages() method; got {type(schedule).__name__}"
        )
    for stage in schedule:
        if not isinstance(stage, Stage):
            raise RecipeError(f"a schedule is a list of Stage(...); got a {type(stage).__name__} in it")


def nets_of(stages: Sequence[Stage]) -> tuple[Net[Any], ...]:
    """Return every net that teaches or learns, each once, in order of appearance."""
    nets: dict[Net[Any], None] = {}
    for stage in stages:
        nets.update(dict.fromkeys(teacher for teacher in stage.teachers if isinstance(teacher, Net)))
        nets.update(dict.fromkeys(stage.objectives))
    return tuple(nets)


def needs_of(stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """Return for each stage, by name, those before it that must be over when it begins.

    They are those that train a part of what it trains or asks, or that ask a part of what it trains. What a source of
    one's own or a plain callable asks cannot be seen, so a stage with one keeps its place.
    """
    trained = [_parts(stage.objectives) for stage in stages]
    used = [trained[place] | _parts(stage.teachers) | _parts_of_losses(stage) for place, stage in enumerate(stages)]
    kept = [any(map(_is_opaque, stage.teachers)) for stage in stages]
    return {
        stage.name: tuple(
            stages[earlier].name
            for earlier in range(place)
            if kept[place] or kept[earlier] or trained[earlier] & used[place] or used[earlier] & trained[place]
        )
        for place, stage in enumerate(stages)
    }


def _is_opaque(teacher: Teacher) -> bool:
    """Whether it cannot be seen what a source asks."""
    return not isinstance(teacher.module, nn.Module) if isinstance(teacher, Net) else not isinstance(teacher, _OF_A_NET)


def _parts(matched: Iterable[object]) -> set[int]:
    """Return the identities of modules, parameters and buffers of nets."""
    return {part for each in matched if isinstance(each, Net) for part in _parts_of(each.module)}


def _parts_of_losses(stage: Stage) -> set[int]:
    """Return those of the losses, some of which hold a part of a teacher."""
    losses = [each.term.loss for objective in stage.objectives.values() for each in as_objective(objective)]
    return {part for loss in losses for part in _parts_of(loss)}


def _parts_of(module: object) -> set[int]:
    if not isinstance(module, nn.Module):
        return set()
    return {id(part) for kind in (module.modules, module.parameters, module.buffers) for part in kind()}


def teachers_of(match: Match) -> Mapping[Teacher, tuple[TapLike, ...]]:
    """Return who is asked for what a term matches, and the taps that are open on each while it answers.

    Of a Panel each member is asked, with the tap in its place. Nobody is asked for a Peer, which the lesson itself
    knows.
    """
    taps = taps_of(match.target)
    if isinstance(match.teacher, Peer):
        return {}
    if not isinstance(match.teacher, Teachers):
        return {match.teacher: taps}
    members = match.teacher.members
    return {net: taps[place : place + 1] for place, net in enumerate(members)}
