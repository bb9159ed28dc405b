"""Turn the plan of a recipe into the content of a drawing: stages, their networks, and the terms between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kdkit.cli.plan import about, type_name
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.nets.net import Net
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer
from kdkit.utils.reprs import describe_count, format_count

LABELS = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A network, or the labels. net: the name of the network that gives its colour; None for labels."""

    name: str
    net: str | None
    lines: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Source:
    """Something that a student learns from by some terms.

    trained: the nets in it that an earlier stage trained, each as the index of that stage and its name.
    """

    box: Box
    trained: tuple[tuple[int, str], ...] = ()
    terms: list[TermSummary] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A student with its sources in a stage."""

    student: Box
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGraph:
    """A stage. facts: about its training."""

    name: str
    facts: str
    lessons: tuple[Lesson, ...]


def stage_graphs(plan: Plan) -> tuple[StageGraph, ...]:
    """Return the graph of each stage; a stage with problems has its students only."""
    return tuple(_StageInPlan(plan, index).graph() for index in range(len(plan.stage_plans)))


class _StageInPlan:
    """A stage of a plan. index: of the stage."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self.stage_plan = plan.stage_plans[index]
        self.stage, self.estimate = self.stage_plan.stage, self.stage_plan.estimate

    def graph(self) -> StageGraph:
        """Return the graph of the stage."""
        training, optimizer = self.stage.training, self.stage.training.optimizer.make
        facts = [
            describe_count(training.epochs, "epoch"),
            f"batches of {self.plan.loader_batch or training.batch_size:,}",
            optimizer if isinstance(optimizer, str) else type_name(optimizer),
        ]
        if self.estimate is not None and self.estimate.times is not None:
            facts.append(f"about {about(self.estimate.times.seconds)} per epoch")
        lessons = tuple(map(self._lesson, self.stage.objectives))
        return StageGraph(name=self.stage.name, facts=" · ".join(facts), lessons=lessons)

    def _lesson(self, net: Net[Any]) -> Lesson:
        sources: dict[tuple[str | None, bool], Source] = {}
        for term in self.stage_plan.terms:
            if term.student_net == net.name:
                source = term.teacher, not term.target
                if source not in sources:
                    sources[source] = self._source(*source)
                sources[source].terms.append(term)
        earlier = self._trained_in(net.name)
        before = () if earlier is None else (f"continues from stage {earlier + 1}",)
        box = Box(name=net.name, net=net.name, lines=(*self._facts_of(net), *before))
        return Lesson(student=box, sources=tuple(sources.values()))

    def _source(self, name: str | None, is_own_loss: bool) -> Source:
        """Return a teacher by its name, the loss that the network computes itself, or the labels."""
        if is_own_loss:
            return Source(box=Box(name="own loss", net=None, lines=("computed by the network",)))
        if name is None:
            task, classes = self.plan.context.task, describe_count(len(self.plan.context.classes), "class", "classes")
            lines = (task,) if task == "regression" else (task, classes)
            return Source(box=Box(name=LABELS, net=None, lines=lines))
        teacher = next(match.teacher for match in self.stage.matches if match.teacher.name == name)
        if isinstance(teacher, Net):
            caching = None if self.estimate is None else self.estimate.caching.get(name)
            cached = ("outputs cached",) if caching is not None and caching.is_cached else ()
            box = Box(name=name, net=name, lines=(*self._facts_of(teacher), *cached))
            return Source(box=box, trained=self._trained((name,)))
        if isinstance(teacher, Teachers):
            members = [net.name for net in teacher.members]
            return Source(box=Box(name=name, net=name, lines=(type_name(teacher),)), trained=self._trained(members))
        net = getattr(teacher, "net", None)
        kinds = {Ema: "moving average", Past: "at the last epoch", Peer: "at the same step"}
        kind = kinds.get(type(teacher), type(teacher).__name__)
        return Source(box=Box(name=name, net=net.name if isinstance(net, Net) else name, lines=(kind,)))

    def _facts_of(self, net: Net[Any]) -> tuple[str, ...]:
        """Return the class of a network, its parameters, and its multiply-adds if they are known."""
        count = None if self.estimate is None else self.estimate.multiply_adds.get(net.name)
        return (
            type_name(net.module),
            f"{net.parameters:,} parameters",
            *(() if count is None else (f"{format_count(count)} multiply-adds",)),
        )

    def _trained(self, names: Sequence[str]) -> tuple[tuple[int, str], ...]:
        """Return the networks that an earlier stage trained, each with the index of that stage."""
        return tuple((stage, name) for name in names if (stage := self._trained_in(name)) is not None)

    def _trained_in(self, name: str) -> int | None:
        """Return the index of the last stage before this one that trains a network."""
        trained = [{net.name for net in stage.objectives} for stage in self.plan.stages[: self.index]]
        return next((earlier for earlier in reversed(range(self.index)) if name in trained[earlier]), None)
