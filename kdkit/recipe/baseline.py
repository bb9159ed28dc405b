"""Add a baseline without distillation to a recipe: the same student, trained on the labels only."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kdkit.errors import RecipeError, first_line
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, Objective, Truth, WeightedTerm, describe_factor
from kdkit.recipe.optim import Named, Optimizer
from kdkit.recipe.recipe import Recipe, Stage, weighted_terms
from kdkit.utils.modules import copy_with_module

_SUFFIX = "-alone"


def with_baselines(recipe: Recipe, *, required: bool = True) -> Recipe:
    """Return the recipe with a baseline, "<student>-alone", for each distilled student of its last stage.

    A baseline starts from the initial weights of its student and is trained in the same way, with the data in the same
    order, but without the terms that match a teacher. If the labels of the student have a total weight below 1, it is 1
    in the baseline, so that its steps are not smaller. Earlier stages that train the student on labels are repeated.
    required: whether to raise RecipeError if no student of the last stage has a teacher. Also raises it if such a
    student has no term on labels.
    """
    stages = recipe.stages
    added: list[Stage] = []
    terms = weighted_terms(stages[-1]) if stages else ()
    students = dict.fromkeys(net for net, weighted in terms if isinstance(weighted.term, Match))
    if not students and required:
        raise RecipeError(
            "a baseline repeats the last stage without its teachers, but no net of that stage has a teacher; add a "
            "Match term, or run without the baseline"
        )
    for student in students:
        added += _stages_alone(student, stages)
    return recipe.with_stages([*stages, *added])


def baselines_of(stages: Sequence[Stage]) -> Mapping[str, str]:
    """Return the name of each baseline by the name of its student."""
    students = {stage.name: [net.name for net in stage.objectives] for stage in stages}
    baselines: dict[str, str] = {}
    for stage in stages:
        candidates = students.get(stage.baseline_of, [])
        for net in stage.objectives:
            # With several students, the name identifies one. A user-defined stage may have any name.
            student = candidates[0] if len(candidates) == 1 else net.name.removesuffix(_SUFFIX)
            if student in candidates:
                baselines[student] = net.name
    return baselines


def baseline_notices(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield a notice for each baseline whose labels have a larger weight than those of its student."""
    by_name = {stage.name: stage for stage in stages}
    names = baselines_of(stages)
    for stage in stages:
        if stage.baseline_of not in by_name:
            continue
        for alone, objective in stage.objectives.items():
            for student, distilled in by_name[stage.baseline_of].objectives.items():
                weights = [_label_weights(terms) for terms in (objective, distilled)]
                if names.get(student.name) == alone.name and weights[0] != weights[1]:
                    yield (
                        f"the labels of net {alone.name!r} have weight {weights[0]}, those of {student.name!r} "
                        f"{weights[1]}, so that the steps without a teacher are not smaller"
                    )


def _label_weights(objective: Objective) -> str:
    """Return the total weight of the labels at the start and at the end of a stage."""
    first, last = (f"{sum(term.weight(progress) for term in _label_terms(objective)):.3g}" for progress in (0.0, 1.0))
    return first if first == last else f"{first} to {last}"


def _stages_alone(student: Net[Any], stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages that train a copy of a student on its labels only."""
    trained = [stage for stage in stages if student in stage.objectives]
    labels = {stage.name: _label_terms(stage.objectives[student]) for stage in trained}
    last = stages[-1]
    if not labels[last.name]:  # labels of weight 0, as in a sweep of their weight, name the loss of the baseline
        labels[last.name] = tuple(weighted for weighted in last.objectives[student] if isinstance(weighted.term, Truth))
    if not labels[last.name]:
        raise RecipeError(
            f"net {student.name!r} has no baseline: in stage {last.name!r} it learns only from teachers; add a Truth "
            "term, whose weight may be 0, or run without the baseline"
        )
    balancings = {stage.name: stage.training.balancing for stage in trained}
    try:
        # Copied together, so that taps of the label terms, and the layer of GradNorm, refer to the copied network.
        module, copied, balancings = copy_with_module((student.network, labels, balancings), student.network)
    except RecipeError as error:
        raise RecipeError(f"net {student.name!r} cannot be copied, but its baseline is a copy: {error}") from error
    except Exception as error:  # a user-defined module may hold objects that cannot be copied
        raise RecipeError(
            f"net {student.name!r} cannot be copied, but its baseline is a copy; do not store computed tensors, files "
            f"or locks in its modules or in the losses of its labels ({type(error).__name__}: {first_line(error)})"
        ) from error
    alone = copy.copy(student)
    alone.name, alone.module = f"{student.name}{_SUFFIX}", module
    return [
        replace(
            stage,
            objectives={alone: _alone(Objective(copied[stage.name]), stage.objectives[student])},
            training=replace(
                stage.training,
                optimizer=_optimizer_of_copy(stage.training.optimizer, student, alone),
                balancing=balancings[stage.name],
            ),
            name=alone.name if stage is last else f"{alone.name}-{stage.name}",
            baseline_of=stage.name,
        )
        for stage in trained
        if copied[stage.name]
    ]


def _optimizer_of_copy(optimizer: Optimizer, student: Net[Any], alone: Net[Any]) -> Optimizer:
    """Return the optimizer with groups for a copy of a student, which are those of the student.

    Its function gets the names and parameters of the student, which it may also have from elsewhere.
    """
    groups = optimizer.groups
    if groups is None:
        return optimizer

    @functools.wraps(groups)  # its name is recorded
    def of_copy(named: Named) -> list[dict[str, Any]]:
        originals = dict(student.network.named_parameters())
        copies: dict[nn.Parameter, nn.Parameter] = {}
        listed = []
        for name, parameter in named:
            net, _, path = name.partition(".")
            original = originals[path] if net == alone.name else parameter
            copies[original] = parameter
            listed.append((f"{student.name}.{path}" if net == alone.name else name, original))
        return [
            {**group, "params": [copies.get(parameter, parameter) for parameter in group["params"]]}
            for group in groups(listed)
        ]

    return Optimizer(optimizer.make, groups=of_copy, **optimizer.options)


def _alone(labels: Objective, distilled: Objective) -> Objective:
    """Return the objective of the label terms, with a total weight of at least 1 if the student has teachers."""
    if not any(isinstance(weighted.term, Match) and weighted.has_weight for weighted in distilled):
        return labels  # for example an earlier stage on labels, which the baseline repeats
    constants = all(weighted.is_constant for weighted in labels)
    if constants and sum(weighted.weight(0.0) for weighted in labels) >= 1:
        return labels
    shares = [_Share(labels, index) for index in range(len(labels.terms))]
    return Objective(
        tuple(
            WeightedTerm(weighted.term, (share(0.0) if constants else share,))
            for weighted, share in zip(labels, shares, strict=True)
        )
    )


@dataclass(frozen=True, slots=True)
class _Share:
    """A ramp: the weight of one of several terms, raised so that the total is always at least 1."""

    labels: Objective
    index: int

    def __repr__(self) -> str:
        factors = self.labels.terms[self.index].factors
        return f"({' * '.join(map(describe_factor, factors))}, raised to a total of 1)"

    def __call__(self, progress: float) -> float:
        weights = [weighted.weight(progress) for weighted in self.labels]
        total = sum(weights)
        if not total:  # for example at the start of a ramp from 0, when the student learns only from its teacher
            return 1 / len(weights)
        return weights[self.index] / min(1.0, total)


def _label_terms(objective: Objective) -> tuple[WeightedTerm, ...]:
    """Return the terms on labels with a weight above 0."""
    return tuple(weighted for weighted in objective if isinstance(weighted.term, Truth) and weighted.has_weight)
