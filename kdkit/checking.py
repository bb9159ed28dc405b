"""Resolve a whole experiment without training: who learns what from whom, and all that is wrong with it."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.balancing import tried
from kdkit.comparison import Comparison
from kdkit.data import Batch, Data, Stream
from kdkit.errors import CheckError, KdkitError, did_you_mean
from kdkit.goal import as_goal
from kdkit.losses import Facts
from kdkit.net import Net
from kdkit.recipe import Recipe, Stage, nets_of
from kdkit.rehearsal import Rehearsal
from kdkit.runoptions import Precision
from kdkit.scores import Predictions
from kdkit.termcheck import term_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An experiment as it would run, and every problem that stands in its way.

    comparisons: for each stage, its terms with their shapes; empty for a stage that could not be rehearsed.
    foreign: teachers of features alone, whose outputs are not about the data's classes; they cannot be scored.
    """

    stages: tuple[Stage, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]
    problems: tuple[str, ...]
    facts: Facts
    foreign: frozenset[Net[Any]] = frozenset()

    @property
    def nets(self) -> tuple[Net[Any], ...]:
        """Every net that teaches or learns."""
        return nets_of(self.stages)

    def require(self) -> None:
        """Raise CheckError if there is any problem."""
        if self.problems:
            raise CheckError(self.problems)


def check(recipe: Recipe, device: torch.device | str = "cpu", precision: Precision = "fp32") -> Plan:
    """Return the plan of a recipe, from a tiny forward pass a stage. Nothing is trained.

    Nets are moved to the device, and else left as they were; losses with weights are built.

    Raises only where the data cannot be read or the schedule gives no stages; all else stands in `problems`.
    """
    stages = tuple(recipe.schedule.stages())
    facts = facts_of(recipe.data)
    problems = [*_same_classes(recipe.data), *_across_stages(recipe, stages), *_scores(recipe), *_answers(recipe)]
    comparisons = []
    foreign: set[Net[Any]] = set()
    for stage in stages:
        found = [*_before_rehearsal(stage, facts)] or [*_training(stage)]
        shown: tuple[Comparison, ...] = ()
        if not found:
            batch = tiny_batch(recipe.data, stage.training.batch_size).to(torch.device(device))
            for net in nets_of([stage]):
                if isinstance(net.module, nn.Module):
                    net.module.to(batch.labels.device)
            rehearsal = Rehearsal(stage, facts, batch, precision)
            found, shown = rehearsal.problems, tuple(rehearsal.comparisons)
            if not found and rehearsal.lesson is not None:
                found = [*tried(stage.training, rehearsal.lesson, rehearsal.respondents, batch, precision)]
            rehearsal.close()
            foreign.update(rehearsal.foreign)
        problems += [f"stage {stage.name!r}: {problem}" for problem in found]
        comparisons.append(shown)
    return Plan(
        stages=stages,
        comparisons=tuple(comparisons),
        problems=tuple(dict.fromkeys(problems)),
        facts=facts,
        foreign=frozenset(foreign),
    )


def facts_of(data: Data) -> Facts:
    """Return what losses may know of the data."""
    train = data.train
    streamed = isinstance(train, Stream)
    return Facts(
        classes=tuple(data.classes), task=data.task, samples=None if streamed else len(train), ids=not streamed
    )


def tiny_batch(data: Data, batch_size: int) -> Batch:
    """Return four samples of the training split, one where a batch is one; or the first batch of a user's loader.

    Of two samples some relations between samples are constant; in data of fewer than four the last one is repeated.
    """
    train = data.train
    if isinstance(train, Stream):
        return next(iter(train))
    return train.batch(torch.arange(4 if batch_size > 1 and len(train) > 1 else 1).clamp(max=len(train) - 1), 0)


def _same_classes(data: Data) -> Iterator[str]:
    for name, count in Counter(data.classes).items():
        if count > 1:
            yield f"{count} classes of the data are called {name!r}, of which a table could show one only"


def _across_stages(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[str]:
    if not stages:
        yield f"{type(recipe.schedule).__name__} gives no stages: there is nothing to train"
    yield from _same_names(stages)
    for name, count in Counter(stage.name for stage in stages).items():
        if count > 1:
            yield f"{count} stages are called {name!r}; give each a name of its own: Stage(..., name=...)"
    trained: set[Net[Any]] = {net for net in nets_of(stages) if net.trained}
    scores = [score.name for score in recipe.scores]
    for stage in stages:
        for source in stage.sources:
            if isinstance(source, Net) and source not in trained and source not in stage.goals:
                yield (
                    f"stage {stage.name!r}: net {source.name!r} teaches but is neither trained in an earlier stage nor "
                    "given weights; pass Net(..., weights=FILE), or trained=True if its module is as it should be"
                )
        trained |= set(stage.goals)
        if stage.training.by is not None and stage.training.by not in scores:
            yield (
                f"stage {stage.name!r}: {stage.training.by!r} is not among the recipe's scores; "
                f"{did_you_mean(stage.training.by, scores)}"
            )
    yield from _used_twice(stages)


def _same_names(stages: Sequence[Stage]) -> Iterator[str]:
    """Nets have names in files, so of a whole recipe; other sources have theirs in a stage."""
    for name, count in Counter(net.name for net in nets_of(stages)).items():
        if count > 1:
            yield f"{count} nets are called {name!r}; give each a name of its own"
    for stage in stages:
        matched = {*nets_of([stage]), *(match.source for match in stage.matches)}
        for name, count in Counter(each.name for each in matched).items():
            if count > 1 and any(each.name == name and not isinstance(each, Net) for each in matched):
                yield (
                    f"stage {stage.name!r}: {count} things that are matched are called {name!r}, such as one of other "
                    "options; match the same one in each term, or name them apart"
                )


def _scores(recipe: Recipe) -> Iterator[str]:
    """Score made-up answers, so that a score that does not fit the data is refused before hours of training."""
    classes = tuple(recipe.data.classes)
    random = np.random.default_rng(0)
    outputs = random.standard_normal((2 * len(classes) + 2, len(classes)))
    right = np.arange(len(outputs)) % len(classes)
    labels: NDArray[Any] = right if recipe.data.task == "multiclass" else np.eye(len(classes))[right]
    said = Predictions(labels=labels, outputs=outputs, classes=classes)
    for score in recipe.scores:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # made-up answers may be odd ones
                score.fit(said).score(said)
        except KdkitError as error:
            yield f"score {score.name!r}: {error}"
        except Exception as error:  # a stranger's score may raise anything
            yield f"score {score.name!r} cannot score this data ({recipe.data.task}): {type(error).__name__}: {error}"


def _answers(recipe: Recipe) -> Iterator[str]:
    if recipe.answers.top is not None and recipe.data.task != "multiclass":
        yield (
            f"answers are cut to their {recipe.answers.top} largest outputs where labels are one class per sample, and "
            f"this data is {recipe.data.task}; leave out Answers(top=...)"
        )


def _used_twice(stages: Sequence[Stage]) -> Iterator[str]:
    losses = [each.term for stage in stages for goal in stage.goals.values() for each in as_goal(goal)]
    seen: dict[int, str] = {}
    for term in losses:
        loss = term.loss
        if isinstance(loss, nn.Module) and (hasattr(loss, "build") or any(True for _ in loss.parameters())):
            if id(loss) in seen:
                yield (
                    f"terms {seen[id(loss)]!r} and {term.label!r} share one {type(loss).__name__}, which has weights; "
                    "give each its own"
                )
            seen[id(loss)] = term.label


def _before_rehearsal(stage: Stage, facts: Facts) -> Iterator[str]:
    for net, goal in stage.goals.items():
        if not isinstance(net.module, nn.Module):
            yield f"net {net.name!r} is a plain callable: it can teach, but not be trained"
        elif not any(parameter.requires_grad for parameter in net.module.parameters()):
            yield f"net {net.name!r} has nothing to train: none of its parameters requires a gradient"
        else:
            yield from (
                f"net {net.name!r} keeps {key!r}, a {type(value).__name__}, in its state_dict(), of which a run folder "
                "holds tensors alone; leave out get_extra_state, or return a tensor"
                for key, value in net.module.state_dict().items()
                if not isinstance(value, Tensor)
            )
        labels = Counter(each.term.label for each in as_goal(goal))
        for label, count in labels.items():
            if count > 1:
                yield f"{count} terms are called {label!r}; tell them apart with label='...'"
        for each in as_goal(goal):
            found = term_problems(net, each.term, stage, facts)
            yield from (f"term {each.term.label!r}: {problem}" for problem in found)


def _training(stage: Stage) -> Iterator[str]:
    """Make the optimizer and its schedule once, so that the last stage's options are refused before the first runs."""
    training = stage.training
    named = [
        (f"{net.name}.{path}", each)
        for net in stage.goals
        for path, each in net.network.named_parameters()
        if each.requires_grad
    ]
    try:
        optimizer = training.optimizer.build(named)
        if training.learning_rate is not None:
            training.learning_rate.build(optimizer, epochs=training.epochs, updates=training.epochs)
    except KdkitError as error:
        yield str(error)
