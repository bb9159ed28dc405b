"""The plan of a recipe: its stages, what each term compares, and every problem."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kdkit.engine.check.estimate import StageEstimate
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.errors import CheckError
from kdkit.losses.base import BuildContext, describe_loss
from kdkit.losses.sides import TensorOrTuple, as_tuple
from kdkit.nets.elements import Element
from kdkit.nets.net import Net
from kdkit.nets.taps import ClassifierTap, Tap, TapLike, path_of
from kdkit.recipe.objective import Taps, describe_factor, model_loss, taps_of
from kdkit.recipe.recipe import Stage, nets_of
from kdkit.teachers.base import Teacher
from kdkit.teachers.ensemble import Teachers
from kdkit.utils.reprs import describe_count


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSummary:
    """A trained module of a loss: its class, the shapes of its first input and output, and its parameters."""

    module: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TermSummary:
    """A term as it will be computed: both sides with their shapes, and the parameters and projectors of its loss.

    weight: at the start and at the end of the training. factors: those of the weight, as written in a recipe. taps: the
    tapped modules of both sides, with "outputs" and "labels" for the others. target: "" for a loss that the model
    computes. parameters: their number.
    """

    label: str
    loss: str
    weight: tuple[float, float]
    factors: str
    taps: tuple[str, str]
    student_net: str
    teacher: str | None
    student: str
    target: str
    parameters: int
    projectors: tuple[ProjectorSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A stage as it would run.

    terms: empty if the dry run failed. peak_memory_bytes: the peak memory of tensors in the dry run, which has only a
    few samples and no optimizer, so a training step takes more. None on devices other than CUDA, and if the stage was
    not run. estimate: its cost; None if it was not run, or if `check` got no options.
    """

    stage: Stage
    terms: tuple[TermSummary, ...]
    peak_memory_bytes: int | None
    estimate: StageEstimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe as it would run, and every problem that prevents it.

    without_metrics: teachers that cannot be evaluated on the validation data, or that are matched by features only and
    whose outputs are not about the data's classes. notices: settings that are valid but rarely intended, such as
    uncertain channels of a tap.
    loader_batch: the size of the first batch of a user-defined DataLoader, which replaces Training(batch_size=); None
    for other data.
    """

    stage_plans: tuple[StagePlan, ...]
    problems: tuple[str, ...]
    context: BuildContext
    without_metrics: frozenset[Net[Any]]
    notices: tuple[str, ...]
    loader_batch: int | None

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self.stages)
        problems = "".join(f"\n  - {problem}" for problem in self.problems) or " no problems"
        return f"Plan({describe_count(len(self.stages), 'stage')}: {stages};{problems})"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order in which they run."""
        return tuple(plan.stage for plan in self.stage_plans)

    def with_seed(self, seed: int) -> "Plan":
        """Return the plan with a notice if recipe(), which was called with this seed of torch, has set another one."""
        if torch.initial_seed() == seed:
            return self
        notice = (
            f"recipe() sets the seed of torch, to {torch.initial_seed()}, so networks that it creates afterwards have "
            "the same initial weights in the runs of all seeds; leave torch.manual_seed out, or call it within "
            "torch.random.fork_rng()"
        )
        return replace(self, notices=(*self.notices, notice))

    @property
    def terms(self) -> tuple[tuple[TermSummary, ...], ...]:
        """The summaries of each stage's terms."""
        return tuple(plan.terms for plan in self.stage_plans)

    @property
    def estimates(self) -> tuple[StageEstimate | None, ...]:
        """The cost of each stage."""
        return tuple(plan.estimate for plan in self.stage_plans)

    @property
    def nets(self) -> tuple[Net[Any], ...]:
        """Every network that teaches or is trained."""
        return nets_of(self.stages)

    def require(self) -> None:
        """Raise CheckError if there is any problem."""
        if self.problems:
            raise CheckError(self.problems)


def summarize(
    term: BoundTerm, inputs: TermInputs, open_taps: Iterable[TapLike], projectors: Iterable[ProjectorSummary]
) -> TermSummary:
    """Return the summary of a term from its inputs for a tiny batch.

    open_taps: the taps that captured these inputs; the taps of the term are equal to them, but may be other objects.
    projectors: those that the loss has built.
    """
    opened = {tap: tap for tap in open_taps}

    def describe_side(taps: Taps, nets: Sequence[Net[Any]]) -> str:
        if taps is None:
            elements = dict.fromkeys(filter(None, (_describe_element(net.taken_element) for net in nets)))
            return " ".join(["outputs", *elements])
        return ", ".join(describe_tap(opened.get(tap, tap), nets) for tap in taps_of(taps))

    source = term.weighted.term
    student = describe_side(source.student, [term.student_net])
    target = "labels" if inputs.target is None else describe_side(source.target, _nets_of(source.teacher))
    parameters = sum(map(torch.numel, term.loss.parameters())) if isinstance(term.loss, nn.Module) else 0
    return TermSummary(
        label=term.label,
        loss=describe_loss(term.loss),
        weight=(term.weighted.weight(0.0), term.weighted.weight(1.0)),
        factors=" * ".join(map(describe_factor, term.weighted.factors)),
        taps=(student, target),
        student_net=term.student_net.name,
        teacher=None if source.teacher is None else source.teacher.name,
        student=f"{student} {describe_shape(inputs.student)}",
        target="" if term.loss is model_loss else f"{target} {describe_shape(inputs.target_or_labels())}",
        parameters=parameters,
        projectors=tuple(projectors),
    )


def describe_shape(side: TensorOrTuple) -> str:
    """Return the shape of a tensor, or the shapes of a tuple of tensors."""
    return " ".join(str(tuple(tensor.shape)) for tensor in as_tuple(side))


def describe_tap(tap: TapLike, nets: Sequence[Net[Any]]) -> str:
    """Return the path of the tapped module in its network, such as "layer3.0", with the form of its feature."""
    paths = (path_of(tap.module, net) for net in nets)
    path = next((path for path in paths if path is not None), "?")
    kind = getattr(tap, "at", type(tap).__name__)
    source = path or "outputs" if kind == "output" else f"{kind} of {path or 'the network'}"
    if not isinstance(tap, Tap):
        return source
    source = f"classes at {source}" if isinstance(tap, ClassifierTap) else source
    source += f" call {tap.call}" if tap.call is not None else ""
    element = _describe_element(tap.form.element)
    return f"{f'{element} of ' if element else ''}{source}{' channels last' if tap.form.channels_last else ''}"


def _describe_element(element: Element) -> str:
    """Return a key unchanged, and an index as "element 0"; "" for a function or None."""
    return f"element {element}" if isinstance(element, int) else element if isinstance(element, str) else ""


def _nets_of(teacher: Teacher | None) -> tuple[Net[Any], ...]:
    """Return the networks whose layers may be tapped for a teacher: its members, itself, or the net that it follows."""
    if isinstance(teacher, Teachers):
        return teacher.members
    net = teacher if isinstance(teacher, Net) else getattr(teacher, "net", None)
    return (net,) if isinstance(net, Net) else ()
